"""What decides the next sample of a DataLoader, apart from the global RNG: samplers, generator,
data set, and what hangs on them.

Rule 1: only small plain state is taken: counters, flags, lists up to SMALL entries, generator
objects. What is large, or of a type of its own, is data and is left alone.
Rule 2: an attribute that is as it was is not set again: the user's class may forbid it.
"""

from __future__ import annotations

import collections
import contextlib
import io
import operator
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from otf_core.errors import OtfError
from otf_core.state.plain_values import (
    NOT_STATE,
    PLAIN,
    SMALL,
    TAG,
    Decoder,
    Encoder,
    UnsupportedValueError,
)
from otf_core.state.rng import GENERATORS

LEFT: Final = {TAG: "left"}  # as Encoder.attributes marks what is no state
# A container with more entries than this holds data, not transforms or data sets.
_FEW: Final = 100
_DEEP: Final = 50  # a list that lies in itself has no end
_PLAIN: Final = frozenset(PLAIN)
_WRAPPED: Final = frozenset({"dataset", "datasets", "sampler", "_sampler", "batch_sampler"})
_CONTAINERS: Final = (list, tuple, dict, set, frozenset, collections.deque)
_NO_PARTS: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    torch.nn.Module,  # its state_dict would be copied for every batch
    torch.Tensor,
    *GENERATORS,
)

Parts = dict[str, Any]  # where it hangs -> the object
Attributes = dict[str, Any]  # name -> plain value


class PositionError(OtfError):
    """A position that does not fit the loader it is given to."""


def _is_part(name: str, value: Any) -> bool:
    """Whether an attribute is a wrapped data set or sampler, or a transform."""
    if isinstance(value, _NO_PARTS) or not hasattr(value, "__dict__"):
        return False
    return isinstance(value, Dataset | Sampler) or name in _WRAPPED or callable(value)


def _hanging(path: str, obj: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(obj).items()):
        items: Iterable[tuple[Any, Any]] = ()
        if _is_part(name, value):
            yield f"{path}.{name}", value
        elif isinstance(value, dict) and len(value) <= _FEW:
            items = value.items()
        elif isinstance(value, list | tuple) and len(value) <= _FEW:
            items = enumerate(value)
        for key, item in items:
            if _is_part(name, item):
                yield f"{path}.{name}.{key}", item


def parts(roots: Parts, *, but: Iterable[Any] = ()) -> Parts:
    """The roots and what hangs on them, each object once; in any process.

    Args:
        roots: those without attributes, and functions, are passed over.
        but: objects that are not to be found.
    """
    found: Parts = {}
    seen = {id(obj) for obj in but}
    waiting = collections.deque(roots.items())
    while waiting:
        path, obj = waiting.popleft()
        if id(obj) in seen or isinstance(obj, _NO_PARTS) or not hasattr(obj, "__dict__"):
            continue
        seen.add(id(obj))
        found[path] = obj
        waiting.extend(_hanging(path, obj))
    return found


def reading_parts(dataset: Any, collate_fn: Any) -> Parts:
    """What makes samples and batches; in the training process or in a worker."""
    return parts({"dataset": dataset, "collate_fn": collate_fn})


def ordering_parts(loader: DataLoader[Any]) -> Parts:
    """What decides the order; training thread."""
    roots = {"sampler": loader.sampler, "batch_sampler": loader.batch_sampler}
    return parts(roots, but=reading_parts(loader.dataset, loader.collate_fn).values())


def samplers(loader: DataLoader[Any]) -> list[Any]:
    """The objects that decide the order; training thread."""
    return list(ordering_parts(loader).values())


def nested(dataset: Any) -> list[Any]:
    """A data set, those it wraps (Subset, ConcatDataset) and the transforms that hang on them."""
    return list(parts({"dataset": dataset}).values())


def replayed(loader: DataLoader[Any]) -> bool:
    """Whether the position can only be found again by fetching what was fetched."""
    data = loader.dataset
    return isinstance(data, IterableDataset) and not has_own_state(data)


def has_own_state(obj: Any) -> bool:
    """Whether the object can be asked for its state, and be given it."""
    return hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict")


def same(a: Any, b: Any) -> bool:
    """Whether two encoded values are equal."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        if _is_plain(a) and _is_plain(b):
            return bool(a == b)
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _weight(value: Any, limit: int = SMALL, depth: int = 0) -> int:
    """How many entries a value has with all that lies in it; counting ends above the limit."""
    if isinstance(value, str | bytes):
        return 1 + len(value) // 16
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, _CONTAINERS):
        return 1
    if depth == _DEEP:
        return limit + 1
    total = len(value)
    for item in value.items() if isinstance(value, dict) else value:
        if total > limit:
            break
        if type(item) not in (int, float, bool):
            total += _weight(item, limit - total, depth + 1)
    return total


def _is_plain(items: Iterable[Any]) -> bool:
    return set(map(type, items)) <= _PLAIN


def _are_the_same(items: list[Any], kept: list[Any]) -> bool:
    """Entry by entry the same object: True equals 1, and an array may not be asked."""
    return len(items) == len(kept) and all(map(operator.is_, items, kept))


class Look:
    """Encodes the attributes that are state, again and again; in any process.

    A list of file names is compared, not encoded, when it is looked at again: a worker looks at
    its data set for every batch.
    """

    def __init__(self) -> None:
        # (part, attribute) -> (the live value or a copy, what it was encoded to)
        self._last: dict[tuple[str, str], tuple[Any, Any]] = {}

    def __call__(self, found: Parts) -> dict[str, Attributes]:
        enc = Encoder(small=True)
        return {path: self._attributes(path, obj, enc) for path, obj in found.items()}

    def _attributes(self, path: str, obj: Any, enc: Encoder) -> Attributes:
        if has_own_state(obj):
            try:
                return {TAG: Encoder()(obj.state_dict())}
            except UnsupportedValueError:
                return {TAG: LEFT}
        live = vars(obj).items()
        return {k: self._value((path, k), v, enc) for k, v in list(live) if k not in NOT_STATE}

    def _value(self, key: tuple[str, str], value: Any, enc: Encoder) -> Any:
        if type(value) in PLAIN and not isinstance(value, str | bytes):
            return enc(value)
        kept, encoded = self._last.get(key, (None, None))
        if value is kept:
            return encoded
        if type(value) is type(kept) is list and _are_the_same(value, kept):
            return encoded
        if _weight(value) > SMALL:
            self._last[key] = value, LEFT
            return LEFT
        encoded = LEFT
        with contextlib.suppress(UnsupportedValueError):
            encoded = enc(value)
        if type(value) in (list, tuple) and _is_plain(value):
            self._last[key] = (list(value) if type(value) is list else value), encoded
        return encoded


def _put(obj: Any, saved: Attributes, dec: Decoder, *, own: bool) -> None:
    if TAG in saved:
        if own and not same(saved[TAG], LEFT):
            dec.attributes(obj, saved)
        return
    now = Look()({"": obj})[""]
    if TAG in now:
        return
    as_it_is = {k: LEFT for k, v in now.items() if same(saved.get(k, LEFT), v)}
    dec.attributes(obj, {**saved, **as_it_is})


def put_parts(found: Parts, saved: dict[str, Attributes], dec: Decoder, *, own: bool) -> None:
    """Put back the attributes of those parts that are still there; in any process."""
    for path, attributes in saved.items():
        if path in found:
            _put(found[path], attributes, dec, own=own)


def around(loader: DataLoader[Any]) -> dict[str, Any]:
    """State of everything in this process that decides the next sample; training thread."""
    look = Look()
    return {
        "generator": Encoder()(loader.generator),
        "samplers": look(ordering_parts(loader)),
        "data": look(reading_parts(loader.dataset, loader.collate_fn)),
    }


def set_around(loader: DataLoader[Any], state: dict[str, Any], *, own: bool = True) -> None:
    """Put back what around returned; training thread.

    Args:
        own: also through load_state_dict, where there is one: before an iterator is made, not
            again afterwards, when it would count for the next one.
    """
    dec = Decoder(small=True)
    if loader.generator is not None and state["generator"] is not None:
        dec(state["generator"], loader.generator)
    put_parts(ordering_parts(loader), state["samplers"], dec, own=own)
    put_parts(reading_parts(loader.dataset, loader.collate_fn), state["data"], dec, own=own)


def unstorable(found: Sequence[Any]) -> list[str]:
    """Classes whose state_dict holds what no snapshot can; their state is left alone."""
    looked = Look()({str(i): obj for i, obj in enumerate(found) if has_own_state(obj)})
    return [type(found[int(i)]).__name__ for i, v in looked.items() if v[TAG] is LEFT]


def live_iterators(found: Sequence[Any]) -> list[str]:
    """Attributes that hold an iterator, whose place cannot be read: ``Class.name``."""
    return [
        f"{type(obj).__name__}.{name}"
        for obj in found
        if not has_own_state(obj)
        for name, value in vars(obj).items()
        if isinstance(value, Iterator)
        # An open file of a data set is sought in before it is read.
        and not isinstance(value, Dataset | Sampler | io.IOBase)
    ]


def length_of(loader: Any) -> int | None:
    """Batches that it says it has; None where it does not know."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
