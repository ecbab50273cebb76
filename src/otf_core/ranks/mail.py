"""Letters between the ranks of a run, through the store that their process group has already.

No collective, and no connection of our own: the queues of a ``PrefixStore``. A client serves one
request at a time, so who waits for letters has one for himself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch.distributed import distributed_c10d

from otf_core.control.agreement import PeerLostError
from otf_core.errors import OtfError

# A read that times out prints a trace to stderr; one that waits for a day costs nothing.
FOREVER: Final = timedelta(days=365)


_BROKEN: Final = re.compile(r"gloo|nccl|connection (closed|reset|refused)|peer|socket", re.I)


def of_the_group(error: BaseException) -> bool:
    """Whether an exception says that ranks could not reach each other, and nothing of its cause."""
    if isinstance(error, PeerLostError | dist.DistError | ConnectionError):
        return True
    return isinstance(error, RuntimeError) and _BROKEN.search(str(error)) is not None


class NoStoreError(OtfError):
    """The process group has no store through which ranks could be told anything."""


class StoreMail:
    """See ``Mail`` in otf_core.control.agreement.

    Args:
        name: the same on all ranks, and of no other run of this process group.

    Raises:
        NoStoreError: it has no store with queues.
    """

    def __init__(self, name: str, rank: int) -> None:
        store = _default_store()
        self.name, self._rank = name, rank
        try:
            self._inbox = distributed_c10d.PrefixStore(f"otf/{name}", store.clone())
            self._outbox = distributed_c10d.PrefixStore(f"otf/{name}", store.clone())
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            msg = f"{type(store).__name__} cannot be shared by several threads: {error}"
            raise NoStoreError(msg) from error
        self._inbox.set_timeout(FOREVER)

    def push(self, rank: int, letter: bytes) -> None:
        """Does not wait for it to be read."""
        try:
            self._outbox.queue_push(str(rank), letter)
        except RuntimeError as error:
            raise ConnectionError(_first_line(error)) from error

    def pop(self) -> bytes:
        """The next letter to this rank, as soon as there is one."""
        try:
            letter = self._inbox.queue_pop(str(self._rank))
        except RuntimeError as error:
            raise ConnectionError(_first_line(error)) from error
        if not letter:
            msg = "closed"
            raise ConnectionError(msg)
        return bytes(letter)

    def close(self) -> None:
        """Ends ``pop``: a thread within it at the interpreter's end aborts the process."""
        with contextlib.suppress(ConnectionError):
            self.push(self._rank, b"")


class StoreBeats:
    """The newest beat of each rank, in the same store; for one thread. A client of its own.

    Args:
        name: as of ``StoreMail``.

    Raises:
        NoStoreError: as there.
    """

    def __init__(self, name: str, rank: int) -> None:
        store = _default_store()
        try:
            self._store = distributed_c10d.PrefixStore(f"otf/{name}/beat", store.clone())
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            msg = f"{type(store).__name__} cannot be shared by several threads: {error}"
            raise NoStoreError(msg) from error
        self._rank = rank
        self._there: set[int] = set()

    def write(self, beat: bytes) -> None:
        """In place of the one before."""
        try:
            self._store.set(str(self._rank), beat.decode())
        except RuntimeError as error:
            raise ConnectionError(_first_line(error)) from error

    def read(self, ranks: Sequence[int]) -> dict[int, bytes]:
        """The newest of these ranks, of those that have beaten; one question once all have."""
        # A question for a key that is not there would wait for it.
        try:
            new = [rank for rank in ranks if rank not in self._there]
            self._there.update(rank for rank in new if self._store.check([str(rank)]))
            there = [rank for rank in ranks if rank in self._there]
            found = self._store.multi_get([str(rank) for rank in there]) if there else []
        except RuntimeError as error:
            raise ConnectionError(_first_line(error)) from error
        return {rank: bytes(each) for rank, each in zip(there, found, strict=True)}


def _default_store() -> Any:
    if not dist.is_initialized():
        msg = "there is no process group"
        raise NoStoreError(msg)
    return distributed_c10d._get_default_store()  # noqa: SLF001 -- there is no other way to the store


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
