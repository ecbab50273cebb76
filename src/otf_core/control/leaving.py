"""An evaluation of several ranks is left by all of them behind the same batch, with no collective
of ours.

Rank 0 asks behind one of its batches; each rank's watch thread says behind which of its own its
training thread can still be held, and how many there are; the latest is where all leave, unless
one has fewer. Whoever has promised waits there for that word. So what the script's own collectives
of a batch, and those of the end of an evaluation, are to meet, they do: either all ranks run a
batch or none does.

Rule: where it cannot be agreed (a rank has not begun, is through, or does not know how many batches
there are) nobody leaves, and the evaluation goes on to its end or to the next attempt.
"""

from __future__ import annotations

import math
import threading

from otf_core.errors import OtfError


class LeftError(OtfError):
    """The evaluation is left behind this batch, by all ranks."""


class Leaving:
    """One rank's side; batches are counted from 1.

    ``behind`` is called by the training thread, the others by the watch thread.
    """

    def __init__(self, wakeup: threading.Condition) -> None:
        self._wakeup = wakeup
        self._done = 0
        self._total: int | None = None  # None also where no evaluation is under way
        self._promised = math.inf
        self._at = math.inf
        self.ended: str | None = None  # nobody will say any more

    def begin(self) -> None:
        """An evaluation begins, or is over."""
        with self._wakeup:
            self._done, self._total = 0, None
            self._promised = self._at = math.inf

    def behind(self, done: int, total: int | None) -> bool:
        """A batch is done; whether all leave here. Waits only where this rank has promised to."""
        with self._wakeup:
            self._done, self._total = done, total
            while done >= self._promised and self.ended is None:
                self._wakeup.wait()
            return done >= self._at

    def promise(self) -> tuple[int, int] | None:
        """Behind which batch this rank will wait, and how many it has; None: it cannot say."""
        with self._wakeup:
            if self._total is None or self._done >= self._total:
                return None
            self._promised = self._done + 1
            return self._done + 1, self._total

    def commit(self, at: int | None) -> None:
        """All leave there; None: nobody leaves."""
        with self._wakeup:
            self._promised = math.inf
            if at is not None and self._total is not None:
                self._at = at
            self._wakeup.notify_all()

    def end(self, why: str) -> None:
        """The others are not heard any more."""
        with self._wakeup:
            self.ended = why
            self._wakeup.notify_all()
