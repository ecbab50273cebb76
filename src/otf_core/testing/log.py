"""A log in memory, in place of the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from otf_core import protocol


class MemoryLog:
    """An ``EventLog`` that tests fill; any thread.

    Args:
        emit: where each added event goes next, ``SocketChannel.emit`` as a rule.
        session_id: stamped on each event.
    """

    def __init__(
        self, emit: Callable[[int, bytes, bool], None] | None = None, *, session_id: str = "s-1"
    ) -> None:
        self.emit = emit
        self.session_id = session_id
        self._lock = threading.Lock()
        self._lines: dict[int, bytes] = {}
        self._first, self._last = 1, 0

    @property
    def first_seq(self) -> int:
        """See EventLog."""
        return self._first

    @property
    def last_seq(self) -> int:
        """See EventLog."""
        return self._last

    def add(self, kind: str, fields: Mapping[str, Any] | None = None) -> int:
        """Number an event, keep it, hand it to ``emit``; its number."""
        with self._lock:  # held over emit, since that wants the order of the numbers
            seq = self._last + 1
            stamps = {"type": kind, "session_id": self.session_id, "event_seq": seq}
            line = protocol.encode({**stamps, **(fields or {})})
            self._lines[seq] = line
            self._last = seq
            if self.emit is not None:
                self.emit(seq, line, protocol.EVENTS[kind].droppable)
        return seq

    def trim(self, first_seq: int) -> None:
        """Lose everything before this number."""
        self._first = first_seq

    def lose(self, seq: int) -> None:
        """Lose one in the middle."""
        del self._lines[seq]

    def line(self, seq: int) -> bytes:
        """As it was first sent."""
        return self._lines[seq]

    def read(self, after: int, until: int) -> Iterator[bytes]:
        """See EventLog."""
        for seq in range(max(after + 1, self._first), until + 1):
            line = self._lines.get(seq)
            if line is not None:
                yield line

    def legacy_replay(self) -> tuple[list[bytes], int]:
        """See EventLog; here simply everything."""
        last = self._last
        return list(self.read(0, last)), last
