"""The page's own tests, its types and its size: what needs Node and no browser."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "src/otf_core/dashboard/web"
LARGEST_KB = 120


def run_tool(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A tool of the page's development packages; the test is skipped where they are not."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    try:
        node, _ = hatch_build._node()
    except hatch_build.PageError as error:
        pytest.skip(str(error))
    tool = WEB / "node_modules" / script
    if not tool.is_file():
        pytest.skip(f"{script} is not there: npm's development packages are not installed")
    return subprocess.run(
        [str(node), str(tool), *args], cwd=WEB, check=False, capture_output=True, text=True,
        timeout=50, env={**os.environ, "NO_COLOR": "1", "CI": "1"},
    )  # fmt: skip


def test_the_unit_tests_of_the_page_pass() -> None:
    done = run_tool("vitest/vitest.mjs", "run")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_is_strictly_typed() -> None:
    done = run_tool("typescript/bin/tsc", "--noEmit")
    assert done.returncode == 0, done.stdout


def test_the_page_is_small() -> None:
    """What a browser loads before it shows anything, packed as it is sent."""
    built = subprocess.run(
        [sys.executable, str(ROOT / "hatch_build.py")], check=False, capture_output=True, text=True
    )
    if built.returncode != 0:
        pytest.skip(built.stderr)
    files = [one for one in (WEB / "dist").rglob("*") if one.suffix in {".js", ".css", ".html"}]
    sizes = {one.name: len(gzip.compress(one.read_bytes(), 9)) / 1000 for one in files}
    assert sizes
    assert sum(sizes.values()) <= LARGEST_KB, sizes
