"""What an agent may do, and what it is told instead."""

from __future__ import annotations

from typing import Any

import pytest

from otf_core.agents.guard import Guard, GuardError, Rules, bounds_of, typed

ALLOWED = Rules(write=True, bounds={"lr": (1e-5, 1e-2)}, per_minute=2)


def refused(guard: Guard, cmd: str, payload: dict[str, Any]) -> GuardError:
    with pytest.raises(GuardError) as found:
        guard.check("verb", cmd, payload, "otf verb --run r")
    return found.value


def test_nothing_is_changed_unless_a_person_has_said_so() -> None:
    error = refused(Guard(Rules()), "pause", {})
    assert error.code == "read_only"
    assert "otf mcp --write" in str(error)


@pytest.mark.parametrize(
    ("cmd", "payload"),
    [("stop", {}), ("rollback", {"step": 3}), ("reset_session", {}), ("undo", {"restore": True})],
)
def test_what_loses_work_needs_a_person_each_time(cmd: str, payload: dict[str, Any]) -> None:
    error = refused(Guard(ALLOWED), cmd, payload)
    assert (error.code, error.more["line"]) == ("needs_person", "otf verb --run r")
    Guard(ALLOWED).check("undo", "undo", {}, "")


@pytest.mark.parametrize(
    ("cmd", "payload"),
    [
        ("set_param", {"path": "lr", "value": 0.1}),
        ("set_param", {"path": "optim.0.groups.1.lr", "value": 0.1}),
        ("set_param", {"path": "lr", "value": float("nan")}),
        ("set_param", {"path": "lr", "mul": 1.0}),
        ("set_param", {"path": "lr", "value": 1e-3, "to": 0.5, "over": 3}),
        ("set_params", {"changes": [{"path": "lr", "value": 1e-3}, {"path": "lr", "value": 1}]}),
        ("fork", {"hparams": {"lr": 0.1}}),
    ],
)
def test_bounds_are_kept(cmd: str, payload: dict[str, Any]) -> None:
    error = refused(Guard(ALLOWED), cmd, payload)
    assert (error.code, error.more["allowed"]) == ("out_of_bounds", {"min": 1e-5, "max": 1e-2})


def test_what_is_within_them_or_has_none_passes() -> None:
    guard = Guard(ALLOWED)
    guard.check("set", "set_param", {"path": "lr", "value": 1e-3}, "")
    guard.check("set", "set_param", {"path": "momentum", "mul": 0.5}, "")
    guard.check("resume", "set_param", {"path": "lr", "release": True}, "")


def test_a_schedule_that_leaves_them_is_seen_beforehand() -> None:
    path = "optim.0.groups.0.lr"
    curves = {"step": [4, 5], "now": {path: [0.001, 1e-9]}, "then": {path: [0.005, 0.02]}}
    with pytest.raises(GuardError, match=r"would be 0.02 at step 5; allowed here: 1e-05 to 0.01"):
        Guard(ALLOWED).check_curves(curves)
    curves["then"] = {path: [0.005, 2e-9]}  # the schedule goes below by itself, and lower
    Guard(ALLOWED).check_curves(curves)
    curves["then"] = {path: [0.005, 5e-10]}
    with pytest.raises(GuardError, match=r"would be 5e-10 at step 5"):
        Guard(ALLOWED).check_curves(curves)


def test_so_many_changes_a_minute_and_no_more() -> None:
    now = [0.0]
    guard = Guard(ALLOWED, lambda: now[0])
    guard.count("set")
    now[0] = 10.0
    guard.count("set")
    with pytest.raises(GuardError, match=r"allowed: 2. The next one in 50 s") as found:
        guard.count("set")
    assert found.value.code == "too_many"
    now[0] = 60.0
    guard.count("set")


@pytest.mark.parametrize("text", ["lr", "lr=1", "lr=2:1", "=1:2", "lr=a:b"])
def test_what_are_no_bounds_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=LEAST:GREATEST"):
        bounds_of(text)
    assert bounds_of("lr=1e-5:1e-2") == ("lr", (1e-5, 1e-2))


def test_a_line_is_what_a_person_types() -> None:
    given = {"path": "lr", "value": "0.1", "mul": True, "at_step": 5, "mode": None}
    options = {"mul": "--mul", "at_step": "--at-step", "mode": "--mode"}
    assert typed("set", given, options, "a b") == "otf set lr 0.1 --mul --at-step 5 --run 'a b'"
