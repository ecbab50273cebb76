"""The channel between a run and its dashboard: two threads, one connection at a time.

Rule 1: the training thread hands a line over and goes on; it never touches the socket and never
waits for a lock that is held during I/O.
Rule 2: the order of events on the wire is the order of their ``event_seq``. Replies and events of
the connection go before waiting events. A stream is a cursor: what the outbox does not hold is
read from the log, so no event is lost, doubled or overtaken.
Rule 3: a dashboard that is not there, does not read, or is refused costs a few dials a minute and
one line on stderr for each change.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, Protocol

import msgspec

from otf_core import protocol
from otf_core.dialling import LONG_WAIT_S, LONGEST_LONG_WAIT_S, SHORTEST_S, Waits
from otf_core.errors import RemoteProtocolError
from otf_core.handshake import Desk, EventLog, Handshake, Link
from otf_core.outbox import MAX_BYTES, Gap, Item, Outbox
from otf_core.transport import Transport, at_fork

__all__ = ["Clock", "Desk", "EventLog", "Link", "SocketChannel", "SystemClock"]

BATCH_BYTES: Final = 256 * 1024  # handed to one send; a loopback socket takes about as much at once
QUIET_S: Final = 0.25  # between server_info and the first event on a legacy connection
PACE_S: Final = 0.005  # events that come within it go together, so a step wakes the writer less
LINGER_S: Final = 0.5  # for the other side to read the last lines before the socket is closed
JOIN_S: Final = 2.0  # for a thread whose connection was closed under it

Mode = Literal["none", "legacy", "otf/1"]


class Clock(Protocol):
    """Time as the writer sees it."""

    def now(self) -> float:
        """Seconds, monotonic."""

    def wait(self, wake: threading.Event, timeout_s: float | None) -> None:
        """Until the event is set or the time has passed."""


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wait(self, wake: threading.Event, timeout_s: float | None) -> None:
        """See Clock."""
        wake.wait(timeout_s)


def to_stderr(line: str) -> None:
    """One line for the person at the terminal; any thread."""
    sys.stderr.write(f"otf: {line}\n")
    sys.stderr.flush()


class SocketChannel:
    """Keeps one dashboard informed and listens to it.

    Args:
        dial: a connection, or None when nobody is in reach; called on otf-writer.
        desk: carries out what is not the connection's own business; called on otf-reader.
        log: the session's events; see EventLog.
        identity: the data of hello's reply but ``protocol``, ``last_seq`` and ``first_seq``.
        token: required of the other side where the transport brings none of its own.
        put_off: told of a host that is not to be dialled for so many seconds; without it nobody
            is dialled for so long.
        clock, waits, announce: time, the waits between dials, where to say what has changed.
        max_outbox_bytes: see Outbox.
        pace_s: see PACE_S; 0 sends each event at once.
    """

    def __init__(
        self,
        dial: Callable[[], Transport | None],
        desk: Desk,
        log: EventLog,
        *,
        identity: Callable[[], Mapping[str, Any]],
        token: str | None = None,
        put_off: Callable[[str, float], None] | None = None,
        clock: Clock | None = None,
        waits: Waits | None = None,
        announce: Callable[[str], None] = to_stderr,
        max_outbox_bytes: int = MAX_BYTES,
        pace_s: float = PACE_S,
    ) -> None:
        self._dial, self._desk, self._token, self._put_off = dial, desk, token, put_off
        self._clock = clock or SystemClock()
        self._waits = waits or Waits()
        self._announce = announce
        self._max_outbox_bytes, self._pace_s = max_outbox_bytes, pace_s
        self._outbox = Outbox(log.last_seq, max_bytes=max_outbox_bytes)
        # A reset starts another session; the old one's events go first. Usually there is one.
        self._sessions: deque[tuple[EventLog, Outbox]] = deque([(log, self._outbox)])
        self._handshake = Handshake(identity, lambda: self._sessions[-1][0], self._ack)
        self._acked_seq = 0
        self._wake = threading.Event()
        self._wants_events = False  # the writer sleeps, and an event is to wake it
        self._closing = self._stopped = self._abandoned = False
        self._link: Link | None = None
        self._links: queue.SimpleQueue[Link | None] = queue.SimpleQueue()
        self._said: tuple[str, str] = ("", "")
        self._threads: list[threading.Thread] = []
        # What follows is the writer's alone.
        self._dial_at_s = 0.0
        self._long_wait_s = LONG_WAIT_S
        self._had_stream = False
        self._reading: Iterator[tuple[list[Item], int]] | None = None
        self._replaying: Iterator[tuple[list[Item], int]] | None = None
        self._preface: deque[bytes] = deque()
        self._quiet_until_s: float | None = None
        self._legacy_begun = False
        self._events_at_s = 0.0
        at_fork(self.abandon_in_child)

    @property
    def mode(self) -> Mode:
        """What is spoken now; any thread."""
        link = self._link
        if link is None or link.closed:
            return "none"
        if link.otf1:
            return "otf/1"
        return "legacy" if link.legacy_served else "none"

    @property
    def connected(self) -> bool:
        """Whether a dashboard is there and has said who it is; any thread."""
        return self.mode != "none"

    @property
    def acked_seq(self) -> int:
        """Up to which event the other side has said that it has everything; any thread."""
        return self._acked_seq

    @property
    def dropped(self) -> int:
        """Events of this session that a slow reader got a gap for; any thread."""
        return self._outbox.dropped

    def start(self) -> None:
        """Start otf-reader and otf-writer; returns when both are up."""
        up = threading.Semaphore(0)
        for name, main in (("otf-reader", self._read_links), ("otf-writer", self._write_links)):
            thread = threading.Thread(target=self._run, args=(main, up), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        for _ in self._threads:
            up.acquire()

    def emit(self, seq: int, line: bytes, droppable: bool) -> None:  # noqa: FBT001 -- the hot path
        """Hand one event over, in order of ``seq`` and after the log has it; never blocks.

        Any thread, the training thread above all: no I/O, and no lock that is held during any.
        """
        if self._abandoned:
            return
        self._outbox.append(seq, line, droppable=droppable)
        if self._wants_events:
            self._wants_events = False
            self._wake.set()

    def begin_session(self, log: EventLog) -> None:
        """A reset: ``emit`` counts from 1 again, on the same connection; not beside an ``emit``."""
        outbox = Outbox(log.last_seq, max_bytes=self._max_outbox_bytes)
        self._acked_seq = 0
        self._sessions.append((log, outbox))
        self._outbox = outbox
        self._wake.set()

    def send_connection_event(self, message: Mapping[str, Any], link: Link | None = None) -> None:
        """An event without ``event_seq`` to this connection or the present one; any thread.

        Dropped when nobody is connected.
        """
        link = link or self._link
        if link is not None and not self._abandoned:
            link.event(message)

    def close(self, timeout_s: float = 1.5) -> None:
        """Send what is unsent, for so long at most, and end both threads; any thread, also twice.

        Where a dashboard was there before and is gone now, it is dialled again within that time.
        """
        if self._abandoned:
            return
        until_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        patience_s = [max(timeout_s, 0.0), LINGER_S]
        for thread, limit_s in zip(reversed(self._threads), patience_s, strict=False):
            thread.join(max(min(limit_s, until_s - time.monotonic()), 0.0))
        self._stopped = True
        link = self._link
        if link is not None:
            link.hang_up()
        self._links.put(None)
        self._wake.set()
        for thread in self._threads:
            thread.join(JOIN_S)
        link = self._link  # one that was dialled in the meantime
        if link is not None:
            link.hang_up()

    def abandon_in_child(self) -> None:
        """In a forked child: leave the connection to the parent. Takes no lock."""
        self._abandoned = True
        link = self._link
        if link is not None:
            link.transport.abandon()

    def _run(self, main: Callable[[], None], up: threading.Semaphore) -> None:
        up.release()
        main()

    def _fault(self) -> None:
        """Our own mistake, on a thread of ours: said, and never raised into anything."""
        self._announce(f"internal error; training goes on\n{traceback.format_exc()}")

    def _ack(self, seq: int) -> None:
        self._acked_seq = max(self._acked_seq, seq)

    # --- otf-reader: decodes, answers what is the connection's own, hands the rest to the desk ---

    def _read_links(self) -> None:
        while (link := self._links.get()) is not None:
            try:
                self._read(link)
            except OSError:
                link.hang_up()  # the connection broke; the writer sees to what comes next
            finally:
                self._guarded(partial(self._desk.lost, link))

    def _read(self, link: Link) -> None:
        splitter = protocol.LineSplitter()
        while data := link.transport.recv():
            for item in splitter.feed(data):
                link.drained.wait()  # an end that asks and does not read is not asked further
                if not link.finished:
                    self._guarded(partial(self._handle, item, link))
        if not link.transport.writes_after_end:
            link.hang_up()

    def _handle(self, item: bytes | RemoteProtocolError, link: Link) -> None:
        try:
            if isinstance(item, RemoteProtocolError):
                raise item
            request = protocol.decode_request(item)
        except RemoteProtocolError as error:
            self._desk.malformed(error, link)
            return
        if not self._handshake.handle(request, link):
            self._desk.receive(request, link)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 -- border of our own thread: training must not notice
            self._fault()
            text = "internal error in otf-reader; the traceback is on stderr"
            self.send_connection_event({"type": "error", "code": "internal", "text": text})

    # --- otf-writer: dials, sends ---

    def _write_links(self) -> None:
        goes_on = True
        while goes_on and not self._stopped:
            link = self._link
            try:
                goes_on = self._connect() if link is None else self._round(link)
            except Exception:  # noqa: BLE001 -- border of our own thread: training must not notice
                self._fault()
                if link is None:
                    self._dial_later(self._waits.next_s())
                else:
                    link.hang_up()
        link = self._link
        if link is not None:
            link.finished = True
            link.transport.finish()
        self._links.put(None)

    def _connect(self) -> bool:
        """Wait for the next dial, then dial; False when closing and there is nobody to flush to."""
        self._wake.clear()  # first, so that a close between the two is not slept through
        if self._closing and not self._had_stream:
            return False
        wait_s = self._dial_at_s - self._clock.now()
        if wait_s > 0:
            if not self._stopped:
                self._clock.wait(self._wake, wait_s)
            return True
        transport = self._dial()
        if transport is None:
            self._dial_later(self._waits.next_s())
            return True
        token = None if transport.trusted else transport.token or self._token
        link = Link(transport, token=token, wake=self._wake.set)
        greeting = self._handshake.greeting(link)
        if transport.trusted:
            link.reply_and_stream(greeting, self._sessions[-1][0], 0)
        else:
            link.reply(greeting)
        self._link = link
        self._links.put(link)
        return True

    def _dial_later(self, wait_s: float) -> None:
        self._dial_at_s = self._clock.now() + wait_s

    def _round(self, link: Link) -> bool:
        """Send what is there, or sleep; False when closing and everything was sent."""
        self._wake.clear()
        if link.closed:
            self._lost(link)
            return True
        leaving = link.unauthorized  # read first: its reply is in the lane by then
        data, restart = link.take_lane()
        if restart is not None:
            self._begin(*restart)
        if data:
            self._send(link, data)
        if leaving:
            self._see_off(link)
            return True
        self._say_who(link)
        if link.legacy and link.legacy_served:
            self._begin_legacy(link)
        if self._send_replay(link) or self._send_events(link) or data:
            return True
        if self._closing and self._all_sent(link):
            return False
        self._sleep()
        return True

    def _send(self, link: Link, data: bytes) -> None:
        try:
            link.transport.send(data)
        except OSError:
            link.hang_up()

    def _see_off(self, link: Link) -> None:
        """The refusal was sent: let the other side read it and hang up, then do so."""
        link.finished = True
        link.transport.finish()
        until_s = self._clock.now() + LINGER_S
        while not (link.closed or self._stopped) and self._clock.now() < until_s:
            self._wake.clear()
            if not link.closed:
                self._clock.wait(self._wake, until_s - self._clock.now())
        link.hang_up()

    def _begin(self, log: EventLog, after: int) -> None:
        """The stream starts, or starts anew, after this number."""
        self._reading = None
        self._preface.clear()
        while len(self._sessions) > 1 and self._sessions[0][0] is not log:
            self._sessions.popleft()
        self._sessions[0][1].begin(after)
        self._had_stream = True

    def _begin_legacy(self, link: Link) -> None:
        """Once a connection: the quiet time, then what an empty host is told first, then live."""
        if self._legacy_begun:
            return
        now_s = self._clock.now()
        if self._quiet_until_s is None:
            self._quiet_until_s = now_s + QUIET_S
        if now_s < self._quiet_until_s:
            return
        log = self._sessions[-1][0]
        lines, after = log.legacy_replay()
        self._begin(log, after)
        self._preface.extend(lines)
        self._legacy_begun = True
        link.release_waiting()

    def _send_replay(self, link: Link) -> bool:
        """A piece of a range that was asked for beside the stream."""
        if self._replaying is None:
            span = link.next_replay()
            if span is None:
                return False
            self._replaying = read_log(*span)
        items, _ = next(self._replaying, ([], 0))
        if not items:
            self._replaying = None
        self._send(link, b"".join(_as_replay(item) for item in items))
        return True

    def _send_events(self, link: Link) -> bool:
        """A batch of the stream, unless one has just gone."""
        if not self._closing and self._clock.now() < self._events_at_s:
            return False
        items = self._next_items()
        if not items:
            return False
        told = [item for item in items if link.otf1 or not isinstance(item, Gap)]
        data = b"".join(item.line() if isinstance(item, Gap) else item for item in told)
        self._send(link, data)
        if len(data) < BATCH_BYTES:
            self._events_at_s = self._clock.now() + self._pace_s
        return True

    def _next_items(self) -> list[Item]:
        if self._preface:
            return _some(self._preface)
        while True:
            log, outbox = self._sessions[0]
            if self._reading is None and (span := outbox.missing()) is not None:
                self._reading = read_log(log, *span)
            if self._reading is not None:
                items, cursor = next(self._reading, ([], 0))
                if items:
                    outbox.advance(cursor)
                    return items
                self._reading = None
                continue
            items = outbox.take(BATCH_BYTES)
            if items or outbox.pending or not self._next_session():
                return items

    def _next_session(self) -> bool:
        """All of one session was sent: on to the one after a reset, if there is one."""
        if len(self._sessions) == 1 or not self._sessions[0][1].streaming:
            return False
        self._sessions[1][1].begin(0)
        self._sessions.popleft()
        return True

    def _all_sent(self, link: Link) -> bool:
        """Whether this end has everything, once it has said what it is."""
        return (link.otf1 or self._legacy_begun) and not self._pending()

    def _pending(self) -> bool:
        if self._preface or self._replaying is not None or self._reading is not None:
            return True
        outbox = self._sessions[0][1]
        return outbox.pending or (outbox.streaming and len(self._sessions) > 1)

    def _sleep(self) -> None:
        """Until there is something to send."""
        now_s = self._clock.now()
        due_s = [self._events_at_s, self._quiet_until_s or 0.0]
        later_s = [due - now_s for due in due_s if due > now_s]
        if self._events_at_s <= now_s:
            # Said before looking once more, so that an event between the two wakes us.
            self._wants_events = True
            if self._pending():
                self._wants_events = False
                return
        if not self._stopped:
            self._clock.wait(self._wake, min(later_s, default=None))

    def _lost(self, link: Link) -> None:
        """The connection is over: say so, and wait before the next dial."""
        self._link = None
        for _, outbox in self._sessions:
            outbox.end()
        self._reading = self._replaying = self._quiet_until_s = None
        self._preface.clear()
        self._legacy_begun = False
        of_use = link.served and not link.unauthorized and not link.refused
        if of_use:
            self._waits.restart()
        wait_s = max(self._waits.next_s(), SHORTEST_S)
        if link.refused:
            self._say("refused", link, "does not want this version; it is left alone for long")
            if self._put_off is not None:
                self._put_off(link.name, self._long_wait_s)
            else:
                wait_s = self._long_wait_s
            self._long_wait_s = min(2 * self._long_wait_s, LONGEST_LONG_WAIT_S)
        elif link.unauthorized:
            self._say("unauthorized", link, "did not show the token of this run; not served")
        elif not link.served:
            self._say("busy", link, "hung up before it asked anything, as one that has a trainer "
                      "already does; trying again, quietly")  # fmt: skip
        else:
            self._say("lost", link, "is gone; training goes on, looking for a dashboard")
        self._dial_later(wait_s)

    def _say_who(self, link: Link) -> None:
        if link.otf1:
            self._say("otf/1", link, "is connected")
        elif self._legacy_begun:  # not before, since it may refuse our version in the meantime
            self._say("legacy", link, "is connected (VS Code)")

    def _say(self, state: str, link: Link, text: str) -> None:
        """One line for each change, none for more of the same."""
        if self._said != (state, link.name):
            self._said = (state, link.name)
            self._announce(f"dashboard {link.name} {text}")


class _Numbered(msgspec.Struct):
    """What is read of a line that was written by ourselves."""

    event_seq: int


_numbered = msgspec.json.Decoder(_Numbered)


def read_log(
    log: EventLog, after: int, until: int, *, max_bytes: int = BATCH_BYTES
) -> Iterator[tuple[list[Item], int]]:
    """Pieces of the log, each with the number of its last event; otf-writer.

    What the log has lost is a gap in its place. Ends after ``until``; no piece is empty.
    """
    items: list[Item] = []
    held, cursor = 0, after
    if after + 1 < log.first_seq:
        cursor = min(log.first_seq - 1, until)
        items.append(Gap(after + 1, cursor, "trimmed"))
    lines = log.read(cursor, until) if cursor < until else iter(())
    while True:
        try:
            line = next(lines, None)
        except OSError:
            line = None  # a disk that fails has lost the rest
        if line is None:
            break
        seq = _numbered.decode(line).event_seq
        if seq <= cursor:
            continue
        if seq > cursor + 1:
            items.append(Gap(cursor + 1, seq - 1, "trimmed"))
        items.append(line)
        held, cursor = held + len(line), seq
        if held >= max_bytes:
            yield items, cursor
            items, held = [], 0
    if cursor < until:
        items.append(Gap(cursor + 1, until, "trimmed"))
    if items:
        yield items, until


def _as_replay(item: Item) -> bytes:
    line = item.line() if isinstance(item, Gap) else item
    return line.rstrip()[:-1] + b',"replay":true}\n'


def _some(lines: deque[bytes]) -> list[Item]:
    """Off the front, up to about a batch."""
    some: list[Item] = []
    held = 0
    while lines and held < BATCH_BYTES:
        line = lines.popleft()
        some.append(line)
        held += len(line)
    return some
