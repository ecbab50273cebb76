"""Frames are found again by what is running in them, and their variables written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from otf_core.errors import CommandError
from otf_core.script import frames, marks
from otf_core.script.loops import LOOPS
from otf_core.script.reentry import Moment, Reentry
from tests.script.again import goes_on, run

NESTED = """
def main():
    seen = []
    count = 0
    def step(by):
        nonlocal count
        count += by
        return count
    def epoch(n):
        total = n
        for i in range(3):
            here()
            total += step(i + n)
            seen.append((n, i, total, count))
        return total
    for n in range(3):
        got = epoch(n)
        LOG.append((n, got, list(seen)))
    return count
LOG.append(main())
"""
IN_A_CLASS = """
class Trainer:
    def __init__(self):
        self.total = 0
    def fit(self, n):
        for self.epoch in range(n):
            self.one(self.epoch, scale=2)
        return self.total
    def one(self, epoch, *, scale):
        k = 0
        while k < 3:
            here()
            k += 1
            self.total += scale * epoch + k
            LOG.append((epoch, k, self.total))
trainer = Trainer()
LOG.append(trainer.fit(3))
"""
IN_A_GENERATOR = """
def pairs(items):
    seen = 0
    for n, item in enumerate(items):
        here()
        seen += n
        yield n, item, seen
def outer():
    yield from pairs("abcde")
for a, b, c in outer():
    LOG.append((a, b, c))
"""
IN_A_HANDLER = """
it = iter(())
for n in range(5):
    try:
        x = next(it)
    except StopIteration:
        it = iter("ab")
        here()
        x = next(it)
    LOG.append((n, x))
"""
RECURSION = """
def down(n):
    if n == 0:
        for i in range(4):
            here()
            LOG.append((n, i))
        return 0
    kept = n * 10
    got = down(n - 1)
    LOG.append((n, kept, got))
    return got + kept
LOG.append(down(3))
"""


@pytest.mark.parametrize("at", [1, 3, 4])
@pytest.mark.parametrize("source", [NESTED, IN_A_CLASS, IN_A_GENERATOR])
def test_functions_go_on_with_their_variables_and_loops(
    source: str, at: int, tmp_path: Path
) -> None:
    found = goes_on(source, tmp_path, at)
    assert found.on == found.whole
    assert found.given.lost == []
    assert found.taken.reasons == []


@pytest.mark.parametrize("at", [1, 2])
def test_a_loop_is_gone_on_with_in_a_handler_of_an_exception(at: int, tmp_path: Path) -> None:
    found = goes_on(IN_A_HANDLER, tmp_path, at)
    assert found.on == found.whole


def test_each_frame_of_a_recursion_has_its_own(tmp_path: Path) -> None:
    found = goes_on(RECURSION, tmp_path, 2)
    assert found.on == found.whole


def test_a_variable_that_was_not_bound_yet_is_not_bound(tmp_path: Path) -> None:
    source = """
def f():
    for n in range(4):
        here()
        try: LOG.append(late)
        except UnboundLocalError: LOG.append("not yet")
        if n == 0: late = 5
        if n == 1: del late
f()
"""
    found = goes_on(source, tmp_path, 2)
    assert found.whole == ["not yet", 5, "not yet", "not yet"]
    assert found.on == found.whole


def test_another_place_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    source = "x = 0\nfor n in range(3):\n    here(); x += 1\nx = 5\nhere()\nLOG.append(x)\n"
    core, states = Reentry(tmp_path, LOOPS), list[Any]()

    def act(moment: Moment) -> None:
        if len(states) == 3:
            with pytest.raises(CommandError, match="another place") as refused:
                core.apply(states[1], moment)
            assert "script.py:3 in <module>" in refused.value.detail
        states.append(core.capture(moment).state)

    assert run(source, tmp_path, act)["LOG"] == [5]


def test_back_in_place_at_the_same_place(tmp_path: Path) -> None:
    source = "x = []\nfor n in range(5):\n    here()\n    x.append(n)\n    LOG.append(list(x))\n"
    core, states = Reentry(tmp_path, LOOPS), list[Any]()

    def act(moment: Moment) -> None:
        if len(states) == 4:
            assert core.apply(states[1], moment).lost == []
            states.append(None)
        elif len(states) < 4:
            states.append(core.capture(moment).state)

    log = run(source, tmp_path, act)["LOG"]
    assert log == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


# What a line has computed already.


def _held(line: str, tmp_path: Path) -> list[str]:
    source = f"""
import torch
def got(*a, **k):
    here()
    return 1
class A: n = 1
a, b, t, x, d = 1, 2, (3, 4), [5], {{}}
obj = A(); obj.n = 7
for b in range(2, 4):
    {line}
"""
    found: list[str] = []
    core = Reentry(tmp_path, LOOPS)

    def act(moment: Moment) -> None:
        stack = moment.stack[:1]
        found.extend(source for source, _ in frames.unfinished(stack[0]))

    run(source, tmp_path, act)
    assert core
    return found[: len(found) // 2]


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("got()", []),
        ("y = got(a, b)", []),
        ("max(b, got(b), a, key=None)", ["b"]),
        ("y = b + got()", ["b"]),
        ("y = got() + b", []),
        ("b += got()", ["b"]),
        ("y = f'{b} {got()}'", ["b"]),
        ("y = [b, got()]", ["b"]),
        ("y = {'k': b, 'l': got()}", ["b"]),
        ("y = 1, 'a', got()", []),
        ("y = max(obj.n, got(), 3)", ["obj.n"]),
        ("x.append(got())", ["x"]),
        ("y = b and got()", []),
        ("y = got() if b else 0", []),
        ("d['k'] = got()", []),
        ("d[got()] = b", ["b", "d"]),
        ("y = b < got()", ["b"]),
        ("with torch.no_grad(): got()", []),
        ("y = (lambda: got())()", []),
        ("for q in range(got()): pass", []),
        ("y = max(b, key=got) if False else got(k=got)", []),
        ("y = dict(a=b, c=got())", ["b"]),
        ("y = not got()", []),
        ("y = len(x) + got()", ["len(x)"]),
        ("y = (b, (a, got()))", ["b", "a"]),
    ],
)
def test_what_a_line_holds_already_is_found(line: str, held: list[str], tmp_path: Path) -> None:
    assert _held(line, tmp_path) == held


def test_what_a_line_holds_is_told_where_it_is_another_by_now(tmp_path: Path) -> None:
    source = """
def train(epoch):
    for i in range(2):
        here()
    return epoch
x, name = [], "n"
for epoch in range(3):
    LOG.append((name, x, epoch, train(epoch)))
"""
    assert goes_on(source, tmp_path, 1).taken.reasons == []
    found = goes_on(source, tmp_path, 2)
    assert found.taken.reasons == ["script.py:8 has computed epoch already"]
    assert found.whole != found.on
    assert [line[3] for line in found.whole] == [line[3] for line in found.on]


# Loops without a name.


def test_a_comprehension_that_is_under_way_is_told(tmp_path: Path) -> None:
    source = "def f(n):\n    here()\n    return n\nLOG.append([f(n) for n in range(3)])\n"
    reasons = goes_on(source, tmp_path, 1).taken.reasons
    assert len(reasons) == 1
    assert reasons[0].startswith("the place in a loop of script.py:4 in <")


def test_a_frame_is_known_by_the_source_that_is_running(tmp_path: Path) -> None:
    found: list[frames.Spot] = []

    def act(moment: Moment) -> None:
        found.append(frames.spot(moment.stack[-1], tmp_path))

    for _ in range(2):
        run("for n in range(50):\n    here()\n", tmp_path, act)
    assert len(set(found)) == 1  # the interpreter has specialised the call by then
    assert found[0].file == "script.py"
    assert found[0].at == (2, 2, 4, 10)
    assert found[0].source == marks.SOURCES[str(tmp_path / "script.py")]


def test_writing_reaches_cells_and_takes_variables_away() -> None:
    outer = 1

    def change(frame: FrameType) -> None:
        frames.write(frame, {"outer": 5, "inner": [2]}, {"gone"})

    def function() -> list[Any]:
        inner: Any = None
        gone = 3
        change(sys._getframe())
        return [outer, inner, "gone" in locals() or sys.version_info >= (3, 13), bool(outer)]

    assert function()[:2] == [5, [2]]
    assert outer == 5


def test_nothing_that_a_frame_let_go_is_kept_alive(tmp_path: Path) -> None:
    source = """
import gc, weakref
class A: pass
gc.disable()
def f():
    a = A()
    gone = weakref.ref(a)
    for n in range(3):
        here()
        if n == 1: del a
        LOG.append(gone() is None)
try: f()
finally: gc.enable()
"""
    core, states = Reentry(tmp_path, LOOPS), list[Any]()

    def act(moment: Moment) -> None:
        states.append(core.capture(moment).state)
        if len(states) == 1:
            core.apply(states[0], moment)

    assert run(source, tmp_path, act)["LOG"] == [False, True, True]
