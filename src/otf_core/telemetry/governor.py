"""How often the costly metrics are computed, so that telemetry stays within its share of a step.

Rule 1: what is due depends on the step's number and on the costs told so far, on nothing else.
Rule 2: thinned at once when the budget is passed; made denser only when there is clearly room.
Rule 3: what telemetry takes at every step comes out of the same budget; a part is kept for the
costly ones, since on a step of a millisecond it would leave them nothing.

What is measured is the time on the host. Kernels of a GPU run beside it: there the figure is what
launching them costs, and a metric whose kernels themselves are heavy costs more than it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

# Of the 1 % that telemetry may cost. The rest is for what no clock of ours sees: the loop's own way
# to a callback, and the caches that the model finds changed.
BUDGET: Final = 0.0075
MAX_EVERY: Final = 1024
KEPT: Final = 0.25  # part of the budget that is the costly metrics' own, whatever the rest takes
ROOM: Final = 0.7  # denser only if the sum then stays below this part of the budget
WARM_UP: Final = 3  # measurements until a cost is believed
WARM_UP_EVERY: Final = 8  # the longest interval until then: the first call also pays for loading
ALPHA: Final = 0.3  # weight of a new measurement: half forgotten after two
OUTLIER: Final = 4.0  # one measurement counts at most as this many times the mean so far
LOOK_EVERY: Final = 32  # steps between looks at a changed step time


class Governor:
    """Decides at which steps each costly metric is due; training thread, ``cadence`` any thread.

    Intervals are powers of two, 1 to 1024, and the metric that takes the largest share is thinned
    first. A metric is due at once until its first cost was recorded (0.0 where there is nothing to
    compute), so that each has a value at the first step.

    Args:
        budget: what telemetry may take, as a part of the step time.
        clock: seconds, for ``measure``.
    """

    def __init__(
        self, budget: float = BUDGET, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if not 0.0 < budget <= 1.0:
            msg = f"budget was asked to be {budget!r}; allowed: 0 < budget <= 1"
            raise ValueError(msg)
        self.budget = budget
        self._clock = clock
        self._costs: dict[str, _Cost] = {}
        self._masks: dict[str, int] = {}
        self._step = _Mean()
        self._fixed = _Mean()

    def due(self, name: str, step: int) -> bool:
        """Whether to compute the metric at this step; asking changes nothing."""
        return not step & self._masks.get(name, 0)

    def record(self, name: str, cost_s: float) -> None:
        """What computing the metric has cost just now, in seconds on the host."""
        cost = self._costs.get(name)
        if cost is None:
            cost = self._costs[name] = _Cost()
        cost.mean.add(cost_s)
        self._balance()

    def step_time(self, seconds: float) -> None:
        """How long the step took, telemetry included, time at the gate not."""
        self._step.add(seconds)
        if self._step.count <= WARM_UP or self._step.count % LOOK_EVERY == 0:
            self._balance()

    def fixed(self, seconds: float) -> None:
        """What was taken at this step beside the costly metrics; before its ``step_time``."""
        self._fixed.add(seconds)

    def measure(self, name: str) -> _Measure:
        """``with governor.measure("weight_norm"): …`` records what the block cost."""
        return _Measure(self, name, self._clock)

    def cadence(self) -> dict[str, dict[str, Any]]:
        """Metric -> ``{"every", "unit": "step", "cost_us", "share_pct"}``; any thread.

        ``share_pct`` is the part of the step time, None as long as no step was timed.
        """
        step_s = self._step.value
        return {
            name: {
                "every": self._masks.get(name, 0) + 1,
                "unit": "step",
                "cost_us": cost.mean.value * 1e6,
                "share_pct": 100.0 * cost.share / step_s if step_s > 0.0 else None,
            }
            for name, cost in list(self._costs.items())  # one call, so whole on any thread
        }

    def _balance(self) -> None:
        budget_s = self.budget * self._step.value
        allowed_s = max(budget_s - self._fixed.value, KEPT * budget_s)
        if allowed_s > 0.0:
            costs = list(self._costs.values())
            total_s = sum(cost.share for cost in costs)
            if total_s > allowed_s:
                _thin(costs, allowed_s)
            elif total_s < ROOM * allowed_s:
                _densen(costs, ROOM * allowed_s)
        for name, cost in self._costs.items():
            warm = cost.mean.count >= WARM_UP
            self._masks[name] = (cost.every if warm else min(cost.every, WARM_UP_EVERY)) - 1


class _Mean:
    """Exponential mean that forgets a first measurement and does not trust a single one."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count <= 2:  # the second replaces the first, which paid for loading and warming
            self.value = seconds
            return
        # Only upwards, and not from nothing: a mean of 0 would let nothing in.
        if self.value > 0.0:
            seconds = min(seconds, OUTLIER * self.value)
        self.value += ALPHA * (seconds - self.value)


class _Cost:
    """Cost and interval of one metric."""

    def __init__(self) -> None:
        self.mean = _Mean()
        self.every = 1

    @property
    def share(self) -> float:
        """Seconds per step."""
        return self.mean.value / self.every


def _thin(costs: list[_Cost], allowed_s: float) -> None:
    while sum(cost.share for cost in costs) > allowed_s:
        open_ = [cost for cost in costs if cost.every < MAX_EVERY]
        if not open_:
            return  # as thin as it gets; cadence() says what it still takes
        max(open_, key=lambda cost: cost.share).every *= 2  # of equals, the one recorded first


def _densen(costs: list[_Cost], allowed_s: float) -> None:
    total_s = sum(cost.share for cost in costs)
    while True:
        open_ = [cost for cost in costs if cost.every > 1 and total_s + cost.share <= allowed_s]
        if not open_:
            return
        cheapest = min(open_, key=lambda cost: cost.share)
        total_s += cheapest.share
        cheapest.every //= 2


class _Measure:
    """The block of ``Governor.measure``; records also when it raises."""

    def __init__(self, governor: Governor, name: str, clock: Callable[[], float]) -> None:
        self._governor, self._name, self._clock = governor, name, clock
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = self._clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._governor.record(self._name, self._clock() - self._begun)
