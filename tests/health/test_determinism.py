"""Modules that give other numbers the second time, each found by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from otf_core.health import determinism
from otf_core.health.budget import CancelledError
from tests.health.subjects import Plain, budget, net


class Draws(nn.Module):
    """From a generator that nobody seeds."""

    def forward(self, x: Any) -> Any:
        return x * float(1 + np.random.default_rng().random())


class DrawsBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        return grad * float(np.random.default_rng().normal())


class Back(nn.Module):
    def forward(self, x: Any) -> Any:
        return DrawsBack.apply(x)


class Remembers(nn.Module):
    """Another number at each call, by state that is the run's, and is put back."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.generator = torch.Generator().manual_seed(4)
        self.register_buffer("mean", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Any) -> Any:
        self.calls += 1
        with torch.no_grad():
            self.mean.add_(1)
            self.scale.data.mul_(1.5)
        noise = torch.randn(x.shape, generator=self.generator)
        return x * self.calls * self.mean * self.scale + noise


def test_what_is_random_by_its_seed_is_the_same() -> None:
    found = determinism.check(Plain(net(nn.Dropout(), nn.BatchNorm1d(5), Remembers())), budget())
    assert found.ok
    assert found.fields["equal"]
    assert found.text == "Twice the same, bit for bit: loss, 6 gradients."
    assert found.fields["advice"] == []


def test_the_first_module_that_differs_is_named() -> None:
    found = determinism.check(Plain(net(nn.ReLU(), Draws(), nn.ReLU(), Draws())), budget())
    assert not found.ok
    fields = found.fields
    assert (fields["first_module"], fields["first_kind"]) == ("2", "Draws")
    assert not fields["loss_equal"]
    assert "First to differ: the output of 2 (Draws)." in found.text
    assert fields["advice"][-1].startswith("A module that draws from a generator")
    assert "torch.use_deterministic_algorithms(True)" in found.text


def test_a_gradient_that_differs_alone_is_named_from_the_back() -> None:
    found = determinism.check(Plain(net(nn.Linear(5, 5), Back(), nn.Linear(5, 5))), budget())
    fields = found.fields
    assert not found.ok
    assert (fields["loss_equal"], fields["first_module"]) == (True, None)
    assert fields["first_gradient"] in ("1.weight", "1.bias")
    assert set(fields["gradients_differing"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_loss_that_differs_alone_is_found() -> None:
    def loss(module: Any, batch: Any) -> Any:
        return module(batch[0]).sum() + np.random.default_rng().normal()

    found = determinism.check(Plain(net(), loss=loss), budget())
    assert not found.ok
    assert (found.fields["first_module"], found.fields["gradients_differing"]) == (None, [])


def test_a_batch_that_is_changed_in_place_is_the_same_the_second_time() -> None:
    def loss(module: Any, batch: Any) -> Any:
        batch[0].add_(1)
        return module(batch[0]).square().sum()

    assert determinism.check(Plain(net(), loss=loss), budget()).ok


def test_a_switch_that_is_set_is_not_proposed() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        found = determinism.check(Plain(net(Draws())), budget())
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.fields["deterministic_algorithms"]
    assert "use_deterministic_algorithms" not in found.text


def test_on_cuda_the_switches_of_its_libraries_are_proposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    told = " ".join(determinism.helps(torch.device("cuda")))
    assert "cudnn.benchmark = False" in told
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in told
    assert "cudnn" not in " ".join(determinism.helps(torch.device("cpu")))


def test_behind_the_limit_modules_are_not_looked_at_and_it_is_said() -> None:
    times = iter([0.0, *[99.0] * 99])
    found = determinism.check(Plain(net()), budget(limit_s=10.0, clock=lambda: next(times)))
    assert not found.fields["all_modules_seen"]
    assert "For want of time only 0 outputs" in found.text


def test_nothing_to_compare_is_said() -> None:
    assert (
        "skipped the batch" in determinism.check(Plain(net(), loss=lambda *_: None), budget()).text
    )
    assert "no batch" in determinism.check(Plain(net(), []), budget()).text


def test_it_is_cancelled_between_the_two() -> None:
    asked = iter([False, False, True])
    with pytest.raises(CancelledError):
        determinism.check(Plain(net()), budget(cancelled=lambda: next(asked)))
