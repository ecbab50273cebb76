"""A fork of a fit of the Runner: its parent is what it was, and it trains on what was chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.exact import data, digest
from tests.exact.digest import differences
from tests.exact.models import Net
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runner.rig import BATCHES, Barrier, bare, fitted, fitting

CHOSEN = [*range(3, 40, 2)]


class Numbered(Dataset[Any]):
    """Each sample with its id."""

    def __init__(self) -> None:
        self.data = data.loader().dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return *self.data[index], index


class Seeing(Net):
    """Notes what it was trained on; not in an attribute of its own, which would go back with it."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        super().__init__()
        trained: list[list[int]] = []
        self.note, self.notes = trained.append, lambda: trained

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        *batch, ids = batch
        if self.training:  # and not looked at
            self.note(ids.tolist())
        return super().training_step(tuple(batch), batch_idx)


def loader(workers: int = 0) -> DataLoader[Any]:
    size = data.loader().batch_size
    return DataLoader(Numbered(), batch_size=size, shuffle=True, num_workers=workers)


def options(module: Any = None, *, workers: int = 0, **more: Any) -> dict[str, Any]:
    given = {"model": module or Seeing(), "pieces": {"train_loader": loader(workers)}}
    return {**given, **more}


@pytest.mark.parametrize("batch", [2, BATCHES - 1])
def test_a_fork_in_which_nothing_is_other_is_its_parent_going_on(
    batch: int, tmp_path: Path
) -> None:
    expected = bare(**options())
    barrier = Barrier(batch)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        pause_in(run, barrier, batch)
        assert asks(run, "fork")["new_run"] == "fork1"
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_it_trains_on_the_chosen_and_its_parent_goes_on_as_if_it_had_not_been(
    workers: int, tmp_path: Path
) -> None:
    expected = bare(**options(workers=workers))
    module, barrier = Seeing(), Barrier(2, 6)
    with fitting(tmp_path, barrier, run_name="r", **options(module, workers=workers)) as run:
        pause_in(run, barrier, 2)
        wanted = {"kind": "indices", "ids": CHOSEN}
        asks(run, "fork", {"selection": wanted, "batch_size": 5, "params": {"lr": 0.5}})
        lr = next(row for row in asks(run, "list_params")["params"] if row["path"] == "lr")
        assert lr["value"] == 0.5
        asks(run, "resume")
        pause_in(run, barrier, 6)
        trained = module.notes()[3:]
        assert sorted(each for batch in trained for each in batch) == CHOSEN
        assert [len(batch) for batch in trained] == [5, 5, 5, 4]
        known = {"chosen": len(CHOSEN), "of": len(Numbered()), "drawn": len(CHOSEN)}
        assert asks(run, "status")["data"] == known
        back = asks(run, "switch_run", {"run_id": "r"})
        assert (back["step"], back["paused"]) == (3, True)
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    expected = bare(**options())
    barrier = Barrier(2)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        pause_in(run, barrier, 2)
        for payload, code in (
            ({"selection": {"kind": "indices", "ids": [10**6]}}, "bad_payload"),
            ({"params": {"nothing": 1}}, "not_found"),
            ({"checkpoint": "none"}, "not_found"),
        ):
            assert refused(run, "fork", payload)[0] == code
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def test_weights_alone_are_of_the_samples_that_its_parent_trains_on(tmp_path: Path) -> None:
    module, barrier = Seeing(), Barrier(2, 5)
    with fitting(tmp_path, barrier, run_name="r", **options(module)) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "batch_size": 5})
        weights = [float(each > 20) for each in CHOSEN]
        assert asks(run, "fork", {"weights": weights})["subset_indices"] == CHOSEN
        assert refused(run, "fork", {"weights": [1.0]})[0] == "bad_payload"
        asks(run, "resume")
        pause_in(run, barrier, 5)
        trained = {each for batch in module.notes()[3:] for each in batch}
        assert trained <= {each for each in CHOSEN if each > 20}
        assert asks(run, "status")["data"]["drawn"] == len(trained)
        asks(run, "resume")


def test_a_fork_that_was_killed_goes_on_with_its_own_data(tmp_path: Path) -> None:
    module, barrier = Seeing(), Barrier(2, 4)
    named = {"project": "p", "run_name": "r"}
    with fitting(tmp_path / "runs", barrier, **named, **options(module)) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "batch_size": 5})
        assert asks(run, "status")["data"]["drawn"] == 0
        asks(run, "resume")
        pause_in(run, barrier, 4)
        assert asks(run, "status")["data"]["drawn"] == 10
        copied = shutil.copytree(tmp_path / "runs", tmp_path / "copied")
        asks(run, "resume")
        expected = digest.of_run(run.outcome())
    torch.manual_seed(99)
    again = Seeing()
    where = {"save_dir": copied, "dashboard": "off", "resume": "auto"}
    found = digest.of_run(fitted(**where, **named, **options(again)))
    assert differences(expected, found) == []
    assert again.notes() == module.notes()[5:]


def test_going_to_and_fro_writes_nothing_that_is_there(tmp_path: Path) -> None:
    barrier = Barrier(2, 3)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}})
        for name in ("r", "fork1", "r"):
            asks(run, "switch_run", {"run_id": name})
        assert kept_in(tmp_path) == {"r": ["0-auto", "3-pause"], "fork1": ["3-auto"]}
        asks(run, "resume")
        pause_in(run, barrier, 3)
        asks(run, "switch_run", {"run_id": "fork1"})
        asks(run, "fork", {"params": {"lr": 0.5}})
        asks(run, "stop", {"save": False})
    r = ["0-auto", "3-pause", "4-pause"]
    assert kept_in(tmp_path) == {"r": r, "fork1": ["3-auto"], "fork2": ["3-auto"]}


def kept_in(save_dir: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(save_dir.glob("*/*/checkpoints/*.ckpt")):
        found.setdefault(path.parents[1].name, []).append(path.stem)
    return found
