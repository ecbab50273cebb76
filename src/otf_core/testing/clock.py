"""Time as an input: a clock that a test moves, and one that is in a hurry."""

from __future__ import annotations

import threading
import time
from typing import Final

PATIENCE_S: Final = 10.0  # real seconds; a wait that nothing ends is a failed test, not a hung one


class ManualClock:
    """A clock for ``SocketChannel(clock=…)``; any thread.

    Args:
        start_s: what ``now`` says at first.
    """

    def __init__(self, start_s: float = 1000.0) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._now_s = start_s
        self._sleepers: dict[threading.Event, float] = {}

    def now(self) -> float:
        """Seconds."""
        return self._now_s

    def wait(self, wake: threading.Event, timeout_s: float | None) -> None:
        """Until the event is set, or the clock was moved so far."""
        with self._changed:
            if timeout_s is not None:
                self._sleepers[wake] = self._now_s + timeout_s
                self._changed.notify_all()
        wake.wait()
        with self._changed:
            self._sleepers.pop(wake, None)

    def advance(self, seconds: float) -> None:
        """Move the time, and wake those whose time has come."""
        with self._changed:
            self._now_s += seconds
            due = [wake for wake, at_s in self._sleepers.items() if at_s <= self._now_s]
        for wake in due:
            wake.set()

    def wait_for_sleeper(self) -> float:
        """Until somebody waits for a time; how many seconds are left for the first of them.

        Raises:
            TimeoutError: nobody did within ten real seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._sleepers, PATIENCE_S):
                msg = f"nobody waited for this clock within {PATIENCE_S} s"
                raise TimeoutError(msg)
            return min(self._sleepers.values()) - self._now_s


class HurriedClock:
    """The real time, so many times as fast, for waits that a test has to sit through; any thread.

    Args:
        speed: seconds of this clock in a real one.
    """

    def __init__(self, speed: float = 100.0) -> None:
        self._speed = speed

    def now(self) -> float:
        """Seconds."""
        return time.monotonic() * self._speed

    def wait(self, wake: threading.Event, timeout_s: float | None) -> None:
        """Until the event is set, or so much time has passed."""
        wake.wait(None if timeout_s is None else timeout_s / self._speed)
