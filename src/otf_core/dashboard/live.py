"""The live feed of pages, ``/api/live``; event loop only.

Rule 1: a page pulls. What changed is noted as names and numbers, and is read from the store when
the page's socket takes more; a page that does not read costs its marks and nothing else.
Rule 2: events go out at most every ``BATCH_S``; receipts and state changes at once.
Rule 3: trainSteps go to those who subscribed to the session; other events to all. A page that has
fallen further behind than the feed holds is served from the store, its older trainSteps thinned
away (``left_out`` says how many), as after ``subscribe``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from otf_core.dashboard.hub import Hub
from otf_core.dashboard.receipts import Receipt
from otf_core.dashboard.security import HostCheck, token_fits
from otf_core.dashboard.store import Change, Session
from otf_core.errors import CommandError

TOKEN_WAIT_S: Final = 5.0
BATCH_S: Final = 0.1
RUN_EVERY_S: Final = 1.0
HISTORY_STEPS: Final = 6000  # trainSteps of a history; all of them come from the metrics endpoint
LINES_A_MESSAGE: Final = 2000
UNAUTHORIZED: Final = 4401
RECEIPTS_AT_START: Final = 20

_encode = msgspec.json.Encoder().encode


class Live:
    """All pages."""

    def __init__(self, hub: Hub, check: HostCheck, version: str) -> None:
        self.hub, self.check, self.version = hub, check, version
        self._pages: set[Page] = set()
        hub.store.watchers.add(self._on_change)
        hub.receipt_watchers.add(self._on_receipt)

    def _on_change(self, session: Session, change: Change) -> None:
        for page in self._pages:
            page.mark(session, change)

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
            if not await self._has_token(socket):
                await socket.close(UNAUTHORIZED, "the first message must be the token")
                return
            page = Page(self.hub, socket, self.version)
            async with self._listed(page):
                await page.receive()
        except WebSocketDisconnect:
            return

    async def _has_token(self, socket: WebSocket) -> bool:
        try:
            async with asyncio.timeout(TOKEN_WAIT_S):
                first = _object(await socket.receive_text())
        except (TimeoutError, KeyError):
            return False
        return token_fits(first.get("token"), self.hub.token)

    @contextlib.asynccontextmanager
    async def _listed(self, page: Page) -> AsyncIterator[None]:
        self._pages.add(page)
        sender = asyncio.get_running_loop().create_task(page.send())
        try:
            yield
        finally:
            self._pages.discard(page)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


def _object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Page:
    """One socket: what it has been told, and what it has yet to be told."""

    def __init__(self, hub: Hub, socket: WebSocket, version: str) -> None:
        self._hub, self._store, self._socket, self._version = hub, hub.store, socket, version
        self._sessions: set[str] = set()
        self._runs: set[tuple[str, str]] = set()
        self._events: set[str] = set()
        self._receipts: dict[str, tuple[str, Receipt]] = {}
        self._direct: deque[dict[str, Any]] = deque()
        self._subscribed: set[str] = set()
        self._cursors = {key: session.fed for key, session in self._store.sessions.items()}
        self._seen_seq = {key: s.have.highest for key, s in self._store.sessions.items()}
        self._wake, self._urgent = asyncio.Event(), asyncio.Event()
        self._runs_due_s = 0.0

    def mark(self, session: Session, change: Change) -> None:
        """Note a change."""
        key = session.session_id
        self._events.add(key)
        if change.session:
            self._sessions.add(key)
        if change.run is not None:
            self._runs.add(change.run.key)
        self._wake.set()
        if change.urgent:
            self._urgent.set()

    def mark_receipt(self, session: Session, receipt: Receipt) -> None:
        """Note a receipt; the newest state of each is sent."""
        self._receipts[receipt.id] = (session.session_id, receipt)
        self._wake.set()
        self._urgent.set()

    async def receive(self) -> None:
        """Take what the page sends."""
        while True:
            try:
                message = _object(await self._socket.receive_text())
            except KeyError:
                continue  # a binary message; the contract has none
            match message:
                case {"kind": "ping"}:
                    self._reply({"kind": "pong", "t": message.get("t")})
                case {"kind": "subscribe", "session_id": str(session_id)}:
                    after = message.get("after_seq")
                    self._subscribe(session_id, after if type(after) is int else 0)
                case {"kind": "command", "session_id": str(session_id), "cmd": str(cmd)}:
                    self._command(session_id, cmd, message)

    def _reply(self, message: dict[str, Any]) -> None:
        # A page that asks and never reads is not worth keeping.
        if len(self._direct) > LINES_A_MESSAGE:
            raise WebSocketDisconnect(1008)
        self._direct.append(message)
        self._wake.set()
        self._urgent.set()

    def _subscribe(self, session_id: str, after: int) -> None:
        self._subscribed.add(session_id)
        self._seen_seq[session_id] = after
        self._cursors[session_id] = -1  # from the store first
        self._events.add(session_id)
        self._wake.set()
        self._urgent.set()

    def _command(self, session_id: str, cmd: str, message: dict[str, Any]) -> None:
        request_id, payload = message.get("id"), message.get("payload")
        request_id = request_id if isinstance(request_id, str) and request_id else None
        payload = payload if isinstance(payload, dict) else {}
        try:
            receipt = self._hub.send(session_id, cmd, payload, request_id=request_id, by="page")
        except CommandError as error:
            now = self._hub.wall()
            receipt = Receipt(request_id or "", cmd, payload, "page", now)
            receipt.settle({"id": request_id, "ok": False, **error.to_wire()}, now)
        self._reply(_receipt_message(session_id, receipt))

    # -- sending ----------------------------------------------------------------------------------

    async def send(self) -> None:
        """Tell the page what it has not been told, for ever."""
        await self._post(
            {
                "kind": "welcome",
                "server_ts": self._hub.wall(),
                "version": self._version,
                "sessions": [session.to_json() for session in self._store.sessions.values()],
                "runs": [run.to_json() for run in self._store.runs.values()],
            }
        )
        for session_id in list(self._store.sessions):
            for receipt in self._hub.book(session_id).newest(RECEIPTS_AT_START):
                await self._post(_receipt_message(session_id, receipt))
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
        receipts, self._receipts = self._receipts, {}
        for session_id, receipt in receipts.values():
            await self._post(_receipt_message(session_id, receipt))
        sessions, self._sessions = self._sessions, set()
        for session_id in sessions:
            session = self._store.sessions[session_id]
            await self._post({"kind": "session", "session": session.to_json()})
        if self._runs and now_s >= self._runs_due_s:
            self._runs_due_s = now_s + RUN_EVERY_S
            runs, self._runs = self._runs, set()
            for key in runs:
                run = self._store.runs.get(key)
                if run is not None:
                    await self._post({"kind": "run", "run": run.to_json()})
        elif self._runs:
            self._wake.set()  # their second is not over

    async def _send_events(self, session_id: str) -> None:
        session = self._store.sessions.get(session_id)
        if session is None:
            return
        while True:
            cursor = self._cursors.get(session_id, 0)
            behind = session.fed - cursor
            if cursor < 0 or behind > len(session.feed):
                await self._send_history(session)
                continue
            if behind == 0:
                return
            start = len(session.feed) - behind
            chunk = list(islice(session.feed, start, start + LINES_A_MESSAGE))
            self._cursors[session_id] = cursor + len(chunk)
            seen = max(seq for seq, _, _ in chunk)
            self._seen_seq[session_id] = max(self._seen_seq.get(session_id, 0), seen)
            wanted = session_id in self._subscribed
            lines = [line for _, is_step, line in chunk if wanted or not is_step]
            if lines:
                head = _encode({"kind": "events", "session_id": session_id})[:-1]
                body = b",".join(lines)
                await self._socket.send_text((head + b',"events":[' + body + b"]}").decode())

    async def _send_history(self, session: Session) -> None:
        key = session.session_id
        after = self._seen_seq.get(key, 0)
        limit = HISTORY_STEPS if key in self._subscribed else 0
        events, left_out = self._store.history(session, after, limit)
        self._cursors[key], self._seen_seq[key] = session.fed, session.have.highest
        for at in range(0, max(1, len(events)), LINES_A_MESSAGE):
            await self._post(
                {
                    "kind": "events",
                    "session_id": key,
                    "events": events[at : at + LINES_A_MESSAGE],
                    "history": True,
                    "left_out": left_out if at == 0 else 0,
                }
            )

    async def _post(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(_encode(message).decode())


def _receipt_message(session_id: str, receipt: Receipt) -> dict[str, Any]:
    return {"kind": "receipt", "session_id": session_id, "receipt": receipt.to_json()}
