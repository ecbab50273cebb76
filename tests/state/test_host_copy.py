"""A checkpoint that training cannot change any more, and in which what is one stays one."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from otf_core.state.host_copy import host_copy

torch.set_num_threads(1)


class Pair(NamedTuple):
    a: Any
    b: Any


class Picky(dict[str, Any]):
    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed


def containers(tensor: torch.Tensor) -> list[Any]:
    picky = Picky(1)
    picky["t"] = tensor
    factory: collections.defaultdict[str, Any] = collections.defaultdict(list)
    factory["t"] = tensor
    return [
        tensor,
        [tensor],
        (tensor, 1),
        {"t": tensor},
        Pair(tensor, None),
        collections.OrderedDict(t=tensor),
        collections.deque([tensor], maxlen=3),
        factory,
        picky,
        [[{"t": (tensor,)}]],
    ]


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    if isinstance(items, (int, str)) or items is None:
        return []
    return [t for item in items for t in tensors(item)]


@pytest.mark.parametrize("place", range(10))
def test_later_training_does_not_change_the_copy_wherever_the_tensor_lies(place: int) -> None:
    tensor = torch.ones(2)
    value = containers(tensor)[place]
    copy = host_copy(value)
    tensor.add_(5)

    assert [t.tolist() for t in tensors(copy)] == [[1.0, 1.0]]
    assert isinstance(copy, type(value)) or type(copy) is dict


def test_kinds_of_containers_stay() -> None:
    copy = host_copy(containers(torch.ones(2)))

    assert copy[5].__class__ is collections.OrderedDict
    assert (copy[6].maxlen, copy[7].default_factory, type(copy[8])) == (3, list, dict)
    assert host_copy(torch.Size([1, 2])) == torch.Size([1, 2])


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ({1, 2}, lambda v: v.add(3)),
        (bytearray(b"a"), lambda v: v.extend(b"b")),
        (np.zeros(2), lambda v: v.fill(7)),
        (collections.Counter("aa"), lambda v: v.update("b")),
    ],
    ids=["set", "bytearray", "array", "counter"],
)
def test_other_values_that_change_are_copied_too(value: Any, change: Any) -> None:
    copy, before = host_copy([value])[0], repr(value)
    change(value)

    assert repr(copy) == before
    assert type(copy) is type(value)


def test_plain_values_and_strange_objects_go_by_reference() -> None:
    strange = object()
    assert host_copy({"a": [1, "x", None, 2.5, True, b"y", strange]})["a"][-1] is strange


def test_a_model_and_its_optimizer_are_held_still() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()

    step()
    live = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    copy = host_copy(live)
    before = {name: t.clone() for name, t in live["model"].items()}
    step()

    assert all(torch.equal(copy["model"][name], before[name]) for name in before)
    assert not torch.equal(copy["model"]["0.weight"], model.state_dict()["0.weight"])
    assert copy["model"]._metadata == live["model"]._metadata  # type: ignore[attr-defined]
    assert copy["optimizer"]["state"][0]["step"].item() == 1
    assert not any(t.requires_grad for t in copy["model"].values())


def test_what_is_one_tensor_one_storage_or_one_container_stays_one() -> None:
    base = torch.arange(6.0)
    view, whole = base.view(2, 3), base[:]
    shared = [base]
    copy = host_copy({"a": base, "b": base, "v": view.t(), "w": whole, "l": shared, "m": shared})

    assert copy["a"] is copy["b"]
    assert copy["l"] is copy["m"]
    assert torch.equal(copy["v"], view.t())
    assert copy["v"].stride() == (1, 3)
    copy["w"][0] = 99
    assert copy["a"][0] == 99 == copy["v"][0, 0]
    assert base[0] == 0


def test_tied_weights_stay_tied() -> None:
    tied = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    tied[1].weight = tied[0].weight
    copy = host_copy(tied.state_dict())

    assert copy["0.weight"].data_ptr() == copy["1.weight"].data_ptr()


def test_a_small_view_does_not_bring_the_large_storage_along() -> None:
    large = torch.zeros(1000)
    copy = host_copy(large[10:12])

    assert copy.untyped_storage().nbytes() == 8


def test_offsets_and_empty_and_scalar_tensors() -> None:
    base = torch.arange(4.0)
    copy = host_copy([base[1:], torch.zeros(0, 3), torch.tensor(5), torch.tensor(True)])

    assert copy[0].tolist() == [1.0, 2.0, 3.0]
    assert copy[1].shape == (0, 3)
    assert (copy[2].item(), copy[3].item()) == (5, True)


def test_layouts_whose_storage_does_not_say_what_they_hold() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j])
    imaginary = z.conj().imag  # negated when it is read
    sparse = torch.eye(2).to_sparse()
    copy = host_copy([z.conj(), imaginary, sparse])
    z.zero_()

    assert copy[0].tolist() == [1 - 2j, 3 + 1j]
    assert copy[1].tolist() == [-2.0, 1.0]
    assert torch.equal(copy[2].to_dense(), torch.eye(2))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_tensor_is_copied_whole() -> None:
    quantized = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 0, torch.qint8)
    assert host_copy(quantized).dequantize().tolist() == [1.0, 2.0]


def test_what_holds_itself_is_copied_once() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["self"] = ring

    copy = host_copy(loop)
    assert copy[1] is copy
    assert copy is not loop
    turned = host_copy(ring)
    assert turned["self"] is turned
