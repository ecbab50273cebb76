"""What a legacy host is shown on connecting."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from otf_core.telemetry.replay import MAX_POINTS, LegacyReplay, thinned


class Log:
    def __init__(self, *kinds: str) -> None:
        self.lines = [
            json.dumps({"type": kind, "n": n}).encode() + b"\n" for n, kind in enumerate(kinds)
        ]

    def read(self, after: int, until: int) -> Iterator[bytes]:
        yield from self.lines[after:until]


def shown(replay: LegacyReplay, until: int) -> list[tuple[str, int]]:
    return [(m["type"], m["n"]) for m in map(json.loads, replay.lines(until))]


def test_the_digest_has_each_kind_in_its_place_and_session_started_once() -> None:
    log = Log(
        "newRun", "session_started", "log", "trainStep", "state", "checkpoint_saved", "log",
        "trainStep", "paused", "resumed", "trainStep", "checkpoint_saved", "paused", "note",
    )  # fmt: skip
    replay = LegacyReplay(log.read)

    expected = [
        ("newRun", 0),
        ("log", 2),
        ("trainStep", 3),
        ("trainStep", 7),
        ("trainStep", 10),
        ("checkpoint_saved", 5),
        ("checkpoint_saved", 11),
        ("paused", 12),
    ]
    assert shown(replay, 14) == [("session_started", 1), *expected]
    assert shown(replay, 14) == expected
    assert shown(replay, 2) == [("newRun", 0)]


def test_steps_that_were_rolled_back_are_told_no_more() -> None:
    events = [
        {"type": "trainStep", "step": 1, "n": 0},
        {"type": "trainStep", "step": 2, "n": 1},
        {"type": "trainStep", "step": 3, "n": 2},
        {"type": "checkpoint_loaded", "step": 1, "n": 3},
        {"type": "trainStep", "step": 2, "n": 4},
    ]
    lines = [json.dumps(event).encode() for event in events]
    replay = LegacyReplay(lambda after, until: iter(lines[after:until]))
    assert shown(replay, 5) == [("trainStep", 0), ("trainStep", 4)]


def test_each_run_is_told_by_itself_and_the_one_that_trains_last() -> None:
    told = [
        ("newRun", "r"), ("trainStep", "r"), ("paused", "r"), ("finalizeRun", "r"),
        ("newRun", "fork1"), ("log", "fork1"), ("trainStep", "fork1"), ("finalizeRun", "fork1"),
        ("trainStep", "r"), ("paused", "r"),
    ]  # fmt: skip
    events = [{"type": kind, "run_id": run, "n": n} for n, (kind, run) in enumerate(told)]
    lines = [json.dumps(event).encode() for event in events]
    replay = LegacyReplay(lambda after, until: iter(lines[after:until]))
    assert [n for _, n in shown(replay, 10)] == [4, 5, 6, 0, 1, 8, 9]
    assert [n for _, n in shown(replay, 7)] == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("end", ["resumed", "trainingFinished"])
def test_a_run_that_does_not_stand_is_not_shown_paused(end: str) -> None:
    assert shown(LegacyReplay(Log("paused", end).read), 2) == []


def test_each_line_is_as_first_sent() -> None:
    log = Log("trainStep")
    assert LegacyReplay(log.read).lines(1) == log.lines


def test_points_are_thinned_evenly_with_first_and_last() -> None:
    lines = [b"%d" % n for n in range(10)]

    assert thinned(lines, 10) == lines
    assert thinned(lines, 4) == [b"0", b"3", b"6", b"9"]
    many = [b"%d" % n for n in range(20_001)]
    some = thinned(many)
    assert (len(some), some[0], some[-1]) == (MAX_POINTS, b"0", b"20000")
    assert len(set(some)) == MAX_POINTS == 6000
