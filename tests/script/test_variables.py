"""Every kind of variable comes back, as itself, where it was."""

# ruff: noqa: E501 -- tables of scripts

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError
from otf_core.script.loops import LOOPS
from otf_core.script.reentry import Moment, Reentry
from tests.script.again import goes_on, read_back, run

# name -> what is there before the loop, what each turn changes, what is told of it.
KINDS: dict[str, tuple[str, str, str]] = {
    "number": ("x = 0", "x += 1.5", "x"),
    "no number": ("x = float('nan')", "x = x + turn if turn > 4 else x", "x"),
    "negative zero": ("x = 0.0", "x = -x", "x"),
    "long number": ("x = 3", "x **= 7", "x"),
    "text and bytes": ("x, y = '', b''", "x += 'ä'; y += b'' if turn < 3 else b'a'", "x, y"),
    "list": ("x = [1]", "x.append([turn])", "x"),
    "list of many": ("x = list(range(40))", "x.append(turn)", "x"),
    "list that holds itself": ("x = []; x.append(x)", "x.append(turn)", "x, x[0] is x"),
    "dict with odd keys": ("x = {}", "x[turn, 'a'] = x[None] = turn", "x"),
    "order of a dict": ("x = {1: 1, 2: 2}", "x[1] = x.pop(1)", "list(x)"),
    "set": ("x = set()", "x |= {turn}", "x"),
    "frozen set": ("x = frozenset()", "x |= {(turn,)}", "x"),
    "deque": (
        "from collections import deque; x = deque(maxlen=2)",
        "x.append(turn)",
        "x, x.maxlen",
    ),
    "counter": ("import collections as c; x = c.Counter()", "x[turn % 2] += 1", "x"),
    "default dict": (
        "import collections as c; x = c.defaultdict(lambda: [0])",
        "x[turn % 2].append(turn)",
        "x[turn % 2]",
    ),
    "ordered dict": (
        "import collections as c; x = c.OrderedDict(a=1, b=2)",
        "x.move_to_end('a' if turn % 2 else 'b')",
        "x",
    ),
    "named tuple": (
        "import collections as c; P = c.namedtuple('P', 'a b'); x = P(0, [])",
        "x = P(turn, x.b); x.b.append(x.a)",
        "x",
    ),
    "tuple with a list": ("x = (1, [])", "x[1].append(turn); y = x[1]", "x, y is x[1]"),
    "aliases": (
        "a = [0]; b = {'a': a}; c = (a, b)",
        "a.append(turn)",
        "a, b, c, c[0] is a is b['a']",
    ),
    "what was one and is two": ("a = [0]; b = a", "b = b + [turn]", "a, b, a is b"),
    "what was two and is one": ("a = [0]; b = [1]", "b = a; b.append(turn)", "a is b, a"),
    "deleted": ("x = 1", "globals().pop('x', None)", "'x' in globals()"),
    "made later": ("", "later = [*globals().get('later', ()), turn]", "later"),
    "path, range, slice": (
        "from pathlib import Path; x = Path('a'), range(3), slice(None)",
        "x = x[0] / str(turn), range(turn, 9, 2), slice(turn, None)",
        "x",
    ),
    "date": (
        "import datetime as d; x = d.date(2024, 1, 1), d.timedelta(1)",
        "x = x[0] + x[1], x[1] * 2",
        "x",
    ),
    "own object": (
        "class A:\n  def __init__(self): self.n, self.me = 0, self\nx = A()",
        "x.n += 1; x.made = turn",
        "x.n, x.made, x.me is x",
    ),
    "attribute that goes": (
        "class A: pass\nx = A(); x.a = 1",
        "x.__dict__.pop('a', None)",
        "hasattr(x, 'a')",
    ),
    "slots": (
        "class A:\n  __slots__ = ('n', 'm')\nx = A(); x.n = 0",
        "x.n += 1; x.m = [x.n]",
        "x.n, x.m",
    ),
    "class with a say": (
        "class A:\n  said = 0\n  def __setattr__(self, k, v):\n"
        "    A.said += 1; object.__setattr__(self, k, v)\nx = A(); x.n = 0",
        "x.n += 1",
        "x.n, A.said",
    ),
    "frozen data class": (
        "import dataclasses as d\n@d.dataclass(frozen=True)\nclass A: n: int\nx = A(0)",
        "x = A(x.n + 1)",
        "x",
    ),
    "own list": (
        "class A(list): pass\nx = A(); x.n = 0",
        "x.n += 1; x.append(turn); y = A(x)",
        "x, x.n, type(y), y",
    ),
    "own dict": ("class A(dict): pass\nx = A()", "x[turn] = A(a=turn)", "x, type(x[turn])"),
    "object made later": (
        "class A:\n  def __init__(self, n): self.n = n\nx = []",
        "x.append(A(turn))",
        "[(type(a), a.n) for a in x]",
    ),
    "one of many objects": (
        "import torch\nclass B:\n  __slots__ = ('n',)\nclass A:\n"
        "  def __init__(self): self.w, self.b = torch.zeros(()), B(); self.b.n = 0\n"
        "x = [A() for _ in range(10_001)]",
        "x[9].w += 1; x[turn].b.n += 1",
        "x[9].w, [a.b.n for a in x[:5]]",
    ),
    "one of many numbers": (
        "import decimal, numpy as np; x = [np.float32(0)] * 10_001; y = [decimal.Decimal(0)] * 10_001",
        "x[turn] += 1; y[turn] += 1",
        "x[:5], y[:5]",
    ),
    "enumeration": (
        "import enum\nclass E(enum.Enum): A = 1; B = 2\nclass F(enum.Flag): A = 1; B = 2\nx = E.A, F(0)",
        "x = list(E)[turn % 2], x[1] | F(turn % 4)",
        "x, x[0] is E.A",
    ),
    "class attribute": ("class A: n = 0; seen = []", "A.n += 1; A.seen.append(turn)", "A.n, A.seen"),
    "namespace": (
        "import argparse, types; x = argparse.Namespace(n=0); y = types.SimpleNamespace()",
        "x.n += 1; y.n = x.n",
        "x, y",
    ),
    "closure": (
        "def made():\n  n = 0\n  def add():\n    nonlocal n\n    n += 1\n    return n\n  return add\nf = made()",
        "x = f()",
        "x",
    ),
    "function's attribute": ("def f(): f.n += 1\nf.n = 0", "f()", "f.n"),
    "mutable default": ("def f(n, seen=[]):\n  seen.append(n)\n  return seen", "x = f(turn)", "x"),
    "method and partial": (
        "import functools\nclass A:\n  n = 0\n  def add(self, by): self.n += by; return self.n\n"
        "m = A().add; p = functools.partial(A().add, 2)",
        "x = m(1), p()",
        "x",
    ),
    "own generator of numbers": (
        "import random\nclass A(random.Random): pass\nx = A(3); x.n = 0",
        "x.n += 1; y = x.random()",
        "x.n, y",
    ),
    "attributes of a tensor": (
        "import torch; x = torch.zeros(1); n = torch.nn.Linear(1, 1); x.seen, n.weight.n = [], 0",
        "x.seen.append(turn); n.weight.n += 1; n.bias.since = x",
        "x.seen, n.weight.n, n.bias.since is x",
    ),
    "generators of numbers": (
        "import random, torch, numpy as np\n"
        "a, b = random.Random(1), torch.Generator().manual_seed(1)\n"
        "c, d = np.random.default_rng(1), np.random.RandomState(1)",
        "x = a.random(), float(torch.rand(1, generator=b)), c.random(), d.rand()",
        "x",
    ),
    "array": (
        "import numpy as np; x = np.zeros((2, 3)); y = x",
        "x += turn; z = x[:, 1] * 2",
        "x, y is x, z",
    ),
    "rows of an array": (
        "import numpy as np; x = np.zeros((3, 2)); y = [x[i] for i in range(3)]",
        "y[turn % 3] += turn; x[:, 1] += 1",
        "x, y, [r.base is x for r in y]",
    ),
    "rows made later": (
        "import numpy as np; x = y = None",
        "if turn == 0: x = np.ones((2, 3), 'f4', 'F'); y = x[1], x.T[::-1, 1:], x.reshape(-1)[2:]\ny[0][:] += turn; y[1][:] *= 2",
        "x, y, [np.shares_memory(x, r) for r in y], y[1].strides",
    ),
    "rows of what has no name": (
        "import numpy as np; y = list(np.zeros((2, 2)))",
        "y[0].base[:] += turn",
        "y, y[0].base is y[1].base",
    ),
    "a view that was another": (
        "import numpy as np; x = np.zeros(6); y = x[:2]",
        "y = x[turn:][::2]; y += 1",
        "x, y, y.base is x",
    ),
    "a view alone in its memory": (
        "import numpy as np; y = np.zeros((2, 2))[0]",
        "y = (np.zeros((2, 2)) + turn + y)[1]",
        "y",
    ),
    "a view that cannot be written": (
        "import numpy as np; x = np.zeros(3); y = np.broadcast_to(x, (2, 3))",
        "x += turn",
        "x, y, y.flags.writeable",
    ),
    "scalar of numpy": ("import numpy as np; x = np.float32(0)", "x += np.float32(0.1)", "x, type(x)"),
    "iterator in a variable": ("x = iter([1, 2, 3, 4])", "y = next(x)", "y"),
    "enumerate in a variable": ("x = enumerate('abcd')", "y = next(x)", "y"),
    "map over a list": ("x = map(str, [1, 2, 3, 4])", "y = next(x)", "y"),
    "generator": (
        "def g(a):\n  total = 0\n  for i in range(9):\n    for j in a:\n      total += i * j\n      yield i, j, total\n"
        "x = g([1, 2, 3]); first = next(x)",
        "y = next(x); y = next(x)",
        "y",
    ),
    "generator that began later": (
        "def g():\n  n = 5\n  while True:\n    n += 1\n    yield n\nx = g()",
        "y = next(x)",
        "y",
    ),
    "generator in a generator": (
        "def h():\n  for c in 'abcdef': yield c\ndef g():\n  yield from h()\nx = g(); next(x)",
        "y = next(x)",
        "y",
    ),
    "bytes and numbers in place": (
        "import array; x, y = bytearray(), array.array('d', [0.0]); z = x, y",
        "x += b'a'; y.append(turn)",
        "x, y, z[0] is x, z[1] is y",
    ),
    "decimal and fraction": (
        "import decimal, fractions; x, y = decimal.Decimal(1), fractions.Fraction(1, 3)",
        "x += decimal.Decimal('0.1'); y += y",
        "x, y",
    ),
    "count": ("import itertools; x = itertools.count(1); y = itertools.count(.5, .25); z = x", "i = next(z); j = next(y)", "i, j, z is x"),
    "count in a loop that is left": (
        "import itertools; x = itertools.count(7)",
        "for i in x:\n  if i % 3 == 0: break",
        "i, next(x)",
    ),
    "count in a loop under way": (
        "import itertools\ndef g():\n  for i in x: yield i\nx = itertools.count(7); y = g(); next(y)",
        "i = next(y), next(x)",
        "i",
    ),
    "dict in a loop": (
        "d = {'a': 1}",
        "d[str(turn)] = turn\nfor k, v in list(d.items()): s = k, v",
        "d, s",
    ),
}  # fmt: skip


def _source(setup: str, change: str, told: str, turns: int = 4) -> str:
    inside = change.replace("\n", "\n    ")
    return f"{setup}\nfor turn in range({turns}):\n    here()\n    {inside}\n    LOG.append(repr(({told},)))\n"


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_on(kind: str, at: int, tmp_path: Path) -> None:
    found = goes_on(_source(*KINDS[kind]), tmp_path, at)
    assert found.given.lost == []
    assert found.on == found.whole  # the log is a variable as well
    assert len(found.on) == 4
    assert found.taken.reasons == []
    assert found.taken.left_out == []


def test_views_of_memory_in_another_order_are_named(tmp_path: Path) -> None:
    setup = "import numpy as np; x = np.zeros((2, 3, 4)).transpose(1, 0, 2).copy('K'); y = x[0]"
    found = goes_on(_source(setup, "y += 1", "x, y"), tmp_path)
    assert found.taken.reasons == ["y is a view of memory that is not in one piece"]


LEFT = {
    "an open file": ("x = open(__file__)", "x (TextIOWrapper)"),
    "a lock": ("import threading; x = threading.Lock()", "x (lock)"),
    "a library's object that holds a file": (
        "import mailbox; x = mailbox.mbox(__file__, create=False)",
        "x (mbox)",
    ),
    "an object's": (
        "import threading\nclass A: pass\nx = A(); x.lock = threading.Lock()",
        "x.lock (lock)",
    ),
    "in a list": ("x = [open(__file__)]", "x[0] (TextIOWrapper)"),
}
SILENT = [
    "import os, sys, typing, re; x = sys.stdout, print, [].append",
    "import typing; x = typing.Any, list[int], int | None, typing.Optional[int]",
    "def f(): pass\nclass A: pass",
    "import re, logging; x = re.compile('a'); y = logging.getLogger('a')",
    "import argparse; x = argparse.ArgumentParser()",
    "import torch; x = torch.device('cpu'), torch.float32, torch.nn.functional.relu, torch.strided",
    "import weakref\nclass A: pass\na = A(); x = weakref.ref(a)",
    "x = ...; y = NotImplemented; z = object()",
    "import textwrap; x = textwrap.TextWrapper()",
]


@pytest.mark.parametrize("what", LEFT)
def test_what_stands_in_the_world_outside_is_left_and_named(what: str, tmp_path: Path) -> None:
    setup, told = LEFT[what]
    close = "for y in (x, *(x if type(x) is list else ())):\n        getattr(y, 'close', int)()"
    source = f"{setup}\nfor turn in range(3):\n    here()\n{close.replace('        ', '    ')}\n"
    found = goes_on(source, tmp_path, 1)
    assert found.taken.left_out == [told]
    assert found.given.lost == []


HOLD_STATE = {
    "queue": ("import queue; x = queue.Queue()", "x.put(turn)"),
    "context": (
        "import contextvars; x = contextvars.ContextVar('x', default=0)",
        "x.set(turn + 1)",
    ),
    "weak": (
        "import weakref\nclass A: pass\na = A(); x = weakref.WeakKeyDictionary()",
        "x[a] = turn",
    ),
    "objects": ("import numpy as np; x = np.array([None, 0])", "x[1] += 1"),
    "records": ("import numpy as np; x = np.zeros(2, dtype=[('a', 'f4')])", "x['a'] += 1"),
    "cycle": ("import itertools; x = itertools.cycle('abc')", "next(x)"),
}


@pytest.mark.parametrize("what", HOLD_STATE)
def test_a_state_that_is_not_stored_is_not_exact_once_it_has_changed(
    what: str, tmp_path: Path
) -> None:
    setup, change = HOLD_STATE[what]
    still = goes_on(_source(setup, "", "1"), tmp_path, 1)
    assert (still.taken.reasons, len(still.taken.left_out), still.given.lost) == ([], 1, [])
    [why] = goes_on(_source(setup, change, "1"), tmp_path, 2).taken.reasons
    assert why.startswith("x (")
    assert why.endswith("has changed, and is not stored")
    flag = tmp_path / "flag"
    flag.touch()
    start = f"{setup}\nimport os\nturn = 0\nif os.path.exists({str(flag)!r}):\n  {change}"
    otherwise = goes_on(_source(start, "", "1"), tmp_path, 1, flag.unlink)
    assert len(otherwise.given.lost) == 1


def test_the_default_type_goes_on_and_what_is_set_around_the_script_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET_BY_A_SCRIPT", "0")
    (tmp_path / "there").mkdir()
    source = (
        "import os, torch\ntorch.set_default_dtype(torch.float32)\n"
        "for turn in range(3):\n    here()\n    LOG.append(str(torch.zeros(1).dtype))\n"
        "    if turn == 0:\n        torch.set_default_dtype(torch.float64)\n"
        "        os.environ['SET_BY_A_SCRIPT'] = '1'; os.chdir('there')\n"
    )
    try:
        found = goes_on(source, tmp_path, 1, lambda: os.chdir(tmp_path))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.on == found.whole
    assert found.whole[1:] == ["torch.float64"] * 2
    assert found.taken.left_out == ["os.environ['SET_BY_A_SCRIPT'] (str)", "os.getcwd() (str)"]


CACHED = (
    "import functools\n@functools.lru_cache\ndef f(n): return n\nclass A:\n  g = functools.cache(f)"
)


@pytest.mark.parametrize("called", ["f", "A.g"])
def test_a_cache_of_the_scripts_is_named_and_not_exact_once_it_has_grown(
    called: str, tmp_path: Path
) -> None:
    unused = goes_on(_source(CACHED, "", "1"), tmp_path, 1)
    assert (unused.taken.reasons, unused.taken.left_out) == ([], [])
    still = goes_on(_source(f"{CACHED}\n{called}(9)", f"{called}(9)", "1"), tmp_path, 2)
    assert still.taken.reasons == []
    assert f"{called} (_lru_cache_wrapper)" in still.taken.left_out
    found = goes_on(_source(CACHED, f"{called}(turn)", "1"), tmp_path, 2)
    assert f"{called} has cached more since, which is not stored" in found.taken.reasons
    assert found.given.lost == []


@pytest.mark.parametrize("setup", SILENT)
def test_what_does_not_change_is_left_without_a_word(setup: str, tmp_path: Path) -> None:
    found = goes_on(f"{setup}\nfor turn in range(3):\n    here()\n", tmp_path, 1)
    assert found.taken.left_out == []
    assert found.taken.reasons == []
    assert found.given.lost == []


GAMES = """
import numpy as np
class Game:
    def __init__(self): self.at, self.rng, self.says = np.zeros(2), np.random.default_rng(1), []
    def step(self): self.at = self.at + self.rng.random(); self.last = self.at.copy(); return self.last.tolist()
class Limit:
    def __init__(self, of): self.of, self.done = of, None
    def step(self): self.done = (self.done or 0) + 1; return self.done, self.of.step()
"""


@pytest.fixture
def games(tmp_path: Path) -> str:
    """Imports a library."""
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "games_of_a_test.py").write_text(GAMES)
    return f"import sys; sys.path.insert(0, {str(library)!r}); import games_of_a_test as g; sys.path.pop(0)\n"


LIBRARYS = {
    "what it counts": (
        "import textwrap; x = textwrap.TextWrapper()",
        "x.width += 1; x.initial_indent += 'a'",
        "x.width, x.initial_indent",
    ),
    "arrays": ("x = g.Game()", "x.step()", "x.at, x.last, x.rng.random()"),
    "in another": ("x = g.Limit(g.Limit(g.Game()))", "", "x.step()"),
    "in a list": (
        "x = [g.Limit(g.Game()), g.Game()]; y = g.Limit(x[1])",
        "",
        "x[0].step(), y.step()",
    ),
    "a number of NumPy": ("import numpy as np; x = g.Limit(np.float64(0))", "x.of += 1.", "x.of"),
    "of torch": (
        "import torch; x = torch.distributions.Normal(torch.zeros(2), 1.)",
        "x = torch.distributions.Normal(x.mean + 1, 1.)",
        "x.mean",
    ),
}


@pytest.mark.parametrize("what", LIBRARYS)
def test_what_a_librarys_object_holds_goes_on(what: str, games: str, tmp_path: Path) -> None:
    setup, change, told = LIBRARYS[what]
    found = goes_on(_source(games + setup, change, told), tmp_path, 3)
    assert found.on == found.whole
    assert found.given.lost == []
    assert (found.taken.reasons, found.taken.left_out) == ([], [])


def test_what_a_librarys_object_holds_and_nobody_can_store_is_told(
    games: str, tmp_path: Path
) -> None:
    setup = f"{games}import numpy as np; x = g.Limit(np.array([None, 0]))"
    still = goes_on(_source(setup, "", "1"), tmp_path, 3).taken
    assert (still.reasons, still.left_out) == ([], [])
    found = goes_on(_source(setup, "x.of[1] += 1", "1"), tmp_path, 3)
    assert found.taken.reasons == ["x.of (ndarray) has changed, and is not stored"]


def test_a_librarys_object_that_was_made_since_is_named(games: str, tmp_path: Path) -> None:
    setup = f"{games}x, y = None, g.Limit(None)"
    change = "x = x or g.Game(); y.of = x; y.of.says.append(g.Limit(x))"
    found = goes_on(_source(setup, change, "1"), tmp_path, 3)
    assert found.taken.left_out == ["x (Game)"]
    assert found.given.lost == []


def test_modules_beside_the_script_go_on_as_well(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text(
        "n = 0\ndef add():\n    global n\n    n += 1\n    return n\n"
    )
    source = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules.pop('beside_it', None)\n"
        "import beside_it; sys.path.pop(0)\n"
        "for turn in range(4):\n    here()\n    LOG.append(beside_it.add())\n"
    )
    found = goes_on(source, tmp_path, 2)
    assert found.on == found.whole == [1, 2, 3, 4]


def test_what_is_registered_goes_on(tmp_path: Path) -> None:
    got: list[list[int]] = []
    core = Reentry(tmp_path, LOOPS, {"ticks": (lambda: [7], got.append)})
    states: list[Any] = []

    def act(moment: Moment) -> None:
        if states and not got:
            core.apply(read_back(states[0]), moment)
        states.append(core.capture(moment).state)

    run("for n in range(2):\n    here()\n", tmp_path, act)
    assert got == [[7]]


def test_what_is_registered_and_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    core = Reentry(tmp_path, LOOPS, {"odd": (object, print)})
    with pytest.raises(CommandError, match="what was registered as odd holds a object"):
        run("here()\n", tmp_path, lambda moment: core.capture(moment) and None)
