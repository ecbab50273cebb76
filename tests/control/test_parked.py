"""A parked run goes on, stops and ends only when it is back; where there is no room it is held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from otf_core.control.agreement import PeerLostError
from otf_core.errors import CommandError, ErrorCode
from otf_core.ranks.other import OtherRank
from otf_core.state.keeper import Every, Schedule
from tests.control.rig import Rig


class FakePark:
    """Away, until there is room."""

    def __init__(self, tape: list[str]) -> None:
        self._tape = tape
        self.parked = self.full = False

    def away(self) -> None:
        self._tape.append("away")
        self.parked = True

    def back(self, request_id: str | None = None) -> None:
        if self.parked and self.full:
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, "no room.")
        if self.parked:
            self._tape.append(f"back {request_id}")
        self.parked = False

    def back_here(self) -> None:
        self._tape.append("back here")
        self.parked = False


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return parkable(Rig(monkeypatch))


def parkable(rig: Rig) -> Rig:
    rig.actions.park = FakePark(rig.tape)
    return rig


def park(rig: Rig) -> FakePark:
    assert isinstance(rig.actions.park, FakePark)
    return rig.actions.park


def since_away(rig: Rig) -> list[str]:
    return rig.tape[rig.tape.index("away") + 1 :]


def test_resume_brings_it_back_before_it_says_so(rig: Rig) -> None:
    rig.send("pause", "p")
    rig.step(park(rig).away, rig.sends("resume", "r"))
    assert since_away(rig) == [
        "accepted r", "back r", "state paused > running", "resumed 1", "r: ok"
    ]  # fmt: skip
    assert rig.reply("r")["changed"]


def test_a_resume_without_room_is_refused_and_the_next_one_is_not(rig: Rig) -> None:
    def no_room() -> None:
        park(rig).away()
        park(rig).full = True

    def room() -> None:
        park(rig).full = False

    rig.send("pause", "p")
    rig.step(no_room, rig.sends("resume", "r1"), room, rig.sends("resume", "r2"))
    assert rig.reply("r1")["detail"] == "no room."
    assert rig.reply("r2")["changed"]
    assert [line for line in rig.tape if line.startswith("resumed")] == ["resumed 1"]


def test_stop_brings_it_back_or_is_refused(rig: Rig) -> None:
    def no_room() -> None:
        park(rig).away()
        park(rig).full = True

    def room() -> None:
        assert rig.state.state == "paused"
        park(rig).full = False

    rig.send("pause", "p")
    assert rig.step(no_room, rig.sends("stop", "s1"), room, rig.sends("stop", "s2"))
    assert rig.reply("s1")["code"] == "not_allowed_now"
    assert rig.reply("s2")["status"] == "stopping"
    tape = since_away(rig)
    assert tape.index("back s2") < tape.index("save manual") < tape.index("request_stop")


def test_what_is_parked_while_a_resume_comes_is_back_when_it_is_answered(rig: Rig) -> None:
    def parks_late() -> None:
        rig.send("resume", "r")  # the run is not parked yet: it is let go
        park(rig).away()

    rig.send("pause", "p")
    rig.step(parks_late)
    tape = since_away(rig)
    assert tape.index("back None") < tape.index("resumed 1") < tape.index("r: ok")


def test_the_end_of_a_forgotten_pause_brings_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = parkable(Rig(monkeypatch, max_pause_s=60.0))
    rig.send("pause", "p")
    rig.step(park(rig).away, lambda: rig.world.advance(60.0))
    tape = since_away(rig)
    assert tape.index("back None") < tape.index("resumed 1")


def test_a_forgotten_pause_without_room_is_held_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = parkable(Rig(monkeypatch, max_pause_s=60.0))

    def no_room() -> None:
        park(rig).away()
        park(rig).full = True

    def room() -> None:
        assert rig.state.state == "paused"
        assert park(rig).parked
        park(rig).full = False

    rig.send("pause", "p")
    rig.step(no_room, lambda: rig.world.advance(60.0), room, rig.sends("resume", "r"))
    assert "log no room." in rig.tape
    assert rig.reply("r")["changed"]
    assert not park(rig).parked


def test_a_pause_that_something_breaks_leaves_nothing_away(rig: Rig) -> None:
    def breaks() -> None:
        park(rig).away()
        raise PeerLostError("rank 1 is gone")

    rig.send("pause", "p")
    with pytest.raises(PeerLostError):
        rig.step(breaks)
    assert since_away(rig) == ["back here"]


def test_a_process_that_has_to_end_is_not_held_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.actions, "_leaving", lambda: True)

    def ends() -> None:
        park(rig).away()
        park(rig).full = True
        rig.actions.gate.open()

    rig.send("pause", "p")
    rig.step(ends)
    assert rig.tape.count("log no room.") == 1
    assert rig.tape[-1] == "resumed 1"  # and the session ends the run: it is still parked
    assert park(rig).parked


@pytest.mark.parametrize("lost", [True, False])
def test_another_rank_is_back_however_its_meeting_ends(*, lost: bool) -> None:
    called: list[str] = []

    def boundary(*, here: bool) -> bool:
        called.append("stands")
        if lost:
            raise PeerLostError("rank 0 is gone")
        return here

    delegate: Any = SimpleNamespace(position=lambda: SimpleNamespace(step=1))
    other = OtherRank(delegate, Schedule(Every()), None, saves=False, env={})
    other.parking = SimpleNamespace(back=lambda: called.append("back"))  # type: ignore[assignment]
    other.agreement = SimpleNamespace(boundary=boundary)  # type: ignore[assignment]
    if lost:
        with pytest.raises(PeerLostError):
            other.tick()
    else:
        assert not other.tick()
    assert called == ["stands", "back"]


def test_a_rank_that_has_not_said_what_it_holds_refuses() -> None:
    extended: list[int] = []
    delegate: Any = SimpleNamespace(extend=extended.append, request_stop=None)
    other = OtherRank(delegate, Schedule(Every()), None, saves=False, env={})
    other.do("extend", [3])
    assert extended == [3]
    with pytest.raises(CommandError, match="cannot be parked"):
        other.do("park_check", [])
