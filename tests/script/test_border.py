"""A fault of ours costs a script us, and nothing else: each of our parts fails once."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.script.rig import SHAPES, Ran, Zygote, controlled, shape
from tests.script.test_attaching_changes_nothing import compare
from tests.script.test_control import ok, paused

CONTROL = "otf_core.script.control ScriptControl."
# What fails, at which call, in which script.
FAULTS = [
    (f"{CONTROL}begins 1", "plain"),
    (f"{CONTROL}before_step 5", "lbfgs"),
    (f"{CONTROL}after_step 2", "sam"),
    (f"{CONTROL}fed 2", "workers"),
    (f"{CONTROL}pass_ended 1", "plain"),
    (f"{CONTROL}safe_point 3", "gan"),
    (f"{CONTROL}safe_point 3", "no_loader"),
    (f"{CONTROL}attach 1", "plain"),
    ("otf_core.script.control Held.take_out 2", "plain"),
    ("otf_core.script.driver ScriptDriver._keep 3", "compiled"),
    ("otf_core.script.loaders tap 2", "two_loaders"),
    ("otf_core.state.loader_parts ordering_parts 3", "workers"),
    ("otf_core.script.loops Loops._followed 1", "two_loaders"),
    ("otf_core.script.marks _Marker.visit_For 2", "no_loader"),
    ("otf_core.script.marks is_below 1", "plain"),
    ("otf_core.session Session.start 1", "plain"),
    ("otf_core.telemetry.recorder StepRecorder.boundary 3", "accumulation"),
    ("otf_core.script.delegate ScriptDelegate.position 4", "plain"),
]
SAID = re.compile(
    r"otf: an error of otf's own at \w+\.py:\d+ \(ZeroDivisionError: planted\); "
    r"otf lets go of the script, which trains on"
)


@pytest.fixture(scope="module")
def bare(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """A shape as python runs it, once."""
    folder = tmp_path_factory.mktemp("bare")
    return functools.cache(lambda name: zygote.run("python", shape(name), folder / name))


def with_fault(zygote: Zygote, fault: str, name: str, folder: Path) -> Ran:
    return zygote.run("otf-fit", shape(name), folder, {"FAULT": fault})


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        pytest.param(*each, marks=() if at % 3 == 0 else pytest.mark.long)
        for at, each in enumerate(FAULTS)
    ],
)
def test_a_script_trains_on_as_if_we_had_never_been_there(
    fault: str, name: str, bare: Callable[[str], Ran], zygote: Zygote, tmp_path: Path
) -> None:
    under = with_fault(zygote, fault, name, tmp_path)
    compare(bare(name), under)
    [said] = [line for line in under.said if "otf's own" in line]
    assert SAID.match(said), said
    assert "Traceback" not in under.stderr
    for end in under.events("trainingFinished"):
        assert end["status"] == "failed"
        assert f"otf: {end['error']}" == said.partition(";")[0]
        logs = [e["text"] for e in under.events("log") if e["level"] == "error"]
        assert "ZeroDivisionError: planted" in logs[-1]
    begun = under.events("session_started")
    assert len(under.events("trainingFinished")) == len(begun)


def test_a_fault_at_the_very_end_is_said_and_the_exit_code_is_the_script_s(
    bare: Callable[[str], Ran], zygote: Zygote, tmp_path: Path
) -> None:
    fault = "otf_core.script.control _ended 1"
    under = with_fault(zygote, fault, "plain", tmp_path)
    compare(bare("plain"), under)
    [said] = re.findall("otf: an error of otf's own.*", under.stderr)
    assert said.endswith("(ZeroDivisionError: planted); the record of the run ends there")
    [end] = under.events("trainingFinished")
    assert end["status"] == "failed"


def test_a_script_s_own_error_passes_through_what_is_ours(zygote: Zygote, tmp_path: Path) -> None:
    argv = [str(SHAPES / "fails_inside.py"), "backward"]
    under = zygote.run("otf-fit", argv, tmp_path)
    assert under.code == 1
    assert not [line for line in under.said if "otf's own" in line]


def test_what_is_held_is_taken_out_and_open_commands_are_answered(
    zygote: Zygote, tmp_path: Path
) -> None:
    fault = {"FAULT": "otf_core.script.control ScriptControl.after_step 5"}
    argv = shape("no_loader")
    with controlled(zygote, argv, tmp_path, env=fault) as (script, dashboard):
        paused(dashboard)
        ok(dashboard.request("set_param", {"path": "lr", "value": 0.5}))
        later = dashboard.send("set_param", {"path": "lr", "value": 0.1, "at_step": 100})
        ok(dashboard.request("resume"))
        reply = dashboard.reply_to(later)
        assert (reply["ok"], reply["code"]) == (False, "internal")
        assert "an error of otf's own at" in reply["detail"]
        assert dashboard.expect("trainingFinished")["status"] == "failed"
        under = script.wait()
    assert under.code == 0
    printed = [line.split()[-1] for line in under.stdout.decode().splitlines()[:12]]
    assert "0.500000" not in printed


def test_a_run_that_was_to_go_on_is_refused_and_not_begun_anew(
    zygote: Zygote, tmp_path: Path
) -> None:
    first = zygote.run("otf-fit", ["--checkpoint-every", "3", *shape("plain")], tmp_path)
    assert first.code == 0
    for fault in ("reentry Reentry.apply 1", "control find 1", "goes_on frames_to 1"):
        under = zygote.run(
            "otf-fit",
            ["--resume", "auto", *shape("plain")],
            tmp_path,
            {"FAULT": f"otf_core.script.{fault}"},
        )
        assert under.code == 3, (fault, under.stderr)
        assert "planted" in under.said[-1]
        assert under.said[-1].endswith("; nothing was trained")
        assert b"batch" not in under.stdout
