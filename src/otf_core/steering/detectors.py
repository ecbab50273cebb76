"""What is wrong with a series of numbers, told value by value; pure, no torch, no clock, no chance.

Rule 1: the same values give the same findings. What a detector remembers is plain (``state``), so
that a run that goes on from a checkpoint finds what the run that was not ended would have.
Rule 2: a value costs a few microseconds, whatever came before it.

Sources:

- ``spike``: the modified z-score of Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993:
  0.6745 (x - median) / MAD. They take 3.5 for samples of one distribution; a training's losses
  move, hence 6 here. What to do about one, go back to before it, is PaLM's (Chowdhery et al., 2022,
  section 5.1) and OPT-175B's (Zhang et al., 2022, section 2.5), which lowers the rate as well.
- ``plateau``: torch's ReduceLROnPlateau, threshold_mode "rel"; its patience counts as
  EarlyStopping's does.
- ``overfit``: Prechelt, Early Stopping - But When?, 1998: the generalisation loss GL, by how many
  per cent the validation is worse than its best, and UP, at so many validations in a row; only
  while the mean training loss is below what it was at the best one.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol

LEAST: Final = 10  # fewer values say nothing of a spike
FLOOR: Final = 0.01  # MAD of values that hardly move, as a share of their median
TINY: Final = 2.0**-1022
MAX_WINDOW: Final = 1000


class Detector(Protocol):
    """Of one rule.

    Attributes:
        bound: what the last value was compared to, where there is such a number.
    """

    bound: float | None

    def see(self, value: float) -> bool:
        """Whether it is wrong by now."""

    def beside(self, value: float) -> None:
        """A value of the training loss, for those that compare with it."""

    def fired(self) -> None:
        """It was told: what has to come anew for the next time."""

    def why(self, name: str, value: float) -> str:
        """What is wrong, for a person."""

    def state(self) -> dict[str, Any]:
        """What it remembers, plain."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Remember that."""


def _shown(value: float) -> str:
    return f"{value:.4g}"


class _Plain:
    """Of those that compare with nothing else."""

    remembers: ClassVar[tuple[str, ...]] = ()
    bound: float | None = None

    def beside(self, value: float) -> None: ...

    def fired(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.remembers}

    def load(self, state: Mapping[str, Any]) -> None:
        for name in self.remembers:
            setattr(self, name, state[name])


class NotFinite(_Plain):
    """``nan``: a value that is not finite."""

    def see(self, value: float) -> bool:
        return not math.isfinite(value)

    def why(self, name: str, value: float) -> str:
        return f"{name} is {value}"


class Spike(_Plain):
    """``spike``: a value far above the last ones.

    What is not finite is the business of ``nan``, and no part of the window. A spike is part of it:
    median and MAD hardly move for one.

    Args:
        z: the modified z-score above which it is one.
        window: so many values before it.
    """

    def __init__(self, *, z: float, window: int) -> None:
        self._z, self._window = z, window
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []
        self._of = 0

    def see(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        self._of = len(self._sorted)
        wrong = self._of >= LEAST and self._stands_out(value)
        self._newest.append(value)
        bisect.insort(self._sorted, value)
        if len(self._newest) > self._window:
            del self._sorted[bisect.bisect_left(self._sorted, self._newest.popleft())]
        return wrong

    def _stands_out(self, value: float) -> bool:
        median = _median(self._sorted)
        least = max(FLOOR * abs(median), TINY)
        # MAD can only make the bound higher: most values need none.
        if not 0.6745 * (value - median) / least > self._z:
            return False
        scale = max(_mad(self._sorted, median), least)
        self.bound = median + self._z * scale / 0.6745
        return 0.6745 * (value - median) / scale > self._z

    def why(self, name: str, value: float) -> str:
        bound = _shown(self.bound or 0.0)
        return f"{name} is {_shown(value)}, above {bound} by the {self._of} before it"

    def state(self) -> dict[str, Any]:
        return {"window": [*self._newest]}

    def load(self, state: Mapping[str, Any]) -> None:
        self._newest = deque(state["window"])
        self._sorted = sorted(self._newest)


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _mad(ordered: list[float], median: float) -> float:
    """The median distance from the median: distances grow to both sides of it."""
    right = bisect.bisect_left(ordered, median)
    left, size = right - 1, len(ordered)
    before = last = 0.0
    for _ in range(size // 2 + 1):
        before = last
        below = median - ordered[left] if left >= 0 else math.inf
        above = ordered[right] - median if right < size else math.inf
        if below <= above:
            last, left = below, left - 1
        else:
            last, right = above, right + 1
    return last if size % 2 else (before + last) / 2


class Plateau(_Plain):
    """``plateau``: nothing better for so many values.

    Args:
        patience: so many.
        min_delta: better is by more than this share of the best.
        mode: "min" or "max" is better.
    """

    remembers = ("best", "waited")

    def __init__(self, *, patience: int, min_delta: float, mode: str) -> None:
        self._patience, self._min_delta = patience, min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self.best: float | None = None
        self.waited = 0

    def see(self, value: float) -> bool:
        signed = self._sign * value
        if self.best is not None:
            self.bound = self._sign * (self.best - self._min_delta * abs(self.best))
        if math.isfinite(value) and (self.bound is None or signed < self._sign * self.bound):
            self.best, self.waited = signed, 0
        else:
            self.waited += 1
        return self.waited >= self._patience

    def fired(self) -> None:
        self.waited = 0

    def why(self, name: str, value: float) -> str:
        known = self._sign * self.best if self.best is not None else math.nan
        least, waited = _shown(known), self._patience
        return f"{name} is {_shown(value)}, no better than {least} for {waited} values"

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.bound = None
        if self.best is not None:
            self.bound = self._sign * (self.best - self._min_delta * abs(self.best))


class Overfit(_Plain):
    """``overfit``: the validation gets worse while the training gets better.

    Args:
        alpha: by so many per cent worse than its best.
        times: at so many validations in a row.
        mode: "min" or "max" is better, of the validation.
    """

    remembers = ("best", "trained", "sum", "count", "met")

    def __init__(self, *, alpha: float, times: int, mode: str) -> None:
        self._alpha, self._times = alpha, times
        self._sign = 1.0 if mode == "min" else -1.0
        self.best: float | None = None
        self.trained: float | None = None  # mean training loss up to the best validation
        self.sum, self.count = 0.0, 0
        self.met = 0

    def beside(self, value: float) -> None:
        if math.isfinite(value):
            self.sum += value
            self.count += 1

    def see(self, value: float) -> bool:
        trained = self.sum / self.count if self.count else None
        self.sum, self.count = 0.0, 0
        if not math.isfinite(value):
            return False
        signed = self._sign * value
        if self.best is None or signed < self.best:
            self.best, self.trained, self.met = signed, trained, 0
            return False
        limit = self.best + self._alpha / 100 * abs(self.best)
        self.bound = self._sign * limit
        learns = trained is not None and self.trained is not None and trained < self.trained
        self.met = self.met + 1 if signed > limit and learns else 0
        return self.met >= self._times

    def why(self, name: str, value: float) -> str:
        best = _shown(self._sign * (self.best or 0.0))
        return f"{name} is {_shown(value)}, its best was {best}, and the training loss still falls"


class Limit(_Plain):
    """``limit``: a value above or below a bound, so many times in a row."""

    remembers = ("met",)

    def __init__(self, *, above: float | None, below: float | None, times: int) -> None:
        self._above, self._below, self._times = above, below, times
        self.met = 0

    def see(self, value: float) -> bool:
        over = self._above is not None and value > self._above
        under = self._below is not None and value < self._below
        if over or under:
            self.bound = self._above if over else self._below
        self.met = self.met + 1 if over or under else 0
        return self.met >= self._times

    def why(self, name: str, value: float) -> str:
        side = "above" if self.bound == self._above else "below"
        return f"{name} is {_shown(value)}, {side} {_shown(self.bound or 0.0)}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One number or word that a detector takes.

    Attributes:
        default: None where it has to be given, or is not there.
        low, high: bounds, both included.
    """

    default: float | int | str | None
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Watch:
    """A row of ``WATCHES``.

    Attributes:
        metric: what is watched if nothing is said.
        cool_down: steps after it has acted; a spike has to have left half of its window.
        any_of: one of these has to be given.
    """

    make: Callable[..., Detector]
    settings: Mapping[str, Setting]
    metric: str = "loss"
    cool_down: int = 0
    any_of: tuple[str, ...] = ()


_MODE: Final = Setting("min", str, choices=("min", "max"))
_TIMES: Final = Setting(1, int, 1, 10_000)

WATCHES: Final[Mapping[str, Watch]] = {
    "nan": Watch(NotFinite, {}),
    "spike": Watch(
        Spike,
        {"z": Setting(6.0, float, 0.1, 1e6), "window": Setting(50, int, LEAST, MAX_WINDOW)},
        cool_down=25,
    ),
    "plateau": Watch(
        Plateau,
        {
            "patience": Setting(10, int, 1, 10**9),
            "min_delta": Setting(1e-4, float, 0.0, 1.0),
            "mode": _MODE,
        },
        metric="val_loss",
    ),
    "overfit": Watch(
        Overfit,
        {
            "alpha": Setting(5.0, float, 0.0, 1e6),
            "times": Setting(2, int, 1, 10_000),
            "mode": _MODE,
        },
        metric="val_loss",
    ),
    "limit": Watch(
        Limit,
        {"above": Setting(None), "below": Setting(None), "times": _TIMES},
        any_of=("above", "below"),
    ),
}
