"""What tells one data set from another, without asking it for samples; training thread.

Rule 1: looked at are the columns, as ``otf_core.runs.table`` does: tensors, arrays and lists with
an entry for each sample. What a data set counts or keeps beside is not looked at.
Rule 2: it is looked at for each checkpoint, so that of a long column some entries stand for all.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import ConcatDataset, IterableDataset

from otf_core.script.prints import print_of

_WHOLE: Final = 16 * 1024  # bytes of a column that is looked at as a whole
_LOOKS: Final = 512  # entries of one that is longer
_COLUMNS: Final = 64  # of a tuple of them, as a TensorDataset has
_NO_SIZE: Final = -1

Told = tuple[str, int, int]  # its class, and those of what it wraps; samples; checksum


def told_of(dataset: Any) -> Told:
    """Equal for what gives equal samples, as far as it can be seen from outside."""
    kinds: list[str] = []
    checksum = _look(dataset, kinds, 0)
    return "/".join(kinds), _size(dataset), checksum


def another(was: Told, here: Told) -> str:
    """A sentence's part on two that differ."""
    if was[:2] == here[:2]:
        return f"a {_named(was)} whose values are others here"
    return f"a {_named(was)}, here a {_named(here)}"


def _named(told: Told) -> str:
    kinds, size, _ = told
    return f"{kinds} of {size:,} samples" if size != _NO_SIZE else kinds


def _size(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset):
        return _NO_SIZE
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return _NO_SIZE


def _look(dataset: Any, kinds: list[str], seed: int) -> int:
    size = _size(dataset)
    kinds.append(type(dataset).__qualname__)
    seed = zlib.crc32(f"{kinds[-1]} {size}".encode(), seed)
    if isinstance(dataset, list | tuple | range | torch.Tensor | np.ndarray):
        return _column(dataset, size, seed)
    inside = getattr(dataset, "__dict__", {})
    for name, value in sorted(inside.items()):
        if name == "_fingerprint" and isinstance(value, str):  # of Hugging Face's data sets
            seed = zlib.crc32(value.encode(), seed)
        for column in value if isinstance(value, tuple) and len(value) <= _COLUMNS else (value,):
            seed = _column(column, size, seed)
    inner = inside.get("dataset")
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [inner]
    for part in parts:
        if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
            seed = _look(part, kinds, seed)
    return seed


def _column(column: Any, size: int, seed: int) -> int:
    if isinstance(column, torch.Tensor):
        known = column.layout is torch.strided and not (column.is_meta or column.is_quantized)
        if known and column.ndim and len(column) == size:
            return zlib.crc32(repr(print_of(_some(column.detach()))).encode(), seed)
    elif isinstance(column, np.ndarray):
        if column.ndim and len(column) == size:
            return zlib.crc32(repr(print_of(_some(column))).encode(), seed)
    elif isinstance(column, list | tuple | range) and len(column) == size:
        picked = column if size <= _LOOKS else column[:: (size // _LOOKS) | 1]
        return zlib.crc32(repr(print_of(list(picked))).encode(), seed)
    return seed


def _some(column: Any) -> Any:
    """Entries of a tensor or array from everywhere in it."""
    entries = column.numel() if isinstance(column, torch.Tensor) else column.size
    if entries * column.itemsize <= _WHOLE:
        return column
    rows = column[:: max(1, len(column) // _LOOKS)]
    # An odd step: all entries of a row have their turn.
    flat = column if _in_one_piece(column) else rows
    flat = flat.reshape(-1)
    return flat[:: (len(flat) // _LOOKS) | 1]


def _in_one_piece(column: Any) -> bool:
    if isinstance(column, torch.Tensor):
        return column.is_contiguous()
    return bool(column.flags.c_contiguous)
