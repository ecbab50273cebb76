"""The live feed of pages, ``/api/live``; event loop only.

Rule 1: a page pulls. What changed is noted as names and numbers, and is read from the store when
the page's socket takes more; a page that does not read costs its marks and nothing else.
Rule 2: events go out at most every ``BATCH_S``; receipts and state changes at once.
Rule 3: trainSteps go to those who subscribed to the session; other events to all. A page that has
fallen further behind than the feed holds is served from the store, its older trainSteps thinned
away (``left_out`` says how many), as after ``subscribe``.
How the ranks of a run fare goes to those alone, too: of it the newest, and only that.
Rule 4: what many pages are told is made once. Pages that are equally far get the same text.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from otf_core.dashboard import reading
from otf_core.dashboard.hub import Hub
from otf_core.dashboard.receipts import Receipt
from otf_core.dashboard.run import Run
from otf_core.dashboard.security import Access, HostCheck, Role, TooManyError, label
from otf_core.dashboard.store import Change, Session
from otf_core.errors import CommandError, ErrorCode

TOKEN_WAIT_S: Final = 5.0
BATCH_S: Final = 0.1
RUN_EVERY_S: Final = 1.0
ELSEWHERE_EVERY_S: Final = 5.0  # a session that a page has not subscribed to, if nothing is urgent
HISTORY_STEPS: Final = 6000  # trainSteps of a history; all of them come from the metrics endpoint
LINES_A_MESSAGE: Final = 2000
BYTES_A_MESSAGE: Final = 512 * 1024  # after the first line
MAX_DIRECT: Final = 2000  # answers that wait for a page
MAX_SHARED_BYTES: Final = 64 * 1024  # of a receipt; more goes to the page that asked for it
MAX_ID: Final = 200
UNAUTHORIZED: Final = 4401
TOO_MANY: Final = 4429
RECEIPTS_AT_START: Final = 20
RECEIPT_TEXTS: Final = 64

_encode = msgspec.json.Encoder().encode


class Live:
    """All pages.

    Args:
        build: what the page that is served now was built from; None if it was not built.
    """

    def __init__(
        self,
        hub: Hub,
        check: HostCheck,
        access: Access,
        version: str,
        build: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.hub, self.check, self.access = hub, check, access
        self.version, self.build = version, build
        self._pages: set[Page] = set()
        self._numbers = itertools.count(1)
        self._noted: dict[str, tuple[Session, Noted]] = {}
        self._sessions: dict[str, str] = {}
        self._runs: dict[tuple[str, str], str] = {}
        self._chunks: dict[tuple[str, bool], Chunk] = {}
        self._receipts: OrderedDict[tuple[int, str, bool], tuple[Receipt, str]] = OrderedDict()
        hub.store.watchers.add(self._on_change)
        hub.receipt_watchers.add(self._on_receipt)

    def _on_change(self, session: Session, change: Change) -> None:
        key = session.session_id
        if change.session:
            self._sessions.pop(key, None)
        if change.run is not None:
            self._runs.pop(change.run.key, None)
        if not self._pages:
            return
        if not self._noted:
            # A flood costs the pages one mark for each turn of the loop, not one for each event.
            asyncio.get_running_loop().call_soon(self._mark_pages)
        _, noted = self._noted.setdefault(key, (session, Noted()))
        noted.session |= change.session
        noted.urgent |= change.urgent
        noted.ranks |= change.ranks
        noted.only_steps &= not (change.session or change.urgent)
        if change.run is not None:
            noted.runs.add(change.run.key)

    def _mark_pages(self) -> None:
        changes, self._noted = self._noted, {}
        for page in self._pages:
            for session, noted in changes.values():
                page.mark(session, noted)

    def _on_receipt(self, session: Session, receipt: Receipt) -> None:
        for page in self._pages:
            page.mark_receipt(session, receipt)

    async def serve(self, socket: WebSocket) -> None:
        """One page, until it is gone."""
        problem = self.check.problem(socket.headers.get("host"), socket.headers.get("origin"))
        if problem is not None:
            await socket.close()  # before accept: the handshake is answered 403
            return
        await socket.accept()
        try:
            first = await self._first(socket)
            try:
                role = self.access.enter(first.get("token"), _address(socket))
            except TooManyError as error:
                await socket.close(TOO_MANY, str(error))
                return
            if role is None:
                await socket.close(UNAUTHORIZED, "the first message must be the token")
                return
            name = label(first.get("client")) or f"page {next(self._numbers)}"
            page = Page(self, socket, name, reads_only=role is not Role.OWNER)
            async with self._listed(page):
                await page.receive()
        except WebSocketDisconnect:
            return

    async def _first(self, socket: WebSocket) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TOKEN_WAIT_S):
                return _object(await socket.receive_text())
        except (TimeoutError, KeyError):
            return {}

    @contextlib.asynccontextmanager
    async def _listed(self, page: Page) -> AsyncIterator[None]:
        self._pages.add(page)
        sender = asyncio.get_running_loop().create_task(page.send())
        try:
            yield
        finally:
            self._pages.discard(page)
            if not self._pages:
                self._chunks.clear()
                self._noted.clear()
                self._receipts.clear()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    # -- what several pages are told --------------------------------------------------------------

    def session_text(self, session: Session) -> str:
        """The message ``session``, as it was at its last change."""
        found = self._sessions.get(session.session_id)
        if found is None:
            found = _text({"kind": "session", "session": session.to_json()})
            self._sessions[session.session_id] = found
        return found

    def receipt_text(self, session_id: str, receipt: Receipt, *, asked: bool) -> str:
        """The message ``receipt``; for others than who asked without what is large."""
        key = (id(receipt), receipt.state, asked)
        found = self._receipts.get(key)
        if found is None or found[0] is not receipt:
            text = _receipt_text(session_id, receipt, asked=asked)
            self._receipts[key] = found = (receipt, text)
            if len(self._receipts) > RECEIPT_TEXTS:
                self._receipts.popitem(last=False)
        return found[1]

    def run_text(self, run: Run) -> str:
        """The message ``run``, as it was at its last change."""
        found = self._runs.get(run.key)
        if found is None:
            found = self._runs[run.key] = _text({"kind": "run", "run": run.to_json()})
        return found

    def chunk(self, session: Session, cursor: int, *, steps: bool) -> Chunk:
        """The feed's next lines after a cursor; there must be some."""
        key = (session.session_id, steps)
        found = self._chunks.get(key)
        if found is None or found.start != cursor:
            found = self._chunks[key] = _chunk(session, cursor, steps=steps)
        return found


@dataclasses.dataclass
class Noted:
    """What has changed of a session since the pages were marked last."""

    session: bool = False
    urgent: bool = False
    only_steps: bool = True
    ranks: bool = False
    runs: set[tuple[str, str]] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Lines of a session's feed, from one cursor to another, as one message; None for no line."""

    start: int
    end: int
    highest_seq: int
    text: str | None


def _chunk(session: Session, cursor: int, *, steps: bool) -> Chunk:
    newest_first = islice(reversed(session.feed), session.fed - cursor)  # its left end is far
    lines: list[bytes] = []
    count = size = highest = 0
    for seq, is_step, line in reversed(list(newest_first)):
        if steps or not is_step:
            if lines and size + len(line) > BYTES_A_MESSAGE:
                break
            lines.append(line)
            size += len(line)
        count, highest = count + 1, max(highest, seq)
        if len(lines) == LINES_A_MESSAGE:
            break
    text = None
    if lines:
        text = _events_text(session.session_id, lines)
    return Chunk(cursor, cursor + count, highest, text)


def _events_text(session_id: str, lines: Sequence[bytes]) -> str:
    head = _encode({"kind": "events", "session_id": session_id})[:-1]
    return (head + b',"events":[' + b",".join(lines) + b"]}").decode()


def _address(socket: WebSocket) -> str:
    return socket.client.host if socket.client is not None else ""


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(message: dict[str, Any]) -> str:
    return _encode(message).decode()


def _receipt_text(session_id: str, receipt: Receipt, *, asked: bool) -> str:
    said = receipt.to_json()
    text = _text({"kind": "receipt", "session_id": session_id, "receipt": said})
    if asked or len(text) <= MAX_SHARED_BYTES:
        return text
    reply = receipt.reply and receipt.reply | {"data": None}
    said |= {"payload": {}, "reply": reply, "left_out_bytes": len(text)}
    return _text({"kind": "receipt", "session_id": session_id, "receipt": said})


class Page:
    """One socket: what it has been told, and what it has yet to be told.

    Attributes:
        name: what it calls itself, or its number; others see it on what it has asked.
        reads_only: it came with the token of a watcher.
    """

    def __init__(self, live: Live, socket: WebSocket, name: str, *, reads_only: bool) -> None:
        self._live, self._hub, self._store, self._socket = live, live.hub, live.hub.store, socket
        self.name, self.reads_only = name, reads_only
        self._sessions: set[str] = set()
        self._elsewhere: set[str] = set()  # not urgent, and not subscribed to
        self._runs: set[tuple[str, str]] = set()
        self._runs_elsewhere: set[tuple[str, str]] = set()
        self._events: set[str] = set()
        self._ranks: set[str] = set()  # told anew of their ranks
        self._receipts: dict[str, tuple[str, Receipt]] = {}
        self._mine: deque[str] = deque(maxlen=MAX_DIRECT)  # ids of its own commands
        self._direct: deque[str] = deque()
        self._subscribed: set[str] = set()
        self._cursors = {key: session.fed for key, session in self._store.sessions.items()}
        self._seen_seq = {key: s.have.highest for key, s in self._store.sessions.items()}
        self._wake, self._urgent = asyncio.Event(), asyncio.Event()
        self._runs_due_s = self._elsewhere_due_s = 0.0

    def mark(self, session: Session, noted: Noted) -> None:
        """Note a change."""
        key = session.session_id
        near = key in self._subscribed
        if noted.ranks and near:
            self._ranks.add(key)
        if near or not noted.only_steps:
            self._events.add(key)
        if noted.session:
            known = key in self._cursors
            (self._sessions if near or noted.urgent or not known else self._elsewhere).add(key)
        (self._runs if near or noted.urgent else self._runs_elsewhere).update(noted.runs)
        self._wake.set()
        if noted.urgent:
            self._urgent.set()

    def mark_receipt(self, session: Session, receipt: Receipt) -> None:
        """Note a receipt; the newest state of each is sent."""
        self._receipts[receipt.id] = (session.session_id, receipt)
        if len(self._receipts) > MAX_DIRECT:  # it has not read for long, and asks when it is back
            del self._receipts[next(iter(self._receipts))]
        self._wake.set()
        self._urgent.set()

    async def receive(self) -> None:
        """Take what the page sends."""
        while True:
            try:
                message = _object(await self._socket.receive_text())
            except KeyError:
                self._not_understood("a binary message")
                continue
            match message:
                case {"kind": "ping"}:
                    t = message.get("t")
                    self._reply(
                        _text({"kind": "pong", "t": t if type(t) in (int, float) else None})
                    )
                case {"kind": "subscribe", "session_id": str(session_id)}:
                    after = message.get("after_seq")
                    self._subscribe(session_id, after if type(after) is int else 0)
                case {"kind": "unsubscribe", "session_id": str(session_id)}:
                    self._subscribed.discard(session_id)
                case {"kind": "command", "session_id": str(session_id), "cmd": str(cmd)}:
                    self._command(session_id, cmd, message)
                case {"kind": str(kind)}:
                    self._not_understood(f"a message of kind {kind[:40]!r}, or without its fields")
                case _:
                    self._not_understood("a message that is no JSON object with a kind")

    def _not_understood(self, what: str) -> None:
        detail = f"The page sent {what}; there are ping, subscribe, unsubscribe and command."
        self._reply(_text({"kind": "error", "code": "bad_payload", "detail": detail}))

    def _reply(self, text: str) -> None:
        # A page that asks and never reads is not worth keeping.
        if len(self._direct) > MAX_DIRECT:
            raise WebSocketDisconnect(1008)
        self._direct.append(text)
        self._wake.set()
        self._urgent.set()

    def _subscribe(self, session_id: str, after: int) -> None:
        if session_id not in self._store.sessions:
            self._not_understood(f"subscribe to session {session_id[:40]!r}, which is not known")
            return
        self._subscribed.add(session_id)
        self._seen_seq[session_id] = after
        self._cursors[session_id] = -1  # from the store first
        self._events.add(session_id)
        self._ranks.add(session_id)
        self._wake.set()
        self._urgent.set()

    def _command(self, session_id: str, cmd: str, message: dict[str, Any]) -> None:
        request_id, payload = message.get("id"), message.get("payload", {})
        request_id = request_id if isinstance(request_id, str) and request_id else None
        payload = {} if payload is None else payload
        try:
            receipt = self._send(session_id, cmd, payload, request_id)
        except CommandError as error:
            now = self._hub.wall()
            shown = (request_id or "")[:MAX_ID]
            receipt = Receipt(shown, cmd[:MAX_ID], {}, "page", now, self.name)
            receipt.settle({"id": shown, "ok": False, **error.to_wire()}, now)
            self._reply(_receipt_text(session_id[:MAX_ID], receipt, asked=True))
            return
        self._mine.append(receipt.id)
        self.mark_receipt(self._store.sessions[session_id], receipt)

    def _send(self, session_id: str, cmd: str, payload: Any, request_id: str | None) -> Receipt:
        if self.reads_only:
            detail = f"{cmd[:40]} was not sent: this page was opened with a link that only watches."
            raise CommandError(ErrorCode.UNAUTHORIZED, detail)
        if not isinstance(payload, dict):
            detail = f"payload was {type(payload).__name__}; allowed: an object."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="payload")
        if request_id is not None and len(request_id) > MAX_ID:
            detail = f"id has {len(request_id):,} characters; allowed: 1 to {MAX_ID}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="id")
        return self._hub.send(
            session_id, cmd, payload, request_id=request_id, by="page", client=self.name
        )

    # -- sending ----------------------------------------------------------------------------------

    async def send(self) -> None:
        """Tell the page what it has not been told, for ever."""
        await self._post(
            _text(
                {
                    "kind": "welcome",
                    "server_ts": self._hub.wall(),
                    "version": self._live.version,
                    "store": self._store.kept,
                    "build": self._live.build(),
                    "read_only": self.reads_only,
                    "client": self.name,
                    "sessions": [session.to_json() for session in self._store.sessions.values()],
                    "runs": [run.to_json() for run in self._store.runs.values()],
                }
            )
        )
        for session_id in list(self._store.sessions):
            for receipt in self._hub.book(session_id).newest(RECEIPTS_AT_START):
                await self._post(self._live.receipt_text(session_id, receipt, asked=False))
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._urgent.clear()
            await self._send_marked(loop.time())
            try:
                async with asyncio.timeout(BATCH_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass  # nothing urgent: the next batch

    async def _send_marked(self, now_s: float) -> None:
        while self._direct:
            await self._post(self._direct.popleft())
        events, self._events = self._events, set()
        for session_id in events:
            await self._send_events(session_id)
        ranks, self._ranks = self._ranks, set()
        for session_id in ranks & self._subscribed:
            line = self._store.sessions[session_id].ranks
            if line is not None:
                await self._post(_events_text(session_id, [line]))
        receipts, self._receipts = self._receipts, {}
        for session_id, receipt in receipts.values():
            asked = receipt.id in self._mine
            await self._post(self._live.receipt_text(session_id, receipt, asked=asked))
        sessions, self._sessions = self._sessions, set()
        runs: set[tuple[str, str]] = set()
        if now_s >= self._runs_due_s and self._runs:
            self._runs_due_s = now_s + RUN_EVERY_S
            runs, self._runs = self._runs, set()
        if now_s >= self._elsewhere_due_s and (self._elsewhere or self._runs_elsewhere):
            self._elsewhere_due_s = now_s + ELSEWHERE_EVERY_S
            sessions, self._elsewhere = sessions | self._elsewhere, set()
            runs, self._runs_elsewhere = runs | self._runs_elsewhere, set()
        for session_id in sessions:
            await self._post(self._live.session_text(self._store.sessions[session_id]))
        for key in runs:
            run = self._store.runs.get(key)
            if run is not None:
                await self._post(self._live.run_text(run))
        if self._runs or self._elsewhere or self._runs_elsewhere:
            self._wake.set()  # their time is not over

    async def _send_events(self, session_id: str) -> None:
        session = self._store.sessions.get(session_id)
        if session is None:
            return
        cursor = self._cursors.get(session_id, 0)
        behind = session.fed - cursor
        if cursor < 0 or behind > len(session.feed):
            await self._send_history(session)
        elif behind > 0:
            steps = session_id in self._subscribed
            chunk = self._live.chunk(session, cursor, steps=steps)
            self._cursors[session_id] = chunk.end
            seen = self._seen_seq.get(session_id, 0)
            self._seen_seq[session_id] = max(seen, chunk.highest_seq)
            if chunk.text is not None:
                await self._post(chunk.text)
        if self._cursors.get(session_id, 0) < session.fed:
            # More in the next round, so that no flood stands between a page and a receipt.
            self._events.add(session_id)
            self._wake.set()
            self._urgent.set()

    async def _send_history(self, session: Session) -> None:
        key = session.session_id
        after = self._seen_seq.get(key, 0)
        limit = HISTORY_STEPS if key in self._subscribed else 0
        self._cursors[key], self._seen_seq[key] = session.fed, session.have.highest
        events, left_out = await reading.history(self._store, session, after, limit)
        for at in range(0, max(1, len(events)), LINES_A_MESSAGE):
            await self._post(
                _text(
                    {
                        "kind": "events",
                        "session_id": key,
                        "events": events[at : at + LINES_A_MESSAGE],
                        "history": True,
                        "left_out": left_out if at == 0 else 0,
                    }
                )
            )

    async def _post(self, text: str) -> None:
        await self._socket.send_text(text)
