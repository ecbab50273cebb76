"""The border between somebody's script and us: a fault of ours costs the script us, and no more.

Rule 1: what a script calls of ours without knowing is ``bordered``, and nothing of the script's is
called in it that the script itself has called: what that raises passes.
Rule 2: so does all that is no ``Exception``: a stop, Ctrl-C.
Rule 3: a run that is about to go on is refused instead: the script would begin anew.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Ours = TypeVar("Ours", bound="Bordering")

LETS_GO: Final = "otf lets go of the script, which trains on"
MAX_TEXT: Final = 8000  # characters of a traceback that are kept


class Border:
    """One for each script.

    Args:
        say: one sentence for the person.

    Attributes:
        crossed: a fault of ours has come to the script; from then on nothing of ours is done.
        let_go: told in one line and with the traceback.
        refuses: whether the script is ended instead, which raises.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.crossed = False
        self.let_go: Callable[[str, str], None] = _nothing
        self.refuses: Callable[[str], bool] = _no
        self._say = say

    def cross(self, error: Exception, then: str = LETS_GO) -> None:
        """See ``let_go``; called in the handler of the error."""
        if self.crossed:
            return
        text = "".join(traceback.format_exception(error))[-MAX_TEXT:]
        said = f"an error of otf's own at {where(error.__traceback__)} ({_brief(error)})"
        if self.refuses(said):
            return
        self.crossed = True
        self.attempt(lambda: self.let_go(said, text))
        self._say(f"{said}; {then}")

    def attempt(self, part: Callable[[], Any]) -> None:
        """Do a part of letting go, whatever becomes of it."""
        try:
            part()
        except Exception:  # noqa: BLE001 -- the border: what fails once may fail again
            return


class Bordering(Protocol):
    """What has methods that are ``bordered``."""

    border: Border


def bordered(
    method: Callable[Concatenate[Ours, P], R],
) -> Callable[Concatenate[Ours, P], R | None]:
    """A method that a script runs without knowing; None where it has failed."""

    @functools.wraps(method)
    def inside(self: Ours, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self.border.crossed:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- the border: a script never sees a fault of ours
            self.border.cross(error)
        return None

    return inside


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is of this package."""
    return str(frame.f_globals.get("__name__", "")).startswith("otf_core.")


def where(trace: TracebackType | None) -> str:
    """File and line of our innermost frame."""
    found = "an unknown place"
    while trace is not None:
        if is_ours(trace.tb_frame):
            found = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")


def _nothing(_said: str, _text: str) -> None:
    pass


def _no(_said: str) -> bool:
    return False
