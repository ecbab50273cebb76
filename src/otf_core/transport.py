"""Bytes to the other side and back: TCP, standard streams, and a pair in memory.

Rule 1: ``close`` may be called from any thread, more than once, and wakes whoever is blocked in
``send`` or ``recv``. A descriptor is closed only when nobody is inside a call on it, so that its
number cannot be given to somebody else's file in between.
Rule 2: ``abandon`` is for a forked child: it takes no lock, since the thread that held it is not
there, and does not shut the connection down, since it is the parent's.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TextIO

RECV_BYTES: Final = 64 * 1024
PIPE_BYTES: Final = 256 * 1024  # what a memory pair holds; about a loopback socket's buffers
_WRITE_BYTES: Final = select.PIPE_BUF  # what a pipe that polls as writable takes without blocking


class Transport(Protocol):
    """One connection, either end.

    Attributes:
        name: for messages, as in "127.0.0.1:47621".
        token: what the other side must know, None if it need not know any.
        legacy_allowed: whether the published extension may be served here.
        trusted: the other side is whoever started this process; it needs no handshake.
        writes_after_end: the end of what comes in is not the end of what goes out.
    """

    name: str
    token: str | None
    legacy_allowed: bool
    trusted: bool
    writes_after_end: bool

    def send(self, data: bytes) -> None:
        """Hand over all of it; blocks. Raises OSError when the connection is gone."""

    def recv(self) -> bytes:
        """What has come, b"" at the end; blocks. Raises OSError when the connection is gone."""

    def finish(self) -> None:
        """No more will be sent: the other side reads what is there, then an end. Any thread."""

    def close(self) -> None:
        """End it, and wake whoever is blocked in it; any thread, also twice."""

    def abandon(self) -> None:
        """In a forked child: close the descriptor, leave the connection to the parent."""


def at_fork(method: Callable[[], None]) -> None:
    """Call a bound method in every forked child, as long as its object lives."""
    reference: weakref.WeakMethod[Callable[[], None]] = weakref.WeakMethod(method)

    def in_child() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=in_child)


class _Closing:
    """Counts who is inside a call, so that the last one out closes the descriptors."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._gate:
            if self._closed:
                msg = "the connection was closed on this side"
                raise ConnectionAbortedError(msg)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._gate:
            self._inside -= 1
            last = self._closed and not self._inside
        if last:
            self._release()

    def close(self) -> None:
        """See Transport."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            last = not self._inside
        self._wake()
        if last:
            self._release()

    def _wake(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError


class TcpTransport(_Closing):
    """A TCP connection; see Transport."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        token: str | None = None,
        legacy_allowed: bool = True,
    ) -> None:
        super().__init__()
        self._sock = sock
        self.name, self.token, self.legacy_allowed = name, token, legacy_allowed
        self.trusted = self.writes_after_end = False

    @classmethod
    def dial(
        cls,
        host: str,
        port: int,
        timeout_s: float = 1.0,
        *,
        token: str | None = None,
        legacy_allowed: bool = True,
        opened: Callable[[TcpTransport], None] = lambda _: None,
    ) -> TcpTransport:
        """Connect; blocks for ``timeout_s`` at most for each address. Raises OSError.

        Args:
            opened: told of the transport before it connects, so that a child forked in the
                meantime can abandon it.
        """
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        error: OSError = ConnectionError(f"{name} has no address")
        for family, kind, proto, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, proto)
            transport = cls(sock, name=name, token=token, legacy_allowed=legacy_allowed)
            opened(transport)
            try:
                sock.settimeout(timeout_s)
                sock.connect(address)
                if sock.getsockname() == sock.getpeername():
                    # A closed port of the ephemeral range may be given to our own end.
                    msg = f"{name} is nobody but ourselves"
                    raise ConnectionRefusedError(msg)
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failed:
                transport.close()
                error = failed
            else:
                return transport
        raise error

    def send(self, data: bytes) -> None:
        """See Transport."""
        with self:
            self._sock.sendall(data)

    def recv(self) -> bytes:
        """See Transport."""
        with self:
            return self._sock.recv(RECV_BYTES)

    def finish(self) -> None:
        """See Transport."""
        try:
            with self:
                self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # gone already, which is an end as well

    def abandon(self) -> None:
        """See Transport."""
        self._closed = True
        fd = self._sock.detach()
        if fd >= 0:
            os.close(fd)

    def _wake(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # never connected, or the other side was first

    def _release(self) -> None:
        self._sock.close()


class StdioTransport(_Closing):
    """JSON lines on standard output, commands on standard input; see Transport.

    While it is open, everything else that writes to standard output (``print``, progress bars,
    child processes) goes to standard error instead, so that no line is torn; ``close`` puts that
    back. There is one such transport to a process, and it cannot be dialled again.
    """

    def __init__(self, read_fd: int = 0, write_fd: int = 1, divert_to_fd: int = 2) -> None:
        super().__init__()
        self.name, self.legacy_allowed = "stdio", False
        self.token: str | None = None
        self.trusted = self.writes_after_end = True
        self._read_fd, self._diverted_fd = read_fd, write_fd
        self._user_stdout: TextIO = sys.stdout
        self._user_stdout.flush()
        self._write_fd = os.dup(write_fd)
        self._wake_read_fd, self._wake_write_fd = os.pipe()
        os.dup2(divert_to_fd, write_fd)
        self._stand_in: Any = sys.stderr
        sys.stdout = self._stand_in

    def send(self, data: bytes) -> None:
        """See Transport."""
        view = memoryview(data)
        with self:
            while view:
                self._wait_for(self._write_fd, select.POLLOUT)
                view = view[os.write(self._write_fd, view[:_WRITE_BYTES]) :]

    def recv(self) -> bytes:
        """See Transport."""
        with self:
            self._wait_for(self._read_fd, select.POLLIN)
            return os.read(self._read_fd, RECV_BYTES)

    def finish(self) -> None:
        """See Transport; what was written is with the system already."""

    def abandon(self) -> None:
        """See Transport. The child goes on printing to standard error, as its parent does."""
        if not self._closed:
            self._closed = True
            for fd in (self._write_fd, self._wake_read_fd, self._wake_write_fd):
                os.close(fd)

    def _wait_for(self, fd: int, what: int) -> None:
        poll = select.poll()
        poll.register(fd, what)
        poll.register(self._wake_read_fd, select.POLLIN)
        if self._wake_read_fd in [ready for ready, _ in poll.poll()]:
            msg = "the standard streams were closed on this side"
            raise ConnectionAbortedError(msg)

    def _wake(self) -> None:
        os.write(self._wake_write_fd, b"x")

    def _release(self) -> None:
        if sys.stdout is self._stand_in:
            sys.stdout = self._user_stdout
        os.dup2(self._write_fd, self._diverted_fd)
        for fd in (self._write_fd, self._wake_read_fd, self._wake_write_fd):
            os.close(fd)


class _Pipe:
    """One direction of a memory pair: bounded, so that a peer that does not read blocks send."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._changed = threading.Condition(threading.Lock())
        self._ended = False  # no more will be written; what is held can still be read
        self._broken = False  # nobody reads any more

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._changed:
            while view:
                self._changed.wait_for(
                    lambda: self._ended or self._broken or len(self._held) < self._max_bytes
                )
                if self._ended or self._broken:
                    msg = "the other end of the memory pair is gone"
                    raise BrokenPipeError(msg)
                piece = view[: self._max_bytes - len(self._held)]
                self._held += piece
                view = view[len(piece) :]
                self._changed.notify_all()

    def read(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._ended or self._broken)
            if self._broken:
                msg = "the memory pair was closed on this side"
                raise ConnectionAbortedError(msg)
            data = bytes(self._held[:RECV_BYTES])
            del self._held[:RECV_BYTES]
            self._changed.notify_all()
            return data

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def break_off(self) -> None:
        with self._changed:
            self._broken = True
            self._held.clear()
            self._changed.notify_all()


class MemoryTransport:
    """One end of a pair in memory; see Transport and ``memory_pair``."""

    def __init__(
        self,
        read_from: _Pipe,
        write_to: _Pipe,
        *,
        name: str,
        token: str | None,
        legacy_allowed: bool,
    ) -> None:
        self._in, self._out = read_from, write_to
        self.name, self.token, self.legacy_allowed = name, token, legacy_allowed
        self.trusted = self.writes_after_end = False

    def send(self, data: bytes) -> None:
        """See Transport."""
        self._out.write(data)

    def recv(self) -> bytes:
        """See Transport."""
        return self._in.read()

    def finish(self) -> None:
        """See Transport."""
        self._out.end()

    def close(self) -> None:
        """See Transport."""
        self._out.end()
        self._in.break_off()

    def abandon(self) -> None:
        """See Transport; the child has a copy of its own and no descriptor."""


def memory_pair(
    *,
    max_bytes: int = PIPE_BYTES,
    name: str = "memory",
    token: str | None = None,
    legacy_allowed: bool = True,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of one connection within the process; any thread.

    Args:
        max_bytes: how much each direction holds before ``send`` blocks.
    """
    there, back = _Pipe(max_bytes), _Pipe(max_bytes)
    return (
        MemoryTransport(back, there, name=name, token=token, legacy_allowed=legacy_allowed),
        MemoryTransport(there, back, name=name, token=token, legacy_allowed=legacy_allowed),
    )
