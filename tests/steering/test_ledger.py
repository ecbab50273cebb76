"""Edits last, and the schedule beneath them goes on bit for bit as if it had never been edited."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from otf_core.errors import CommandError
from otf_core.protocol import SetParam
from otf_core.steering.ledger import Slot
from otf_core.steering.params import Steering
from tests.steering.worlds import SCHEDULES, STEPS, Run, adam, overwritten, sgd

torch.set_num_threads(1)


def scheduled(name: str, **kwargs: Any) -> Run:
    optimizer = sgd(**kwargs)
    return Run([optimizer], [SCHEDULES[name](optimizer)])


def unedited(name: str, steps: int = STEPS) -> list[list[float]]:
    run = scheduled(name)
    lrs = [run.lrs()]
    for index in range(steps):
        run.step(index)
        lrs.append(run.lrs())
    return lrs


def shadows(steering: Steering, run: Run) -> list[float]:
    edits = [steering._ledger.get(Slot(run.made[0], group, "lr")) for group in (0, 1)]
    return [float(edit.shadow) for edit in edits if edit is not None]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("at", [0, 4, 5, 9])
def test_scale_is_the_unedited_schedule_times_the_factor_from_then_on(name: str, at: int) -> None:
    plain = unedited(name)
    run = scheduled(name)
    steering = Steering(run)
    for index in range(at):
        run.step(index)
    asked = 0.0123
    done = steering.apply(SetParam(path="lr", value=asked), at)
    assert done.mode == "scale"
    assert done.old == plain[at]
    assert done.new == [asked, asked] == run.lrs()
    factors = [asked / old for old in plain[at]]
    for index in range(at, STEPS):
        run.step(index)
        expected = [
            asked if own == anchor else own * factor
            for own, anchor, factor in zip(plain[index + 1], plain[at], factors, strict=True)
        ]
        assert run.lrs() == expected
        assert shadows(steering, run) == plain[index + 1]
        assert run.stepped[0].get_last_lr() == expected
        assert steering.watch(index + 1) == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_override_holds_while_the_schedule_goes_on_beneath(name: str) -> None:
    plain = unedited(name)
    run = scheduled(name)
    steering = Steering(run)
    run.step(0)
    steering.apply(SetParam(path="optim.0.groups.1.lr", value=0.007, mode="override"), 1)
    assert run.stepped[0].get_last_lr() == [plain[1][0], 0.007]
    for index in range(1, STEPS):
        run.step(index)
        assert run.lrs() == [plain[index + 1][0], 0.007]
    done = steering.apply(SetParam(path="optim.0.groups.1.lr", mul=2, mode="override"), STEPS)
    assert (done.old, done.new) == (0.007, 0.014)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from([*SCHEDULES]),
    edits=st.dictionaries(
        st.integers(0, STEPS - 1),
        st.tuples(st.floats(1e-5, 5.0), st.sampled_from(["scale", "override"])),
        max_size=4,
    ),
)
def test_edits_of_edits_never_reach_the_schedule(
    name: str, edits: dict[int, tuple[float, Any]]
) -> None:
    plain = unedited(name)
    run = scheduled(name)
    steering = Steering(run)
    last: tuple[int, float, str] | None = None
    for index in range(STEPS):
        if index in edits:
            value, mode = edits[index]
            if mode == "scale" and 0 in plain[index]:
                with pytest.raises(CommandError, match=r"stands at 0\.0"):
                    steering.apply(SetParam(path="lr", value=value, mode=mode), index)
                mode = "override"
            steering.apply(SetParam(path="lr", value=value, mode=mode), index)
            last = (index, value, mode)
            assert run.lrs() == [value, value]
        run.step(index)
        assert steering.watch(index + 1) == []
        own = plain[index + 1]
        if last is None:
            assert run.lrs() == own
            continue
        at, value, mode = last
        assert shadows(steering, run) == own
        if mode == "override":
            assert run.lrs() == [value, value]
        else:
            assert run.lrs() == [
                value if now == then else min(now * (value / then), 10.0)
                for now, then in zip(own, plain[at], strict=True)
            ]


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"])
def test_undo_gives_the_schedule_back_as_it_is_by_then(name: str) -> None:
    plain = unedited(name)
    run = scheduled(name)
    steering = Steering(run)
    first = steering.apply(SetParam(path="lr", value=0.05), 0)
    for index in range(7):
        run.step(index)
    second = steering.apply(SetParam(path="lr", value=0.25, mode="override"), 7)
    steering.undo(second, 7)
    pairs = zip(plain[7], plain[0], strict=True)
    assert run.lrs() == [0.05 if own == then else own * (0.05 / then) for own, then in pairs]
    undone = steering.undo(first, 7)
    assert undone.new == run.lrs() == plain[7]
    assert run.stepped[0].get_last_lr() == plain[7]
    for index in range(7, STEPS):
        run.step(index)
        assert run.lrs() == plain[index + 1]


def test_undo_brings_the_earlier_edit_back_on_the_schedule_as_it_is_by_then() -> None:
    plain = unedited("ExponentialLR")
    run = scheduled("ExponentialLR")
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.5), 0)
    run.step(0)
    second = steering.apply(SetParam(path="lr", value=0.25, mode="override"), 1)
    run.step(1)
    run.step(2)
    expected = [own * (0.5 / then) for own, then in zip(plain[3], plain[0], strict=True)]
    assert steering.undo(second, 3).new == run.lrs() == expected


@pytest.mark.parametrize("tensor", [False, True])
def test_a_scaled_schedule_is_cut_at_the_bound_but_never_below_its_own(tensor: bool) -> None:
    lr = 0.25
    optimizer = adam(lr=torch.tensor(lr) if tensor else lr)
    run = Run([optimizer], [lr_scheduler.LambdaLR(optimizer, lambda step: 4.0**step)])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=1.0), 0)  # times 4
    held = []
    for index in range(4):
        run.step(index)
        held.append(run.lrs()[0])
    assert held == [4.0, 10.0, 16.0, 64.0]


def test_several_schedules_of_one_optimizer_all_work_on_the_shadow() -> None:
    def make() -> Run:
        optimizer = sgd()
        return Run([optimizer], [SCHEDULES["LinearLR"](optimizer), SCHEDULES["StepLR"](optimizer)])

    plain, run = make(), make()
    steering = Steering(run)
    steering.apply(SetParam(path="lr", mul=3.0), 0)
    for index in range(STEPS):
        plain.step(index)
        run.step(index)
        assert shadows(steering, run) == plain.lrs()
        assert run.lrs() == pytest.approx([3 * lr for lr in plain.lrs()])


def test_a_scheduler_inside_another_that_is_also_named_is_not_taken_twice() -> None:
    plain = unedited("ChainedScheduler")
    run = scheduled("ChainedScheduler")
    inner = run.stepped[0]._schedulers[0]
    named = Run(run.made, [*run.stepped, inner])
    steering = Steering(named)
    steering.apply(SetParam(path="lr", value=0.3), 0)
    for index in range(STEPS):
        run.step(index)
        assert shadows(steering, run) == plain[index + 1]
        pairs = zip(plain[index + 1], plain[0], strict=True)
        assert run.lrs() == [0.3 if own == old else own * (0.3 / old) for own, old in pairs]


def test_a_group_that_comes_later_is_not_edited() -> None:
    run = Run([sgd()])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.3), 0)
    run.made[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01})
    run.step(0)
    assert run.lrs() == [0.3, 0.3, 0.01]
    assert steering.watch(1) == []


def test_a_schedule_that_raises_leaves_the_edit_in_force() -> None:
    optimizer = sgd()
    run = Run([optimizer], [lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=3)])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.01, mode="override"), 0)
    for index in range(3):
        run.step(index)
    with pytest.raises(ValueError, match="Tried to step 4 times"):
        run.step(3)
    assert run.lrs() == [0.01, 0.01]
    assert steering.watch(4) == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_edited_scheduler_passes_for_what_it_was(name: str) -> None:
    run = scheduled(name)
    scheduler = run.stepped[0]
    own, keys = type(scheduler), set(vars(scheduler))
    steering = Steering(run)
    assert type(scheduler) is own
    steering.apply(SetParam(path="weight_decay", value=0.1), 0)
    assert type(scheduler) is own  # it does not write weight decay
    steering.apply(SetParam(path="lr", value=0.3), 0)
    taken = type(scheduler)
    assert taken is not own
    assert taken.__bases__ == (own,)
    assert isinstance(scheduler, own)
    said = ("__name__", "__qualname__", "__module__", "__doc__")
    assert [getattr(taken, key) for key in said] == [getattr(own, key) for key in said]
    assert set(vars(scheduler)) == keys
    assert type(copy.deepcopy(scheduler)) is own
    run.step(0)
    steering.close()
    assert type(scheduler) is own


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "MultiStepLR"])
def test_the_state_of_an_edited_scheduler_loads_with_weights_only(name: str) -> None:
    run = scheduled(name)
    Steering(run).apply(SetParam(path="lr", value=0.3), 0)
    run.step(0)
    file = io.BytesIO()
    torch.save(run.stepped[0].state_dict(), file)
    file.seek(0)
    fresh = scheduled(name)
    fresh.stepped[0].load_state_dict(torch.load(file, weights_only=True))
    assert fresh.stepped[0].get_last_lr() == run.stepped[0].get_last_lr()


def test_a_pickled_scheduler_is_of_its_own_class() -> None:
    optimizer = sgd()
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    del optimizer.step  # torch's own wrapper is not picklable
    Steering(Run([optimizer], [scheduler])).apply(SetParam(path="lr", value=0.3), 0)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(scheduler, protocol))
        assert type(again) is lr_scheduler.ExponentialLR
        assert again.last_epoch == scheduler.last_epoch


def test_a_tensor_stays_the_tensor_that_it_was() -> None:
    def make() -> Run:
        optimizer = adam(lr=torch.tensor(0.1))
        return Run([optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.9)])

    plain, run = make(), make()
    live = [group["lr"] for group in run.made[0].param_groups]
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.05), 0)
    factor = 0.05 / float(torch.tensor(0.1))
    for index in range(10):
        plain.step(index)
        run.step(index)
        now = [group["lr"] for group in run.made[0].param_groups]
        assert [a is b for a, b in zip(now, live, strict=True)] == [True, True]
        own = plain.made[0].param_groups[0]["lr"]
        assert torch.equal(now[0], own * factor)
        assert shadows(steering, run) == plain.lrs()
        assert torch.equal(run.stepped[0].get_last_lr()[0], now[0])
        assert run.stepped[0].get_last_lr()[0] is not now[0]
        assert steering.watch(index) == []
    live[0].fill_(0.7)
    assert [lost.found for lost in overwritten(steering, 10)] == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(("make", "key"), [(sgd, "momentum"), (adam, "beta1")])
@pytest.mark.parametrize("mode", ["scale", "override"])
@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_a_cycled_momentum_is_edited_while_its_cycle_goes_on_beneath(
    make: Any, key: str, mode: Any, kind: str
) -> None:
    def cycled() -> Run:
        optimizer = make()
        return Run([optimizer], [SCHEDULES[kind](optimizer)])

    plain, run = cycled(), cycled()
    steering = Steering(run)
    for both in (plain, run):
        for index in range(5):
            both.step(index)
    then = float(Slot(plain.made[0], 0, key).raw())
    asked = 0.999  # low in the cycle: what is left of it would come to more than 1
    done = steering.apply(SetParam(path=key, value=asked, mode=mode), 5)
    assert (done.owner, done.mode, done.until) == ("scheduler", mode, None)
    ceiling = 1.0 if key == "momentum" else 0.999999
    cut = 0
    for index in range(5, STEPS):
        plain.step(index)
        run.step(index)
        own = float(Slot(plain.made[0], 0, key).raw())
        edit = steering._ledger.get(Slot(run.made[0], 0, key))
        assert edit is not None
        assert edit.shadow == own
        scaled = asked if own == then else min(own * (asked / then), ceiling)
        cut += scaled == ceiling
        assert Slot(run.made[0], 0, key).raw() == (scaled if mode == "scale" else asked)
        assert run.lrs() == plain.lrs()
    assert cut > 0
    steering.undo(done, STEPS)
    assert Slot(run.made[0], 0, key).raw() == Slot(plain.made[0], 0, key).raw()


def test_what_the_script_writes_is_the_scripts_and_is_reported_once() -> None:
    run = scheduled("ExponentialLR")
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.3), 0)
    run.made[0].param_groups[1]["lr"] = 0.011
    run.step(0)
    said = overwritten(steering, 1)
    assert [(lost.path, lost.set_to, lost.found, lost.step) for lost in said] == [
        ("optim.0.groups.1.lr", 0.3, 0.011, 1)
    ]
    assert steering.watch(1) == []
    assert run.lrs() == [0.1 * 0.9 * (0.3 / 0.1), 0.011 * 0.9]


def test_a_restored_optimizer_ends_the_edit_and_its_value_stands() -> None:
    run = scheduled("ExponentialLR")
    saved = copy.deepcopy(run.made[0].state_dict())
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.3), 0)
    run.step(0)
    run.made[0].load_state_dict(saved)
    run.step(1)
    assert run.lrs() == [0.1 * 0.9, 0.02 * 0.9]
    assert {lost.path for lost in overwritten(steering, 2)} == {
        "optim.0.groups.0.lr",
        "optim.0.groups.1.lr",
    }


@pytest.mark.parametrize("tensor", [False, True])
def test_a_state_that_is_loaded_goes_on_bit_for_bit(tensor: bool) -> None:
    def make() -> Run:
        optimizer = adam(lr=torch.tensor(0.1) if tensor else 0.1)
        return Run([optimizer], [SCHEDULES["CosineAnnealingLR"](optimizer)])

    run = make()
    steering = Steering(run)
    run.step(0)
    steering.apply(SetParam(path="lr", value=0.3), 1)
    steering.apply(SetParam(path="beta2", value=0.9), 1)
    run.step(1)
    file = io.BytesIO()
    kept = [run.made[0].state_dict(), run.stepped[0].state_dict(), steering.state()]
    torch.save(kept, file)
    again = make()
    file.seek(0)
    of_optimizer, of_scheduler, of_steering = torch.load(file, weights_only=True)
    again.made[0].load_state_dict(of_optimizer)
    again.stepped[0].load_state_dict(of_scheduler)
    anew = Steering(again)
    anew.load(of_steering)
    for index in range(2, STEPS):
        run.step(index)
        again.step(index)
        assert again.lrs() == run.lrs()
        assert anew.watch(index) == steering.watch(index) == []
    assert anew.state() == steering.state()


def test_a_schedule_that_comes_after_the_edit_is_taken_in() -> None:
    run = Run([sgd()])
    steering = Steering(run)
    assert steering.apply(SetParam(path="lr", value=0.3), 0).mode == "override"
    run.stepped = [SCHEDULES["SWALR"](run.made[0])]
    assert steering.watch(1) == []
    for index in range(5):
        run.step(index)
        assert run.lrs() == [0.3, 0.3]
        assert steering.watch(index + 2) == []


def test_a_list_that_a_scheduler_has_given_out_is_not_written_to() -> None:
    plain = unedited("SequentialLR", 1)
    run = scheduled("SequentialLR")
    run.step(0)
    given = run.stepped[0].get_last_lr()
    Steering(run).apply(SetParam(path="lr", value=0.3), 1)
    assert run.stepped[0].get_last_lr() == [0.3, 0.3]
    assert given == run.stepped[0]._schedulers[0].get_last_lr() == plain[1]
