"""A run that was forked, killed, packed and imported somewhere else goes on there, bit for bit."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.runs.archive import pack, relatives
from otf_core.runs.unarchive import unpack
from tests.exact.digest import differences, of_run
from tests.no_harm import digest
from tests.plugin import rig as plugin_rig
from tests.plugin import test_fork as of_lightning
from tests.plugin.rig import pause_in, unlogged
from tests.plugin.test_fork import asks
from tests.runner import rig as runner_rig
from tests.runner.test_fork import options
from tests.runs.elsewhere import CHOSEN, NAMED

pytestmark = pytest.mark.usefixtures("queues_have_ended")


def packed_as_killed(save_dir: Path, where: Path, **how: Any) -> Path:
    """What lies there now is what a killed process leaves."""
    left = shutil.copytree(save_dir, where / "left")
    with (where / "a.zip").open("xb") as file:
        pack(relatives(left / "p", "r"), file, **how)
    shutil.rmtree(left)
    return where / "a.zip"


def gone_on(kind: str, archive: Path, where: Path) -> Any:
    """What a new process has made of it."""
    args = [kind, str(archive), str(where / "imported"), str(where / "out")]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.runs.elsewhere", *args],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return pickle.loads((where / "out").read_bytes())


def test_a_fork_of_the_runner_goes_on_elsewhere(tmp_path: Path) -> None:
    barrier = runner_rig.Barrier(2, 4)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "batch_size": 5})
        asks(run, "resume")
        pause_in(run, barrier, 4)
        archive = packed_as_killed(tmp_path / "runs", tmp_path)
        asks(run, "resume")
        expected = of_run(run.outcome())
    assert differences(expected, gone_on("runner", archive, tmp_path)) == []


def test_a_fork_of_lightning_goes_on_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(3)
    barrier = plugin_rig.Barrier(4, 6)

    def trained(callbacks: Any) -> Any:
        return of_lightning.fit(callbacks, of_lightning.Seeing(), max_epochs=3)

    with plugin_rig.fitting(trained, tmp_path / "runs", barrier, **NAMED) as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "batch_size": 8})
        asks(run, "resume")
        pause_in(run, barrier, 6)
        archive = packed_as_killed(tmp_path / "runs", tmp_path)
        asks(run, "resume")
        expected = unlogged(digest.of(run.outcome()))
    assert gone_on("lightning", archive, tmp_path) == expected


def test_the_parent_of_an_imported_fork_is_switched_to(tmp_path: Path) -> None:
    expected = runner_rig.bare(**options())
    barrier = runner_rig.Barrier(2)
    with runner_rig.fitting(tmp_path / "runs", barrier, **NAMED, **options()) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"params": {"lr": 0.5}})
        asks(run, "save_ckpt")  # answered when the file is there
        archive = packed_as_killed(tmp_path / "runs", tmp_path)
        asks(run, "stop", {"save": False})
    unpack(archive, tmp_path / "imported")
    torch.manual_seed(99)
    barrier = runner_rig.Barrier(1)
    there = {"resume": "auto", **NAMED}
    with runner_rig.fitting(tmp_path / "imported", barrier, **there, **options()) as run:
        pause_in(run, barrier, 1)
        assert asks(run, "status")["run_id"] == "fork1"
        back = asks(run, "switch_run", {"run_id": "r"})
        assert (back["step"], back["run_id"]) == (3, "r")
        asks(run, "resume")
        found = of_run(run.outcome())
    assert differences(expected, found) == []
