"""A variable that was given another function has that one again, or it is told."""

# ruff: noqa: E501 -- tables of scripts

from __future__ import annotations

from pathlib import Path

import pytest

from tests.script.again import goes_on

START = "import functools, math, torch, numpy as np\nimport torch.nn.functional as F\nfrom torch import nn\nA, B = torch.ones(2), torch.zeros(2)\n"

# name -> what is there before the loop, what each turn changes, what is told of it.
KINDS: dict[str, tuple[str, str, str]] = {
    "a library's": ("f = F.mse_loss", "if turn == 0: f = F.l1_loss", "f.__name__, f(A * 3, B)"),
    "a built-in": ("f = torch.relu", "if turn == 0: f = torch.tanh", "f is torch.tanh"),
    "of math and numpy": ("f, g = math.sin, np.sin", "if turn == 0: f, g = math.cos, np.cos", "f(1.), g(1.)"),
    "a library's class": ("f = nn.ReLU", "if turn == 0: f = nn.Tanh", "f"),
    "a lambda": ("f = lambda t: 1.0", "if turn == 0: f = lambda t: .5 + t", "f(1)"),
    "two lambdas in a line": ("f, g = lambda: 1, lambda: 2", "if turn == 0: f, g = g, f", "f(), g()"),
    "new ones in a line": ("f = g = None", "if turn == 0: f, g = (lambda: 1), (lambda: 2)", "f(), g()"),
    "the script's": ("def a(): return 1\ndef b(): return 2\nf = a", "if turn == 0: f = b", "f(), f is b, a(), b()"),
    "the script's class": ("class P: n = 1\nclass Q: n = 2\nf = P", "if turn == 0: f = Q", "f is Q"),
    "before those it was chosen from": ("f = None\nfs = {'a': lambda: 1, 'b': lambda: 2}\nf = fs['a']", "if turn == 0: f = fs['b']", "f(), f is fs['b'], fs['a']()"),
    "with a closure": ("def of(n):\n  def f(): return n\n  return f\nf, g = of(1), of(2)", "if turn == 0: f = of(3)\nif turn == 1: g = f", "f(), g(), f is g"),
    "two that share": ("def of():\n  n = 0\n  def add():\n    nonlocal n\n    n += 1\n  return add, lambda: n\nadd = get = None", "if turn == 0: add, get = of()\nadd()", "get()"),
    "defaults": ("f = None", "if turn == 0: f = lambda x, y=turn + 5, *, z=[]: (x, y, z)\nf(0)[2].append(turn)", "f(1)"),
    "an attribute": ("class P: pass\np = P(); p.f = F.relu", "if turn == 0: p.f = F.gelu", "p.f.__name__"),
    "of a module": ("net = nn.Linear(1, 1); net.f = F.relu", "if turn == 0: net.f = F.silu", "net.f.__name__"),
    "a partial": ("f = functools.partial(F.mse_loss, reduction='sum')", "if turn == 0: f = functools.partial(F.l1_loss, reduction='mean')", "f(A * 3, B)"),
    "a method": ("class P:\n  def a(self): return 1\n  def b(self): return 2\np = P(); f = p.a", "if turn == 0: f = p.b", "f(), f.__self__ is p"),
    "decorated": ("@torch.no_grad()\ndef a(): return 1\n@torch.no_grad()\ndef b(): return 2\nf = a", "if turn == 0: f = b", "f(), f is b"),
    "in a list": ("fs = [F.relu]", "fs.append(F.elu if turn % 2 else lambda: 1)", "[f.__name__ for f in fs]"),
}  # fmt: skip


def source(setup: str, change: str, told: str, start: str = START) -> str:
    inside = change.replace("\n", "\n    ")
    return f"{start}{setup}\nfor turn in range(4):\n    here()\n    {inside}\n    LOG.append(repr(({told},)))\n"


@pytest.mark.parametrize("kind", KINDS)
def test_another_function_goes_on(kind: str, tmp_path: Path) -> None:
    found = goes_on(source(*KINDS[kind]), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole
    assert found.taken.reasons == []
    assert found.taken.left_out == []


IN_A_FUNCTION = """
import torch
def main():
    scale = 2
    f = lambda: 1
    for turn in range(4):
        here()
        if turn == 0: {change}
        LOG.append(f())
main()
"""


def test_one_over_the_variables_of_a_running_function_is_told(tmp_path: Path) -> None:
    found = goes_on(IN_A_FUNCTION.format(change="f = lambda: scale"), tmp_path)
    assert "main.<locals>.<lambda>" in found.given.lost[0]


def test_one_that_closes_over_nothing_goes_on_there(tmp_path: Path) -> None:
    found = goes_on(IN_A_FUNCTION.format(change="f = lambda: 3"), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole


def test_a_wrapped_one_of_a_library_is_told(tmp_path: Path) -> None:
    setup = "a, b = lambda x: x, lambda x: 2 * x\nf = torch.func.vmap(a)"
    found = goes_on(source(setup, "if turn == 0: f = torch.func.vmap(b)", "f(A)"), tmp_path)
    assert found.given.lost


def test_what_the_script_never_names_is_not_looked_up(tmp_path: Path) -> None:
    other = tmp_path / "site-packages"
    other.mkdir()
    (other / "chosen_in_a_test.py").write_text(
        "import os\ndef first(): pass\nchosen = [first, os.getppid]\n"
    )
    start = f"import sys; sys.path.insert(0, {str(other)!r}); from chosen_in_a_test import chosen; sys.path.pop(0)\n"
    found = goes_on(
        source("f, *_ = chosen", "if turn == 0: f = chosen[1]", "turn", start), tmp_path
    )
    assert "which is another here" in found.given.lost[0]
