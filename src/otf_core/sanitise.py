"""User data to what JSON can hold.

Rule: never raises on what a training script logged, and never synchronises a device twice for one
event: all its tensors are fetched together.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import os
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 24
MAX_ITEMS: Final = 10_000  # a longer array is data, not a message: its shape is sent instead
_PLAIN: Final = (str, int, bool, type(None))


def sanitise(value: Any) -> Any:
    """What JSON can hold, made of anything; any thread. Never raises on user data.

    NaN and infinities become None; torch and NumPy scalars and arrays become numbers and lists
    (over 10,000 elements: ``{"shape", "dtype"}``); dataclasses, mappings, sets, paths, times and
    enums become what they read as; anything else its ``repr``. All tensors of one call that lie on
    a device are fetched together, so a whole event costs one synchronisation per device at most.
    """
    return _Sanitiser(value).result


class _Sanitiser:
    """One pass to find the tensors, one fetch, one pass to write."""

    def __init__(self, value: Any) -> None:
        # Looked up, not imported: this floor does not load them, but sees them when a user has.
        self._torch: Any = sys.modules.get("torch")
        self._numpy: Any = sys.modules.get("numpy")
        self._host: dict[int, Any] = {}
        self._found: dict[int, Any] = {}
        self._path: set[int] = set()
        if self._torch is not None:
            self._find(value, 0)
            self._fetch()
        self.result = self._plain(value, 0)

    def _find(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        if self._is_tensor(value):
            if value.device.type not in ("cpu", "meta") and value.numel() <= MAX_ITEMS:
                self._found[id(value)] = value
        elif isinstance(value, Mapping):
            for item in _safely(lambda: list(value.values()), []):
                self._find(item, depth + 1)
        elif isinstance(value, (list, tuple, AbstractSet)):
            for item in value:
                self._find(item, depth + 1)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for name in (f.name for f in dataclasses.fields(value)):
                self._find(getattr(value, name, None), depth + 1)

    def _fetch(self) -> None:
        """Every device once: the bytes of all its tensors in one copy."""
        devices = {str(t.device) for t in self._found.values()}
        for device in devices:
            mine = {i: t.detach() for i, t in self._found.items() if str(t.device) == device}
            torch = self._torch

            def as_bytes(t: Any) -> Any:
                return t.contiguous().reshape(-1).view(torch.uint8)  # noqa: B023 -- used in here

            fetched = _safely(lambda: torch.cat([as_bytes(t) for t in mine.values()]).cpu())  # noqa: B023 -- run at once
            if fetched is None:
                continue
            sizes = [t.numel() * t.element_size() for t in mine.values()]
            for (key, t), part in zip(mine.items(), fetched.split(sizes), strict=True):
                self._host[key] = part.clone().view(t.dtype).reshape(t.shape)

    def _is_tensor(self, value: Any) -> bool:
        return self._torch is not None and isinstance(value, self._torch.Tensor)

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return _integer(value) if kind is int else value
        if kind is float:
            return value if math.isfinite(value) else None
        if depth > MAX_DEPTH or id(value) in self._path:
            return _said(value)
        self._path.add(id(value))
        try:
            return self._compound(value, depth)
        finally:
            self._path.discard(id(value))

    def _compound(self, value: Any, depth: int) -> Any:
        if self._is_tensor(value):
            return self._array(self._host.get(id(value), value), depth)
        if self._numpy is not None and isinstance(
            value, (self._numpy.ndarray, self._numpy.generic)
        ):
            return self._array(value, depth)
        if isinstance(value, enum.Enum):
            return self._plain(value.value, depth + 1)
        if isinstance(value, bool | int):
            return _integer(int(value))
        if isinstance(value, float):
            return self._plain(float(value), depth)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes | bytearray):
            return bytes(value).decode("utf-8", "replace")
        if isinstance(value, Mapping):
            items = _safely(lambda: list(value.items()), [])
            return {_key(k): self._plain(v, depth + 1) for k, v in items}
        if isinstance(value, (list, tuple)):
            return [self._plain(v, depth + 1) for v in value]
        if isinstance(value, AbstractSet):
            plain = [self._plain(v, depth + 1) for v in value]
            return sorted(plain, key=lambda v: (str(type(v)), _said(v)))
        if isinstance(value, os.PathLike):
            return _safely(lambda: os.fsdecode(value), _said(value))
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [f.name for f in dataclasses.fields(value)]
            return {n: self._plain(getattr(value, n, None), depth + 1) for n in names}
        if isinstance(value, msgspec.Struct):
            return self._plain(msgspec.structs.asdict(value), depth + 1)
        return _said(value)

    def _array(self, value: Any, depth: int) -> Any:
        shape = tuple(getattr(value, "shape", ()))
        if math.prod(shape) > MAX_ITEMS:
            return {"shape": list(shape), "dtype": str(value.dtype)}
        plain = _safely(value.tolist, None)
        if plain is None or isinstance(plain, complex):
            return _said(value)
        return self._plain(plain, depth + 1)


def _safely(read: Any, otherwise: Any = None) -> Any:
    """The one place where a user's own code may fail and be passed over."""
    try:
        return read()
    except Exception:  # noqa: BLE001 -- boundary: the user's objects may raise anything
        return otherwise


def _said(value: Any) -> str:
    text = _safely(lambda: repr(value), None)
    return text[:500] if isinstance(text, str) else f"<{type(value).__name__}>"


def _key(key: Any) -> str:
    return key if type(key) is str else _safely(lambda: str(key), f"<{type(key).__name__}>")


def _integer(value: int) -> int | str:
    """JSON readers differ beyond 64 bits; such a number goes as text."""
    return value if -(2**63) <= value < 2**64 else str(value)
