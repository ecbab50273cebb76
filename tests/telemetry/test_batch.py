"""Batches of any shape. The device "meta" stands for any other device."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from otf_core.telemetry.batch import batch_size, move_batch_like

META = torch.empty(0, device="meta", dtype=torch.float64)


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str
    made: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", self.made + 1)


class Own:
    """A batch class of the user; moves itself and, as often seen, returns nothing."""

    def __init__(self) -> None:
        self.where: Any = None

    def to(self, device: torch.device) -> None:
        self.where = device


class Words(list[Any]):
    """A list with something beside its items."""

    language = "en"


def test_tensors_of_every_container_move_and_keep_their_type() -> None:
    batch = {
        "tensor": torch.ones(2, dtype=torch.int32),
        "list": [torch.ones(1), "text", 3],
        "tuple": (torch.ones(1), None),
        "pair": Pair(torch.ones(1), 2),
        "ordered": OrderedDict(a=torch.ones(1)),
        "frozen": Frozen(torch.ones(1), "n"),
        "words": Words([torch.ones(1)]),
    }
    moved = move_batch_like(batch, META)
    assert moved["tensor"].device.type == "meta"
    assert moved["tensor"].dtype is torch.int32
    assert moved["list"][0].device.type == "meta"
    assert moved["list"][1:] == ["text", 3]
    assert moved["tuple"][0].device.type == "meta"
    assert type(moved["pair"]) is Pair
    assert moved["pair"].x.device.type == "meta"
    assert moved["pair"].y == 2
    assert type(moved["ordered"]) is OrderedDict
    assert moved["ordered"]["a"].device.type == "meta"
    assert type(moved["frozen"]) is Frozen
    assert moved["frozen"].x.device.type == "meta"
    assert moved["frozen"].made == 1
    assert type(moved["words"]) is Words
    assert moved["words"][0].device.type == "meta"


def test_the_given_batch_is_never_changed() -> None:
    inner = [torch.ones(1)]
    batch = defaultdict(list, {"a": inner})
    frozen = Frozen(torch.ones(1), "n")
    words = Words([torch.ones(1)])
    moved = move_batch_like([batch, frozen, words], META)
    assert batch["a"] is inner
    assert inner[0].device.type == "cpu"
    assert frozen.x.device.type == "cpu"
    assert words[0].device.type == "cpu"
    assert moved[0].default_factory is list


def test_a_batch_in_which_nothing_moves_comes_back_itself() -> None:
    batch = {"x": torch.ones(2), "y": (torch.ones(1), torch.Size([1, 2])), "z": [1, "a"]}
    assert move_batch_like(batch, torch.empty(0)) is batch
    frozen = Frozen(torch.ones(1), "n")
    assert move_batch_like(frozen, torch.empty(0)) is frozen


def test_a_size_is_no_container_of_tensors() -> None:
    batch = [torch.ones(1), torch.Size([1, 2])]
    assert move_batch_like(batch, META)[1] is batch[1]


def test_what_has_a_to_of_its_own_is_moved_by_it() -> None:
    own = Own()
    assert move_batch_like({"own": own}, META)["own"] is own
    assert own.where == torch.device("meta")
    packed = move_batch_like(pack_sequence([torch.ones(3), torch.ones(2)]), META)
    assert packed.data.device.type == "meta"


def test_the_reference_may_be_a_module_with_parameters_or_only_buffers_or_neither() -> None:
    buffered = nn.Module()
    buffered.register_buffer("b", META)
    assert move_batch_like(torch.ones(1), nn.Linear(1, 1, device="meta")).device.type == "meta"
    assert move_batch_like(torch.ones(1), buffered).device.type == "meta"
    batch = [torch.ones(1)]
    assert move_batch_like(batch, nn.ReLU()) is batch


def test_a_class_is_no_dataclass_to_be_moved() -> None:
    assert move_batch_like(Frozen, META) is Frozen
    assert batch_size(Frozen) is None


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(7, 2), 7),
        (np.zeros((5, 1)), 5),
        ([torch.ones(3), torch.ones(4)], 3),
        ((torch.tensor(1.0), torch.ones(4)), 4),
        ({"name": "text", "x": {"deep": torch.ones(6, 1)}}, 6),
        (UserDict(x=torch.ones(2)), 2),
        (Frozen(torch.ones(9), "n"), 9),
        (Pair("a", torch.ones(8)), 8),
        (pack_sequence([torch.ones(3), torch.ones(2)]), 2),
        (torch.empty(0, 3), 0),
        (torch.tensor(1.0), None),
        (["a", "b"], None),
        ("text", None),
        (None, None),
        (3, None),
        ({}, None),
    ],
)
def test_the_batch_size_is_the_leading_dimension_of_the_first_tensor(batch: Any, size: Any) -> None:
    assert batch_size(batch) == size


def test_looking_for_a_tensor_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert batch_size(endless) is None
    assert batch_size(["a"] * 64 + [torch.ones(3)]) is None
    assert batch_size(["a"] * 63 + [torch.ones(3)]) == 3


def test_a_batch_that_raises_when_looked_at_has_no_size() -> None:
    class Bad(UserDict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            raise OSError("the file behind it is gone")

    assert batch_size(Bad()) is None
