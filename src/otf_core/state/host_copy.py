"""A checkpoint that training cannot change any more."""

from __future__ import annotations

import collections
import copy
from typing import Any, Final

import numpy as np
import torch

_IMMUTABLE: Final = (str, int, float, bool, bytes, type(None), torch.Size)


def host_copy(value: Any) -> Any:
    """Copies tensors to the host and containers by value; what shared a storage still does.

    What is one container stays one. Everything else goes by reference: a checkpoint's other values
    are plain. Training thread.
    """
    return _Copier().copy(value)


class _Copier:
    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
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
        strided = plain.layout is torch.strided and not plain.is_quantized
        # A conjugate is a view whose storage holds other numbers.
        lazy = strided and (plain.is_conj() or plain.is_neg())
        if lazy:
            return plain.resolve_conj().resolve_neg().to("cpu", copy=True)
        if not strided or plain.device.type not in ("cpu", "cuda"):
            return plain.to("cpu", copy=True)
        # By storage, so that a view of a buffer stays a view and tied weights stay tied.
        storage = plain.untyped_storage()
        where = storage.data_ptr(), storage.nbytes()
        if where[0] == 0 or storage.nbytes() > 2 * plain.numel() * plain.element_size():
            return plain.to("cpu", copy=True)  # a small view of something large
        host = self._storages.get(where[0])
        if host is None or host.nbytes() != where[1]:
            on_host = storage.device.type == "cpu"
            host = storage.clone() if on_host else storage.cpu()  # type: ignore[no-untyped-call]
            self._storages[where[0]] = host
        new = torch.empty(0, dtype=plain.dtype)
        return new.set_(host, plain.storage_offset(), plain.size(), plain.stride())
