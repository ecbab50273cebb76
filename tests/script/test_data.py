"""A loader goes on over the data that it had, or it is told that they are others."""

# ruff: noqa: E501 -- tables of scripts

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from otf_core.script.data import told_of
from tests.script.again import goes_on

START = (
    "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\nX = torch.arange(8.)\n"
)
OTHERS = {
    "deleted": ("data = DataLoader(TensorDataset(X + 3), 4); del loader", "whose values are others here"),
    "another batch size": ("data = DataLoader(TensorDataset(X + 3), 2); del loader", "whose values"),
    "in the old one's place": ("data = loader = DataLoader(TensorDataset(X + 3), 4)", "whose values"),
    "beside the old one": ("data = DataLoader(TensorDataset(X + 3), 4)", "made after this place"),
    "of another length": (
        "data = loader = DataLoader(TensorDataset(X[:6]), 4)",
        "a TensorDataset of 6 samples, here a TensorDataset of 8 samples",
    ),
    "of another class": ("data = loader = DataLoader([1, 2], 4)", "a list of 2 samples, here a Tensor"),
    "with another sampler": (
        "data = loader = DataLoader(loader.dataset, 4, shuffle=True)",
        "the sampler of a DataLoader, which is another here",
    ),
}  # fmt: skip


def source(change: str) -> str:
    return (
        f"{START}data = loader = DataLoader(TensorDataset(X), 4)\nfor turn in range(4):\n    here()\n"
        f"    if turn == 0: {change}\n    LOG.append([len(b) for b in data])\n"
    )


@pytest.mark.parametrize("what", OTHERS)
def test_a_loader_made_later_over_other_data_is_not_taken_for_the_first(
    what: str, tmp_path: Path
) -> None:
    change, told = OTHERS[what]
    found = goes_on(source(change), tmp_path)
    assert told in "; ".join(found.given.lost)


@pytest.mark.parametrize(
    "change",
    [
        "X += 1",
        "loader.dataset.tensors[0].mul_(2)",
        "data = loader = DataLoader(loader.dataset, 2)",
    ],
)
def test_data_that_the_script_changes_and_holds_go_on(change: str, tmp_path: Path) -> None:
    found = goes_on(source(change), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole


def test_data_that_only_the_loader_holds_and_that_were_changed_are_told(tmp_path: Path) -> None:
    change = "loader.dataset.tensors[0].mul_(2)"
    found = goes_on(source(change).replace("TensorDataset(X)", "TensorDataset(X + 1)"), tmp_path)
    assert found.given.lost == [
        "the data of a DataLoader: a TensorDataset of 8 samples whose values are others here"
    ]


class Own(Dataset[Any]):
    def __init__(self, column: Any) -> None:
        self.column, self.asked = column, 0

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no sample is asked for")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("no sample is asked for")


LONG = torch.arange(90_000.0).reshape(3000, 30)
SETS: list[Any] = [
    TensorDataset(LONG),
    TensorDataset(LONG + 1),
    TensorDataset(LONG.T.contiguous().T, LONG[:, 0]),
    Own(LONG.numpy()),
    Own(np.asfortranarray(LONG.numpy()[:, :4])),
    Own([f"{n}.png" for n in range(3000)]),
    Own([(f"{n}.png", n % 3) for n in range(3000)]),
    Own([("a", "b")] * 3000),
    Own(range(3000)),
    Own(range(1, 3001)),
    Subset(Own(range(3000)), range(0, 3000, 2)),
    Subset(Own(range(3000)), range(1, 3000, 2)),
    ConcatDataset([Own(range(3)), Own(range(3))]),
    ConcatDataset([Own(range(3)), Own(range(2, 5))]),
    Stream(),
    [1, 2, 3],
    [1, 2, 4],
]


def test_each_data_set_is_told_from_every_other_without_its_samples() -> None:
    told = [told_of(each) for each in SETS]
    assert len(set(told)) == len(told)
    assert told == [told_of(each) for each in SETS]


def test_what_a_data_set_counts_does_not_make_it_another() -> None:
    data = Own(torch.zeros(3))
    before = told_of(data)
    data.asked += 1
    assert told_of(data) == before
