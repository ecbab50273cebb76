"""Every option of every optimizer of torch: set, it trains as where the script had set it; else it
is refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.steering.options import FIXED
from otf_core.steering.params import Ended, Steering
from tests.steering.worlds import Run

torch.set_num_threads(1)
STEPS, SET_AT, FREED_AT = 7, 3, 5

# With everything on that has a state of its own, so that it can be put off and on.
MADE: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD, damped": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "SGD, plain": lambda p: optim.SGD(p, lr=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True),
    "Adam, a tensor": lambda p: optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "NAdam": lambda p: optim.NAdam(p, lr=0.1, weight_decay=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.1, weight_decay=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "ASGD": lambda p: optim.ASGD(p, lr=0.1, t0=2.0),
    "Rprop": lambda p: optim.Rprop(p, lr=0.1),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.1, weight_decay=0.01),
    "Muon": lambda p: optim.Muon(p, lr=0.1),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3, max_eval=5),
}
LISTED = {
    "SGD": ["lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize"],
    "Adam": [
        "lr", "weight_decay", "beta1", "beta2", "eps", "amsgrad", "maximize",
        "decoupled_weight_decay",
    ],
    "AdamW": ["lr", "weight_decay", "beta1", "beta2", "eps", "amsgrad", "maximize"],
    "NAdam": [
        "lr", "weight_decay", "beta1", "beta2", "eps", "maximize", "decoupled_weight_decay",
        "momentum_decay",
    ],
    "RAdam": [
        "lr", "weight_decay", "beta1", "beta2", "eps", "maximize", "decoupled_weight_decay",
    ],
    "Adamax": ["lr", "weight_decay", "beta1", "beta2", "eps", "maximize"],
    "Adagrad": ["lr", "weight_decay", "eps", "maximize", "lr_decay"],
    "Adadelta": ["lr", "weight_decay", "eps", "maximize", "rho"],
    "RMSprop": ["lr", "weight_decay", "momentum", "eps", "centered", "maximize", "alpha"],
    "ASGD": ["lr", "weight_decay", "maximize", "alpha", "lambd", "t0"],
    "Rprop": ["lr", "maximize", "eta_minus", "eta_plus", "step_size_min", "step_size_max"],
    "Adafactor": ["lr", "weight_decay", "eps2", "maximize", "beta2_decay", "d"],
    "Muon": ["lr", "weight_decay", "momentum", "eps", "nesterov", "ns_steps"],
    "LBFGS": ["lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"],
}  # fmt: skip
WHERE = {
    "beta1": ("betas", 0), "beta2": ("betas", 1), "eps2": ("eps", 1), "eta_minus": ("etas", 0),
    "eta_plus": ("etas", 1), "step_size_min": ("step_sizes", 0), "step_size_max": ("step_sizes", 1),
}  # fmt: skip
NOT_LATER = {("Rprop", "lr"), ("LBFGS", "history_size"), ("SGD", "dampening")}
NOT_LATER |= {("SGD, damped", "nesterov"), ("SGD, plain", "nesterov")}
NOT_LATER |= {("Adam, a tensor", "amsgrad")}


def rows(name: str) -> list[dict[str, Any]]:
    return Steering(Run([made(name)[1]])).list()


def made(name: str) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(3)
    model = nn.Linear(4, 3, bias=False)
    return model, MADE[name](model.parameters())


def another(row: dict[str, Any]) -> Any:
    value, low, high = row["value"], row["min"], row["max"]
    if row["kind"] == "bool":
        return not value
    if row["kind"] == "int":
        return value + 2
    inside = [value * 0.5, value * 1.25, (low + high) / 2, high / 2]
    return next(v for v in inside if low <= v <= high and v != value)


def write(optimizer: Optimizer, name: str, value: Any) -> None:
    """As a script does."""
    for group in optimizer.param_groups:
        key, index = WHERE.get(name, (name, None))
        if index is not None:
            group[key] = tuple(value if i == index else v for i, v in enumerate(group[key]))
        elif isinstance(group[key], torch.Tensor):
            group[key].fill_(value)
        else:
            group[key] = value


def trained(name: str, at: dict[int, Callable[[Steering, Optimizer], None]]) -> list[Any]:
    """All numbers behind a few steps.

    Args:
        at: what is done when so many steps are done.
    """
    model, optimizer = made(name)
    steering = Steering(Run([optimizer]))
    for step in range(STEPS):
        steering.watch(step)
        if step in at:
            at[step](steering, optimizer)
        batch = torch.randn(8, 4)

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(batch) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    return [_numbers(model.state_dict()), _numbers(state)]


def _numbers(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _numbers(v) for key, v in value.items()}
    return [_numbers(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", LISTED)
def test_what_an_optimizer_has_is_listed_with_kind_and_bounds(name: str) -> None:
    found = rows(name)
    assert [row["path"] for row in found] == LISTED[name]
    for row in found:
        if row["kind"] == "bool":
            assert (row["min"], row["max"], type(row["value"])) == (None, None, bool)
        else:
            assert row["min"] <= row["value"] <= row["max"]
            assert (type(row["value"]) is int) == (row["kind"] == "int")


@pytest.mark.parametrize(("name", "path"), [(n, row["path"]) for n in MADE for row in rows(n)])
def test_an_option_that_is_set_is_the_one_of_a_script_that_has_it(name: str, path: str) -> None:
    row = next(row for row in rows(name) if row["path"] == path)
    value, before = another(row), row["value"]

    def put(steering: Steering, _: Optimizer) -> None:
        done = steering.apply(SetParam(path=path, value=value), SET_AT)
        assert done.new == pytest.approx(value)
        assert type(done.new) is type(value)

    if (name, path) in NOT_LATER:
        with pytest.raises(CommandError) as refused:
            trained(name, {SET_AT: put})
        assert path in refused.value.detail
        return
    theirs = trained(name, {SET_AT: lambda _, o: write(o, path, value)})
    assert trained(name, {SET_AT: put}) == theirs
    untouched = trained(name, {})
    # ASGD's rate is a step behind, LBFGS has no use for its tolerances here.
    assert theirs != untouched

    def release(steering: Steering, _: Optimizer) -> None:
        steering.apply(SetParam(path=path, release=True), FREED_AT)

    for_a_while = trained(
        name,
        {SET_AT: lambda _, o: write(o, path, value), FREED_AT: lambda _, o: write(o, path, before)},
    )
    assert trained(name, {SET_AT: put, FREED_AT: release}) == for_a_while

    def put_and_undo(steering: Steering, optimizer: Optimizer) -> None:
        done = steering.apply(SetParam(path=path, value=value), SET_AT)
        steering.undo(done, SET_AT)
        assert not steering._ledger

    assert trained(name, {SET_AT: put_and_undo}) == untouched


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "LBFGS"])
def test_what_was_set_is_there_again_in_another_process(name: str) -> None:
    asked = {row["path"]: another(row) for row in rows(name)}
    first = Steering(Run([made(name)[1]]))
    for path, value in asked.items():
        first.apply(SetParam(path=path, value=value), SET_AT)
    kept = first.state()
    again = Steering(Run([made(name)[1]]))
    again.load(kept)
    assert {row["path"]: row["value"] for row in again.list()} == asked
    for path in asked:
        again.apply(SetParam(path=path, release=True), SET_AT)
    assert again.list() == rows(name)


def test_a_switch_is_on_until_a_step() -> None:
    model, optimizer = made("Adam")
    steering = Steering(Run([optimizer]))
    steering.apply(SetParam(path="maximize", value=True, until=5), 3)
    assert steering.watch(4) == []
    assert optimizer.param_groups[0]["maximize"] is True
    assert steering.watch(5) == [Ended("optim.0.groups.0.maximize", True, False, 5)]
    assert optimizer.param_groups[0]["maximize"] is False
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("name", "path", "says"),
    [
        ("Adam", "fused", "says how the steps are computed"),
        ("Adam", "optim.0.groups.0.capturable", "says how the steps are computed"),
        ("Adagrad", "initial_accumulator_value", "went into the state"),
        ("AdamW", "decoupled_weight_decay", "sets it anew when it is loaded"),
        ("LBFGS", "line_search_fn", "no number and no switch"),
        ("Muon", "ns_coefficients", "no number and no switch"),
        ("Adam", "betas", "allowed: beta1, beta2"),
        ("Adafactor", "eps", "allowed: eps2"),
        ("Adam", "precision", "a new run with it"),
        ("Adam", "trainer.precision", "a new run with it"),
    ],
)
def test_what_is_fixed_is_refused_by_name_with_the_reason(name: str, path: str, says: str) -> None:
    steering = Steering(Run([made(name)[1]]))
    with pytest.raises(CommandError, match=says) as refused:
        steering.check(SetParam(path=path, value=True), 0)
    assert (refused.value.code, refused.value.field) == (ErrorCode.UNSUPPORTED, "path")
    assert path.rpartition(".")[2] in refused.value.detail


def test_every_option_of_torch_is_either_listed_or_refused_by_name() -> None:
    for name in MADE:
        _, optimizer = made(name)
        steering = Steering(Run([optimizer]))
        listed = {WHERE.get(row["path"], (row["path"], 0))[0] for row in steering.list()}
        for option in optimizer.defaults.keys() - listed:
            with pytest.raises(CommandError) as refused:
                steering.check(SetParam(path=option, value=0.5), 0)
            assert refused.value.code is ErrorCode.UNSUPPORTED, (name, option)


@pytest.mark.parametrize(
    ("optimizer", "path"),
    [
        (lambda p: optim.Adam(p, lr=0.1), "amsgrad"),
        (lambda p: optim.RMSprop(p, lr=0.1), "centered"),
    ],
)
def test_a_switch_without_its_buffer_can_be_put_on_before_the_first_step_only(
    optimizer: Any, path: str
) -> None:
    def run(*, early: bool) -> list[Any]:
        torch.manual_seed(3)
        weight = nn.Parameter(torch.randn(3))
        found = optimizer([weight])
        steering = Steering(Run([found]))
        if early:
            steering.apply(SetParam(path=path, value=True), 0)
        else:
            write(found, path, True)
        for step in range(3):
            weight.grad = torch.randn(3)
            found.step()
            steering.watch(step + 1)
        steering.apply(SetParam(path=path, value=False), 3)
        steering.apply(SetParam(path=path, value=True), 3)  # its buffers are there
        return weight.tolist()

    assert run(early=True) == run(early=False)
    weight = nn.Parameter(torch.randn(3))
    weight.grad = torch.ones(3)
    made_without = optimizer([weight])
    made_without.step()
    steering = Steering(Run([made_without]))
    with pytest.raises(CommandError, match="has no buffer for it; allowed: False") as refused:
        steering.check(SetParam(path=path, value=True), 1)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    steering.apply(SetParam(path=path, value=False), 1)  # as it is


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        ("SGD, plain", "nesterov", True, "momentum 0 and dampening 0"),
        ("SGD, damped", "nesterov", True, "dampening 0.1"),
        ("SGD", "dampening", 0.5, "which has no dampening; allowed: 0"),
        ("SGD", "momentum", 0, "needs a momentum; allowed: above 0"),
        ("Rprop", "step_size_min", 60.0, "a largest step of 50"),
        ("Rprop", "step_size_max", 1e-7, "a least step of 1e-06"),
        ("Adam", "amsgrad", 1, "allowed: False, True"),
        ("Adam", "amsgrad", 0.5, "allowed: False, True"),
        ("LBFGS", "max_iter", 2.5, "a whole number"),
        ("LBFGS", "max_iter", 0, "1 to 10000"),
        ("Adam", "eps", -1e-9, "0.0 to 1.0"),
        ("Adafactor", "d", 0.5, "1.0 to 1000.0"),
        ("Adafactor", "beta2_decay", 0.1, "-10.0 to 0.0"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused(
    name: str, path: str, value: Any, says: str
) -> None:
    _, optimizer = made(name)
    before = [dict(group) for group in optimizer.param_groups]
    steering = Steering(Run([optimizer]))
    for act in (steering.check, steering.apply):
        with pytest.raises(CommandError) as refused:
            act(SetParam(path=path, value=value), 0)
        assert says in refused.value.detail
        assert (refused.value.code, refused.value.field) == (ErrorCode.BAD_PAYLOAD, "value")
    assert [dict(group) for group in optimizer.param_groups] == before


@pytest.mark.parametrize(("name", "path"), [("Adam", "amsgrad"), ("LBFGS", "max_iter")])
def test_a_switch_and_a_count_follow_no_curve(name: str, path: str) -> None:
    with pytest.raises(CommandError) as refused:
        Steering(Run([made(name)[1]])).check(SetParam(path=path, to=1.0, over=5), 0)
    assert refused.value.field == "over"


class Own(Optimizer):
    """A script's own optimizer."""

    def __init__(self, params: Any) -> None:
        super().__init__(
            params,
            {"lr": 0.1, "betas": (0.9, 0.99, 0.999), "trust": 0.01, "lookahead": True, "k": 5},
        )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.sub_(group["lr"] * group["trust"] * group["betas"][2])


def test_of_an_optimizer_of_the_scripts_own_numbers_are_set_and_switches_are_not() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = Own([weight])
    steering = Steering(Run([optimizer]))
    found = {row["path"]: (row["kind"], row["min"], row["max"]) for row in steering.list()}
    assert list(found) == ["lr", "beta1", "beta2", "beta3", "trust"]
    assert found["trust"] == ("float", None, None)
    steering.apply(SetParam(path="trust", value=-3.5), 0)
    steering.apply(SetParam(path="beta3", value=0.5), 0)
    assert optimizer.param_groups[0]["trust"] == -3.5
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99, 0.5)
    for path in ("lookahead", "k"):
        with pytest.raises(CommandError, match="is not torch's"):
            steering.check(SetParam(path=path, value=True), 0)
    with pytest.raises(CommandError, match="any number") as refused:
        steering.check(SetParam(path="trust", value=math.inf), 0)
    assert refused.value.field == "value"


def test_what_a_schedule_has_put_into_the_group_is_its_own() -> None:
    optimizer = optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=9)
    steering = Steering(Run([optimizer], [schedule]))
    for path in ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"):
        assert path in FIXED
        with pytest.raises(CommandError, match="a schedule's own"):
            steering.check(SetParam(path=path, value=0.5), 0)
