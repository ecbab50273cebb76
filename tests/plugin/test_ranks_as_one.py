"""A run of two ranks is held, changed, saved, put back and let go as one; and ends as if the script
had done the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from otf_core.state.run_folder import complete_checkpoints
from otf_core.testing import FakeDashboard, LoopbackListener
from tests.plugin.ranks_live import DECAY, KINDS, SET_AT, STEPS
from tests.ranks import rig

PATIENCE_S = 90.0
RANKS = (0, 1)
BOTH = {"ranks": 2, "of": 2}


def started(
    folder: Path, port: int, script: str = "tests.plugin.ranks_live", *more: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    return rig.started(sys.executable, "-m", script, str(folder), str(port), *more)


def outcome(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, err
    return err


def result(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
    return found


def trained(weights: dict[str, Any]) -> dict[str, Any]:
    """Without the statistics of BatchNorm, which each rank has of its own batches."""
    return {name: value for name, value in weights.items() if "running" not in name}


@contextmanager
def attached(
    folder: Path, script: str = "tests.plugin.ranks_live"
) -> Iterator[tuple[subprocess.Popen[str], FakeDashboard]]:
    """The run, held before its first batch, and the dashboard that holds it."""
    with (
        LoopbackListener(legacy_allowed=False) as listener,
        started(folder, listener.port, script) as process,
        FakeDashboard(listener.accept(PATIENCE_S), patience_s=PATIENCE_S) as dashboard,
    ):
        ours = dashboard.expect("hello")["session_id"]
        dashboard.hello(session_id=ours, last_seq=0)
        dashboard.expect("paused", step=0)
        yield process, dashboard


def done(dashboard: FakeDashboard, cmd: str, **payload: Any) -> dict[str, Any]:
    reply = dashboard.request(cmd, payload)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


@pytest.mark.timeout(360)
def test_all_that_is_done_to_two_ranks_is_done_at_one_step_on_both(tmp_path: Path) -> None:
    with attached(tmp_path) as (process, dashboard):
        change = {"path": "weight_decay", "value": DECAY, "at_step": SET_AT}
        asked = dashboard.send("set_param", change)
        several = dashboard.send("set_params", {"changes": KINDS, "at_step": SET_AT})
        done(dashboard, "resume")
        applied = dashboard.reply_to(asked)["data"]
        assert (applied["applied_step"], applied["new"]) == (SET_AT, DECAY)
        assert applied["applied_on"] == BOTH
        of_all = dashboard.reply_to(several)["data"]
        assert [each["new"] for each in of_all["applied"]] == [each["value"] for each in KINDS]
        assert (of_all["applied_step"], of_all["applied_on"]) == (SET_AT, BOTH)
        held = done(dashboard, "pause")
        assert held["applied_on"] == BOTH
        assert SET_AT <= held["step"] < STEPS
        away = done(dashboard, "park")
        assert away["ranks"] == 2
        assert 0 < away["freed_bytes"] == away["moved_bytes"]
        assert "found the run parked" in dashboard.request("validate_now")["detail"]
        done(dashboard, "resume")
        held = done(dashboard, "pause")
        saved = done(dashboard, "save_ckpt")
        assert (saved["step"], saved["applied_on"]) == (held["step"], BOTH)
        assert "applied_on" not in done(dashboard, "note", text="rank 0 alone keeps it")
        found = done(dashboard, "validate_now")
        assert 0 < found["metrics"]["val_loss"] < 10
        done(dashboard, "set_param", path="weight_decay", value=0.5)
        done(dashboard, "set_param", path="lr", value=0.01)
        back = done(dashboard, "rollback", checkpoint=saved["id"])
        assert (back["step"], back["applied_on"]) == (held["step"], BOTH)
        done(dashboard, "set_param", path="lr", value=0.02)
        assert done(dashboard, "undo")["undone"]["cmd"] == "set_param"
        curve = {"path": "lr", "to": 0.0, "over": 2, "until": STEPS}
        both = [curve, {"path": "weight_decay", "value": 0.0}]
        curves = done(dashboard, "preview_params", changes=both, steps=3)
        assert len(curves["step"]) == 3
        done(dashboard, "set_params", changes=both)
        assert done(dashboard, "undo")["undone"]["cmd"] == "set_params"
        done(dashboard, "resume")
        again = done(dashboard, "pause")
        assert again["step"] >= held["step"]
        recipe = done(dashboard, "export_recipe")
        assert recipe["steps"] == 5  # with what was taken back, without what was rolled back
        done(dashboard, "resume")
        ended = dashboard.expect("trainingFinished")
        assert (ended["status"], ended["step"]) == ("completed", STEPS)
        outcome(process)
    for more in ((), (recipe["out_path"],)):
        with started(tmp_path, 0, "tests.plugin.ranks_live", *more) as process:
            outcome(process)
    for rank in RANKS:
        bare, live, replayed = (
            result(tmp_path, name, rank) for name in ("bare", "live", "replayed")
        )
        assert live.pop("logged")[-3:] == bare["logged"][-3:]
        assert replayed == bare
        assert live == {name: value for name, value in bare.items() if name != "logged"}


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_recipe_that_cannot_be_replayed_is_refused_on_both_ranks(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    step = {"at_step": 3, "cmd": "set_param", "payload": {"path": "nobody", "value": 1}}
    path.write_text(json.dumps({"otf_recipe": 1, "of": "r", "steps": [step]}))
    with started(tmp_path, 0, "tests.plugin.ranks_live", str(path)) as process:
        _, err = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode != 0
    assert err.count("RecipeError: step 1 of the recipe (set_param nobody at step 3)") == 2


@pytest.mark.timeout(120)
def test_a_stop_ends_both_ranks_at_one_step(tmp_path: Path) -> None:
    with attached(tmp_path) as (process, dashboard):
        done(dashboard, "resume")
        stopped = done(dashboard, "stop")
        assert stopped["applied_on"] == BOTH
        outcome(process)
    ends = [result(tmp_path, "live", rank)["steps"] for rank in RANKS]
    assert [steps for steps, _ in ends] == [stopped["step"]] * 2
    weights = [trained(result(tmp_path, "live", rank)["weights"]) for rank in RANKS]
    assert weights[0] == weights[1]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("number", "whom", "held"),
    [
        pytest.param(signal.SIGTERM, "all", True, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "first", False, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "other", False, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "all", False, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "other", True, marks=pytest.mark.long),
    ],
)
def test_whichever_rank_is_told_to_end_all_leave_at_one_step_and_the_run_is_kept(
    tmp_path: Path, number: signal.Signals, whom: str, held: bool
) -> None:
    with attached(tmp_path) as (process, dashboard):
        if not held:
            done(dashboard, "resume")
            dashboard.expect("trainStep", step=5)
        if whom == "all":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if whom == "first" else other_rank_of(process.pid), number)
        dashboard.expect("trainingFinished")
        _, err = process.communicate(timeout=2 * PATIENCE_S)
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    [said] = [line for line in err.splitlines() if f"{name}: saved step" in line]
    assert "OTF_RESUME=" in said
    assert process.returncode != -signal.SIGABRT, err
    kept = complete_checkpoints(tmp_path / "runs/p/r")
    step = kept[-1][0].step
    assert f"saved step {step}" in said
    assert (step == 0) is held


def other_rank_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [c for c in children if "ranks_live" in Path(f"/proc/{c}/cmdline").read_text()]
    [other] = map(int, found)
    return other
