"""What is put into a script's code when it is compiled: a call at the head of each loop, and one
that knows the iterator of each ``for``.

A loop that no DataLoader drives is met at its head; where a ``for`` stands is known by its
iterator, which Python keeps to itself. The lines stay those of the file.

Rule 1: where nothing is due they do nothing, and cost a look at a name a turn.
Rule 2: what the marks ask for stays in ``builtins`` for good: marked code may run at exit.
Rule 3: no ``.pyc`` of marked code is written, none of unmarked code is read.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import hashlib
import importlib.machinery
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from otf_core.script.loops import LOOPS

DUE: Final = "__otf_due__"
HEAD: Final = "__otf_head__"
LOOP: Final = "__otf_loop__"
DONE: Final = "__otf_done__"
_AT_THE_END: Final = "__otf_at_the_end__"
# A decorator of such a name compiles the function itself, and knows no names of ours.
_COMPILERS: Final = frozenset({"compile", "jit", "njit", "vectorize", "guvectorize", "jit_kernel"})
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

# Path -> hash of the source that runs in this process; the file may be another by now.
SOURCES: Final[dict[str, str]] = {}


class _Marker(ast.NodeTransformer):  # its methods are called as ast calls them
    """``for x in it: body`` becomes, lines kept::

        try:
            for x in __otf_loop__(it, n):
                if __otf_due__: __otf_head__(first, last)
                body
        finally:
            __otf_done__(n)

    so that the iterator is let go when Python would let it go.
    """

    def __init__(self) -> None:
        self._count = itertools.count()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # What a module does in its forward is no training, and may be compiled.
        if node.name == "forward" or any(map(_compiles, node.decorator_list)):
            return node
        return self.generic_visit(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, _head(node))
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, _head(node))  # what it asks is nothing that could be put at a place
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        n = next(self._count)
        self.generic_visit(node)
        node.body.insert(0, _head(node))
        iterable = node.iter
        if isinstance(iterable, ast.List):  # as Python compiles it, right behind ``in``
            iterable = ast.copy_location(ast.Tuple(iterable.elts, ast.Load()), iterable)
        node.iter = _at(iterable, ast.Call(_name(LOOP), [iterable, ast.Constant(n)], []))
        done = ast.Expr(ast.Call(_name(DONE), [ast.Constant(n)], []))
        wrapped = ast.Try([node], [], [], [_at(node.iter, done)])
        return ast.copy_location(wrapped, node)


def _compiles(decorator: ast.expr) -> bool:
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    last = named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")
    return last in _COMPILERS


def _head(loop: ast.For | ast.AsyncFor | ast.While) -> ast.stmt:
    lines: list[ast.expr] = [ast.Constant(loop.lineno), ast.Constant(loop.end_lineno)]
    call = ast.Expr(ast.Call(_name(HEAD), lines, []))
    head: ast.If = _at(loop.body[0], ast.If(_name(DUE), [call], []))
    return head


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _at(where: ast.AST, new: Any) -> Any:
    """Everything in ``new`` that has no place yet stands where the other one does."""
    for part in ast.walk(new):
        if isinstance(part, ast.stmt | ast.expr) and not hasattr(part, "lineno"):
            ast.copy_location(part, where)
    return new


def compile_marked(source: bytes, path: str) -> CodeType:
    """The code of a file of the script.

    Raises:
        SyntaxError, ValueError: as ``compile`` does.
    """
    SOURCES[path] = hashlib.sha256(source).hexdigest()
    tree = ast.parse(source, path)
    try:
        return _compiled(_Marker().visit(tree), path)
    except (SyntaxError, RecursionError):
        pass  # Python allows 20 blocks in each other, and a tree no deeper than its stack
    except Exception as error:  # noqa: BLE001 -- the border of a script
        LOOPS.border.cross(error)
    return _compiled(ast.parse(source, path), path)


def _compiled(tree: ast.Module, path: str) -> CodeType:
    code: CodeType = compile(tree, path, "exec", dont_inherit=True)
    return code


class _MarkingLoader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile_marked(self.get_data(path), path)


class _Finder:
    """Finds what ``sys.path`` has below the script's folder; leaves the rest to Python's own."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None
        try:
            if spec.origin is None or not is_below(spec.origin, self._folder):
                return None
        except Exception as error:  # noqa: BLE001 -- the border of a script
            LOOPS.border.cross(error)
            return None
        spec.loader = _MarkingLoader(spec.loader.name, spec.loader.path)
        return spec


def is_below(file: str, folder: Path) -> bool:
    """Whether a file is of the script's own code; an environment in its folder is not."""
    where = Path(os.path.realpath(file))
    return where.is_relative_to(folder) and _INSTALLED.isdisjoint(where.parts)


def begin(folder: str) -> None:
    """Before a script runs: its modules are marked as well, and what the marks ask for is there.

    Args:
        folder: where the script's own modules are.
    """
    # Where torch was there before the script, the driver has put in its own already.
    vars(builtins).setdefault(DUE, False)
    vars(builtins).setdefault(HEAD, _nothing)
    vars(builtins).update({LOOP: LOOPS.begin, DONE: LOOPS.done})
    atexit.register(_keep_to_the_end)  # before the script's own, so it is called behind them
    finder: Any = _Finder(os.path.realpath(folder))
    own = importlib.machinery.PathFinder
    at = sys.meta_path.index(own) if own in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(at, finder)  # behind finders that others have put in front


def _keep_to_the_end() -> None:
    # Only now: what has copied ``builtins``, as torch does, would keep it from going.
    vars(builtins)[_AT_THE_END] = _AtTheEnd()


class _AtTheEnd:
    """Python takes out of ``builtins`` what was put in before the last objects of a script go, and
    what they run when they go may be marked: then the marks do nothing, and need nothing.
    """

    def __init__(self) -> None:
        self._names = vars(builtins)
        self._marks = {DUE: False, LOOP: lambda iterable, _n: iterable, DONE: lambda _n: None}

    def __del__(self) -> None:
        self._names.update(self._marks)


def put_in(*, due: bool | None = None, head: Callable[[int, int], Any] | None = None) -> None:
    """Whether the next head of a loop is to call, and what."""
    if due is not None:
        vars(builtins)[DUE] = due
    if head is not None:
        vars(builtins)[HEAD] = head


def _nothing(*_: int) -> None:
    pass
