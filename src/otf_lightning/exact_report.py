"""What only Lightning knows for the exactness report; training thread.

A row of ``OUTSIDE`` for a callback that keeps state where no snapshot finds it.
"""

from __future__ import annotations

import enum
import hashlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, Timer
from torch.utils.data import DataLoader, Dataset

from otf_core.state.data_tap import reasons
from otf_core.state.loader_parts import nested, samplers
from otf_core.state.plain_values import NOT_STATE, Encoder, UnsupportedValueError
from otf_lightning import inside
from otf_lightning.inside import MODULE_OWN

# Callback -> what of it no snapshot has.
OUTSIDE: Final[Mapping[type[Callback], str]] = {Timer: "the time that max_time counts"}
PRINT_BYTES: Final = 64 * 1024
LIBRARIES: Final = frozenset({"torch", "torchmetrics", "lightning", "pytorch_lightning"})
# Watched, and not worth a word: counters of their own, clocks.
IGNORED: Final = (DeviceStatsMonitor, Timer)


class ExactReport:
    """Looks again each time it is asked; remembers what attributes of unknown types were."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes | None] = {}
        self._changed: dict[str, None] = {}

    def found(self, trainer: L.Trainer) -> tuple[list[str], list[str]]:
        """Reasons why a resume is not exact, and what is left out and was not seen to change."""
        why = [*_of_loaders(trainer), *_of_fit(trainer)]
        left_out = [*_of_clocks(trainer), *self._look_at_attributes(trainer)]
        why += [f"{name} changes, and its type cannot be stored" for name in self._changed]
        return why, left_out

    def _look_at_attributes(self, trainer: L.Trainer) -> list[str]:
        left_out = []
        for name, value, library in _unknown(trainer):
            now = _print_of(value)
            if name in self._seen and self._seen[name] != now:
                self._changed[name] = None
            self._seen[name] = now
            if name not in self._changed and not library:
                left_out.append(name)
        return left_out


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
    """Attributes of modules and callbacks that a snapshot leaves as they are.

    With each whether its owner is a library's, whose constants are nothing to tell a person.
    """
    owners = [(f"module {n or 'itself'}", m) for n, m in trainer.lightning_module.named_modules()]
    callbacks: list[Callback] = trainer.callbacks
    owners += [
        (f"callback {type(c).__name__}", c)
        for c in callbacks
        if not hasattr(c, "is_otf") and not isinstance(c, IGNORED)
    ]
    enc = Encoder(lambda tensor: tensor, skip=MODULE_OWN)
    elsewhere = _kept_elsewhere(trainer)
    for where, owner in owners:
        for name in vars(owner).keys() - MODULE_OWN - NOT_STATE:
            value = vars(owner)[name]
            library = type(owner).__module__.partition(".")[0] in LIBRARIES
            # What Lightning's own callbacks decide by is in plain values and their state_dict.
            told_only = library and isinstance(value, enum.Enum)
            if callable(value) or id(value) in elsewhere or told_only:
                continue
            if isinstance(value, torch.nn.Module | L.Trainer | torch.optim.Optimizer):
                continue
            try:
                enc(value)
            except UnsupportedValueError:
                yield f"{where}.{name}", value, library


def _kept_elsewhere(trainer: L.Trainer) -> set[int]:
    """Ids of what the positions of the loaders hold, whoever else has it as an attribute."""
    found = [trainer.datamodule]
    for loader in inside.fit_loaders(trainer):
        found.append(loader)
        if isinstance(loader, DataLoader):
            found += [*samplers(loader), *nested(loader.dataset)]
    return {id(value) for value in found}


def _print_of(value: Any) -> bytes | None:
    """Something that is another when the value is; None where that cannot be told, or not quickly.

    Pickled, and thrown away: whatever leads to a model, a tensor or much else is not looked at.
    """
    print_ = _Print()
    try:
        _Prints(print_, protocol=5).dump(value)
    except Exception:  # noqa: BLE001 -- border: the user's objects may raise anything
        return None
    return print_.digest.digest()


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
