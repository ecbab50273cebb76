"""The rest of the world as a script: what the other threads do while the training thread waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

FOREVER: Final = threading.TIMEOUT_MAX


class Script(threading.Condition):
    """A condition that plays the rest of the world while its owner sleeps.

    Every sleep plays ``steps`` until one of them wakes the sleeper or the time is up. With no step
    left, time passes by itself; a sleep without end fails.
    """

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.now_s = 1000.0  # not 0, so that a missing "minus the start" shows
        self.steps: deque[Callable[[], object]] = deque()
        self.sleeps_s: list[float] = []
        self._notified = False

    def clock(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.sleeps_s.append(timeout)
        until_s = self.now_s + timeout
        self._notified = False
        self.release()
        try:
            while not self._notified and self.now_s < until_s:
                if self.steps:
                    self.steps.popleft()()
                else:
                    assert timeout < FOREVER, "nothing is left that could wake the training thread"
                    self.now_s = until_s
        finally:
            self.acquire()
        return self._notified

    def notify_all(self) -> None:
        self._notified = True


class ScriptedEvent:
    """An event that plays ``steps`` while it is waited for; with none left, the time is up."""

    def __init__(self, steps: deque[Callable[[], object]], waits_s: list[float]) -> None:
        self.steps, self.waits_s = steps, waits_s
        self._set = False

    def set(self) -> None:
        self._set = True

    def wait(self, timeout: float) -> bool:
        self.waits_s.append(timeout)
        while not self._set and self.steps:
            self.steps.popleft()()
        return self._set
