"""What a person does to a run: every order of events is compared whole, on a tape."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import pytest

from otf_core import protocol
from otf_core.control import actions
from otf_core.control.actions import ConsoleAction
from otf_core.control.bus import ControlBus
from otf_core.control.delegate import Position
from otf_core.control.gate import State
from otf_core.control.router import CommandRouter
from otf_core.control.run_state import RunState
from otf_core.errors import CommandError, ErrorCode
from tests.control.rig import FakeLink, Rig

FULL = CommandError(ErrorCode.INTERNAL, "Saving failed with OSError (no space left on device).")
PAUSED_AT_1 = ["state running > pausing", "state pausing > paused", "save pause",
               "paused 1 /run/1-pause.ckpt"]  # fmt: skip


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


# Pause and resume.


def test_a_pause_is_acknowledged_when_the_thread_stands_with_the_step_it_really_reached(
    rig: Rig,
) -> None:
    rig.send("pause", "p")  # at step 0, in the middle of the batch

    assert rig.tape == ["accepted p", "state running > pausing"]
    rig.step(rig.sends("resume", "r"), to=7)

    assert rig.tape == [
        "accepted p",
        "state running > pausing",
        "state pausing > paused",
        "save pause",
        "paused 7 /run/7-pause.ckpt",
        "p: ok",
        "accepted r",
        "state paused > running",
        "resumed 7",
        "r: ok",
    ]
    ckpt = "/run/7-pause.ckpt"
    assert rig.reply("p") == {"status": "paused", "step": 7, "ckpt": ckpt, "applied_step": 7}
    assert rig.reply("r") == {"status": "resumed", "step": 7, "applied_step": 7, "changed": True}
    assert rig.events[:3] == [
        {"type": "state", "state": "pausing", "previous": "running", "step": 0, "epoch": 0,
         "reason": "user", "request_id": "p"},
        {"type": "state", "state": "paused", "previous": "pausing", "step": 7, "epoch": 0,
         "reason": "user", "request_id": None},
        {"type": "paused", "step": 7, "request": {"action": "pause"}, "ckpt": ckpt},
    ]  # fmt: skip
    assert rig.events[3]["request_id"] == "r"
    assert rig.link.events[0] == {"type": "accepted", "request_id": "p", "cmd": "pause",
                                  "step": 0, "waits_for": "safe_point"}  # fmt: skip
    assert rig.saver.asked == [("pause", False)]


def test_the_second_pause_gets_the_same_reply_and_makes_no_second_event(rig: Rig) -> None:
    rig.send("pause", "p1")
    rig.send("pause", "p2")
    rig.step(rig.sends("pause", "p3"), rig.sends("resume", "r"))

    assert rig.tape == [
        "accepted p1",
        "state running > pausing",
        "accepted p2",
        "state pausing > paused",
        "save pause",
        "paused 1 /run/1-pause.ckpt",
        "p1: ok",
        "p2: ok",
        "accepted p3",
        "p3: ok",
        "accepted r",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]
    assert rig.reply("p1") == rig.reply("p2") == rig.reply("p3")


def test_a_resume_while_pausing_refuses_the_pause_and_training_goes_on(rig: Rig) -> None:
    rig.send("pause", "p")
    rig.send("resume", "r")
    rig.step()

    assert rig.tape == [
        "accepted p",
        "state running > pausing",
        "accepted r",
        "p: not_allowed_now",
        "state pausing > running",
        "r: ok",
    ]
    detail = "The pause that was asked for was overtaken by resume at step 0."
    assert rig.reply("p")["detail"] == detail
    assert rig.reply("r")["changed"] is True


def test_a_resume_of_a_running_run_changes_nothing(rig: Rig) -> None:
    rig.send("resume", "r")
    rig.send("resume")  # the published extension asks without an id
    rig.step()

    assert rig.tape == ["accepted r", "r: ok"]
    assert rig.reply("r")["changed"] is False


def test_a_pause_after_a_resume_that_has_not_let_go_yet_is_resumed_then_paused_at_one_step(
    rig: Rig,
) -> None:
    def resume_then_pause() -> None:
        rig.send("resume", "r1")
        rig.send("pause", "p2")

    rig.send("pause", "p1")
    rig.step(resume_then_pause, rig.sends("resume", "r2"))

    assert rig.tape == [
        "accepted p1",
        *PAUSED_AT_1,
        "p1: ok",
        "accepted r1",
        "accepted p2",
        "state paused > running",
        "resumed 1",
        "state running > pausing",
        "r1: ok",
        "state pausing > paused",
        "save pause",
        "paused 1 /run/1-pause.ckpt",
        "p2: ok",
        "accepted r2",
        "state paused > running",
        "resumed 1",
        "r2: ok",
    ]
    pausing = [e for e in rig.events if e.get("state") == "pausing"]
    assert [e["request_id"] for e in pausing] == ["p1", "p2"]


def test_a_pause_in_the_moment_of_leaving_waits_until_resumed_is_said(rig: Rig) -> None:
    """The gate has let go, the event is not out: pausing must not come before resumed."""

    def at_the_door(what: str) -> None:
        if what == "resumed" and rig.actions.gate.state is State.IDLE:
            rig.send("pause", "p2")
            rig.on_announce = lambda what: None

    rig.on_announce = at_the_door
    rig.send("pause", "p1")
    rig.step(rig.sends("resume", "r1"), rig.sends("resume", "r2"))

    assert (
        rig.tape[-14:]
        == [
            "p1: ok",
            "accepted r1",
            "accepted p2",
            "state paused > running",
            "resumed 1",
            "state running > pausing",
            "r1: ok",
            "state pausing > paused",
            "save pause",
            "paused 1 /run/1-pause.ckpt",
            "p2: ok",
            "accepted r2",
            "state paused > running",
            "resumed 1",
            "r2: ok",
        ][-14:]
    )
    assert rig.tape.count("state running > pausing") == 2


def test_a_pause_that_arrives_in_the_very_moment_of_asking_says_pausing_first(rig: Rig) -> None:
    """The training thread arrives between the gate's yes and the state; it must not overtake."""
    gate = rig.actions.gate
    request = gate.request

    def request_and_arrive(cause: str, *, hold_s: float) -> State:
        found = request(cause, hold_s=hold_s)
        gate._state = State.HELD  # what the other thread does under the gate's own lock
        return found

    gate.request = request_and_arrive  # type: ignore[assignment, method-assign]
    rig.send("pause", "p")

    assert rig.tape == ["accepted p", "state running > pausing"]


def test_a_pause_and_resume_and_pause_before_the_thread_got_away_refuses_the_middle_one(
    rig: Rig,
) -> None:
    def all_at_once() -> None:
        rig.send("resume", "r1")
        rig.send("pause", "p2")
        rig.send("resume", "r2")

    rig.send("pause", "p1")
    rig.step(all_at_once)

    assert rig.tape[6:] == [
        "accepted r1",
        "accepted p2",
        "accepted r2",
        "p2: not_allowed_now",
        "state paused > running",
        "resumed 1",
        "r1: ok",
        "r2: ok",
    ]


def test_pause_at_a_later_step_waits_for_it(rig: Rig) -> None:
    rig.step()
    rig.send("pause", "p", at_step=3)
    assert rig.bus.pending()[0]["waits_for"] == "step 3"
    rig.step()
    assert rig.tape == ["accepted p"]
    rig.step(rig.sends("resume", "r"))

    assert rig.tape == [
        "accepted p",
        "state running > pausing",
        "state pausing > paused",
        "save pause",
        "paused 3 /run/3-pause.ckpt",
        "p: ok",
        "accepted r",
        "state paused > running",
        "resumed 3",
        "r: ok",
    ]
    assert rig.link.events[0]["waits_for"] == "step 3"
    rig.step()
    assert not rig.actions.safe_point.attention
    assert len(rig.tape) == 10


def test_pause_at_the_present_step_is_a_pause_now_and_at_a_past_one_is_refused(rig: Rig) -> None:
    rig.step()
    rig.step()
    rig.send("pause", "past", at_step=1)
    rig.send("pause", "now", at_step=2)

    assert rig.tape == ["past: bad_payload", "accepted now", "state running > pausing"]
    assert rig.reply("past") == {
        "id": "past",
        "ok": False,
        "error": "bad_payload",
        "code": "bad_payload",
        "detail": "pause was asked for step 1, 2 are done; allowed: 2 or later.",
        "field": "at_step",
        "allowed": {"min": 2},
    }


def test_a_resume_withdraws_a_pause_that_waits_for_a_later_step(rig: Rig) -> None:
    rig.send("pause", "p", at_step=3)
    rig.send("resume", "r")

    assert rig.tape == ["accepted p", "accepted r", "p: not_allowed_now", "r: ok"]
    assert rig.reply("r")["changed"] is True
    rig.step(to=3)
    assert len(rig.tape) == 4


def test_commands_are_carried_out_while_the_run_is_held(rig: Rig) -> None:
    rig.send("pause", "p")
    rig.step(rig.sends("save_ckpt", "s"), rig.sends("resume", "r"))

    assert rig.tape[6:10] == ["accepted s", "save manual", "s: ok", "accepted r"]


# The file of a pause.


def test_a_file_slower_than_the_patience_is_answered_without_it(rig: Rig) -> None:
    rig.saver.slow = True
    rig.send("pause", "p")
    rig.step(rig.settles(0), rig.sends("resume", "r"))

    assert rig.waits_s == [10.0]
    assert rig.tape[2:] == [
        "state pausing > paused",
        "save pause",
        "paused 1 None",
        "log paused without a file: it is still being written; "
        "checkpoint_saved will say when it is complete",
        "p: ok",
        "accepted r",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]
    assert rig.reply("p") == {"status": "paused", "step": 1, "ckpt": None, "applied_step": 1}


def test_the_reply_of_a_pause_waits_for_the_file(rig: Rig) -> None:
    rig.saver.slow = True
    rig.send("pause", "p")

    def complete() -> None:
        assert rig.tape[-1] == "save pause"
        rig.saver.saved[0].settle()

    rig.saving.append(complete)
    rig.step(rig.sends("resume", "r"))

    assert rig.tape[4:6] == ["paused 1 /run/1-pause.ckpt", "p: ok"]


def test_a_resume_while_the_file_is_written_does_not_wait_for_it(rig: Rig) -> None:
    rig.saver.slow = True
    rig.send("pause", "p")
    rig.saving.append(rig.sends("resume", "r"))
    rig.step()

    assert [line for line in rig.tape[2:] if not line.startswith("log")] == [
        "state pausing > paused",
        "save pause",
        "accepted r",
        "paused 1 None",
        "p: ok",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]


def test_the_file_of_an_earlier_pause_does_not_end_the_wait_for_the_next_one(rig: Rig) -> None:
    rig.saver.slow = True
    rig.send("pause", "p1")
    rig.step(rig.sends("resume", "r1"))
    first = rig.saver.saved[0]
    rig.send("pause", "p2")
    rig.saving.extend([first.settle, rig.settles(1)])
    rig.step(rig.sends("resume", "r2"))

    assert rig.reply("p2")["ckpt"] == "/run/2-pause.ckpt"


@pytest.mark.parametrize("cmd", ["resume", "stop"])
def test_what_ends_the_pause_before_the_file_is_begun_is_not_kept_waiting_for_it(
    rig: Rig, cmd: str
) -> None:
    """Asked between the arrival at the gate and the announcement."""
    rig.saver.slow = True
    rig.on_announce = lambda what: rig.send(cmd, "x", **extra) if what == "paused" else None
    extra: dict[str, Any] = {"save": False} if cmd == "stop" else {}
    rig.send("pause", "p")
    rig.saving.append(lambda: pytest.fail("waited for the file"))
    rig.step()

    assert rig.reply("p")["ckpt"] is None
    assert rig.reply("x")["status"] == {"resume": "resumed", "stop": "stopping"}[cmd]


@pytest.mark.parametrize("when", ["refusal", "failure"])
def test_a_file_that_cannot_be_had_is_said_and_the_run_is_held_all_the_same(
    rig: Rig, when: str
) -> None:
    setattr(rig.saver, when, FULL)
    rig.send("pause", "p")
    rig.step(rig.sends("resume", "r"))

    assert rig.tape[4:7] == [
        "paused 1 None",
        "log paused without a file: Saving failed with OSError (no space left on device).",
        "p: ok",
    ]
    log = next(e for e in rig.events if e["type"] == "log")
    assert (log["level"], log["phase"]) == ("warning", "info")


# A forgotten pause, and other causes.


def test_a_forgotten_pause_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_pause_s=60.0)
    rig.send("pause", "p")
    rig.step()

    assert rig.world.sleeps_s == [60.0]
    assert rig.tape == [
        "accepted p",
        *PAUSED_AT_1,
        "p: ok",
        "log the pause was ended after 60 s (max_pause)",
        "state paused > running",
        "resumed 1",
    ]
    assert rig.actions.paused_s == 60.0


def test_a_hold_that_nobody_waits_for_is_held_and_another_cause_is_its_reason(rig: Rig) -> None:
    rig.actions.hold(None, cause="guard")
    rig.step(partial(rig.actions.gate.resume, "guard"))

    assert rig.tape == [*PAUSED_AT_1, "state paused > running", "resumed 1"]
    assert [e.get("reason") for e in rig.events] == ["guard", "guard", None, None, None]


# Stop.


def test_a_stop_takes_effect_at_the_safe_point_with_a_pinned_file(rig: Rig) -> None:
    rig.send("stop", "s")
    assert rig.tape == ["accepted s"]

    assert rig.step() is True
    assert rig.tape == ["accepted s", "save manual", "stopping 1", "request_stop", "s: ok"]
    ckpt = "/run/1-manual.ckpt"
    assert rig.reply("s") == {"status": "stopping", "step": 1, "ckpt": ckpt, "applied_step": 1}
    assert rig.saver.asked == [("manual", True)]
    assert rig.actions.stopping is True


def test_a_stop_without_saving_saves_nothing(rig: Rig) -> None:
    rig.send("stop", "s", save=False)

    assert rig.step() is True
    assert rig.tape == ["accepted s", "stopping 1", "request_stop", "s: ok"]
    assert rig.reply("s")["ckpt"] is None


def test_a_stop_of_a_paused_run_ends_it_without_a_resumed(rig: Rig) -> None:
    rig.send("pause", "p")
    assert rig.step(rig.sends("stop", "s", save=False)) is True

    assert rig.tape[6:] == ["accepted s", "stopping 1", "request_stop", "s: ok"]
    assert rig.state.state == "paused"
    assert rig.actions.gate.state is State.IDLE


def test_a_resume_while_the_file_of_a_stop_is_written_comes_too_late(rig: Rig) -> None:
    def stop() -> None:
        rig.saver.meanwhile = [rig.sends("resume", "r")]
        rig.send("stop", "s")

    rig.send("pause", "p")
    assert rig.step(stop) is True

    assert rig.tape[6:] == [
        "accepted s",
        "save manual",
        "accepted r",
        "stopping 1",
        "request_stop",
        "s: ok",
        "r: not_allowed_now",
    ]
    detail = "The resume that was asked for was overtaken by stop at step 1."
    assert rig.reply("r")["detail"] == detail


def test_a_resume_behind_a_stop_that_has_not_begun_happens_and_then_the_stop(rig: Rig) -> None:
    def stop_and_resume() -> None:
        rig.send("stop", "s", save=False)
        rig.send("resume", "r")

    rig.send("pause", "p")
    assert rig.step(stop_and_resume) is True

    assert rig.tape[6:] == [
        "accepted s",
        "accepted r",
        "state paused > running",
        "resumed 1",
        "r: ok",
        "stopping 1",
        "request_stop",
        "s: ok",
    ]


def test_a_stop_whose_file_fails_leaves_a_paused_run_paused(rig: Rig) -> None:
    def fail() -> None:
        rig.saver.failure = FULL
        rig.send("stop", "s1")

    def then() -> None:
        assert (rig.state.state, rig.actions.gate.state) == ("paused", State.HELD)
        assert rig.actions.stopping is False
        rig.saver.failure = None
        rig.send("stop", "s2")

    rig.send("pause", "p")
    assert rig.step(fail, then) is True

    assert rig.tape[6:] == [
        "accepted s1",
        "save manual",
        "s1: internal",
        "accepted s2",
        "save manual",
        "stopping 1",
        "request_stop",
        "s2: ok",
    ]


def test_a_stop_whose_file_is_refused_leaves_a_running_run_running(rig: Rig) -> None:
    rig.saver.refusal = FULL
    rig.send("stop", "s")

    assert rig.step() is False
    assert rig.tape == ["accepted s", "save manual", "s: internal"]
    assert rig.state.state == "running"


def test_what_was_queued_behind_a_stop_that_failed_is_carried_out(rig: Rig) -> None:
    """In a pause nothing else would wake the thread for it."""

    def queue_and_stop() -> None:
        rig.send("save_ckpt", "q")
        rig.send("stop", "s")
        rig.saver.refusal = FULL

    rig.send("pause", "p")
    rig.step(queue_and_stop, rig.sends("resume", "r"))

    assert rig.tape[6:13] == [
        "accepted q",
        "accepted s",
        "save manual",
        "s: internal",
        "save manual",
        "q: internal",
        "accepted r",
    ]


def test_a_second_stop_is_refused(rig: Rig) -> None:
    rig.send("stop", "s1")
    rig.send("stop", "s2")
    rig.step()

    assert rig.tape[:3] == ["accepted s1", "accepted s2", "s2: not_allowed_now"]
    assert rig.reply("s1")["status"] == "stopping"


def test_a_stop_overtakes_the_pauses_and_leaves_the_queue_for_the_end(rig: Rig) -> None:
    rig.send("pause", "later", at_step=9)
    rig.send("pause", "p")
    rig.send("save_ckpt", "q")
    rig.send("stop", "s", save=False)
    assert rig.step() is True
    assert rig.step() is False  # nobody asks any more
    rig.send("pause", "after")
    rig.finish()

    assert rig.tape == [
        "accepted later",
        "accepted p",
        "state running > pausing",
        "accepted q",
        "accepted s",
        "later: not_allowed_now",
        "p: not_allowed_now",
        "stopping 1",
        "request_stop",
        "s: ok",
        "accepted after",
        "after: not_allowed_now",
        "state pausing > finished",
        "q: not_allowed_now",
    ]
    assert rig.reply("p")["detail"].endswith("overtaken by stop at step 1.")
    assert rig.reply("q")["detail"] == "A command was asked, found the run finished at step 2."


@pytest.mark.parametrize("cmd", ["pause", "resume", "stop", "save_ckpt"])
def test_what_comes_after_the_end_is_refused(rig: Rig, cmd: str) -> None:
    rig.finish()
    rig.send(cmd, "x")

    assert rig.reply("x")["code"] == "not_allowed_now"


@pytest.mark.parametrize("cmd", ["pause", "resume"])
def test_what_comes_in_the_moment_of_the_end_is_refused_and_no_crash(rig: Rig, cmd: str) -> None:
    """Checked while the run lived, carried out when it did not."""
    rig.router._handlers[cmd] = (rig.router._handlers[cmd][0], lambda _: rig.state.move("failed"))
    rig.send(cmd, "x")

    detail = f"{cmd} was asked, found the run failed at step 0."
    assert (rig.reply("x")["code"], rig.reply("x")["detail"]) == ("not_allowed_now", detail)
    assert rig.crashes == []


@pytest.mark.parametrize("cmd", ["pause", "resume", "stop"])
def test_the_control_lane_is_refused_before_it_is_accepted_when_the_run_is_over(
    rig: Rig, cmd: str
) -> None:
    rig.state.move("failed")
    rig.tape.clear()
    rig.send(cmd, "x")

    assert rig.tape == ["x: not_allowed_now"]


def test_the_end_of_the_run_in_a_pause_answers_who_wanted_to_resume(rig: Rig) -> None:
    def end() -> None:
        rig.send("resume", "r")
        rig.state.move("failed")

    rig.send("pause", "p")
    rig.step(end)

    assert rig.tape[6:] == ["accepted r", "state paused > failed", "r: not_allowed_now"]
    detail = "The resume that was asked for was overtaken by stop at step 1."
    assert rig.reply("r")["detail"] == detail


# Saving.


def test_save_is_answered_when_the_file_is_complete_and_training_does_not_wait(rig: Rig) -> None:
    rig.saver.slow = True
    rig.send("save_ckpt", "s")
    rig.step()
    assert rig.tape == ["accepted s", "save manual"]
    rig.step()

    rig.saver.saved[0].settle()

    path = "/run/1-manual.ckpt"
    assert rig.reply("s") == {"id": "1-manual", "path": path, "step": 1, "applied_step": 1}
    assert rig.saver.asked == [("manual", True)]


@pytest.mark.parametrize("when", ["refusal", "failure"])
def test_a_save_that_fails_is_refused(rig: Rig, when: str) -> None:
    setattr(rig.saver, when, FULL)
    rig.send("save_ckpt", "s")
    rig.step()

    assert (rig.reply("s")["code"], rig.reply("s")["detail"]) == ("internal", FULL.detail)


# Tests and validations.

TESTED = ["testStep 1", "testStep 2"]


def test_a_test_of_a_running_run_leaves_it_running(rig: Rig) -> None:
    rig.send("test_now", "t", label="mine")
    rig.step()

    assert rig.tape == [
        "accepted t",
        "state running > testing",
        "save ring",
        *TESTED,
        "state testing > running",
        "test_complete 1",
        "t: ok",
    ]
    said = {"avg_loss": 1.5, "step": 1, "label": "mine", "ckpt_path": "/run/1-ring.ckpt"}
    more = {"env_test_label": "test_1", "metrics": {"acc": 0.5}}
    assert rig.reply("t") == {"status": "ok", **said, **more, "applied_step": 1}
    complete = {"status": "ok", **said, **more, "source": "user", "seconds": 0.25}
    assert rig.events[-1] == {"type": "test_complete", **complete}
    assert rig.events[1:3] == [
        {"type": "testStep", "step": 1, "loss": 2.0},
        {"type": "testStep", "step": 2, "loss": 1.0},
    ]
    assert [e["reason"] for e in rig.events if e["type"] == "state"] == ["action", None]


def test_tests_are_numbered_and_a_source_is_told(rig: Rig) -> None:
    rig.send("test", "t1", source="after_fit")
    rig.send("test_now", "t2")
    rig.step()

    assert rig.reply("t1")["env_test_label"] == "test_1"
    assert (rig.reply("t2")["env_test_label"], rig.reply("t2")["label"]) == ("test_2", "final")
    sources = [e["source"] for e in rig.events if e["type"] == "test_complete"]
    assert sources == ["after_fit", "user"]


def test_a_test_of_a_paused_run_leaves_it_paused(rig: Rig) -> None:
    rig.send("pause", "p")

    def look() -> None:
        assert (rig.state.state, rig.state.reason) == ("paused", "user")
        rig.send("resume", "r")

    rig.step(rig.sends("test_now", "t"), look)

    assert rig.tape[6:] == [
        "accepted t",
        "state paused > testing",
        "save ring",
        *TESTED,
        "state testing > paused",
        "test_complete 1",
        "t: ok",
        "accepted r",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]


def test_a_pause_during_a_test_is_held_after_it(rig: Rig) -> None:
    rig.delegate.meanwhile.append(rig.sends("pause", "p"))
    rig.send("test_now", "t")
    rig.step(rig.sends("resume", "r"))

    assert rig.tape == [
        "accepted t",
        "state running > testing",
        "save ring",
        *TESTED,
        "accepted p",
        "state testing > pausing",
        "test_complete 1",
        "t: ok",
        "state pausing > paused",
        "save pause",
        "paused 1 /run/1-pause.ckpt",
        "p: ok",
        "accepted r",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]


def test_a_pause_taken_back_during_a_test_leaves_it_running(rig: Rig) -> None:
    rig.delegate.meanwhile += [rig.sends("pause", "p"), rig.sends("resume", "r")]
    rig.send("test_now", "t")
    rig.step()

    assert rig.tape[5:] == [
        "accepted p",
        "state testing > pausing",
        "accepted r",
        "p: not_allowed_now",
        "state pausing > testing",
        "r: ok",
        "state testing > running",
        "test_complete 1",
        "t: ok",
    ]
    back = next(e for e in rig.events if e.get("previous") == "pausing")
    assert back["reason"] == "action"


def test_a_pause_from_before_the_test_that_is_taken_back_during_it_leaves_it_running(
    rig: Rig,
) -> None:
    """Found pausing; nobody wants the pause when the test is over."""
    rig.delegate.meanwhile.append(rig.sends("resume", "r"))
    rig.send("test_now", "t")
    rig.send("pause", "p")
    rig.step()

    assert rig.tape == [
        "accepted t",
        "accepted p",
        "state running > pausing",
        "state pausing > testing",
        "save ring",
        *TESTED,
        "accepted r",
        "p: not_allowed_now",
        "r: ok",
        "state testing > running",
        "test_complete 1",
        "t: ok",
    ]


def test_a_pause_from_before_the_test_is_held_after_it(rig: Rig) -> None:
    rig.send("test_now", "t")
    rig.send("pause", "p")
    rig.step(rig.sends("resume", "r"))

    assert rig.tape[7:12] == [
        "state testing > pausing",
        "test_complete 1",
        "t: ok",
        "state pausing > paused",
        "save pause",
    ]


def test_a_resume_during_a_test_inside_a_pause_takes_effect_after_it(rig: Rig) -> None:
    rig.delegate.meanwhile.append(rig.sends("resume", "r"))
    rig.send("pause", "p")
    rig.step(rig.sends("test_now", "t"))

    assert rig.tape[6:] == [
        "accepted t",
        "state paused > testing",
        "save ring",
        *TESTED,
        "accepted r",
        "state testing > paused",
        "test_complete 1",
        "t: ok",
        "state paused > running",
        "resumed 1",
        "r: ok",
    ]


def test_a_pause_during_a_test_inside_a_pause_is_the_pause_that_there_is(rig: Rig) -> None:
    rig.delegate.meanwhile.append(rig.sends("pause", "p2"))
    rig.send("pause", "p1")
    rig.step(rig.sends("test_now", "t"), rig.sends("resume", "r"))

    assert rig.reply("p2") == rig.reply("p1")
    assert sum(line.startswith("paused") for line in rig.tape) == 1


def test_a_stop_during_a_test_takes_effect_after_it(rig: Rig) -> None:
    rig.delegate.meanwhile.append(rig.sends("stop", "s", save=False))
    rig.send("test_now", "t")

    assert rig.step() is True
    assert rig.tape[-7:] == [
        "accepted s",
        "state testing > running",
        "test_complete 1",
        "t: ok",
        "stopping 1",
        "request_stop",
        "s: ok",
    ]


@pytest.mark.parametrize("cmd", ["test_now", "test", "validate_now"])
@pytest.mark.parametrize("running", ["test_now", "validate_now"])
@pytest.mark.parametrize("pausing", [False, True])
def test_one_exclusive_action_at_a_time(rig: Rig, running: str, cmd: str, pausing: bool) -> None:
    if pausing:  # the state says so then, and no longer what is being done
        rig.delegate.meanwhile.append(rig.sends("pause", "p"))
    rig.delegate.meanwhile.append(rig.sends(cmd, "second"))
    rig.send(running, "first")
    rig.step(*([rig.sends("resume", "r")] if pausing else []))

    doing = {"test_now": "testing", "validate_now": "validating"}[running]
    assert rig.reply("second") == {
        "id": "second",
        "ok": False,
        "error": "busy",
        "code": "busy",
        "detail": f"{cmd} was asked, found the run {doing}; allowed: one such action at a time.",
        "retry_after_s": 1.0,
    }
    rig.send(cmd, "second")  # busy is not kept: now it is carried out
    rig.step()
    assert [r["ok"] for r in rig.link.replies if r["id"] == "second"] == [False, True]


def test_the_published_extension_is_told_busy_in_its_own_way(rig: Rig) -> None:
    legacy = FakeLink(legacy=True)
    rig.delegate.meanwhile.append(rig.sends("test_now", "t2", link=legacy))
    rig.send("test_now", "t1")
    rig.step()

    assert legacy.replies == [{"id": "t2", "ok": True, "data": {"status": "busy"}}]
    rig.send("test_now", "t2", link=legacy)
    rig.step()
    assert [r["data"]["status"] for r in legacy.replies] == ["busy", "ok"]


def test_the_published_extension_is_refused_a_test_during_a_validation(rig: Rig) -> None:
    legacy = FakeLink(legacy=True)
    rig.delegate.meanwhile.append(rig.sends("test_now", "t", link=legacy))
    rig.send("validate_now", "v")
    rig.step()

    assert (rig.reply("t", legacy)["ok"], rig.reply("t", legacy)["code"]) == (False, "busy")


@pytest.mark.parametrize("cmd", ["test_now", "validate_now"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such column"), "internal"),
        (CommandError(ErrorCode.UNSUPPORTED, "no loader"), "unsupported"),
    ],
)
def test_an_action_that_raises_leaves_the_state_as_it_was(
    rig: Rig, cmd: str, held: bool, error: Exception, code: str
) -> None:
    rig.delegate.raises = error
    found: list[str] = []
    if held:
        rig.send("pause", "p")

        def look() -> None:
            found.append(rig.state.state)
            rig.send("resume", "r")

        rig.step(rig.sends(cmd, "t"), look)
    else:
        rig.send(cmd, "t")
        rig.step()
        found.append(rig.state.state)

    assert found == ["paused" if held else "running"]
    assert rig.reply("t")["code"] == code
    assert not any(line.startswith("test_complete") for line in rig.tape)
    rig.delegate.raises = None
    rig.send(cmd, "again")
    rig.step()
    assert rig.reply("again")["step"] == 2


def test_ctrl_c_in_a_test_passes_through(rig: Rig) -> None:
    rig.delegate.raises = KeyboardInterrupt()
    rig.send("test_now", "t")

    with pytest.raises(KeyboardInterrupt):
        rig.step()
    assert rig.state.state == "running"
    rig.finish()
    assert rig.reply("t")["code"] == "not_allowed_now"


@pytest.mark.parametrize("when", ["refusal", "failure"])
def test_a_test_without_a_file_is_a_test_all_the_same(rig: Rig, when: str) -> None:
    setattr(rig.saver, when, FULL)
    rig.send("test_now", "t")
    rig.step()

    assert (rig.reply("t")["status"], rig.reply("t")["ckpt_path"]) == ("ok", None)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_none_is_left_out_for_a_null_would_be_stored_as_zero(
    rig: Rig, loss: float | None
) -> None:
    rig.delegate.avg_loss, rig.delegate.losses = loss, [loss]
    rig.send("test_now", "t")
    rig.step()

    assert "avg_loss" not in rig.reply("t")
    assert [e for e in rig.events if "loss" in e or "avg_loss" in e] == []


def test_a_validation_saves_nothing_and_answers_what_was_found(rig: Rig) -> None:
    rig.send("validate_now", "v", limit_batches=1)
    rig.send("validate_now", "w")
    rig.step()

    assert rig.tape == [
        "accepted v",
        "accepted w",
        "state running > validating",
        "state validating > running",
        "v: ok",
        "state running > validating",
        "state validating > running",
        "w: ok",
    ]
    metrics = {"acc": 0.5}
    assert rig.reply("v") == {"metrics": metrics, "step": 1, "seconds": 0.25, "applied_step": 1}
    assert rig.delegate.limits == [1, None]


@pytest.mark.parametrize("limit", [0, -3])
def test_a_validation_of_no_batches_is_refused(rig: Rig, limit: int) -> None:
    rig.send("validate_now", "v", limit_batches=limit)

    said = rig.reply("v")
    assert (said["code"], said["field"], said["allowed"]) == (
        "bad_payload",
        "limit_batches",
        {"min": 1},
    )
    assert said["detail"] == f"validate_now was asked for {limit} batches; allowed: 1 or more."


# Real threads.


def test_where_another_state_was_put_in_place_a_pause_is_told_of_that_one(rig: Rig) -> None:
    rig.send("pause", "p")

    def moved() -> None:
        rig.actions.stands_elsewhere(5, "five.ckpt")
        rig.send("pause", "again")
        rig.send("resume", "r")

    rig.step(moved)
    assert rig.reply("again") == {
        "status": "paused", "step": 5, "ckpt": "five.ckpt", "applied_step": 5,
    }  # fmt: skip
    rig.actions.stands_elsewhere(0, None)  # nobody is told: it goes on
    assert rig.reply("p")["step"] == 1


class LoudEvent:
    """Tells when the training thread stands; the file of the pause is there at once."""

    def __init__(self) -> None:
        self.tape: list[tuple[str, str]] = []
        self.paused, self.resumed = threading.Event(), threading.Event()

    def emit(self, kind: str, **fields: Any) -> None:
        self.tape.append((kind, fields.get("state", "")))
        if kind in ("paused", "resumed"):
            getattr(self, kind).set()


def test_a_batch_that_takes_long_is_waited_for_by_the_reply_and_not_by_pausing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real events again
    loud = LoudEvent()
    delegate = rig.delegate
    position = Position()
    state = RunState(loud.emit, lambda: {"step": 0, "epoch": 0})
    console = ConsoleAction(
        emit=loud.emit,
        state=state,
        delegate=delegate,
        saver=rig.saver,
        position=lambda: position,
    )
    router = CommandRouter()
    bus = ControlBus(router, wake=console.wake, step=lambda: position.step)
    console.connect(router, bus)
    state.move("running")
    link = FakeLink()
    in_batch, end_batch = threading.Event(), threading.Event()

    def train() -> None:
        in_batch.set()
        assert end_batch.wait(10)
        delegate.step = 5
        console.safe_point.tick()

    def ask(cmd: str) -> None:
        bus.receive(protocol.Request(cmd=cmd, id=cmd), link)

    training = threading.Thread(target=train, name="training")
    training.start()
    assert in_batch.wait(10)
    ask("pause")
    assert (state.state, link.replies) == ("pausing", [])
    end_batch.set()
    assert loud.paused.wait(10)
    ask("resume")
    assert loud.resumed.wait(10)
    training.join()

    assert loud.tape == [
        ("state", "running"),
        ("state", "pausing"),
        ("state", "paused"),
        ("paused", ""),
        ("state", "running"),
        ("resumed", ""),
    ]
    assert [(r["id"], r["data"]["step"]) for r in link.replies] == [("pause", 5), ("resume", 5)]


def test_the_constants_are_those_of_the_protocol() -> None:
    assert actions.SAVE_PATIENCE_S == 10.0
    assert set(actions.NOT_IN_THIS_VERSION) < set(protocol.COMMANDS)
    assert all(why.endswith(".") for why in actions.NOT_IN_THIS_VERSION.values())
    assert "otf scan" in actions.NOT_IN_THIS_VERSION["propose_subsets"]
