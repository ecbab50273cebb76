"""The other end: a dashboard that a test drives line by line, and places to dial it at."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from otf_core import protocol
from otf_core.errors import RemoteProtocolError
from otf_core.transport import PIPE_BYTES, TcpTransport, Transport, memory_pair

PATIENCE_S: Final = 10.0
_T = TypeVar("_T")


class Listener(Protocol):
    """Where a dashboard under test can be dialled."""

    def dial(self) -> Transport | None:
        """The trainer's end of a new connection; ``SocketChannel`` takes it as ``dial``."""

    def accept(self, timeout_s: float | None = PATIENCE_S) -> Transport | None:
        """The dashboard's end of the next one; None when closed. Raises TimeoutError."""

    def close(self) -> None:
        """Nobody is in reach any more."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        """Close."""


class LoopbackListener:
    """A listening socket on 127.0.0.1; see Listener. Also a context manager.

    Args:
        token, legacy_allowed: what the trainer's end is told, see Transport.
        port: 0 takes any free one.
    """

    def __init__(
        self, *, token: str | None = None, legacy_allowed: bool = True, port: int = 0
    ) -> None:
        self._token, self._legacy_allowed = token, legacy_allowed
        self._sock = socket.create_server(("127.0.0.1", port))
        self.port: int = self._sock.getsockname()[1]

    def dial(self) -> Transport | None:
        """See Listener."""
        try:
            return TcpTransport.dial(
                "127.0.0.1", self.port, token=self._token, legacy_allowed=self._legacy_allowed
            )
        except OSError:
            return None

    def accept(self, timeout_s: float | None = PATIENCE_S) -> Transport | None:
        """See Listener."""
        try:
            self._sock.settimeout(timeout_s)
            sock, (host, port) = self._sock.accept()
        except TimeoutError:
            raise
        except OSError:
            return None
        sock.settimeout(None)
        return TcpTransport(sock, name=f"{host}:{port}")

    def close(self) -> None:
        """See Listener."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes accept, which closing alone does not
        except OSError:
            return  # closed before
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryListener:
    """The same without sockets; see Listener. Also a context manager.

    Args:
        token, legacy_allowed: what the trainer's end is told, see Transport.
        max_bytes: what each direction holds before ``send`` blocks.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        legacy_allowed: bool = True,
        max_bytes: int = PIPE_BYTES,
    ) -> None:
        self._token, self._legacy_allowed, self._max_bytes = token, legacy_allowed, max_bytes
        self._dialled: queue.SimpleQueue[Transport | None] = queue.SimpleQueue()
        self._open = True

    def dial(self) -> Transport | None:
        """See Listener."""
        if not self._open:
            return None
        ours, theirs = memory_pair(
            max_bytes=self._max_bytes, token=self._token, legacy_allowed=self._legacy_allowed
        )
        self._dialled.put(theirs)
        return ours

    def accept(self, timeout_s: float | None = PATIENCE_S) -> Transport | None:
        """See Listener."""
        try:
            return self._dialled.get(timeout=timeout_s)
        except queue.Empty:
            msg = f"nobody dialled within {timeout_s} s"
            raise TimeoutError(msg) from None

    def close(self) -> None:
        """See Listener."""
        self._open = False
        self._dialled.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.close()


class FakeDashboard:
    """An otf/1 dashboard that says and reads what a test tells it to; one test thread.

    Everything that came is kept: ``lines`` as bytes, ``messages`` as dicts, in order. ``expect``
    reads on from where the last one stopped. Also a context manager.

    Args:
        transport: the dashboard's end.
        patience_s: how long a read waits before it raises, in real seconds.
        reading: whether it reads at all, until ``read_on``.
    """

    def __init__(
        self, transport: Transport | None, *, patience_s: float = PATIENCE_S, reading: bool = True
    ) -> None:
        if transport is None:
            msg = "there is no transport: the listener was closed before anybody dialled"
            raise ValueError(msg)
        self.transport, self._patience_s = transport, patience_s
        self.lines: list[bytes] = []
        self.messages: list[dict[str, Any]] = []
        self.torn: list[bytes] = []  # lines that are no JSON object; there should be none
        self._at = 0
        self._ids = itertools.count(1)
        self._ended = False
        self._changed = threading.Condition(threading.Lock())
        self._may_read = threading.Event()
        if reading:
            self._may_read.set()
        self._thread = threading.Thread(target=self._read, name="fake-dashboard", daemon=True)
        self._thread.start()

    @classmethod
    def on(cls, listener: Listener, **options: Any) -> FakeDashboard:
        """Accept the next connection."""
        return cls(listener.accept(), **options)

    def send(
        self, cmd: str, payload: Mapping[str, Any] | None = None, *, request_id: str | None = None
    ) -> str:
        """Send a request; its id."""
        request_id = request_id or f"q-{next(self._ids)}"
        self.send_bytes(
            protocol.encode({"id": request_id, "cmd": cmd, "payload": dict(payload or {})})
        )
        return request_id

    def send_bytes(self, data: bytes) -> None:
        """Send anything at all."""
        self.transport.send(data)

    def reply_to(self, request_id: str) -> dict[str, Any]:
        """The reply with this id, when it has come."""

        def find() -> dict[str, Any] | None:
            return next((m for m in self.messages if m.get("id") == request_id and "ok" in m), None)

        return self._wait_for(find, f"no reply to {request_id!r}")

    def request(self, cmd: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        return self.reply_to(self.send(cmd, payload))

    def hello(self, **payload: Any) -> dict[str, Any]:
        """Say hello; the reply."""
        return self.request("hello", {"protocol": protocol.PROTOCOL, **payload})

    def expect(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """The next event of this type with these fields; others on the way are passed over."""

        def find() -> dict[str, Any] | None:
            while self._at < len(self.messages):
                message = self.messages[self._at]
                self._at += 1
                if message.get("type") == kind and fields.items() <= message.items():
                    return message
            return None

        return self._wait_for(find, f"no {kind} event with {fields}")

    def events(self) -> list[dict[str, Any]]:
        """All that came with an ``event_seq`` and is no replay of a range."""
        with self._changed:
            return [m for m in self.messages if "event_seq" in m and "replay" not in m]

    def seqs(self) -> list[int]:
        """Their numbers."""
        return [event["event_seq"] for event in self.events()]

    def wait_for_seq(self, seq: int) -> None:
        """Until the event of this number has come."""

        def find() -> bool:
            return any(m.get("event_seq") == seq for m in reversed(self.messages))

        self._wait_for(find, f"no event {seq}")

    def hold_reading(self) -> None:
        """Read no more after what is being read, as a process that hangs."""
        self._may_read.clear()

    def read_on(self) -> None:
        """Go on reading."""
        self._may_read.set()

    def expect_end(self) -> None:
        """Until the other side has hung up."""
        self._wait_for(lambda: self._ended, "no end of the connection")

    def close(self) -> None:
        """Hang up."""
        self._may_read.set()
        self.transport.close()
        self._thread.join(self._patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_for(self, find: Callable[[], _T | None], otherwise: str) -> _T:
        found: list[_T] = []

        def look() -> bool:
            one = find()
            if one:
                found.append(one)
            return bool(one)

        with self._changed:
            if not self._changed.wait_for(look, self._patience_s):
                last = self.messages[-3:]
                msg = f"{otherwise} within {self._patience_s} s; the last that came: {last}"
                raise TimeoutError(msg)
        return found[0]

    def _read(self) -> None:
        splitter = protocol.LineSplitter()
        try:
            while self._may_read.wait() and (data := self.transport.recv()):
                self._note([item for item in splitter.feed(data) if isinstance(item, bytes)])
        except OSError:
            pass
        self.transport.close()  # so does every dashboard: a trainer that ends waits for it
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _note(self, lines: list[bytes]) -> None:
        messages, torn = [], []
        for line in lines:
            try:
                messages.append(protocol.decode_message(line))
            except RemoteProtocolError:
                torn.append(line)
        with self._changed:
            self.lines += lines
            self.messages += messages
            self.torn += torn
            self._changed.notify_all()
