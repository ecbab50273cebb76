"""What lies on an accelerator goes to the host and comes back, and no tensor is another one."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.state import park
from otf_core.state.host_pool import HostPool
from otf_core.state.on_device import Holdings, find
from otf_core.state.park import Parking
from otf_core.testing import FakeAccelerator

CPU = torch.device("cpu")


class Shadow:
    """An average of weights as users write it: an object of their own, with slots."""

    __slots__ = ("averages", "model")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}


class Net(nn.Module):
    kept: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(32, 32)
        self.two = nn.Linear(32, 32)
        self.two.weight = self.one.weight  # tied
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("kept", torch.arange(64.0).reshape(8, 8), persistent=False)
        self.view = self.kept.t()[2:5]
        self.memory: list[Any] = [torch.randn(16, 16), {"deep": (torch.randn(40),)}]
        self.sparse = torch.randn(20, 20).relu().to_sparse()
        self.nan = torch.tensor([float("nan"), -0.0, float("inf")] * 20).view(torch.int32)
        self.shadow = Shadow(self)
        self.scale = torch.tensor(2.0)  # a value that somebody may read meanwhile


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAccelerator]:
    accelerator = FakeAccelerator()
    monkeypatch.setattr(park, "accelerator_of", lambda _: accelerator)
    gc.freeze()  # what is there before is not counted, nor collected each time
    yield accelerator
    gc.unfreeze()


def trained() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(1e-2), foreach=False)
    for _ in range(2):
        optimizer.zero_grad()
        net.norm(net.two(net.one(torch.randn(8, 32)))).pow(2).sum().backward()
        optimizer.step()
    return net, optimizer


def parking(net: nn.Module, *optimizers: torch.optim.Optimizer, **more: Any) -> Parking:
    roots = {"model": net, **{f"optimizer {i}": each for i, each in enumerate(optimizers)}}
    return Parking(lambda: Holdings(roots), lambda: CPU, **more)


def all_of(net: Net, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor that a script could hold, as the very object."""
    return {
        **dict(net.named_parameters()),
        **{f"{name}.grad": p.grad for name, p in net.named_parameters() if p.grad is not None},
        **dict(net.named_buffers()),
        **{f"shadow {name}": each for name, each in net.shadow.averages.items()},
        **{
            f"{i} {key}": value
            for i, state in enumerate(optimizer.state.values())
            for key, value in state.items()
        },
        "view": net.view, "memory": net.memory[0], "deep": net.memory[1]["deep"][0],
        "nan": net.nan, "values": net.sparse._values(), "scale": net.scale,
    }  # fmt: skip


def bits(tensor: torch.Tensor | None) -> bytes:
    assert tensor is not None
    # Not by numpy, which would have the storage never resized again.
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def test_everything_comes_back_as_it_was_in_the_same_objects(fake: FakeAccelerator) -> None:
    net, optimizer = trained()
    held = all_of(net, optimizer)
    before = {name: bits(each) for name, each in held.items()}
    versions = {name: each._version for name, each in held.items()}
    objects = {name: id(each) for name, each in held.items()}
    parks = parking(net, optimizer)
    gc.collect()
    used = fake.used_bytes()
    moved = parks.park()
    assert parks.parked
    away = [name for name, each in held.items() if each.untyped_storage().nbytes() == 0]
    assert set(held) - set(away) == {"scale", "norm.num_batches_tracked"}
    assert moved.freed_bytes == moved.moved_bytes == used - fake.used_bytes() > 0
    assert moved.left_bytes == fake.used_bytes()
    assert net.two.weight is net.one.weight
    parks.back()
    assert fake.used_bytes() == used
    again = all_of(net, optimizer)
    assert {name: id(each) for name, each in again.items() if name != "values"} == {
        name: each for name, each in objects.items() if name != "values"
    }
    assert {name: bits(each) for name, each in again.items()} == before
    assert {name: each._version for name, each in held.items()} == versions
    net.kept.fill_(7.0)
    assert bool((net.view == 7.0).all()), "a view is of another tensor now"


def test_training_goes_on_as_if_it_had_never_been_parked(fake: FakeAccelerator) -> None:
    def end(*, parked: bool) -> bytes:
        net, optimizer = trained()
        for _ in range(3):
            if parked:
                parks = parking(net, optimizer)
                parks.park()
                parks.back()
            net.norm(net.two(net.one(torch.randn(8, 32)))).pow(2).sum().backward()
            optimizer.step()
        return b"".join(bits(each) for each in all_of(net, optimizer).values())

    assert end(parked=True) == end(parked=False)


def test_a_graph_that_lives_on_is_still_that_of_the_weights(fake: FakeAccelerator) -> None:
    net, optimizer = trained()
    optimizer.zero_grad()
    loss = net.one(torch.ones(2, 32)).pow(2).sum()
    parks = parking(net, optimizer)
    parks.park()
    parks.back()
    loss.backward()  # raises where a saved tensor has another version
    found, net.one.weight.grad = net.one.weight.grad, None
    net.one(torch.ones(2, 32)).pow(2).sum().backward()
    assert bits(net.one.weight.grad) == bits(found)


def test_a_lent_storage_is_moved_once(fake: FakeAccelerator) -> None:
    bucket = torch.randn(100)
    net = nn.Linear(9, 9, bias=False)
    net.weight.grad = bucket[10:91].view(9, 9)  # as DDP has it with gradient_as_bucket_view
    found = find(Holdings({"model": net}), fake.holds)
    assert sorted(piece.nbytes for piece in found.pieces) == [9 * 9 * 4, 400]
    parks = parking(net)
    parks.park()
    assert bucket.untyped_storage().nbytes() == 0
    parks.back()
    assert bool(torch.equal(bucket[10:91].view(9, 9), net.weight.grad))


def test_where_there_is_no_room_it_stays_parked_and_comes_back_later(
    fake: FakeAccelerator,
) -> None:
    net, optimizer = trained()
    before = [bits(each) for each in all_of(net, optimizer).values()]
    parks = parking(net, optimizer)
    moved = parks.park()
    fake.capacity_bytes = fake.used_bytes() + moved.moved_bytes / 2
    with pytest.raises(CommandError, match=f"takes {moved.moved_bytes:,} bytes") as caught:
        parks.back()
    assert caught.value.code is ErrorCode.NOT_ALLOWED_NOW
    assert parks.parked
    assert fake.used_bytes() == moved.left_bytes, "half of it lies on the device"
    fake.capacity_bytes *= 10
    parks.back()
    assert [bits(each) for each in all_of(net, optimizer).values()] == before
    parks.back()


def test_where_the_host_has_no_room_nothing_is_touched(fake: FakeAccelerator) -> None:
    net, optimizer = trained()
    gc.collect()
    used = fake.used_bytes()
    with pytest.raises(CommandError, match="the host has 10 free") as caught:
        parking(net, optimizer, room_bytes=lambda: 10).park()
    assert caught.value.code is ErrorCode.NOT_ALLOWED_NOW
    assert fake.used_bytes() == used


def test_a_copy_that_fails_half_way_leaves_all_of_it(
    fake: FakeAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, optimizer = trained()
    copies = iter([True, True, False])
    whole: Callable[..., None] = park._copy

    def fails(*args: Any) -> None:
        if not next(copies):
            raise MemoryError
        whole(*args)

    gc.collect()
    used = fake.used_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(park, "_copy", fails)
        with pytest.raises(CommandError, match="gave no memory"):
            (parks := parking(net, optimizer)).park()
    assert not parks.parked
    assert fake.used_bytes() == used


def test_what_cannot_be_moved_is_refused_by_name(fake: FakeAccelerator) -> None:
    net = nn.Linear(32, 32)
    net.register_buffer("given", torch.from_numpy(np.zeros(100)))
    with warnings.catch_warnings(action="ignore"):  # torch says once that it is in beta
        net.register_buffer("rows", torch.eye(40).to_sparse_csr())
    with pytest.raises(CommandError, match=r"model\.given \(its memory is not torch's own\)") as e:
        parking(net).check()
    assert "model.rows (its layout is torch.sparse_csr)" in e.value.detail
    assert e.value.code is ErrorCode.UNSUPPORTED
    fake.why_not = "a graph of the device"
    with pytest.raises(CommandError, match="a graph of the device"):
        parking(nn.Linear(2, 2)).park()
    refused = Parking(lambda: Holdings({}, why_not="Not under this strategy."), lambda: CPU)
    with pytest.raises(CommandError, match="Not under this strategy"):
        refused.park()


@pytest.mark.parametrize(
    ("device", "said"), [("cpu", "the host's own memory"), ("mps", "nobody has tried")]
)
def test_a_device_whose_memory_does_not_come_free_is_refused(device: str, said: str) -> None:
    parks = Parking(lambda: Holdings({}), lambda: torch.device(device))
    with pytest.raises(CommandError, match=said) as caught:
        parks.park()
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_what_is_not_the_run_s_own_stays(fake: FakeAccelerator) -> None:
    trainer: Any = type("Trainer", (), {})()
    trainer.batch = torch.zeros(1000)
    net: Any = nn.Linear(32, 32)
    net.trainer, net.itself = trainer, net
    data = copy.copy(list(range(200_000)))
    net.data = data
    found = find(Holdings({"model": net}, fence=[trainer]), fake.holds)
    assert {piece.name for piece in found.pieces} == {"model.weight", "model.bias"}


def test_a_gpu_is_settled_and_gives_back_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(
            torch.cuda, name, lambda *which, name=name: called.append(f"{name} {[*which]}")
        )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda each: (0, 4096, 2048)[each])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda each: (0, 1024, 512)[each])
    gpu = park.accelerator_of(torch.device("cuda:1"))
    gpu.settle()
    gpu.release()
    assert called == ["synchronize [1]", "synchronize [2]", "empty_cache []"]
    assert (gpu.taken_bytes(), gpu.used_bytes(), gpu.pinned) == (6144, 1536, True)
    assert gpu.holds(torch.device("cuda:0"))
    assert not gpu.holds(CPU)
    assert gpu.refuses() is None

    class Graph(torch.cuda.CUDAGraph):
        def __new__(cls) -> Graph:
            return object.__new__(cls)

        def __init__(self) -> None:
            self.captured = True

    held = [Graph()]
    assert "CUDA graph" in str(gpu.refuses())
    held.clear()


def test_memory_is_pinned_where_there_is_room_for_it(
    fake: FakeAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    take = HostPool.take

    def noted(pool: HostPool, nbytes: int, *, pinned: bool = False) -> torch.UntypedStorage:
        asked.append(pinned)
        return take(pool, nbytes)

    monkeypatch.setattr(HostPool, "take", noted)
    monkeypatch.setattr(fake, "pinned", True, raising=False)
    net = nn.Linear(16, 16, bias=False)
    for room in (2 * 1024, 2 * 1024 - 1):
        parks = parking(net, room_bytes=lambda room=room: room)
        parks.park()
        parks.back()
    assert asked == [True, False]
