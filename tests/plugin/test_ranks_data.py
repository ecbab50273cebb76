"""Which loaders of several ranks can draw chosen samples; asked before anything changes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from otf_core.errors import CommandError
from otf_core.runs.data import DataChoice, TrainingData
from otf_lightning.training_data import FitData
from tests.no_harm.configs import digits

NUMBERS = digits(20)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


class Own(BatchSampler):
    """A batch sampler of the script's."""


def shares(**how: Any) -> DistributedSampler[Any]:
    return DistributedSampler(NUMBERS, **{"num_replicas": 2, "rank": 1, **how})


def of_two_ranks(*loaders: DataLoader[Any], **more: Any) -> TrainingData:
    combined = SimpleNamespace(flattened=list(loaders))
    fit = SimpleNamespace(_combined_loader=combined, max_batches=5)
    given = {"world_size": 2, "global_rank": 1, "reload_dataloaders_every_n_epochs": 0, **more}
    return TrainingData(FitData(SimpleNamespace(fit_loop=fit, **given)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (of_two_ranks(DataLoader(NUMBERS, shuffle=True)), "draw by RandomSampler, which is no"),
        (
            of_two_ranks(DataLoader(NUMBERS, sampler=shares(num_replicas=4))),
            "no DistributedSampler",
        ),
        (of_two_ranks(DataLoader(NUMBERS, sampler=shares(rank=0))), "no DistributedSampler of all"),
        (of_two_ranks(DataLoader(Stream())), "is an iterable data set"),
        (
            of_two_ranks(DataLoader(NUMBERS, batch_sampler=Own(shares(), 2, drop_last=False))),
            "has a batch sampler of its own",
        ),
        (of_two_ranks(*[DataLoader(NUMBERS, sampler=shares())] * 2), "with 2 loaders at a time"),
        (
            of_two_ranks(
                DataLoader(NUMBERS, sampler=shares()), reload_dataloaders_every_n_epochs=1
            ),
            "made anew",
        ),
    ],
)
def test_what_ranks_cannot_share_is_refused(data: TrainingData, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        data.check(DataChoice(torch.tensor([1, 2])))


def test_what_ranks_share_already_can_be_chosen_of() -> None:
    of_two_ranks(DataLoader(NUMBERS, sampler=shares())).check(DataChoice(torch.tensor([1, 2])))
