"""Which live run is meant; pure functions, any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otf_core.errors import OtfError


class ChoiceError(OtfError):
    """No live run fits, or several do.

    Attributes:
        several: whether more than one could be meant.
        allowed: session ids that can be named.
    """

    def __init__(self, detail: str, *, several: bool, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.several, self.allowed = several, [*allowed]


def choose(sessions: Sequence[Mapping[str, Any]], asked: str | None) -> Mapping[str, Any]:
    """The live session that is meant: by run name, session id or run id; None: the only one.

    Raises:
        ChoiceError: it is not clear which.
    """
    live = [session for session in sessions if session["connected"]]
    fits = live
    if asked is not None:
        keys = ("run_name", "session_id", "run_id")
        fits = [s for s in live if asked in [s[key] for key in keys]]
        if not fits:
            known = ", ".join(map(label, live)) or "none"
            ids = [s["session_id"] for s in live]
            detail = f"No live run {asked!r}; live: {known}."
            raise ChoiceError(detail, several=False, allowed=ids)
    if len(fits) == 1:
        return fits[0]
    if not fits:
        detail = (
            "No run is connected to the dashboard. Start one with OnTheFlyCallback(), OTF_AUTO=1 "
            "or otf-fit; runs find the dashboard of otf dashboard by themselves."
        )
        raise ChoiceError(detail, several=False, allowed=[])
    which = ", ".join(map(label, fits))
    detail = f"{len(fits)} live runs could be meant: {which}; say which."
    raise ChoiceError(detail, several=True, allowed=[s["session_id"] for s in fits])


def name_of(session: Mapping[str, Any]) -> str:
    """What people call it."""
    return str(session["run_name"] or session["run_id"])


def label(session: Mapping[str, Any]) -> str:
    """Name and session id."""
    return f"{name_of(session)} ({session['session_id']})"
