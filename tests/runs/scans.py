"""Data sets, modules and subjects for scans, without a framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from otf_core.runs.subject import Subject
from otf_core.state.parked import parked

SIZE, WIDTH, CLASSES = 23, 6, 4


class Rows(Dataset[Any]):
    """Rows of numbers, a class and a number for each."""

    def __init__(self, size: int = SIZE) -> None:
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(size, WIDTH, generator=generator)
        self.y = torch.randint(0, CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


class Net(nn.Module):
    """Dropout and batch norm: what eval mode is for."""

    def __init__(self, out: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(
            nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, out)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        return found


Step = Callable[[nn.Module, Any], Any]


def cross_entropy(net: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(net(x), y)


def subject(
    step: Step | None = cross_entropy, net: nn.Module | None = None, **more: Any
) -> Subject:
    """A data set and a step that is called with the net."""
    net = Net() if net is None else net
    given: dict[str, Any] = {
        "name": "train",
        "dataset": Rows(),
        "collate": default_collate,
        "batch_size": 5,
        "modules": {"": net},
        "step": None if step is None else lambda batch, batch_idx: step(net, batch),
        "step_name": "training_step of Net",
        "around": lambda: parked({"": net}, []),
    }
    fields = {f.name for f in dataclasses.fields(Subject)}
    assert more.keys() <= fields
    return Subject(**{**given, **more})


def one_by_one(made: Subject) -> torch.Tensor:
    """The loss of each sample alone, in eval mode; by hand."""
    [net] = made.modules.values()
    was = net.training
    net.eval()
    with torch.no_grad():
        found = []
        for index in range(len(made.dataset)):
            assert made.step is not None
            loss = made.step(made.collate([made.dataset[index]]), 0)
            loss = loss["loss"] if isinstance(loss, dict) else loss
            found.append(float(loss))
    net.train(was)
    return torch.tensor(found, dtype=torch.float64)
