"""FakeAccelerator: the host's memory, counted and limited as that of an accelerator would be."""

from __future__ import annotations

import gc
import math

import torch


class FakeAccelerator:
    """What of torch's tensors lies on the CPU counts as lying on it.

    Memory is really given up: a tensor that is parked has nothing behind it, and reading it ends
    the process. Only tensors that Python knows are counted.

    Args:
        capacity_bytes: what others have left; ``allocate`` refuses what does not fit.
    """

    pinned = False

    def __init__(self, capacity_bytes: float = math.inf) -> None:
        self.capacity_bytes = capacity_bytes
        self.why_not: str | None = None
        self.settled = self.released = 0
        self._used: int | None = None

    def holds(self, device: torch.device) -> bool:
        """The CPU is it."""
        return device.type == "cpu"

    def refuses(self) -> str | None:
        """As the test says."""
        return self.why_not

    def settle(self) -> None:
        """Nothing is ever under way."""
        self.settled += 1

    def used_bytes(self) -> int:
        """Of every storage that a tensor is of, once."""
        found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        for each in found[:]:
            if each.layout is torch.sparse_coo:
                found += [each._indices(), each._values()]  # noqa: SLF001 -- indices() wants them coalesced
        known = {}
        for each in found:
            if each.layout is not torch.strided:
                continue
            try:
                storage = each.untyped_storage()
            except (NotImplementedError, RuntimeError):  # a subclass without one
                continue
            if storage.device.type == "cpu":
                known[storage._cdata] = storage.nbytes()  # noqa: SLF001 -- which storage it is
        return sum(known.values())

    def taken_bytes(self) -> int:
        """Nothing is kept."""
        return self.used_bytes()

    def allocate(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """As ``resize_``, unless it does not fit."""
        if self.capacity_bytes < math.inf:
            if self._used is None:  # counted once: that looks at every object of the process
                self._used = self.used_bytes()
            if self._used + nbytes > self.capacity_bytes:
                msg = f"out of memory: {nbytes} bytes more were asked for"
                raise torch.OutOfMemoryError(msg)
            self._used += nbytes
        storage.resize_(nbytes)

    def release(self) -> None:
        """Nothing is kept."""
        self.released += 1
        self._used = None
