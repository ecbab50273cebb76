"""Live values to tensors and plain values and back.

What an Encoder returns is loaded by ``torch.load(weights_only=True)`` with nothing allow-listed;
what it cannot return it refuses by name.

Rule 1: what was one object in the run is one object in the snapshot and after it (the metrics of
a compute group share their state).
Rule 2: the snapshot is never handed out: every Decoder clones.
Rule 3: what is as it was is not set again, and a container is refilled in place: others may hold
it, and the user's class may do something when it is set.
Rule 4: a class is never looked up by its name. What only a class of the user's can make (a member
of an Enum, a dict of his own) comes back where the run holds such a value; else it is named.
"""

from __future__ import annotations

import array
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch

from otf_core.state.plain_checkpoint import SUB_BYTE
from otf_core.state.rng import (
    GENERATORS,
    generator_kind,
    generator_state,
    new_generator,
    set_generator_state,
)

TAG: Final = "__otf__"
LONGEST_INT: Final = 2000  # bits
SMALL: Final = 10_000  # what has more entries in all on a sampler or data set is data, not state
DEEP: Final = 50  # containers in each other; Python's stack and pickle's end at some hundreds
PACKED_FROM: Final = 32  # entries of one kind; torch's unpickler takes a microsecond for each
PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
KINDS: Final[dict[str, Any]] = {
    kind.__name__: kind for kind in (collections.deque, set, frozenset, collections.Counter)
}
# Immutable values: their type, what they become, and the way back.
SIMPLE: Final[dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "path": (type(pathlib.Path()), str, pathlib.Path),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "datetime": (datetime.datetime, lambda t: t.isoformat(), datetime.datetime.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda t: (t.days, t.seconds, t.microseconds),
        lambda v: datetime.timedelta(*v),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "fraction": (fractions.Fraction, str, fractions.Fraction),
}
FACTORIES: Final = {kind.__name__: kind for kind in (int, float, bool, str, list, dict, set, tuple)}
# Not state: clocks, constants, what is declared, and what a module's state_dict has.
NOT_STATE: Final = frozenset(
    {"_start_time", "_last_time_checked", "_defaults", "otf_params"}
) | vars(torch.nn.Module()).keys() - {"training"}
_ABSENT: Final = object()
_MUTABLE: Final = (list, dict, set, collections.deque, torch.Tensor, np.ndarray, *GENERATORS)


class UnsupportedValueError(TypeError):
    """A value that cannot be stored as tensors and plain values; names its type."""


def _packed(x: list[Any]) -> dict[str, Any] | None:
    """Many numbers or strings as one value; None where they are not of one kind."""
    kind, *others = set(map(type, x))
    if others:
        return None
    packed: Any = None
    if kind is int or kind is float:
        with contextlib.suppress(OverflowError):  # more than 64 bits
            packed = array.array("q" if kind is int else "d", x).tobytes()
    elif kind is str:
        joined = "\0".join(x)
        packed = joined if joined.count("\0") == len(x) - 1 else None
    if packed is None:
        return None
    return {TAG: "packed", "v": packed, "of": kind.__name__}


def _unpacked(v: Any, of: str) -> list[Any]:
    return v.split("\0") if of == "str" else list(array.array("q" if of == "int" else "d", v))


class Encoder:
    """Copies values into what ``weights_only`` loads; what was shared stays shared.

    Args:
        take: copies one tensor to the host.
        small: refuse tensors, and what has more than SMALL entries with all that lies in it.
        skip: attributes that are not state.
    """

    def __init__(
        self,
        take: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        small: bool = False,
        skip: Iterable[str] = (),
    ) -> None:
        self._take = take or (lambda t: t.to("cpu", copy=True))
        self._small = small
        self._skip = NOT_STATE | set(skip)
        # id -> (the live one, kept alive so that its id is not used again; its copy)
        self._memo: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()  # ids of the containers around
        self._left = SMALL
        self.unknown: list[str] = []
        self.apart: list[str] = []  # ``Class.attribute``: shares memory, and comes back alone
        self._storages: dict[int, torch.Tensor] = {}
        self._shares = False

    def __call__(self, x: Any) -> Any:
        if not self._open:
            self._left = SMALL
        if type(x) in PLAIN:
            return self._plain(x)
        if id(x) not in self._memo:
            self._enter(x)
            try:
                self._memo[id(x)] = x, self._copy(x)
            finally:
                self._open.discard(id(x))
        return self._memo[id(x)][1]

    def _enter(self, x: Any) -> None:
        name = type(x).__name__
        if id(x) in self._open:
            name += " that holds itself"
            raise UnsupportedValueError(name)
        if len(self._open) == DEEP:
            name += f" more than {DEEP} deep"
            raise UnsupportedValueError(name)
        self._open.add(id(x))

    def _weigh(self, x: Any, entries: int) -> None:
        self._left -= entries
        if self._small and self._left < 0:
            raise UnsupportedValueError(type(x).__name__)

    def _plain(self, x: Any) -> Any:
        if isinstance(x, str | bytes):
            self._weigh(x, len(x) // 16)
            # torch writes this one and a long whole number, and cannot load them.
            return {TAG: "bytes", "v": None} if x == b"" else x
        if type(x) is int and x.bit_length() > LONGEST_INT:
            return {TAG: "int", "v": hex(x)}
        return x

    def _copy(self, x: Any) -> Any:
        kind = type(x)
        if isinstance(x, enum.Enum):
            v = x.value if isinstance(x, enum.Flag) else x.name
            return {TAG: "enum", "v": v, "c": _class_name(kind)}
        if kind in GENERATORS:
            return {TAG: "rng", "v": Encoder()(generator_state(x)), "c": generator_kind(x)}
        if isinstance(x, torch.Tensor):
            return self._tensor(x)
        # Not a subclass: a masked array is more than its numbers, a memory map is a file.
        if kind is np.ndarray or isinstance(x, np.generic):
            return self._array(x)
        for name, (simple, plain, back) in SIMPLE.items():
            if kind is simple and repr(back(plain(x))) == repr(x):  # a time zone may be a class
                return {TAG: name, "v": plain(x)}
        if kind is bytearray:
            self._weigh(x, len(x) // 16)
            return bytearray(x)
        return self._container(x)

    def _tensor(self, x: torch.Tensor) -> Any:
        known = type(x) in (torch.Tensor, torch.nn.Parameter) and x.layout is torch.strided
        stored = known and x.dtype not in SUB_BYTE and not x.is_quantized
        if self._small or not stored or x.grad_fn is not None:
            raise UnsupportedValueError(type(x).__name__)
        copy = self._take(x.detach())
        if x.numel() and type(x) is torch.Tensor:
            first = self._storages.setdefault(x.untyped_storage().data_ptr(), x)
            self._shares = self._shares or first is not x
        if x.device.type == "cpu" and not x.requires_grad:
            return copy
        return {TAG: "tensor", "v": copy, "d": str(x.device), "g": x.requires_grad}

    def _array(self, x: Any) -> Any:
        if x.dtype.kind not in "biufcmMSU" or x.dtype.itemsize == 0:
            raise UnsupportedValueError(type(x).__name__)
        self._weigh(x, x.size)
        by_column = x.flags.f_contiguous and not x.flags.c_contiguous  # sums go in that order
        return {
            TAG: "numpy",
            "v": bytearray(x.tobytes("A")),
            "d": x.dtype.str,
            "s": x.shape,
            "1": isinstance(x, np.generic),  # an array of no dimension is none
            "o": "F" if by_column else "C",
        }

    def _container(self, x: Any) -> Any:
        kind = type(x)
        known = isinstance(x, dict) or kind in (list, tuple, torch.Size, *KINDS.values())
        if not known:
            raise UnsupportedValueError(kind.__name__)
        self._weigh(x, len(x))
        if kind in KINDS.values():
            items = x.items() if isinstance(x, collections.Counter) else x
            longest = getattr(x, "maxlen", None)
            return {TAG: kind.__name__, "v": [self(i) for i in items], "n": longest}
        if isinstance(x, dict):
            pairs = [(self(k), self(v)) for k, v in dict.items(x)]
            if kind is dict and all(type(k) in PLAIN for k, _ in pairs):
                return dict(pairs)
            factory = getattr(getattr(x, "default_factory", None), "__name__", None)
            return {TAG: "dict", "v": pairs, "c": _class_name(kind), "f": factory}
        if kind is list and len(x) >= PACKED_FROM and (packed := _packed(x)) is not None:
            self._weigh(x, len(packed["v"]) // 16 if packed["of"] == "str" else 0)
            return packed
        return torch.Size(x) if kind is torch.Size else kind(self(v) for v in x)

    def tree(self, x: Any, path: str) -> Any:
        """Encode; what cannot be is left out of its dict and named in ``unknown``."""
        try:
            if type(x) is not dict:
                return self(x)
            self._enter(x)
            try:
                pairs = [(self(k), self.tree(v, f"{path}.{k}")) for k, v in x.items()]
            finally:
                self._open.discard(id(x))
            return {k: v for k, v in pairs if v is not Ellipsis}
        except UnsupportedValueError as why:
            self.unknown.append(f"{path}: {why}")
            return Ellipsis

    def attributes(self, obj: Any) -> dict[str, Any]:
        """The attributes of an object that are state; the rest is marked, and left alone."""
        out: dict[str, Any] = {}
        for name, value in self._state_of(obj):
            out[name] = {TAG: "left"}
            self._shares = False
            with contextlib.suppress(UnsupportedValueError):
                out[name] = self(value)
            if self._shares:
                self.apart.append(f"{type(obj).__name__}.{name}")
        return out

    def refused(self, obj: Any) -> Iterator[tuple[str, Any]]:
        """The attributes that ``attributes`` leaves alone."""
        for name, value in self._state_of(obj):
            try:
                self(value)
            except UnsupportedValueError:
                yield name, value

    def _state_of(self, obj: Any) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in vars(obj).items() if name not in self._skip]


class Decoder:
    """The way back; tensors are cloned, so that training cannot change the snapshot.

    Attributes:
        unknown: attributes that could not be put back, with the reason; they are as they were.
    """

    def __init__(self, *, small: bool = False, skip: Iterable[str] = ()) -> None:
        self._probe = Encoder(lambda t: t, small=small)
        self._skip = NOT_STATE | set(skip)
        self._memo: dict[int, tuple[Any, Any]] = {}
        self._kept: dict[int, Any] = {}  # live ones that are in use again: for one value each
        self._owner: Any = None
        self.unknown: list[str] = []

    def __call__(self, x: Any, live: Any = _ABSENT) -> Any:
        if type(x) in PLAIN:
            return live if _same(x, live) else x
        if id(x) not in self._memo:
            if id(live) in self._kept:
                live = _ABSENT
            new = self._refilled(self._value(x, live), live)
            if new is live and isinstance(live, _MUTABLE):
                self._kept[id(live)] = live
            self._memo[id(x)] = x, new
        return self._memo[id(x)][1]

    def _value(self, x: Any, live: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return live if _same(x, live) else x.clone()
        if isinstance(x, torch.Size | bytearray):
            return type(x)(x)
        if not isinstance(x, dict):
            return type(x)(self._items(x, live))
        if TAG not in x:
            return self._dict(x.items(), live)
        kind, v = x[TAG], x["v"]
        if kind == "bytes":
            return b""
        if kind == "int":
            return int(v, 16)
        if kind == "packed":
            return _unpacked(v, x["of"])
        if kind == "tensor":
            return self._tensor(x, live)
        if kind == "numpy":
            order = x.get("o", "C")
            flat = np.frombuffer(v, np.dtype(x["d"]))
            numbers = flat.reshape(x["s"], order=order).copy(order=order)
            return numbers[()] if x["1"] else numbers
        if kind == "rng":
            return self._generator(x, live)
        if kind == "enum":
            return self._member(x, live)
        if kind == "dict":
            return self._other_dict(x, live)
        if kind in SIMPLE:
            return SIMPLE[kind][2](v)
        if kind == "deque":
            return collections.deque(self._items(v, live), x["n"])
        return KINDS[kind](dict(map(self, v)) if kind == "Counter" else map(self, v))

    def _items(self, saved: Iterable[Any], live: Any) -> list[Any]:
        """Each beside the one that lies there now, which it may be."""
        there = list(live) if isinstance(live, list | tuple | collections.deque) else []
        return [self(v, there[i] if i < len(there) else _ABSENT) for i, v in enumerate(saved)]

    def _dict(self, saved: Iterable[tuple[Any, Any]], live: Any) -> dict[Any, Any]:
        there = live if isinstance(live, dict) else {}
        keys = ((self(k), v) for k, v in saved)
        return {k: self(v, dict.get(there, k, _ABSENT)) for k, v in keys}

    def _tensor(self, x: dict[str, Any], live: Any) -> Any:
        if not x.get("g"):
            return x["v"].to(x["d"], copy=True)
        # An optimizer may hold it.
        if not isinstance(live, torch.Tensor) or not live.is_leaf or live.shape != x["v"].shape:
            raise UnsupportedValueError("Tensor that requires a gradient")  # noqa: EM101 -- a name
        with torch.no_grad():
            live.requires_grad_().copy_(x["v"])
        return live

    def _generator(self, x: dict[str, Any], live: Any) -> Any:
        if type(live) not in GENERATORS or generator_kind(live) != x["c"]:
            live = new_generator(x["c"])
            if live is None:
                raise UnsupportedValueError(x["c"])
        set_generator_state(live, self(x["v"]))
        return live

    def _member(self, x: dict[str, Any], live: Any) -> Any:
        held = () if self._owner is None else vars(self._owner).values()
        for value in _within((live, *held)):
            if isinstance(value, enum.Enum) and _class_name(type(value)) == x["c"]:
                try:
                    is_flag = isinstance(value, enum.Flag)
                    return type(value)(x["v"]) if is_flag else type(value)[x["v"]]
                except (KeyError, ValueError):
                    break
        name = x["c"].rpartition(".")[2]
        raise UnsupportedValueError(name)

    def _other_dict(self, x: dict[str, Any], live: Any) -> Any:
        new = self._dict(x["v"], live)
        if isinstance(live, dict) and _class_name(type(live)) == x["c"]:
            return live if _same_items(new, live) else _refill(live, new)
        if x["c"] == "builtins.dict":
            return new
        if x["c"] == "collections.OrderedDict":
            return collections.OrderedDict(new)
        if x["c"] == "collections.defaultdict" and (x["f"] is None or x["f"] in FACTORIES):
            return collections.defaultdict(FACTORIES.get(x["f"]), new)
        name = x["c"].rpartition(".")[2]
        raise UnsupportedValueError(name)

    def _refilled(self, new: Any, live: Any) -> Any:
        """The live one, where it can be what is asked for."""
        if new is live or type(new) is not type(live):
            return new
        if isinstance(live, list | dict | set | collections.deque):
            if getattr(live, "maxlen", None) != getattr(new, "maxlen", None):
                return new
            return live if _same_items(new, live) else _refill(live, new)
        return live if _same(new, live) else new

    def attributes(self, obj: Any, saved: dict[str, Any]) -> None:
        """Set the attributes that are state and differ; those made after the capture go."""
        if TAG in saved:
            obj.load_state_dict(self(saved[TAG]))
            return
        for name in vars(obj).keys() - self._skip - saved.keys():
            with contextlib.suppress(UnsupportedValueError):
                self._probe(vars(obj)[name])
                _delete(obj, name)
        self._owner = obj
        for name, value in saved.items():
            if isinstance(value, dict) and value.get(TAG) == "left":
                continue
            live = vars(obj).get(name, _ABSENT)
            try:
                new = self(value, live)
            except UnsupportedValueError as why:
                self.unknown.append(f"{type(obj).__name__}.{name}: {why}")
                continue
            if new is not live:
                _set(obj, name, new)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _within(values: Iterable[Any], depth: int = 4) -> Iterator[Any]:
    """Values and what lies in them, not far."""
    for value in values:
        yield value
        if depth and isinstance(value, dict):
            yield from _within((*value.keys(), *value.values()), depth - 1)
        elif depth and isinstance(value, list | tuple | set | frozenset | collections.deque):
            yield from _within(tuple(value), depth - 1)


def _same(new: Any, live: Any) -> bool:
    """Whether a value that is not filled in place is the live one, bit for bit."""
    if new is live:
        return True
    if type(new) is not type(live):
        return False
    if isinstance(new, torch.Tensor):
        return _same_tensor(new, live)
    if isinstance(new, np.ndarray):
        same = (new.dtype, new.shape, new.strides) == (live.dtype, live.shape, live.strides)
        return same and bool(new.tobytes() == live.tobytes())
    if isinstance(new, tuple | frozenset):
        return _same_items(new, live)
    if isinstance(new, float | complex | np.generic | datetime.datetime):
        return repr(new) == repr(live)  # zero has a sign, and NaN is not itself
    return bool(new == live)


def _same_items(new: Any, live: Any) -> bool:
    """Whether a container holds what the live one holds; what others may hold must be the same."""

    def one(a: Any, b: Any) -> bool:
        return a is b or (not isinstance(a, _MUTABLE) and _same(a, b))

    if len(new) != len(live) or not all(map(one, new, live)):
        return False
    return not isinstance(new, dict) or all(map(one, new.values(), live.values()))


def _same_tensor(new: torch.Tensor, live: torch.Tensor) -> bool:
    def kind(t: torch.Tensor) -> Any:
        return t.dtype, t.device, t.layout, t.shape, t.requires_grad, t.is_quantized

    if kind(new) != kind(live) or live.grad_fn is not None or live.device.type == "meta":
        return False
    if new.stride() != live.stride() or live.is_conj() or live.is_neg():
        return False
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (new, live))
    return torch.equal(a, b)


def _refill(live: Any, new: Any) -> Any:
    live.clear()
    if isinstance(live, dict | set):
        live.update(new)
    else:
        live.extend(new)
    return live


# What refuses to be set (a property without a setter, a frozen dataclass) was not set that way.


def _set(obj: Any, name: str, value: Any) -> None:
    try:
        setattr(obj, name, value)
    except AttributeError:
        vars(obj)[name] = value


def _delete(obj: Any, name: str) -> None:
    try:
        delattr(obj, name)
    except AttributeError:
        vars(obj).pop(name, None)
