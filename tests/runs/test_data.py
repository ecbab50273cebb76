"""A loader that draws chosen samples is the user's own loader, and is put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
)

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.data import ChosenData, DataChoice, TrainingData
from otf_core.state.data_tap import position, tap

pytestmark = pytest.mark.usefixtures("queues_have_ended")


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


class OwnLoader(DataLoader[int]):
    def __init__(self, numbers: Numbers, *, scale: int) -> None:
        super().__init__(numbers, batch_size=4, shuffle=True, collate_fn=self.scaled)
        self.scale = scale

    def scaled(self, items: list[int]) -> torch.Tensor:
        return torch.tensor(items) * self.scale


def drawn(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [each for batch in batches for each in batch]


def ids(*found: int) -> torch.Tensor:
    return torch.tensor(found, dtype=torch.int64)


def test_only_the_chosen_are_drawn_each_once_a_pass_in_another_order() -> None:
    loader = DataLoader(Numbers(), batch_size=2, shuffle=True)
    ChosenData(loader).choose(DataChoice(ids(3, 5, 8, 13, 17, 19)))
    assert len(loader) == 3
    passes = [drawn(loader) for _ in range(6)]
    assert all(sorted(flat(found)) == [3, 5, 8, 13, 17, 19] for found in passes)
    assert len({str(found) for found in passes}) > 1


def test_what_is_not_shuffled_comes_in_the_order_that_was_chosen() -> None:
    loader = DataLoader(Numbers(), batch_size=2)
    ChosenData(loader).choose(DataChoice(ids(9, 2, 4)))
    assert drawn(loader) == [[9, 2], [4]]


def test_class_collate_and_generator_are_the_user_s() -> None:
    loader = OwnLoader(Numbers(), scale=10)
    generator = loader.sampler.generator = torch.Generator()  # type: ignore[attr-defined]
    ChosenData(loader).choose(DataChoice(ids(*range(12)), batch_size=3))
    generator.manual_seed(4)
    first = drawn(loader)
    assert sorted(flat(first)) == [10 * n for n in range(12)]
    generator.manual_seed(4)
    assert drawn(loader) == first


def test_weights_say_how_often() -> None:
    loader = DataLoader(Numbers(), batch_size=5, shuffle=True)
    weights = torch.zeros(20, dtype=torch.float64)
    weights[7], weights[8] = 3.0, 1.0
    ChosenData(loader).choose(DataChoice(weights=weights))
    torch.manual_seed(3)
    found = [each for _ in range(40) for each in flat(drawn(loader))]
    assert (set(found), len(found)) == ({7, 8}, 800)
    assert found.count(7) / len(found) == pytest.approx(0.75, abs=0.06)


def test_a_last_batch_that_is_all_there_is_is_not_dropped_and_it_is_said() -> None:
    loader = DataLoader(Numbers(), batch_size=8, shuffle=True, drop_last=True)
    told = ChosenData(loader).choose(DataChoice(ids(1, 2, 3)))
    assert told == ["drop_last does not apply: 3 samples are less than a batch"]
    assert [sorted(batch) for batch in drawn(loader)] == [[1, 2, 3]]


def test_it_is_put_back_as_it_was() -> None:
    loader = tap(DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True))
    before = dict(vars(loader))
    chosen = ChosenData(loader)
    chosen.choose(DataChoice(ids(1, 2), batch_size=1))
    chosen.choose(DataChoice(batch_size=7))
    assert [len(batch) for batch in drawn(loader)] == [7, 7]
    chosen.choose(DataChoice())
    assert {name: vars(loader)[name] for name in before} == before
    torch.manual_seed(5)
    found = drawn(loader)
    torch.manual_seed(5)
    assert found == drawn(DataLoader(Numbers(), batch_size=3, shuffle=True, drop_last=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_over_chosen_samples_goes_on_from_its_middle(workers: int) -> None:
    def begun() -> Any:
        loader = tap(DataLoader(Numbers(), batch_size=2, shuffle=True, num_workers=workers))
        ChosenData(loader).choose(DataChoice(ids(*range(4, 15))))
        return loader

    torch.manual_seed(9)
    loader = begun()
    live = iter(loader)
    for _ in range(2):
        next(live)
    state = position(loader, live)
    rest = [batch.tolist() for batch in live]
    torch.manual_seed(1)
    again = begun()
    again.otf_load(state)
    assert drawn(again) == rest


@pytest.mark.parametrize(
    ("choice", "field", "said"),
    [
        (DataChoice(ids()), "ids", "No sample was chosen; allowed: at least 1."),
        (DataChoice(ids(3, 20)), "ids", "Sample 20 was chosen of a data set with 20; allowed: 0"),
        (DataChoice(ids(-1)), "ids", "Sample -1 was chosen"),
        (DataChoice(ids(4, 4)), "ids", "A sample was chosen more than once"),
        (DataChoice(ids(1), torch.ones(2)), "weights", "2 weights were given for 1 samples."),
        (DataChoice(weights=torch.zeros(20)), "weights", "All weights are 0"),
        (DataChoice(weights=torch.full((20,), -1.0)), "weights", "negative or not finite"),
        (DataChoice(batch_size=0), "batch_size", "allowed: 1 or more"),
    ],
)
def test_what_is_no_choice_is_refused(choice: DataChoice, field: str, said: str) -> None:
    loader = DataLoader(Numbers(), batch_size=2)
    before = dict(vars(loader))
    with pytest.raises(CommandError) as error:
        ChosenData(loader).choose(choice)
    assert (error.value.code, error.value.field) == (ErrorCode.BAD_PAYLOAD, field)
    assert said in error.value.detail
    assert vars(loader) == before


class InPairs(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "choice", "said"),
    [
        ([1, 2], DataChoice(ids(1)), "list is no DataLoader of torch"),
        (DataLoader(Stream()), DataChoice(ids(1)), "Stream is an iterable data set"),
        (
            DataLoader(
                Numbers(),
                batch_sampler=InPairs(SequentialSampler(Numbers()), 2, drop_last=False),
            ),
            DataChoice(ids(1)),
            "a batch sampler of its own (InPairs)",
        ),
        (DataLoader(Numbers(), batch_size=None), DataChoice(batch_size=3), "makes no batches"),
    ],
)
def test_a_loader_that_cannot_is_named(loader: Any, choice: DataChoice, said: str) -> None:
    with pytest.raises(CommandError) as error:
        ChosenData(loader).choose(choice)
    assert error.value.code is ErrorCode.UNSUPPORTED
    assert said in error.value.detail


class Counted:
    """A fit of which only the batches of an epoch are asked."""

    def __init__(self, epoch: tuple[int, int] | None) -> None:
        self.epoch = lambda: epoch


@pytest.mark.parametrize(
    ("epoch", "steps", "batch_idx", "epochs"),
    [
        ((3, 1), 8, 0, 3),
        ((3, 1), 1, 2, 1),
        ((3, 1), 2, 2, 2),
        ((3, 2), 4, 0, 2),  # the last batch of an epoch steps with what there is
        ((3, 2), 2, 2, 2),
        (None, 5, 0, None),
    ],
)
def test_steps_are_so_many_epochs(
    epoch: tuple[int, int] | None, steps: int, batch_idx: int, epochs: int | None
) -> None:
    fit: Any = Counted(epoch)
    assert TrainingData(fit).epochs_of(steps, batch_idx) == epochs


# ---------------------------------------------------------------- of several ranks


def share(rank: int, dataset: Any, **how: Any) -> DistributedSampler[Any]:
    return DistributedSampler(dataset, num_replicas=3, rank=rank, seed=5, **how)


@pytest.mark.parametrize("how", [{}, {"shuffle": False}, {"drop_last": True}])
@pytest.mark.parametrize("chosen", [[1, 2, 4, 7, 9, 11, 18], [3, 5, 8], [19, 4]])
def test_ranks_share_chosen_samples_as_torch_shares_a_subset(
    chosen: list[int], how: dict[str, Any]
) -> None:
    numbers, drops = Numbers(), how.get("drop_last") and len(chosen) > 2
    drawn: list[int] = []
    for rank in range(3):
        loader = DataLoader(numbers, batch_size=1, sampler=share(rank, numbers, **how))
        loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
        data = ChosenData(loader)
        told = data.choose(DataChoice(ids(*chosen)))
        alike = share(rank, Subset(numbers, chosen), **{**how, "drop_last": drops})
        for epoch in (1, 2):  # the first is the one that it was chosen in
            if epoch == 2:
                loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            alike.set_epoch(epoch)
            found = [int(batch) for batch in loader]
            assert found == [chosen[place] for place in alike]
        assert len(loader) == len(alike)
        data.restore()
        assert loader.sampler.epoch == 2  # type: ignore[attr-defined]
        drawn += found
        of_three = {7: "2 of an epoch's samples are drawn once more", 2: "1 of an epoch's samples"}
        if drops and len(chosen) == 7:
            assert told == ["1 of the samples are left out of each epoch (drop_last)"]
        elif len(chosen) in of_three:
            assert told[0].startswith(of_three[len(chosen)])
        else:
            assert told == []
    assert set(drawn) <= set(chosen)
    assert drops or set(drawn) == set(chosen)


def test_ranks_share_one_draw_by_weights() -> None:
    numbers, drawn = Numbers(), []
    choice = DataChoice(ids(*range(12)), torch.tensor([0.0] * 6 + [1.0] * 6, dtype=torch.float64))
    for rank in range(3):
        loader = DataLoader(numbers, batch_size=2, sampler=share(rank, numbers))
        ChosenData(loader).choose(choice)
        drawn.append([int(each) for batch in loader for each in batch])
    generator = torch.Generator()
    generator.manual_seed(5)
    assert choice.weights is not None
    of_all = torch.multinomial(choice.weights, 12, replacement=True, generator=generator).tolist()
    assert drawn == [of_all[0::3], of_all[1::3], of_all[2::3]]
