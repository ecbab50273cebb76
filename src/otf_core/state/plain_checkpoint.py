"""What ``torch.load(weights_only=True)`` loads with nothing allow-listed, and nothing else.

The rules are those of torch 2.13 (``torch/_weights_only_unpickler.py``), which are narrower than
its list of types: an empty ``bytes`` and a whole number of more than 2,039 bits do not come back.

Rule: what would not come back as it was is left out and named, never pickled.
"""

from __future__ import annotations

import collections
from typing import Any, Final

import numpy as np
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.host_copy import Copier
from otf_core.state.host_pool import HostPool

MAX_INT_BITS: Final = 2039
LEAVES: Final = frozenset(
    {type(None), bool, float, complex, str, torch.dtype, torch.device, torch.layout, torch.qscheme}
)
DICTS: Final = frozenset({dict, collections.OrderedDict, collections.Counter})
CONTAINERS: Final = DICTS | {list, tuple, set, bytearray, torch.Size}
TENSORS: Final = frozenset({torch.Tensor, torch.nn.Parameter})
LAYOUTS: Final = frozenset(
    {
        torch.strided,
        torch.sparse_coo,
        torch.sparse_csr,
        torch.sparse_csc,
        torch.sparse_bsr,
        torch.sparse_bsc,
    }
)
# torch.save has no storage type for them.
SUB_BYTE: Final = frozenset(
    getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in range(1, 8)
)


def loadable(value: Any, path: str, pool: HostPool | None = None) -> tuple[Any, list[str]]:
    """A host copy of what can be loaded again; training thread.

    What cannot is left out of the dict that it lies in, with the list, tuple or set around it.
    NumPy's real numbers become Python's, of the same value.

    Args:
        path: what the value is called in the names of what was left out.
        pool: see ``host_copy``.

    Returns:
        The copy, None where nothing of it can be loaded; and ``path: type`` of what was left out.
    """
    copier = _LoadableCopier(path, pool)
    try:
        return copier.copy(value), copier.left_out
    except _UnloadableError as why:
        return None, [f"{path}: {why}"]


def refuse_unloadable(state: Any) -> None:
    """Refuse what could be written and not be read back; any thread.

    Raises:
        CommandError: ``unsupported``; names the place and the type of the first such value.
    """
    path: list[str] = []
    try:
        _check(state, path, {})
    except _UnloadableError as why:
        where = ".".join(reversed(path)) or "the checkpoint"
        detail = (
            f"Saving was asked, but {where[:200]} is of type {str(why)[:100]}, which could not be "
            "read back; allowed: tensors, numbers, strings, bytes, and lists, tuples, sets and "
            "dicts of them."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail) from None


class _UnloadableError(Exception):
    """Says the type, and what it lies in up to the next dict."""


class _LoadableCopier(Copier):
    def __init__(self, path: str, pool: HostPool | None) -> None:
        super().__init__(pool)
        self._path = [path]
        self.left_out: list[str] = []

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in LEAVES:
            return value
        if kind is int or kind is bytes:
            return value if _is_short(value) else self._other(value)
        if kind in CONTAINERS or isinstance(value, torch.Tensor):
            return super().copy(value)
        return self._other(value)

    def _other(self, value: Any) -> Any:
        if type(value) is bytes:
            return bytearray()  # equal to it, and comes back
        if isinstance(value, np.generic) and value.dtype.kind in "biufU":
            python = value.item()
            if type(python) in LEAVES or type(python) is int:
                return python
        raise _UnloadableError(_name(value))

    def _copied(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not _is_savable(value):
            raise _UnloadableError(_name(value))
        try:
            if type(value) is set:
                return {self.copy(v) for v in value}
            new = super()._copied(value)
        except _UnloadableError as why:
            self._seen.pop(id(value), None)  # noted there before it was filled
            raise _inside(why, value) from None
        if isinstance(value, torch.Tensor) and type(new) not in TENSORS:
            raise _UnloadableError(_name(new))
        return new

    def _dict(self, value: dict[Any, Any]) -> Any:
        new: Any = type(value)()
        self._seen[id(value)] = new
        for key, item in value.items():
            self._path.append(str(key))
            try:
                new[self.copy(key)] = self.copy(item)
            except _UnloadableError as why:
                self.left_out.append(f"{'.'.join(self._path)}: {why}")
            self._path.pop()
        if hasattr(value, "_metadata"):
            new._metadata = self.copy(getattr(value, "_metadata"))  # noqa: B009, SLF001 -- torch's versioning of a state_dict
        return new


def _check(value: Any, path: list[str], seen: dict[int, bool]) -> None:
    """Fills ``path`` from the inside outwards when it raises."""
    kind = type(value)
    if kind in LEAVES or ((kind is int or kind is bytes) and _is_short(value)):
        return
    if id(value) in seen:
        if kind is tuple and not seen[id(value)]:
            raise _UnloadableError("tuple that holds itself")  # noqa: EM101 -- a name, no sentence
        return
    seen[id(value)] = False
    if kind in TENSORS and _is_savable(value):
        _check_items(vars(value), path, seen)
    elif kind in DICTS:
        _check_items(value, path, seen)
        _check_items(getattr(value, "__dict__", {}), path, seen)
    elif kind in CONTAINERS:
        try:
            for item in value if kind is not bytearray else ():
                _check(item, path, seen)
        except _UnloadableError as why:
            raise (why if path else _inside(why, value)) from None
    else:
        raise _UnloadableError(_name(value))
    seen[id(value)] = True


def _check_items(items: dict[Any, Any], path: list[str], seen: dict[int, bool]) -> None:
    for key, item in items.items():
        try:
            _check(key, path, seen)
            _check(item, path, seen)
        except _UnloadableError:
            path.append(str(key))
            raise


def _inside(why: _UnloadableError, container: Any) -> _UnloadableError:
    return _UnloadableError(f"{why} in a {type(container).__name__}")


def _is_short(value: int | bytes) -> bool:
    return value.bit_length() <= MAX_INT_BITS if isinstance(value, int) else value != b""


def _is_savable(tensor: torch.Tensor) -> bool:
    return tensor.layout in LAYOUTS and tensor.dtype not in SUB_BYTE


def _name(value: Any) -> str:
    """A type for a person; where the type alone is not at fault, what is."""
    kind = type(value)
    if kind is int:
        return f"int of {value.bit_length():,} bits"
    if kind is bytes:
        return "bytes of length 0"
    if isinstance(value, torch.Tensor) and not _is_savable(value):
        return f"{kind.__name__} of {value.dtype} and {value.layout}"
    return kind.__qualname__
