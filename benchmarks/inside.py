"""What is spent inside our own code, for where steps differ from fit to fit by more than that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from otf_core.telemetry import activations
from otf_lightning import OnTheFlyCallback

# Every way into us on the training thread while a step is made, but for the hooks of a sample.
WAYS_IN: Final = (
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "_between_batches",
)


class Meter:
    """Adds up the training thread's CPU time in our code, a step at a time.

    A reading of the clock a call, some 5 us a step in all, is in the figure.
    """

    def __init__(self) -> None:
        self._spent = 0.0
        self.steps: list[float] = []

    def put_on(self, callback: OnTheFlyCallback) -> OnTheFlyCallback:
        """Time this callback's hooks."""
        for name in WAYS_IN:
            setattr(callback, name, self._timed(getattr(callback, name)))
        return callback

    def next_step(self) -> None:
        """A batch begins: what was spent since the last one is a step's."""
        self.steps.append(self._spent)
        self._spent = 0.0

    @contextmanager
    def with_samples(self) -> Iterator[None]:
        """Time the hooks that count zero activations as well, inside the block."""
        kind, before = activations._ZeroCount, activations._ZeroCount.__call__
        kind.__call__ = self._timed(before)  # type: ignore[method-assign]
        try:
            yield
        finally:
            kind.__call__ = before  # type: ignore[method-assign]

    def figures(self, skip: int) -> dict[str, float]:
        """Microseconds a step, the first ones left out."""
        us = 1e6 * np.array(self.steps[skip:])
        names = {"median": 50.0, "p5": 5.0, "p95": 95.0}
        told = {name: float(np.percentile(us, percent)) for name, percent in names.items()}
        return {"mean": float(us.mean()), **told}

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._spent += time.thread_time() - begun

        return timed
