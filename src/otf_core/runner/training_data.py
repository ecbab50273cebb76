"""Which samples a fit trains on, changed under way; training thread, between two batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_core.runner.batches import UNKNOWN
from otf_core.state.loader_parts import length_of
from otf_core.state.parts import steps_left

if TYPE_CHECKING:
    from otf_core.runner.run import Run


class FitData:
    """See FitData in otf_core.runs.data."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def loader(self) -> Any:
        """The one that the fit trains with."""
        [loader] = self._run.fit_loop.loaders or [None]
        return loader

    def batches(self) -> int | None:
        """That the script's loader has."""
        return length_of(self.loader())

    def epoch(self) -> tuple[int, int] | None:
        """Its batches, and how many make a step."""
        batches = self._run.fit_loop.max_batches
        if not batches or batches == UNKNOWN:
            return None
        return int(batches), self._run.accumulate_grad_batches

    def steps_left(self) -> int | None:
        """Of the schedules that step with the optimizer."""
        return steps_left(c.scheduler for c in self._run.schedulers if c.interval == "step")

    def count(self) -> list[str]:
        """How many batches an epoch has, and when it validates."""
        loop, every = self._run.fit_loop, self._run.val_check_interval
        loop.count()
        if not isinstance(every, int):
            loop.val_check_batch = max(1, int(loop.max_batches * every))
        elif self._run.check_val_every_n_epoch is not None:
            loop.val_check_batch = min(every, loop.max_batches)
            if every > loop.max_batches:
                return [
                    f"it validates every {loop.max_batches} batches, which are a whole epoch now"
                ]
        return []

    def within_epoch(self) -> bool:
        """Whether batches of this epoch are still to come."""
        return self._run.counters.in_epoch and not self._run.fit_loop.epoch_is_full()

    def begin_pass(self) -> None:
        """The epoch begins anew, with the loader as it is now."""
        loop, counters = self._run.fit_loop, self._run.counters
        counters.batches_begun = counters.batches_done = 0
        counters.is_last_batch = False
        loop.batches.begin()
        self._run.book.reset_results()
