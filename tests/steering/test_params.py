"""What can be steered is listed truly, checked before anything is written, and read back."""

from __future__ import annotations

import math
import warnings
from typing import Any

import msgspec
import pytest
import torch
from torch.optim import SGD, RMSprop, lr_scheduler

from otf_core.errors import CommandError, ErrorCode, LocalProtocolError
from otf_core.protocol import SetParam
from otf_core.steering.knobs import Knob, Value, clip_knob
from otf_core.steering.params import Steering
from tests.steering.worlds import SCHEDULES, Run, adam, overwritten, parameters, sgd

torch.set_num_threads(1)


class Box:
    """A value that a trainer would hold."""

    def __init__(self, value: Value) -> None:
        self.value = value
        self.writes: list[Value] = []

    def read(self) -> Value:
        return self.value

    def write(self, value: Value) -> None:
        self.value = value
        self.writes.append(value)


def one_group(kind: Any = SGD, **kwargs: Any) -> Run:
    return Run([kind(parameters(), **{"lr": 0.1, **kwargs})])


def refusal(run: Run, step: int = 5, **request: Any) -> CommandError:
    """What check says, and that apply says the same and changes nothing."""
    steering = Steering(run)
    before = [dict(group) for o in run.made for group in o.param_groups]
    with pytest.raises(CommandError) as checked:
        steering.check(SetParam(**request), step)
    if "at_step" not in request:
        with pytest.raises(CommandError) as applied:
            steering.apply(SetParam(**request), step)
        assert applied.value.to_wire() == checked.value.to_wire()
    assert [dict(group) for o in run.made for group in o.param_groups] == before
    assert not steering._ledger
    return checked.value


def test_one_group_is_listed_by_plain_names() -> None:
    run = one_group(momentum=0.9, weight_decay=0.01)
    row = {"kind": "float", "pending": None, "owner": "optimizer", "takes_effect": "next step"}
    switch = {**row, "kind": "bool", "value": False, "min": None, "max": None}
    assert Steering(run).list() == [
        {**row, "path": "lr", "value": 0.1, "min": 0.0, "max": 10.0},
        {**row, "path": "weight_decay", "value": 0.01, "min": 0.0, "max": 1.0},
        {**row, "path": "momentum", "value": 0.9, "min": 0.0, "max": 1.0},
        {**row, "path": "dampening", "value": 0.0, "min": 0.0, "max": 1.0},
        {**switch, "path": "nesterov"},
        {**switch, "path": "maximize"},
    ]


def test_several_groups_are_listed_together_and_one_by_one() -> None:
    optimizer = sgd()
    run = Run([optimizer, adam()], [lr_scheduler.ExponentialLR(optimizer, 0.9)])
    waiting = {"lr": {"value": 0.2, "at_step": 9}}
    rows = {row["path"]: row for row in Steering(run).list(waiting)}
    both, first, second = ("lr", "weight_decay"), ("momentum",), ("beta1", "beta2", "eps")
    assert [path for path in rows if path.rpartition(".")[2] in (*both, *first, *second)] == [
        *both, *first, *second,
        *(f"optim.{o}.groups.{g}.lr" for o in (0, 1) for g in (0, 1)),
        *(f"optim.{o}.groups.{g}.weight_decay" for o in (0, 1) for g in (0, 1)),
        *(f"optim.0.groups.{g}.momentum" for g in (0, 1)),
        *(f"optim.1.groups.{g}.beta1" for g in (0, 1)),
        *(f"optim.1.groups.{g}.beta2" for g in (0, 1)),
        *(f"optim.1.groups.{g}.eps" for g in (0, 1)),
    ]  # fmt: skip
    assert rows["lr"]["value"] == [0.1, 0.02, 0.1, 0.1]
    assert rows["lr"]["pending"] == {"value": 0.2, "at_step": 9}
    assert rows["momentum"]["value"] == 0.9
    owners = {path: row["owner"] for path, row in rows.items() if path.endswith(".lr")}
    assert list(owners.values()) == ["scheduler", "scheduler", "optimizer", "optimizer"]
    assert rows["lr"]["owner"] == "scheduler"


def test_the_only_group_can_be_named_in_full() -> None:
    run = one_group()
    done = Steering(run).apply(SetParam(path="optim.0.groups.0.lr", value=0.5), 3)
    assert done.to_wire() == {
        "path": "optim.0.groups.0.lr", "old": 0.1, "new": 0.5, "applied_step": 3,
        "owner": "optimizer", "mode": "override", "until": None,
    }  # fmt: skip


def test_one_beta_is_set_and_the_other_is_left() -> None:
    run = Run([adam()])
    steering = Steering(run)
    assert steering.apply(SetParam(path="beta1", value=0.5), 1).new == [0.5, 0.5]
    steering.apply(SetParam(path="optim.0.groups.1.beta2", value=0.9), 1)
    betas = [group["betas"] for group in run.made[0].param_groups]
    assert betas == [(0.5, 0.999), (0.5, 0.9)]


def test_new_is_read_back_and_not_what_was_asked() -> None:
    run = Run([adam(lr=torch.tensor(0.25))])
    done = Steering(run).apply(SetParam(path="lr", value=0.1), 1)
    single = float(torch.tensor(0.1))
    assert single != 0.1
    assert (done.old, done.new) == ([0.25, 0.25], [single, single])


def test_mul_multiplies_each_group() -> None:
    run = Run([sgd()])
    assert Steering(run).apply(SetParam(path="lr", mul=0.5), 1).new == [0.05, 0.01]


def test_an_unknown_path_is_refused_with_the_nearest_and_all() -> None:
    said = refusal(one_group(), path="learning_rate.weight_decai", value=1.0)
    assert said.code is ErrorCode.NOT_FOUND
    said = refusal(one_group(), path="weight_decai", value=1.0)
    assert (said.code, said.field) == (ErrorCode.NOT_FOUND, "path")
    assert said.allowed == ["lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize"]
    assert said.detail == (
        "'weight_decai' was asked, nearest is 'weight_decay'; allowed: lr, weight_decay, momentum, "
        "dampening, nesterov, maximize."
    )


@pytest.mark.parametrize(
    "path", ["optim.0.groups.1.lr", "optim.1.groups.0.lr", "optim.00.groups.0.lr", "beta1", ""]
)
def test_a_path_that_is_not_there_is_not_found(path: str) -> None:
    assert refusal(one_group(), path=path, value=0.5).code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "low", "high"),
    [("lr", 0.0, 10.0), ("weight_decay", 0.0, 1.0), ("beta1", 0.0, 0.999999),
     ("beta2", 0.0, 0.999999), ("momentum", 0.0, 1.0), ("gradient_clip_val", 0.0, 1000.0)],
)  # fmt: skip
def test_bounds_are_included_and_what_is_outside_is_refused(
    path: str, low: float, high: float
) -> None:
    box = Box(1.0)
    made = sgd() if path == "momentum" else adam()
    run = Run([made], knobs={"gradient_clip_val": clip_knob(box.read, box.write)})
    for outside in (math.nextafter(low, -1), math.nextafter(high, math.inf)):
        said = refusal(run, path=path, value=outside)
        assert (said.code, said.field) == (ErrorCode.BAD_PAYLOAD, "value")
        assert said.allowed == {"min": low, "max": high}
        assert f"{outside}" in said.detail
    for inside in (low, high):
        Steering(run).check(SetParam(path=path, value=inside), 0)
        new = Steering(run).apply(SetParam(path=path, value=inside), 0).new
        assert new in (inside, [inside, inside])
    assert box.writes == ([0.0, 1000.0] if path == "gradient_clip_val" else [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.1", 10**400])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    said = refusal(one_group(), path="lr", value=value)
    assert (said.code, said.field) == (ErrorCode.BAD_PAYLOAD, "value")
    assert said.allowed == {"min": 0.0, "max": 10.0}


def test_a_factor_is_held_to_the_bounds_of_its_result() -> None:
    for mul in (100.5, -1.0, math.nan, math.inf):
        said = refusal(one_group(), path="lr", mul=mul)
        assert (said.code, said.field) == (ErrorCode.BAD_PAYLOAD, "mul")


def test_exactly_one_of_value_and_mul_is_taken() -> None:
    both: dict[str, Any] = {"value": 0.1, "mul": 2.0}
    for request in ({}, both):
        said = refusal(one_group(), path="lr", **request)
        assert (said.code, said.field) == (ErrorCode.BAD_PAYLOAD, "value")


def test_a_step_that_is_done_is_refused() -> None:
    said = refusal(one_group(), step=5, path="lr", value=0.1, at_step=4)
    assert (said.code, said.field, said.allowed) == (
        ErrorCode.BAD_PAYLOAD, "at_step", {"min": 5},
    )  # fmt: skip
    Steering(one_group()).check(SetParam(path="lr", value=0.1, at_step=5), 5)


def test_one_bad_group_keeps_all_from_being_written() -> None:
    run = Run([sgd()])
    assert refusal(run, path="lr", mul=101.0).field == "mul"
    run.made[0].param_groups[0]["lr"] = 0.01
    run.made[0].param_groups[1]["lr"] = 1.0
    assert refusal(run, path="lr", mul=11.0).field == "mul"
    assert run.lrs() == [0.01, 1.0]


@pytest.mark.parametrize("path", ["lr", "weight_decay", "gradient_clip_val"])
def test_scale_needs_a_schedule(path: str) -> None:
    box = Box(1.0)
    run = Run([sgd()], knobs={"gradient_clip_val": clip_knob(box.read, box.write)})
    said = refusal(run, path=path, value=0.1, mode="scale")
    assert (said.code, said.field, said.allowed) == (
        ErrorCode.BAD_PAYLOAD, "mode", ["override"],
    )  # fmt: skip


def test_a_cycle_owns_its_momentum() -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES["OneCycleLR"](optimizer)])
    rows = {row["path"]: row["owner"] for row in Steering(run).list()}
    assert (rows["momentum"], rows["weight_decay"]) == ("scheduler", "optimizer")
    assert refusal(run, path="weight_decay", value=0.5, mode="scale").field == "mode"


def test_a_schedule_that_stands_at_zero_is_overridden() -> None:
    optimizer = sgd()
    run = Run([optimizer], [lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)])
    assert refusal(run, path="lr", value=0.1, mode="scale").field == "mode"
    done = Steering(run).apply(SetParam(path="lr", value=0.1), 0)
    assert (done.old, done.mode, done.owner) == ([0.0, 0.0], "override", "scheduler")
    run.step(0)
    assert run.lrs() == [0.1, 0.1]


def test_after_a_scale_to_zero_the_default_is_to_hold_and_scale_is_still_possible() -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES["ExponentialLR"](optimizer)])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.0), 0)
    run.step(0)
    assert run.lrs() == [0.0, 0.0]
    assert steering.apply(SetParam(path="lr", value=0.2), 1).mode == "override"
    assert steering.apply(SetParam(path="lr", value=0.3, mode="scale"), 1).mode == "scale"
    run.step(1)
    assert run.lrs() == pytest.approx([0.27, 0.27])


def test_groups_that_differ_are_told_apart() -> None:
    first, second = sgd(), sgd()
    run = Run([first, second], [SCHEDULES["StepLR"](second)])
    done = Steering(run).apply(SetParam(path="lr", value=0.1), 0)
    assert done.owner == ["optimizer", "optimizer", "scheduler", "scheduler"]
    assert done.mode == ["override", "override", "scale", "scale"]


def test_nesterov_keeps_a_momentum() -> None:
    said = refusal(one_group(momentum=0.9, nesterov=True), path="momentum", value=0)
    assert (said.code, said.field) == (ErrorCode.BAD_PAYLOAD, "value")
    assert "Nesterov" in said.detail
    done = Steering(one_group(momentum=0.9)).apply(SetParam(path="momentum", value=0), 0)
    assert done.new == 0.0


def test_an_rmsprop_that_ran_without_momentum_gets_none() -> None:
    run = one_group(RMSprop)
    for parameter in run.made[0].param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    Steering(run).check(SetParam(path="momentum", value=0.5), 0)  # its buffers are not made yet
    run.step(0)
    assert refusal(run, path="momentum", value=0.5).code is ErrorCode.UNSUPPORTED
    Steering(run).apply(SetParam(path="momentum", value=0), 1)
    run.step(1)


def test_groups_that_share_a_tensor_are_set_together_only() -> None:
    run = Run([adam(lr=torch.tensor(0.1))])
    assert run.made[0].param_groups[0]["lr"] is run.made[0].param_groups[1]["lr"]
    said = refusal(run, path="optim.0.groups.0.lr", value=0.2)
    assert (said.code, said.allowed) == (ErrorCode.UNSUPPORTED, ["lr"])
    assert Steering(run).apply(SetParam(path="lr", mul=2.0), 0).new == pytest.approx([0.2, 0.2])


def test_a_check_does_not_read_a_device() -> None:
    run = one_group()
    run.made[0].param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    steering = Steering(run)
    with pytest.raises(RuntimeError):
        steering.list()  # a meta tensor raises when it is read
    assert steering.list(may_wait=False)[0]["value"] is None
    steering.check(SetParam(path="lr", mul=500.0), 0)
    steering.check(SetParam(path="lr", value=0.2), 0)
    with pytest.raises(CommandError):
        steering.check(SetParam(path="lr", value=10.5), 0)


def test_a_step_replaced_on_the_instance_is_refused_in_words() -> None:
    optimizer = sgd()
    scheduler = SCHEDULES["StepLR"](optimizer)
    scheduler.step = scheduler.step
    steering = Steering(Run([optimizer], [scheduler]))
    with pytest.raises(CommandError) as refused:
        steering.apply(SetParam(path="lr", value=0.3), 0)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert Run([optimizer]).lrs() == [0.1, 0.02]


def test_a_knob_of_the_trainer_is_set_watched_and_put_back() -> None:
    box = Box(None)
    run = Run([sgd()], knobs={"gradient_clip_val": clip_knob(box.read, box.write)})
    steering = Steering(run)
    assert steering.list()[-1] == {
        "path": "gradient_clip_val", "kind": "float", "value": None, "pending": None,
        "min": 0.0, "max": 1000.0, "owner": "trainer", "takes_effect": "next step",
    }  # fmt: skip
    assert refusal(run, path="gradient_clip_val", mul=2.0).field == "mul"
    done = steering.apply(SetParam(path="gradient_clip_val", value=0.5), 2)
    assert (done.old, done.new, done.owner, done.mode) == (None, 0.5, "trainer", "override")
    steering.apply(SetParam(path="gradient_clip_val", value=0.5), 2)
    assert box.writes == [0.5]
    assert steering.watch(3) == []
    steering.undo(done, 3)
    assert box.value is None
    steering.apply(SetParam(path="gradient_clip_val", value=0.5), 4)
    box.value = 0.25
    assert [(o.path, o.set_to, o.found, o.step) for o in overwritten(steering, 5)] == [
        ("gradient_clip_val", 0.5, 0.25, 5)
    ]
    assert steering.watch(6) == []


def test_knobs_of_other_kinds_take_their_kind_only() -> None:
    boxes = {"n": Box(2), "on": Box(False), "how": Box("norm")}
    run = Run(
        [],
        knobs={
            "n": Knob(boxes["n"].read, boxes["n"].write, 1, 8, kind="int"),
            "on": Knob(boxes["on"].read, boxes["on"].write, kind="bool"),
            "how": Knob(
                boxes["how"].read, boxes["how"].write, kind="enum", choices=("norm", "value")
            ),
        },
    )
    for path, bad in (("n", 2.5), ("n", 9), ("on", 1), ("on", "on"), ("how", "none"), ("how", 1)):
        assert refusal(run, path=path, value=bad).field == "value"
    for path in ("on", "how"):
        assert refusal(run, path=path, mul=2.0).field == "mul"
    steering = Steering(run)
    for path, good in (("n", 4.0), ("on", True), ("how", "value")):
        steering.apply(SetParam(path=path, value=good), 0)
    assert [box.value for box in boxes.values()] == [4, True, "value"]
    assert type(boxes["n"].value) is int
    assert steering.list()[-1]["choices"] == ["norm", "value"]


def test_undo_of_what_the_script_wrote_since_is_refused() -> None:
    run = Run([sgd()])
    steering = Steering(run)
    done = steering.apply(SetParam(path="weight_decay", value=0.1), 0)
    run.made[0].param_groups[1]["weight_decay"] = 0.5
    with pytest.raises(CommandError) as refused:
        steering.undo(done, 1)
    assert refused.value.code is ErrorCode.NOT_ALLOWED_NOW
    assert run.made[0].param_groups[1]["weight_decay"] == 0.5


def test_a_state_of_another_run_is_refused_and_changes_nothing() -> None:
    steering = Steering(Run([sgd()]))
    steering.apply(SetParam(path="lr", value=0.3), 0)
    kept = steering.state()
    with pytest.raises(LocalProtocolError, match=r"optim\.0\.groups\.1\.lr"):
        Steering(one_group()).load(kept)


def test_a_request_comes_as_the_wire_has_it() -> None:
    asked = msgspec.json.decode(b'{"path": "lr", "value": 1}', type=SetParam)
    assert Steering(one_group()).apply(asked, 0).new == 1.0


@pytest.mark.parametrize("name", [None, "OneCycleLR", "CosineAnnealingLR", "SequentialLR"])
@pytest.mark.parametrize("make", [sgd, adam])
def test_setting_everything_to_its_present_value_changes_no_bit(make: Any, name: str) -> None:
    def train(*, steered: bool) -> list[Any]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = make()
        optimizer.param_groups.clear()
        for layer in (0, 2):
            optimizer.add_param_group({"params": [*model[layer].parameters()]})
        schedules = [_schedule(name, optimizer)] if name else []
        run = Run([optimizer], schedules)
        steering = Steering(run)
        tape: list[Any] = []
        for step in range(50):
            if steered and step % 7 == 0:
                for row in steering.list():
                    if row["path"].startswith("optim."):
                        steering.apply(SetParam(path=row["path"], value=row["value"]), step)
                assert steering.watch(step) == []
            batch = torch.randn(16, 4)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            run.step(step)
            tape.append(run.lrs())
        return [
            *tape,
            *(p.tolist() for p in model.parameters()),
            *(s.tolist() for s in map(torch.as_tensor, _state(optimizer))),
        ]

    assert train(steered=True) == train(steered=False)


def _schedule(name: str, optimizer: Any) -> Any:
    if name == "OneCycleLR":
        return lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=60)
    with warnings.catch_warnings():
        return SCHEDULES[name](optimizer)


def _state(optimizer: Any) -> list[Any]:
    return [
        value for state in optimizer.state.values() for value in state.values() if value is not None
    ]
