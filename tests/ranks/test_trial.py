"""A doctor's trial of ranks: they stand at one step, and go on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from otf_core.cli import ranks
from tests.ranks.rig import PATIENCE_S, ROOT, TORCHRUN

TRIAL = ("-m", "otf_core.cli.ranks", "--pause", "0.1")


@pytest.mark.long
@pytest.mark.timeout(180)
def test_two_ranks_are_tried(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}/src", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        [*TORCHRUN, *TRIAL], cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
        timeout=2 * PATIENCE_S,
    ).stdout  # fmt: skip
    assert re.fullmatch(
        r"ok   2 ranks of gloo on 1 machine stood at one step [\d.]+ ms after the word\n"
        r"ok   held for 0.1 s; 20 steps went on behind it\n",
        said,
    )


def test_without_ranks_it_says_what_starts_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        ranks.main(["--pause", "1"])
    assert ended.value.code == 2
    assert "RANK is not set" in capsys.readouterr().err
