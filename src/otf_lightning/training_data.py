"""Which samples a fit trains on, changed under way; training thread, at the gate."""

# ruff: noqa: SLF001 -- the state lies in private names; ``inside.PRIVATE`` lists them

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.data import ChosenData, DataChoice
from otf_core.state.loader_parts import length_of


class TrainingData:
    """The training loader of one fit.

    Args:
        trainer: in fit; its loader is made by the first ``choose``.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer
        self.chosen: ChosenData | None = None
        self.own_batches: float = 0  # of an epoch, as the script has it

    @property
    def choice(self) -> DataChoice:
        """What the fit trains on now."""
        return self.chosen.choice if self.chosen is not None else DataChoice()

    def check(self, choice: DataChoice) -> None:
        """See ChosenData.check."""
        if choice:
            self.loader().check(choice)

    def choose(self, choice: DataChoice) -> list[str]:
        """From the next iterator on; see ChosenData.choose."""
        if not choice and not self.choice:
            return []
        told = self.loader().choose(choice)
        told += _count(self.trainer)
        return told

    def begin_pass(self) -> None:
        """The epoch begins anew, with the loader as it is now."""
        fit: Any = self.trainer.fit_loop
        loop = fit.epoch_loop
        iter(fit._data_fetcher)
        loop.batch_progress.reset_on_run()
        loop.batch_progress.is_last_batch = False
        loop.scheduler_progress.reset_on_run()
        loop.automatic_optimization.optim_progress.reset_on_run()
        loop.val_loop.batch_progress.total.reset()
        self.trainer._logger_connector.reset_results()

    def environment(self) -> dict[str, Any]:
        """See TrainingData in otf_core.runs.data."""
        return {"data": int(self.own_batches)} if self.choice else {}

    def off(self) -> None:
        """The loader as the script has made it."""
        if self.chosen is not None:
            self.chosen.restore()

    def loader(self) -> ChosenData:
        """The one that the fit trains with; CommandError where it cannot be changed."""
        if self.chosen is None:
            combined: Any = self.trainer.fit_loop._combined_loader
            if (why := _why_not(self.trainer, len(combined.flattened))) is not None:
                detail = f"Other training data was asked; {why}."
                raise CommandError(ErrorCode.UNSUPPORTED, detail)
            [loader] = combined.flattened
            self.chosen = ChosenData(loader)
            self.own_batches = self.trainer.fit_loop.max_batches
        return self.chosen


def _count(trainer: L.Trainer) -> list[str]:
    """The batches of an epoch, and when it validates; as ``setup_data`` counts them."""
    fit = trainer.fit_loop
    combined: Any = fit._combined_loader
    [loader] = combined.flattened
    length = length_of(loader)
    assert length is not None
    number = _parse_num_batches(RunningStage.TRAINING, length, trainer.limit_train_batches)
    combined.limits = [number]
    fit.max_batches = number
    if combined._iterator is not None:
        combined._iterator.limits = [number]
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        trainer.val_check_batch = max(1, int(number * interval))
    elif trainer.check_val_every_n_epoch is not None:
        trainer.val_check_batch = min(interval, int(number))
        if interval > number:
            return [f"it validates every {int(number)} batches, which are a whole epoch now"]
    return []


def _why_not(trainer: L.Trainer, loaders: int) -> str | None:
    if trainer.reload_dataloaders_every_n_epochs:
        return "its loaders are made anew (reload_dataloaders_every_n_epochs)"
    if trainer.world_size > 1:
        return f"it trains on {trainer.world_size} ranks"
    return f"it trains with {loaders} loaders at a time" if loaders != 1 else None
