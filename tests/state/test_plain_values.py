"""Live values to tensors and plain values and back."""

from __future__ import annotations

import collections
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otf_core.state.plain_values import (
    PACKED_FROM,
    SMALL,
    TAG,
    Decoder,
    Encoder,
    UnsupportedValueError,
)

torch.set_num_threads(1)

VALUES: list[Any] = [
    None, True, 3, 0.5, "a", b"b", [1, [2]], (1, (2,)), {"a": {1: 2}}, {1, 2}, frozenset({3}),
    collections.deque([1, 2], maxlen=5), collections.Counter("aab"), np.float32(1.5), np.int64(3),
    np.arange(6).reshape(2, 3), np.array(True), {np.int64(3): 1, b"": 2, (4,): 5},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_a_value_comes_back_as_it_was_over_a_file_that_is_not_trusted(
    value: Any, tmp_path: Path
) -> None:
    torch.save(Encoder()(value), tmp_path / "x")
    back = Decoder()(torch.load(tmp_path / "x", weights_only=True))

    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)


def test_a_tensor_is_a_copy_both_ways() -> None:
    live = torch.ones(2)
    saved = Encoder()(live)
    live.add_(1)
    back = Decoder()(saved)
    back.add_(5)

    assert saved.tolist() == [1.0, 1.0]
    assert back.tolist() == [6.0, 6.0]


def test_what_was_one_is_one_afterwards() -> None:
    shared = [torch.ones(1)]
    back = Decoder()(Encoder()({"a": shared, "b": shared}))

    assert back["a"] is back["b"]


def test_a_tensor_of_another_device_remembers_which() -> None:
    saved = Encoder(lambda t: torch.zeros(t.shape))(torch.ones(2, device="meta"))
    assert (saved[TAG], saved["d"]) == ("tensor", "meta")
    assert Decoder()(saved).device.type == "meta"


@pytest.mark.parametrize(
    "value",
    [object(), lambda: None, torch.ones(1, requires_grad=True) * 2, np.array([None])],
    ids=["object", "function", "graph", "objects"],
)
def test_what_cannot_be_stored_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UnsupportedValueError, match=type(value).__name__):
        Encoder()([value])


def test_in_a_tree_it_is_left_out_and_named() -> None:
    encoder = Encoder()
    tree = encoder.tree({"a": 1, "b": {"c": object(), "d": 2}, "e": [object()]}, "root")

    assert tree == {"a": 1, "b": {"d": 2}}
    assert encoder.unknown == ["root.b.c: object", "root.e: object"]


def test_small_refuses_tensors_and_long_containers() -> None:
    for value in (torch.ones(1), [0] * (SMALL + 1)):
        with pytest.raises(UnsupportedValueError):
            Encoder(small=True)(value)
    assert Decoder()(Encoder(small=True)([0] * SMALL)) == [0] * SMALL


LISTS: dict[str, list[Any]] = {
    "ints": [-(2**63), 2**63 - 1, *range(PACKED_FROM)],
    "long ints": [2**63, *range(PACKED_FROM)],
    "floats": [float("nan"), -0.0, float("inf"), *map(float, range(PACKED_FROM))],
    "names": ["", "\ud800", *map(str, range(PACKED_FROM)), ""],
    "names with zeros": ["\0", *map(str, range(PACKED_FROM))],
    "flags": [True] * PACKED_FROM,
    "of two kinds": [1, 1.0] * PACKED_FROM,
    "flags among ints": [True, *range(PACKED_FROM)],
    "of a class": [np.float64(1.0)] * PACKED_FROM,
    "empty bytes": [b""] * PACKED_FROM,
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_a_long_list_comes_back_entry_by_entry(value: list[Any], tmp_path: Path) -> None:
    saved = Encoder()(value)
    torch.save(saved, tmp_path / "x")
    back = Decoder()(torch.load(tmp_path / "x", weights_only=True))

    assert [*map(type, back)] == [*map(type, value)]
    assert repr(back) == repr(value)


def test_a_long_list_of_one_kind_is_one_value_in_the_file() -> None:
    for name in ("ints", "floats", "names"):
        assert Encoder()(LISTS[name])[TAG] == "packed"
    live = [5] * PACKED_FROM
    saved = Encoder()({"a": live, "b": live})
    assert saved["a"] is saved["b"]
    assert Decoder()(saved["a"], live) is live


class Thing:
    def __init__(self) -> None:
        self.count = 1
        self.seen = [1, 2]
        self.table: Any = collections.defaultdict(int, a=1)
        self.rng = random.Random(3)
        self.left = object()
        self._start_time = 5.0
        self.skipped = 1


def test_the_attributes_of_an_object_go_back_in_place() -> None:
    thing = Thing()
    saved = Encoder(skip=["skipped"]).attributes(thing)
    seen, table, rng, left = thing.seen, thing.table, thing.rng, thing.left
    first = rng.random()
    thing.count, thing.skipped, thing._start_time = 9, 9, 9.0
    thing.seen.append(3)
    thing.table["b"] += 1
    thing.later = "made after the capture"  # type: ignore[attr-defined]
    thing.kept = object()  # type: ignore[attr-defined]

    Decoder(skip=["skipped"]).attributes(thing, saved)

    assert (thing.count, thing.seen, dict(thing.table)) == (1, [1, 2], {"a": 1})
    assert (thing.seen is seen, thing.table is table, thing.rng is rng) == (True, True, True)
    assert thing.table["new"] == 0  # a defaultdict still
    assert thing.rng.random() == first
    assert thing.left is left
    assert (thing.skipped, thing._start_time) == (9, 9.0)
    assert not hasattr(thing, "later")
    assert hasattr(thing, "kept")


class Stateful:
    def __init__(self) -> None:
        self.n = 1

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n = state["n"] * 10


def test_an_object_with_a_state_dict_of_its_own_is_asked_for_it() -> None:
    thing = Stateful()
    saved = Encoder(small=True).attributes(thing)
    Decoder(small=True).attributes(thing, saved)

    assert thing.n == 10


@pytest.mark.parametrize(
    "value",
    [b"", 2**2500, -(2**2500), np.zeros((0, 3)), [b"", b"x"]],
    ids=["bytes", "long int", "negative", "array", "in a list"],
)
def test_what_torch_writes_and_cannot_load_comes_back(value: Any) -> None:
    file = io.BytesIO()
    torch.save(Encoder()(value), file)
    file.seek(0)
    back = Decoder()(torch.load(file, weights_only=True))
    if isinstance(value, np.ndarray):
        assert (back.shape, back.dtype) == (value.shape, value.dtype)
    else:
        assert back == value
