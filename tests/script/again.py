"""Runs a small script twice: saved at one of its calls of ``here()``, and gone on from there.

No driver and no session: a script says itself where it can be met.
"""

from __future__ import annotations

import builtins
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from otf_core.script import graphs, marks
from otf_core.script.driver import frames_to
from otf_core.script.loops import LOOPS
from otf_core.script.reentry import Given, Moment, Reentry, Taken

Act = Callable[[Moment], None]


class Again(NamedTuple):
    """What became of it: the log of the run that nobody touched, and of the one that went on."""

    whole: list[Any]
    on: list[Any]
    taken: Taken
    given: Given
    main: dict[str, Any]


def run(source: str, folder: Path, act: Act, name: str = "script.py") -> dict[str, Any]:
    """The script's variables at its end."""
    main = types.ModuleType("__main__")
    path = folder / name
    path.write_text(source)
    before = sys.modules["__main__"]
    sys.modules["__main__"] = main
    main.__dict__.update(__file__=str(path), __builtins__=builtins, LOG=[])

    turn = graphs.now()

    def here() -> None:
        nonlocal turn
        act(Moment(frames_to(sys._getframe(1), vars(main)), None, turn))
        turn = graphs.now()

    vars(main)["here"] = here
    marks.begin(str(folder))
    finder = next(f for f in sys.meta_path if isinstance(f, marks._Finder))
    try:
        exec(marks.compile_marked(source.encode(), str(path)), vars(main))
    finally:
        sys.meta_path.remove(finder)
        sys.modules["__main__"] = before
    return vars(main)


def read_back(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes from the disk, with nothing allow-listed."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def goes_on(
    source: str, folder: Path, at: int = 2, between: Callable[[], object] = lambda: None
) -> Again:
    """Save at the ``at``-th call of ``here()``, from 0, and go on from the first.

    Args:
        between: called between the two.
    """
    taken: list[Taken] = []
    calls = [0]

    def saving() -> Act:
        core = Reentry(folder, LOOPS)

        def save(moment: Moment) -> None:
            if calls[0] == 0:
                core.begins(moment)
            if calls[0] == at:
                taken.append(core.capture(moment))
            calls[0] += 1

        return save

    whole = run(source, folder, saving())["LOG"]
    state = read_back(taken[0].state)
    given: list[Given] = []

    def going_on() -> Act:
        core = Reentry(folder, LOOPS)

        def give(moment: Moment) -> None:
            if not given:
                given.append(core.apply(state, moment))

        return give

    between()
    main = run(source, folder, going_on())
    return Again(whole, main["LOG"], taken[0], given[0], main)
