"""What a snapshot leaves as it is, watched for changes; for the exactness report, training thread.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from otf_core.state.plain_values import Encoder

# Not part of the model: changes are seen by what they hold.
HOLDERS: Final = (torch.nn.Module, torch.optim.Optimizer)
PRINT_BYTES: Final = 64 * 1024
LIBRARIES: Final = frozenset({"torch", "torchmetrics"})
# What is called and not changed by it, and what decides no number.
NO_STATE: Final = (
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
    functools.partial,
    io.IOBase,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Thread,
)


class Unknown(NamedTuple):
    """An attribute that a snapshot leaves as it is.

    Attributes:
        name: where it is.
        only_changes: whether it is worth a word only when it has changed.
    """

    name: str
    value: Any
    only_changes: bool


class Watched:
    """Looks again each time it is asked; remembers what the attributes were.

    Args:
        frameworks: classes through which no print leads.
    """

    def __init__(self, frameworks: tuple[type, ...] = ()) -> None:
        self._frameworks = frameworks
        self._seen: dict[str, bytes | None] = {}
        self._there: set[str] = set()  # attributes at the first look; no owner is without any
        self._changed: dict[str, str] = {}  # where -> its type

    def look(
        self, unknown: Iterable[Unknown], owners: Callable[[], Iterable[tuple[str, Any]]]
    ) -> list[str]:
        """Those of which nobody can tell whether they change.

        Args:
            owners: whoever has attributes, and what he is called; asked at the first look.
        """
        untold, there = [], self._there
        for name, value, only_changes in unknown:
            kind, now = type(value).__name__, self._print_of(value)
            new = bool(there) and name not in self._seen and not only_changes
            before, self._seen[name] = self._seen.get(name, now), now
            # What was None at first, say, and is an object that cannot be stored by now.
            if before != now or (new and name in there):
                self._changed[name] = kind
            elif (now is None or new) and not only_changes and name not in self._changed:
                untold.append(f"{name} ({kind})")
        if not there:
            self._there = {f"{where}.{name}" for where, owner in owners() for name in vars(owner)}
        return untold

    def reasons(self) -> list[str]:
        """What was seen to change."""
        return [
            f"{name} ({kind}) changes, and cannot be stored" for name, kind in self._changed.items()
        ]

    def _print_of(self, value: Any) -> bytes | None:
        """Something that is another when the value is; None where that cannot be told, or not
        quickly.

        Pickled, and thrown away: whatever leads to a model, a tensor or much else is not looked at.
        """
        if isinstance(value, HOLDERS):
            return self._print_of(_tensors(value))
        print_ = _Print()
        try:
            _Prints(print_, self._frameworks).dump(value)
        except Exception:  # noqa: BLE001 -- border: the user's objects may raise anything
            return None
        return print_.digest.digest()


def unknown_of(
    owners: Iterable[tuple[str, Any]],
    *,
    skip: Iterable[str] = (),
    elsewhere: Iterable[int] = (),
    no_state: tuple[type, ...] = NO_STATE,
    libraries: Iterable[str] = LIBRARIES,
    says_itself: Callable[[Any], bool] = lambda _: False,
) -> Iterator[Unknown]:
    """Of each owner the attributes that a snapshot leaves as they are.

    Args:
        skip: attributes that are not state.
        elsewhere: ids of what another part of the snapshot has.
        says_itself: whether an owner says himself what of a module that he holds is state.
    """
    enc = Encoder(lambda tensor: tensor, skip=skip)
    known, ours = frozenset(elsewhere), frozenset(libraries)
    for where, owner in owners:
        library = type(owner).__module__.partition(".")[0] in ours
        for name, value in enc.refused(owner):
            if isinstance(value, no_state) or id(value) in known:
                continue
            if isinstance(value, HOLDERS):
                if not (library or says_itself(owner)):
                    yield Unknown(f"{where}.{name}", value, only_changes=True)
                continue
            only_changes = library or callable(value)
            yield Unknown(f"{where}.{name}", value, only_changes=only_changes)


def left_out(unknown: Iterable[str], apart: Iterable[str]) -> list[str]:
    """What a capture had to leave out, as ``place: type``, and what it had to take apart."""
    return [
        *unknown,
        *(
            f"{name}, which shares memory with another tensor and comes back alone"
            for name in apart
        ),
    ]


def _tensors(holder: Any) -> list[tuple[int, int]]:
    """Which tensors it holds, and how often each was written."""
    if isinstance(holder, torch.optim.Optimizer):
        values = [v for state in holder.state.values() for v in state.values()]
    else:
        values = [*holder.parameters(), *holder.buffers()]
        for module in holder.modules():
            values += getattr(module, "metric_state", {}).values()
    return [(id(v), v._version) for v in values if isinstance(v, torch.Tensor)]  # noqa: SLF001 -- how torch counts writes


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
    def __init__(self, file: _Print, frameworks: Sequence[type]) -> None:
        super().__init__(file, protocol=5)
        self._apart = (torch.Tensor, torch.nn.Module, DataLoader, Dataset, *frameworks)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, self._apart):
            raise TypeError
        return NotImplemented
