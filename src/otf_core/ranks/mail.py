"""Letters between the ranks of a run, through the store that their process group has already.

No collective, and no connection of our own: the queues of a ``PrefixStore``. A client serves one
request at a time, so who waits for letters has one for himself.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch.distributed import distributed_c10d

from otf_core.errors import OtfError

# A read that times out prints a trace to stderr; one that waits for a day costs nothing.
FOREVER: Final = timedelta(days=365)


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
        self._rank = rank
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


def _default_store() -> Any:
    if not dist.is_initialized():
        msg = "there is no process group"
        raise NoStoreError(msg)
    return distributed_c10d._get_default_store()  # noqa: SLF001 -- there is no other way to the store


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
