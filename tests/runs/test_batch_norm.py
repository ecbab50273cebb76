"""BatchNorm's running statistics are gathered as torch does it, or are as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.batch_norm import recalibrate

BATCHES = [
    torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(5)
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=0.3), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.without = nn.BatchNorm1d(5, track_running_stats=False)
        self.unused = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.without(self.head(self.body(x)))


def used() -> Net:
    net = Net()
    net(BATCHES[0])
    net.unused(torch.randn(9, 3))
    net.eval()
    net.head.train()
    return net


def state(net: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def modes(net: nn.Module) -> list[Any]:
    return [(m.training, getattr(m, "momentum", None)) for m in net.modules()]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def forward(net: nn.Module, batch: Any) -> None:
    net(batch)


def test_the_statistics_are_those_that_torch_gathers() -> None:
    net = used()
    expected = copy.deepcopy(net)
    before, was = state(net), modes(net)
    torch.manual_seed(5)
    update_bn(BATCHES, expected)
    torch.manual_seed(5)
    assert recalibrate(net, BATCHES, forward) == (2, 5)

    found, wanted = state(net), state(expected)
    for name, value in found.items():
        kept = name.startswith("unused")  # torch would leave it with mean 0 and variance 1
        assert torch.equal(value, before[name] if kept else wanted[name]), name
    assert modes(net) == was


def test_they_are_the_mean_over_the_batches() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4))
    recalibrate(net, BATCHES, forward)
    mean = torch.stack([batch.mean(0) for batch in BATCHES]).mean(0)
    var = torch.stack([batch.var(0) for batch in BATCHES]).mean(0)
    assert torch.allclose(net[0].running_mean, mean, atol=1e-6)
    assert torch.allclose(net[0].running_var, var, rtol=1e-5)
    assert net[0].num_batches_tracked.item() == 5


def test_without_such_layers_no_batch_is_asked_for() -> None:
    def never() -> Iterator[Any]:
        raise AssertionError
        yield

    assert recalibrate(nn.Linear(2, 2), never(), forward) == (0, 0)


def stopped(net: nn.Module, batch: Any) -> None:
    net(batch)
    if torch.equal(batch, BATCHES[2]):
        raise ValueError("mine")


def cancelled(done: int) -> None:
    if done == 2:
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, "cancelled")


@pytest.mark.parametrize(
    ("batches", "arguments", "why"),
    [
        ([], {}, "there is no batch"),
        ([BATCHES[0] * float("nan")], {}, "what they gather is not finite"),
        (BATCHES, {"forward": stopped}, "mine"),
        (BATCHES, {"on_batch": cancelled}, "cancelled"),
    ],
)
def test_where_it_fails_all_is_as_it_was(batches: Any, arguments: Any, why: str) -> None:
    net = used()
    before, was = state(net), modes(net)
    with pytest.raises((CommandError, ValueError), match=why):
        recalibrate(net, batches, **{"forward": forward, **arguments})
    assert same(before, state(net))
    assert modes(net) == was


def test_no_gradient_is_left() -> None:
    net = used()
    kept: list[torch.Tensor] = []
    recalibrate(net, BATCHES, lambda net, batch: kept.append(net(batch)))
    assert not any(found.requires_grad for found in kept)
