"""docs/frameworks.md names every method that a delegate has, and what it shows is what runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from otf_core.control.delegate import FrameworkDelegate
from otf_core.session import Session
from otf_core.steering.params import Tunable
from otf_core.telemetry.recorder import StepRecorder
from otf_core.testing.conformance import DelegateSuite
from tests.house.documents import ROOT, read, section, table
from tests.testing.own import example

DOCUMENT = read("docs/frameworks.md")
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def _methods(protocol: type) -> set[str]:
    return {name for kind in protocol.__mro__ for name in vars(kind) if not name.startswith("_")}


def test_every_method_is_a_row_and_the_other_way_round() -> None:
    rows = table(section(DOCUMENT, "The delegate"), "method")
    written = [row["method"].strip("`") for row in rows]
    assert sorted(written) == sorted(_methods(FrameworkDelegate) | _methods(Tunable))


def test_what_the_loop_calls_is_there() -> None:
    rows = table(section(DOCUMENT, "What the loop calls"), "where in your loop")
    calls = " ".join(row["call"] for row in rows)
    for name in re.findall(r"session\.(\w+)\(", calls):
        assert callable(getattr(Session, name))
    for name in re.findall(r"recorder\.(\w+)\(", calls):
        assert callable(getattr(StepRecorder, name))


def test_the_worked_example_is_the_file() -> None:
    source = (ROOT / "examples" / "own_framework.py").read_text()
    shown = [snippet for snippet in SNIPPETS if snippet.startswith("    ")]
    assert len(shown) == 2
    assert all(snippet in source for snippet in shown)


def test_the_snippet_passes_the_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "own_framework", example)
    [snippet] = [s for s in SNIPPETS if "DelegateSuite" in s]
    names: dict[str, Any] = {"__name__": "test_mine"}
    exec(compile(snippet, "docs/frameworks.md", "exec"), names)
    suite: DelegateSuite = names["TestMine"]()
    suite.test_the_small_run_is_worth_a_test()
    suite.test_every_command_has_one_answer(tmp_path / "commands")
    suite.test_killed_behind_a_batch_it_goes_on_as_if_not("within an epoch", tmp_path / "killed")
