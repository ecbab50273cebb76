"""Host memory that one snapshot after another is copied into.

The pages of fresh memory are touched for the first time when they are written, which takes many
times as long as the copy itself; so a pool keeps what it once had.

Rule: what a pool gave out belongs to the snapshot of this round; after ``rewind`` it is written
over.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil
import torch

ROUNDS: Final = 4  # a pool holds no more than the largest of so many snapshots needed
LARGE_BYTES: Final = 1024 * 1024  # above it a copy lets other threads run; below, that costs more
CGROUP: Final = Path("/sys/fs/cgroup")

Key = tuple[int, bool]


class HostPool:
    """Host memory of one snapshot, made once and filled again.

    One thread takes, copies and rewinds at a time; ``reserve`` may run beside it on another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[Key, list[torch.UntypedStorage]] = {}
        self._used: list[tuple[Key, torch.UntypedStorage]] = []
        self._held: collections.Counter[Key] = collections.Counter()  # given out or not
        self._rounds: collections.deque[int] = collections.deque(maxlen=ROUNDS)

    @property
    def nbytes(self) -> int:
        """Of all its memory, given out or not."""
        return sum(nbytes * count for (nbytes, _), count in self._held.items())

    def take(self, nbytes: int, *, pinned: bool = False) -> torch.UntypedStorage:
        """Memory of exactly this size, with anything in it."""
        key = nbytes, pinned
        with self._lock:
            free = self._free.get(key)
            storage = free.pop() if free else None
            if storage is None:
                self._held[key] += 1
        if storage is None:
            storage = _allocate(nbytes, pinned=pinned)
        self._used.append((key, storage))
        return storage

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of one tensor on the host, in memory of its own; strides are kept."""
        if not is_one_piece(tensor):
            return copy_whole(tensor)
        tensor = tensor.detach()
        strides = tensor.stride() if tensor.is_contiguous() else _dense_strides(tensor)
        storage = self.take(tensor.numel() * tensor.element_size(), pinned=tensor.is_cuda)
        host = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, strides)
        return host.copy_(tensor)

    def rewind(self) -> None:
        """Start a new round over the old one."""
        with self._lock:
            if not self._used:
                return  # nothing was copied: what is reserved stays so
            self._rounds.append(sum(key[0] for key, _ in self._used))
            self._trim(max(self._rounds))
            for key, storage in self._used:
                self._free.setdefault(key, []).append(storage)
            self._used = []

    def _trim(self, allowed_bytes: int) -> None:
        """Let go what this round had no use for. It may be wanted again: shapes can take turns."""
        too_much = self.nbytes - allowed_bytes
        for key, free in self._free.items():
            while free and too_much > 0:
                free.pop()
                self._held[key] -= 1
                too_much -= key[0]

    def clear(self) -> None:
        """Give all memory back."""
        with self._lock:
            self._free, self._used = {}, []
            self._held.clear()

    def reserve(self, sizes: Sequence[Key], *, wanted: Callable[[], bool] = lambda: True) -> None:
        """Hold what a snapshot of these sizes needs, its pages touched; otf-saver.

        Args:
            sizes: bytes, and whether pinned, of each piece.
            wanted: asked before each piece; False ends it.
        """
        with self._lock:
            missing = collections.Counter(sizes) - self._held
            self._rounds.append(sum(nbytes for nbytes, _ in sizes))
        for key in missing.elements():
            if not wanted():
                return
            storage = _allocate(key[0], pinned=key[1])
            # A tensor is filled without holding up other threads; a storage is not.
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0)
            with self._lock:
                self._free.setdefault(key, []).append(storage)
                self._held[key] += 1


def available_bytes() -> int:
    """Host memory that could be had now: of the machine, or of the container around us."""
    available = psutil.virtual_memory().available
    # Where there is no such container there are no such files, or "max" is in them.
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read are counted as used, and go when memory is wanted.
        available = min(available, limit - used + int(stat.get("inactive_file", 0)))
    return max(0, available)


def copy_storage(source: torch.UntypedStorage, host: torch.UntypedStorage) -> None:
    """Fill host memory of the same size; done when it returns."""
    if source.nbytes() < LARGE_BYTES:
        host.copy_(source, non_blocking=False)
        return
    raw = torch.empty(0, dtype=torch.uint8)
    live = torch.empty(0, dtype=torch.uint8, device=source.device)
    raw.set_(host).copy_(live.set_(source))


def _allocate(nbytes: int, *, pinned: bool) -> torch.UntypedStorage:
    if pinned:
        with contextlib.suppress(RuntimeError):  # the system may give no more of it
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).untyped_storage()
    return torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]


def is_one_piece(tensor: torch.Tensor) -> bool:
    """Whether size, strides and one storage say all of it, and the host can copy that."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not (tensor.is_quantized or tensor.is_nested)
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    )


def copy_whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host as torch makes it; a tensor without data stays one."""
    tensor = tensor.detach()
    return torch.empty_like(tensor) if tensor.is_meta else tensor.to("cpu", copy=True)


def _dense_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Those that ``clone`` would give: a format like channels_last stays."""
    return torch.empty_like(tensor, device="meta").stride()
