"""Live values to tensors and plain values and back.

What an Encoder returns is loaded by ``torch.load(weights_only=True)`` with nothing allow-listed;
what it cannot return it refuses by name.

Rule 1: what was one object in the run is one object in the snapshot and after it (the metrics of
a compute group share their state).
Rule 2: the snapshot is never handed out: every Decoder clones.
"""

from __future__ import annotations

import array
import collections
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import torch

from otf_core.state.rng import GENERATORS, generator_state, set_generator_state

TAG: Final = "__otf__"
LONGEST_INT: Final = 2000  # bits
SMALL: Final = 10_000  # longer containers on a sampler or data set are data, not state
PACKED_FROM: Final = 32  # entries of one kind; torch's unpickler takes a microsecond for each
PLAIN: Final = (type(None), bool, int, float, str, bytes)
KINDS: Final[dict[str, Any]] = {
    kind.__name__: kind for kind in (collections.deque, set, frozenset, collections.Counter)
}
# Not state: clocks, constants, and what a module's state_dict has.
NOT_STATE: Final = frozenset({"_start_time", "_last_time_checked", "_defaults"}) | vars(
    torch.nn.Module()
).keys() - {"training"}


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


def _length(x: Any) -> int:
    try:
        return len(x)
    except TypeError:  # no container, or an array of no dimension
        return 0


class Encoder:
    """Copies values into what ``weights_only`` loads; what was shared stays shared.

    Args:
        take: copies one tensor to the host.
        small: refuse tensors and long containers.
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
        self.unknown: list[str] = []

    def __call__(self, x: Any) -> Any:
        if type(x) in PLAIN:
            # torch writes these two and cannot load them.
            if x == b"":
                return {TAG: "bytes", "v": None}
            if type(x) is int and x.bit_length() > LONGEST_INT:
                return {TAG: "int", "v": hex(x)}
            return x
        if id(x) not in self._memo:
            self._memo[id(x)] = x, self._copy(x)
        return self._memo[id(x)][1]

    def _copy(self, x: Any) -> Any:
        if isinstance(x, GENERATORS):
            return {TAG: "rng", "v": Encoder()(generator_state(x))}
        long = isinstance(x, torch.Tensor) or _length(x) > SMALL
        if self._small and long:
            raise UnsupportedValueError(type(x).__name__)
        if isinstance(x, torch.Tensor) and x.grad_fn is None and x.layout is torch.strided:
            copy = self._take(x.detach())
            if x.device.type == "cpu":
                return copy
            return {TAG: "tensor", "v": copy, "d": str(x.device)}
        if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufc":
            scalar = isinstance(x, np.generic)  # an array of no dimension is none
            return {
                TAG: "numpy",
                "v": bytearray(x.tobytes()),
                "d": x.dtype.str,
                "s": x.shape,
                "1": scalar,
            }
        if type(x) in KINDS.values():
            items = x.items() if isinstance(x, collections.Counter) else x
            longest = getattr(x, "maxlen", None)
            return {TAG: type(x).__name__, "v": [self(i) for i in items], "n": longest}
        if isinstance(x, dict):
            pairs = [(self(k), self(v)) for k, v in x.items()]
            if any(isinstance(k, dict) for k, _ in pairs):  # a tag, which is no key
                return {TAG: "dict", "v": pairs}
            return dict(pairs)
        if type(x) is list and len(x) >= PACKED_FROM and (packed := _packed(x)) is not None:
            return packed
        if type(x) in (list, tuple, torch.Size):
            return (list if type(x) is list else tuple)(self(v) for v in x)
        raise UnsupportedValueError(type(x).__name__)

    def tree(self, x: Any, path: str) -> Any:
        """Encode; what cannot be is left out of its dict and named in ``unknown``."""
        if isinstance(x, dict) and not isinstance(x, collections.Counter):
            pairs = ((k, self.tree(v, f"{path}.{k}")) for k, v in x.items())
            return {k: v for k, v in pairs if v is not Ellipsis}
        try:
            return self(x)
        except UnsupportedValueError as why:
            self.unknown.append(f"{path}: {why}")
            return Ellipsis

    def attributes(self, obj: Any) -> dict[str, Any]:
        """The attributes of an object that are state; the rest is named, and left alone."""
        if self._small and hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
            return {TAG: Encoder()(obj.state_dict())}
        out: dict[str, Any] = {}
        for name in vars(obj).keys() - self._skip:
            out[name] = {TAG: "left"}
            with contextlib.suppress(UnsupportedValueError):
                out[name] = self(vars(obj)[name])
        return out


class Decoder:
    """The way back; tensors are cloned, so that training cannot change the snapshot."""

    def __init__(self, *, small: bool = False, skip: Iterable[str] = ()) -> None:
        self._probe = Encoder(lambda t: t, small=small)
        self._skip = NOT_STATE | set(skip)
        self._memo: dict[int, tuple[Any, Any]] = {}

    def __call__(self, x: Any, live: Any = None) -> Any:
        if type(x) in PLAIN:
            return x
        if id(x) not in self._memo:
            self._memo[id(x)] = x, self._refill(self._value(x, live), live)
        return self._memo[id(x)][1]

    def _value(self, x: Any, live: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.clone()
        if not isinstance(x, dict):
            return type(x)(map(self, x))
        if TAG not in x:
            return {self(k): self(v) for k, v in x.items()}
        kind, v = x[TAG], x["v"]
        if kind == "bytes":
            return b""
        if kind == "int":
            return int(v, 16)
        if kind == "packed":
            return _unpacked(v, x["of"])
        if kind == "dict":
            return {self(k): self(value) for k, value in v}
        if kind == "tensor":
            return v.to(x["d"], copy=True)
        if kind == "numpy":
            array = np.frombuffer(v, np.dtype(x["d"])).reshape(x["s"]).copy()
            return array[()] if x["1"] else array
        if kind == "rng":
            set_generator_state(live, self(v))
            return live
        if kind == "deque":
            return collections.deque(map(self, v), x["n"])
        return KINDS[kind](dict(v) if kind == "Counter" else map(self, v))

    def _refill(self, new: Any, live: Any) -> Any:
        """Somebody else may hold the same container, and a defaultdict stays one."""
        kinds = (list, dict, set, collections.deque)
        if new is live or not isinstance(live, kinds) or not isinstance(live, type(new)):
            return new
        live.clear()
        if isinstance(live, dict | set):
            live.update(new)
        else:
            live.extend(new)
        return live

    def attributes(self, obj: Any, saved: dict[str, Any]) -> None:
        """Set the attributes that are state; those made after the capture go."""
        if TAG in saved:
            obj.load_state_dict(self(saved[TAG]))
            return
        for name in vars(obj).keys() - self._skip - saved.keys():
            with contextlib.suppress(UnsupportedValueError):
                self._probe(vars(obj)[name])
                delattr(obj, name)
        for name, value in saved.items():
            if isinstance(value, dict) and value.get(TAG) == "left":
                continue
            live = vars(obj).get(name)
            if (new := self(value, live)) is not live:
                setattr(obj, name, new)
