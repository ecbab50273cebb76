"""The journal: every event of a session, as first sent, in the run folder.

JSON lines, one file per session, append-only. The training thread only appends to a list; the
thread ``otf-journal`` writes, so that neither a slow disk nor a dashboard that does not read can
hold a step.

Rule 1: what is not on the disk yet is in memory, so a reader misses nothing.
Rule 2: a disk that fails costs the run nothing: said once, then the newest events are kept in
memory up to a bound, and what falls out of it is a gap. A disk so slow that the bound is reached
has failed as well.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from otf_core.telemetry.replay import LegacyReplay

GATHER_S: Final = 0.1  # one write for what comes within this time
INDEX_EVERY: Final = 256
CLOSE_S: Final = 5.0
MEMORY_BYTES: Final = 64 * 1024 * 1024


class Journal:
    """The log of one session; ``append`` on any thread, ``read`` on any thread.

    Args:
        path: the file to be; None keeps the log in memory alone.
        on_loss: called once, on otf-journal or in start, with why the disk was given up.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        on_loss: Callable[[str], None],
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.path = path
        self._on_loss, self._memory_bytes = on_loss, memory_bytes
        self._lock = threading.Lock()
        self._wrote = threading.Condition(self._lock)
        self._file: int | None = None
        self._lost = path is None
        self._pending: deque[tuple[int, bytes]] = deque()
        self._pending_bytes = 0
        self._trimmed = 0  # the last that fell out of memory unwritten
        self._said = False
        self._last = 0
        self._written = 0  # the last that the file has
        self._synced = 0  # the last that outlives the machine
        self._size = 0
        self._index: list[int] = []  # offset of every INDEX_EVERY-th line
        self._due = threading.Event()
        self._closing = threading.Event()
        self._hurry = threading.Event()  # somebody waits: nothing is gathered
        self._sync_asked = False
        self._thread: threading.Thread | None = None
        self.replay = LegacyReplay(self.read)

    @property
    def first_seq(self) -> int:
        """The first event that can be read; behind what is on the disk there may be a hole."""
        return 1 if self._written else self._trimmed + 1

    @property
    def last_seq(self) -> int:
        """The last event; 0 before the first."""
        return self._last

    @property
    def complete(self) -> bool:
        """Whether every event so far can be read."""
        return self._trimmed == 0

    def start(self) -> None:
        """Open the file and start the thread; a failure is said and costs the disk alone."""
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self.path, flags, 0o644)
                self._size = os.fstat(self._file).st_size
            except OSError as error:
                self._give_up(error)
        self._thread = threading.Thread(target=self._run, name="otf-journal", daemon=True)
        self._thread.start()

    def append(self, seq: int, line: bytes, _droppable: bool = False) -> None:  # noqa: FBT001, FBT002 -- a sink
        """Keep one line, in order; never blocks on the disk."""
        with self._lock:
            self._pending.append((seq, line))
            self._pending_bytes += len(line)
            self._last = seq
            if self._pending_bytes > self._memory_bytes:
                self._lost = True  # said by the thread: nothing here may call out
                self._trim()
        if not self._due.is_set():
            self._due.set()

    def sync(self) -> None:
        """Have what is there written and fsynced soon; any thread."""
        with self._lock:
            self._sync_asked = True
        self._due.set()

    def flush(self, timeout_s: float) -> None:
        """Have what is there now on the disk; waits for it. Not for the training thread."""
        self._hurry.set()
        self.sync()
        with self._wrote:
            until = self._last
            self._wrote.wait_for(lambda: self._synced >= until or self._lost, timeout_s)

    def close(self) -> None:
        """Write what is left, fsync, join; may be called twice."""
        self._closing.set()
        self._hurry.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)  # a disk that hangs keeps its thread, and the file with it
            self._thread = None

    def abandon_in_child(self) -> None:
        """In a forked child: let go of the file, write nothing; takes no lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._thread = None
        self._lost = True

    def read(self, after: int, until: int) -> Iterator[bytes]:
        """The lines numbered ``after`` + 1 … ``until`` that can be read, in order; any thread."""
        with self._lock:
            written, index = self._written, list(self._index)
            waiting = [line for seq, line in self._pending if after < seq <= until]
        if self.path is not None and after < written:
            yield from self._read_file(after, min(until, written), index)
        yield from waiting

    def legacy_replay(self) -> tuple[list[bytes], int]:
        """What a legacy host is shown on connecting, and the event after which it goes on live."""
        until = self._last
        return self.replay.lines(until), until

    def _read_file(self, after: int, until: int, index: list[int]) -> Iterator[bytes]:
        assert self.path is not None
        place = min(after // INDEX_EVERY, len(index) - 1)
        seq = place * INDEX_EVERY
        with self.path.open("rb") as file:
            file.seek(index[place])
            for line in file:
                seq += 1
                if seq > until:
                    return
                if seq > after:
                    yield line

    def _run(self) -> None:
        while not self._closing.is_set():
            self._due.wait()
            # Gathered, so that a fast run costs ten writes a second and not one a step.
            self._hurry.wait(GATHER_S)
            self._hurry.clear()
            self._due.clear()
            self._write()
        with self._lock:
            self._sync_asked = True
        self._write()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        if self._file is None or self._said:
            return
        with self._lock:
            # Once something fell out, nothing more is written: the line number is the event's.
            batch = [] if self._lost else list(self._pending)
            sync, self._sync_asked = self._sync_asked, False
        try:
            data = memoryview(b"".join(line for _, line in batch))
            while data:
                data = data[os.write(self._file, data) :]
            if sync:
                os.fsync(self._file)
        except OSError as error:
            self._give_up(error)
            return
        with self._lock:
            for seq, line in batch:
                if (seq - 1) % INDEX_EVERY == 0:
                    self._index.append(self._size)
                self._size += len(line)
                self._written = seq
            if sync:
                self._synced = self._written
            while self._pending and self._pending[0][0] <= self._written:
                self._pending_bytes -= len(self._pending.popleft()[1])
            if self._trimmed <= self._written:
                self._trimmed = 0  # what fell out was being written
            too_slow = self._lost
            self._wrote.notify_all()
        if too_slow:
            self._give_up(TimeoutError(errno.ETIMEDOUT, "the disk is too slow"))

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            self._lost = self._said = True
            self._trim()
            self._wrote.notify_all()
        self._on_loss(f"journal {self.path}: {error.strerror or error}")

    def _trim(self) -> None:
        while self._pending_bytes > self._memory_bytes and self._pending:
            seq, line = self._pending.popleft()
            self._pending_bytes -= len(line)
            self._trimmed = seq
