"""What tells a value from another without keeping it; training thread."""

from __future__ import annotations

import array
import collections
import contextvars
import enum
import functools
import io
import pickle
import queue
import types
import warnings
import weakref
import zlib
from collections.abc import Hashable
from typing import Any, Final

import numpy as np
import torch

from otf_core.script.frames import ABSENT
from otf_core.state.plain_values import PLAIN, SIMPLE

DEEP: Final = 6
_CONTAINERS: Final = (list, tuple, dict, set, frozenset, collections.deque)
_BY_REPR: Final = {range, slice, *(kind for kind, _, _ in SIMPLE.values())}
# What is the script's code, of which only plain attributes are looked at.
_NO_STATE: Final = (type, types.ModuleType, types.FunctionType, types.MethodType)

Print = tuple[str, int, int]  # type, length or bytes, checksum


def print_of(value: Any, *, whole: bool = False) -> Print:
    """Equal for equal values; of objects that it does not know it has the type and plain values.

    Args:
        whole: look into objects as into containers.
    """
    return type(value).__name__, size_of(value), _sum(value, 0, DEEP, {} if whole else None)


def size_of(value: Any) -> int:
    """Bytes of what is one piece, entries of the rest."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, array.array):
        return len(value) * value.itemsize
    return len(value) if isinstance(value, (str, bytes, bytearray, *_CONTAINERS)) else 1


def _sum(value: Any, seed: int, depth: int, inside: dict[int, int] | None = None) -> int:
    """Args:
    inside: by id, how deep an object was looked into; None: they are not.
    """
    if isinstance(value, str):
        return zlib.crc32(value.encode("utf-8", "surrogatepass"), seed)
    if isinstance(value, bytes | bytearray | array.array):
        return zlib.crc32(value, seed)
    if type(value) in PLAIN:
        return zlib.crc32(repr(value).encode(), seed)
    if isinstance(value, np.generic | enum.Enum) or type(value) in _BY_REPR:
        return zlib.crc32(repr(value).encode(), seed)
    if isinstance(value, torch.Tensor):
        return _tensor(value, seed)
    if isinstance(value, np.ndarray):
        seed = zlib.crc32(f"{value.dtype}{value.shape}".encode(), seed)
        if value.dtype.hasobject:
            known = inside is not None and depth > 0 and value.size <= _MOST
            return _container(value.ravel().tolist(), seed, depth, inside) if known else seed
        return (
            zlib.crc32(np.ascontiguousarray(value).view(np.uint8).data, seed)
            if value.size
            else seed
        )
    seed = zlib.crc32(type(value).__name__.encode(), seed)
    if depth == 0:
        return seed
    if isinstance(value, _CONTAINERS):
        return _container(value, seed, depth, inside)
    if inside is not None and not isinstance(value, _NO_STATE):
        return _object(value, seed, depth, inside)
    for name, item in sorted(getattr(value, "__dict__", {}).items(), key=lambda i: str(i[0])):
        if type(item) in PLAIN or isinstance(item, _CONTAINERS):
            seed = _sum(item, zlib.crc32(str(name).encode(), seed), min(depth - 1, 2))
    return seed


def _object(value: Any, seed: int, depth: int, inside: dict[int, int]) -> int:
    """Once, or again where it can be looked into deeper: objects may hold each other."""
    if inside.get(id(value), 0) >= depth:
        return seed
    inside[id(value)] = depth
    for name, item in sorted(attributes(value).items(), key=lambda i: str(i[0])):
        seed = _sum(item, zlib.crc32(str(name).encode(), seed), depth - 1, inside)
    return seed


def _tensor(value: torch.Tensor, seed: int) -> int:
    seed = zlib.crc32(f"{value.dtype}{tuple(value.shape)}{value.requires_grad}".encode(), seed)
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return seed
    plain = value.detach().cpu().contiguous()
    if not plain.numel():
        return seed
    return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data, seed)


def _container(value: Any, seed: int, depth: int, inside: dict[int, int] | None) -> int:
    seed = zlib.crc32(str(len(value)).encode(), seed)
    if isinstance(value, set | frozenset):
        return seed ^ sum(_sum(item, 0, depth - 1, inside) for item in value) & 0xFFFFFFFF
    kinds = set(map(type, value)) if isinstance(value, list | tuple) else set()
    if len(kinds) == 1 and (kind := kinds.pop()) in (int, float, str):
        if kind is str:
            return zlib.crc32("\0".join(value).encode("utf-8", "surrogatepass"), seed)
        try:
            return zlib.crc32(array.array("q" if kind is int else "d", value).tobytes(), seed)
        except OverflowError:
            pass
    for item in value.items() if isinstance(value, dict) else value:
        seed = _sum(item, seed, depth - 1, inside)
    return seed


# What holds a state and is not stored: its change is told, and itself left.
_MOST: Final = 1024 * 1024  # bytes, or entries
HOLDS_STATE: Final = (
    queue.Queue,
    queue.SimpleQueue,
    contextvars.ContextVar,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    memoryview,
    np.ndarray,
)


def holds_state(value: Any) -> bool:
    """Whether it is of a kind of which ``state_print`` is to be asked."""
    return isinstance(value, HOLDS_STATE) or type(value).__module__ == "itertools"


def state_print(value: Any) -> Print | None:
    """What tells the state of what is not stored from another; None where nobody can tell."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return print_of(value.ravel().tolist()) if value.size <= _MOST else None
        return print_of(value.tobytes())
    if isinstance(value, queue.Queue):
        return print_of(list(value.queue))
    if isinstance(value, contextvars.ContextVar):
        return print_of([value.get(None)])
    if isinstance(value, weakref.WeakSet):
        return print_of(set(value))
    if isinstance(value, weakref.WeakKeyDictionary | weakref.WeakValueDictionary):
        return print_of(list(value.items()))
    if isinstance(value, memoryview):
        return print_of(value.tobytes()) if value.nbytes <= _MOST else None
    return _iterator(value) if type(value).__module__ == "itertools" else None


class _Short(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() > _MOST:
            raise pickle.PicklingError
        return super().write(data)


class _Plain(pickle.Pickler):
    """Of Python's own only: no code of the script's is run."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj).__module__ not in ("builtins", "itertools"):
            raise pickle.PicklingError
        return NotImplemented


def _iterator(value: Any) -> Print | None:
    file = _Short()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            _Plain(file).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
        return None  # a generator is in it; from Python 3.14 on all of them
    return print_of(file.getvalue())


# Attributes of an object.


def attributes(obj: Any) -> dict[str, Any]:
    """What an object holds under a name."""
    kind: Any = type(obj)
    found = {name: getattr(obj, name, ABSENT) for name in slots(kind)}
    found = {name: value for name, value in found.items() if value is not ABSENT}
    return {**found, **getattr(obj, "__dict__", {})}


@functools.cache
def slots(kind: Hashable) -> tuple[str, ...]:
    """The names that a class gives its objects a place for."""
    names: list[str] = []
    for cls in kind.__mro__:  # type: ignore[attr-defined]
        own = vars(cls).get("__slots__", ())
        names += [own] if isinstance(own, str) else own
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))
