"""Beats over a store in memory, on a clock that the test moves; the thread once."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from otf_core.ranks.beating import Beats
from otf_core.ranks.judging import Change
from otf_core.ranks.pace import Pace
from otf_core.testing.clock import ManualClock

WAIT_S = 20.0


class Shelf:
    """What all ranks have written."""

    def __init__(self) -> None:
        self.lines: dict[int, bytes] = {}
        self.broken = False
        self.asked = 0

    def of(self, rank: int) -> Place:
        return Place(self, rank)


class Place:
    def __init__(self, shelf: Shelf, rank: int) -> None:
        self._shelf, self._rank = shelf, rank

    def write(self, beat: bytes) -> None:
        self._look()
        self._shelf.lines[self._rank] = beat

    def read(self, ranks: Sequence[int]) -> dict[int, bytes]:
        self._look()
        self._shelf.asked += 1
        return {rank: self._shelf.lines[rank] for rank in ranks if rank in self._shelf.lines}

    def _look(self) -> None:
        if self._shelf.broken:
            msg = "closed"
            raise ConnectionError(msg)


class Ranks:
    """Three ranks on one clock; those that are named have their turn."""

    def __init__(self) -> None:
        self.clock, self.shelf = ManualClock(), Shelf()
        self.exits: dict[int, int] = {}
        self.ranks = [
            Beats(
                self.shelf.of(rank), rank, 3, Pace(), stands=lambda rank=rank: rank == 2,
                exits=(lambda: self.exits) if rank == 0 else dict,
                device_mb=lambda: 7.5, clock=self.clock, host=f"node{rank}",
            )
            for rank in range(3)
        ]  # fmt: skip
        self.told: list[list[Change]] = [[], [], []]
        self.rows: list[list[dict[str, Any]]] = []
        for beats, told in zip(self.ranks, self.told, strict=True):
            beats.changed = told.append
        self.ranks[0].told = self.rows.append

    def go_on(self, seconds: float, *alive: int) -> None:
        for _ in range(round(5 * seconds)):
            self.clock.advance(0.2)
            for rank in alive:
                self.ranks[rank].turn()


def states(changes: list[Change]) -> list[tuple[int, str]]:
    return [(change.rank, change.state) for change in changes]


def test_rank_0_has_a_row_of_each_once_a_second() -> None:
    ranks = Ranks()
    ranks.go_on(10, 1, 2, 0)
    assert len(ranks.rows) == 10
    first, second, third = ranks.rows[-1]
    assert [row["rank"] for row in ranks.rows[-1]] == [0, 1, 2]
    assert (first["host"], second["host"]) == ("node0", "node1")
    assert [row["standing"] for row in ranks.rows[-1]] == [False, False, True]
    assert {row["state"] for row in ranks.rows[-1]} == {"ok"}
    assert 0 < third["rss_mb"] < 1e6
    assert third["device_mem_mb"] == 7.5
    assert set(third) == {
        "rank", "host", "step", "standing", "state", "seen_s", "step_ms", "step_ms_p95",
        "data_wait_ms", "wait_ms", "rss_mb", "device_mem_mb", "loss",
    }  # fmt: skip
    assert ranks.told == [[], [], []]


def test_the_store_is_asked_twice_a_second_however_many_they_are() -> None:
    ranks = Ranks()
    ranks.go_on(20, 0)
    assert ranks.shelf.asked <= 2 * 20


def test_who_stops_is_silent_for_rank_0_and_rank_0_for_the_others() -> None:
    ranks = Ranks()
    ranks.go_on(5, 0, 1, 2)
    ranks.go_on(6.2, 0, 1)
    assert states(ranks.told[0]) == [(2, "silent")]
    assert ranks.told[1] == []
    assert [row["state"] for row in ranks.rows[-1]] == ["ok", "ok", "silent"]
    ranks.go_on(1.2, 0, 1, 2)
    assert states(ranks.told[0]) == [(2, "silent"), (2, "back")]
    ranks.go_on(6.2, 1, 2)
    assert states(ranks.told[1]) == states(ranks.told[2]) == [(0, "silent")]


def test_an_exit_code_is_told_at_the_next_look() -> None:
    ranks = Ranks()
    ranks.go_on(5, 0, 1, 2)
    ranks.exits[1] = -9
    ranks.go_on(0.2, 0)
    assert states(ranks.told[0]) == [(1, "failed")]
    assert ranks.ranks[0].found_failed(0)
    assert not ranks.ranks[1].found_failed(0)


def test_the_parent_on_another_node_tells_of_its_own() -> None:
    ranks = Ranks()
    ranks.ranks[1]._exits = lambda: {2: -11}
    ranks.go_on(2, 1, 0)
    assert states(ranks.told[0]) == [(2, "failed")]
    assert "SIGSEGV" in ranks.told[0][0].why


def test_a_last_beat_says_how_it_ended() -> None:
    ranks = Ranks()
    ranks.go_on(2, 0, 1, 2)
    for rank, error in ((1, None), (2, "MemoryError: no room")):
        ranks.ranks[rank]._thread = threading.Thread()  # as if it had been started
        ranks.ranks[rank]._thread.start()
        ranks.ranks[rank].close(error)
        ranks.ranks[rank].close("not twice")
    ranks.go_on(20, 0)
    assert states(ranks.told[0]) == [(2, "failed")]
    assert "said MemoryError: no room" in ranks.told[0][0].why


def test_when_training_is_over_nobody_is_judged() -> None:
    ranks = Ranks()
    ranks.go_on(2, 0, 1, 2)
    ranks.ranks[0].over()
    ranks.exits[1] = 1
    ranks.go_on(20, 0)
    assert ranks.told[0] == []


def test_without_a_store_exit_codes_are_still_told() -> None:
    ranks = Ranks()
    ranks.go_on(2, 0, 1, 2)
    ranks.shelf.broken = True
    ranks.go_on(20, 0, 1)
    assert ranks.told == [[], [], []]
    ranks.exits[1] = -9
    ranks.go_on(0.2, 0)
    assert states(ranks.told[0]) == [(1, "failed")]


def test_what_rank_0_says_beside_is_in_its_beat() -> None:
    ranks = Ranks()
    ranks.ranks[0].more = lambda: {"newest": "a.ckpt"}
    ranks.go_on(2, 0, 1)
    assert ranks.ranks[1].judge.beats[0]["newest"] == "a.ckpt"


def test_the_thread_beats_by_itself_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, clock = Shelf(), ManualClock()
    beats = Beats(shelf.of(0), 0, 2, Pace(), stands=lambda: False, clock=clock)
    heard = threading.Event()
    beats.told = lambda _: heard.set()
    beats.start()
    clock.wait_for_sleeper()
    clock.advance(1.0)
    assert heard.wait(WAIT_S)
    assert json.loads(shelf.lines[0])["host"] == os.uname().nodename
    beats.close()
    assert json.loads(shelf.lines[0])["ended"] is True
