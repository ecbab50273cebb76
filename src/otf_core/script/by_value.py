"""Functions of a script that go to another process by value, as cloudpickle (joblib, ray) sends
them: without the marks, which nobody knows there.

The code that is sent is what ``python`` would have compiled; it is made when it is first asked for.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, Final

from otf_core.script.loops import LOOPS
from otf_core.script.marks import DONE, HEAD, LOOP, SOURCES

PICKLER: Final = "cloudpickle.cloudpickle"
_MARKS: Final = frozenset({LOOP, HEAD, DONE})


def mend() -> None:
    """cloudpickle is there: have it reduce marked code to the code of the file."""
    for cls in vars(sys.modules[PICKLER]).values():
        table = getattr(cls, "_dispatch_table", None)
        if isinstance(table, dict) and CodeType in table:
            table[CodeType] = functools.partial(_reduced, table[CodeType])


def _reduced(reduce: Any, code: CodeType) -> Any:
    return reduce(_unmarked(code) or code)


def _unmarked(code: CodeType) -> CodeType | None:
    """The code of the file; None where it is not marked, or the file is another by now."""
    marked = code.co_filename in SOURCES and any(_MARKS & {*c.co_names} for c in _all_of(code))
    if not marked:
        return None
    try:
        return _codes_of(code.co_filename).get(_place(code))
    except OSError:
        return None
    except Exception as error:  # noqa: BLE001 -- the border of a script
        LOOPS.border.cross(error)
        return None


@functools.lru_cache(maxsize=8)
def _codes_of(path: str) -> dict[tuple[str, int], CodeType]:
    source = Path(path).read_bytes()
    if hashlib.sha256(source).hexdigest() != SOURCES[path]:
        return {}
    whole = compile(source, path, "exec", dont_inherit=True)
    return {_place(code): code for code in _all_of(whole)}


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _all_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _all_of(part)
