"""A held value is in the optimizer's step and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from otf_core.errors import CommandError
from otf_core.protocol import SetParam
from otf_core.script.held import Held
from otf_core.steering.params import Steering
from tests.steering.test_ledger import scheduled, unedited
from tests.steering.worlds import SCHEDULES, STEPS, Run, parameters, sgd

torch.set_num_threads(1)


class Steps:
    """What every optimizer of the process found in its groups while it stepped."""

    def __init__(self, held: Held) -> None:
        self.used: list[dict[str, Any]] = []
        self._held = held
        self._handles = (
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(lambda *_: held.take_out()),
        )

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._held.put_in(optimizer)
        for group in optimizer.param_groups:
            own = {k: v for k, v in group.items() if k != "params"}
            self.used.append({k: float(v) if k == "lr" else v for k, v in own.items()})

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def lrs(self, groups: int) -> list[list[float]]:
        found = [used["lr"] for used in self.used]
        return [found[n : n + groups] for n in range(0, len(found), groups)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("mode", ["override", "scale"])
def test_a_schedule_never_sees_what_is_held(name: str, mode: Any) -> None:
    plain = unedited(name)
    run, held = scheduled(name), Held()
    steering = Steering(run, held)
    with Steps(held) as steps:
        for index in range(STEPS):
            if index == 4:
                steering.apply(SetParam(path="lr", value=0.007, mode=mode), index)
            if index == 9:
                released = steering.apply(SetParam(path="lr", release=True), index)
                assert released.new == plain[index]
            run.step(index)
            assert run.lrs() == plain[index + 1]
            assert run.stepped[0].get_last_lr() == plain[index + 1] or name == "ReduceLROnPlateau"
            assert steering.watch(index + 1) == []
        used = steps.lrs(2)
    assert used[:4] == plain[:4]
    assert used[9:] == plain[9:-1]
    factors = [0.007 / own for own in plain[4]]
    for index in range(4, 9):
        scaled = [
            0.007 if own == anchor else own * factor
            for own, anchor, factor in zip(plain[index], plain[4], factors, strict=True)
        ]
        assert used[index] == ([0.007, 0.007] if mode == "override" else scaled)


def test_what_the_script_writes_by_hand_is_scaled_too_and_is_its_own_again_after_release() -> None:
    optimizer = SGD(parameters(), lr=1)
    run, held = Run([optimizer]), Held()
    steering = Steering(run, held)
    with Steps(held) as steps:
        steering.apply(SetParam(path="lr", value=0.5, mode="scale"), 0)
        for lr in (1, 4, 2):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] is lr  # the very object: an int stays one
        [row] = [row for row in steering.list() if row["path"] == "lr"]
        assert (row["value"], row["script"]) == (1.0, 2.0)
        steering.apply(SetParam(path="lr", release=True), 3)
        optimizer.step()
        assert [used["lr"] for used in steps.used] == [0.5, 2.0, 1.0, 2.0]


def test_without_a_mode_a_value_is_held() -> None:
    run = scheduled("CosineAnnealingLR")
    assert Steering(run, Held()).apply(SetParam(path="lr", value=0.5), 0).mode == "override"


def test_a_tensor_keeps_its_address_and_gets_its_own_value_back() -> None:
    lr = torch.tensor(0.1)
    first, second = parameters()
    optimizer = Adam([{"params": [first]}, {"params": [second]}], lr=lr)
    for group in optimizer.param_groups:
        group["lr"] = lr  # one tensor for both
    held = Held()
    Steering(Run([optimizer]), held).apply(SetParam(path="lr", value=0.5), 0)
    with Steps(held) as steps:
        optimizer.step()
        assert [used["lr"] for used in steps.used] == [0.5, 0.5]
    assert lr == torch.tensor(0.1)
    assert all(group["lr"] is lr for group in optimizer.param_groups)


def test_both_betas_are_held_and_are_the_script_s_own_object_again() -> None:
    optimizer = Adam(parameters(), lr=0.1, betas=(0.9, 0.99))
    betas = optimizer.param_groups[0]["betas"]
    held = Held()
    steering = Steering(Run([optimizer]), held)
    steering.apply(SetParam(path="beta1", value=0.5), 0)
    steering.apply(SetParam(path="beta2", value=0.6), 0)
    with Steps(held) as steps:
        optimizer.step()
        assert steps.used[0]["betas"] == (0.5, 0.6)
    assert optimizer.param_groups[0]["betas"] is betas


class Around(Optimizer):
    """Steps another optimizer inside its step and shares its groups, as SAM does."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.inner.step()


def test_what_two_nested_optimizers_share_is_scaled_once() -> None:
    inner = SGD(parameters(), lr=0.1)
    outer = Around(inner)
    held = Held()
    steering = Steering(Run([outer, inner]), held)
    steering.apply(SetParam(path="lr", mul=0.5, mode="scale"), 0)
    with Steps(held) as steps:
        outer.step()
        assert [used["lr"] for used in steps.used] == [0.05, 0.05]
    assert inner.param_groups[0]["lr"] == 0.1


def test_what_the_optimizer_itself_writes_in_its_step_stays() -> None:
    class Own(SGD):
        def step(self, closure: Any = None) -> None:
            self.param_groups[0]["lr"] = 0.33

    optimizer = Own(parameters(), lr=0.1)
    held = Held()
    Steering(Run([optimizer]), held).apply(SetParam(path="lr", value=0.5), 0)
    with Steps(held):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.33


def test_what_is_held_goes_into_a_checkpoint_and_comes_back() -> None:
    optimizer = sgd()
    held = Held()
    steering = Steering(Run([optimizer]), held)
    steering.apply(SetParam(path="lr", value=0.5), 0)
    state = steering.state()
    steering.apply(SetParam(path="weight_decay", value=0.1), 0)
    steering.load(state)
    assert steering.state() == state
    with Steps(held) as steps:
        optimizer.step()
        assert [used["lr"] for used in steps.used] == [0.5, 0.5]
        assert [used["weight_decay"] for used in steps.used] == [0, 0]


def test_a_set_and_a_release_are_undone() -> None:
    run, held = scheduled("StepLR"), Held()
    steering = Steering(run, held)
    first = steering.apply(SetParam(path="lr", value=0.5), 0)
    run.step(0)
    released = steering.apply(SetParam(path="lr", release=True), 1)
    steering.undo(released, 1)
    assert [float(held.used(slot)) for slot in held] == [0.5, 0.5]
    steering.undo(first, 1)
    assert not held
    with pytest.raises(CommandError):
        steering.check(SetParam(path="lr", release=True), 1)


def test_a_switch_and_one_of_several_are_in_the_step_only() -> None:
    adam, rprop = Adam(parameters(), lr=0.1), torch.optim.Rprop(parameters(), lr=0.1)
    run, held = Run([adam, rprop]), Held()
    steering = Steering(run, held)
    steering.apply(SetParam(path="optim.0.groups.0.maximize", value=True), 0)
    steering.apply(SetParam(path="step_size_max", value=2.0, until=2), 0)
    row = next(r for r in steering.list() if r["path"] == "step_size_max")
    assert (row["value"], row["script"]) == (2.0, 50.0)
    with Steps(held) as steps:
        for step in range(3):
            steering.watch(step)
            run.step(step)
            assert adam.param_groups[0]["maximize"] is False
            assert rprop.param_groups[0]["step_sizes"] == (1e-6, 50)
    assert [used["maximize"] for used in steps.used] == [True, False] * 3
    largest = [used["step_sizes"][1] for used in steps.used if "step_sizes" in used]
    assert largest == [2.0, 2.0, 50]
    again = Steering(run, Held())
    again.load(steering.state())
    assert next(r for r in again.list() if r["path"] == "optim.0.groups.0.maximize")["value"]
