"""The schedule that StochasticWeightAveraging puts in the place of the script's, once it begins;
training thread, at the gate.

No state_dict has it: Lightning makes it at the start of an epoch, which a snapshot is past.
"""

# ruff: noqa: SLF001 -- the callback has no other names for it

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.swa_utils import SWALR

from otf_core.errors import CommandError, ErrorCode


def schedules(trainer: L.Trainer, state: Mapping[str, Any]) -> int:
    """How many there will be when a snapshot is put in place.

    Raises:
        CommandError: ``unsupported``; the averaging has begun since, and the script's own schedule
            is gone.
    """
    number = len(trainer.lr_scheduler_configs)
    for callback, begun in _found(trainer, state):
        here = callback._swa_scheduler is not None
        if here and not begun:
            detail = (
                "The checkpoint is from before StochasticWeightAveraging began, which has put its "
                "own schedule in the place of this run's; allowed: later ones, or in a new "
                "process; the run is as it was."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if begun and not here:
            number = max(number, 1)
    return number


def begin(trainer: L.Trainer, state: Mapping[str, Any]) -> None:
    """As the callback does it, where the snapshot is of a later time; values are still to come."""
    for callback, begun in _found(trainer, state):
        if not begun or callback._swa_scheduler is not None:
            continue
        optimizer = trainer.optimizers[0]
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # of a schedule that begins late
        schedule = SWALR(
            optimizer,
            swa_lr=callback._swa_lrs,  # type: ignore[arg-type]
            anneal_epochs=callback._annealing_epochs,
            anneal_strategy=callback._annealing_strategy,
            last_epoch=(trainer.max_epochs or 0) if callback._annealing_strategy == "cos" else -1,
        )
        callback._swa_scheduler = schedule
        trainer.lr_scheduler_configs[:1] = [LRSchedulerConfig(schedule)]


def _found(
    trainer: L.Trainer, state: Mapping[str, Any]
) -> Iterator[tuple[StochasticWeightAveraging, bool]]:
    """Those of the fit, and whether they had begun in the snapshot."""
    callbacks: list[L.Callback] = trainer.callbacks
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            saved = state.get("callbacks", {}).get(callback.state_key, {})
            yield callback, saved.get("scheduler_state") is not None
