"""How fast one rank trains, from what its training thread passes anyway: no tensor is waited for.

Rule: the training thread only notes times; whoever tells of them counts. A loss is copied when a
beat has asked for one, once, and read when it has arrived (``LateReader``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from otf_core.telemetry.late import LateReader

KEPT: Final = 128  # steps that the figures are of


class Pace:
    """Of one rank; noted by the training thread, ``figures`` on any.

    Args:
        waited_s: so far, in backward and barrier; None where no clock knows it.
    """

    def __init__(
        self,
        *,
        waited_s: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._waited_s, self._clock = waited_s, clock
        self.step = 0
        self.loss: float | None = None  # the newest that has arrived
        self.loss_asked = False
        self._late: LateReader[None] = LateReader()
        # Rings of plain numbers: written by one thread, copied whole by another.
        self._steps, self._waits = [0.0] * KEPT, [0.0] * KEPT
        self._count = 0
        self._left_s = clock()
        self._active_s = self._wait_s = 0.0
        self._figured: tuple[int, float] | None = None  # steps counted, waited so far

    def arrives(self, step: int) -> None:
        """At the safe point, with the steps that are done."""
        self._active_s += self._clock() - self._left_s
        if step > self.step:
            at = self._count % KEPT
            done = step - self.step
            self._steps[at], self._waits[at] = self._active_s / done, self._wait_s / done
            self._count += 1
        if step != self.step:
            self.step, self._active_s, self._wait_s = step, 0.0, 0.0
        if len(self._late):
            for _, values in self._late.ready():
                self.loss = values["loss"]

    def leaves(self) -> None:
        """Goes on; what it stood there is no time of a step."""
        self._left_s = self._clock()

    def batch_started(self) -> None:
        """The batch is there."""
        self._wait_s += self._clock() - self._left_s

    def batch_ended(self, loss: Any) -> None:
        """With what the training step has returned as its loss."""
        if self.loss_asked and loss is not None:
            self.loss_asked = False
            self._late.put(None, {"loss": loss})

    def figures(self) -> dict[str, Any]:
        """Milliseconds of the newest steps; one thread's. Asks for the next loss.

        What is waited for other ranks is a mean of the steps since it was last asked.
        """
        self.loss_asked = True
        counted = self._count
        count = min(counted, KEPT)
        steps, waits = sorted(self._steps[:count]), sorted(self._waits[:count])
        return {
            "step": self.step,
            "step_ms": _at(steps, 0.5),
            "step_ms_p95": _at(steps, 0.95),
            "data_wait_ms": _at(waits, 0.5),
            "wait_ms": self._wait_ms(counted),
            "loss": self.loss,
        }

    def _wait_ms(self, counted: int) -> float | None:
        waited_s = self._waited_s()
        if waited_s is None:
            return None
        before, self._figured = self._figured, (counted, waited_s)
        steps = counted - before[0] if before is not None else 0
        if before is None or steps <= 0:
            return None
        return round(1e3 * max(0.0, waited_s - before[1]) / steps, 3)


def _at(ordered: list[float], share: float) -> float | None:
    """Of seconds in order, in ms; the nearest one, None of none."""
    return round(1e3 * ordered[int(share * (len(ordered) - 1) + 0.5)], 3) if ordered else None
