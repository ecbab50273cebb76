"""Runs a file, or a module, as ``__main__`` as ``python`` does; any thread of the script's.

Rule 1: what the script sees and leaves is python's: argv, path, working directory, ``__main__``
for pickling, exit code, and tracebacks without our frames.
Rule 2: torch is not imported here. A script that sets ``OMP_NUM_THREADS`` before it imports torch
means what it says.
Rule 3: nothing is ever written to stdout.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib.machinery
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from otf_core.script import marks
from otf_core.script.border import is_ours
from otf_core.script.loops import LOOPS


@dataclasses.dataclass(frozen=True)
class Target:
    """What is run.

    Attributes:
        name: a file as it was given, or with ``module`` the dotted name that ``-m`` takes.
        args: of the script.
    """

    name: str
    args: list[str]
    module: bool = False


class CannotRunError(Exception):
    """There is nothing to run; python's own words for it, and exit code."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


def run(target: Target) -> None:
    """Run it to its end; what it raises comes out of here.

    A traceback is shown by whatever ``sys.excepthook`` the script chose; exit codes and the way
    an interrupt ends a process are left to the interpreter.

    Raises:
        CannotRunError: there is no such file or module.
    """
    main = types.ModuleType("__main__")
    _become_main(main)
    # For good: a thread of the script's may live longer than its main module.
    marks.begin(folder_of(target))
    try:
        code = _of_module(target, main) if target.module else _of_file(target, main)
        exec(code, main.__dict__)
    except (SystemExit, CannotRunError):
        raise
    except BaseException as error:
        _show(error, main)
        raise


def _become_main(main: types.ModuleType) -> None:
    # multiprocessing keeps a second name for the main module, taken when it was imported.
    for name in sys.modules.keys() & {"__mp_main__"} | {"__main__"}:
        sys.modules[name] = main


def folder_of(target: Target) -> str:
    """Where the script's own modules are: what python puts in front of ``sys.path``."""
    if target.module:
        return os.getcwd()
    return str(Path(os.path.join(os.getcwd(), target.name)).resolve().parent)


def _of_file(target: Target, main: types.ModuleType) -> types.CodeType:
    sys.argv = [target.name, *target.args]
    full = os.path.join(os.getcwd(), target.name)  # python itself normalises nothing
    if os.path.isdir(full):
        said = f"otf-fit was asked to run {full!r}, a folder; allowed: a file, or -m and a module"
        raise CannotRunError(said, 2)
    try:
        with io.open_code(full) as file:
            source = file.read()
    except OSError as error:
        said = f"{sys.executable}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}"
        raise CannotRunError(said, 2) from error
    if not sys.flags.safe_path:
        sys.path[0] = folder_of(target)
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    main.__dict__.update(
        __file__=full, __loader__=loader, __cached__=None, __builtins__=builtins, __annotations__={}
    )
    return marks.compile_marked(source, full)


def _of_module(target: Target, main: types.ModuleType) -> types.CodeType:
    sys.argv = ["-m", *target.args]
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    spec = _spec_of(target.name)
    loader: Any = spec.loader
    full = spec.origin
    assert full is not None
    sys.argv[0] = full
    main.__dict__.update(
        __file__=full,
        __loader__=loader,
        __cached__=spec.cached,
        __spec__=spec,
        __package__=spec.parent,
        __builtins__=builtins,
    )
    return marks.compile_marked(loader.get_data(full), full)


def _spec_of(name: str) -> importlib.machinery.ModuleSpec:
    """Of a module, or of the ``__main__`` in a package, as runpy finds it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        said = (
            f"{sys.executable}: Error while finding module specification for {name!r} "
            f"({type(error).__name__}: {error})"
        )
        raise CannotRunError(said, 1) from error
    if spec is None:
        said = f"{sys.executable}: No module named {name}"
        raise CannotRunError(said, 1)
    if spec.submodule_search_locations is not None and not name.endswith(".__main__"):
        return _spec_of(f"{name}.__main__")
    if spec.origin is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        said = f"otf-fit was asked to run {name}, which is no file of Python source"
        raise CannotRunError(said, 1)
    return spec


def _show(error: BaseException, main: types.ModuleType) -> None:
    """Show the error as python would, once."""
    for each in _with_causes(error):
        LOOPS.border.attempt(partial(_hide_us, each, main if each is error else None))
    sys.excepthook(type(error), error, error.__traceback__)
    sys.excepthook = _shown


def _hide_us(error: BaseException, main: types.ModuleType | None) -> None:
    error.with_traceback(_without_us(error.__traceback__, main))


def _shown(*_: object) -> None:
    """The interpreter has nothing more to show."""


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _without_us(
    trace: types.TracebackType | None, main: types.ModuleType | None
) -> types.TracebackType | None:
    """From the script's own first frame on, less ours; where we have failed ourselves, with them.

    Our frames are known by their globals: a relative entry of ``sys.path`` defeats file names.
    """
    kept: list[types.TracebackType] = []
    began = main is None
    while trace is not None:
        began = began or trace.tb_frame.f_globals is vars(main)
        if began:
            kept.append(trace)
        trace = trace.tb_next
    ours_failed = bool(kept) and is_ours(kept[-1].tb_frame)
    rest: types.TracebackType | None = None
    for part in reversed(kept):
        if ours_failed or not is_ours(part.tb_frame):
            rest = types.TracebackType(rest, part.tb_frame, part.tb_lasti, part.tb_lineno)
    return rest
