"""The state of a run as everybody is told it: one value, one place where it changes.

Rule: every change is announced by the event ``state`` before anything that follows from it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from otf_core.errors import LocalProtocolError

ENDED: Final = frozenset({"finished", "interrupted", "failed"})
_ALIVE: Final = frozenset({"running", "pausing", "paused", "testing", "validating"})

MOVES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "starting": frozenset({"running", "pausing"}) | ENDED,
        "running": _ALIVE | ENDED,
        "pausing": _ALIVE | ENDED,
        "paused": _ALIVE | ENDED,
        "testing": _ALIVE | ENDED,
        "validating": _ALIVE | ENDED,
        "finished": frozenset(),
        "interrupted": frozenset(),
        "failed": frozenset(),
    }
)


class RunState:
    """State, reason and the request behind it; any thread.

    Args:
        emit: how the change is told: ``emit("state", **fields)``.
        where: step and epoch of the last safe point.
    """

    def __init__(self, emit: Callable[..., Any], where: Callable[[], Mapping[str, int]]) -> None:
        self._emit, self._where = emit, where
        # Reentrant: what holds it to keep two changes together moves the state inside.
        self.lock = threading.RLock()
        self._state = "starting"
        self._reason: str | None = None

    @property
    def state(self) -> str:
        """One of ``protocol.STATES``."""
        return self._state

    @property
    def reason(self) -> str | None:
        """``user``, ``action``, ``after_fit``, ``guard``, or None."""
        return self._reason

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._state in ENDED

    def move(self, to: str, *, reason: str | None = None, request_id: str | None = None) -> None:
        """Change and tell; to the state it is in already changes nothing.

        Raises:
            LocalProtocolError: ``MOVES`` has no such row.
        """
        with self.lock:
            previous = self._state
            if to == previous:
                return
            if to not in MOVES[previous]:
                allowed = ", ".join(sorted(MOVES[previous])) or "nothing"
                msg = f"state {to!r} was asked, found {previous!r}; allowed: {allowed}"
                raise LocalProtocolError(msg)
            self._state, self._reason = to, reason
            self._emit(
                "state",
                state=to,
                previous=previous,
                **self._where(),
                reason=reason,
                request_id=request_id,
            )
