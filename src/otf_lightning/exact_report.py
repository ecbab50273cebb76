"""What only Lightning knows for the exactness report; training thread.

A row of ``OUTSIDE`` for a callback that keeps state where no snapshot finds it.

Rule: an attribute of a type that cannot be stored is a reason once it was seen to change, an
exception where nobody can tell whether it does, and else not worth a word: it is what the script
has made, and so it will be in the next process (a configuration, a logger).
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import threading
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset

from otf_core.state.data_tap import reasons
from otf_core.state.loader_parts import nested, samplers
from otf_core.state.plain_values import Encoder
from otf_lightning import inside
from otf_lightning.inside import MODULE_OWN
from otf_lightning.positions import DATA_OWN

# Callback -> what of it no snapshot has.
OUTSIDE: Final[Mapping[type[Callback], str]] = {Timer: "the time that max_time counts"}
# Not part of the model: changes are seen by what they hold.
_HOLDERS: Final = (torch.nn.Module, torch.optim.Optimizer)
PRINT_BYTES: Final = 64 * 1024
LIBRARIES: Final = frozenset({"torch", "torchmetrics", "lightning", "pytorch_lightning"})
# What is called and not changed by it, and what decides no number.
NO_STATE: Final = (
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
    functools.partial,
    L.Trainer,
    Logger,
    io.IOBase,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Thread,
)
CONTAINERS: Final = (list, tuple, dict, set, frozenset, torch.Tensor, np.ndarray, str, bytes)
# Of the checkpoint of Lightning's, what no resume reads.
NOT_READ: Final = ("checkpoint.hyper_parameters", "checkpoint.datamodule_hyper_parameters")
# Watched, and not worth a word: counters of their own, clocks.
IGNORED: Final = (DeviceStatsMonitor, Timer)


class ExactReport:
    """Looks again each time it is asked; remembers what attributes of unknown types were."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes | None] = {}
        self._there: set[str] = set()  # attributes at the first look; no owner is without any
        self._changed: dict[str, str] = {}  # where -> its type
        self._left_out: list[str] = []

    def found(self, trainer: L.Trainer) -> tuple[list[str], list[str]]:
        """Reasons why a resume is not exact, and what is left out and may matter."""
        why = [*_of_loaders(trainer), *_of_fit(trainer)]
        untold = self._look_at_attributes(trainer)
        why += [
            f"{name} ({kind}) changes, and cannot be stored" for name, kind in self._changed.items()
        ]
        return why, [*_of_clocks(trainer), *untold, *self._left_out]

    def leaves_out(self, unknown: Iterable[str], apart: Iterable[str]) -> None:
        """What a capture had to leave out, as ``place: type``, and what it had to take apart."""
        self._left_out = [name for name in unknown if not name.startswith(NOT_READ)]
        self._left_out += [
            f"{name}, which shares memory with another tensor and comes back alone"
            for name in apart
        ]

    def _look_at_attributes(self, trainer: L.Trainer) -> list[str]:
        """Those of which nobody can tell whether they change."""
        untold, there = [], self._there
        for name, value, only_changes in _unknown(trainer):
            kind, now = type(value).__name__, _print_of(value)
            new = bool(there) and name not in self._seen and not only_changes
            before, self._seen[name] = self._seen.get(name, now), now
            # What was None at first, say, and is an object that cannot be stored by now.
            if before != now or (new and name in there):
                self._changed[name] = kind
            elif (now is None or new) and not only_changes and name not in self._changed:
                untold.append(f"{name} ({kind})")
        if not there:
            owners = _owners(trainer)
            self._there = {f"{where}.{name}" for where, owner in owners for name in vars(owner)}
        return untold


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
    if trainer.world_size > 2:
        yield "more than 2 ranks: DDP sums the first gradients after a resume in another order"
    if trainer.strategy.root_device.type == "cuda" and not (
        torch.are_deterministic_algorithms_enabled()
    ):
        yield "kernels of CUDA may not be deterministic (Trainer(deterministic=True))"


def _unknown(trainer: L.Trainer) -> Iterator[tuple[str, Any, bool]]:
    """Attributes that a snapshot leaves as they are.

    With each whether only its changes are worth a word: of what a library keeps, of what is
    called, and of the data module, which holds data.
    """
    enc = Encoder(lambda tensor: tensor, skip=MODULE_OWN)
    elsewhere = _kept_elsewhere(trainer)
    for where, owner in _owners(trainer):
        library = type(owner).__module__.partition(".")[0] in LIBRARIES
        for name, value in enc.refused(owner):
            if isinstance(value, NO_STATE) or id(value) in elsewhere:
                continue
            if isinstance(value, _HOLDERS):
                if not (library or _has_hooks(owner)):
                    yield f"{where}.{name}", value, True
                continue
            yield f"{where}.{name}", value, library or callable(value)
    data = trainer.datamodule
    # One with a state_dict of its own has said what its state is.
    if data is not None and not is_overridden("state_dict", data, L.LightningDataModule):
        for name, value in Encoder(small=True, skip=DATA_OWN).refused(data):
            if not isinstance(value, (*NO_STATE, *CONTAINERS)) and id(value) not in elsewhere:
                yield f"data module.{name}", value, True


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


def _print_of(value: Any) -> bytes | None:
    """Something that is another when the value is; None where that cannot be told, or not quickly.

    Pickled, and thrown away: whatever leads to a model, a tensor or much else is not looked at.
    """
    if isinstance(value, _HOLDERS):
        return _print_of(_tensors(value))
    print_ = _Print()
    try:
        _Prints(print_, protocol=5).dump(value)
    except Exception:  # noqa: BLE001 -- border: the user's objects may raise anything
        return None
    return print_.digest.digest()


def _tensors(holder: Any) -> list[tuple[int, int]]:
    """Which tensors it holds, and how often each was written."""
    if isinstance(holder, torch.optim.Optimizer):
        values = [v for state in holder.state.values() for v in state.values()]
    else:
        values = [*holder.parameters(), *holder.buffers()]
        for module in holder.modules():
            values += getattr(module, "metric_state", {}).values()
    return [(id(v), v._version) for v in values if isinstance(v, torch.Tensor)]  # noqa: SLF001 -- how torch counts writes


def _has_hooks(owner: Any) -> bool:
    """Whether a callback says itself what of it is state."""
    hooks = ("state_dict", "on_save_checkpoint")
    return isinstance(owner, Callback) and any(is_overridden(h, owner, Callback) for h in hooks)


class _Print:
    """A file of which only the digest stays."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._left = PRINT_BYTES

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OverflowError
        self.digest.update(data)
        return len(data)


class _Prints(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor | torch.nn.Module | L.Trainer | DataLoader | Dataset):
            raise TypeError
        return NotImplemented
