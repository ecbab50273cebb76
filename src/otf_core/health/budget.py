"""How long a check may take, and whether somebody wants it no more; training thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from otf_core.errors import CommandError, ErrorCode

T = TypeVar("T")


class CancelledError(CommandError):
    """Somebody has cancelled the check; the run is as it was."""

    def __init__(self, done: int) -> None:
        detail = f"The check was cancelled after {done} batches; the run is as it was."
        super().__init__(ErrorCode.NOT_ALLOWED_NOW, detail)


class Budget:
    """Looked at between two batches, never within one.

    Args:
        steps: batches at most.
        limit_s: no further batch is begun that would end behind it, by the longest so far. The
            first is always run.
        cancelled: asked between two batches.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        steps: int,
        limit_s: float,
        *,
        cancelled: Callable[[], bool] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if steps < 1:
            detail = f"A check over {steps} batches was asked; allowed: 1 or more."
            allowed = {"min": 1}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="budget_steps", allowed=allowed)
        self.steps, self.clock = steps, clock
        self._cancelled = cancelled
        self._ends_s = clock() + limit_s
        self.done = 0

    def left_s(self) -> float:
        """Seconds until the limit; negative behind it."""
        return self._ends_s - self.clock()

    def check(self) -> None:
        """Raises CancelledError where somebody has cancelled."""
        if self._cancelled():
            raise CancelledError(self.done)

    def within(self, batches: Iterable[T]) -> Iterator[T]:
        """As many of these as the budget allows."""
        batches = iter(batches)
        longest_s = 0.0
        while self.done < self.steps:
            self.check()
            if self.done and self.left_s() < longest_s:
                return
            began_s = self.clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
            self.done += 1
            longest_s = max(longest_s, self.clock() - began_s)
