"""Two ranks of DDP, killed together, go on exactly: each where it stood."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import msgspec
import pytest
import torch

from otf_core.state.checkpoint_file import Manifest
from tests.no_harm import digest
from tests.ranks.rig import started

RANKS = (0, 1)


def run(folder: Path, kind: str, how: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tests.plugin.two_ranks", str(folder), kind, how)
    with started(*command, env=more) as process:
        _, err = process.communicate(timeout=90)
    return subprocess.CompletedProcess(process.args, process.returncode, "", err)


def result(folder: Path, how: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{how}.{rank}.json").read_text())
    return found


def manifests(folder: Path) -> list[Manifest]:
    found = (folder / "runs/p/r/checkpoints").glob("*.json")
    each = [msgspec.json.decode(path.read_bytes(), type=Manifest) for path in found]
    return sorted(each, key=lambda manifest: manifest.ts)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [pytest.param("workers", marks=pytest.mark.long), "accumulating"])
def test_killed_together_they_go_on_as_if_nothing_had_been(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, kind, "bare").returncode == 0
    killed = run(tmp_path, kind, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = [manifest.step for manifest in manifests(tmp_path)]
    assert kept, "nothing was kept before the kill"
    assert all(manifest.exact for manifest in manifests(tmp_path))

    resumed = run(tmp_path, kind, "live")

    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from step {kept[-1]}" in resumed.stderr
    for rank in RANKS:
        without, with_us = result(tmp_path, "bare", rank), result(tmp_path, "live", rank)
        logged = with_us.pop("logged")
        assert logged == without.pop("logged")[-len(logged) :]
        assert with_us == without


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_rank_that_cannot_be_captured_is_told_of_and_holds_nobody(tmp_path: Path) -> None:
    done = run(tmp_path, "plain", "fails")
    assert done.returncode == 0, done.stderr
    steps = [manifest.step for manifest in manifests(tmp_path)]
    assert 5 not in steps
    assert 10 in steps
    journal = next((tmp_path / "runs/p/r/journal").glob("*.jsonl")).read_text()
    assert "Rank 1 could not be captured (OSError: no room)" in journal


@pytest.mark.long
@pytest.mark.timeout(120)
def test_one_rank_goes_on_from_a_checkpoint_of_two_and_says_what_is_not_exact(
    tmp_path: Path,
) -> None:
    from otf_lightning import OnTheFlyCallback
    from tests.no_harm.configs import Counting, Net, _train, _trainer

    assert run(tmp_path, "plain", "live").returncode == 0
    file = next((tmp_path / "runs/p/r/checkpoints").glob("10-ring.ckpt"))
    saved = torch.load(file, weights_only=True)
    parts = saved["otf"]["ranks"]
    assert len(parts) == 1
    assert not parts[0]["optimizer_states"]  # what all have alike is there once
    seen: dict[str, Any] = {}

    class Looks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            seen.setdefault("weights", digest.of(trainer)["weights"])
            seen.setdefault("steps", trainer.global_step)

    ours = OnTheFlyCallback(save_dir=tmp_path / "other", dashboard="off", resume=file)
    trainer = _trainer([ours, Counting(), Looks()], max_epochs=4)
    trainer.fit(Net(), _train())

    assert seen["steps"] == 10
    kept = {name: digest._exact(value) for name, value in saved["state_dict"].items()}
    assert seen["weights"] == kept
    assert ours.run_dir is not None
    found = json.loads((ours.run_dir / "run.json").read_text())["exactness"]
    assert not found["exact"]
    assert "it goes on with 1 rank from a checkpoint of 2 ranks" in found["text"]
    assert "of another order are left out" in found["text"]


@pytest.mark.long
@pytest.mark.timeout(120)
def test_what_rank_0_cannot_resume_from_ends_both(tmp_path: Path) -> None:
    done = run(tmp_path, "plain", "nowhere")
    assert done.returncode != 0
    assert done.stderr.count("where there is no file; allowed: a checkpoint, auto") >= 2


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["finder", "twice"])
def test_neither_a_finder_nor_a_second_fit_parts_the_ranks(tmp_path: Path, how: str) -> None:
    done = run(tmp_path, "plain", how)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / f"{how}.{rank}.json").is_file() for rank in RANKS)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_ctrl_c_keeps_the_run_where_all_stand(tmp_path: Path) -> None:
    done = run(tmp_path, "plain", "ctrl-c")
    assert done.returncode != 0
    assert done.stderr.count("Ctrl-C: saved step ") == 1, done.stderr
    assert "OTF_RESUME=" in done.stderr
    assert max(manifest.step for manifest in manifests(tmp_path)) >= 8
