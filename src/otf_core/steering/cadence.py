"""When the schedules of a run step, as far as that is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Stepping:
    """When one schedule steps, as in Lightning's ``lr_scheduler`` dict."""

    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    waits_for: str | None = None  # a metric, which nobody knows beforehand

    @classmethod
    def of(cls, config: Any) -> Stepping:
        """Of what a framework has made of such a dict."""
        return cls(
            "step" if config.interval == "step" else "epoch",
            config.frequency,
            (config.monitor or "a metric") if config.reduce_on_plateau else None,
        )


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Where a run stands and when its schedules step.

    Attributes:
        step: batches after which an optimizer stepped.
        batch_idx: batches of this epoch that are done.
        batches: of an epoch; None where nobody can tell.
        accumulate: batches for a step of the optimizer; the last one of an epoch always has one.
        schedules: in the order of ``Tunable.schedulers``.
    """

    step: int
    batch_idx: int
    epoch: int
    batches: int | None
    accumulate: int
    schedules: Sequence[Stepping]

    def due(self) -> Iterator[list[int]]:
        """For each step to come, the schedules that step at its end; without end."""
        batch, epoch = self.batch_idx, self.epoch
        if self.batches is not None and batch >= self.batches:
            batch, epoch = 0, epoch + 1
        while True:
            last = self.batches is not None and batch + 1 >= self.batches
            batch += 1
            if batch % self.accumulate == 0 or last:
                yield [
                    index
                    for index, each in enumerate(self.schedules)
                    if each.waits_for is None
                    and (
                        (each.interval == "step" and batch % each.frequency == 0)
                        or (each.interval == "epoch" and last and (epoch + 1) % each.frequency == 0)
                    )
                ]
            if last:
                batch, epoch = 0, epoch + 1
