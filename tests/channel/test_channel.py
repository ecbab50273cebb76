"""The channel's own promises: emit never waits, close is bounded, a child inherits nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from otf_core import channel, handshake
from otf_core.channel import SocketChannel, SystemClock, read_log
from otf_core.dialling import Waits
from otf_core.handshake import legacy_version
from otf_core.outbox import Gap
from otf_core.testing import (
    FakeDashboard,
    HurriedClock,
    LoopbackListener,
    ManualClock,
    MemoryListener,
    MemoryLog,
)
from otf_core.transport import StdioTransport, Transport, memory_pair
from tests.channel.rig import EchoDesk, Rig

OURS = {"otf-reader", "otf-writer"}


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & OURS


class Stalled:
    """A transport whose send blocks until it is closed, and which never says anything."""

    name, legacy_allowed = "stalled", True
    token: str | None = None
    trusted = True  # so that the stream begins at once
    writes_after_end = False

    def __init__(self) -> None:
        self.sending, self.closed = threading.Event(), threading.Event()

    def send(self, data: bytes) -> None:
        self.sending.set()
        self.closed.wait()
        raise BrokenPipeError

    def recv(self) -> bytes:
        self.closed.wait()
        return b""

    def finish(self) -> None:
        """Nothing to finish."""

    def close(self) -> None:
        self.closed.set()

    def abandon(self) -> None:
        """Nothing to abandon."""


def test_start_returns_when_both_threads_are_up_and_close_joins_them() -> None:
    with MemoryListener() as listener:
        rig = Rig(listener)
        assert our_threads() == OURS
        rig.channel.close(0.05)
        assert our_threads() == set()
        rig.channel.close()
    never_started = SocketChannel(listener.dial, EchoDesk(), MemoryLog(), identity=dict)
    never_started.close()


def test_emit_does_not_wait_for_a_send_that_never_returns_and_close_ends_it() -> None:
    stalled: list[Transport] = [Stalled()]
    bound = 1 << 20
    with MemoryListener() as listener:
        rig = Rig(listener, dial=lambda: stalled.pop() if stalled else None, max_outbox_bytes=bound)
        first = stalled[0] if stalled else rig.channel._link.transport  # type: ignore[union-attr]
        assert isinstance(first, Stalled)
        assert first.sending.wait(10)
        rig.steps(20_000, "x" * 200)  # would never come back if it waited for the writer
        assert rig.channel._outbox.held_bytes <= bound
        began_s = time.monotonic()
        rig.channel.close(0.2)
        assert time.monotonic() - began_s < 5
        assert our_threads() == set()
        assert rig.desk.lost_event.is_set()


def test_emit_takes_no_lock_that_is_held_during_io() -> None:
    """By construction: while the writer is inside send, the outbox's lock is free."""
    with MemoryListener() as listener:
        stalled = Stalled()
        left: list[Transport] = [stalled]
        rig = Rig(listener, dial=lambda: left.pop() if left else None)
        assert stalled.sending.wait(10)
        lock = rig.channel._outbox._lock
        assert lock.acquire(timeout=5)
        lock.release()
        rig.channel.close(0.05)


def test_close_sends_what_is_unsent() -> None:
    for make in (MemoryListener, LoopbackListener):
        with make() as listener:
            rig = Rig(listener, pace_s=1000.0)  # whatever the pace
            with FakeDashboard.on(listener) as dashboard:
                dashboard.hello()
                rig.steps(1)
                dashboard.wait_for_seq(1)
                rig.steps(5000)
                rig.log.add("trainingFinished")
                rig.channel.close()
                dashboard.expect("trainingFinished")
                assert dashboard.seqs() == list(range(1, 5003))
                dashboard.expect_end()
            assert rig.desk.lost_event.is_set()


def test_close_dials_a_dashboard_that_was_there_before_and_flushes() -> None:
    with LoopbackListener() as listener:
        rig = Rig(listener)
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
        assert rig.desk.lost_event.wait(10)
        rig.steps(3)
        closing = threading.Thread(target=rig.channel.close, args=(20,), name="closing")
        closing.start()
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello(session_id="s-1", last_seq=0)
            dashboard.wait_for_seq(3)
            closing.join()
            dashboard.expect_end()


def test_close_waits_for_nobody_who_was_never_there() -> None:
    clock = ManualClock()  # on which no time passes
    with MemoryListener() as listener:
        rig = Rig(listener, dial=lambda: None, clock=clock)
        rig.steps(5)
        clock.wait_for_sleeper()
        rig.channel.close(20)
        assert our_threads() == set()


def test_close_gives_up_on_one_that_never_says_hello() -> None:
    with MemoryListener() as listener:
        rig = Rig(listener)
        with FakeDashboard.on(listener) as silent:
            silent.expect("hello")
            rig.channel.close(0.05)
            assert our_threads() == set()
            silent.expect_end()


def test_a_connection_that_is_dialled_while_closing_is_closed_too() -> None:
    may_dial = threading.Event()
    ours, theirs = memory_pair()

    def dial() -> Transport | None:
        may_dial.wait()
        return ours

    with MemoryListener() as listener:
        rig = Rig(listener, dial=dial)
        closing = threading.Thread(target=rig.channel.close, args=(0,), name="closing")
        closing.start()
        while not rig.channel._stopped:
            threading.Event().wait(0.001)
        may_dial.set()
        closing.join()
        assert our_threads() == set()
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")


def test_a_forked_child_has_no_usable_socket_and_emit_does_nothing_there() -> None:
    with LoopbackListener() as listener, Rig(listener) as rig:  # noqa: SIM117 -- too long for one line
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            lock = rig.channel._outbox._lock
            with lock:  # as if the fork had come in the middle of an emit
                child = os.fork()
            if child == 0:  # pragma: no cover -- another process
                lock.acquire(blocking=False)
                rig.channel.emit(1, b"from the child\n", True)
                rig.channel.send_connection_event({"type": "error", "text": "from the child"})
                rig.channel.close()
                fd = rig.channel._link.transport._sock.fileno()  # type: ignore[union-attr]
                os._exit(0 if fd == -1 else 1)
            assert os.waitpid(child, 0)[1] == 0
            rig.steps(1)
            dashboard.wait_for_seq(1)
            assert not any("child" in str(message) for message in dashboard.messages)
    rig.channel._link = None
    rig.channel.abandon_in_child()  # with nothing to abandon


def test_a_pace_bundles_events_and_the_first_goes_at_once() -> None:
    clock = ManualClock()
    with MemoryListener() as listener, Rig(listener, pace_s=0.5, clock=clock) as rig:  # noqa: SIM117 -- too long for one line
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            rig.steps(1)
            dashboard.wait_for_seq(1)
            assert clock.wait_for_sleeper() == pytest.approx(0.5)
            rig.steps(2)
            assert dashboard.request("ping")["ok"]  # an answer keeps no pace
            assert dashboard.seqs() == [1]
            clock.wait_for_sleeper()
            clock.advance(0.5)
            dashboard.wait_for_seq(3)
            assert dashboard.seqs() == [1, 2, 3]


def test_waits_grow_while_nobody_is_there_and_no_line_is_said() -> None:
    clock = ManualClock()
    with MemoryListener() as listener:
        waits = Waits()
        slept: list[float] = []
        rig = Rig(listener, dial=lambda: None, clock=clock, waits=waits)
        for _ in range(6):
            left_s = clock.wait_for_sleeper()
            slept.append(left_s)
            clock.advance(left_s)
            while clock.wait_for_sleeper() <= 0:
                threading.Event().wait(0.001)
        assert all(a <= b * 1.25 for a, b in zip(slept, [0.5, 1, 2, 4, 5, 5], strict=True))
        assert all(a >= b for a, b in zip(slept, [0.5, 1, 2, 4, 5, 5], strict=True))
        assert rig.said == []
        rig.channel.close()


def test_after_a_loss_nobody_is_dialled_for_half_a_second() -> None:
    clock = ManualClock()
    with MemoryListener() as listener:
        rig = Rig(listener, clock=clock, waits=Waits(0.001, 0.001))
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
        assert clock.wait_for_sleeper() == 0.5
        rig.channel.close(0)


def test_without_put_off_nobody_is_dialled_for_long_after_a_version_was_refused() -> None:
    clock = ManualClock()
    with MemoryListener() as listener:
        rig = Rig(listener, clock=clock)
        with FakeDashboard.on(listener) as host:
            host.send_bytes(b'{"cmd":"enforce_version"}\n')
            reply = host.request("enforce_version", {"required": "9"})
            assert reply["data"] == {"status": "fatal", "message": "version 9 is required"}
        assert clock.wait_for_sleeper() == 60
        rig.channel.close(0)


def test_a_desk_that_breaks_is_said_and_the_connection_is_kept() -> None:
    with MemoryListener() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as end:
        end.hello()
        rig.desk.fail = True
        end.send("ping")
        assert end.expect("error")["code"] == "internal"
        assert "RuntimeError: the desk is broken" in rig.said[-1]
        rig.desk.fail = False
        assert end.request("ping")["ok"]


def test_a_dial_that_breaks_is_said_and_tried_again() -> None:
    with MemoryListener() as listener:
        broken = [True]

        def dial() -> Transport | None:
            if broken:
                broken.pop()
                msg = "the finder is broken"
                raise ValueError(msg)
            return listener.dial()

        with Rig(listener, dial=dial) as rig, FakeDashboard.on(listener) as dashboard:
            assert dashboard.hello()["ok"]
            assert "ValueError: the finder is broken" in rig.said[0]


class BrokenLog(MemoryLog):
    """Its disk fails, or it breaks altogether."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def read(self, after: int, until: int) -> Iterator[bytes]:
        yield from super().read(after, min(until, 2))
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def test_a_log_that_cannot_be_read_is_a_gap_and_one_that_breaks_ends_the_connection() -> None:
    log = BrokenLog(OSError("disk"))
    for _ in range(4):
        log.add("trainStep")
    (piece,) = read_log(log, 0, 4)
    assert piece == ([log.line(1), log.line(2), Gap(3, 4, "trimmed")], 4)
    log = BrokenLog(ValueError("torn"))
    with MemoryListener() as listener, Rig(listener, log=log) as rig:
        log.emit = rig.channel.emit
        log.add("trainStep")
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello(session_id="s-1", last_seq=0)
            dashboard.expect_end()
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello(session_id="s-1", last_seq=0)
            dashboard.wait_for_seq(1)
        assert "ValueError: torn" in "".join(rig.said)


def test_the_log_is_read_in_pieces_and_never_twice() -> None:
    log = MemoryLog()
    for _ in range(10):
        log.add("trainStep")
    size = len(log.line(1))
    pieces = list(read_log(log, 2, 9, max_bytes=2 * size))
    assert [cursor for _, cursor in pieces] == [4, 6, 8, 9]
    assert [item for items, _ in pieces for item in items] == [log.line(s) for s in range(3, 10)]
    assert list(read_log(log, 9, 9)) == []
    assert list(read_log(MemoryLog(), 0, 3)) == [([Gap(1, 3, "trimmed")], 3)]
    log.trim(99)
    assert list(read_log(log, 2, 5)) == [([Gap(3, 5, "trimmed")], 5)]

    class Doubling(MemoryLog):
        def read(self, after: int, until: int) -> Iterator[bytes]:
            for line in super().read(0, until):
                yield line
                yield line

    doubling = Doubling()
    for _ in range(3):
        doubling.add("log")
    assert list(read_log(doubling, 1, 3)) == [([doubling.line(2), doubling.line(3)], 3)]


def test_standard_streams_need_no_handshake_and_outlive_the_end_of_stdin() -> None:
    stdin_r, stdin_w = os.pipe()
    stdout_r, stdout_w = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    left: list[Transport] = [StdioTransport(stdin_r, stdout_w, null)]
    with MemoryListener() as listener:
        log = MemoryLog()
        log.add("session_started")
        rig = Rig(listener, log=log, dial=lambda: left.pop() if left else None, token="unused")
        log.emit = rig.channel.emit
        os.write(stdin_w, b'{"id":"a","cmd":"hello","payload":{"protocol":"otf/1"}}\n')
        os.close(stdin_w)
        assert rig.desk.lost_event.wait(10)
        log.add("log", {"text": "after the end of stdin"})
        rig.channel.close()
        out = os.read(stdout_r, 99_999).splitlines()
        assert len(out) == 4
        assert b'"hello"' in out[0]
        assert b'"session_started"' in b"".join(out[1:3])
        assert b'"last_seq":1' in b"".join(out[1:3])
        assert b"after the end of stdin" in out[3]
    for fd in (stdin_r, stdout_r, stdout_w, null):
        os.close(fd)


def test_one_that_asks_and_does_not_read_is_not_asked_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "MAX_LANE_BYTES", 10_000)
    with MemoryListener(max_bytes=1000) as listener, Rig(listener) as rig:  # noqa: SIM117 -- too long for one line
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            dashboard.hold_reading()
            asking = threading.Thread(
                target=lambda: [dashboard.send("ping") for _ in range(3000)], name="asking"
            )
            asking.start()
            while rig.desk.links[-1:] == [] or rig.desk.links[-1].drained.is_set():
                threading.Event().wait(0.001)
            assert len(rig.desk.received) < 1000
            dashboard.read_on()
            asking.join()
            assert dashboard.reply_to("q-3001")["ok"]


def test_ranges_beyond_what_can_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_REPLAYS", 0)
    with MemoryListener() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as end:
        rig.steps(3)
        end.hello()
        reply = end.request("resume_from", {"seq": 0, "until": 2})
        assert (reply["code"], reply["retry_after_s"]) == ("busy", 1.0)


def test_a_command_without_id_is_not_answered_and_its_failure_is_an_event() -> None:
    with MemoryListener() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as end:
        end.send_bytes(b'{"cmd":"server_info"}\n{"cmd":"hello","payload":{"protocol":"otf/1"}}\n')
        end.send_bytes(b'{"cmd":"resume_from","payload":{"seq":5}}\n{"cmd":"ping"}\n')
        assert end.expect("error") == {
            "type": "error",
            "code": "bad_payload",
            "text": "seq 5 was asked; allowed: 0 to 0, the last event.",
            "request_id": None,
        }
        rig.steps(1)
        end.send_bytes(b'{"cmd":"resume_from","payload":{"seq":0}}\n')
        assert end.request("ping")["ok"]
        assert len([m for m in end.messages if "ok" in m]) == 1


def test_a_link_that_is_gone_drops_what_it_is_given() -> None:
    with MemoryListener() as listener, Rig(listener) as rig:
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            dashboard.request("ping")
        assert rig.desk.lost_event.wait(10)
        (link,) = rig.desk.links
        assert link.closed
        link.reply(b"too late\n")
        rig.channel.send_connection_event({"type": "error"}, link)
        assert link.take_lane() == (b"", None)
        assert link in rig.desk.lost_links


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("0.2.0", "0.2.0"),
        ("0.1.4", "0.1.4"),
        ("0.1.3", "0.1.4"),
        ("0.1.10", "0.1.10"),
        ("1", "1"),
        ("none", "0.1.4"),
        ("", "0.1.4"),
        ("0.1.4.9", "0.1.4"),
    ],
)
def test_a_legacy_host_is_told_the_higher_of_its_least_version_and_ours(
    own: str, told: str
) -> None:
    assert legacy_version(own) == told


def test_the_real_clock_moves_and_waits(capsys: pytest.CaptureFixture[str]) -> None:
    clock = SystemClock()
    before_s = clock.now()
    clock.wait(threading.Event(), 0.01)
    assert 0.01 <= clock.now() - before_s < 10
    channel.to_stderr("said")
    assert capsys.readouterr().err == "otf: said\n"
    assert HurriedClock(10).now() > before_s


def test_importing_the_channel_loads_no_torch() -> None:
    code = "import otf_core.channel, otf_core.testing, sys; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
