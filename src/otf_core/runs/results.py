"""What tests and validations have found, kept in the folder of each run.

Rule 1: a result is a line of ``results.jsonl``, on the disk before it is answered. Where the disk
does not take it, that is said, and the session keeps it in memory.
Rule 2: half a line, as a process that was killed leaves it, costs that line and no other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from otf_core import protocol
from otf_core.control.bus import Ticket
from otf_core.control.delegate import Evaluation
from otf_core.runs.tree import Here, RunTree
from otf_core.state.run_folder import RESULTS

NEWEST: Final = 1_000  # of all results that an answer may have
MAX_BYTES: Final = 16 * 1024 * 1024  # of a file, its newest


class Result(msgspec.Struct, kw_only=True):
    """One test or validation.

    Attributes:
        kind: "test" or "validate".
        label: as whoever asked has called it.
        step: steps that the run had done.
        metrics: what the module logged; null where it is not finite.
        avg_loss: mean of the loss over the batches of a test.
        limit_batches: a validation of so many batches at most.
        seconds: that it took.
    """

    kind: str
    label: str | None
    step: int
    run_id: str
    metrics: dict[str, Any]
    avg_loss: float | None = None
    limit_batches: int | None = None
    seconds: float
    ts: float


class Results:
    """Those of the runs of one session; training thread.

    Args:
        here: the run that trains.
        emit: tells what the disk has not taken.
    """

    def __init__(
        self, tree: RunTree, here: Callable[[], tuple[str, Path | None]], emit: Callable[..., Any]
    ) -> None:
        self._tree, self._here, self._emit = tree, here, emit
        self._unwritten: list[Result] = []

    def keep(
        self,
        kind: str,
        label: str | None,
        step: int,
        found: Evaluation,
        limit_batches: int | None = None,
    ) -> None:
        """A result of the run that trains."""
        run_id, folder = self._here()
        result = Result(
            kind=kind, label=label, step=step, run_id=run_id, metrics=dict(found.metrics),
            avg_loss=found.avg_loss, limit_batches=limit_batches, seconds=found.seconds,
            ts=time.time(),
        )  # fmt: skip
        # As it comes back from the disk, whatever the user has logged.
        line = protocol.encode(msgspec.structs.asdict(result))
        why = "it has no folder"
        if folder is not None:
            try:
                _append(folder / RESULTS, line)
            except OSError as error:
                why = error.strerror or str(error)
            else:
                return
        self._unwritten += _decoded(line)
        text = f"the result of a {kind} at step {step:,} of {run_id} is in memory only: {why}"
        self._emit("log", level="warning", phase="info", text=text)

    def results(self, ticket: Ticket) -> dict[str, Any]:
        """Those of a run, or of the runs that it is kin to, oldest first."""
        asked = ticket.payload.run_id
        runs = self._tree.family() if asked is None else [self._tree.look(asked)]
        rows: list[Result] = []
        for run in runs:
            kept = [r for r in self._unwritten if r.run_id == run.run_id]
            rows += sorted([*_read(run), *kept], key=lambda row: row.ts)
        return {"results": [msgspec.structs.asdict(row) for row in rows[-NEWEST:]]}


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file. OSError as the disk has it."""
    # A pipe that somebody has put there would have us wait for its other end.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def _append(path: Path, line: bytes) -> None:
    """One line more, whole and on the disk, or the file as it was. OSError as the disk has it."""
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as (descriptor, size):
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def _read(run: Here) -> list[Result]:
    if run.folder is None:
        return []
    try:
        with _opened(run.folder / RESULTS, os.O_RDONLY) as (descriptor, size):
            lines = os.pread(descriptor, MAX_BYTES, max(0, size - MAX_BYTES))
    except OSError:
        return []
    return [row for row in _decoded(lines) if row.run_id == run.run_id]


def _decoded(lines: bytes) -> Iterator[Result]:
    for line in lines.splitlines():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield msgspec.json.decode(line, type=Result)
