"""The pause that nobody remembers: a reminder, and at ``max_pause`` it is ended or parked.

Training thread, while it stands at the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

REMIND_S: Final = 600.0
OF: Final = frozenset({"user", "guard"})  # the end of a fit is held by ``max_hold``
RULE: Final = "forgotten_pause"

AtMaxPause = Literal["resume", "park"]


class ForgottenPause:
    """Of one session.

    Args:
        emit: tells; as ``Emitter.emit``.
        step: steps done.
        max_pause_s: seconds after which it is seen to.
        at_max: what is done then.
        park: frees the device; why it could not, or None.
        release: ends the pause.
    """

    def __init__(
        self,
        emit: Callable[..., Any],
        *,
        step: Callable[[], int],
        max_pause_s: float = math.inf,
        at_max: AtMaxPause = "resume",
        park: Callable[[], str | None],
        release: Callable[[], None],
    ) -> None:
        self._emit, self._step = emit, step
        self._max_pause_s, self._parks = max_pause_s, at_max == "park"
        self._park, self._release = park, release
        self._held_s = 0.0
        self._reminded = self._seen_to = False

    @property
    def longest_s(self) -> float:
        """How long the gate itself may hold a pause."""
        return math.inf if self._parks else self._max_pause_s

    def stands(self, held_s: float, causes: Iterable[str]) -> None:
        """The run has stood so long by now; called every half second, and oftener."""
        if held_s < self._held_s:  # another pause
            self._reminded = self._seen_to = False
        self._held_s = held_s
        if OF.isdisjoint(causes):
            return
        if held_s >= REMIND_S and not self._reminded:
            self._reminded = True
            text = f"the run has been held for {held_s / 60:.0f} min"
            self._tell(REMIND_S, "notify", "notify", text)
        if self._parks and held_s >= self._max_pause_s and not self._seen_to:
            self._seen_to = True
            text = f"the run was held for {self._max_pause_s:g} s (max_pause)"
            if (why := self._park()) is None:
                self._tell(self._max_pause_s, "park", "park", f"{text}; it is parked")
            else:
                text = f"{text}; it could not be parked, and goes on: {why}"
                self._tell(self._max_pause_s, "park", "resume", text)
                self._release()

    def ended(self, after_s: float) -> None:
        """The gate has ended the pause."""
        text = f"the pause was ended after {after_s:g} s (max_pause)"
        self._tell(after_s, "resume", "resume", text)

    def _tell(self, bound_s: float, action: str, did: str, text: str) -> None:
        self._emit(
            "guard", rule=RULE, step=self._step(), metric="paused_s",
            value=max(self._held_s, bound_s), bound=bound_s, action=action, did=did,
            request_id=None, requests=[], at_step=self._step(), budget_left=None, text=text,
        )  # fmt: skip
