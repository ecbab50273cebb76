"""A value that is set for a while, and one that follows a curve of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.script.held import Held
from otf_core.steering.knobs import Knob
from otf_core.steering.ledger import Ramp
from otf_core.steering.params import Ended, Steering
from tests.steering.worlds import SCHEDULES, Run, sgd

LR = "optim.0.groups.0.lr"


def scheduled(name: str = "ExponentialLR") -> Run:
    optimizer = sgd()
    return Run([optimizer], [SCHEDULES[name](optimizer)])


def on(run: Run, steering: Steering, steps: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(steps):
        run.step(run.done)
        found += steering.watch(run.done)
    return found


def test_a_curve_begins_at_one_value_and_stays_at_the_other() -> None:
    line = Ramp(0.1, 0.3, 10, 4)
    assert [line.at(step) for step in (0, 10, 12, 14, 99)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.3, 0.3]
    )
    assert line.at(14) == 0.3
    half = Ramp(1.0, 0.0, 0, 8, "cosine")
    assert [half.at(step) for step in (0, 2, 4, 8)] == pytest.approx(
        [1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0.0]
    )


@pytest.mark.parametrize("mode", ["scale", "override"])
def test_what_is_set_until_a_step_is_then_as_if_it_had_never_been(mode: str) -> None:
    plain, run = scheduled(), scheduled()
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.5, mode=mode, until=3), 0)  # type: ignore[arg-type]
    assert run.lrs() == [0.5, 0.5]
    assert on(run, steering, 2) == []
    on(plain, Steering(plain), 3)
    ended = on(run, steering, 1)
    assert run.lrs() == plain.lrs()
    assert [(e.path, e.new, e.step) for e in ended if isinstance(e, Ended)] == [
        (LR, plain.lrs()[0], 3),
        ("optim.0.groups.1.lr", plain.lrs()[1], 3),
    ]
    with pytest.raises(CommandError, match="was set until step 3 and is the script's again"):
        steering.undo(steering_applied(steering, run), 3)
    steering.close()


def steering_applied(steering: Steering, run: Run) -> Any:
    """What an ended change had left for its undo."""
    applied = steering.apply(SetParam(path="lr", value=0.5, until=run.done + 1), run.done)
    steering.watch(run.done + 1)
    return dataclasses.replace(applied, until=3)


def test_a_curve_replaces_the_rest_of_a_schedule_and_can_be_taken_back() -> None:
    plain, run = scheduled(), scheduled()
    steering = Steering(run)
    on(plain, Steering(plain), 6)
    on(run, steering, 2)
    applied = steering.apply(SetParam(path="lr", value=0.4, to=0.2, over=4), 2)
    assert (applied.mode, applied.new) == ("replace", [0.4, 0.4])
    on(run, steering, 2)
    assert run.lrs() == pytest.approx([0.3, 0.3])
    assert run.stepped[0].get_last_lr() == run.lrs()
    on(run, steering, 2)
    assert run.lrs() == [0.2, 0.2]
    steering.undo(applied, 6)
    assert run.lrs() == plain.lrs()
    steering.close()


def test_without_a_value_it_begins_where_it_stands_and_a_state_goes_on() -> None:
    run = Run([sgd()])
    steering = Steering(run)
    steering.apply(SetParam(path=LR, to=0.0, over=10, until=8), 0)
    on(run, steering, 3)
    state = steering.state()
    again = Run([sgd()], done=3)
    for group, lr in zip(again.made[0].param_groups, run.lrs(), strict=True):
        group["lr"] = lr
    other = Steering(again)
    other.load(state)
    assert again.lrs() == run.lrs()
    for _ in range(5):
        assert on(run, steering, 1) == on(again, other, 1)
        assert again.lrs() == run.lrs()
    assert run.lrs()[0] == 0.1


def test_a_state_of_0_2_0_has_neither() -> None:
    run = Run([sgd()])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.5), 0)
    state = steering.state()
    old = {
        "edits": {
            path: {k: v for k, v in row.items() if k not in ("until", "ramp")}
            for path, row in state["edits"].items()
        },
        "knobs": {},
    }
    other = Steering(Run([sgd()]))
    other.load(old)
    assert other.state()["edits"] == state["edits"]


def test_a_tensor_is_written_where_it_is() -> None:
    optimizer = torch.optim.Adam(
        [torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.5), capturable=False, foreach=False
    )
    run = Run([optimizer])
    steering = Steering(run)
    held = optimizer.param_groups[0]["lr"]
    steering.apply(SetParam(path="lr", to=0.25, over=2), 0)
    steering.watch(1)
    assert float(held) == 0.375
    assert optimizer.param_groups[0]["lr"] is held


def test_a_knob_is_the_scripts_again_too_also_in_another_process() -> None:
    box = {"clip": 1.0}

    def knobs() -> dict[str, Knob]:
        def write(value: Any) -> None:
            box["clip"] = value

        return {"gradient_clip_val": Knob(lambda: box["clip"], write, low=0.0, high=10.0)}

    run = Run([sgd()], knobs=knobs())
    steering = Steering(run)
    steering.apply(SetParam(path="gradient_clip_val", value=5.0, until=4), 0)
    state = steering.state()
    box["clip"] = 1.0
    again = Steering(run)
    again.load(state)
    assert box["clip"] == 5.0
    assert again.watch(3) == []
    assert again.watch(4) == [Ended("gradient_clip_val", 5.0, 1.0, 4)]
    assert again.watch(5) == []


def test_what_is_held_in_a_script_follows_a_curve_and_ends() -> None:
    optimizer = sgd()
    steering = Steering(Run([optimizer]), held := Held())
    steering.apply(SetParam(path=LR, to=0.3, over=2, until=4), 0)
    used = []
    for step in range(1, 5):
        steering.watch(step)
        held.put_in(optimizer)
        used.append(optimizer.param_groups[0]["lr"])
        held.take_out()
    assert used == pytest.approx([0.2, 0.3, 0.3, 0.1])


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"value": 0.1, "until": 5}, "until", "from step 5 on; allowed: 6 or later"),
    ({"value": 0.1, "until": 7, "at_step": 7}, "until", "from step 7 on; allowed: 8 or later"),
    ({"to": 0.1}, "over", "without over; it needs both"),
    ({"over": 3}, "to", "without to; it needs both"),
    ({"to": 0.1, "over": 0}, "over", "over 0 steps; allowed: 1 or more"),
    ({"to": 11.0, "over": 3}, "value", "allowed: 0.0 to 10.0"),
    ({"to": 0.1, "over": 3, "mode": "scale"}, "mode", "it replaces"),
    ({"value": 0.1, "mode": "replace"}, "to", "needs to and over"),
    ({"release": True, "until": 9}, "release", "with until; allowed: none"),
]


@pytest.mark.parametrize(("asked", "field", "said"), REFUSED)
def test_what_makes_no_span_is_refused(asked: dict[str, Any], field: str, said: str) -> None:
    run = scheduled()
    steering = Steering(run)
    with pytest.raises(CommandError) as refused:
        steering.check(SetParam(path="lr", **asked), 5)
    assert (refused.value.code, refused.value.field) == (ErrorCode.BAD_PAYLOAD, field)
    assert said in refused.value.detail
    assert steering.state()["edits"] == {}
