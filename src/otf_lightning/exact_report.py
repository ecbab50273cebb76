"""What only Lightning knows for the exactness report; training thread.

A row of ``OUTSIDE`` for a callback that keeps state where no snapshot finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, ProgressBar, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from otf_core.state import watched
from otf_core.state.data_tap import reasons
from otf_core.state.exactness import of_kernels
from otf_core.state.loader_parts import nested, samplers
from otf_core.state.plain_values import Encoder
from otf_lightning import inside
from otf_lightning.inside import MODULE_OWN
from otf_lightning.positions import DATA_OWN

# Callback -> what of it no snapshot has.
OUTSIDE: Final[Mapping[type[Callback], str]] = {Timer: "the time that max_time counts"}
LIBRARIES: Final = watched.LIBRARIES | {"lightning", "pytorch_lightning"}
NO_STATE: Final = (*watched.NO_STATE, L.Trainer, Logger)
CONTAINERS: Final = (list, tuple, dict, set, frozenset, torch.Tensor, np.ndarray, str, bytes)
# Of the checkpoint of Lightning's, what no resume reads.
NOT_READ: Final = ("checkpoint.hyper_parameters", "checkpoint.datamodule_hyper_parameters")
# Watched, and not worth a word: counters of their own, clocks, what is on the screen.
IGNORED: Final = (DeviceStatsMonitor, ProgressBar, Timer)


class ExactReport:
    """Looks again each time it is asked; remembers what attributes of unknown types were."""

    def __init__(self) -> None:
        self._watched = watched.Watched((L.Trainer,))
        self._left_out: list[str] = []

    def found(self, trainer: L.Trainer) -> tuple[list[str], list[str]]:
        """Reasons why a resume is not exact, and what is left out and may matter."""
        why = [*_of_loaders(trainer), *_of_fit(trainer)]
        untold = self._watched.look(_unknown(trainer), lambda: _owners(trainer))
        why += self._watched.reasons()
        return why, [*_of_clocks(trainer), *untold, *self._left_out]

    def leaves_out(self, unknown: Iterable[str], apart: Iterable[str]) -> None:
        """What a capture had to leave out, as ``place: type``, and what it had to take apart."""
        kept = [name for name in unknown if not name.startswith(NOT_READ)]
        self._left_out = watched.left_out(kept, apart)


def _of_loaders(trainer: L.Trainer) -> Iterator[str]:
    for loader in inside.fit_loaders(trainer):
        for reason in reasons(loader):
            yield f"{type(loader).__name__}: {reason}"
    if inside.hands_over_the_iterator(trainer):
        yield "training_step takes the loader's iterator itself"


def _of_clocks(trainer: L.Trainer) -> Iterator[str]:
    callbacks: list[Callback] = trainer.callbacks
    for callback in callbacks:
        for kind, what in OUTSIDE.items():
            if isinstance(callback, kind):
                yield what


def _of_fit(trainer: L.Trainer) -> Iterator[str]:
    if inside.validates_by_the_clock(trainer):
        yield "val_check_interval is a time"
    if trainer.world_size > 2 and isinstance(trainer.strategy, DDPStrategy):
        yield "more than 2 ranks: DDP sums the first gradients after a resume in another order"
    yield from of_kernels(trainer.strategy.root_device, "Trainer(deterministic=True)")


def _unknown(trainer: L.Trainer) -> Iterator[watched.Unknown]:
    """Attributes that a snapshot leaves as they are; of the data module, which holds data, only
    their changes are worth a word."""
    elsewhere = _kept_elsewhere(trainer)
    yield from watched.unknown_of(
        _owners(trainer),
        skip=MODULE_OWN,
        elsewhere=elsewhere,
        no_state=NO_STATE,
        libraries=LIBRARIES,
        says_itself=_has_hooks,
    )
    data = trainer.datamodule
    # One with a state_dict of its own has said what its state is.
    if data is not None and not is_overridden("state_dict", data, L.LightningDataModule):
        for name, value in Encoder(small=True, skip=DATA_OWN).refused(data):
            if not isinstance(value, (*NO_STATE, *CONTAINERS)) and id(value) not in elsewhere:
                yield watched.Unknown(f"data module.{name}", value, only_changes=True)


def _owners(trainer: L.Trainer) -> Iterator[tuple[str, Any]]:
    for name, module in trainer.lightning_module.named_modules():
        yield f"module {name or 'itself'}", module
    callbacks: list[Callback] = trainer.callbacks
    for callback in callbacks:
        if not hasattr(callback, "is_otf") and not isinstance(callback, IGNORED):
            yield f"callback {type(callback).__name__}", callback


def _kept_elsewhere(trainer: L.Trainer) -> set[int]:
    """Ids of what the positions of the loaders hold, whoever else has it as an attribute."""
    found = [trainer.datamodule, *trainer.lightning_module.modules(), *trainer.optimizers]
    found += [trainer.strategy.model]
    for loader in inside.fit_loaders(trainer):
        found.append(loader)
        if isinstance(loader, DataLoader):
            found += [*samplers(loader), *nested(loader.dataset)]
    return {id(value) for value in found}


def _has_hooks(owner: Any) -> bool:
    """Whether a callback says itself what of it is state."""
    hooks = ("state_dict", "on_save_checkpoint")
    return isinstance(owner, Callback) and any(is_overridden(h, owner, Callback) for h in hooks)
