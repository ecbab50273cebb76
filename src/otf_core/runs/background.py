"""A scan of a run that trains, in slices between its batches.

Rule 1: each slice is paid for by the rest behind it, so that of the run's time the scan takes its
share at most. A slice has at least a batch.
Rule 2: while the run is held the scan stands.
Rule 3: whatever puts another state in place ends it: losses of two states are no scan of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from otf_core.control.bus import Ticket
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.samples import AnyScan, Progress
from otf_core.telemetry.governor import BUDGET

SHARE: Final = BUDGET  # of the run's time; as much again as telemetry may take
MOST: Final = 0.5
SLICE_S: Final = 0.02  # a step waits no longer for it, unless a batch takes longer
TELL_EVERY_S: Final = 0.25
clock = time.monotonic


def share_of(asked: float | None) -> float:
    """What a payload wants of the run's time.

    Raises:
        CommandError: ``bad_payload``.
    """
    share = SHARE if asked is None else asked
    if not 0 < share <= MOST:
        detail = f"A share of {asked} of the time was asked; allowed: above 0, at most {MOST}."
        allowed = {"min": 0.0, "max": MOST}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="share", allowed=allowed)
    return share


class Background:
    """One of them; training thread, unless it says otherwise.

    Attributes:
        ticket: answered when it is done, or when it is ended; then nothing more is done for it.
        first_step, last_step: steps done when the first and the last loss was taken.

    Args:
        share: of the run's time, above 0.
        step: steps that the run has done.
        may_work: asked when a slice is due; of several ranks all have to stand for it.
    """

    def __init__(
        self, ticket: Ticket, scan: AnyScan, *, on: str, whole: bool, share: float,
        step: Callable[[], int], emit: Callable[..., Any], may_work: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.ticket, self.scan, self.on, self.whole = ticket, scan, on, whole
        self._share, self._step, self._emit, self._may_work = share, step, emit, may_work
        self.first_step = self.last_step = step()
        self._rests_until_s = self._told_at_s = float("-inf")

    def go_on(self) -> bool:
        """A slice, if one is due; whether all is done. Raises as ``Scan.work`` does."""
        began_s = clock()
        if self.ticket.answered or began_s < self._rests_until_s or not self._may_work():
            return False
        now = self._step()
        if self.scan.progress().done == 0:
            self.first_step = now
        progress = self.scan.work(SLICE_S, lambda: self.ticket.answered)
        self.last_step = now
        ended_s = clock()
        self._rests_until_s = ended_s + (ended_s - began_s) * (1 / self._share - 1)
        if progress.finished or ended_s - self._told_at_s >= TELL_EVERY_S:
            self._told_at_s = ended_s
            self._tell(progress)
        return progress.finished and not self.ticket.answered

    def end(self, why: str) -> None:
        """It comes to nothing; any thread.

        Args:
            why: goes on from "was ended after 5 of 10 samples: ".
        """
        progress = self.scan.progress()
        detail = (
            f"{self.ticket.request.cmd} in the background was ended after {progress.done:,} of "
            f"{progress.total:,} samples: {why}."
        )
        self.ticket.fail(CommandError(ErrorCode.NOT_ALLOWED_NOW, detail))

    def _tell(self, progress: Progress) -> None:
        eta_s = None if progress.eta_s is None else progress.eta_s / self._share
        numbers = {"done": progress.done, "total": progress.total, "eta_s": eta_s}
        self._emit("progress", request_id=self.ticket.id, cmd=self.ticket.request.cmd, **numbers)
