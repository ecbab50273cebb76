"""A checkpoint that training cannot change any more."""

from __future__ import annotations

import collections
import copy
from typing import Any, Final

import numpy as np
import torch

from otf_core.state.host_pool import HostPool, copy_storage, is_one_piece

_IMMUTABLE: Final = (str, int, float, bool, bytes, type(None), torch.Size)


def host_copy(value: Any, pool: HostPool | None = None) -> Any:
    """Copies tensors to the host and containers by value; what shared a storage still does.

    What is one container stays one. Everything else goes by reference: a checkpoint's other values
    are plain. Training thread.

    Args:
        pool: where the memory comes from; the copy is good until the pool is rewound.
    """
    return Copier(pool).copy(value)


def sizes_of(value: Any) -> list[tuple[int, bool]]:
    """What ``CheckpointStore.prepare`` needs to know of what will be copied; nothing is copied."""
    measuring = _Measuring()
    measuring.copy(value)
    return measuring.sizes


class Copier:
    """Copies one value after the other; what one had, the next shares."""

    def __init__(self, pool: HostPool | None = None) -> None:
        self._pool = pool or HostPool()
        self._storages: dict[tuple[int, int], torch.UntypedStorage] = {}  # by address and size
        self._seen: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids are only good while their objects live

    def copy(self, value: Any) -> Any:
        if isinstance(value, _IMMUTABLE):
            return value
        if id(value) not in self._seen:
            self._alive.append(value)
            new = self._copied(value)
            self._seen.setdefault(id(value), new)
        return self._seen[id(value)]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, list):
            # Noted before it is filled: it may lie in itself.
            items = self._seen[id(value)] = copy.copy(value)
            items[:] = [self.copy(v) for v in value]
            return items
        if isinstance(value, tuple):
            parts = [self.copy(v) for v in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, collections.deque):
            return collections.deque((self.copy(v) for v in value), value.maxlen)
        if isinstance(value, set | bytearray | np.ndarray):
            return copy.copy(value)
        return value

    def _dict(self, value: dict[Any, Any]) -> Any:
        # OrderedDict and the like keep their type, and a state_dict its _metadata.
        new: Any
        try:
            new = type(value)()
        except TypeError:
            new = {}
        self._seen[id(value)] = new
        if isinstance(value, collections.defaultdict):
            new.default_factory = value.default_factory
        for key, item in value.items():
            new[key] = self.copy(item)
        if hasattr(value, "_metadata") and hasattr(new, "__dict__"):
            new._metadata = getattr(value, "_metadata")  # noqa: B009, SLF001 -- torch's versioning of a state_dict
        return new

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        # By storage, so that a view of a buffer stays a view and tied weights stay tied.
        storage = _storage_to_copy(plain)
        if storage is None:
            return self._pool.copy(plain)
        where = storage.data_ptr(), storage.nbytes()
        host = self._storages.get(where)
        if host is None:
            host = self._storages[where] = self._pool.take(where[1], pinned=plain.is_cuda)
            copy_storage(storage, host)
        new = torch.empty(0, dtype=plain.dtype)
        return new.set_(host, plain.storage_offset(), plain.size(), plain.stride())


class _Measuring(Copier):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, bool]] = []

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        storage = _storage_to_copy(plain)
        if storage is None:
            nbytes = plain.numel() * plain.element_size() if is_one_piece(plain) else 0
        else:
            where = storage.data_ptr(), storage.nbytes()
            nbytes = 0 if where in self._storages else where[1]
            self._storages[where] = storage
        if nbytes > 0:
            self.sizes.append((nbytes, plain.is_cuda))
        return tensor


def _storage_to_copy(plain: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor, where a copy of that is a copy of the tensor."""
    # A conjugate is a view whose storage holds other numbers.
    if not is_one_piece(plain) or plain.is_conj() or plain.is_neg():
        return None
    storage = plain.untyped_storage()
    small_view = storage.nbytes() > 2 * plain.numel() * plain.element_size()
    return None if small_view or storage.nbytes() == 0 else storage
