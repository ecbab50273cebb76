"""The trainers' end of the dashboard: accepts them, hears them out, relays commands; event loop.

Rule 1: a trainer is always read, whatever the pages do.
Rule 2: what is held is acknowledged, cumulatively; what is missing is fetched once.
Rule 3: a command is answered by its id. After a reconnection an open one is asked again with the
same id, which an otf/1 trainer answers as it answered first; an old trainer would do it twice, so
there it stays unknown.
Rule 4: a reset answers under another session than it was asked in; a connection knows the receipts
of all its sessions.
Rule 5: ``clean_disk`` and ``enforce_version`` are never sent unasked: the old trainer deletes the
user's files at the first and ends training at the second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from otf_core.dashboard.receipts import Receipt, ReceiptBook
from otf_core.dashboard.security import peer_is_ours
from otf_core.dashboard.store import FINAL, Change, Session, Store
from otf_core.errors import CommandError, ErrorCode, RemoteProtocolError
from otf_core.protocol import (
    ANSWERED_BY_CHANNEL,
    COMMANDS,
    MAX_LINE_BYTES,
    PROTOCOL,
    RELAYED,
    LineSplitter,
    decode_message,
    encode,
)

READ_BYTES: Final = 256 * 1024
MAX_UNSENT_BYTES: Final = 8 * 1024 * 1024  # to a trainer that does not read
ACK_EVERY: Final = 500
_CONNECTION_EVENTS: Final = frozenset({"hello", "accepted", "gap", "error", "ranks"})


def announce(text: str) -> None:
    """One line for the person at the terminal; stdout carries the URL only."""
    sys.stderr.write(f"otf dashboard: {text}\n")
    sys.stderr.flush()


@dataclasses.dataclass(frozen=True)
class HubTiming:
    """Seconds; tests make them short."""

    hello_wait_s: float = 0.5  # an old trainer says nothing first
    tick_s: float = 1.0


class Hub:
    """All trainers."""

    def __init__(
        self,
        store: Store,
        token: str,
        *,
        timing: HubTiming = HubTiming(),
        wall: Callable[[], float] = time.time,
        say: Callable[[str], None] = announce,
        load_journal: Callable[[str], Awaitable[None]] | None = None,
        load_run: Callable[[Path], Awaitable[None]] | None = None,
    ) -> None:
        self.store, self.token, self.timing, self.wall, self.say = store, token, timing, wall, say
        self.load_journal, self.load_run = load_journal, load_run
        self.receipt_watchers: set[Callable[[Session, Receipt], None]] = set()
        self._trainers: dict[str, Trainer] = {}
        self._books: dict[str, ReceiptBook] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen for trainers; the port that was got.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._accept, host, port, limit=READ_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Hang up on all; they go on training and dial again."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def read_run(self, run_dir: Path) -> None:
        """Have the journals of a run's other sessions read; goes on if its trainer is gone."""
        if self.load_run is not None:
            task = asyncio.ensure_future(self.load_run(run_dir))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def book(self, session_id: str) -> ReceiptBook:
        """The receipts of a session."""
        return self._books.setdefault(session_id, ReceiptBook())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if peer_is_ours(writer.get_extra_info("socket")):
                await Trainer(self, reader, writer).serve()
            else:
                self.say("a connection of another user was hung up on; it was given no token")
        except asyncio.CancelledError:
            if self._server is not None and self._server.is_serving():
                raise
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def send(
        self,
        session_id: str,
        cmd: str,
        payload: dict[str, Any],
        *,
        request_id: str | None = None,
        by: str = "rest",
        client: str | None = None,
    ) -> Receipt:
        """Relay a command; the receipt tells what becomes of it.

        Raises:
            CommandError: it was not sent: no such session or command, or nobody there to take it.
        """
        session = self.store.sessions.get(session_id)
        if session is None:
            known = sorted(self.store.sessions)[-20:]
            detail = (
                f"No session {session_id!r} is known here; there are {', '.join(known) or '-'}."
            )
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="session_id", allowed=known)
        book = self.book(session_id)
        known_receipt = book.find(request_id) if request_id else None
        if known_receipt is not None:
            return known_receipt
        if cmd in ANSWERED_BY_CHANNEL - RELAYED:
            detail = f"{cmd!r} is the dashboard's own business with the trainer; it is not relayed."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="cmd")
        if cmd not in COMMANDS:
            known = sorted(RELAYED)
            detail = f"{cmd[:60]!r} was asked; there are {', '.join(known)}."
            raise CommandError(ErrorCode.UNKNOWN_COMMAND, detail, field="cmd", allowed=known)
        trainer = self._trainers.get(session_id)
        if trainer is None or not session.connected:
            raise NotConnectedError(session)
        receipt = Receipt(request_id or str(uuid.uuid4()), cmd, payload, by, self.wall(), client)
        book.put(receipt, trainer.relay(receipt))
        self.note_receipt(session, receipt)
        return receipt

    def note_receipt(self, session: Session, receipt: Receipt) -> None:
        """Tell who watches that a receipt, and with it what is pending, has changed."""
        for watch in tuple(self.receipt_watchers):
            watch(session, receipt)
        self.store.changed(session, Change(session=True, urgent=True))

    def bind(self, trainer: Trainer, session: Session) -> None:
        """From now on this connection speaks for that session."""
        before = self._trainers.get(session.session_id)
        if before is not None and before is not trainer:
            before.hang_up()
        self._trainers[session.session_id] = trainer
        session.pending = self.book(session.session_id).pending
        session.connected, session.source = True, "live"
        self.store.changed(session, Change(session=True, urgent=True))

    def unbind(self, trainer: Trainer, session: Session) -> None:
        """The connection is gone."""
        if self._trainers.get(session.session_id) is trainer:
            self.leave(trainer, session)
            self.give_up(session)

    def leave(self, trainer: Trainer, session: Session) -> None:
        """The connection speaks for another session now; what is open may yet be answered."""
        if self._trainers.get(session.session_id) is trainer:
            del self._trainers[session.session_id]
            session.connected = False
            self.store.changed(session, Change(session=True, urgent=True))

    def give_up(self, session: Session) -> None:
        """No answer will come on this connection any more."""
        for receipt in self.book(session.session_id).open():
            if session.state in FINAL:
                detail = (
                    f"The run ended before it answered {receipt.cmd}; "
                    "whether it was applied is not known."
                )
                refusal = CommandError(ErrorCode.NOT_ALLOWED_NOW, detail).to_wire()
                receipt.settle({"id": receipt.id, "ok": False, **refusal}, self.wall())
            receipt.state = "unknown"
            self.note_receipt(session, receipt)


class NotConnectedError(CommandError):
    """The session is known, but no trainer is connected for it; nothing was sent."""

    def __init__(self, session: Session) -> None:
        state = session.shown_state
        name = session.run_name or session.run_id
        detail = (
            f"{name} ({session.session_id}) has no trainer connected ({state}); nothing was sent."
        )
        super().__init__(ErrorCode.NOT_ALLOWED_NOW, detail)


class Trainer:
    """One connection of a trainer."""

    def __init__(
        self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._hub, self._reader, self._writer = hub, reader, writer
        self._store = hub.store
        self._session: Session | None = None
        self._earlier: list[Session] = []  # those that a reset has ended on this connection
        self._splitter = LineSplitter(MAX_LINE_BYTES)
        self._own: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hello: dict[str, Any] = {}
        self._hello_said = False
        self._speaks_otf1 = False
        self._heard = asyncio.Event()
        self._cursor = 0  # the last number of the live stream on this connection
        self._streaming = False
        self._fetches: dict[str, _Fetch] = {}
        self._acked = 0
        self._garbage = 0
        self._seeds_sent = False
        self._version: str | None = None

    # -- the connection ---------------------------------------------------------------------------

    async def serve(self) -> None:
        """Read until the trainer is gone."""
        self._spawn(self._hello_without_event())
        try:
            while data := await self._reader.read(READ_BYTES):
                for line in self._splitter.feed(data):
                    if isinstance(line, RemoteProtocolError):
                        self._note_garbage(line)
                    else:
                        self._take_line(line)
                # Buffered data is read without a pause; the pages get their turn here.
                await asyncio.sleep(0)
        except OSError:
            pass  # reset by the trainer: the same as its end
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._session is not None:
                self._hub.unbind(self, self._session)
            for session in self._earlier:
                self._hub.give_up(session)

    def hang_up(self) -> None:
        """End this connection; its reader comes out of ``serve``."""
        self._writer.transport.abort()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _write(self, message: dict[str, Any]) -> int:
        line = encode(message)
        if not self._writer.transport.is_closing():
            self._writer.write(line)
        return len(line)

    def _ask(
        self, cmd: str, payload: dict[str, Any], then: Callable[[dict[str, Any]], None]
    ) -> str:
        request_id = str(uuid.uuid4())
        self._own[request_id] = then
        self._write({"id": request_id, "cmd": cmd, "payload": payload})
        return request_id

    def relay(self, receipt: Receipt) -> int:
        """Send a command of a client; how many bytes it has.

        Raises:
            CommandError: ``busy``, the trainer does not read.
        """
        unsent = self._writer.transport.get_write_buffer_size()
        if unsent > MAX_UNSENT_BYTES:
            detail = f"The trainer reads nothing; {unsent:,} bytes wait to be sent to it already."
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0)
        asked = {"id": receipt.id, "cmd": receipt.cmd, "payload": receipt.payload}
        if receipt.client is not None and self._speaks_otf1:
            asked["who"] = receipt.client
        return self._write(asked)

    def _note_garbage(self, error: Exception) -> None:
        self._garbage += 1
        if self._session is not None:
            self._session.lines_lost = True
        if self._garbage == 1:
            self._hub.say(f"a trainer sent a line that is no message, skipped: {str(error)[:200]}")

    # -- hello ------------------------------------------------------------------------------------

    async def _hello_without_event(self) -> None:
        try:
            async with asyncio.timeout(self._hub.timing.hello_wait_s):
                await self._heard.wait()
        except TimeoutError:
            await self._say_hello()

    async def _say_hello(self) -> None:
        if self._hello_said:
            return
        self._hello_said = True
        payload: dict[str, Any] = {"protocol": PROTOCOL, "client": "otf dashboard"}
        session_id = self._hello.get("session_id")
        if isinstance(session_id, str):
            if self._hub.load_journal is not None:
                await self._hub.load_journal(session_id)
            known = self._store.sessions.get(session_id)
            if known is not None:
                payload |= {"session_id": session_id, "last_seq": known.settled.contiguous}
                self._cursor, self._streaming = known.settled.contiguous, True
        if self._hello.get("token_required", bool(self._hello)):
            payload["token"] = self._hub.token
        self._ask("hello", payload, self._on_hello_reply)

    def _on_hello_reply(self, reply: dict[str, Any]) -> None:
        data = reply.get("data")
        if reply["ok"] and isinstance(data, dict) and isinstance(data.get("session_id"), str):
            self._begin_otf1(data)
        elif reply.get("code") == ErrorCode.UNAUTHORIZED:
            self._hub.say(f"a trainer refused this dashboard: {reply.get('detail')}")
        else:
            self._ask("server_info", {}, self._on_server_info)
            self._spawn(self._tick())

    def _begin_otf1(self, data: dict[str, Any]) -> None:
        session_id = data["session_id"]
        is_new = session_id not in self._store.sessions
        self._speaks_otf1 = True
        session = self._store.session(session_id)
        session.protocol = PROTOCOL
        self._take_identity(session, data)
        first = data.get("first_seq")
        if isinstance(first, int) and first > 1:
            session.settled.add(1, first - 1)
        self._bind(session)
        if is_new or not self._streaming:
            self._cursor = int(data.get("last_seq") or 0)
            self._ask("resume_from", {"seq": session.settled.contiguous}, self._on_stream_restart)
        for receipt in self._hub.book(session_id).open():
            receipt.state = "accepted" if receipt.accepted_ts else "sent"
            self.relay(receipt)
            self._hub.note_receipt(session, receipt)
        self._spawn(self._tick())

    def _on_stream_restart(self, reply: dict[str, Any]) -> None:
        data = reply.get("data")
        if reply["ok"] and isinstance(data, dict) and isinstance(data.get("from"), int):
            self._cursor = data["from"] - 1
        self._streaming = True

    def _take_identity(self, session: Session, data: dict[str, Any]) -> None:
        for name in ("version", "host", "device"):
            if isinstance(data.get(name), str):
                setattr(session, name, data[name])
        if isinstance(data.get("pid"), int):
            session.pid = data["pid"]
        if isinstance(data.get("capabilities"), list):
            session.capabilities = [str(item) for item in data["capabilities"]]
        if isinstance(data.get("project"), str) and data["project"]:
            self._store.name_project(session, data["project"])
        if isinstance(data.get("run_id"), str) and data["run_id"]:
            if session.run_id != data["run_id"] or not session.run_name:
                session.run_name = data["run_id"]
            session.run_id = data["run_id"]
        if isinstance(data.get("run_dir"), str):
            self._store.note_run_dir(session, data["run_dir"])
        if isinstance(data.get("state"), str):
            session.state = data["state"]
        if isinstance(data.get("last_seq"), int):
            session.known_last_seq = data["last_seq"]

    def _bind(self, session: Session) -> None:
        if self._session is not None and self._session is not session:
            self._hub.leave(self, self._session)
            self._earlier.append(self._session)
            if self._speaks_otf1:
                session.protocol = PROTOCOL
                for name in ("version", "host", "device", "pid", "capabilities"):
                    setattr(session, name, getattr(self._session, name))
            self._cursor = session.have.highest
            self._acked = 0
        self._session = session
        self._hub.bind(self, session)

    # -- an old trainer ---------------------------------------------------------------------------

    def _on_server_info(self, reply: dict[str, Any]) -> None:
        data = reply.get("data")
        if reply["ok"] and isinstance(data, dict):
            self._version = str(data.get("version"))
            if self._session is not None:
                self._take_identity(self._session, data | {"version": self._version})
                self._store.changed(self._session, Change(session=True))
        self._seed_counters()

    def _seed_counters(self) -> None:
        """Once, when version and run are known; the old host does so (Part 1, connecting)."""
        if self._speaks_otf1 or self._seeds_sent or self._version is None or self._session is None:
            return
        self._seeds_sent = True
        taken = [run.run_id for run in self._store.runs.values()]
        payload = {
            f"{kind}_counter_init": max(
                (int(m[1]) for name in taken if (m := re.fullmatch(rf"{kind}(\d+)", name))),
                default=0,
            )
            for kind in ("fork", "merge")
        }
        self._ask("set_counter_seeds", payload, lambda reply: None)  # noqa: ARG005 -- no matter

    # -- lines ------------------------------------------------------------------------------------

    def _take_line(self, line: bytes) -> None:
        try:
            message = decode_message(line)
        except RemoteProtocolError as error:
            self._note_garbage(error)
            return
        if "type" not in message and "event" in message:
            message["type"] = message.pop("event")
            line = encode(message).rstrip()
        if message.get("id") and isinstance(message.get("ok"), bool):
            self._take_reply(message, len(line))
            return
        kind = message.get("type")
        if not isinstance(kind, str):
            self._note_garbage(RemoteProtocolError(f"neither a reply nor an event: {line[:80]!r}"))
        elif kind in _CONNECTION_EVENTS:
            self._take_connection_event(kind, message, line)
        else:
            self._take_event(message, line)

    def _take_reply(self, reply: dict[str, Any], size: int) -> None:
        then = self._own.pop(str(reply["id"]), None)
        if then is not None:
            then(reply)
            return
        session, receipt = self._receipt_of(str(reply["id"]))
        if session is not None and receipt is not None and receipt.reply is None:
            if not self._speaks_otf1 and not reply["ok"]:
                reply = _modern_refusal(reply)
            receipt.settle(reply, self._hub.wall())
            self._hub.book(session.session_id).add_bytes(receipt, size)
            self._hub.note_receipt(session, receipt)

    def _receipt_of(self, request_id: str) -> tuple[Session | None, Receipt | None]:
        for session in filter(None, [self._session, *reversed(self._earlier)]):
            receipt = self._hub.book(session.session_id).find(request_id)
            if receipt is not None:
                return session, receipt
        return None, None

    def _take_connection_event(self, kind: str, event: dict[str, Any], line: bytes) -> None:
        session = self._session
        if kind == "hello":
            self._hello = event
            self._heard.set()
            self._spawn(self._say_hello())
        elif session is None:
            return
        elif kind == "accepted":
            asked_in, receipt = self._receipt_of(str(event.get("request_id")))
            if asked_in is not None and receipt is not None:
                receipt.accept(event, self._hub.wall())
                self._hub.note_receipt(asked_in, receipt)
        elif kind == "gap" and event.get("reason") == "trimmed":
            first, last = event.get("from"), event.get("to")
            if type(first) is int and type(last) is int and 0 < first <= last:
                session.settled.add(first, last)
                session.lines_lost = True
        elif kind == "ranks":
            self._store.note_ranks(session, line)
        elif kind == "error":
            self._store.feed_only(session, line)

    def _take_event(self, event: dict[str, Any], line: bytes) -> None:
        session = self._session_of(event)
        seq = event.get("event_seq")
        replay = event.get("replay") is True
        if self._speaks_otf1 and type(seq) is int and not replay:
            if seq > self._cursor + 1 and self._streaming:
                self._fetch(session, self._cursor + 1, seq - 1)
            self._cursor = max(self._cursor, seq)
        if replay:
            event.pop("replay")
        self._store.add(session, event, line)
        if replay and type(seq) is int:
            self._count_replayed(session, seq)
        if self._speaks_otf1 and session.settled.contiguous - self._acked >= ACK_EVERY:
            self._ack(session)
        if event.get("type") == "newRun":
            self._seed_counters()
        elif event.get("type") == "session_started" and session.run_dir is not None:
            self._hub.read_run(session.run_dir)

    def _session_of(self, event: dict[str, Any]) -> Session:
        """The session that an event belongs to; a reset starts another on the same connection."""
        session_id = event.get("session_id")
        current = self._session
        if current is not None and (
            not isinstance(session_id, str)
            or session_id == current.session_id
            or (self._speaks_otf1 and event.get("type") != "session_started")
        ):
            return current
        if not isinstance(session_id, str) or not session_id:
            session_id = f"unnamed-{uuid.uuid4().hex[:12]}"
        session = self._store.session(session_id)
        if self._version is not None:
            session.version = self._version
        self._bind(session)
        return session

    # -- holes ------------------------------------------------------------------------------------

    def _fetch(self, session: Session, first: int, last: int) -> None:
        for start, end in session.settled.missing(first, last):
            if any(f.first <= start and end <= f.last for f in self._fetches.values()):
                continue
            fetch = _Fetch(start, end)

            def then(reply: dict[str, Any], fetch: _Fetch = fetch) -> None:
                data = reply.get("data")
                count = data.get("count") if isinstance(data, dict) else None
                fetch.expected = count if reply["ok"] and isinstance(count, int) else 0
                self._close_fetches(session)

            request = {"seq": start - 1, "until": end}
            self._fetches[self._ask("resume_from", request, then)] = fetch

    def _count_replayed(self, session: Session, seq: int) -> None:
        for fetch in self._fetches.values():
            if fetch.first <= seq <= fetch.last:
                fetch.seen += 1
        self._close_fetches(session)

    def _close_fetches(self, session: Session) -> None:
        """What a finished fetch did not bring does not exist any more."""
        done = [
            key
            for key, fetch in self._fetches.items()
            if fetch.expected is not None and fetch.seen >= fetch.expected
        ]
        for key in done:
            fetch = self._fetches.pop(key)
            if session.settled.missing(fetch.first, fetch.last):
                session.lines_lost = True
                session.settled.add(fetch.first, fetch.last)

    # -- once a second ----------------------------------------------------------------------------

    async def _tick(self) -> None:
        asking: str | None = None
        while True:
            session = self._session
            if session is not None:
                if self._speaks_otf1:
                    self._ack(session)
                    if asking not in self._own:  # a trainer that does not answer is asked once
                        asking = self._ask("status", {}, self._on_status)
                else:
                    self._store.changed(session, Change(session=True))
            await asyncio.sleep(self._hub.timing.tick_s)

    def _ack(self, session: Session) -> None:
        upto = session.settled.contiguous
        if upto > self._acked:
            self._acked = upto
            self._write({"cmd": "ack", "payload": {"seq": upto}})

    def _on_status(self, reply: dict[str, Any]) -> None:
        session, data = self._session, reply.get("data")
        if session is None or not reply["ok"] or not isinstance(data, dict):
            return
        if data.get("session_id", session.session_id) != session.session_id:
            return  # of the session before a reset
        session.status, session.status_ts = data, self._hub.wall()
        device = data.get("device")
        self._take_identity(session, {k: v for k, v in data.items() if k != "device"})
        if isinstance(device, dict) and isinstance(device.get("name"), str):
            session.device = device["name"]
        for name, kinds in _STATUS_FIELDS.items():
            if name in data and (data[name] is None or isinstance(data[name], kinds)):
                setattr(session, name, data[name])
        if isinstance(data.get("step"), int):
            session.step = data["step"]
        if isinstance(data.get("last_checkpoint"), dict):
            session.note_last_checkpoint(data["last_checkpoint"])
        for name in ("params", "cadence"):
            if isinstance(data.get(name), list if name == "params" else dict):
                setattr(session, name, data[name])
        self._store.changed(session, Change(session=True))


_STATUS_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "reason": str,
    "epoch": int,
    "max_steps": int,
    "max_epochs": int,
    "exactness": str,
}


@dataclasses.dataclass
class _Fetch:
    first: int
    last: int
    seen: int = 0
    expected: int | None = None


def _modern_refusal(reply: dict[str, Any]) -> dict[str, Any]:
    """A refusal of an old trainer, which has no codes, in today's shape."""
    said = str(reply.get("error") or reply.get("detail") or "refused")
    is_unknown = said.startswith("Unknown cmd")
    guess = ErrorCode.UNSUPPORTED if is_unknown else ErrorCode.NOT_ALLOWED_NOW
    code = reply.get("code") or guess.value
    return reply | {"code": code, "error": code, "detail": said}
