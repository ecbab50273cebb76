"""A session is packed and told as a page while it lives, and goes on as if it had not been."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.runs import archive, session_files
from otf_core.runs.unarchive import read_contents, unpack
from otf_core.state.run_folder import RunLock, record_of, write_record
from tests.exact.digest import differences, of_run
from tests.no_harm import digest
from tests.plugin import rig as plugin_rig
from tests.plugin import test_fork as of_lightning
from tests.plugin.rig import Fit, pause_in, unlogged
from tests.plugin.test_fork import asks, refused
from tests.runner import rig as runner_rig
from tests.runner.test_fork import options
from tests.runs.elsewhere import CHOSEN, NAMED

pytestmark = pytest.mark.usefixtures("queues_have_ended")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported(run: Fit, **payload: Any) -> dict[str, Any]:
    found = asks(run, "export_session", payload)
    assert Path(found["out_path"]).stat().st_size == found["bytes"]
    return found


def test_a_running_fit_of_the_runner_is_packed_and_goes_on_here_and_there(tmp_path: Path) -> None:
    expected = runner_rig.bare(**options())
    barrier = runner_rig.Barrier(2)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        barrier.wait_for(2)
        asked = run.dashboard.send("export_session", {"out_path": "a.zip"})
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(2)
        found = run.dashboard.reply_to(asked)["data"]
        assert differences(expected, of_run(run.outcome())) == []
        told = [e["state"] for e in run.dashboard.events() if e["type"] == "state"]
    assert (found["runs"], found["checkpoints"], found["missing"]) == (["r"], 1, [])
    assert found["applied_step"] == 3
    at = told.index("validating")
    assert told[at - 1 : at + 2] == ["running", "validating", "running"]
    unpack(tmp_path / "a.zip", tmp_path / "there")
    torch.manual_seed(99)
    again = {"save_dir": tmp_path / "there", "dashboard": "off", "resume": "auto"}
    there = runner_rig.fitted(**again, **NAMED, **options())
    assert differences(expected, of_run(there)) == []


def test_a_held_fit_of_lightning_with_a_fork_is_packed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otf_core.telemetry.journal.GATHER_S", 30.0)  # unless somebody waits
    torch.manual_seed(3)
    expected = of_lightning.bare()
    torch.manual_seed(3)
    barrier = plugin_rig.Barrier(4)
    fit = lambda c: of_lightning.fit(c, of_lightning.Seeing())  # noqa: E731
    with plugin_rig.fitting(fit, tmp_path / "runs", barrier, **NAMED) as run:
        pause_in(run, barrier, 4)
        asks(run, "scan")
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "run_name": "hard"})
        found = exported(run, checkpoints="all")
        assert found["runs"] == ["r", "hard"]
        only = exported(run, runs=["hard"], out_path="hard.zip")
        assert (only["runs"], only["missing"]) == (["hard"], ["r"])
        asks(run, "note", {"text": "a moment ago"})
        page = asks(run, "export_report")
        of_parent = asks(run, "export_report", {"run_id": "r", "out_path": "r.html"})
        assert asks(run, "status")["state"] == "paused"
        asks(run, "switch_run", {"run_id": "r"})
        with_figures = asks(run, "export_report", {"out_path": "r.html"})
        asks(run, "resume")
        assert unlogged(digest.of(run.outcome())) == expected
    home = tmp_path / "runs/p"
    assert Path(found["out_path"]).parent == home / "hard/exports"
    assert Path(page["out_path"]).parent == home / "hard/exports"
    of_fork = Path(page["out_path"]).read_text()
    assert "on 19 chosen samples" in of_fork
    assert "a moment ago" in of_fork
    assert (of_parent["run_id"], with_figures["run_id"]) == ("r", "r")
    told = (tmp_path / "r.html").read_text()
    assert "Forked into <b>hard</b>" in told
    assert "Samples of the train set" in told
    contents = read_contents(Path(found["out_path"]))
    of_r = next(run for run in contents.runs if run.run_id == "r")
    assert [name.split("-")[1] for name in of_r.checkpoints] == ["auto", "pause"]


class Held(archive.Telling):
    """Packing waits in the middle, until it is let go."""

    reached, go = threading.Event(), threading.Event()

    def add(self, count: int) -> None:
        Held.reached.set()
        assert Held.go.wait(30)
        super().add(count)


@pytest.mark.parametrize("cmd", ["export_session", "export_report"])
def test_what_is_cancelled_leaves_no_file_and_the_run_as_it_was(
    cmd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runner_rig.bare(**options())
    monkeypatch.setattr(archive, "Telling", Held)
    monkeypatch.setattr("otf_core.runs.report.Telling", Held)
    monkeypatch.setattr("otf_core.runs.told.PIECE_BYTES", 1)
    Held.reached.clear()
    Held.go.clear()
    barrier = runner_rig.Barrier(2)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        pause_in(run, barrier, 2)
        asked = run.dashboard.send(cmd)
        assert Held.reached.wait(30)
        assert asks(run, "cancel", {"request_id": asked}) == {"cancelled": asked}
        Held.go.set()
        reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert "was cancelled after" in reply["detail"]
        assert "the run is as it was" in reply["detail"]
        assert asks(run, "status")["state"] == "paused"
        assert [*(tmp_path / "runs/p/r/exports").iterdir()] == []
        asks(run, "resume")
        assert differences(expected, of_run(run.outcome())) == []


def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runner_rig.bare(**options())
    (tmp_path / "mine.zip").write_bytes(b"mine")
    (tmp_path / "link.zip").symlink_to("/etc/passwd")
    barrier = runner_rig.Barrier(2)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        pause_in(run, barrier, 2)
        for payload in (
            *({"out_path": path} for path in (
                "mine.zip", "link.zip", "/etc/a.zip", "../../../../../a.zip", "a.py", "a\0.zip",
                "none/a.zip", "", "/dev/null",
            )),
            {"runs": []}, {"checkpoints": "some"}, {"runs": 5},
        ):  # fmt: skip
            assert refused(run, "export_session", payload)[0] == "bad_payload", payload
        for path in ("mine.html", "../../../../../r.html", "a.zip"):
            payload = {"out_path": path if path != "mine.html" else "mine.zip"}
            assert refused(run, "export_report", payload)[0] == "bad_payload"
        for name in ("none", "../r", "", "."):
            assert refused(run, "export_session", {"runs": [name]})[0] == "not_found"
            assert refused(run, "export_report", {"run_id": f"x{name}"})[0] == "not_found"

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(archive, "_write", full)
            code, detail = refused(run, "export_session", {"out_path": "a.zip"})
            assert (code, "no space left" in detail) == ("not_allowed_now", True)
        with monkeypatch.context() as patch:
            patch.setattr(session_files, "report", lambda *_, **__: 1 / 0)
            assert refused(run, "export_report", {"out_path": "a.html"})[0] == "internal"
        assert not [*tmp_path.glob("a.*"), *tmp_path.glob(".otf*")]
        assert (tmp_path / "mine.zip").read_bytes() == b"mine"
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        assert differences(expected, of_run(run.outcome())) == []


def test_a_relative_that_another_process_trains_is_named(tmp_path: Path) -> None:
    barrier = runner_rig.Barrier(2)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        pause_in(run, barrier, 2)
        other = tmp_path / "runs/p/other"
        other.mkdir()
        record = record_of(tmp_path / "runs/p/r")
        assert record is not None
        record.run_id, record.parents = "other", ["r"]
        write_record(other, record)
        lock = RunLock(other)
        lock.acquire()
        try:
            code, detail = refused(run, "export_session", {})
            assert (code, "other is written by process" in detail) == ("not_allowed_now", True)
            assert exported(run, runs=["r"])["runs"] == ["r"]
        finally:
            lock.release()
        asks(run, "resume")
        run.outcome()
