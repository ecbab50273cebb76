"""Batches of any shape: how big they are, and how they come to the model; training thread."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

MAX_DEPTH: Final = 8  # how deep the first tensor is looked for
MAX_ITEMS: Final = 64  # and how far: a list of a million strings holds none


def move_batch_like(batch: Any, reference: Tensor | nn.Module) -> Any:
    """The batch on the device of a tensor or module; neither type nor precision changes.

    Goes through dicts, lists, tuples, namedtuples and dataclasses; what else has a ``to`` is moved
    by it. A container in which nothing moved is returned itself, and a given one is never changed.
    A module without parameters and buffers has no device: the batch comes back as it is.
    """
    device = _device_of(reference)
    return batch if device is None else _moved(batch, device)


def batch_size(batch: Any) -> int | None:
    """Leading dimension of the first tensor or array found; training thread. Never raises.

    None where none is found. Looks at shapes only, so a device is not waited for.
    """
    # What nearly every loader gives; else looked for, which takes several times as long.
    if type(batch) in (list, tuple) and batch and type(batch[0]) is Tensor and batch[0].ndim:
        return batch[0].shape[0]
    try:
        return _leading(batch, 0)
    except Exception:  # noqa: BLE001 -- boundary: containers of the user may raise anything
        return None


def _device_of(reference: Tensor | nn.Module) -> torch.device | None:
    if isinstance(reference, Tensor):
        return reference.device
    for tensors in (reference.parameters(), reference.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # From pinned memory the copy goes beside the host; to the host one has to wait for it.
        return value.to(device, non_blocking=device.type not in ("cpu", "mps"))
    if isinstance(value, str | bytes):
        return value
    if callable(getattr(type(value), "to", None)):
        moved = value.to(device)
        return value if moved is None else moved  # some move themselves and return nothing
    if isinstance(value, Mapping):
        return _rebuilt(value, {key: _moved(item, device) for key, item in value.items()})
    if isinstance(value, tuple | list):
        items = [_moved(item, device) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return _sequence_like(value, items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _moved_dataclass(value, device)
    return value


def _rebuilt(old: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if all(items[key] is item for key, item in old.items()):
        return old
    if type(old) is dict:
        return items
    new: Any = copy.copy(old)  # keeps what a subclass has beside its items, a default factory say
    for key, item in items.items():
        new[key] = item
    return new


def _sequence_like(old: Sequence[Any], items: list[Any]) -> Any:
    kind: Any = type(old)
    if kind is list:
        return items
    if isinstance(old, list):
        new = copy.copy(old)
        new[:] = items
        return new
    return kind._make(items) if hasattr(kind, "_fields") else kind(items)


def _moved_dataclass(value: Any, device: torch.device) -> Any:
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    items = {name: _moved(getattr(value, name), device) for name in names}
    changed = {name: new for name, new in items.items() if new is not getattr(value, name)}
    if not changed:
        return value
    # Not dataclasses.replace: it would run __init__ and __post_init__ of the user once more.
    new = copy.copy(value)
    for name, item in changed.items():
        object.__setattr__(new, name, item)  # frozen ones too
    return new


def _leading(value: Any, depth: int) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return value.shape[0] if value.ndim else None
    if depth > MAX_DEPTH or isinstance(value, str | bytes):
        return None
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])  # on the host always; its data is batch times time
    for seen, item in enumerate(_items(value)):
        size = _leading(item, depth + 1) if seen < MAX_ITEMS else None
        if size is not None:
            return size
        if seen >= MAX_ITEMS:
            break
    return None


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, tuple | list):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name, None) for field in dataclasses.fields(value))
    return ()
