"""How the pause gate holds, lets go and tells.

Nothing here sleeps: the other threads and the passing of time are a script, so each test is one
exact interleaving and a lost wake-up is a failed assertion, not a hang. One test at the end uses
real threads, to show that the script did not lie about them.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from otf_core.control.gate import (
    LOOK_S,
    MOVES,
    IllegalMoveError,
    Move,
    PauseGate,
    State,
    next_state,
)
from tests.control.script import FOREVER, Script


class Rig:
    """A gate with a scripted world and a tape of its announcements."""

    def __init__(self) -> None:
        self.world = Script()
        self.tape: list[tuple[str, ...]] = []
        self.work: Callable[[], object] = lambda: None
        self.gate = PauseGate(self.announce, clock=self.world.clock, wakeup=self.world)

    def announce(self, what: str, causes: tuple[str, ...]) -> None:
        self.check_unlocked()
        self.tape.append((what, *causes))

    def check_unlocked(self) -> None:
        assert self.world.acquire(blocking=False), "called out under the lock"
        self.world.release()

    def arrive(self, *steps: Callable[[], object]) -> float:
        """One batch boundary; ``steps`` happen while the training thread sleeps."""
        self.world.steps.extend(steps)
        return self.gate.wait_until_resumed(self.work) if self.gate.should_block() else 0.0


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Announcing.


def test_a_request_is_no_pause_until_the_training_thread_arrives(rig: Rig) -> None:
    assert rig.gate.state is State.IDLE
    assert rig.gate.request("user") is State.REQUESTED
    assert rig.tape == []

    def while_held() -> None:
        assert rig.gate.state is State.HELD
        assert rig.tape == [("paused", "user")]
        assert rig.gate.resume("user")

    rig.arrive(while_held)

    assert rig.tape == [("paused", "user"), ("resumed",)]
    assert rig.gate.state is State.IDLE


def test_a_pause_taken_back_before_the_arrival_never_happened(rig: Rig) -> None:
    rig.gate.request("user")
    rig.gate.resume("user")

    assert not rig.gate.should_block()
    assert rig.gate.wait_until_resumed() == 0.0
    assert (rig.tape, rig.gate.state) == ([], State.IDLE)


def test_asked_again_before_the_thread_got_away_it_resumes_and_then_pauses_anew(rig: Rig) -> None:
    rig.gate.request("user")

    def resume_then_request() -> None:
        rig.gate.resume("user")
        assert rig.gate.state is State.RELEASED
        assert rig.gate.request("guard") is State.RELEASED

    def second_hold() -> None:
        assert rig.gate.state is State.HELD
        assert rig.tape == [("paused", "user"), ("resumed",), ("paused", "guard")]
        rig.gate.resume("guard")

    rig.arrive(resume_then_request, second_hold)

    assert rig.tape == [("paused", "user"), ("resumed",), ("paused", "guard"), ("resumed",)]
    assert rig.gate.state is State.IDLE


def test_asked_and_taken_back_before_the_thread_got_away_is_one_pause(rig: Rig) -> None:
    rig.gate.request("user")

    def twice() -> None:
        rig.gate.resume("user")
        rig.gate.request("user")
        rig.gate.resume("user")

    rig.arrive(twice)

    assert rig.tape == [("paused", "user"), ("resumed",)]


def test_the_time_of_both_holds_is_counted_and_not_what_lies_between(rig: Rig) -> None:
    rig.gate.request("user")

    def again() -> None:
        rig.world.advance(3.0)
        rig.gate.resume("user")
        rig.gate.request("user")

    def on_announce(what: str, causes: tuple[str, ...]) -> None:
        if what == "resumed":
            rig.world.advance(100.0)

    rig.gate._announce = on_announce
    held_s = rig.arrive(again, partial(rig.world.advance, 4.0), partial(rig.gate.resume, "user"))

    assert held_s == 7.0


# Several causes.


def test_the_end_of_one_cause_does_not_lift_the_pause_of_another(rig: Rig) -> None:
    rig.gate.request("guard")

    def person_then_guard() -> None:
        rig.gate.request("user")
        assert rig.gate.resume("guard")
        assert rig.gate.state is State.HELD

    held_s = rig.arrive(
        person_then_guard, partial(rig.world.advance, 8.0), partial(rig.gate.resume, "user")
    )

    assert held_s == 8.0


def test_taking_back_a_cause_that_does_not_hold_changes_nothing(rig: Rig) -> None:
    rig.gate.request("user")

    assert rig.gate.resume("guard") is False
    assert (rig.gate.state, rig.gate.should_block()) == (State.REQUESTED, True)


def test_open_takes_every_cause_back_and_the_gate_can_hold_again(rig: Rig) -> None:
    rig.gate.open()  # nothing holds: nothing happens
    rig.gate.request("user")
    rig.gate.request("guard")

    rig.arrive(rig.gate.open)

    assert rig.tape == [("paused", "user", "guard"), ("resumed",)]
    assert rig.gate.request("user") is State.REQUESTED


def _groupings(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """All ways to cut a sequence into runs; those in one run happen before the thread wakes."""
    if not items:
        yield []
        return
    for size in range(1, len(items) + 1):
        for rest in _groupings(items[size:]):
            yield [list(items[:size]), *rest]


@pytest.mark.parametrize("arrival", range(5))
@pytest.mark.parametrize("order", sorted({"".join(p) for p in itertools.permutations("aabb")}))
def test_every_interleaving_of_two_askers_and_one_arrival(order: str, arrival: int) -> None:
    """First letter asks, second takes back; the thread arrives at each gap, and wakes late too."""
    # An odd count of a letter so far: that cause holds.
    holds = [any(order[:n].count(c) % 2 for c in "ab") for n in range(5)]

    for groups in _groupings(range(arrival, 4)):
        rig = Rig()

        def play(positions: Sequence[int], rig: Rig = rig) -> None:
            for position in positions:
                cause = order[position]
                asked = cause in order[:position]
                (rig.gate.resume if asked else rig.gate.request)(cause)

        play(range(arrival))
        expected, unplayed = [], len(groups)
        if holds[arrival]:
            expected.append("paused")
            for group in groups:
                unplayed -= 1
                if all(holds[position + 1] for position in group):
                    continue
                expected.append("resumed")
                if not holds[group[-1] + 1]:
                    break
                expected.append("paused")
        rig.arrive(*(partial(play, group) for group in groups))

        assert [what for what, *_ in rig.tape] == expected, groups
        assert len(rig.world.steps) == unplayed, groups
        assert rig.gate.should_block() is False


# Work while standing.


def test_work_is_done_on_arrival_and_each_time_it_is_nudged_outside_the_lock(rig: Rig) -> None:
    done: list[str] = []

    def work() -> None:
        rig.check_unlocked()
        done.append("work")

    def nudge() -> None:
        done.append("nudge")
        rig.gate.nudge()

    rig.work = work
    rig.gate.request("user")
    rig.arrive(nudge, nudge, partial(rig.gate.resume, "user"))

    assert done == ["work", "nudge", "work", "nudge", "work"]
    assert rig.tape == [("paused", "user"), ("resumed",)]


def test_a_nudge_while_working_is_not_lost(rig: Rig) -> None:
    done: list[int] = []

    def work() -> None:
        done.append(len(rig.world.sleeps_s))
        if len(done) == 1:
            rig.gate.nudge()  # comes before the thread sleeps

    rig.work = work
    rig.gate.request("user")
    rig.arrive(partial(rig.gate.resume, "user"))

    assert done == [0, 0]
    assert rig.world.sleeps_s == [FOREVER]


def test_work_that_lets_the_thread_go_ends_the_wait_without_a_sleep(rig: Rig) -> None:
    rig.work = rig.gate.open
    rig.gate.request("user")

    rig.arrive()

    assert rig.world.sleeps_s == []
    assert rig.tape == [("paused", "user"), ("resumed",)]


def test_what_work_raises_ends_the_wait(rig: Rig) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    rig.work = work
    rig.gate.request("user")

    with pytest.raises(KeyboardInterrupt):
        rig.arrive()
    rig.gate.close()
    assert rig.gate.wait_until_resumed() == 0.0


# Forgotten pauses.


def test_a_forgotten_pause_ends_at_its_hold_time_and_says_whose_it_was(rig: Rig) -> None:
    rig.gate.request("user", hold_s=0.5)

    assert rig.arrive() == 0.5
    assert rig.tape == [("paused", "user"), ("resumed", "user")]


def test_the_hold_time_runs_from_the_arrival_not_from_the_request(rig: Rig) -> None:
    rig.gate.request("user", hold_s=30.0)
    rig.world.advance(25.0)  # a long batch

    assert rig.arrive() == 30.0


def test_asking_again_renews_the_hold_time(rig: Rig) -> None:
    rig.gate.request("user", hold_s=10.0)

    held_s = rig.arrive(
        partial(rig.world.advance, 6.0), partial(rig.gate.request, "user", hold_s=10.0)
    )

    assert held_s == 16.0


def test_only_the_overdue_cause_is_dropped(rig: Rig) -> None:
    rig.gate.request("user")

    rig.arrive(
        # Must wake the sleeper: it had planned to sleep for ever.
        partial(rig.gate.request, "guard", hold_s=5.0),
        partial(rig.world.advance, 5.0),
        partial(rig.gate.resume, "user"),
    )

    assert rig.world.sleeps_s == [FOREVER, 5.0, FOREVER]
    assert rig.tape == [("paused", "user"), ("resumed", "guard")]


def test_work_that_takes_longer_than_the_hold_time_is_the_last(rig: Rig) -> None:
    rig.work = partial(rig.world.advance, 9.0)
    rig.gate.request("user", hold_s=5.0)

    assert rig.arrive() == 9.0
    assert rig.world.sleeps_s == []
    assert rig.tape == [("paused", "user"), ("resumed", "user")]


@pytest.mark.parametrize("hold_s", [0.0, -1.0, math.nan])
def test_a_hold_time_that_is_none_is_refused(rig: Rig, hold_s: float) -> None:
    with pytest.raises(ValueError, match=rf"'user' .* hold_s={hold_s}; allowed: seconds > 0"):
        rig.gate.request("user", hold_s=hold_s)

    assert rig.gate.state is State.IDLE


# The end.


def test_close_wakes_the_training_thread_and_refuses_what_comes_after(rig: Rig) -> None:
    rig.gate.request("user")

    rig.arrive(rig.gate.close)

    assert rig.tape == [("paused", "user"), ("resumed",)]
    assert rig.gate.state is State.CLOSED
    rig.gate.close()  # closing twice is no error
    with pytest.raises(IllegalMoveError, match="'request', found 'closed'; allowed here: leave"):
        rig.gate.request("user")
    assert rig.gate.resume("user") is False
    assert not rig.gate.should_block()
    assert rig.gate.wait_until_resumed() == 0.0


@pytest.mark.parametrize(
    ("state", "move"), [pair for pair in itertools.product(State, Move) if pair not in MOVES]
)
def test_a_move_without_a_row_is_refused_and_named(state: State, move: Move) -> None:
    with pytest.raises(IllegalMoveError, match=f"{move.value!r}, found {state.value!r}; .*close"):
        next_state(state, move)


def test_a_second_thread_cannot_arrive(rig: Rig) -> None:
    rig.gate.request("user")

    def second_arrival() -> None:
        with pytest.raises(IllegalMoveError, match="'arrive', found 'held'"):
            rig.gate.wait_until_resumed()
        rig.gate.resume("user")

    rig.arrive(second_arrival)

    assert rig.tape == [("paused", "user"), ("resumed",)]


# Real threads.


def test_a_reader_thread_nudges_and_lets_the_training_thread_go() -> None:
    paused = threading.Event()
    tape: list[tuple[str, str]] = []
    nudged = threading.Event()

    def announce(what: str, _causes: tuple[str, ...]) -> None:
        tape.append((what, threading.current_thread().name))

    def work() -> None:
        if paused.is_set():
            nudged.set()
        paused.set()

    gate = PauseGate(announce)
    gate.request("user")

    def read() -> None:
        assert paused.wait(10)
        gate.nudge()
        assert nudged.wait(10)
        gate.resume("user")

    reader = threading.Thread(target=read, name="otf-reader")
    reader.start()
    assert gate.wait_until_resumed(work) > 0
    reader.join()

    here = threading.current_thread().name
    assert tape == [("paused", here), ("resumed", here)]


def test_a_process_that_is_told_to_end_is_not_held() -> None:
    world, tape, told = Script(), [], [False, True]
    gate = PauseGate(
        lambda what, causes: tape.append((what, *causes)),
        clock=world.clock,
        wakeup=world,
        leave=lambda: told.pop(0),
    )
    gate.request("user")
    gate.request("action")

    assert gate.wait_until_resumed() == 2 * LOOK_S
    assert world.sleeps_s == [LOOK_S, LOOK_S]
    assert tape == [("paused", "user", "action"), ("resumed",)]
    assert gate.state is State.IDLE
