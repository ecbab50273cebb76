"""What is set of the data is used when an epoch begins, or at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

from otf_core.data_knobs import DataKnobs
from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.data import DataChoice, TrainingData
from otf_core.runs.data_values import DataValues
from otf_core.runs.labels import labels_of

LABELS = [0, 1, 1, 5, 5, 5]


class Fit:
    """See FitData; counts what it is asked to do."""

    def __init__(self, loader: Any, left: int | None = None) -> None:
        self.made, self.left = loader, left
        self.passes = self.counts = 0
        self.within = True

    def loader(self) -> Any:
        if self.made is None:
            detail = "Other data was asked; no loader is made yet."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return self.made

    def batches(self) -> int | None:
        return len(self.made)

    def epoch(self) -> None:
        return None

    def steps_left(self) -> int | None:
        return self.left

    def count(self) -> list[str]:
        self.counts += 1
        return []

    def begin_pass(self) -> None:
        self.passes += 1

    def within_epoch(self) -> bool:
        return self.within


def world(left: int | None = None) -> tuple[Fit, TrainingData, DataValues, list[str]]:
    data = TensorDataset(torch.arange(6.0), torch.tensor(LABELS))
    loader = DataLoader(data, 2, sampler=WeightedRandomSampler([1.0, 2, 2, 1, 1, 1], 6))
    fit, told = Fit(loader, left), list[str]()
    training = TrainingData(fit)
    return fit, training, DataValues(training, told.append), told


def sizes(fit: Fit) -> list[int]:
    return [len(x) for x, _ in fit.made]


def test_it_waits_for_the_epoch_that_begins() -> None:
    fit, training, values, told = world()
    values.set_batch_size(3)
    values.set_factor("5", 4.0)
    assert (values.batch_size(), values.batch_size_in_use()) == (3, 2)
    assert (values.factor("5"), values.factor_in_use("5")) == (4.0, 1.0)
    assert (sizes(fit), fit.counts, told) == ([2, 2, 2], 0, [])
    values.begin_epoch()
    assert told == ["batches of 3, class 5 weighs 4 times, from this epoch on"]
    assert (sizes(fit), fit.counts, fit.passes) == ([3, 3], 1, 0)
    assert fit.made.sampler.weights.tolist() == [1, 2, 2, 4, 4, 4]
    values.begin_epoch()
    assert (len(told), fit.counts) == (1, 1)
    training.off()
    assert sizes(fit) == [2, 2, 2]
    assert fit.made.sampler.weights.tolist() == [1, 2, 2, 1, 1, 1]


def test_set_back_while_it_waits_nothing_is_done() -> None:
    fit, _, values, told = world()
    values.set_batch_size(3)
    values.set_batch_size(2)
    values.begin_epoch()
    assert (fit.counts, told) == (0, [])


def test_at_once_the_pass_begins_anew_but_not_behind_its_last_batch() -> None:
    fit, _, values, told = world()
    values.set_batch_size(3)
    values.set_when("now")
    assert (values.batch_size_in_use(), fit.passes) == (3, 1)
    assert told == ["batches of 3, at once, the epoch begins anew"]
    fit.within = False
    values.set_batch_size(6)
    assert (values.batch_size_in_use(), fit.passes) == (3, 1)
    values.begin_epoch()
    assert (values.batch_size_in_use(), fit.passes) == (6, 1)


def test_whoever_chooses_other_samples_says_all_of_it() -> None:
    fit, training, values, _ = world()
    values.set_batch_size(3)
    training.choose(DataChoice(torch.tensor([1, 2, 3, 4])))
    assert (values.batch_size(), values.classes()) == (2, [])
    values.begin_epoch()
    assert sizes(fit) == [2, 2]


def test_what_was_drawn_of_the_same_samples_stays_known() -> None:
    fit, training, values, _ = world()
    training.choose(DataChoice(torch.tensor([1, 2, 3, 4])))
    assert training.drawn is not None
    training.drawn.note([2, 3])
    values.set_batch_size(4)
    values.begin_epoch()
    assert training.drawn.ids().tolist() == [2, 3]
    assert (sizes(fit), training.choice.batch_size) == ([4], 4)


def test_a_schedule_that_raises_behind_its_last_step_takes_no_smaller_batch() -> None:
    _, _, values, _ = world(left=9)
    values.check_batch_size(3)
    with pytest.raises(CommandError, match="OneCycleLR") as refused:
        values.check_batch_size(1)
    assert refused.value.allowed == {"min": 2}


def test_without_a_loader_it_is_refused_and_later_it_is_there() -> None:
    fit, _, values, _ = world()
    loader, fit.made = fit.made, None
    knobs = DataKnobs()
    knobs.values = values
    [(path, knob)] = knobs.knobs().items()
    assert (path, knob.refused) == (
        "data.batch_size", "Other data was asked; no loader is made yet.",
    )  # fmt: skip
    fit.made = loader
    assert [*knobs.knobs()] == [
        "data.batch_size", *(f"data.sampler.weights.{n}" for n in (0, 1, 5)), "data.takes_effect",
    ]  # fmt: skip
    assert {k.takes_effect for k in knobs.knobs().values()} == {"next epoch", "next batch"}
    values.set_when("now")
    assert {k.takes_effect for k in knobs.knobs().values()} == {"next batch"}


class Lazy(Dataset[int]):
    """Its labels are found by reading every sample."""

    @property
    def targets(self) -> list[int]:
        raise AssertionError


class Listed(Dataset[int]):
    def __init__(self, targets: Any) -> None:
        self.targets = targets


def test_classes_are_found_where_data_sets_keep_them() -> None:
    tensors = TensorDataset(torch.zeros(3), torch.tensor([2, 0, 1]))
    found = labels_of(Subset(tensors, [2, 0]))
    assert found is not None
    assert found.tolist() == [1, 2]
    assert labels_of(Listed([3, 1])) is not None
    for none in (Lazy(), Listed(["cat", "dog"]), Listed([0.5, 1.5]), Listed([[1], [2]]), [1, 2]):
        assert labels_of(none) is None
