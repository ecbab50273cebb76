"""Of two ranks the first tells, and nothing of the training is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def both(folder: Path, how: str) -> list[dict[str, Any]]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.own_loop.two_ranks", str(folder), how]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        for process in ranks:
            _, err = process.communicate(timeout=80)
            assert process.returncode == 0, err
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return [json.loads((folder / f"{how}.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_two_ranks_train_as_they_would_and_rank_0_tells(tmp_path: Path) -> None:
    bare, live = both(tmp_path, "bare"), both(tmp_path, "live")
    assert live == bare
    [run] = (tmp_path / "runs").glob("*/*")
    kinds = [
        json.loads(line)["type"]
        for journal in run.glob("journal/*.jsonl")
        for line in journal.read_text().splitlines()
    ]
    assert kinds.count("trainStep") == 12
    assert kinds.count("epoch_end") == 2
    assert list((run / "checkpoints").glob("*.ckpt")) == []
    first, other = both(tmp_path, "resume")
    assert first["said"] == "resume was asked from auto for 2 ranks; allowed: one process"
    assert first["said"] == other["said"]
