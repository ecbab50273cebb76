"""What is put into a script's code when it is compiled: a call at the head of each loop.

A loop that no DataLoader drives is met there. The lines stay those of the file, and a turn of a
loop at which nothing is due costs one look at a name.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

DUE: Final = "__otf_due__"
HEAD: Final = "__otf_head__"


class MarkLoopHeads(ast.NodeTransformer):
    """Puts ``if __otf_due__: __otf_head__(first, last)`` at the head of each loop, lines kept."""

    def _mark(self, node: ast.For | ast.While) -> ast.AST:
        self.generic_visit(node)
        head = ast.parse(f"if {DUE}: {HEAD}({node.lineno}, {node.end_lineno})").body[0]
        for part in ast.walk(head):
            ast.copy_location(part, node.body[0])
        node.body.insert(0, head)
        return node

    visit_For = visit_While = _mark  # noqa: N815 -- ast's own naming


def compile_marked(source: bytes, path: str) -> CodeType:
    """The code of a file of the script.

    Raises:
        SyntaxError, ValueError: as ``compile`` does.
    """
    tree = MarkLoopHeads().visit(ast.parse(source, path))
    code: CodeType = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    return code


def begin(_folder: str) -> None:
    """Before a script runs: what its marks ask for is there.

    Args:
        _folder: where the script's own modules are.
    """
    # Where torch was there before the script, the driver has put in its own already.
    vars(builtins).setdefault(DUE, False)
    vars(builtins).setdefault(HEAD, lambda _first, _last: None)


def put_in(*, due: bool | None = None, head: Callable[[int, int], Any] | None = None) -> None:
    """Whether the next head of a loop is to call, and what."""
    if due is not None:
        vars(builtins)[DUE] = due
    if head is not None:
        vars(builtins)[HEAD] = head
