"""Batch size and the weights of classes are set while a fit runs: it is the run of a script that
had changed them at that epoch, also when it is killed in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from otf_core.state.run_folder import complete_checkpoints
from otf_lightning import OnTheFlyCallback
from tests.exact.data import digits, weighted
from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, _val
from tests.plugin.rig import Barrier, Fit, fitting, pause_in

SIZE, OTHER, WITHIN = 16, 8, 2  # six batches an epoch, then twelve
FACTORS = {"3": 4.0, "7": 0.0}


def fit(callbacks: list[L.Callback], **limits: Any) -> L.Trainer:
    data = digits()
    loader = DataLoader(data, batch_size=SIZE, sampler=weighted(data))
    trainer = _trainer(callbacks, **{"max_epochs": 4, **limits})
    trainer.fit(Net(), loader, _val())
    return trainer


class Script(L.Callback):
    """What a person would have written into the script; epoch -> batch size, factors."""

    def __init__(self, plan: dict[int, tuple[int, dict[str, float]]]) -> None:
        self.plan = plan

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch not in self.plan:
            return
        size, factors = self.plan[trainer.current_epoch]
        loader: Any = trainer.train_dataloader
        loader.batch_sampler.batch_size = size
        weights = (loader.dataset.tensors[1].double() + 1).clone()
        for label, factor in factors.items():
            weights[loader.dataset.tensors[1] == int(label)] *= factor
        loader.sampler.weights = weights
        trainer.fit_loop.max_batches = len(loader)
        trainer.fit_loop._combined_loader.limits = [len(loader)]
        trainer.val_check_batch = len(loader)


def scripted(plan: dict[int, tuple[int, dict[str, float]]], **limits: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    return digest.of(fit([Script(plan)], **limits))


@contextmanager
def held(tmp: Path, *at: int, **limits: Any) -> Iterator[tuple[Fit, Barrier]]:
    torch.manual_seed(3)
    barrier = Barrier(*at)
    with fitting(
        lambda c: fit(c, **limits), tmp / "run", barrier, project="p", run_name="r"
    ) as running:
        yield running, barrier


def ask(running: Fit, cmd: str, **payload: Any) -> dict[str, Any]:
    reply = running.dashboard.request(cmd, payload)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


def row(running: Fit, path: str) -> dict[str, Any]:
    rows = ask(running, "list_params")["params"]
    return next(row for row in rows if row["path"] == path)  # type: ignore[no-any-return]


def killed_now(running: Fit, tmp: Path, name: str) -> Path:
    """What would be left of it on the disk."""
    saved = ask(running, "save_ckpt")["path"]
    shutil.copytree(tmp / "run", tmp / name)
    return tmp / name / Path(saved).relative_to(tmp / "run")


def gone_on(path: Path, tmp: Path, name: str, **limits: Any) -> dict[str, Any]:
    torch.manual_seed(99)
    ours = OnTheFlyCallback(
        "p", "r", save_dir=tmp / name, dashboard="off", resume=path, telemetry="off"
    )
    found = digest.of(fit([ours], **limits))
    assert ours.run_dir is not None
    manifest, _ = complete_checkpoints(ours.run_dir)[-1]
    assert manifest.exact
    return found


def trained(found: dict[str, Any]) -> dict[str, Any]:
    """All that decides how it goes on; lines of what was logged are of one process each."""
    return {name: value for name, value in found.items() if name != "logged"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "limits", [{}, {"accumulate_grad_batches": 3}], ids=["plain", "accumulating"]
)
def test_what_is_set_is_used_from_the_next_epoch_on(limits: dict[str, Any], tmp_path: Path) -> None:
    with held(tmp_path, WITHIN, 8, 20, **limits) as (running, barrier):
        pause_in(running, barrier, WITHIN)
        assert (row(running, "data.batch_size")["value"], SIZE) == (SIZE, SIZE)
        ask(running, "set_param", path="data.batch_size", value=OTHER)
        for label, factor in FACTORS.items():
            ask(running, "set_param", path=f"data.sampler.weights.{label}", value=factor)
        found = row(running, "data.batch_size")
        assert (found["value"], found["in_use"]) == (OTHER, SIZE)
        waiting = killed_now(running, tmp_path, "waiting")
        ask(running, "resume")
        pause_in(running, barrier, 8)
        found = row(running, "data.batch_size")
        assert (found["value"], found["in_use"]) == (OTHER, OTHER)
        assert row(running, "data.sampler.weights.7")["in_use"] == 0.0
        within = killed_now(running, tmp_path, "within")
        ask(running, "resume")
        pause_in(running, barrier, 20)  # of the third epoch
        for _ in range(3):
            ask(running, "undo")
        assert row(running, "data.batch_size")["value"] == SIZE
        ask(running, "resume")
        live = digest.of(running.outcome())
        told = [e["text"] for e in running.dashboard.events() if e["type"] == "log"]
    undone = scripted({1: (OTHER, FACTORS), 3: (SIZE, {})}, **limits)
    assert live == undone
    assert len([text for text in told if "from this epoch on" in text]) == 2, told
    stays = trained(scripted({1: (OTHER, FACTORS)}, **limits))
    assert trained(gone_on(waiting, tmp_path, "waiting", **limits)) == stays
    assert trained(gone_on(within, tmp_path, "within", **limits)) == stays


@pytest.mark.timeout(120)
def test_at_once_the_epoch_begins_anew_as_in_a_fork_with_that_size(tmp_path: Path) -> None:
    with held(tmp_path, WITHIN) as (running, barrier):
        pause_in(running, barrier, WITHIN)
        both = [
            {"path": "data.takes_effect", "value": "now"},
            {"path": "data.batch_size", "value": OTHER},
        ]
        ask(running, "set_params", changes=both)
        found = row(running, "data.batch_size")
        assert (found["value"], found["in_use"]) == (OTHER, OTHER)
        ask(running, "resume")
        live = trained(digest.of(running.outcome()))
    with held(tmp_path / "other", WITHIN) as (running, barrier):
        pause_in(running, barrier, WITHIN)
        ask(running, "fork", batch_size=OTHER)
        ask(running, "resume")
        assert trained(digest.of(running.outcome())) == live


@pytest.mark.timeout(120)
def test_rolled_back_it_never_was(tmp_path: Path) -> None:
    with held(tmp_path, WITHIN, 8) as (running, barrier):
        pause_in(running, barrier, WITHIN)
        ask(running, "set_param", path="data.batch_size", value=OTHER)
        ask(running, "set_param", path="data.sampler.weights.3", value=3.0)
        ask(running, "resume")
        pause_in(running, barrier, 8)
        assert ask(running, "undo", restore=True)["now"] == {"step": 3}
        found = row(running, "data.batch_size")
        assert (found["value"], found["in_use"]) == (SIZE, SIZE)
        assert row(running, "data.sampler.weights.3")["value"] == 1.0
        ask(running, "resume")
        assert trained(digest.of(running.outcome())) == trained(scripted({}))


@pytest.mark.timeout(120)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    refusals: list[tuple[str, Any, str]] = [
        ("data.batch_size", 0, "allowed: 1"),
        ("data.batch_size", 2.5, "a whole number"),
        ("data.sampler.weights.3", -1.0, "allowed: 0.0 to 1000.0"),
        ("data.sampler.weights.11", 2.0, "was asked"),
        ("data.takes_effect", "later", "next epoch, now"),
    ]
    with held(tmp_path, WITHIN) as (running, barrier):
        pause_in(running, barrier, WITHIN)
        for path, value, why in refusals:
            reply = running.dashboard.request("set_param", {"path": path, "value": value})
            assert not reply["ok"]
            assert why in reply["detail"], reply
        for label in range(9):
            ask(running, "set_param", path=f"data.sampler.weights.{label}", value=0.0)
        last = {"path": "data.sampler.weights.9", "value": 0}
        assert "above 0" in running.dashboard.request("set_param", last)["detail"]
        for _ in range(9):
            ask(running, "undo")
        ask(running, "resume")
        assert digest.of(running.outcome()) == scripted({})
