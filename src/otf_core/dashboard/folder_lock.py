"""Which dashboard writes to a folder's database; the kernel lets go when a process dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Final

NAME: Final = "dashboard.lock"


class FolderLock:
    """``dashboard.lock`` in the folder: who holds it, and which database it goes with."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take it; False if another process has it.

        Raises:
            OSError: the file cannot be made, or this file system has no locks.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        self._descriptor = descriptor
        return True

    def read(self) -> dict[str, Any]:
        """What its holder, or the last one, has written; nothing if that is no JSON."""
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, said: dict[str, Any]) -> None:
        """Say who holds it; the holder alone."""
        assert self._descriptor is not None
        data = json.dumps(said).encode() + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)

    def release(self) -> None:
        """Let go; may be called twice. The file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
