"""Planted NaN and Inf, each found where it is; norms and steps beside those of a real step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.health import numerics
from otf_core.health.spikes import spikes
from otf_core.health.updates import ratio_of
from tests.health.subjects import Plain, budget, cross_entropy, loader, net, trained


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-2)


def test_a_healthy_training_has_nothing() -> None:
    model = net(nn.BatchNorm1d(5), nn.ReLU())
    subject = Plain(model, optimizer=adam(model))
    trained(subject)
    found = numerics.check(subject, budget())
    assert found.ok
    assert found.fields["problems"] == []
    assert found.fields["origin"] is None
    assert found.text.startswith("No NaN, no Inf in 33 tensors.")


def test_a_nan_in_a_weight_is_named_and_so_is_where_it_comes_from() -> None:
    model = net(nn.ReLU(), nn.Linear(5, 5))
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    found = numerics.check(Plain(model, optimizer=adam(model)), budget())
    assert not found.ok
    first = found.fields["problems"][0]
    assert (first["what"], first["name"], first["layer"]) == ("parameter", "2.weight", "2")
    assert (first["nan"], first["inf"], first["numel"]) == (1, 0, 25)
    origin = found.fields["origin"]
    assert (origin["layer"], origin["kind"]) == ("2", "Linear")
    assert origin["because"] == "its weight is not finite"
    assert "First not finite: 2 (Linear), its weight is not finite." in found.text


class Overflows(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.abs().add(1).mul(1e38).mul(1e38)


def test_a_layer_that_makes_an_inf_of_what_is_finite_is_the_origin() -> None:
    found = numerics.check(Plain(net(Overflows(), nn.Linear(5, 5))), budget())
    assert found.fields["origin"] == {
        "layer": "1",
        "kind": "Overflows",
        "because": "it made it of an input and parameters that are finite",
    }


def test_a_function_between_the_layers_and_the_data_are_told_apart() -> None:
    def divides(module: Any, batch: Any) -> Any:
        return cross_entropy(module, (batch[0] / 0.0 * 0.0, batch[1]))

    found = numerics.check(Plain(net(), loss=divides), budget())
    assert found.fields["origin"]["layer"] == "0"
    assert "its input was not finite already" in found.fields["origin"]["because"]
    data = [(torch.full((2, 6), torch.inf), torch.tensor([0, 1]))]
    found = numerics.check(Plain(net(), data), budget())
    assert found.fields["origin"]["layer"] == "batch"


def test_a_loss_of_outputs_that_are_finite_is_the_origin() -> None:
    found = numerics.check(Plain(net(), loss=lambda m, batch: m(batch[0]).sum() / 0.0), budget())
    assert found.fields["origin"]["layer"] == "loss"
    assert found.fields["loss"] is None


def test_a_gradient_that_is_not_finite_is_found_on_the_way_back() -> None:
    class Root(nn.Module):
        def forward(self, x: Any) -> Any:
            return (x * 0).sqrt() + x

    found = numerics.check(Plain(net(Root())), budget())
    assert found.fields["origin"] is None
    names = [row["name"] for row in found.fields["problems"]]
    assert set(names) == {"0.weight", "0.bias"}
    assert {row["what"] for row in found.fields["problems"]} == {"gradient of this batch"}


def test_what_the_run_holds_is_looked_through() -> None:
    model = net(nn.BatchNorm1d(5))
    subject = Plain(model, optimizer=adam(model))
    trained(subject)
    [optimizer] = subject.optimizers.values()
    with torch.no_grad():
        model[1].running_var[0] = torch.inf
        assert model[2].weight.grad is not None
        model[2].weight.grad[0, 0] = torch.nan
        optimizer.state[model[0].bias]["exp_avg"][2] = -torch.inf
    found = numerics.check(subject, budget())
    assert [(row["what"], row["name"]) for row in found.fields["problems"]] == [
        ("buffer", "1.running_var"),
        ("gradient", "2.weight"),
        ("optimizer state exp_avg", "0.bias"),
    ]


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "adam, one by one": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam, lr in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_update_is_what_the_next_step_really_does(name: str, steps: int) -> None:
    model = net(nn.ReLU())
    optimizer = OPTIMIZERS[name](model.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a step of its own into the instance
    subject = Plain(model, optimizer=optimizer)
    trained(subject, steps)
    subject.loss_of(next(subject.batches())).backward()
    for each in model.parameters():
        if steps:
            each.grad.mul_(0.5)  # type: ignore[union-attr]
    before = copy.deepcopy(subject.digest())
    found = {place: ratio_of(model[place].parameters(), [optimizer]) for place in (0, 2)}
    assert subject.digest() == before
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for place, own in ((0, slice(0, 2)), (2, slice(2, 4))):
        pairs = list(zip(model[place].parameters(), weights[own], strict=True))
        change = torch.cat([(p.detach() - w).flatten() for p, w in pairs]).double().norm()
        weight = torch.cat([w.flatten() for _, w in pairs]).double().norm()
        row = found[place]
        assert not row["estimate"]
        assert row["update_norm"] == pytest.approx(float(change), rel=1e-5)
        assert row["weight_norm"] == pytest.approx(float(weight), rel=1e-5)
        assert row["ratio"] == pytest.approx(float(change / weight), rel=1e-5)


def test_a_scaled_loss_gives_the_same_numbers() -> None:
    model = net()
    subject = Plain(model, optimizer=adam(model))
    plain = numerics.check(subject, budget()).fields["layers"]
    subject.loss_scale = 1024.0
    scaled = numerics.check(subject, budget()).fields["layers"]
    assert [row["layer"] for row in scaled] == [row["layer"] for row in plain]
    for a, b in zip(scaled, plain, strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
        assert a["ratio"] == pytest.approx(b["ratio"], rel=1e-4)


def test_an_overflow_of_the_scaled_loss_says_that_it_is_one() -> None:
    subject = Plain(net())
    subject.loss_scale = 1e38
    found = numerics.check(subject, budget())
    assert {row["what"] for row in found.fields["problems"]} <= {
        "gradient of this batch, times 1e+38"
    }


def test_behind_the_limit_no_step_of_a_further_layer_is_looked_at() -> None:
    times = iter([0.0, 0.0, *[99.0] * 99])
    found = numerics.check(Plain(net()), budget(limit_s=10.0, clock=lambda: next(times)))
    assert (found.fields["layers"], found.fields["all_layers_seen"]) == ([], False)
    assert "For want of time only 0 layers were looked at." in found.text


class Own(torch.optim.SGD):
    """Nobody knows what else it changes."""

    stepped = 0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.stepped += 1
        return super().step(closure)


@pytest.mark.parametrize("kind", [Own, torch.optim.LBFGS])
def test_an_optimizer_that_cannot_be_stepped_on_copies_is_estimated(kind: Any) -> None:
    model = net()
    optimizer = kind(model.parameters(), lr=0.5)
    found = numerics.check(Plain(model, optimizer=optimizer), budget())
    assert getattr(optimizer, "stepped", 0) == 0
    for row in found.fields["layers"]:
        assert row["estimate"]
        assert row["update_norm"] == pytest.approx(0.5 * row["grad_norm"], rel=1e-5)
    assert "(estimate)" in found.text


def test_a_step_that_changes_much_is_an_issue_and_the_first_told() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 1e-4}, {"params": model[1].parameters()}]
    found = numerics.check(Plain(model, optimizer=torch.optim.Adam(groups, lr=0.5)), budget())
    assert not found.ok
    assert found.fields["layers"][0]["layer"] == "1"
    assert found.fields["layers"][0]["ratio"] > 0.1
    assert len(numerics.check(Plain(model), budget(), sample_layers=1).fields["layers"]) == 1


def test_a_parameter_that_is_trained_and_has_no_gradient_is_told() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Linear(6, 3) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x: Any) -> Any:
            return self.used(x)

    found = numerics.check(Plain(Unused()), budget())
    assert found.fields["without_gradient"] == ["unused.weight", "unused.bias"]


def test_where_no_step_can_be_run_the_rest_is_found() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    subject = Plain(model)
    subject.why_no_step = "Net steps its optimizers by hand"
    found = numerics.check(subject, budget())
    assert found.fields["problems"][0]["name"] == "0.bias"
    assert found.fields["origin"] is None
    assert found.text.endswith("No batch was run: Net steps its optimizers by hand.")


def steady(n: int = 60) -> list[tuple[int, float]]:
    return [(step, 1 + 0.01 * (step % 7)) for step in range(n)]


def test_a_spike_stands_out_and_a_slope_does_not() -> None:
    assert spikes(steady()) == []
    assert spikes([(s, 10.0 * 0.97**s) for s in range(300)]) == []
    [found] = spikes([*steady(), (60, 3.0), (61, 1.0)])
    assert (found["step"], found["loss"]) == (60, 3.0)
    median, mad = 1.03, 0.02
    assert found["z"] == pytest.approx(0.6745 * (3 - median) / mad, rel=1e-6)


def test_too_few_losses_say_nothing_and_a_constant_one_may_move_a_little() -> None:
    assert spikes([*steady(9), (9, 99.0)]) == []
    assert spikes([*((s, 1.0) for s in range(20)), (20, 1.05)]) == []
    assert [row["step"] for row in spikes([*((s, 1.0) for s in range(20)), (20, 1.1)])] == [20]


def test_a_loss_that_is_not_finite_is_one_and_no_part_of_what_follows() -> None:
    found = spikes([*steady(20), (20, float("nan")), (21, float("inf")), (22, 1.0)])
    assert found == [{"step": 20, "loss": None, "z": None}, {"step": 21, "loss": None, "z": None}]


def test_a_spike_is_an_issue_while_it_is_recent() -> None:
    for after, ok in ((10, False), (150, True)):
        losses = [*steady(), (60, 3.0), *((61 + i, 1.03) for i in range(after))]
        found = numerics.check(Plain(net(), history=losses), budget())
        assert (found.ok, len(found.fields["spikes"])) == (ok, 1)
    assert "step 60" in found.text


def test_a_batch_that_is_skipped_and_a_loader_without_any_are_no_fault() -> None:
    assert numerics.check(Plain(net(), loss=lambda *_: None), budget()).ok
    assert numerics.check(Plain(net(), []), budget()).ok
    assert numerics.check(Plain(net(), loader(0)), budget()).ok
