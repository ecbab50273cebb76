"""Event lines that wait for the writer, in order, within a bound.

Rule 1: a stream is a cursor, the number of the last event that was taken. What the outbox does not
hold, the log has; ``missing`` says what to read there.
Rule 2: over the bound the oldest droppable lines go, and a gap stands in their place. When only
others are left, the oldest of those go too, without a gap: they are read from the log.
Rule 3: the lock is held for a few microseconds and never while calling out, so the training thread
never waits for a socket or a disk.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from typing import Final, Literal

from otf_core import protocol

MAX_BYTES: Final = 64 * 1024 * 1024  # the protocol's bound on unsent events
ENTRY_BYTES: Final = 160  # what a tuple, a bytes object and their numbers cost beside the text
_SLICE: Final = 64  # entries taken under one hold of the lock, some 15 microseconds


@dataclasses.dataclass(frozen=True)
class Gap:
    """Events left out of the stream, from first to last."""

    first: int
    last: int
    reason: Literal["slow_reader", "trimmed"]

    def line(self) -> bytes:
        """As it stands in the stream."""
        return protocol.encode(
            {
                "type": "gap",
                "from": self.first,
                "to": self.last,
                "count": self.last - self.first + 1,
                "reason": self.reason,
            }
        )


Item = bytes | Gap


class Outbox:
    """What was emitted and not yet taken.

    Args:
        last_seq: the number of the last event before this outbox was made.
        max_bytes: the bound, the cost of keeping the lines included.
    """

    def __init__(self, last_seq: int = 0, *, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self._last = last_seq
        self._cursor = last_seq
        self._streaming = False
        # Entries are (first, last, line), the line None for a gap. Those that the shrinking has
        # been past, and so holds nothing droppable; then the others.
        self._settled: deque[tuple[int, int, bytes | None]] = deque()
        self._fresh: deque[tuple[int, int, bytes, bool]] = deque()
        self._bytes = 0
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Events that a gap stands for, over the life of the outbox; any thread."""
        return self._dropped

    @property
    def held_bytes(self) -> int:
        """What is held now, the cost of keeping it included; any thread."""
        return self._bytes

    @property
    def cursor(self) -> int:
        """The number of the last event that was taken; any thread."""
        return self._cursor

    @property
    def streaming(self) -> bool:
        """Whether there is a stream to keep lines for; any thread."""
        return self._streaming

    @property
    def pending(self) -> bool:
        """Whether the stream has something to send, held here or in the log; any thread."""
        return self._streaming and self._cursor < self._last

    def append(self, seq: int, line: bytes, *, droppable: bool) -> None:
        """One more event, in order of ``seq``; any thread, never blocks.

        Without a stream nothing is kept: the log has it. So has it one that comes out of order.
        """
        with self._lock:
            if seq <= self._last:
                return
            self._last = seq
            if self._streaming:
                self._fresh.append((seq, seq, line, droppable))
                self._bytes += len(line) + ENTRY_BYTES
                if self._bytes > self._max_bytes:
                    self._shrink()

    def begin(self, after: int) -> None:
        """A stream of everything after this number; otf-writer.

        What is held goes: it may have gaps, and the log has none.
        """
        with self._lock:
            self._clear()
            self._cursor = after
            self._streaming = True

    def end(self) -> None:
        """No stream any more; otf-writer."""
        with self._lock:
            self._clear()
            self._streaming = False

    def missing(self) -> tuple[int, int] | None:
        """(after, until) of what comes next and is not held here, or None; otf-writer."""
        with self._lock:
            if not self._streaming:
                return None
            head = self._head()
            until = self._last if head is None else head[0] - 1
            return (self._cursor, until) if until > self._cursor else None

    def advance(self, seq: int) -> None:
        """Everything up to this number was taken from the log; otf-writer."""
        self._cursor = seq

    def take(self, max_bytes: int) -> list[Item]:
        """What comes next and is held, up to about this many bytes; otf-writer."""
        items: list[Item] = []
        while True:
            with self._lock:
                for _ in range(_SLICE):
                    head = self._head()
                    if head is None or head[0] > self._cursor + 1 or max_bytes <= 0:
                        return items
                    first, last, line = self._pop()
                    if last > self._cursor:
                        items.append(Gap(first, last, "slow_reader") if line is None else line)
                        self._cursor = last
                        max_bytes -= ENTRY_BYTES if line is None else len(line)

    def _head(self) -> tuple[int, int, bytes | None] | tuple[int, int, bytes, bool] | None:
        if self._settled:
            return self._settled[0]
        return self._fresh[0] if self._fresh else None

    def _pop(self) -> tuple[int, int, bytes | None]:
        if self._settled:
            first, last, line = self._settled.popleft()
        else:
            first, last, line, _ = self._fresh.popleft()
        self._bytes -= ENTRY_BYTES + len(line or b"")
        return first, last, line

    def _clear(self) -> None:
        self._settled.clear()
        self._fresh.clear()
        self._bytes = 0

    def _shrink(self) -> None:
        """Back within the bound; each entry is passed once, so an append costs the same always."""
        while self._bytes > self._max_bytes and self._fresh:
            first, last, line, droppable = self._fresh.popleft()
            if not droppable:
                self._settled.append((first, last, line))
                continue
            self._dropped += 1
            self._bytes -= len(line)
            before = self._settled[-1] if self._settled else None
            if before is not None and before[2] is None and before[1] == first - 1:
                self._settled[-1] = (before[0], last, None)
                self._bytes -= ENTRY_BYTES
            else:
                self._settled.append((first, last, None))
        while self._bytes > self._max_bytes and self._settled:
            self._pop()
