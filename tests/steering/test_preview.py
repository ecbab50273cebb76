"""What is previewed is what then happens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from otf_core.errors import CommandError
from otf_core.protocol import SetParam
from otf_core.steering.cadence import Cadence, Stepping
from otf_core.steering.params import Steering
from otf_core.steering.preview import preview
from tests.steering.worlds import SCHEDULES, STEPS, Run, adam, sgd

KNOWN = [name for name in SCHEDULES if name not in ("ReduceLROnPlateau", "RestartsByEpoch")]
BEGUN = 3
CHANGES = {
    "none": [],
    "scaled": [SetParam(path="lr", value=0.05)],
    "held, and given back": [SetParam(path="lr", value=0.03, mode="override", until=12)],
    "later": [SetParam(path="lr", mul=0.5, at_step=7)],
    "replaced": [SetParam(path="lr", to=1e-4, over=8, shape="cosine")],
    "replaced later, from a value": [
        SetParam(path="lr", value=0.2, to=0.01, over=5, at_step=6),
        SetParam(path="lr", release=True, at_step=16),
    ],
    "one group": [SetParam(path="optim.0.groups.1.lr", value=0.07, mode="override")],
}


def rates(run: Run) -> dict[str, float]:
    return {f"optim.0.groups.{i}.lr": lr for i, lr in enumerate(run.lrs())}


def lived(run: Run, steering: Steering, changes: list[SetParam]) -> dict[str, list[float]]:
    """What each step then uses."""
    waiting = sorted(changes, key=lambda change: change.at_step or 0)
    found: dict[str, list[float]] = {path: [] for path in rates(run)}
    while run.done < STEPS:
        steering.watch(run.done)
        while waiting and (waiting[0].at_step or 0) <= run.done:
            steering.apply(waiting.pop(0), run.done)
        for path, lr in rates(run).items():
            found[path].append(lr)
        run.step(run.done)
    return found


@pytest.mark.filterwarnings("ignore:Seems like")  # of the deep copy that the test makes
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("name", KNOWN)
def test_a_preview_is_what_then_happens(name: str, changes: str) -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES[name](optimizer)])
    steering = Steering(run)
    for index in range(BEGUN):
        run.step(index)
    weights = [p.clone() for group in optimizer.param_groups for p in group["params"]]
    schedule = copy.deepcopy(run.stepped[0].state_dict())
    torch.manual_seed(4)
    drawn = torch.get_rng_state()
    found = preview(run, steering.state(), CHANGES[changes], steps=STEPS - BEGUN)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert run.stepped[0].state_dict() == schedule
    now = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert found.step == [*range(BEGUN + 1, STEPS + 1)]
    assert (found.ends, found.assumes) == (None, [])
    bare = copy.deepcopy(run)
    assert found.now == lived(bare, Steering(bare), [])
    assert found.then == lived(run, steering, CHANGES[changes])
    steering.close()


def test_an_edit_that_stands_goes_on_in_both_curves() -> None:
    optimizer = adam()
    run = Run([optimizer], [SCHEDULES["CosineAnnealingLR"](optimizer)])
    steering = Steering(run)
    steering.apply(SetParam(path="lr", to=0.5, over=10), 0)
    for index in range(BEGUN):
        run.step(index)
        steering.watch(run.done)
    found = preview(run, steering.state(), [], steps=10)
    assert found.then == found.now
    assert found.then["optim.0.groups.0.lr"] == lived(run, steering, [])["optim.0.groups.0.lr"][:10]
    steering.close()


def test_other_values_than_the_rate_have_curves() -> None:
    optimizer = adam()
    run = Run([optimizer], [SCHEDULES["OneCycleLR"](optimizer)])
    change = SetParam(path="beta1", value=0.5)
    found = preview(run, Steering(run).state(), [change], steps=6)
    assert set(found.then) == {"optim.0.groups.0.beta1", "optim.0.groups.1.beta1"}
    assert found.then["optim.0.groups.0.beta1"][0] == 0.5
    assert found.now["optim.0.groups.0.beta1"][0] == optimizer.param_groups[0]["betas"][0]


def test_a_switch_may_be_set_before_a_preview_and_in_one() -> None:
    run = Run([adam()], [])
    steering = Steering(run)
    steering.apply(SetParam(path="maximize", value=True), 0)
    coming = [SetParam(path="maximize", release=True), SetParam(path="lr", value=0.5)]
    found = preview(run, steering.state(), coming, steps=2)
    assert found.then["optim.0.groups.0.lr"] == [0.5, 0.5]
    assert steering.slots()["optim.0.groups.0.maximize"].raw() is True


def test_a_long_curve_is_thinned_and_bounded() -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES["ExponentialLR"](optimizer)])
    found = preview(run, Steering(run).state(), [], steps=1000, points=100)
    assert found.step == [*range(1, 1001, 10)]
    assert len(found.then["optim.0.groups.0.lr"]) == 100


def test_a_schedule_that_is_over_says_where() -> None:
    optimizer = sgd()
    run = Run([optimizer], [lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=5)])
    found = preview(run, Steering(run).state(), [], steps=20)
    assert found.ends is not None
    assert found.ends["step"] == 6
    assert "5" in found.ends["why"]
    assert found.step == [1, 2, 3, 4, 5, 6][: len(found.step)]


def test_what_waits_for_a_metric_is_said_to_stay() -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES["ReduceLROnPlateau"](optimizer)])
    found = preview(run, Steering(run).state(), [], steps=4)
    assert found.then["optim.0.groups.0.lr"] == [0.1] * 4
    assert found.assumes == ["val_loss is not known beforehand; its schedule stays as it is"]


def test_what_would_be_refused_is_refused() -> None:
    optimizer = sgd()
    run = Run([optimizer], [SCHEDULES["StepLR"](optimizer)])
    with pytest.raises(CommandError, match=r"allowed: 0.0 to 10.0"):
        preview(run, Steering(run).state(), [SetParam(path="lr", value=11)], steps=4)


class WithModel(lr_scheduler.StepLR):
    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, 5)
        self.net = torch.nn.Linear(1, 1)


def test_a_schedule_that_holds_a_model_is_not_copied() -> None:
    optimizer = sgd()
    run = Run([optimizer], [WithModel(optimizer)])
    with pytest.raises(CommandError, match="WithModel cannot be copied: it holds a model as net"):
        preview(run, Steering(run).state(), [], steps=4)


def test_epochs_frequencies_and_accumulation_are_counted() -> None:
    stepping = [Stepping("step", 2), Stepping("epoch", 1), Stepping("epoch", 2)]
    due = Cadence(0, 0, 0, 5, 2, stepping).due()
    # Batches 2, 4 and 5, the last, have a step; every second batch is counted.
    assert [next(due) for _ in range(6)] == [[0], [0], [1], [0], [0], [1, 2]]
    assert next(Cadence(3, 5, 0, 5, 2, stepping).due()) == [0]  # between two epochs
