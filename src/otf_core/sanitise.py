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
MAX_VALUES: Final = 200_000  # in one message: a list that holds another ten times explodes
MAX_TEXT_BITS: Final = 2048
_RAISED: Final = object()
_PLAIN: Final = (str, int, bool, type(None))


def sanitise(value: Any) -> Any:
    """What JSON can hold, made of anything; any thread. Never raises on user data.

    NaN and infinities become None; torch and NumPy scalars and arrays become numbers and lists
    (over 10,000 elements: ``{"shape", "dtype"}``); dataclasses, mappings, sets, paths, times and
    enums become what they read as; anything else its ``repr``; what lies too deep, in itself, or
    beyond 200,000 values ``<its type>``. All tensors of one call that lie on a device are fetched
    together, so a whole event costs one synchronisation per device at most.
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
        self._seen: set[int] = set()
        self._left = MAX_VALUES
        if self._torch is not None:
            self._find(value, 0)
            self._fetch()
        self.result = self._plain(value, 0)

    def _find(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH or type(value) in _PLAIN or id(value) in self._seen:
            return
        self._seen.add(id(value))
        _safely(lambda: self._find_in(value, depth))

    def _find_in(self, value: Any, depth: int) -> None:
        if self._is_tensor(value):
            if value.device.type not in ("cpu", "meta") and value.numel() <= MAX_ITEMS:
                self._found[id(value)] = value
        elif isinstance(value, Mapping):
            for item in list(value.values()):
                self._find(item, depth + 1)
        elif isinstance(value, (list, tuple, AbstractSet)):
            for item in list(value):
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

            # What has no plain bytes (a sparse one) must not cost the others their one copy.
            read = {i: _safely(lambda: as_bytes(t)) for i, t in mine.items()}  # noqa: B023 -- run at once
            raw = {i: data for i, data in read.items() if data is not None}
            fetched = _safely(lambda: torch.cat(list(raw.values())).cpu())  # noqa: B023 -- run at once
            if fetched is None:
                continue
            sizes = [data.numel() for data in raw.values()]
            for key, part in zip(raw, fetched.split(sizes), strict=True):
                t = mine[key]
                self._host[key] = part.clone().view(t.dtype).reshape(t.shape)

    def _is_tensor(self, value: Any) -> bool:
        return self._torch is not None and isinstance(value, self._torch.Tensor)

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._left -= 1
        if kind is str:
            return _text(value)
        if kind in _PLAIN:
            return _integer(value) if kind is int else value
        if kind is float:
            return value if math.isfinite(value) else None
        # Not its repr: that of a list which holds another ten times does not end either.
        if depth > MAX_DEPTH or id(value) in self._path or self._left < 0:
            return f"<{kind.__name__}>"
        self._path.add(id(value))
        try:
            plain = _safely(lambda: self._compound(value, depth), _RAISED)
            return _said(value) if plain is _RAISED else plain
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
            return _integer(int.__int__(value))
        if isinstance(value, float):
            return self._plain(float.__float__(value), depth)
        if isinstance(value, str):
            return _text(str.__str__(value))
        if isinstance(value, bytes | bytearray):
            return bytes(value).decode("utf-8", "replace")
        if isinstance(value, Mapping):
            return {_key(k): self._plain(v, depth + 1) for k, v in list(value.items())}
        if isinstance(value, (list, tuple)):
            return [self._plain(v, depth + 1) for v in list(value)]
        if isinstance(value, AbstractSet):
            plain = [self._plain(v, depth + 1) for v in value]
            return sorted(plain, key=lambda v: (str(type(v)), _said(v)))
        if isinstance(value, os.PathLike):
            return _text(os.fsdecode(value))
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
        if isinstance(plain, type(value)):  # a long double gives itself
            plain = float(plain)
        return self._plain(plain, depth + 1)


def _safely(read: Any, otherwise: Any = None) -> Any:
    """The one place where a user's own code may fail and be passed over."""
    try:
        return read()
    except Exception:  # noqa: BLE001 -- boundary: the user's objects may raise anything
        return otherwise


def _said(value: Any) -> str:
    text = _safely(lambda: repr(value)[:500], None)
    return f"<{type(value).__name__}>" if text is None else _text(text)


def _key(key: Any) -> str:
    text = key if type(key) is str else _safely(lambda: str.__str__(str(key)), None)
    return f"<{type(key).__name__}>" if text is None else _text(text)


def _text(text: str) -> str:
    """Half a surrogate pair is no UTF-8; file names hold such, and broken tokenisers."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _integer(value: int) -> int | str:
    """JSON readers differ beyond 64 bits; such a number goes as text."""
    if -(2**63) <= value < 2**64:
        return value
    # Python refuses to write more than a few thousand digits.
    return str(value) if value.bit_length() <= MAX_TEXT_BITS else f"{value:#x}"[:500]
