"""What docs/own_loop.md shows runs as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]


def test_the_first_example_runs_and_is_exact(tmp_path: Path) -> None:
    text = (ROOT / "docs/own_loop.md").read_text()
    script = tmp_path / "train.py"
    script.write_text(text.split("```python\n", 1)[1].split("```", 1)[0])
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OTF_DASHBOARD": "off"}
    command = [sys.executable, str(script)]
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=50, capture_output=True)
    [record] = tmp_path.glob("otf_runs/train/Sequential/run.json")
    found = msgspec.json.decode(record.read_bytes())
    assert (found["exactness"]["text"], found["step"], found["status"]) == (
        "exact", 30, "completed",
    )  # fmt: skip
