"""The emitter: facts become lines, in one order.

Rule: ``event_seq`` is 1, 2, 3 … within a session, and journal and channel get the same bytes in
that order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from otf_core import protocol
from otf_core.errors import LocalProtocolError

Sink = Callable[[int, bytes, bool], None]  # seq, line, droppable; must not block


class Emitter:
    """Stamps and encodes events; any thread.

    Args:
        sinks: called in order under the emitter's lock, with ``(seq, line, droppable)``.
        clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        session_id: str,
        run_id: str,
        sinks: tuple[Sink, ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.session_id, self.run_id, self.run_gen = session_id, run_id, 0
        self._sinks, self._clock = sinks, clock
        self._lock = threading.Lock()
        self._seq = 0
        self._stamps = {"run_id": run_id, "run_gen": 0, "session_id": session_id}

    @property
    def last_seq(self) -> int:
        """The number of the last event, 0 before the first."""
        return self._seq

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Send one event; returns its ``event_seq``. Costs a few microseconds, never blocks.

        Args:
            kind: a journaled row of ``protocol.EVENTS``.
            fields: made plain by ``protocol.sanitise`` where JSON does not know them.
        """
        spec = protocol.EVENTS[kind]
        if not spec.journaled:
            msg = f"event {kind!r} was asked of the session; it belongs to a connection"
            raise LocalProtocolError(msg)
        with self._lock:
            seq = self._seq + 1
            line = protocol.encode(
                {
                    "type": kind,
                    **fields,
                    **self._stamps,
                    "ts": self._clock(),
                    "event_seq": seq,
                }
            )
            self._seq = seq
            for sink in self._sinks:
                sink(seq, line, spec.droppable)
        return seq
