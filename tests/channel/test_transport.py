"""The transports: bytes whole and in order, ends, and closing from another thread."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core import protocol
from otf_core.errors import RemoteProtocolError
from otf_core.testing import LoopbackListener
from otf_core.transport import StdioTransport, TcpTransport, Transport, memory_pair

Pair = tuple[Transport, Transport]


@contextlib.contextmanager
def tcp_pair() -> Iterator[Pair]:
    with LoopbackListener() as listener:
        ours = listener.dial()
        theirs = listener.accept()
        assert ours is not None
        assert theirs is not None
        try:
            yield ours, theirs
        finally:
            ours.close()
            theirs.close()


@contextlib.contextmanager
def in_memory() -> Iterator[Pair]:
    ours, theirs = memory_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@contextlib.contextmanager
def over_pipes() -> Iterator[Pair]:
    """Standard streams that are pipes, and their other end as a TCP-like pair of descriptors."""
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    ours = StdioTransport(stdin_r, stdout_w, null)
    theirs = StdioTransport(stdout_r, stdin_w, null)
    try:
        yield ours, theirs
    finally:
        theirs.close()  # the later one put its stand-in over the first one's
        ours.close()
        for fd in (stdin_r, stdin_w, stdout_r, stdout_w, null):
            os.close(fd)


@pytest.fixture(params=[tcp_pair, in_memory, over_pipes])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with request.param() as both:
        yield both


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run it beside the test; its result or its OSError."""
    got: list[object] = []

    def run() -> None:
        try:
            got.append(call())
        except OSError as error:
            got.append(error)

    thread = threading.Thread(target=run, name="beside")
    thread.start()
    return thread, got


def read_until(transport: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := transport.recv()):
        data += piece
    return data


def test_a_megabyte_arrives_as_it_was_sent(pair: Pair) -> None:
    ours, theirs = pair
    sent = bytes(range(256)) * 4096
    thread, _ = in_thread(lambda: ours.send(sent))
    assert read_until(theirs, len(sent)) == sent
    thread.join()


def test_closing_wakes_a_blocked_recv(pair: Pair) -> None:
    ours, _ = pair
    thread, got = in_thread(ours.recv)
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got == [b""] or isinstance(got[0], OSError)


def test_closing_wakes_a_send_to_one_that_does_not_read(pair: Pair) -> None:
    ours, _ = pair
    started = threading.Event()

    def send_forever() -> None:
        while True:
            started.set()
            ours.send(b"x" * 65536)

    thread, got = in_thread(send_forever)
    started.wait(10)
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(got[0], OSError)


def test_a_closed_one_refuses_and_may_be_closed_again(pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    ours.close()
    ours.finish()
    with pytest.raises(OSError):  # noqa: PT011 -- each kind has its own
        ours.send(b"x")
    with pytest.raises(OSError):  # noqa: PT011 -- each kind has its own
        ours.recv()


@pytest.mark.parametrize("make", [tcp_pair, in_memory])
def test_after_finish_the_other_side_reads_the_rest_then_an_end(
    make: Callable[[], contextlib.AbstractContextManager[Pair]],
) -> None:
    with make() as (ours, theirs):
        ours.send(b"last words\n")
        ours.finish()
        assert read_until(theirs, 100) == b"last words\n"
        theirs.send(b"heard")
        assert ours.recv() == b"heard"


def test_a_forked_child_that_abandons_leaves_the_connection_to_its_parent() -> None:
    with tcp_pair() as (ours, theirs):
        child = os.fork()
        if child == 0:  # pragma: no cover -- another process
            ours.abandon()
            ours.abandon()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        ours.send(b"still here")
        assert theirs.recv() == b"still here"


def test_an_abandoned_one_has_no_descriptor() -> None:
    with tcp_pair() as (ours, theirs):
        ours.abandon()
        ours.close()
        with pytest.raises(ConnectionAbortedError):
            ours.recv()
        assert theirs.recv() == b""
    ours, _ = memory_pair()
    ours.abandon()
    ours.send(b"the parent's")


def test_dialling_nobody_is_an_os_error_that_leaves_nothing_open() -> None:
    with LoopbackListener() as listener:
        port = listener.port
    with pytest.raises(ConnectionRefusedError):
        TcpTransport.dial("127.0.0.1", port, 1.0)
    assert listener.dial() is None
    assert listener.accept() is None


def test_a_port_that_connects_to_itself_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackListener() as listener:
        monkeypatch.setattr(socket.socket, "getsockname", socket.socket.getpeername)
        with pytest.raises(ConnectionRefusedError, match="ourselves"):
            TcpTransport.dial("127.0.0.1", listener.port, 1.0)


def test_a_name_without_an_address_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(ConnectionError, match=r"\[::9\]:1 has no address"):
        TcpTransport.dial("::9", 1, 1.0)


def test_stdio_sends_the_users_prints_to_standard_error_and_puts_it_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    error_r, error_w = os.pipe()
    before = sys.stdout
    transport = StdioTransport(stdin_r, stdout_w, error_w)
    print("by print")  # noqa: T201 -- what a user's script does
    os.write(stdout_w, b"by a library")
    transport.send(b'{"type":"hello"}\n')
    assert (transport.trusted, transport.writes_after_end) == (True, True)
    os.close(stdin_w)
    assert transport.recv() == b""
    transport.send(b"and after the end of stdin\n")
    transport.close()
    assert sys.stdout is before
    os.write(stdout_w, b"as before")
    assert os.read(stdout_r, 999) == b'{"type":"hello"}\nand after the end of stdin\nas before'
    assert os.read(error_r, 999) == b"by a library"
    assert capsys.readouterr().err == "by print\n"
    for fd in (stdin_r, stdout_r, stdout_w, error_r, error_w):
        os.close(fd)


def test_stdio_leaves_a_stdout_that_somebody_else_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with over_pipes() as (ours, _):
        theirs = sys.stderr
        monkeypatch.setattr(sys, "stdout", sys.__stderr__)
        ours.close()
        assert sys.stdout is sys.__stderr__
        assert theirs is sys.stderr


def test_an_abandoned_stdio_closes_its_descriptors_once() -> None:
    stdin_r, stdin_w = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    spare = os.dup(null)
    user = sys.stdout
    transport = StdioTransport(stdin_r, spare, null)
    transport.abandon()
    transport.abandon()
    transport.close()
    sys.stdout = user
    for fd in (stdin_r, stdin_w, null, spare):
        os.close(fd)


MESSAGES = st.lists(
    st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(), max_size=3),
    max_size=8,
)


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_messages(
    messages: list[dict[str, object]], cuts: list[int]
) -> None:
    stream = b"".join(protocol.encode(message) for message in messages)
    splitter = protocol.LineSplitter()
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    lines: list[bytes] = []
    for start, end in itertools.pairwise(bounds):
        for item in splitter.feed(stream[start:end]):
            assert not isinstance(item, RemoteProtocolError)
            lines.append(item)
    assert [protocol.decode_message(line) for line in lines] == messages
