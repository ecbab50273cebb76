"""A scan goes on while the run trains, and the run is bit for bit as without it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from otf_core.runs import background
from tests.no_harm.configs import Net
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runs.fits import SAMPLES, SIDES, Side, fresh

SCAN = {"background": True, "share": 0.5}


@pytest.fixture(autouse=True)
def _a_batch_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each look at the clock: a slice is one batch, and half of the time is rest."""
    ticks = itertools.count()
    monkeypatch.setattr(background, "clock", lambda: float(next(ticks)))
    monkeypatch.setattr(background, "SLICE_S", 0.0)
    monkeypatch.setattr(background, "TELL_EVERY_S", 0.0)


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def begun(run: Any, barrier: Any, batch: int, **more: Any) -> str:
    """Ask for it within a batch; the request's id, once it is heard."""
    barrier.wait_for(batch)
    asked: str = run.dashboard.send("scan", {**SCAN, **more})
    run.dashboard.expect("accepted", request_id=asked)
    return asked


def reply_of(run: Any, asked: str) -> Any:
    reply = run.dashboard.reply_to(asked)
    assert reply["ok"], reply
    return reply["data"]


def test_it_is_told_over_which_steps_and_changes_nothing(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path, fresh(), 2, 16) as (run, barrier):
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        barrier.wait_for(16)
        found = reply_of(run, asked)
        states = {e["state"] for e in run.dashboard.events() if e["type"] == "state"}
        told = [e for e in run.dashboard.events() if e["type"] == "progress"]
        barrier.let_go(16)
        after = side.digest(run.outcome())
    assert (found["count"], found["first_step"], found["last_step"]) == (SAMPLES, 3, 14)
    assert (found["step"], found["figures"]["count"]) == (14, SAMPLES)
    assert "validating" not in states
    assert [e["done"] for e in told] == [*range(16, SAMPLES + 1, 16)]
    assert {e["request_id"] for e in told} == {asked}
    assert told[-1]["eta_s"] == 0
    assert after == expected


def test_what_it_finds_can_be_paged_and_is_not_now(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(), 2, 16) as (run, barrier):
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        reply_of(run, asked)
        pause_in(run, barrier, 16)
        page = asks(run, "samples")
        assert (page["now"], page["total"]) == (False, SAMPLES)
        assert (page["first_step"], page["last_step"]) == (3, 14)
        # No ground for a selection: what that needs is looked at anew.
        chosen = asks(run, "get_selected_region_indices", {"min_loss": 0.0})
        assert chosen["indices"] == [*range(SAMPLES)]
        page = asks(run, "samples")
        assert (page["now"], page["first_step"], page["last_step"]) == (True, 17, 17)
        asks(run, "resume")


def test_it_stands_while_the_run_is_held_and_then_goes_on(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path, fresh(), 2, 6) as (run, barrier):
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        pause_in(run, barrier, 6)
        [pending] = [p for p in asks(run, "status")["pending"] if p["cmd"] == "scan"]
        assert pending["request_id"] == asked
        assert refused(run, "scan", {})[0] == "busy"
        assert refused(run, "scan", SCAN)[0] == "busy"
        told = [e for e in run.dashboard.events() if e["type"] == "progress"]
        assert told[-1]["done"] < SAMPLES
        asks(run, "resume")
        found = reply_of(run, asked)
        after = side.digest(run.outcome())
    assert found["count"] == SAMPLES
    assert after == expected


@pytest.mark.parametrize("by_name", [True, False])
def test_it_is_cancelled_also_while_it_stands(side: Side, by_name: bool, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path, fresh(), 2, 6) as (run, barrier):
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        pause_in(run, barrier, 6)
        assert refused(run, "cancel", {"request_id": "another"})[0] == "not_found"
        assert asks(run, "cancel", {"request_id": asked} if by_name else {}) == {"cancelled": asked}
        reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert reply["detail"].startswith("scan in the background was ended after ")
        assert reply["detail"].endswith("it was cancelled.")
        assert asks(run, "cancel") == {"cancelled": None}
        assert refused(run, "samples", {})[0] == "not_allowed_now"
        assert asks(run, "scan")["count"] == SAMPLES  # no longer busy
        asks(run, "resume")
        after = side.digest(run.outcome())
        told = [e for e in run.dashboard.events() if e["type"] == "progress"]
    assert [e["done"] for e in told if e["request_id"] == asked] == [16, 32, 48, 64]
    assert after == expected


@pytest.mark.parametrize(
    ("cmd", "payload", "why"),
    [
        ("fork", {"run_name": "other"}, "other trains in place of r."),
        ("rollback", {}, "the run was put to another state."),
    ],
)
def test_another_state_ends_it(
    side: Side, cmd: str, payload: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with side.fitting(tmp_path, fresh(), 2, 6) as (run, barrier):
        barrier.wait_for(2)
        saved = run.dashboard.send("save_ckpt")
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        checkpoint = run.dashboard.reply_to(saved)["data"]["id"]
        pause_in(run, barrier, 6)
        asks(run, cmd, payload or {"checkpoint": checkpoint})
        reply = run.dashboard.reply_to(asked)
        assert (reply["code"], reply["detail"].endswith(why)) == ("not_allowed_now", True), reply
        asks(run, "stop", {"save": False})


def test_the_end_of_the_fit_ends_it(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh())
    with side.fitting(tmp_path, fresh(), 20) as (run, barrier):
        asked = begun(run, barrier, 20)
        barrier.let_go(20)
        reply = run.dashboard.reply_to(asked)
        after = side.digest(run.outcome())
    assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
    assert reply["detail"].endswith("of 192 samples: the run is over at step 24.")
    assert after == expected


def test_of_the_runs_time_it_takes_its_share(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(), 2) as (run, barrier):
        asked = begun(run, barrier, 2, share=0.25, ids=[*range(64)])
        barrier.let_go(2)
        found = reply_of(run, asked)
    # Four slices of a second each, and three seconds of rest between them; a step is a second.
    assert (found["first_step"], found["last_step"]) == (3, 12)


class Raising(Net):
    def per_sample_loss(self, batch: Any) -> Any:
        msg = "no luck"
        raise RuntimeError(msg)


def test_a_hook_that_raises_ends_it_and_nothing_else(side: Side, tmp_path: Path) -> None:
    expected = side.bare(fresh(Raising))
    with side.fitting(tmp_path, fresh(Raising), 2, 6) as (run, barrier):
        asked = begun(run, barrier, 2)
        barrier.let_go(2)
        reply = run.dashboard.reply_to(asked)
        assert (reply["code"], "no luck" in reply["detail"]) == ("internal", True)
        pause_in(run, barrier, 6)
        assert refused(run, "scan", {**SCAN, "ids": [10**6]})[0] == "bad_payload"
        for share in (0.0, -1.0, 0.6):
            assert refused(run, "scan", {**SCAN, "share": share})[0] == "bad_payload"
        asks(run, "resume")
        after = side.digest(run.outcome())
    assert after == expected
