"""The state of a run: every change is told, and what has no row is refused."""

from __future__ import annotations

from typing import Any

import pytest

from otf_core import protocol
from otf_core.control.run_state import ENDED, MOVES, RunState
from otf_core.control.safe_point import SafePoint
from otf_core.errors import LocalProtocolError


class Rig:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.state = RunState(self.emit, lambda: {"step": 3, "epoch": 1})

    def emit(self, kind: str, **fields: Any) -> None:
        self.told.append({"type": kind, **fields})


def test_a_change_is_told_with_what_was_before_where_and_why() -> None:
    rig = Rig()
    assert (rig.state.state, rig.state.reason, rig.state.ended) == ("starting", None, False)

    rig.state.move("pausing", reason="user", request_id="p")

    assert (rig.state.state, rig.state.reason) == ("pausing", "user")
    assert rig.told == [
        {
            "type": "state",
            "state": "pausing",
            "previous": "starting",
            "step": 3,
            "epoch": 1,
            "reason": "user",
            "request_id": "p",
        }
    ]


def test_to_where_it_is_already_tells_nothing() -> None:
    rig = Rig()
    rig.state.move("running", reason="user")
    rig.state.move("running")

    assert (len(rig.told), rig.state.reason) == (1, "user")


def test_the_table_has_every_state_and_no_way_out_of_the_end() -> None:
    assert tuple(MOVES) == protocol.STATES
    assert {state for state in MOVES if not MOVES[state]} == ENDED
    for to in MOVES.values():
        assert to <= set(protocol.STATES)
        assert "starting" not in to


@pytest.mark.parametrize("end", sorted(ENDED))
def test_from_the_end_nothing_moves(end: str) -> None:
    rig = Rig()
    rig.state.move(end)
    assert rig.state.ended

    with pytest.raises(LocalProtocolError, match=f"'running' was asked, found '{end}'; .*nothing"):
        rig.state.move("running")
    assert (rig.state.state, len(rig.told)) == (end, 1)


def test_a_move_without_a_row_names_the_allowed_ones() -> None:
    said = "state 'paused' was asked, found 'starting'; allowed: failed, finished, interrupted, "
    with pytest.raises(LocalProtocolError, match=said + "pausing, running"):
        Rig().state.move("paused")


def test_the_safe_point_looks_only_when_it_was_woken_and_once() -> None:
    looks: list[bool] = []

    def attend() -> bool:
        looks.append(point.attention)
        return len(looks) == 2

    point = SafePoint(attend)

    assert (point.tick(), looks) == (False, [])
    point.wake()
    assert (point.tick(), point.tick(), looks) == (False, False, [False])
    point.wake()
    assert (point.tick(), looks) == (True, [False, False])


def test_what_is_asked_while_the_safe_point_looks_is_looked_at_next_time() -> None:
    def attend() -> bool:
        point.wake()
        return False

    point = SafePoint(attend)
    point.wake()

    point.tick()

    assert point.attention
