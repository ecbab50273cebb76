"""A command's payload to a check, and back to a reply."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from otf_core.errors import CommandError
from otf_core.health import checks
from otf_core.health.budget import CancelledError
from tests.health.subjects import Plain, loader, net

# What the legacy dashboard sends, and how long it waits for the reply, in seconds.
LEGACY: dict[str, tuple[dict[str, Any], float]] = {
    "dist_health": ({"require_all_ranks": False, "sample_weights": 0}, 30),
    "throughput_health": ({"budget_steps": 2, "micro_backward": False}, 45),
    "activations_health": ({"budget_steps": 2, "topk": 12, "eps": 0.001}, 60),
    "numerics_health": ({"sample_layers": 25}, 30),
    "determinism_health": ({}, 20),
}


def test_every_check_of_the_protocol_is_there() -> None:
    assert checks.CHECKS.keys() == LEGACY.keys()


@pytest.mark.parametrize("name", LEGACY)
def test_what_the_legacy_dashboard_sends_is_answered_in_plain_values(name: str) -> None:
    payload, patience_s = LEGACY[name]
    wire = checks.run(name, Plain(net()), payload).to_wire()
    assert json.loads(json.dumps(wire, allow_nan=False)) == wire
    assert isinstance(wire["ok"], bool)
    assert wire["text"]
    assert checks.CHECKS[name].limit_s < patience_s


@pytest.mark.parametrize("name", LEGACY)
def test_a_payload_need_not_say_anything(name: str) -> None:
    assert checks.run(name, Plain(net()), {}).text


@pytest.mark.parametrize("name", LEGACY)
def test_options_are_arguments_of_the_check(name: str) -> None:
    check = checks.CHECKS[name]
    assert check.options.keys() <= inspect.signature(check.run).parameters.keys()


def test_batches_are_as_many_as_were_asked_for() -> None:
    subject = Plain(net(), loader(80, 8))
    for name in ("throughput_health", "activations_health"):
        for steps in (1, 4):
            found = checks.run(name, subject, {"budget_steps": steps})
            assert found.fields["steps_probed"] == steps


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("activations_health", "budget_steps", 0),
        ("throughput_health", "budget_steps", -1),
        ("activations_health", "topk", 0),
        ("activations_health", "eps", -0.1),
        ("numerics_health", "sample_layers", 0),
        ("dist_health", "sample_weights", -1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_field(
    name: str, field: str, value: float
) -> None:
    with pytest.raises(CommandError) as refused:
        checks.run(name, Plain(net()), {field: value})
    assert (refused.value.code, refused.value.field) == ("bad_payload", field)
    assert "allowed:" in refused.value.detail


def test_the_limit_is_the_checks_own() -> None:
    now_s = [0.0]

    def loss(module: Any, batch: Any) -> Any:
        now_s[0] += 15.0
        return module(batch[0]).sum()

    found = checks.run(
        "activations_health",
        Plain(net(), loader(800, 8), loss=loss),
        {"budget_steps": 99},
        clock=lambda: now_s[0],
    )
    assert now_s[0] <= checks.CHECKS["activations_health"].limit_s
    assert found.fields["steps_probed"] == 2


def test_somebody_may_cancel_it() -> None:
    with pytest.raises(CancelledError):
        checks.run("throughput_health", Plain(net()), {}, cancelled=lambda: True)
