"""How a script is left: an exception at a safe point, which it may swallow."""

from __future__ import annotations

import ast
import linecache
from types import TracebackType
from typing import Final

AGAIN: Final = 2  # a script that swallows it is asked so often again


class StopScript(SystemExit):
    """Leaves the script; ``except Exception`` lets it pass, ``finally`` and ``atexit`` run."""


class Stop:
    """One stop under way.

    Args:
        code: the exit code of the process.
    """

    def __init__(self, code: int) -> None:
        self._code = code
        self._asked = 0
        self._raised: StopScript | None = None

    def ask(self) -> None:
        """Raise it, at a safe point; returns where the script goes on in spite of all."""
        if self._asked > AGAIN:
            return
        self._asked += 1
        self._raised = StopScript(self._code)
        raise self._raised

    def refusal(self) -> str:
        """Who has caught it."""
        trace = self._raised.__traceback__ if self._raised is not None else None
        return f"stop refused: the script catches everything at {_caught_at(trace)}"


def _caught_at(trace: TracebackType | None) -> str:
    """File and line of the handler: the outermost frame that it came through is the catcher's."""
    if trace is None:
        return "an unknown place"
    name, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    try:
        tree = ast.parse("".join(linecache.getlines(name)))
    except SyntaxError:
        return f"{name}:{line}"
    around = [
        (node.lineno, handler.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and node.body[0].lineno <= line <= _end(node.body[-1])
        for handler in node.handlers
        if _takes_an_exit(handler.type)
    ]
    return f"{name}:{max(around)[1] if around else line}"


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _takes_an_exit(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(map(_takes_an_exit, caught.elts))
    return caught is None or ast.unparse(caught) in ("BaseException", "SystemExit")
