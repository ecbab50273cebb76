"""The published VS Code dashboard extension drives a real fit over its own wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from otf_core.testing import LegacyDashboard, LoopbackListener
from otf_core.testing.legacy import HostError
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit, digits
from tests.plugin.rig import PATIENCE_S, Barrier, Fit


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackListener]:
    """The extension's port, taken as the environment says."""
    with LoopbackListener() as open_:
        monkeypatch.setenv("ONTHEFLY_DASHBOARD_PORT", str(open_.port))
        monkeypatch.delenv("OTF_LEGACY")
        yield open_


def attached(
    save_dir: Path,
    *barriers: Barrier,
    name: str = "run",
    after_fit: Any = "return",
    **kwargs: Any,
) -> Fit:
    callback = OnTheFlyCallback(
        "vscode",
        name,
        save_dir=save_dir,
        test_dataloaders=DataLoader(digits(64), batch_size=16),
        after_fit=after_fit,
    )
    fit = Fit(lambda: _fit([callback, *barriers], Net(schedule=None), **kwargs))
    fit.start()
    return fit


def kinds(host: LegacyDashboard) -> list[str]:
    return [str(e["type"]) for e in host.events]


def test_connect_pause_save_test_resume_finish(listener: LoopbackListener, tmp_path: Path) -> None:
    foreign = tmp_path / "train.py"
    foreign.write_text("print('mine')\n")
    barrier = Barrier(5, 9)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier, after_fit="auto")
        host.wait_for_event("session_started")
        host.wait_for(lambda: "clean_disk" in host.requests)
        barrier.wait_for(5)
        barrier.let_go(5)
        saved = host.press_pause()
        assert saved is not None
        assert Path(saved["path"]).is_file()
        paused = host.wait_for_event("paused")
        assert saved["step"] == paused["step"]
        step = paused["step"]
        tested = host.press_test()
        assert tested["status"] == "ok"
        assert tested["step"] == step
        assert Path(tested["ckpt_path"]).is_file()
        assert tested["avg_loss"] > 0
        host.press_resume()
        host.wait_for_event("resumed")
        barrier.open()
        # It expects the end to be tested and held.
        tested_last = host.wait_for_event("auto_test_complete", step=24)
        assert Path(tested_last["ckpt_path"]).is_file()
        host.wait_for_event("paused", step=24)
        assert "trainingFinished" not in kinds(host)
        host.press_resume()
        host.wait_for_event("trainingFinished", status="completed")
        fit.outcome()

    order = kinds(host)
    assert order.index("session_started") < order.index("newRun") < order.index("trainStep")
    assert order.count("paused") == order.count("resumed") == 2
    held = host.events[order.index("paused") : order.index("resumed")]
    assert not [e for e in held if e["type"] == "trainStep"]
    assert [e["step"] for e in host.events if e["type"] == "trainStep"] == list(range(1, 25))
    # The digest on connecting tells checkpoints behind the steps.
    ordered = [e for e in host.events if e["type"] != "checkpoint_saved"]
    seqs = [e["event_seq"] for e in ordered if "event_seq" in e]
    assert seqs == sorted(set(seqs))
    assert {"gap", "accepted"}.isdisjoint(order)
    assert host.page_log == []
    assert host.shown_errors == []
    assert foreign.read_text() == "print('mine')\n"
    before_info = [m for d, m in host.tape[:3] if d == "in"]
    assert before_info[0]["type"] == "hello"


def test_a_second_trainer_says_so_once_and_waits(
    listener: LoopbackListener, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = Barrier(3), Barrier(3)
    with LegacyDashboard(listener) as host:
        one = attached(tmp_path, first, name="one")
        host.wait_for_event("session_started")
        first.wait_for(3)
        two = attached(tmp_path, second, name="two")
        second.wait_for(3)
        host.wait_for(lambda: host.warnings >= 2)
        second.open()
        two.outcome()
        first.open()
        one.outcome()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("otf:")]
    refused = [line for line in said if "another" in line or "hung up" in line]
    assert len(refused) == 1, said
    assert {e["run_id"] for e in host.events if "run_id" in e} == {"one"}


def test_what_this_version_cannot_do_is_said_in_a_sentence(
    listener: LoopbackListener, tmp_path: Path
) -> None:
    barrier = Barrier(2)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier)
        try:
            host.wait_for_event("session_started")
            barrier.wait_for(2)
            with pytest.raises(HostError, match=r"Nothing proposes clusters"):
                host.ask("propose_subsets", {})
        finally:
            barrier.open()
            fit.outcome()


def pause_behind(host: LegacyDashboard, let_go: Callable[[], None]) -> None:
    """Ask for a pause within the batch that waits, and let it go once it is heard."""
    asked = host.send("pause")
    host.wait_for(
        lambda: any(e["type"] == "state" and e["state"] == "pausing" for e in host.events),
        PATIENCE_S,
    )
    let_go()
    host.wait_for(lambda: asked in host.replies, PATIENCE_S)


HEALTH: dict[str, dict[str, Any]] = {
    "dist_health": {"require_all_ranks": False, "sample_weights": 0},
    "throughput_health": {"budget_steps": 2, "micro_backward": False},
    "activations_health": {"budget_steps": 2, "topk": 12, "eps": 0.001},
    "numerics_health": {"sample_layers": 25},
    "determinism_health": {},
}


def test_report_and_health_pressed_there_are_answered(
    listener: LoopbackListener, tmp_path: Path
) -> None:
    barrier = Barrier(4)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier)
        try:
            host.wait_for_event("session_started")
            barrier.wait_for(4)
            pause_behind(host, barrier.open)
            report = host.press_report("run")
            told = {cmd: host.ask(cmd, payload) for cmd, payload in HEALTH.items()}
        finally:
            barrier.open()
            host.tell("resume")
            fit.outcome()
    assert (len(report["losses"]), report["sample_indices"]) == (192, [*range(192)])
    assert (report["meta"]["at_step"], report["reqId"]) == (5, 1)
    assert all(isinstance(found["ok"], bool) and found["text"] for found in told.values())


def test_exports_pressed_there_are_answered(
    listener: LoopbackListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    barrier = Barrier(4)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier)
        try:
            host.wait_for_event("session_started")
            barrier.wait_for(4)
            pause_behind(host, barrier.open)
            said = host.press_export_subset("run", str(tmp_path / "a.csv"))
            none = {"run_id": "run", "format": "csv", "subset_indices": []}
            everything = host.ask("export_subset", none)
            with pytest.raises(HostError, match="a file below"):
                host.press_export_subset("run", "/etc/a.csv")
            session = host.press_export_session(str(tmp_path / "spill"))
            spilled = host.ask("spill_all", {"dir": str(tmp_path / "spill"), "latest_only": True})
            made = host.wait_for_event("artifact_created")
        finally:
            barrier.open()
            host.tell("resume")
            fit.outcome()
    assert (said["rows"], said["export_all"], said["received_indices"]) == (192, True, 0)
    assert (everything["rows"], everything["export_all"]) == (192, True)
    assert (made["path"], made["rows"]) == (str(tmp_path / "a.csv"), 192)
    assert (session["ckpt"]["run"], session["ckpt"]["step"], session["snapshots"]) == ("run", 5, [])
    [snapshot] = spilled["array"]
    assert (snapshot["owner"], snapshot["path"]) == ("run", session["ckpt"]["path"])
    assert not (tmp_path / "spill").exists()


def test_attach_context_to_the_run_that_is_under_way_holds_it(
    listener: LoopbackListener, tmp_path: Path
) -> None:
    barrier = Barrier(4)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier)
        host.wait_for_event("session_started")
        barrier.wait_for(4)
        asked = host.send(
            "attach_context",
            {"run_id": "run", "fork_counter_init": 2, "merge_counter_init": 1},
        )
        barrier.open()
        host.wait_for(lambda: asked in host.replies, PATIENCE_S)
        data = host.replies[asked]["data"]
        assert (data["run_id"], data["paused"], data["ckpt_loaded"]) == ("run", True, False)
        assert (data["fork_counter_seed"], data["merge_counter_seed"]) == (2, 1)
        assert data["step"] == host.wait_for_event("paused")["step"]
        host.press_resume()
        fit.outcome()


def test_a_fork_pressed_there_trains_and_its_parent_is_switched_to(
    listener: LoopbackListener, tmp_path: Path
) -> None:
    barrier = Barrier(4, 9)
    with LegacyDashboard(listener) as host:
        fit = attached(tmp_path, barrier)
        host.wait_for_event("session_started")
        barrier.wait_for(4)
        pause_behind(host, lambda: barrier.let_go(4))
        wanted = {"kind": "indices", "ids": [*range(40)]}
        form = {"lr": 0.004, "batch_size": 32, "patience": 5}
        reply = host.press_fork("run", selection=wanted, hparams=form)
        assert (reply["new_run"], len(reply["subset_indices"])) == ("fork1", 40)
        barrier.wait_for(9)
        told = {
            "fork1: batch_size 32 is what the form is filled with: not applied",
            "fork1: lr 0.004 was typed: applied",
        }
        host.wait_for(lambda: told <= {log["text"] for log in host.logs}, PATIENCE_S)
        assert host.runs.keys() == {"run", "fork1"}
        asked = host.send("switch_run", {"run_id": "run"})
        barrier.open()
        host.wait_for(lambda: asked in host.replies, PATIENCE_S)
        back = host.replies[asked]["data"]
        assert (back["run_id"], back["step"], back["paused"]) == ("run", 5, True)
        host.tell("resume")
        fit.outcome()
