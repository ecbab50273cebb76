"""Weights are put into the live model, and taken out again unless they are to stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import merge
from otf_core.runs.weights import (
    LiveWeights,
    Named,
    live_weights,
    parameter_names,
    put,
    weights_aside,
)


class Tied(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        with torch.no_grad():
            for p in self.parameters():
                p.fill_(fill)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def test_a_merge_with_the_live_model_goes_into_it_and_out_again() -> None:
    module, other = Tied(1.0), Tied(3.0)
    before, parameters = state(module), list(module.parameters())
    with weights_aside({"": module}, "now") as aside:
        run = merge.run("linear", [aside.weights, LiveWeights("fork", other.state_dict())])
        put({"": module}, run.tensors())
        assert bool((module.head.weight == 2.0).all())
        assert module.head.weight is module.embedding.weight
    assert same(before, state(module))
    assert list(map(id, module.parameters())) == list(map(id, parameters))


def test_what_is_kept_stays() -> None:
    module, other = Tied(1.0), Tied(3.0)
    with weights_aside({"": module}) as aside:
        put({"": module}, merge.as_it_is(LiveWeights("fork", other.state_dict())))
        aside.keep()
    assert same(state(module), state(other))


@pytest.mark.parametrize("kept", [True, False])
def test_what_raises_leaves_the_live_model_as_it_was(kept: bool) -> None:
    module = Tied(1.0)
    before = state(module)

    def half() -> Iterator[Named]:
        yield "head.bias", torch.full((3,), 9.0)
        raise CommandError(ErrorCode.BAD_PAYLOAD, "the second half is missing")

    def spoil() -> None:
        with weights_aside({"": module}) as aside:
            if kept:
                aside.keep()
            put({"": module}, half())

    with pytest.raises(CommandError, match="second half"):
        spoil()
    assert same(before, state(module))


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("head.gain", torch.ones(3), "it has head.gain none, not [3]"),
        ("head.bias", torch.ones(4), "it has head.bias [3], not [4]"),
    ],
)
def test_what_the_live_model_has_not_is_refused(name: str, tensor: Any, why: str) -> None:
    with pytest.raises(CommandError) as error:
        put({"": Tied(1.0)}, [(name, tensor)])
    assert error.value.code is ErrorCode.BAD_PAYLOAD
    assert why in error.value.detail


def test_a_state_dict_of_copies_cannot_be_written_through() -> None:
    module = Tied(1.0)

    def copied(_: Any, found: dict[str, Any], prefix: str, __: Any) -> None:
        found["head.bias"] = found["head.bias"].clone()

    module.register_state_dict_post_hook(copied)
    with pytest.raises(CommandError, match=r"copy of head\.bias") as error:
        put({"": module}, [])
    assert error.value.code is ErrorCode.UNSUPPORTED


def test_of_several_modules_the_names_are_joined() -> None:
    modules = {"encoder": nn.Linear(1, 2), "head": nn.BatchNorm1d(2)}
    names = {"encoder.weight", "encoder.bias", "head.weight", "head.bias"}
    assert parameter_names(modules) == names
    statistics = {"head.running_mean", "head.running_var", "head.num_batches_tracked"}
    assert live_weights(modules).keys() == names | statistics


def test_shared_parameters_have_each_of_their_names() -> None:
    assert {"head.weight", "embedding.weight"} < parameter_names({"": Tied(1.0)})


def test_weights_in_memory_are_read_as_those_on_the_disk_are() -> None:
    tensors = {"t": torch.randn(3, 4).t(), "p": nn.Parameter(torch.ones(2)), "_extra_state": 5}
    weights = LiveWeights("live", tensors)
    assert list(weights.shapes) == ["t", "p"]
    assert weights.others == ["_extra_state"]
    assert torch.equal(weights.block("t", 3, 9), tensors["t"].reshape(-1)[3:9])
    read = weights.read("p")
    assert not read.requires_grad
    read.zero_()
    assert bool((tensors["p"] == 1.0).all())
