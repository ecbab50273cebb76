"""A channel and a dashboard face to face, in memory and over a loopback socket."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from otf_core import protocol
from otf_core.outbox import ENTRY_BYTES
from otf_core.testing import (
    FakeDashboard,
    LegacyDashboard,
    Listener,
    LoopbackListener,
    ManualClock,
    MemoryListener,
)
from tests.channel.rig import IDENTITY, Rig

Make = Callable[..., Listener]
BOTH = pytest.mark.parametrize("make", [MemoryListener, LoopbackListener])


@BOTH
def test_the_first_line_is_hello_and_nothing_follows_until_it_is_answered(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(3)
        assert dashboard.expect("hello") == {
            "type": "hello",
            "protocol": "otf/1",
            "version": "0.2.0",
            "session_id": "s-1",
            "pid": 42,
            "token_required": False,
        }
        assert not rig.channel.connected
        reply = dashboard.hello()
        assert reply["data"] == {**IDENTITY, "protocol": "otf/1", "last_seq": 3, "first_seq": 1}
        assert rig.mode == "otf/1"
        rig.steps(2)
        dashboard.wait_for_seq(5)
        assert dashboard.seqs() == [4, 5]
        assert [m["type"] for m in dashboard.messages[:1]] == ["hello"]


@BOTH
def test_hello_with_the_last_number_brings_what_follows_as_it_was_first_sent(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(700)
        dashboard.hello(session_id="s-1", last_seq=10)
        rig.steps(5)
        dashboard.wait_for_seq(705)
        assert dashboard.seqs() == list(range(11, 706))
        sent = [line + b"\n" for line in dashboard.lines if b"event_seq" in line]
        assert sent == [rig.log.line(seq) for seq in range(11, 706)]


@BOTH
def test_hello_of_another_session_or_from_beyond_the_end_begins_live(make: Make) -> None:
    for payload in ({"session_id": "old", "last_seq": 0}, {"session_id": "s-1", "last_seq": 99}):
        with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
            rig.steps(2)
            dashboard.hello(**payload)
            rig.steps(1)
            dashboard.wait_for_seq(3)
            assert dashboard.seqs() == [3]


@BOTH
def test_a_dashboard_of_another_protocol_is_told_and_goes_on_as_a_legacy_host(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        reply = dashboard.request("hello", {"protocol": "otf/9"})
        assert (reply["code"], reply["allowed"], reply["field"]) == (
            "unsupported", ["otf/1"], "protocol",
        )  # fmt: skip
        assert reply["error"] == reply["detail"]
        rig.steps(1)
        assert dashboard.request("server_info")["data"] == {
            "version": "0.2.0",
            "capabilities": ["pause", "journal"],
            "device": "cpu",
        }
        dashboard.wait_for_seq(1)
        assert rig.mode == "legacy"
        rig.steps(1)
        dashboard.hello()  # and one that finds the word in the end is otf/1
        rig.steps(1)
        dashboard.wait_for_seq(3)
        assert rig.mode == "otf/1"
        assert dashboard.seqs()[-1] == 3


@BOTH
def test_a_wrong_token_is_refused_and_hung_up_on(make: Make) -> None:
    with make(token="secret") as listener, Rig(listener) as rig:
        for shown in (None, "wrong", "sécret"):
            with FakeDashboard.on(listener) as dashboard:
                assert dashboard.expect("hello")["token_required"] is True
                payload = {"protocol": "otf/1"} | ({"token": shown} if shown else {})
                reply = dashboard.request("hello", payload)
                assert (reply["code"], reply["field"]) == ("unauthorized", "token")
                dashboard.expect_end()
        assert [line for line in rig.said if "token" in line] == [
            f"dashboard {rig.desk.lost_links[0].name} did not show the token of this run; "
            "not served"
        ]
        with FakeDashboard.on(listener) as dashboard:
            assert dashboard.hello(token="secret")["ok"]
            assert rig.channel.connected


@BOTH
def test_where_a_token_is_needed_a_legacy_host_gets_server_info_and_no_more(make: Make) -> None:
    with make() as listener, Rig(listener, token="secret") as rig:
        rig.steps(2)
        with FakeDashboard.on(listener) as dashboard:
            assert dashboard.request("server_info")["ok"]
            for cmd in ("pause", "status", "ping", "resume_from", "nonsense"):
                reply = dashboard.request(cmd)
                assert (reply["ok"], reply["code"]) == (False, "unauthorized")
            dashboard.send_bytes(b'{"cmd":"resume"}\n')
            assert dashboard.request("server_info")["ok"]
            assert dashboard.seqs() == []
            assert not rig.channel.connected
        assert rig.desk.received == []


@BOTH
def test_where_legacy_is_not_allowed_only_otf1_is_served(make: Make) -> None:
    with make(legacy_allowed=False) as listener, Rig(listener) as rig:
        with FakeDashboard.on(listener) as dashboard:
            assert dashboard.request("server_info")["ok"]
            reply = dashboard.request("pause")
            assert reply["code"] == "unauthorized"
            assert "loopback only" in reply["detail"]
            assert dashboard.hello()["ok"]
            assert dashboard.request("pause")["ok"]
        assert rig.desk.received == [("pause", False)]


@BOTH
def test_resume_from_begins_the_stream_anew_and_each_event_is_as_first_sent(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(5)
        dashboard.hello()
        rig.steps(1)
        dashboard.wait_for_seq(6)
        reply = dashboard.request("resume_from", {"seq": 0})
        assert reply["data"] == {"from": 1, "to": 6, "count": 6, "complete": True}
        rig.steps(1)
        dashboard.wait_for_seq(7)
        assert dashboard.seqs() == [6, 1, 2, 3, 4, 5, 6, 7]
        at = dashboard.messages.index(reply)
        assert [m["event_seq"] for m in dashboard.messages[at + 1 :]] == [1, 2, 3, 4, 5, 6, 7]
        empty = dashboard.request("resume_from", {"seq": 7})
        assert empty["data"] == {"from": 8, "to": 7, "count": 0, "complete": True}


@BOTH
def test_a_range_comes_beside_the_live_stream_and_is_marked(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(9)
        dashboard.hello()
        reply = dashboard.request("resume_from", {"seq": 2, "until": 5})
        assert reply["data"] == {"from": 3, "to": 5, "count": 3, "complete": True}
        rig.steps(1)
        dashboard.wait_for_seq(10)
        dashboard.wait_for_seq(5)
        replayed = [m for m in dashboard.messages if m.get("replay")]
        assert [m["event_seq"] for m in replayed] == [3, 4, 5]
        assert dashboard.seqs() == [10]
        assert dashboard.torn == []
        beyond = dashboard.request("resume_from", {"seq": 9, "until": 99})
        assert beyond["data"] == {"from": 10, "to": 10, "count": 1, "complete": True}


@BOTH
def test_resume_from_refuses_what_cannot_be_and_says_what_can(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(3)
        early = dashboard.request("resume_from", {"seq": 0})
        assert early["code"] == "not_allowed_now"
        dashboard.hello()
        for payload, field, allowed in (
            ({"seq": 4}, "seq", {"min": 0, "max": 3}),
            ({"seq": -1}, "seq", {"min": 0, "max": 3}),
            ({"seq": 2, "until": 1}, "until", {"min": 2, "max": 3}),
        ):
            reply = dashboard.request("resume_from", payload)
            assert (reply["error"], reply["field"], reply["allowed"]) == (
                "bad_payload", field, allowed,
            )  # fmt: skip
        assert dashboard.request("resume_from", {"seq": "x"})["code"] == "bad_payload"


@BOTH
def test_what_the_log_has_lost_is_a_gap_in_its_place(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(10)
        rig.log.trim(4)
        rig.log.lose(7)
        rig.log.lose(10)
        dashboard.hello()
        reply = dashboard.request("resume_from", {"seq": 1})
        assert reply["data"] == {"from": 4, "to": 10, "count": 7, "complete": False}
        rig.steps(1)
        dashboard.wait_for_seq(11)
        stream = [m for m in dashboard.messages if m.get("type") in ("gap", "trainStep")]
        assert [
            (m["from"], m["to"], m["count"], m["reason"]) if m["type"] == "gap" else m["event_seq"]
            for m in stream
        ] == [
            (2, 3, 2, "trimmed"), 4, 5, 6, (7, 7, 1, "trimmed"), 8, 9, (10, 10, 1, "trimmed"), 11,
        ]  # fmt: skip
        replay = dashboard.request("resume_from", {"seq": 0, "until": 4})
        assert replay["data"]["complete"] is False
        assert dashboard.expect("gap", replay=True)["to"] == 3


@BOTH
def test_ack_is_not_answered_and_counts_upwards_only(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        rig.steps(5)
        dashboard.send("ack", {"seq": 5})  # before hello it says nothing
        dashboard.hello()
        assert rig.channel.acked_seq == 0
        for seq in (3, 2, "x"):
            dashboard.send("ack", {"seq": seq})
        dashboard.request("ping")
        assert rig.channel.acked_seq == 3
        dashboard.send("ack", {"seq": 99})
        dashboard.request("ping")
        assert rig.channel.acked_seq == 5
        assert all(m["id"] not in ("q-1", "q-3") for m in dashboard.messages if "ok" in m)


@BOTH
def test_replies_and_connection_events_do_not_wait_behind_events(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        dashboard.hello()
        dashboard.hold_reading()
        rig.steps(6000, "x" * 5000)  # over what the connection itself holds
        request_id = dashboard.send("ping")
        rig.channel.send_connection_event({"type": "accepted", "request_id": "r"})
        dashboard.read_on()
        dashboard.reply_to(request_id)
        dashboard.expect("accepted")
        dashboard.wait_for_seq(6000)
        kinds = [m.get("type", "reply") for m in dashboard.messages]
        assert kinds.index("accepted") < len(kinds) - 3000
        assert dashboard.seqs() == list(range(1, 6001))


@BOTH
def test_garbage_is_answered_and_the_connection_is_kept(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        dashboard.hello()
        bad = [
            b"no json\n", b"\xff\x00\xfe\n", b"[1,2]\n", b"null\n", b'{"cmd":5}\n', b'"x"\n',
            b'{"id":7,"cmd":"ping"}\n', b"[" * 20_000 + b"\n", b'{"cmd":"ping"\n',
        ]  # fmt: skip
        for line in bad:
            dashboard.send_bytes(line)
        dashboard.send_bytes(b"\n  \n")
        for _ in bad:
            assert dashboard.expect("error")["code"] == "bad_payload"
        for byte in b'{"id":"p","cmd":"ping"}\n':
            dashboard.send_bytes(bytes([byte]))
        assert dashboard.reply_to("p")["ok"]
        assert len(rig.desk.malformed_lines) == len(bad)


@BOTH
def test_a_line_over_16_mib_is_skipped_and_one_of_16_mib_is_read(make: Make) -> None:
    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        dashboard.hello()
        head, tail = b'{"id":"big","cmd":"ping","payload":{"x":"', b'"}}\n'
        fits = protocol.MAX_LINE_BYTES - len(head) - len(tail) + 1
        dashboard.send_bytes(head + b"x" * (fits + 1) + tail)
        assert "16,777,217 bytes was skipped" in dashboard.expect("error")["text"]
        dashboard.send_bytes(head + b"x" * fits + tail)
        assert dashboard.reply_to("big")["ok"]
        assert len(rig.desk.malformed_lines) == 1


@BOTH
def test_half_a_line_is_lost_with_its_connection(make: Make) -> None:
    with make() as listener, Rig(listener) as rig:
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            dashboard.send_bytes(b'{"id":"a","cmd":"ping"}\n{"id":"b","cmd":"pi')
            dashboard.reply_to("a")
        with FakeDashboard.on(listener) as dashboard:
            dashboard.send_bytes(b'ng"}\n{"id":"c","cmd":"hello","payload":{"protocol":"otf/1"}}\n')
            assert dashboard.reply_to("c")["ok"]
        assert [cmd for cmd, _ in rig.desk.received] == ["ping"]
        assert rig.desk.malformed_lines[0].startswith("a line of 4 bytes is no request")


@BOTH
def test_a_slow_reader_gets_gaps_and_memory_stays_bounded(make: Make) -> None:
    bound = 200 * (ENTRY_BYTES + 2200)
    with make() as listener, Rig(listener, max_outbox_bytes=bound) as rig:  # noqa: SIM117 -- too long for one line
        with FakeDashboard.on(listener) as dashboard:
            dashboard.hello()
            dashboard.hold_reading()
            for _ in range(100):
                rig.steps(99, "x" * 2000)
                rig.log.add("log", {"text": "kept"})
                assert rig.channel._outbox.held_bytes <= bound
            dashboard.read_on()
            dashboard.wait_for_seq(10_000)
            told: list[int] = []
            for message in dashboard.messages:
                if message.get("type") == "gap":
                    assert message["reason"] == "slow_reader"
                    assert message["count"] == message["to"] - message["from"] + 1
                    told += range(message["from"], message["to"] + 1)
                elif "event_seq" in message:
                    told.append(message["event_seq"])
            assert told == list(range(1, 10_001))
            assert rig.channel.dropped == 10_000 - len(dashboard.seqs()) > 1000
            kept = [m["event_seq"] for m in dashboard.events() if m["type"] == "log"]
            assert kept == list(range(100, 10_001, 100))


@BOTH
def test_a_reset_goes_on_from_one_on_the_same_connection(make: Make) -> None:
    from otf_core.testing import MemoryLog

    with make() as listener, Rig(listener) as rig, FakeDashboard.on(listener) as dashboard:
        dashboard.hello()
        rig.steps(3)
        second = MemoryLog(rig.channel.emit, session_id="s-2")
        rig.channel.begin_session(second)
        second.add("session_started")
        second.add("trainStep")
        dashboard.expect("session_started")
        dashboard.wait_for_seq(2)
        assert [(e["session_id"], e["event_seq"]) for e in dashboard.events()] == [
            ("s-1", 1), ("s-1", 2), ("s-1", 3), ("s-2", 1), ("s-2", 2),
        ]  # fmt: skip
        assert dashboard.request("resume_from", {"seq": 1})["data"]["to"] == 2


@BOTH
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_drops_lose_and_reorder_nothing_after_replay(make: Make, seed: int) -> None:
    """A soak in miniature: the dashboard dies at random and says hello with what it has."""
    rng = random.Random(seed)
    have: list[dict[str, Any]] = []
    torn: list[bytes] = []
    total = 3000
    with make() as listener, Rig(listener) as rig:
        stop = threading.Event()

        def train() -> None:
            for _ in range(total):
                rig.log.add(rng.choice(["trainStep", "log"]), {"x": "y" * 50})
                stop.wait(0.0002)

        training = threading.Thread(target=train, name="training")
        training.start()
        while not have or have[-1]["event_seq"] < total:
            with FakeDashboard.on(listener) as dashboard:
                last = have[-1]["event_seq"] if have else 0
                dashboard.hello(session_id="s-1", last_seq=last)
                dashboard.wait_for_seq(min(last + rng.randrange(1, 900), total))
                if rng.random() < 0.5:
                    dashboard.send_bytes(b'{"half a li')
                torn += dashboard.torn
            have += dashboard.events()
        training.join()
        assert [event["event_seq"] for event in have] == list(range(1, total + 1))
        assert torn == []
        alternating = [line.rpartition(" ")[2] for line in rig.said]
        assert alternating[:3] == ["connected", "dashboard", "connected"]


@BOTH
def test_a_legacy_host_is_sent_nothing_but_hello_until_it_has_asked_and_a_while_after(
    make: Make,
) -> None:
    clock = ManualClock()
    with make() as listener, Rig(listener, clock=clock) as rig:  # noqa: SIM117 -- too long for one line
        with FakeDashboard.on(listener) as host:
            host.expect("hello")  # before it there is no connection to send anything to
            rig.steps(2)
            rig.channel.send_connection_event({"type": "error", "text": "waits"})
            rig.channel.send_connection_event({"type": "accepted"})
            assert host.request("server_info")["ok"]
            assert clock.wait_for_sleeper() == pytest.approx(0.25)
            clock.advance(0.24)
            assert host.request("pause")["ok"]  # an answer does not wait
            assert [m.get("type") for m in host.messages] == ["hello", None, None]
            clock.wait_for_sleeper()
            clock.advance(0.0101)
            rig.steps(2)
            host.wait_for_seq(4)
            assert host.seqs() == [1, 2, 3, 4]
            assert host.expect("error")["text"] == "waits"
            assert not any(m.get("type") == "accepted" for m in host.messages)
            rig.channel.send_connection_event({"type": "error", "text": "now"})
            host.expect("error", text="now")
            host.request("server_info")  # asked again: nothing is sent twice
            rig.steps(1)
            host.wait_for_seq(5)
            assert host.seqs() == [1, 2, 3, 4, 5]


@BOTH
def test_the_legacy_double_connects_pauses_and_sees_everything_once(make: Make) -> None:
    listener = make()
    with LegacyDashboard(listener) as host, Rig(listener) as rig:
        rig.log.add("session_started", {"run_id": "baseline", "project": "p", "run_name": "n"})
        rig.log.add("newRun", {"run_id": "baseline", "parents": []})
        rig.log.add("log", {"run_id": "baseline", "text": "epoch 1"})
        rig.log.add("checkpoint_saved", {"run_id": "baseline", "path": "a.ckpt", "step": 1})
        host.wait_for(lambda: "baseline" in host.checkpoints)
        rig.log.add("trainStep", {"run_id": "baseline", "step": 1, "loss": 0.5})
        host.wait_for(lambda: host.state == "running")
        host.wait_for(lambda: "clean_disk" in host.requests)
        assert host.requests == ["server_info", "clean_disk"]
        assert host.press_pause() == {"cmd": "save_ckpt"}
        rig.log.add("paused", {"run_id": "baseline", "step": 1})
        host.press_resume()
        rig.log.add("resumed", {"run_id": "baseline", "step": 1})
        host.press_test("baseline")
        host.press_health()
        rig.log.add("trainingFinished", {"run_id": "baseline", "status": "completed"})
        host.wait_for_event("trainingFinished")
        assert [e["event_seq"] for e in host.events if "event_seq" in e] == list(range(1, 9))
        assert rig.mode == "legacy"
        assert host.page == [host.events[0]]  # hello, which the page ignores
        assert host.page_log == []
        assert host.notice is None


@BOTH
def test_a_legacy_host_that_comes_back_wipes_and_is_told_everything_again(make: Make) -> None:
    listener = make()
    with LegacyDashboard(listener) as host, Rig(listener) as rig:
        rig.log.add("session_started", {"run_id": "baseline"})
        rig.log.add("trainStep", {"run_id": "baseline", "step": 1})
        host.wait_for(lambda: host.points.get("baseline"))
        host.hang_up()
        host.wait_for(lambda: host.connections == 2 and host.points.get("baseline"))
        assert host.wipes == 1
        assert len(host.points["baseline"]) == 1
        assert [line.split(" ", 2)[2] for line in rig.said] == [
            "is connected (VS Code)",
            "is gone; training goes on, looking for a dashboard",
            "is connected (VS Code)",
        ]


@BOTH
def test_two_trainers_on_one_legacy_host_the_second_says_so_once_and_waits(make: Make) -> None:
    listener = make()
    with LegacyDashboard(listener) as host, Rig(listener) as first:
        host.wait_for(lambda: first.channel.connected)
        with Rig(listener) as second:
            host.wait_for(lambda: host.warnings >= 4)
            assert first.channel.connected
            assert [line.partition(" hung up")[1] for line in second.said] == [" hung up"]
            assert not second.channel.connected
        first.channel.close()


@BOTH
def test_a_host_that_wants_another_version_is_left_alone_for_long(make: Make) -> None:
    listener = make()
    put_off: list[tuple[str, float]] = []
    done = threading.Event()

    def note(name: str, wait_s: float) -> None:
        put_off.append((name, wait_s))
        if len(put_off) == 8:
            done.set()

    with LegacyDashboard(listener, required="9.9") as host, Rig(listener, put_off=note) as rig:
        assert done.wait(60)
        assert host.notice == "the package must be 9.9, found 0.2.0"
        assert host.requests[:2] == ["server_info", "enforce_version"]
        reply = [m for d, m in host.tape if d == "in" and "ok" in m][1]
        assert reply["data"] == {"status": "fatal", "message": host.notice}
        assert [s for _, s in put_off] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
        assert len(rig.said) == 1  # more of the same is not said
        assert rig.said[0].endswith("does not want this version; it is left alone for long")
