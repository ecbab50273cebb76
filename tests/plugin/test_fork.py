"""A fork trains on what was chosen, its parent is what it was, and one without changes is its
parent going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, _val, digits
from tests.plugin.rig import Barrier, Fit, fitting, pause_in, unlogged


class Numbered(Dataset[Any]):
    """Each sample with its id."""

    def __init__(self) -> None:
        self.data = digits()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return *self.data[index], index


class Seeing(Net):
    """Remembers what it was trained on, batch by batch, and at which learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[tuple[list[int], float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, ids = batch
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.trained.append((ids.tolist(), lr))
        return super().training_step((x, y), batch_idx)


def train(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Numbered(), batch_size=16, shuffle=True, num_workers=workers)


def fit(callbacks: list[L.Callback], module: Net, *, workers: int = 0, **limits: Any) -> L.Trainer:
    trainer = _trainer(callbacks, **limits)
    trainer.fit(module, train(workers), _val())
    return trainer


def bare(**limits: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    return unlogged(digest.of(fit([], Seeing(), **limits)))


def asks(fit: Fit, cmd: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = fit.dashboard.request(cmd, payload or {})
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


def refused(fit: Fit, cmd: str, payload: dict[str, Any]) -> tuple[str, str]:
    reply = fit.dashboard.request(cmd, payload)
    assert not reply["ok"], reply
    return reply["code"], reply["detail"]


CHOSEN = [*range(7, 90, 3)]


@pytest.mark.parametrize("batch", [4, 11])  # in an epoch, and its last
def test_a_fork_in_which_nothing_is_other_is_its_parent_going_on(
    batch: int, tmp_path: Path
) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(batch)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, batch)
        said = asks(run, "fork")
        assert said["new_run"] == "fork1"
        assert (said["parent"], said["at_step"], said["subset_indices"]) == ("r", batch + 1, [])
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_it_trains_on_the_chosen_and_its_parent_goes_on_as_if_it_had_not_been(
    workers: int, tmp_path: Path
) -> None:
    expected = bare(workers=workers)
    torch.manual_seed(3)
    module = Seeing()
    barrier = Barrier(4, 11)
    with fitting(lambda c: fit(c, module, workers=workers), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        before = asks(run, "status")
        said = asks(
            run,
            "fork",
            {
                "selection": {"kind": "indices", "ids": CHOSEN},
                "hparams": {"lr": 0.003, "batch_size": 8},
                "run_name": "hard",
            },
        )
        assert said["subset_indices"] == CHOSEN
        now = asks(run, "status")
        assert (now["run_id"], now["state"], now["step"]) == ("hard", "paused", 5)
        assert now["run_gen"] > before["run_gen"]
        asks(run, "resume")
        pause_in(run, barrier, 11)
        ids = [each for batch, _ in module.trained[5:12] for each in batch]
        assert set(ids) <= set(CHOSEN)
        assert sorted(ids[: len(CHOSEN)]) == CHOSEN  # the first pass: each once
        assert [len(batch) for batch, _ in module.trained[5:9]] == [8, 8, 8, 4]
        assert module.trained[5][1] == 0.003
        back = asks(run, "switch_run", {"run_id": "r"})
        assert (back["step"], back["paused"], back["run_id"]) == (5, True, "r")
        asks(run, "resume")
        trainer = run.outcome()
        seen = run.dashboard.events()
    assert unlogged(digest.of(trainer)) == expected
    told = [(e["type"], e["run_id"]) for e in seen if e["type"] in MOVES]
    assert told == [
        ("newRun", "r"),
        ("runTransition", "r"), ("finalizeRun", "r"), ("newRun", "hard"),
        ("runTransition", "hard"), ("finalizeRun", "hard"),
    ]  # fmt: skip
    steps = {
        name: [e["step"] for e in seen if e["type"] == "trainStep" and e["run_id"] == name]
        for name in ("r", "hard")
    }
    assert steps == {"r": list(range(1, 25)), "hard": list(range(6, 13))}
    [made] = [e for e in seen if e["type"] == "newRun" and e["run_id"] == "hard"]
    assert made["parents"] == ["r"]
    assert made["meta"]["subset_count"] == len(CHOSEN)
    assert (made["meta"]["kind"], made["meta"]["at_step"]) == ("fork", 5)
    record = json.loads(next(tmp_path.glob("*/hard/run.json")).read_text())
    assert (record["parents"], record["kind"]) == (["r"], "fork")


MOVES = ("newRun", "runTransition", "finalizeRun")
