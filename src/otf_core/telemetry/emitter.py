"""The emitter: facts become lines, in one order.

Rule 1: ``event_seq`` is 1, 2, 3 … within a session, and journal and channel get the same bytes in
that order.
Rule 2: an event that comes with every step is only noted by the training thread. It is made,
numbered and encoded by ``otf-emitter``, or by whoever emits the next one: the order is that in
which events were told.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from otf_core import protocol
from otf_core.errors import LocalProtocolError

GATHER_S: Final = 0.1  # what was told within this time is made in one go
MAX_WAITING: Final = 1000  # so many are left to the thread; then whoever tells one makes them

Sink = Callable[[int, bytes, bool], None]  # seq, line, droppable; must not block


class Emitter:
    """Stamps and encodes events; any thread.

    Works without ``start``: what is told later is then made by the next ``emit`` or ``drain``.

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
        self._stamps: dict[str, Any] = {}
        self._stamp()
        self._waiting: deque[tuple[str, float, Callable[[], Mapping[str, Any]]]] = deque()
        self._due, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._hear: list[Callable[[Mapping[str, Any]], None]] = []

    def listen(self, hear: Callable[[Mapping[str, Any]], None]) -> None:
        """Have ``hear`` called with every event from now on, as it was told and stamped.

        Args:
            hear: called under the emitter's lock; must not block, raise, or emit.
        """
        with self._lock:
            self._hear.append(hear)

    @property
    def last_seq(self) -> int:
        """The number of the last event, 0 before the first."""
        self.drain()
        return self._seq

    def begin_session(self, session_id: str, sinks: tuple[Sink, ...]) -> None:
        """A reset: ``event_seq`` counts from 1 again, into other sinks."""
        self.drain()
        with self._lock:
            self.session_id, self._sinks, self._seq = session_id, sinks, 0
            self.run_gen = 0
            self._stamp()

    def begin_run(self, run_id: str, run_gen: int) -> None:
        """What comes now is another run's."""
        self.drain()
        with self._lock:
            self.run_id, self.run_gen = run_id, run_gen
            self._stamp()

    def begin_generation(self, run_gen: int) -> None:
        """A rollback or a resume: what comes now supersedes what was told of later steps."""
        self.drain()
        with self._lock:
            self.run_gen = run_gen
            self._stamp()

    def _stamp(self) -> None:
        self._stamps = {
            "run_id": self.run_id,
            "run_gen": self.run_gen,
            "session_id": self.session_id,
        }

    def start(self) -> None:
        """Start the thread that makes what is told later."""
        self._thread = threading.Thread(target=self._run, name="otf-emitter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Make what is left and end the thread; may be called twice."""
        self._closing.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.drain()

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Send one event; returns its ``event_seq``. Costs some ten microseconds, never blocks.

        Args:
            kind: a journaled row of ``protocol.EVENTS``.
            fields: made plain by ``protocol.sanitise`` where JSON does not know them.
        """
        spec = _journaled(kind)
        with self._lock:
            self._make_waiting()
            return self._send(kind, spec.droppable, self._clock(), fields)

    def emit_later(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Send one event whose fields are not made here; for what comes with every step.

        It stands in the order, and has the time, of this call.

        Args:
            kind: a journaled row of ``protocol.EVENTS``.
            make: returns the fields; called once, on any thread, under the emitter's lock. Must
                not raise, and must not read what the training thread goes on changing.
        """
        self._waiting.append((kind, self._clock(), make))
        if len(self._waiting) >= MAX_WAITING:
            self.drain()
        elif not self._due.is_set():
            self._due.set()

    def drain(self) -> None:
        """Make what was told so far; any thread."""
        if self._waiting:
            with self._lock:
                self._make_waiting()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._due.wait()
            # Gathered: to be woken costs the training thread more than to note an event.
            self._closing.wait(GATHER_S)
            self._due.clear()
            self.drain()

    def _make_waiting(self) -> None:
        while self._waiting:
            kind, ts, make = self._waiting.popleft()
            self._send(kind, _journaled(kind).droppable, ts, make())

    def _send(self, kind: str, droppable: bool, ts: float, fields: Mapping[str, Any]) -> int:  # noqa: FBT001 -- private, as a sink takes it
        seq = self._seq + 1
        event = {"type": kind, **fields, **self._stamps, "ts": ts, "event_seq": seq}
        line = protocol.encode(event)
        self._seq = seq
        for sink in self._sinks:
            sink(seq, line, droppable)
        for hear in self._hear:
            hear(event)
        return seq


def _journaled(kind: str) -> protocol.EventSpec:
    spec = protocol.EVENTS[kind]
    if not spec.journaled:
        msg = f"event {kind!r} was asked of the session; it belongs to a connection"
        raise LocalProtocolError(msg)
    return spec
