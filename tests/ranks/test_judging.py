"""Who is silent, back or lost, by beats and exit codes; the test moves the time."""

from __future__ import annotations

from typing import Any

import pytest

from otf_core.ranks.judging import Judge, exit_in_words, period_s, slowest


class Watch:
    """A judge of ranks 1 to 3 that looks twice a second, and ranks that beat or do not."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.judge = Judge((1, 2, 3), 1.0, self.now_s)
        self.beats = dict.fromkeys((1, 2, 3), 0)
        self.extra: dict[int, dict[str, Any]] = {1: {}, 2: {}, 3: {}}
        self.told: list[tuple[float, int, str]] = []
        self.whys: list[str] = []

    def beat(self, *ranks: int, **extra: Any) -> None:
        for rank in ranks:
            self.beats[rank] += 1
            self.extra[rank] = extra

    def look(self, *, hears: bool = True) -> None:
        for rank, number in self.beats.items():
            if hears and number:
                beat = {"n": number, "host": f"node{rank}", **self.extra[rank]}
                self.judge.hear(rank, beat, self.now_s)
        for change in self.judge.changes(self.now_s, hears=hears):
            self.told.append((round(self.now_s - 100, 1), change.rank, change.state))
            self.whys.append(change.why)

    def go_on(self, seconds: float, *alive: int, hears: bool = True) -> None:
        """Time passes; these beat once a second."""
        for half in range(round(2 * seconds)):
            self.now_s += 0.5
            if half % 2:
                self.beat(*alive)
            self.look(hears=hears)


def test_who_beats_is_well() -> None:
    watch = Watch()
    watch.go_on(120, 1, 2, 3)
    assert watch.told == []


def test_who_does_not_is_silent_once_within_six_seconds_and_back_once() -> None:
    watch = Watch()
    watch.go_on(10, 1, 2, 3)
    watch.go_on(4.5, 1, 3)
    assert watch.told == []
    watch.go_on(20, 1, 3)
    [(at_s, rank, state)] = watch.told
    assert (rank, state) == (2, "silent")
    assert 10 + 5 <= at_s <= 10 + 6
    assert watch.whys == ["rank 2 on node2 has not been heard for 5 s"]
    watch.go_on(2, 1, 2, 3)
    assert [(rank, state) for _, rank, state in watch.told[1:]] == [(2, "back")]
    assert watch.whys[1] == "rank 2 is heard again after 26 s"
    watch.go_on(60, 1, 2, 3)
    assert len(watch.told) == 2
    watch.go_on(6, 1, 3)
    assert watch.told[2][1:] == (2, "silent")


def test_a_silent_rank_is_not_called_failed_however_long() -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.go_on(3600, 1, 3)
    assert [state for _, _, state in watch.told] == ["silent"]


def test_who_never_came_is_silent_as_well() -> None:
    watch = Watch()
    watch.go_on(20, 1, 2)
    assert watch.told == [(5.0, 3, "silent")]
    assert watch.whys == ["rank 3 has not been heard yet, for 5 s"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "exit code -9 (SIGKILL)"),
        (1, "exit code 1"),
        (0, "exit code 0"),
        (-77, "exit code -77"),
    ],
)
def test_an_exit_code_is_a_failure_at_once(code: int, words: str) -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.judge.exited(2, code)
    watch.judge.exited(9, code)  # none of ours
    watch.look()
    watch.go_on(60, 1, 3)
    assert watch.told == [(3.0, 2, "failed")]
    assert watch.whys == [f"rank 2 on node2 ended with {words}"]
    assert exit_in_words(code) == words


def test_what_a_rank_says_of_its_own_end_is_told() -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.beat(3, ended=True, error="MemoryError: no room")
    watch.judge.exited(3, 1)
    watch.look()
    assert watch.told == [(3.0, 3, "failed")]
    assert watch.whys == ["rank 3 on node3 said MemoryError: no room and ended with exit code 1"]


def test_an_end_in_order_is_neither_silence_nor_failure() -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.beat(2, ended=True, error=None)
    watch.look()
    watch.judge.exited(2, 0)
    watch.go_on(60, 1, 3)
    assert watch.told == []
    watch.judge.exited(2, 1)  # and then it fails behind its training
    watch.look()
    assert [state for _, _, state in watch.told] == ["failed"]


def test_who_was_stopped_himself_calls_nobody_silent() -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.now_s += 600
    watch.look()
    watch.go_on(4.5, 1)
    assert watch.told == []
    watch.go_on(1, 1)
    assert [(rank, state) for _, rank, state in watch.told] == [(2, "silent"), (3, "silent")]


def test_without_a_store_only_exit_codes_are_known() -> None:
    watch = Watch()
    watch.go_on(3, 1, 2, 3)
    watch.go_on(60, hears=False)
    assert watch.told == []
    watch.judge.exited(1, -9)
    watch.go_on(0.5, hears=False)
    assert watch.told == [(63.5, 1, "failed")]


@pytest.mark.parametrize(("ranks", "every_s"), [(2, 1.0), (500, 1.0), (1000, 2.0), (8192, 16.384)])
def test_many_ranks_beat_less_often(ranks: int, every_s: float) -> None:
    assert period_s(ranks) == every_s
    assert Judge((), every_s, 0.0).limit_s == 5 * every_s


def row(rank: int, **more: Any) -> dict[str, Any]:
    base = {"rank": rank, "state": "ok", "step_ms": 100.0, "data_wait_ms": 1.0, "wait_ms": None}
    return {**base, **more}


def test_the_slowest_is_the_one_that_the_others_wait_for() -> None:
    assert slowest([row(0), row(1)]) is None
    assert slowest([row(0, wait_ms=60.0), row(1, wait_ms=5.0), row(2, wait_ms=58.0)]) == 1
    assert slowest([row(0, wait_ms=60.0), row(1, wait_ms=55.0)]) is None
    assert slowest([row(0, wait_ms=60.0), row(1, wait_ms=50.0)]) == 1
    assert slowest([row(0), row(1, data_wait_ms=40.0)]) == 1
    assert slowest([row(0), row(1, data_wait_ms=10.0)]) is None
    assert slowest([row(0), row(1, step_ms=150.0)]) == 1
    assert slowest([row(0), row(1, step_ms=900.0, state="silent")]) is None
    assert slowest([row(0, step_ms=None), row(1)]) is None
