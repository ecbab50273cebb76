"""Rows, and the statistics that stand in them; main thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Sample = Sequence[float] | np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        ours: the figure that is held against the limit.
        limit: None where the row is there to be known only.
        at_least: the limit is a lower one.
        spread: the other figures of ours: 5th percentile, mean, wall time ...
        rivals: the same figure of others, or what ours is to be read beside.
    """

    bench: str
    what: str
    unit: str
    ours: float
    limit: float | None = None
    at_least: bool = False
    spread: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rivals: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def held(self) -> str:
        """``yes``, ``no``, ``over twice``; ``-`` where there is no limit."""
        if self.limit is None:
            return "-"
        over = self.limit / self.ours if self.at_least else self.ours / self.limit
        if not over > 1.0:
            return "yes"
        return "no" if over <= 2.0 else "over twice"

    def to_json(self) -> dict[str, Any]:
        """All of it, with the verdict."""
        return {**dataclasses.asdict(self), "held": self.held}

    def lines(self) -> list[str]:
        """For a person."""
        limit = "no limit" if self.limit is None else self._limit()
        lines = [f"{self.what}: {_number(self.ours)} {self.unit}; {limit}"]
        for title, figures in (("ours", self.spread), ("beside", self.rivals)):
            if figures:
                told = ", ".join(f"{name} {_number(value)}" for name, value in figures.items())
                lines.append(f"    {title}: {told}")
        return lines

    def _limit(self) -> str:
        assert self.limit is not None
        sign = ">=" if self.at_least else "<="
        return f"limit {sign} {_number(self.limit)}; held: {self.held}"


def middle(values: Sample) -> float:
    """The median."""
    return float(np.median(np.asarray(values)))


def percentile(values: Sample, percent: float) -> float:
    """What so many percent of the values stay below."""
    return float(np.percentile(np.asarray(values), percent))


def pooled(samples: Iterable[Sample]) -> np.ndarray[Any, Any]:
    """The values of several fits as one."""
    return np.concatenate([np.asarray(sample) for sample in samples])


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
