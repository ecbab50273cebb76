"""Run by each Python: marked code against unmarked code. ``python same_when_marked.py src [n]``."""

from __future__ import annotations

import ast
import json
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    """Prints what differs as JSON."""
    src, every = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    sys.path.insert(0, src)
    warnings.simplefilter("ignore")
    found = {"files": 0, "differ": _lines(every), "odd": _odd()}
    found["files"] = found["differ"].pop()  # type: ignore[attr-defined]
    sys.stdout.write(json.dumps(found))


def _odd() -> list[str]:
    from otf_core.script import marks

    path = Path(__file__).with_name("odd_loops.py")
    source = path.read_bytes()
    marks.begin("/nowhere")
    plain = _run(compile(source, str(path), "exec", dont_inherit=True))
    marked = _run(marks.compile_marked(source, str(path)))
    assert len(plain) > 90
    differ = [f"{a} became {b}" for a, b in zip(plain, marked, strict=False) if a != b]
    return differ + [f"{len(plain)} became {len(marked)}"] * (len(plain) != len(marked))


def _run(code: types.CodeType) -> list[str]:
    module = types.ModuleType("odd")
    sys.modules["odd"] = module
    exec(code, vars(module))
    log: list[str] = vars(module)["LOG"]
    return [line for line in log if "__builtins__" not in line]


def _lines(every: int) -> list[Any]:
    """Files of the standard library's own tests whose line tables are others, and how many."""
    import test

    from otf_core.script import marks

    differ: list[Any] = []
    count = 0
    for file in sorted(Path(test.__file__).parent.rglob("*.py"))[::every]:
        source = file.read_bytes()
        try:
            plain = compile(source, str(file), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        count += 1
        marked = marks.compile_marked(source, str(file))
        first = _first_lines(ast.parse(source)) if sys.version_info >= (3, 12) else set()
        if _table(plain, first) != _table(marked, first):
            differ.append(file.name)
    return [*differ, count]


def _first_lines(tree: ast.AST) -> set[int]:
    """Of the bodies of loops: from 3.12 on the compiler may or may not name them."""
    return {n.body[0].lineno for n in ast.walk(tree) if isinstance(n, ast.For | ast.While)}


def _table(code: types.CodeType, but: set[int]) -> list[tuple[str, list[int]]]:
    return [
        (each.co_qualname, sorted({line for *_, line in each.co_lines() if line} - but))
        for each in _codes(code)
    ]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


if __name__ == "__main__":
    main()
