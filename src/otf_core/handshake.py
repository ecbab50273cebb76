"""A connection as the run sees it, and the commands that belong to the connection itself.

Rule 1: a connection is otf/1 once ``hello`` was answered with ok, legacy until then.
Rule 2: replies and events of the connection have a lane of their own, which is sent before waiting
events and never dropped from.
Rule 3: nothing of the run goes to an end that should know a token and has not shown it.
"""

from __future__ import annotations

import hmac
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from otf_core import protocol
from otf_core.errors import CommandError, ErrorCode, RemoteProtocolError
from otf_core.transport import Transport

MAX_LANE_BYTES: Final = 64 * 1024 * 1024  # answers to an end that asks and does not read
MAX_REPLAYS: Final = 16  # ranges asked for with ``until`` that wait for their turn


class Desk(Protocol):
    """Who carries requests out; ``ControlBus`` in production. Called on otf-reader."""

    def receive(self, request: protocol.Request, link: Link) -> None:
        """One request; answered exactly once by ``link.reply``, now or later."""

    def malformed(self, error: RemoteProtocolError, link: Link) -> None:
        """A line that is no request; the connection is kept."""

    def lost(self, link: Link) -> None:
        """The connection is over; called once for each that was made."""


class EventLog(Protocol):
    """The events of the session as they were first sent; ``Journal`` in production. Any thread.

    An event is in the log before it is emitted, and is read whether it is on disk yet or not.
    """

    @property
    def first_seq(self) -> int:
        """The number of the oldest event that there still is; ``last_seq`` + 1 for none."""

    @property
    def last_seq(self) -> int:
        """The number of the newest event; 0 for none."""

    def read(self, after: int, until: int) -> Iterator[bytes]:
        """The lines numbered after+1 to until, in order, each with its LF."""

    def legacy_replay(self) -> tuple[list[bytes], int]:
        """What an empty legacy host is told first, and the number after which it goes on live.

        Called once for each legacy connection.
        """


class Link:
    """One connection; any thread may use it, and nothing here ever blocks.

    Args:
        token: what the other side must show, None if nothing.
        wake: called when there is something to send or the connection is over.
    """

    def __init__(
        self, transport: Transport, *, token: str | None, wake: Callable[[], None]
    ) -> None:
        self.transport, self.token, self._wake = transport, token, wake
        self.name = transport.name
        self.otf1 = transport.trusted
        self.legacy_served = False  # server_info was answered, and the end may have events
        self.served = False  # it made a request
        self.refused = False  # it wants no trainer of our version
        self.unauthorized = False
        self.finished = False  # nothing more will be sent
        self.drained = threading.Event()  # the lane is short enough to read on
        self.drained.set()
        self._lock = threading.Lock()
        self._closed = False
        self._lane: deque[bytes] = deque()
        self._lane_bytes = 0
        self._waiting: list[bytes] | None = []  # events until a legacy stream begins
        self._restart: tuple[EventLog, int] | None = None
        self._replays: deque[tuple[EventLog, int, int]] = deque()

    @property
    def legacy(self) -> bool:
        """Whether the other side is the published extension, as far as it has said."""
        return not self.otf1

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed

    def reply(self, line: bytes) -> None:
        """Send a line before all waiting events; dropped if the connection is gone."""
        with self._lock:
            self._put(line)
        self._wake()

    def event(self, message: Mapping[str, Any]) -> None:
        """Send an event of the connection, without ``event_seq``.

        On a legacy connection ``accepted`` and ``gap`` are not sent, and what comes before its
        stream begins waits for that.
        """
        spec = protocol.EVENTS.get(str(message.get("type")))
        if self.legacy and spec is not None and not spec.legacy:
            return
        line = protocol.encode(message)
        with self._lock:
            if self.legacy and self._waiting is not None:
                self._waiting = [*self._waiting[-99:], line]
                return
            self._put(line)
        self._wake()

    def hang_up(self) -> None:
        """End the connection at once; what was not sent is gone."""
        self._closed = True
        self.transport.close()
        self.drained.set()
        self._wake()

    def take_lane(self) -> tuple[bytes, tuple[EventLog, int] | None]:
        """All that waits in the lane, and where the stream is to start anew; otf-writer.

        Both at once, so that the reply to ``resume_from`` comes before what it brings.
        """
        with self._lock:
            data = b"".join(self._lane)
            self._lane.clear()
            self._lane_bytes = 0
            restart, self._restart = self._restart, None
        self.drained.set()
        return data, restart

    def release_waiting(self) -> None:
        """The legacy stream begins: what waited for it goes on the lane; otf-writer."""
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
            for line in waiting:
                self._put(line)

    def reply_and_stream(self, line: bytes, log: EventLog, after: int) -> None:
        """Send a line, then everything of this log after this number."""
        with self._lock:
            self._put(line)
            self._restart = (log, after)
        self._wake()

    def replay(self, line: bytes, log: EventLog, after: int, until: int) -> bool:
        """Send a reply, then a range beside the stream; False when too many wait already."""
        with self._lock:
            if len(self._replays) >= MAX_REPLAYS:
                return False
            self._put(line)
            self._replays.append((log, after, until))
        self._wake()
        return True

    def next_replay(self) -> tuple[EventLog, int, int] | None:
        """The next range to send beside the stream; otf-writer."""
        with self._lock:
            return self._replays.popleft() if self._replays else None

    def serve_legacy(self) -> None:
        """``server_info`` was answered: events may come, after the quiet time."""
        self.legacy_served = True
        self._wake()

    def refuse_token(self) -> None:
        """``hello`` was refused: the connection ends when that was sent."""
        self.unauthorized = True
        self._wake()

    def become_otf1(self) -> None:
        """``hello`` was accepted; what waited for a legacy stream is for nobody."""
        self.otf1 = True
        with self._lock:
            self._waiting = None

    def _put(self, line: bytes) -> None:
        if not self._closed:
            self._lane.append(line)
            self._lane_bytes += len(line)
            if self._lane_bytes > MAX_LANE_BYTES:
                self.drained.clear()


class Handshake:
    """Answers what belongs to the connection, and lets nobody else's requests pass; otf-reader.

    Args:
        identity: the data of hello's reply but ``protocol``, ``last_seq`` and ``first_seq``.
        log: the session's events, asked for anew each time, as a reset starts another.
        acked: told the number up to which the other side has everything.
    """

    def __init__(
        self,
        identity: Callable[[], Mapping[str, Any]],
        log: Callable[[], EventLog],
        acked: Callable[[int], None],
    ) -> None:
        self._identity, self._log, self._acked = identity, log, acked

    def greeting(self, link: Link) -> bytes:
        """The event ``hello``, the first line on a connection; otf-writer."""
        who = self._identity()
        return protocol.encode(
            {
                "type": "hello",
                "protocol": protocol.PROTOCOL,
                "version": who.get("version"),
                "session_id": who.get("session_id"),
                "pid": who.get("pid"),
                "token_required": link.token is not None,
            }
        )

    def handle(self, request: protocol.Request, link: Link) -> bool:
        """Answer the request if it is the connection's own or may not be made; else False."""
        link.served = True
        try:
            self._check(request, link)
            if request.cmd not in protocol.ANSWERED_BY_CHANNEL:
                return False
            self._answer(request, protocol.decode_payload(request), link)
        except CommandError as error:
            self._refuse(request, error, link)
        return True

    def _check(self, request: protocol.Request, link: Link) -> None:
        if link.otf1 or request.cmd in ("hello", "server_info", "enforce_version"):
            return
        if link.token is not None:
            detail = f"{request.cmd} was asked before hello with the token that this run has."
            raise CommandError(ErrorCode.UNAUTHORIZED, detail)
        if not link.transport.legacy_allowed:
            detail = (
                f"{request.cmd} was asked before hello; a dashboard of the older protocol is "
                f"served on this user's loopback only, and this is {link.name}."
            )
            raise CommandError(ErrorCode.UNAUTHORIZED, detail)

    def _answer(self, request: protocol.Request, payload: Any, link: Link) -> None:
        answers: dict[str, Callable[[protocol.Request, Any, Link], None]] = {
            "hello": self._hello,
            "server_info": self._server_info,
            "enforce_version": self._enforce_version,
            "ack": self._ack,
            "resume_from": self._resume_from,
        }
        answers[request.cmd](request, payload, link)

    def _hello(self, request: protocol.Request, payload: protocol.Hello, link: Link) -> None:
        if payload.protocol != protocol.PROTOCOL:
            detail = f"Protocol {payload.protocol!r} was asked; this run speaks otf/1."
            raise CommandError(
                ErrorCode.UNSUPPORTED, detail, field="protocol", allowed=[protocol.PROTOCOL]
            )
        if link.token is not None and not _same(link.token, payload.token):
            said = "no token" if payload.token is None else "another token"
            detail = (
                f"hello came with {said}; allowed: the one of the rendezvous file or OTF_TOKEN."
            )
            raise CommandError(ErrorCode.UNAUTHORIZED, detail, field="token")
        who, log = self._identity(), self._log()
        last = log.last_seq
        data = {
            **who,
            "protocol": protocol.PROTOCOL,
            "last_seq": last,
            "first_seq": log.first_seq,
        }
        # Asked a second time without saying from where, the stream goes on as it is.
        after = None if link.otf1 else last
        if payload.last_seq is not None and payload.session_id == who.get("session_id"):
            after = min(max(payload.last_seq, 0), last)
        link.become_otf1()
        line = b"" if request.id is None else protocol.reply_ok(request.id, data)
        if after is None:
            link.reply(line)
        else:
            link.reply_and_stream(line, log, after)

    def _server_info(self, request: protocol.Request, _payload: Any, link: Link) -> None:
        who = self._identity()
        data = {
            "version": legacy_version(str(who.get("version", ""))),
            "capabilities": who.get("capabilities", []),
            "device": who.get("device"),
        }
        if request.id is not None:
            link.reply(protocol.reply_ok(request.id, data))
        if not link.otf1 and link.token is None and link.transport.legacy_allowed:
            link.serve_legacy()

    def _enforce_version(
        self, request: protocol.Request, payload: protocol.EnforceVersion, link: Link
    ) -> None:
        link.refused = True
        message = payload.message or f"version {payload.required} is required"
        if request.id is not None:
            data = {"status": "fatal", "message": message}
            link.reply(protocol.reply_ok(request.id, data))

    def _ack(self, _request: protocol.Request, payload: protocol.Ack, link: Link) -> None:
        if link.otf1:
            self._acked(min(payload.seq, self._log().last_seq))

    def _resume_from(
        self, request: protocol.Request, payload: protocol.ResumeFrom, link: Link
    ) -> None:
        log = self._log()
        first, last = log.first_seq, log.last_seq
        after, until = payload.seq, last if payload.until is None else min(payload.until, last)
        if not link.otf1:
            detail = "resume_from was asked before hello; allowed: after hello was answered."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        if not 0 <= after <= last:
            detail = f"seq {after} was asked; allowed: 0 to {last}, the last event."
            allowed = {"min": 0, "max": last}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="seq", allowed=allowed)
        if until < after:
            detail = (
                f"until {payload.until} was asked with seq {after}; allowed: {after} to {last}."
            )
            allowed = {"min": after, "max": last}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="until", allowed=allowed)
        start = max(after + 1, first)
        data = {
            "from": start,
            "to": until,
            "count": max(until - start + 1, 0),
            "complete": after + 1 >= first,
        }
        line = b"" if request.id is None else protocol.reply_ok(request.id, data)
        if payload.until is None:
            link.reply_and_stream(line, log, after)
        elif not link.replay(line, log, after, until):
            detail = f"{MAX_REPLAYS} ranges wait to be sent, which is all that can wait."
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0)

    def _refuse(self, request: protocol.Request, error: CommandError, link: Link) -> None:
        if request.cmd == "ack":
            return  # never answered; one that is wrong frees nothing
        if request.id is not None:
            link.reply(protocol.reply_error(request.id, error, legacy=link.legacy))
        else:
            said = {"type": "error", "code": error.code.value, "text": error.detail}
            link.event({**said, "request_id": None})
        if request.cmd == "hello" and error.code is ErrorCode.UNAUTHORIZED:
            link.refuse_token()


def _same(token: str, shown: str | None) -> bool:
    """Compared in constant time, as bytes, since text must be ASCII for that."""
    return hmac.compare_digest(token.encode(), (shown or "").encode("utf-8", "surrogatepass"))


def legacy_version(own: str) -> str:
    """The version for a legacy host: ours, or 0.1.4 if that is higher."""
    return own if _numbers(own) > _numbers(protocol.LEGACY_VERSION) else protocol.LEGACY_VERSION


def _numbers(version: str) -> tuple[int, ...]:
    """The first dotted numbers in it, filled up to three, as that host reads it."""
    found = re.search(r"\d+(?:\.\d+)*", version)
    numbers = [int(n) for n in found.group().split(".")] if found else []
    return tuple([*numbers, 0, 0, 0][:3])
