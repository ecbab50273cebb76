"""Sharded tensors: the part on this rank is measured, and no collective is ever begun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from otf_core.telemetry.activations import ActivationZeroTracker
from otf_core.telemetry.late import LateReader
from otf_core.telemetry.norms import grad_norm, is_sharded, weight_norm


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks of which only this one exists: a collective would bring nonsense."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield DeviceMesh("cpu", [0, 1])
    dist.destroy_process_group()


def item(norm: Tensor | None) -> float:
    assert norm is not None
    assert type(norm) is Tensor
    return float(norm.item())


def test_the_norm_is_that_of_the_part_on_this_rank(mesh: DeviceMesh) -> None:
    param = nn.Parameter(DTensor.from_local(torch.tensor([3.0, 4.0]), mesh, [Shard(0)]))
    param.grad = DTensor.from_local(torch.tensor([6.0, 8.0]), mesh, [Shard(0)])
    assert is_sharded(param)
    assert item(weight_norm([param])) == 5.0
    assert item(grad_norm([param])) == 10.0


def test_zeros_are_counted_in_the_part_on_this_rank(mesh: DeviceMesh) -> None:
    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    model(DTensor.from_local(torch.tensor([-1.0, 1.0, 1.0, 1.0]), mesh, [Shard(0)]))
    assert item(tracker.disarm()) == 0.25


@pytest.mark.parametrize("placement", [Partial(), Replicate()])
def test_a_value_that_may_need_a_collective_is_not_read(
    mesh: DeviceMesh, placement: Partial | Replicate
) -> None:
    reader: LateReader[int] = LateReader()
    reader.put(1, {"loss": DTensor.from_local(torch.tensor(1.0), mesh, [placement])})
    assert reader.ready() == [(1, {"loss": None})]
