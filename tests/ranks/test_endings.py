"""Ranks that do not end together, and one that fails while another stands."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from otf_core.testing import LoopbackListener
from tests.ranks.rig import PATIENCE_S, done, ended, held, noted, started

FIT = (sys.executable, "-m", "tests.ranks.fitted")
pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def wait_for(*files: Path) -> None:
    for _ in range(int(PATIENCE_S / 0.02)):
        if all(file.exists() for file in files):
            return
        threading.Event().wait(0.02)
    pytest.fail(f"{files} did not come")


def test_a_rank_that_comes_late_to_the_end_is_waited_for(tmp_path: Path) -> None:
    with started(*FIT, str(tmp_path), "0", env={"DAWDLES": "1"}) as process:
        ended(process)
    first, second = noted(tmp_path)
    assert first["step"] == second["step"] == 40
    assert first["weights"]["net.0.weight"] == second["weights"]["net.0.weight"]
    assert json.loads((tmp_path / "runs/p/r/run.json").read_text())["status"] == "completed"


def test_a_rank_that_fails_while_another_stands_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with (
        LoopbackListener(legacy_allowed=False) as listener,
        started(*FIT, str(tmp_path), str(listener.port), env={"FAILS": "10"}) as process,
        held(listener) as dashboard,
    ):
        done(dashboard, "resume")
        wait_for(tmp_path / "waits.0", tmp_path / "waits.1")
        asked = dashboard.send("pause", {})
        dashboard.expect("accepted", request_id=asked)
        (tmp_path / "go.0").touch()
        dashboard.expect("state", state="paused")
        (tmp_path / "go.1").touch()
        said = dashboard.expect("rank_state", state="failed")
        assert said["rank"] == 1
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "out of luck" in err
    assert json.loads((tmp_path / "runs/p/r/run.json").read_text())["status"] == "failed"
