"""Runs are packed, imported and told from their folders by the command line, without a trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otf_core.state.run_folder import RunLock
from tests.runs.folders import files, run_folder

EVENTS = [{"type": "trainStep", "run_id": "base", "step": 3, "loss": 0.5, "ts": 60.0}]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    at = tmp_path / "otf_runs/demo"
    run_folder(at, "base", checkpoints={"3-final": b"x" * 500}, events=EVENTS, ended_ts=9.0)
    run_folder(at, "fork1", kind="fork", parents=["base"], journal="base", ended_ts=9.0)
    return tmp_path / "otf_runs"


def otf(*args: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "otf_core.cli.otf", *args]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_runs_go_from_folder_to_folder(runs: Path, tmp_path: Path) -> None:
    status, out, err = otf("export", "archive", "--dir", "otf_runs", "--out", "s.zip")
    assert (status, err) == (0, "")
    assert out.startswith("Packed base, fork1 with 1 checkpoint (")
    assert out.endswith(f"into {tmp_path}/s.zip\n")
    status, out, err = otf("import", "s.zip", "--dir", "there")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("Imported base, fork1 (")
    assert 'resume="auto"' in out
    there = files(tmp_path / "there/demo/base")
    assert there["checkpoints/3-final.ckpt"] == b"x" * 500
    status, out, err = otf("import", "s.zip", "--dir", "there")
    assert (status, out) == (3, "")
    assert "has base, fork1 already; nothing was imported" in err
    status, out, _ = otf("import", "s.zip", "--dir", "there", "--as", "again", "--json")
    assert (status, json.loads(out)["project"]) == (0, "again")
    status, out, _ = otf("import", "none.zip", "--json")
    assert (status, json.loads(out)["code"]) == (3, "not_allowed_now")


def test_a_report_is_made_of_a_folder(runs: Path, tmp_path: Path) -> None:
    status, out, err = otf("export", "report", "--dir", "otf_runs", "--run", "base")
    assert (status, err) == (0, "")
    assert out.startswith("Wrote the report of base (")
    page = (runs / "demo/base/exports/base.html").read_text()
    assert "fork1" in page
    status, out, _ = otf(
        "export", "report", "--dir", "otf_runs/demo/base", "--of", "fork1", "--json"
    )
    assert (status, json.loads(out)["run_id"]) == (0, "fork1")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["archive", "--dir", "otf_runs", "--run", "none"], 3, "No run 'none' lies in"),
        (["archive", "--dir", "nowhere"], 3, "No run lies in"),
        (["archive", "--dir", "otf_runs", "--run", "base", "--only", "base,no"], 3, "No run 'no'"),
        (["archive", "--dir", "otf_runs", "--out", "/etc/x.zip"], 3, "allowed: a file below"),
        (["archive", "--dir", "otf_runs", "--out", "x.py"], 3, "a name that ends in .zip"),
        (["report", "--dir", "otf_runs", "--out", "mine.html"], 3, "is there already"),
        (["report", "--dir", "otf_runs", "--run", "twice"], 2, "demo/twice, other/twice"),
        (["archive", "--checkpoints", "some"], 2, "Invalid value"),
        (["archive"], 4, "otf dashboard"),
    ],
)
def test_what_cannot_be_is_said(
    args: list[str], status: int, said: str, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.html").write_text("mine")
    for project in ("demo", "other"):
        run_folder(runs / project, "twice")
    before = files(tmp_path)
    found = otf("export", *args)
    assert (found[0], said in found[2]) == (status, True), found
    after = files(tmp_path)
    assert {n: after[n] for n in before} == before
    assert not [name for name in after.keys() - before.keys() if not name.endswith("written.json")]


def test_a_run_that_a_process_trains_is_refused(runs: Path) -> None:
    lock = RunLock(runs / "demo/fork1")
    lock.acquire()
    try:
        status, out, err = otf("export", "archive", "--dir", "otf_runs")
        assert (status, out) == (3, "")
        assert "fork1 is written by process" in err
        assert otf("export", "report", "--dir", "otf_runs")[0] == 0  # it only looks
    finally:
        lock.release()


@pytest.mark.parametrize("word", ["import", "export archive", "export report"])
def test_no_torch_is_loaded(word: str, runs: Path) -> None:
    words: Any = word.split()
    args = ["none.zip"] if word == "import" else ["--dir", "otf_runs"]
    code = (
        "import sys\nfrom otf_core.cli.otf import main\n"
        f"try:\n    main({[*words, *args]!r})\n"
        "finally:\n    assert not {'torch', 'numpy'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AssertionError" not in ran.stderr
    assert ran.returncode in (0, 3), ran.stderr
