"""A checkpoint that training cannot change any more."""

from __future__ import annotations

from typing import Any

import torch


def host_copy(value: Any) -> Any:
    """Copies tensors to the host and containers by value; what shared a storage still does.

    Everything else goes by reference: a checkpoint's other values are plain. Training thread.
    """
    return _Copier().copy(value)


class _Copier:
    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._seen: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids are only good while their objects live

    def copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        kind = type(value)
        if kind in (list, tuple):
            return kind(self.copy(v) for v in value)
        if isinstance(value, dict):
            return self._dict(value)
        return value

    def _dict(self, value: dict[Any, Any]) -> Any:
        # OrderedDict and the like keep their type, and a state_dict its _metadata.
        new: Any
        try:
            new = type(value)()
        except TypeError:
            new = {}
        for key, item in value.items():
            new[key] = self.copy(item)
        if hasattr(value, "_metadata") and hasattr(new, "__dict__"):
            new._metadata = getattr(value, "_metadata")  # noqa: B009, SLF001 -- torch's versioning of a state_dict
        return new

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        key = id(tensor)
        if key not in self._seen:
            self._alive.append(tensor)
            self._seen[key] = self._copied(tensor)
        return self._seen[key]  # type: ignore[no-any-return]

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if plain.layout is not torch.strided or plain.device.type not in ("cpu", "cuda"):
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
