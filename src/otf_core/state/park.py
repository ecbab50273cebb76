"""A run's memory on the accelerator goes to the host, and comes back as it was; training thread.

Rule 1: no tensor is replaced. Its storage is emptied and filled again, so that every alias, view,
tied weight, optimizer and bucket means the same tensor before, meanwhile and after.
Rule 2: nothing is emptied before all of it has been copied; nothing is filled before there is room
for all of it. What fails leaves the run as it was, parked or not.
Rule 3: while it is parked nobody may read a tensor that is: there is nothing behind it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.host_pool import HostPool, available_bytes
from otf_core.state.on_device import Found, Holdings, Piece, find

TOLD: Final = 5  # of the names that cannot be parked
GRAPHS: Final = (
    "A CUDA graph is there, which has written down where the weights lie; parked, they would come "
    "back elsewhere. Without CUDA graphs (torch.compile without mode='reduce-overhead') it can be."
)
NOTHING: Final = (
    "The run trains on the {device}, the host's own memory, so it cannot be parked. Allowed: a run "
    "on cuda."
)
ONLY_CUDA: Final = (
    "The run trains on {device}, whose memory nobody has tried to give back in place, so it cannot "
    "be parked. Allowed: a run on cuda."
)


class Accelerator(Protocol):
    """Whose memory is given back; a test has one of its own."""

    @property
    def pinned(self) -> bool:
        """Whether copies to the host are quicker from pinned memory."""

    def holds(self, device: torch.device) -> bool:
        """Whether a tensor of this device lies in this memory."""

    def refuses(self) -> str | None:
        """Why nothing of it can be moved now."""

    def settle(self) -> None:
        """Wait for what is under way."""

    def used_bytes(self) -> int:
        """What tensors of this process take."""

    def taken_bytes(self) -> int:
        """What this process has taken from the device for tensors, used or not."""

    def allocate(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """Memory for an empty storage.

        Raises:
            RuntimeError: there is not enough; the storage stays empty.
        """

    def release(self) -> None:
        """Give what is not used back to the device."""


class Cuda:
    """All GPUs that this process uses: a model may lie on several."""

    pinned = True

    def holds(self, device: torch.device) -> bool:
        """Whichever it is."""
        return device.type == "cuda"

    def refuses(self) -> str | None:
        """A CUDA graph knows tensors by their addresses."""
        kind = torch.cuda.CUDAGraph
        return GRAPHS if any(issubclass(type(each), kind) for each in gc.get_objects()) else None

    def settle(self) -> None:
        """All streams of those on which something lies; another one would be begun by it."""
        for each in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(each):
                torch.cuda.synchronize(each)

    def used_bytes(self) -> int:
        """As the caching allocator counts."""
        return sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count())))

    def taken_bytes(self) -> int:
        """As the caching allocator counts; the context of CUDA is not in it."""
        return sum(map(torch.cuda.memory_reserved, range(torch.cuda.device_count())))

    def allocate(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """Of the caching allocator, on the storage's own GPU."""
        storage.resize_(nbytes)

    def release(self) -> None:
        """What the caching allocator keeps."""
        torch.cuda.empty_cache()


def accelerator_of(device: torch.device) -> Accelerator:
    """That on which a run trains.

    Raises:
        CommandError: ``unsupported``; there is none whose memory can be given back.
    """
    if device.type == "cuda":
        return Cuda()
    said = NOTHING if device.type == "cpu" else ONLY_CUDA
    raise CommandError(ErrorCode.UNSUPPORTED, said.format(device=device))


class Parked(NamedTuple):
    """What a park has done.

    Attributes:
        moved_bytes: of the run's tensors, now on the host; ``pinned_bytes`` of them pinned.
        freed_bytes: that others can have on the device now.
        left_bytes: that tensors of this process still take there.
    """

    moved_bytes: int
    pinned_bytes: int
    freed_bytes: int
    left_bytes: int
    seconds: float


class Parking:
    """Of one process.

    Args:
        holdings: what is to be moved; asked for each time.
        device: where it trains; likewise.
        room_bytes: free memory of the host.
    """

    def __init__(
        self,
        holdings: Callable[[], Holdings],
        device: Callable[[], torch.device],
        *,
        room_bytes: Callable[[], int] = available_bytes,
    ) -> None:
        self._holdings, self._device, self._room_bytes = holdings, device, room_bytes
        self._moved: list[tuple[Piece, torch.UntypedStorage]] = []
        self._from: Accelerator | None = None

    @property
    def parked(self) -> bool:
        """Whether the run's tensors are empty now."""
        return self._from is not None

    def never(self) -> str | None:
        """Why no run on this device can be parked, in one sentence; None where it may."""
        try:
            accelerator_of(self._device())
        except CommandError as error:
            return error.detail
        return None

    def check(self) -> None:
        """Refuse what cannot be parked; nothing is touched.

        Raises:
            CommandError: ``unsupported``, or ``not_allowed_now`` where the host has no room.
        """
        if not self.parked:
            self._plan()

    def _plan(self) -> tuple[Accelerator, Sequence[Piece], bool]:
        """From where, what, and whether there is room for pinned memory."""
        holdings = self._holdings()
        if holdings.why_not is not None:
            raise CommandError(ErrorCode.UNSUPPORTED, holdings.why_not)
        accelerator = accelerator_of(self._device())
        if (why := accelerator.refuses()) is not None:
            raise CommandError(ErrorCode.UNSUPPORTED, why)
        found = find(holdings, accelerator.holds)
        _refuse_stuck(found)
        wanted, room = sum(piece.nbytes for piece in found.pieces), self._room_bytes()
        if wanted > room:
            detail = (
                f"park was asked for {wanted:,} bytes, the host has {room:,} free; the run is as "
                "it was."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        # torch rounds pinned memory up to a power of two, and the system cannot swap it.
        return accelerator, found.pieces, accelerator.pinned and 2 * wanted <= room

    def park(self) -> Parked:
        """Copy all to the host, then give the device's memory back.

        Raises:
            CommandError: see ``check``; also where the host gives no memory. The run is as it was.
        """
        began_s = time.monotonic()
        accelerator, pieces, pinned = self._plan()
        gc.collect()  # what nobody has any more takes memory as well
        accelerator.settle()
        before = accelerator.taken_bytes()
        memory = HostPool()
        try:
            moved = [(p, memory.take(p.nbytes, pinned=pinned)) for p in pieces]
            for piece, host in moved:
                _copy(piece.storage, host)
        except (RuntimeError, MemoryError) as error:
            detail = f"The host gave no memory for it ({error}); the run is as it was."[:500]
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail) from error
        accelerator.settle()
        self._moved, self._from = moved, accelerator
        for piece, _ in moved:
            piece.storage.resize_(0)
        accelerator.release()
        return Parked(
            moved_bytes=sum(piece.nbytes for piece, _ in moved),
            pinned_bytes=sum(host.nbytes() for _, host in moved if _is_pinned(host)),
            freed_bytes=max(0, before - accelerator.taken_bytes()),
            left_bytes=accelerator.used_bytes(),
            seconds=time.monotonic() - began_s,
        )

    def back(self) -> None:
        """Everything is on the device again, bit for bit; nothing where it is already.

        Raises:
            CommandError: ``not_allowed_now``; the device has no room. The run stays parked.
        """
        accelerator = self._from
        if accelerator is None:
            return
        filled: list[torch.UntypedStorage] = []
        try:
            for piece, _ in self._moved:
                accelerator.allocate(piece.storage, piece.nbytes)
                filled.append(piece.storage)
        except RuntimeError as error:
            for storage in filled:
                storage.resize_(0)
            accelerator.release()
            wanted = sum(piece.nbytes for piece, _ in self._moved)
            detail = (
                f"The run was to come back, which takes {wanted:,} bytes of the accelerator, and "
                f"it has no room for them; the run stays parked ({error})."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail[:700]) from error
        for piece, host in self._moved:
            _copy(host, piece.storage)
        accelerator.settle()  # before the host's memory goes
        self._moved, self._from = [], None


def _refuse_stuck(found: Found) -> None:
    if not found.stuck:
        return
    told = [f"{name} ({why})" for name, why in list(found.stuck.items())[:TOLD]]
    more = len(found.stuck) - len(told)
    detail = (
        f"These cannot be parked: {', '.join(told)}{f' and {more} more' if more else ''}; "
        "the run is as it was."
    )
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _copy(source: torch.UntypedStorage, target: torch.UntypedStorage) -> None:
    """All bytes, whatever they are; done when it returns, or on the device's own stream."""
    raw = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
    torch.empty(0, dtype=torch.uint8, device=target.device).set_(target).copy_(raw)


def _is_pinned(host: torch.UntypedStorage) -> bool:
    return torch.cuda.is_available() and host.is_pinned()
