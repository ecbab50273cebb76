"""Runs a function in a fork of this process, which has everything imported already.

A fork may be killed by what it runs, or by us when its time is over. Its grandchildren (workers of
loaders) come to us when it dies, and ``leftovers`` waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
WORKERS_NOTICE_S: Final = 5.0  # torch.utils.data: how often a worker looks whether we live


class Outcome(NamedTuple):
    """How a fork ended: ``done`` with its result, ``killed``, ``failed`` or ``hangs``."""

    how: str
    result: Any
    log: Path

    def told(self) -> str:
        """The last line that it wrote: what it raised."""
        text = self.log.read_text(errors="replace").strip() if self.log.exists() else ""
        return f"{text.splitlines()[-1] if text else 'nothing was said'} ({self.log})"


class Fork:
    """A function under way in a fork.

    Args:
        main: its result is pickled.
        folder: of its output and result, ``name.log`` and ``name.pickle``.
    """

    def __init__(self, main: Callable[[], Any], folder: Path, name: str) -> None:
        self._log, self._result = folder / f"{name}.log", folder / f"{name}.pickle"
        self.pid = os.fork()
        if self.pid == 0:
            _child(main, self._log, self._result)
        self._pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """Becomes readable when it is over."""
        return self._pidfd

    def wait(self, timeout_s: float) -> Outcome:
        """Until it is over; one that takes longer is killed, with its children."""
        over, _, _ = select.select([self], [], [], timeout_s)
        if not over:
            for process in (*_below(self.pid), psutil.Process(self.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        if not over:
            return Outcome("hangs", None, self._log)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome("killed", None, self._log)
        if status != 0:
            return Outcome("failed", None, self._log)
        return Outcome("done", pickle.loads(self._result.read_bytes()), self._log)


def run(main: Callable[[], Any], folder: Path, name: str, timeout_s: float = 60.0) -> Outcome:
    """A fork from its start to its end."""
    return Fork(main, folder, name).wait(timeout_s)


def kill_myself() -> None:
    """SIGKILL, from inside."""
    os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Grandchildren whose parent dies become our children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def leftovers() -> list[str]:
    """Processes below us that do not end by themselves; they are killed."""
    _, left = psutil.wait_procs(_below(os.getpid()), timeout=4 * WORKERS_NOTICE_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=WORKERS_NOTICE_S)
    return [f"{process.pid}" for process in left]


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _child(main: Callable[[], Any], log: Path, result: Path) -> None:
    """Never returns; nothing of the parent's ending runs here."""
    code = 1
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever ends the whole, ends all of it
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: PLW1514, RUF100, SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: PLW1514, RUF100, SIM115
        result.write_bytes(pickle.dumps(main()))
        gc.collect()  # loaders end their workers when they go
        for worker in multiprocessing.active_children():
            worker.terminate()
            worker.join(WORKERS_NOTICE_S)
        code = 0
    except BaseException:  # noqa: BLE001 -- the end of a process: told in its log
        traceback.print_exc()
    finally:
        os._exit(code)
