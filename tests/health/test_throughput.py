"""Loader-bound or compute-bound: planted by a clock that only what is planted moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from otf_core.errors import CommandError
from otf_core.health import throughput
from otf_core.health.throughput import Loading, Timings, figures
from tests.health.subjects import FEATURES, Plain, budget, cross_entropy, net


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Slow(Dataset[Any]):
    """Each sample takes a while, on the clock."""

    def __init__(self, clock: Clock, sample_s: float, n: int = 64) -> None:
        self.clock, self.sample_s, self.n = [clock], sample_s, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        self.clock[0].now_s += self.sample_s
        return torch.randn(FEATURES), i % 3


class Ticks(torch.autograd.Function):
    """Passes on, and takes a while on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock, back_s: float) -> torch.Tensor:
        ctx.clock, ctx.back_s = clock, back_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        ctx.clock.now_s += ctx.back_s
        return grad, None, None


def subject(
    clock: Clock, sample_s: float, forward_s: float, back_s: float = 0.0, **loader: Any
) -> Plain:
    def loss(module: Any, batch: Any) -> Any:
        clock.now_s += forward_s
        return Ticks.apply(cross_entropy(module, batch), clock, back_s)

    return Plain(net(), DataLoader(Slow(clock, sample_s), batch_size=8, **loader), loss=loss)


def checked(steps: int = 3, cores: int = 8, **kwargs: Any) -> Any:
    clock = Clock()
    return throughput.check(subject(clock, **kwargs), budget(steps, clock=clock), cores=cores)


def test_a_slow_data_set_is_found_with_what_would_help() -> None:
    found = checked(sample_s=0.010, forward_s=0.010, back_s=0.020)
    fields = found.fields
    assert not found.ok
    assert fields["bound"] == "loader"
    assert fields["fetch_batch_ms_med"] == pytest.approx(80)
    assert fields["forward_batch_ms_med"] == pytest.approx(10)
    assert fields["backward_batch_ms_med"] == pytest.approx(20)
    assert fields["step_ms"] == pytest.approx(110)
    assert fields["wait_share"] == pytest.approx(80 / 110)
    assert fields["samples_per_s"] == pytest.approx(8 / 0.110)
    assert (fields["steps_probed"], fields["samples_seen"]) == (3, 24)
    assert fields["advice"] == ["num_workers=3 would load beside the computation."]
    assert found.text.startswith("Loader-bound: 72.7 % of a step is waiting for data.")


def test_a_slow_computation_is_well() -> None:
    found = checked(sample_s=0.0005, forward_s=0.1)
    assert found.ok
    assert found.fields["bound"] == "compute"
    assert found.fields["advice"] == []


def test_workers_load_beside_the_computation() -> None:
    loading = {"num_workers": 2, "persistent_workers": True}
    found = checked(sample_s=0.010, forward_s=0.060, **loading)
    assert (found.fields["bound"], found.fields["wait_ms"]) == ("compute", 0.0)
    found = checked(sample_s=0.010, forward_s=0.020, **loading)
    assert found.fields["bound"] == "loader"
    assert found.fields["wait_ms"] == pytest.approx(20)
    assert found.fields["advice"] == ["num_workers=4 would load beside the computation."]


def test_more_workers_than_cores_are_not_proposed() -> None:
    found = checked(sample_s=0.010, forward_s=0.010, cores=2)
    first, second = found.fields["advice"]
    assert (
        first == "num_workers=2 would load beside the computation; 30 ms of waiting would be left."
    )
    assert second.startswith("Loading alone would keep 8 processes busy, here are 2 cores")


def test_workers_that_are_made_anew_in_every_epoch_are_told() -> None:
    found = checked(sample_s=0.001, forward_s=0.1, num_workers=1)
    assert found.ok
    assert found.fields["advice"] == [
        "persistent_workers=True would spare starting the workers in every epoch."
    ]


def test_the_way_to_a_device_is_quicker_from_pinned_memory() -> None:
    timings = Timings([0.001], [0.02], [0.01], [0.01], [8])
    fields = figures(timings, Loading())
    cuda = torch.device("cuda")
    said = "pin_memory=True would make the way to the device quicker."
    assert said in throughput.helps(fields, Loading(), cuda, 8)
    assert said not in throughput.helps(fields, Loading(pin_memory=True), cuda, 8)
    assert said not in throughput.helps(fields, Loading(), torch.device("cpu"), 8)


def test_a_backward_that_is_not_measured_is_taken_to_be_two_forwards() -> None:
    clock = Clock()
    found = throughput.check(subject(clock, 0.0, 0.01, 5.0), budget(clock=clock), backward=False)
    assert found.fields["backward_batch_ms_med"] is None
    assert found.fields["compute_ms"] == pytest.approx(30)


def test_the_first_pass_warms_up_and_does_not_count() -> None:
    clock = Clock()
    passes = iter([1.0, 0.01, 0.02, 0.03])

    def loss(module: Any, batch: Any) -> Any:
        clock.now_s += next(passes)
        return cross_entropy(module, batch)

    data = DataLoader(Slow(clock, 0.0), batch_size=8)
    found = throughput.check(Plain(net(), data, loss=loss), budget(3, clock=clock))
    assert found.fields["forward_batch_ms_med"] == pytest.approx(20)


def test_no_batch_is_begun_that_would_end_behind_the_limit() -> None:
    clock = Clock()
    slow = subject(clock, sample_s=0.0, forward_s=2.0)
    found = throughput.check(slow, budget(50, limit_s=7.0, clock=clock))
    assert clock.now_s <= 7.0
    assert found.fields["steps_probed"] == 2


def test_a_loader_without_a_batch_is_told() -> None:
    found = throughput.check(Plain(net(), []), budget())
    assert found.ok
    assert found.text == "The loader gave no batch; nothing was measured."


def test_batches_without_a_tensor_have_no_samples_per_second() -> None:
    subject = Plain(net(), ["a", "b"], loss=lambda module, _: module[0].weight.sum())
    found = throughput.check(subject, budget())
    assert found.fields["samples_per_s"] is None


def test_a_training_that_steps_by_hand_is_refused_by_name() -> None:
    subject = Plain(net())
    subject.why_no_step = "Net steps its optimizers by hand"
    with pytest.raises(CommandError, match="Net steps its optimizers by hand"):
        throughput.check(subject, budget())
