"""A script is paused, changed, looked at and stopped between two of its steps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from otf_core.testing import FakeDashboard
from tests.script.rig import SHAPES, Zygote, controlled, shape
from tests.script.test_attaching_changes_nothing import compare


def ok(reply: dict[str, Any]) -> dict[str, Any]:
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


def paused(dashboard: FakeDashboard) -> int:
    step: int = dashboard.expect("paused")["step"]
    return step


def lrs(events: list[dict[str, Any]]) -> list[float]:
    return [event["lr"] for event in events]


def test_held_at_its_first_safe_point_it_is_the_same_run_afterwards(
    zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("python", shape("plain"), tmp_path / "bare")
    with controlled(zygote, shape("plain"), tmp_path / "under") as (script, dashboard):
        assert paused(dashboard) == 1
        status = ok(dashboard.request("status"))
        assert (status["state"], status["step"], status["epoch"]) == ("paused", 1, 0)
        assert ok(dashboard.request("pause"))["step"] == 1
        ok(dashboard.request("note", {"text": "look"}))
        ok(dashboard.request("resume"))
        assert dashboard.expect("trainingFinished")["status"] == "completed"
        compare(bare, script.wait())


def test_a_held_value_is_used_and_never_seen_by_the_schedule(
    zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("otf-fit", shape("plain"), tmp_path / "bare")
    with controlled(zygote, shape("plain"), tmp_path / "under") as (script, dashboard):
        paused(dashboard)
        done = ok(dashboard.request("set_param", {"path": "lr", "value": 0.5}))
        own = lrs(bare.events("trainStep"))
        assert (done["old"], done["new"], done["mode"]) == (own[0], 0.5, "override")
        [row] = [r for r in ok(dashboard.request("list_params"))["params"] if r["path"] == "lr"]
        assert (row["value"], row["script"]) == (0.5, own[0])
        released = dashboard.send("set_param", {"path": "lr", "release": True, "at_step": 6})
        ok(dashboard.request("resume"))
        back = ok(dashboard.reply_to(released))
        assert (back["old"], back["new"]) == (0.5, own[5])
        under = script.wait()
    told = lrs(under.events("trainStep"))
    assert told[1:6] == [0.5] * 5
    assert told[6:] == own[6:]
    assert [line.split()[-1] for line in under.stdout.decode().splitlines() if " lr " in line] == [
        line.split()[-1] for line in bare.stdout.decode().splitlines() if " lr " in line
    ]
    assert under.digest != bare.digest


def test_a_stop_leaves_at_the_safe_point_with_the_code_that_was_chosen(
    zygote: Zygote, tmp_path: Path
) -> None:
    argv = [str(SHAPES / "leaves.py"), "never"]
    with controlled(zygote, argv, tmp_path, "--stop-code", "5") as (script, dashboard):
        paused(dashboard)
        done = ok(dashboard.request("stop", {"save": False}))
        assert (done["status"], done["step"]) == ("stopping", 1)
        assert dashboard.expect("trainingFinished")["status"] == "stopped"
        under = script.wait()
    assert under.code == 5
    assert under.stdout == b"finally\natexit\n"
    assert "Traceback" not in under.stderr


def test_a_stop_that_the_script_swallows_is_refused_by_name_and_training_goes_on(
    zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("python", shape("catches_all"), tmp_path / "bare")
    with controlled(zygote, shape("catches_all"), tmp_path / "under") as (script, dashboard):
        paused(dashboard)
        reply = dashboard.request("stop", {"save": False})
        line = (SHAPES / "catches_all.py").read_text().splitlines().index(
            "    except BaseException as error:"
        ) + 1
        where = f"{SHAPES / 'catches_all.py'}:{line}"
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert reply["detail"] == f"stop refused: the script catches everything at {where}"
        assert dashboard.expect("trainingFinished")["status"] == "completed"
        under = script.wait()
    assert under.stdout == b"caught StopScript\n" * 3
    assert under.digest is not None
    assert bare.digest is not None
    assert under.digest["model"] == bare.digest["model"]
    assert f"otf: {reply['detail']}" in under.said


def test_a_stop_saves_before_it_leaves(zygote: Zygote, tmp_path: Path) -> None:
    with controlled(zygote, shape("by_hand"), tmp_path) as (script, dashboard):
        paused(dashboard)
        done = ok(dashboard.request("stop"))
        assert Path(done["ckpt"]).is_file()
        under = script.wait()
    assert (under.code, under.digest) == (0, None)
    *_, said, how = under.said
    assert said.endswith(f": stopped by a command at step {done['step']}")
    assert f"OTF_RESUME={done['ckpt']} " in how


def test_what_a_script_cannot_do_is_unsupported_with_its_reason(
    zygote: Zygote, tmp_path: Path
) -> None:
    with controlled(zygote, shape("by_hand"), tmp_path) as (script, dashboard):
        paused(dashboard)
        for cmd, payload in (
            ("test_now", {}),
            ("extend", {"max_steps": 5}),
            ("reset_session", {}),
            ("validate_now", {}),
            ("fork", {}),
        ):
            reply = dashboard.request(cmd, payload)
            assert (reply["ok"], reply["code"]) == (False, "unsupported"), reply
            assert reply["detail"].endswith(".")
        assert "register_validation" in dashboard.request("validate_now")["detail"]
        [row] = ok(dashboard.request("list_params"))["params"]  # it has no optimizer
        assert row["path"] == "model.frozen"
        ok(dashboard.request("resume"))
        script.wait()


def test_a_validation_that_the_script_has_named_leaves_no_trace(
    zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("python", shape("validates"), tmp_path / "bare")
    with controlled(zygote, shape("validates"), tmp_path / "under") as (script, dashboard):
        paused(dashboard)
        first = ok(dashboard.request("validate_now"))["metrics"]
        assert first == ok(dashboard.request("validate_now"))["metrics"]
        assert first["val_loss"] > 0
        ok(dashboard.request("resume"))
        under = script.wait()
    compare(bare, under)
    assert under.steps() == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_in_a_pause_is_the_script_s_own(zygote: Zygote, tmp_path: Path) -> None:
    argv = [str(SHAPES / "leaves.py"), "never"]
    with controlled(zygote, argv, tmp_path) as (script, dashboard):
        paused(dashboard)
        os.kill(script.pid, signal.SIGINT)
        assert dashboard.expect("trainingFinished")["status"] == "stopped"
        under = script.wait()
    assert under.code == -signal.SIGINT
    assert under.stdout == b"finally\natexit\n"
    theirs = [line for line in under.stderr.splitlines() if not line.startswith("otf: ")]
    assert (theirs[0], theirs[-1]) == ("Traceback (most recent call last):", "KeyboardInterrupt")


def test_sigterm_in_a_pause_ends_the_process(zygote: Zygote, tmp_path: Path) -> None:
    with controlled(zygote, shape("by_hand"), tmp_path) as (script, dashboard):
        paused(dashboard)
        os.kill(script.pid, signal.SIGTERM)
        assert script.wait().code == -signal.SIGTERM
