"""Marked code does what unmarked code does, line by line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from otf_core.script import marks

HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src"
OTHERS = {
    name: next(Path.home().glob(f".pyenv/versions/{name}.*/bin/python"), None)
    for name in ("3.12", "3.13", "3.14")
}


def _same(python: str, every: int) -> dict[str, list[str]]:
    done = subprocess.run(
        [python, str(HERE / "same_when_marked.py"), str(SRC), str(every)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_the_standard_librarys_tests_have_the_same_lines_and_odd_loops_do_the_same() -> None:
    found = _same(sys.executable, 10)
    assert found.pop("files")
    assert found == {"differ": [], "odd": []}


@pytest.mark.parametrize("version", OTHERS)
def test_so_it_is_in_other_pythons(version: str) -> None:
    python = OTHERS[version]
    if python is None:
        pytest.skip(f"no Python {version} here")
    assert {**_same(str(python), 25), "files": 0} == {"files": 0, "differ": [], "odd": []}


def test_more_blocks_than_python_allows_with_marks_are_compiled_without() -> None:
    deep = "".join(f"{' ' * n}for i{n} in (0,):\n" for n in range(15)) + " " * 15 + "x = 1\n"
    names: dict[str, int] = {}
    exec(marks.compile_marked(deep.encode(), "deep.py"), names)
    assert names["x"] == 1


def test_a_syntax_error_is_pythons() -> None:
    with pytest.raises(SyntaxError, match="invalid syntax"):
        marks.compile_marked(b"for in x:\n  pass\n", "bad.py")


@pytest.mark.parametrize(
    "source", ["def forward(x):\n", "@njit\ndef f(x):\n", "@a.jit(1)\ndef f(x):\n"]
)
def test_what_a_compiler_may_read_is_not_marked(source: str) -> None:
    code = marks.compile_marked(f"{source}  for i in x: print(i)\n".encode(), "f.py")
    inner = next(c for c in code.co_consts if hasattr(c, "co_names"))
    assert not [n for n in (*code.co_names, *inner.co_names) if "otf" in n]


@pytest.mark.parametrize("installed", [False, True])
def test_modules_below_the_scripts_folder_are_marked_and_leave_no_pyc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    folder = tmp_path / "site-packages" if installed else tmp_path
    folder.mkdir(exist_ok=True)
    name = f"marked_{'out' if installed else 'in'}"
    (folder / f"{name}.py").write_text("def f():\n  for i in range(2):\n    yield i\n")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(folder)
    marks.begin(str(tmp_path))
    module = importlib.import_module(name)
    assert (marks.LOOP in module.f.__code__.co_names) is not installed
    assert (folder / "__pycache__").exists() is installed
    assert list(module.f()) == [0, 1]
    assert str(folder / f"{name}.py") in marks.SOURCES or installed
