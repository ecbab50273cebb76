"""``otf demo --headless``: a real run under control, and a summary made from its journal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from otf_lightning.demo import summary


@pytest.mark.timeout(180)
def test_headless_demo_lists_what_its_journal_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "otf_lightning.demo", "--headless", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)

    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("dashboard: http://127.0.0.1:")
    assert "#token=" in first
    (journal,) = tmp_path.glob("demo/digits/journal/*.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    paused = next(e for e in events if e["type"] == "paused")
    changed = next(e for e in events if e["type"] == "param_changed")
    tested = next(e for e in events if e["type"] == "test_complete")
    said = " ".join(done.stdout.split())
    assert f"held at step {paused['step']}" in said
    assert f"applied at step {changed['applied_step']}" in said
    assert f"average loss {tested['avg_loss']:.4f} at step {tested['step']}" in said
    assert Path(paused["ckpt"]).is_file()


def test_the_summary_names_what_is_missing(tmp_path: Path) -> None:
    journal = tmp_path / "sess.jsonl"
    journal.write_text('{"type":"paused","step":3,"ckpt":"x.ckpt"}\n')

    rows, missing = summary(journal)

    assert rows == [("pause", "held at step 3; checkpoint x.ckpt")]
    assert missing == ["resumed", "param_changed", "test_complete", "trainingFinished"]
