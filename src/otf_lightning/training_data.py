"""Which samples a fit trains on, changed under way; training thread, at the gate."""

# ruff: noqa: SLF001 -- the state lies in private names; ``inside.PRIVATE`` lists them

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.loader_parts import length_of
from otf_core.state.parts import steps_left
from otf_lightning import inside


class FitData:
    """See FitData in otf_core.runs.data.

    Args:
        trainer: in fit.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.trainer = trainer

    def loader(self) -> Any:
        """The one that the fit trains with; CommandError where it cannot be changed."""
        combined: Any = self.trainer.fit_loop._combined_loader
        if combined is None:
            detail = "Other training data was asked; no loader is made yet."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if (why := _why_not(self.trainer, len(combined.flattened))) is not None:
            detail = f"Other training data was asked; {why}."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        [loader] = combined.flattened
        return loader

    def batches(self) -> int | None:
        """As Lightning counts them, by its limits."""
        return inside.training_batches(self.trainer)

    def epoch(self) -> tuple[int, int] | None:
        """Its batches, and how many make a step."""
        batches = inside.training_batches(self.trainer)
        return (batches, self.trainer.accumulate_grad_batches) if batches else None

    def steps_left(self) -> int | None:
        """Of the schedules that step with the optimizer."""
        configs = self.trainer.lr_scheduler_configs
        return steps_left(c.scheduler for c in configs if c.interval == "step")

    def count(self) -> list[str]:
        """The batches of an epoch, and when it validates; as ``setup_data`` counts them."""
        trainer = self.trainer
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
        if inside.validates_by_the_clock(trainer):
            return []
        if isinstance(interval, float):
            trainer.val_check_batch = max(1, int(number * interval))
        elif trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = min(interval, int(number))
            if interval > number:
                return [f"it validates every {int(number)} batches, which are a whole epoch now"]
        return []

    def within_epoch(self) -> bool:
        """Whether batches of this epoch are still to come."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        over = progress.is_last_batch or progress.current.ready >= self.trainer.num_training_batches
        return not (over or inside.epoch_is_over(self.trainer))

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


def _why_not(trainer: L.Trainer, loaders: int) -> str | None:
    if trainer.reload_dataloaders_every_n_epochs:
        return "its loaders are made anew (reload_dataloaders_every_n_epochs)"
    if loaders != 1:
        return f"it trains with {loaders} loaders at a time"
    return _not_shared(trainer) if trainer.world_size > 1 else None


def _not_shared(trainer: L.Trainer) -> str | None:
    """Why nobody knows which rank is to draw which of some samples; None: it is known."""
    combined: Any = trainer.fit_loop._combined_loader
    [loader] = combined.flattened
    # What is refused for its own reason has its own sentence.
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if type(loader.batch_sampler) not in (BatchSampler, type(None)):
        return None
    sampler, of_all = loader.sampler, (trainer.world_size, trainer.global_rank)
    if isinstance(sampler, DistributedSampler) and (sampler.num_replicas, sampler.rank) == of_all:
        return None
    return (
        f"its {trainer.world_size} ranks draw by {type(sampler).__name__}, which is no "
        "DistributedSampler of all of them"
    )
