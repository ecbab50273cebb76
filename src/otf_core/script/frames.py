"""The script's frames: where they stand, and what they hold; training thread.

Rule 1: a place is the source that is running, not an offset in the code, which the interpreter
moves when it specialises.
Rule 2: the value that a line has computed already lies where nobody reads or writes it; such a
line is named.
"""

from __future__ import annotations

import ast
import ctypes
import dis
import functools
import hashlib
import inspect
import itertools
import linecache
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, GeneratorType
from typing import Any, Final, NamedTuple

from otf_core.script import marks

ABSENT: Final = object()
_CONSTANT: Final = (ast.Constant, ast.Lambda, ast.Slice)
_WRITES_THROUGH: Final = sys.version_info >= (3, 13)


class Spot(NamedTuple):
    """Where a frame stands.

    Attributes:
        file: below the script's folder, or the name of a library's module.
        at: first line, last line, first column, last column of what is running; from 1 and 0.
        source: hash of the source, of a library's code.
        own: whether it is the script's.
    """

    file: str
    name: str
    at: tuple[int | None, ...]
    source: str
    own: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.at[0]} in {self.name}"


def spot(frame: FrameType, folder: Path) -> Spot:
    """Where a frame stands, as it can be found again in another process."""
    code = frame.f_code
    own = is_own(code.co_filename, folder)
    file = (
        str(Path(code.co_filename).resolve().relative_to(folder))
        if own
        else str(frame.f_globals.get("__name__", code.co_filename))
    )
    source = marks.SOURCES.get(code.co_filename) or _hash(code)
    return Spot(file, code.co_qualname, position(code, frame.f_lasti), source, own)


@functools.cache
def is_own(file: str, folder: Path) -> bool:
    """Whether a file is of the script's own code."""
    return marks.is_below(file, folder) and Path(file).is_file()


@functools.cache
def _hash(code: CodeType) -> str:
    return hashlib.sha256(code.co_code + code.co_linetable).hexdigest()


def position(code: CodeType, lasti: int) -> tuple[int | None, ...]:
    """Lines and columns of the instruction at an offset; of a frame that has not begun, none."""
    if lasti < 0:
        return (None,) * 4
    found = next(p for n, p in enumerate(code.co_positions()) if n == lasti // 2)
    return tuple(found)


def values(frame: FrameType) -> dict[str, Any]:
    """The variables of a frame, those of the functions around it that it uses among them."""
    if is_module(frame):
        return _of_module(frame)
    found = dict(frame.f_locals)
    forget(frame)
    return found


def forget(frame: FrameType) -> None:
    """Before Python 3.13 a function's frame keeps what ``f_locals`` has given, tensors and all."""
    if is_module(frame) or {"locals", "vars", "dir"} & set(frame.f_code.co_names):
        return
    shown = frame.f_locals
    if type(shown) is dict:
        shown.clear()


def is_module(frame: FrameType) -> bool:
    """Whether the frame's variables are a module's."""
    return not frame.f_code.co_flags & inspect.CO_OPTIMIZED


def _of_module(frame: FrameType) -> dict[str, Any]:
    """Its own dict. From Python 3.12 on a comprehension runs in the frame around it: meanwhile
    ``f_locals`` is a copy with its variables, from 3.13 on a view of these alone."""
    there = frame.f_locals
    if frame.f_code.co_name == "<module>" and any(n in there for n in frame.f_code.co_varnames):
        return frame.f_globals
    return there


def write(frame: FrameType, new: Mapping[str, Any], gone: set[str]) -> None:
    """Set variables of a live frame, and let others go; ``gone`` stays in a function after 3.11,
    since 3.12 would make it None, and say so on stderr."""
    there = _of_module(frame) if is_module(frame) else frame.f_locals
    if is_module(frame) or sys.version_info < (3, 12):
        for name in gone & there.keys():
            del there[name]
    there.update(new)
    if not _WRITES_THROUGH and not is_module(frame):
        # No public way before Python 3.13; 1: what is not there is unbound.
        to_fast = ctypes.pythonapi.PyFrame_LocalsToFast
        to_fast(ctypes.py_object(frame), ctypes.c_int(1))
        forget(frame)


# Loops without a name.


def unnamed_loops(frame: FrameType, named: int, *, asks: bool) -> int:
    """How many ``for`` of a frame are under way whose iterators are not known.

    Args:
        named: how many are.
        asks: the frame calls what stands above it; if by a ``for``, that iterator is found there.
    """
    under_way, asking = _fors(frame.f_code, frame.f_lasti)
    unnamed = max(0, under_way - named - (asks and asking and under_way > named))
    return unnamed + _async_fors(frame.f_code, frame.f_lineno)


@functools.lru_cache(maxsize=256)
def _async_fors(code: CodeType, line: int) -> int:
    """How many ``async for`` there are around a line."""
    if not code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return 0
    tree = _tree(code.co_filename)
    loops = (n for n in ast.walk(tree) if isinstance(n, ast.AsyncFor)) if tree is not None else ()
    return sum(
        code.co_firstlineno <= n.lineno <= line <= (n.body[-1].end_lineno or line) for n in loops
    )


@functools.lru_cache(maxsize=256)
def _fors(code: CodeType, lasti: int) -> tuple[int, bool]:
    """How many loops there are around an instruction, and whether it asks for their next item."""
    found, asking = 0, False
    for each in dis.get_instructions(code):
        if each.opname == "FOR_ITER" and each.offset <= lasti < each.argval:
            found += 1
        asking |= each.opname == "FOR_ITER" and each.offset == lasti
    return found, asking


# What a line has computed already.


def unfinished(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """What the running line has evaluated before what it is calling now: source and value.

    The value is ABSENT where it cannot be told without running anything.
    """
    code = frame.f_code
    at = position(code, frame.f_lasti)
    if at[1] is None:
        return
    for node in _before(code.co_filename, at):
        yield ast.unparse(node), _look_up(node, frame)


@functools.lru_cache(maxsize=64)
def _tree(file: str) -> ast.AST | None:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return None


@functools.lru_cache(maxsize=256)
def _before(file: str, at: tuple[int | None, ...]) -> tuple[ast.expr, ...]:
    tree = _tree(file)
    way = _way_to(tree, at) if tree is not None else []
    found: list[ast.expr] = []
    for parent, child in itertools.pairwise(way):
        before = (
            e.value if isinstance(e, ast.FormattedValue) else e
            for e in _evaluated_before(parent, child)
        )
        found += [e for e in before if not _is_constant(e)]
    return tuple(found)


def _way_to(tree: ast.AST, at: tuple[int | None, ...]) -> list[ast.AST]:
    """The nodes from the statement down to what is running: the smallest that ends where it does.

    A call of a method begins, for Python, at the method's name.
    """
    line, end_line, _, end_column = at
    best: list[ast.AST] = []
    way: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        nonlocal best
        first, last = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if first is not None and last is not None:
            assert line is not None
            assert end_line is not None
            if not first <= line <= end_line <= last:
                return
        way.append(node)
        if isinstance(node, ast.expr) and (last, node.end_col_offset) == (end_line, end_column):
            calls = isinstance(node, ast.Call)
            known = bool(best) and isinstance(best[-1], ast.Call)
            if not best or (calls and not known) or (calls == known and len(way) <= len(best)):
                best = list(way)
        for child in ast.iter_child_nodes(node):
            visit(child)
        way.pop()

    visit(tree)
    start = max((n for n, node in enumerate(best) if isinstance(node, ast.stmt)), default=0)
    return best[start:]


def _evaluated_before(parent: ast.AST, child: ast.AST) -> list[ast.expr]:
    """The parts of ``parent`` whose values are held while ``child`` is evaluated."""
    if isinstance(parent, ast.AugAssign):
        return _targets(parent.target)
    if isinstance(parent, ast.Assign | ast.AnnAssign):  # the value comes first
        return [parent.value] if parent.value not in (child, None) else []
    if isinstance(parent, ast.BoolOp | ast.IfExp | ast.For | ast.While | ast.If | ast.Match):
        return []  # what was tested is not held
    if isinstance(parent, ast.Compare):
        parts = [parent.left, *parent.comparators]
        return parts[: parts.index(child)][-1:] if child in parts else []
    if isinstance(parent, ast.Call):
        parts = [parent.func, *parent.args, *(k.value for k in parent.keywords)]
        inner = child.value if isinstance(child, ast.keyword) else child
        before = parts[: parts.index(inner)] if inner in parts else []
        return [*_held_by_callee(before[0]), *before[1:]] if before else []
    if isinstance(parent, ast.Dict):
        pairs = [p for kv in zip(parent.keys, parent.values, strict=True) for p in kv]
        parts = [p for p in pairs if p is not None]
        return parts[: parts.index(child)] if child in parts else []
    if isinstance(parent, ast.expr | ast.withitem | ast.stmt | ast.keyword | ast.FormattedValue):
        parts = [p for p in ast.iter_child_nodes(parent) if isinstance(p, ast.expr)]
        return parts[: parts.index(child)] if child in parts else []
    return []


def _targets(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Subscript):
        return [target, target.slice]
    return [target]


def _held_by_callee(function: ast.expr) -> list[ast.expr]:
    """A function that was looked up is the same one; what a method hangs on may not be."""
    if isinstance(function, ast.Name):
        return []
    return [function.value] if isinstance(function, ast.Attribute) else [function]


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, _CONSTANT):
        return True
    if isinstance(node, ast.JoinedStr | ast.Tuple | ast.UnaryOp | ast.FormattedValue):
        return all(_is_constant(p) for p in ast.iter_child_nodes(node) if isinstance(p, ast.expr))
    return False


def _look_up(node: ast.expr, frame: FrameType) -> Any:
    """The value of a name, or of an attribute that an object simply has."""
    if isinstance(node, ast.Name):
        for names in (values(frame), frame.f_globals, frame.f_builtins):
            if node.id in names:
                return names[node.id]
    if isinstance(node, ast.Attribute):
        owner = _look_up(node.value, frame)
        return getattr(owner, "__dict__", {}).get(node.attr, ABSENT)
    return ABSENT


# Generators.


def generator_spot(generator: GeneratorType[Any, Any, Any], folder: Path) -> Spot | None:
    """Where a generator stands; None: it has ended."""
    frame = generator.gi_frame
    return spot(frame, folder) if frame is not None else None
