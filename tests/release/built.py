"""Makes the wheel and the sdist, by the build backend alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, out: Path, target: str) -> Path:
    """The file that was made; target is ``wheel`` or ``sdist``."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=source, env={**os.environ, "PYTHONPATH": ""},
        capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made
