"""Which samples a fit trains on, changed under way; training thread, between two batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_core.runs.data import ChosenData, DataChoice
from otf_core.state.loader_parts import length_of

if TYPE_CHECKING:
    from otf_core.runner.run import Run


class TrainingData:
    """The training loader of one fit; it is made by the first ``choose``."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._chosen: ChosenData | None = None
        self._own_batches: int | None = None  # that the script's loader has

    @property
    def choice(self) -> DataChoice:
        """What the fit trains on now."""
        return self._chosen.choice if self._chosen is not None else DataChoice()

    def check(self, choice: DataChoice) -> None:
        """See ChosenData.check."""
        if choice:
            self._loader().check(choice)

    def choose(self, choice: DataChoice) -> list[str]:
        """From the next iterator on; see ChosenData.choose."""
        if not choice and not self.choice:
            return []
        told = self._loader().choose(choice)
        loop = self._run.fit_loop
        loop.count()
        every = self._run.val_check_interval
        if not isinstance(every, int):
            loop.val_check_batch = max(1, int(loop.max_batches * every))
        elif self._run.check_val_every_n_epoch is not None:
            loop.val_check_batch = min(every, loop.max_batches)
            if every > loop.max_batches:
                told.append(
                    f"it validates every {loop.max_batches} batches, which are a whole epoch now"
                )
        return told

    def begin_pass(self) -> None:
        """The epoch begins anew, with the loader as it is now."""
        loop, counters = self._run.fit_loop, self._run.counters
        counters.batches_begun = counters.batches_done = 0
        counters.is_last_batch = False
        loop.batches.begin()
        self._run.book.reset_results()

    def environment(self) -> dict[str, Any]:
        """See TrainingData in otf_core.runs.data."""
        return {"data": self._own_batches} if self.choice else {}

    def off(self) -> None:
        """The loader as the script has made it."""
        if self._chosen is not None:
            self._chosen.restore()

    def _loader(self) -> ChosenData:
        if self._chosen is None:
            [loader] = self._run.fit_loop.loaders or [None]
            self._chosen = ChosenData(loader)
            self._own_batches = length_of(loader)
        return self._chosen
