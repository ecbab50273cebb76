"""The house stands: imports point downwards, and what must start fast loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_imports_point_downwards() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    "module", ["otf_core.dashboard", "otf_core.cli.otf", "otf_core.client", "otf_core.cli.otf_fit"]
)
def test_starts_without_torch(module: str) -> None:
    code = f"import {module}, sys; assert not {{'torch', 'numpy'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"suppress\((Base)?Exception\)", "a blind except that ruff does not see"),
        (r"time\.sleep\(", "a wait is an event, not a guess"),
        (r"weights_only=False", "a pickle from outside must not run"),
        (r"^\s*global ", "two trainers in one process do not meet"),
    ],
)
def test_no_source_has(pattern: str, why: str) -> None:
    allowed = {"inside.py"} if "weights_only" in pattern else set()  # the name of an argument there
    found = [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()}"
        for path in SOURCES
        if path.name not in allowed
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{why}: {found}"


def test_every_thread_has_a_name() -> None:
    nameless = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("Thread", "threading.Thread")
        and "name" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not nameless
