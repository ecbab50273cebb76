"""A pause that nobody remembers is said, and at its end resumed or parked."""

from __future__ import annotations

import math
from typing import Any

import pytest

from otf_core.control.forgotten import REMIND_S, ForgottenPause
from tests.control.rig import Rig

FIELDS = ("rule", "metric", "value", "bound", "action", "did", "text")


class Told:
    """A forgotten pause with what it has told and done."""

    def __init__(self, *, refused: str | None = None, **how: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.did: list[str] = []
        self.refused = refused
        self.pause = ForgottenPause(
            self.emit, step=lambda: 7, park=self.park, release=lambda: self.did.append("release"),
            **how,
        )  # fmt: skip

    def emit(self, kind: str, **fields: Any) -> None:
        assert kind == "guard"
        self.events.append(fields)

    def park(self) -> str | None:
        self.did.append("park")
        return self.refused

    def rows(self) -> list[tuple[Any, ...]]:
        return [tuple(event[name] for name in FIELDS) for event in self.events]


def test_a_long_pause_is_reminded_of_once_and_the_next_one_anew() -> None:
    told = Told()
    for held_s in (0.0, 599.9, 600.2, 601.0, 5000.0):
        told.pause.stands(held_s, ("user",))
    text = "the run has been held for 10 min"
    row = ("forgotten_pause", "paused_s", 600.2, REMIND_S, "notify", "notify", text)
    assert told.rows() == [row]
    assert (told.events[0]["step"], told.events[0]["at_step"]) == (7, 7)
    for held_s in (0.0, 700.0):
        told.pause.stands(held_s, ("guard", "after_fit"))
    assert [event["value"] for event in told.events] == [600.2, 700.0]
    assert not told.did


def test_the_held_end_of_a_fit_is_no_forgotten_pause() -> None:
    told = Told(max_pause_s=5.0, at_max="park")
    told.pause.stands(700.0, ("after_fit",))
    assert not told.events
    assert not told.did


def test_at_its_end_it_is_parked_once_and_stays() -> None:
    told = Told(max_pause_s=5.0, at_max="park")
    for held_s in (0.0, 4.9, 5.0, 6.0):
        told.pause.stands(held_s, ("user",))
    text = "the run was held for 5 s (max_pause); it is parked"
    assert told.rows() == [("forgotten_pause", "paused_s", 5.0, 5.0, "park", "park", text)]
    assert told.did == ["park"]
    assert told.pause.longest_s == math.inf


def test_where_it_cannot_be_parked_it_goes_on_and_says_why() -> None:
    told = Told(refused="The ranks hold parts.", max_pause_s=5.0, at_max="park")
    told.pause.stands(5.5, ("user",))
    text = (
        "the run was held for 5 s (max_pause); it could not be parked, and goes on: "
        "The ranks hold parts."
    )
    assert told.rows() == [("forgotten_pause", "paused_s", 5.5, 5.0, "park", "resume", text)]
    assert told.did == ["park", "release"]


def test_a_gate_that_has_ended_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(max_pause_s=60.0)
    rig = Rig(monkeypatch, forgotten=told.pause)
    rig.send("pause", "p")
    rig.step()
    assert rig.world.sleeps_s == [60.0]
    [row] = told.rows()
    assert row[2:6] == (60.0, 60.0, "resume", "resume")
    assert row[6] == "the pause was ended after 60 s (max_pause)"
    assert "log the pause was ended after 60 s (max_pause)" in rig.tape


def test_it_is_asked_while_the_run_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    rig = Rig(monkeypatch, forgotten=told.pause)
    rig.send("pause", "p")

    def later() -> None:
        rig.world.now_s += 601.0
        rig.actions.gate.nudge()

    rig.step(later, rig.sends("resume", "r"))
    assert [event["value"] for event in told.events] == [601.0]
