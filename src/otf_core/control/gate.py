"""Pause gate: where the training thread stands still between two batches.

Rule 1: whatever changes the state of the gate is a row of ``MOVES``.
Rule 2: only the training thread arrives and leaves, so only the training thread announces.
"Paused" is a report of what happened, never a promise.
Rule 3: a pause that is let go is announced as over, also when somebody asks again before the
thread got away: "resumed", then "paused", at the same step.
"""

from __future__ import annotations

import enum
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from otf_core.errors import LocalProtocolError

LOOK_S: Final = 0.5

Announce = Callable[[Literal["paused", "resumed"], tuple[str, ...]], None]


class State(enum.Enum):
    """Where the training thread stands."""

    IDLE = "idle"  # training; nobody asks for a pause
    REQUESTED = "requested"  # training still; a pause is asked for
    HELD = "held"  # waiting between two batches
    RELEASED = "released"  # let go; about to train, or to arrive again
    CLOSED = "closed"  # the session is over; nothing holds any more


class Move(enum.Enum):
    """What can happen to the gate, and on which thread."""

    REQUEST = "request"  # any thread: one more cause to pause
    CLEAR = "clear"  # any thread: the last cause is gone
    ARRIVE = "arrive"  # training thread: stopped at the gate
    LEAVE = "leave"  # training thread: goes on
    CLOSE = "close"  # any thread: end of the session


MOVES: Mapping[tuple[State, Move], State] = MappingProxyType(
    {
        (State.IDLE, Move.REQUEST): State.REQUESTED,
        (State.REQUESTED, Move.REQUEST): State.REQUESTED,
        (State.REQUESTED, Move.CLEAR): State.IDLE,
        (State.REQUESTED, Move.ARRIVE): State.HELD,
        (State.HELD, Move.REQUEST): State.HELD,
        (State.HELD, Move.CLEAR): State.RELEASED,
        # Asked again before the thread got away: the answered resume must still have happened,
        # so the thread leaves first and arrives anew.
        (State.RELEASED, Move.REQUEST): State.RELEASED,
        (State.RELEASED, Move.CLEAR): State.RELEASED,
        (State.RELEASED, Move.LEAVE): State.IDLE,
        (State.CLOSED, Move.LEAVE): State.CLOSED,
        **{(state, Move.CLOSE): State.CLOSED for state in State},
    }
)


class IllegalMoveError(LocalProtocolError):
    """A move that ``MOVES`` has no row for; the gate is left as it was."""


def next_state(state: State, move: Move) -> State:
    """Look the move up; raise IllegalMoveError where there is no such row."""
    try:
        return MOVES[state, move]
    except KeyError:
        allowed = ", ".join(m.value for s, m in MOVES if s is state)
        msg = f"gate was asked to {move.value!r}, found {state.value!r}; allowed here: {allowed}"
        raise IllegalMoveError(msg) from None


class PauseGate:
    """Holds the training thread while at least one cause asks for it.

    A cause is a short name ("user", "after_fit"). Each is taken back by itself, so the end of an
    action cannot lift the pause that a person asked for.

    Args:
        announce: called on the training thread, outside the lock, in this order: "paused" with the
            causes that hold, "resumed" with the causes that ran past their hold time (none when
            all were taken back). Must not raise.
        clock: seconds, monotonic.
        wakeup: what the training thread sleeps on; tests pass a scripted one.
        leave: asked while standing, every ``LOOK_S``; True ends the pause, whoever asked for it.
            A signal's handler runs on the very thread that sleeps here, and wakes nobody.
    """

    def __init__(
        self,
        announce: Announce,
        *,
        clock: Callable[[], float] = time.monotonic,
        wakeup: threading.Condition | None = None,
        leave: Callable[[], bool] | None = None,
    ) -> None:
        self._announce = announce
        self._leave = leave
        self._clock = clock
        # A plain Lock, not the default RLock: a call back into the gate under its own lock is a
        # mistake, and should show as one.
        self._wakeup = wakeup or threading.Condition(threading.Lock())
        self._state = State.IDLE
        self._causes: dict[str, tuple[float, float]] = {}  # cause -> (asked at, hold), in s
        self._arrived_at_s = 0.0
        self._nudged = False

    @property
    def state(self) -> State:
        """The state at the moment of reading; any thread."""
        return self._state

    @property
    def causes(self) -> tuple[str, ...]:
        """Who asks for a pause at the moment; any thread."""
        return tuple(self._causes)

    @property
    def held_s(self) -> float:
        """How long the training thread has stood by now; that thread only."""
        return self._clock() - self._arrived_at_s if self._state is State.HELD else 0.0

    def should_block(self) -> bool:
        """Whether the training thread is to call wait_until_resumed; reads without the lock."""
        return bool(self._causes)

    def request(self, cause: str, *, hold_s: float = math.inf) -> State:
        """Ask for a pause; any thread. Asking again renews the hold time.

        Args:
            cause: who asks.
            hold_s: longest hold in seconds, > 0, so that a forgotten pause does not keep an
                accelerator idle. Runs from the arrival of the training thread: a long batch does
                not eat it up.

        Returns:
            HELD if the training thread stands already and will stay, else another state.

        Raises:
            IllegalMoveError: the gate is closed.
            ValueError: hold_s is not a number above 0.
        """
        if not hold_s > 0:  # also refuses NaN
            msg = f"pause for {cause!r} was asked with hold_s={hold_s!r}; allowed: seconds > 0"
            raise ValueError(msg)
        with self._wakeup:
            self._state = next_state(self._state, Move.REQUEST)
            self._causes[cause] = (self._clock(), hold_s)
            # The sleeper may have to wake earlier than it had planned.
            self._wakeup.notify_all()
            return self._state

    def resume(self, cause: str) -> bool:
        """Take a cause back; any thread. False if it did not hold (any more)."""
        with self._wakeup:
            return self._drop(cause)

    def open(self) -> None:
        """Take all causes back; any thread. The gate can hold again afterwards."""
        with self._wakeup:
            for cause in list(self._causes):
                self._drop(cause)

    def nudge(self) -> None:
        """Let the held training thread look for work; any thread."""
        with self._wakeup:
            self._nudged = True
            self._wakeup.notify_all()

    def close(self) -> None:
        """Drop all causes for good and wake the training thread; any thread."""
        with self._wakeup:
            self._state = next_state(self._state, Move.CLOSE)
            self._causes.clear()
            self._wakeup.notify_all()

    def wait_until_resumed(self, work: Callable[[], object] = lambda: None) -> float:
        """Stand still while any cause asks for it; training thread only.

        Args:
            work: what is done while standing, each time the thread is nudged; runs outside the
                lock. What it raises ends the wait.

        Returns:
            Seconds stood still, 0.0 if nothing asked. Throughput subtracts it.
        """
        held_s = 0.0
        while self._arrive():
            overdue: list[str] = []
            while True:
                work()
                if self._leaves(overdue):
                    break
            held_s += self._clock() - self._arrived_at_s
            self._announce("resumed", tuple(overdue))
        return held_s

    def _arrive(self) -> bool:
        with self._wakeup:
            if not self._causes:
                return False
            self._state = next_state(self._state, Move.ARRIVE)
            self._arrived_at_s = self._clock()
            causes = tuple(self._causes)
        self._announce("paused", causes)
        return True

    def _leaves(self, overdue: list[str]) -> bool:
        """Sleep until there is work or the gate opens; True when it has opened."""
        with self._wakeup:
            left_s = self._drop_overdue(overdue)
            if self._state is State.HELD and not self._nudged:
                # Condition.wait cannot take infinity.
                longest_s = threading.TIMEOUT_MAX if self._leave is None else LOOK_S
                self._wakeup.wait(min(left_s, longest_s))
                self._drop_overdue(overdue)
                if self._leave is not None and self._leave():
                    for cause in list(self._causes):
                        self._drop(cause)
            self._nudged = False
            if self._state is State.HELD:
                return False
            self._state = next_state(self._state, Move.LEAVE)
            if self._causes:  # asked again meanwhile
                self._state = next_state(self._state, Move.REQUEST)
            return True

    def _drop(self, cause: str) -> bool:
        found = self._causes.pop(cause, None) is not None
        if found and not self._causes:
            self._state = next_state(self._state, Move.CLEAR)
            self._wakeup.notify_all()
        return found

    def _drop_overdue(self, dropped: list[str]) -> float:
        """Drop the causes past their hold time; seconds to the next, 0.0 if none is left."""
        if self._state is not State.HELD:
            return 0.0
        now_s = self._clock()
        left_s = {
            cause: max(asked_at_s, self._arrived_at_s) + hold_s - now_s
            for cause, (asked_at_s, hold_s) in self._causes.items()
        }
        for cause in [cause for cause, left in left_s.items() if left <= 0]:
            dropped.append(cause)
            self._drop(cause)
            del left_s[cause]
        return min(left_s.values(), default=0.0)
