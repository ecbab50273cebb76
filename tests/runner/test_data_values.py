"""Batch size and the weights of classes are set while a fit of the Runner runs; see
tests/plugin/test_data_values.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from otf_core.runner import RunnerCallback
from tests.exact import data, digest
from tests.plugin.rig import Fit, pause_in
from tests.runner.rig import Barrier, fitted, fitting

SIZE, OTHER, WITHIN = 16, 8, 2
FACTORS = {"3": 4.0, "7": 0.0}


def pieces(_: Any) -> dict[str, Any]:
    digits = data.digits()
    return {"train_loader": data.loader(digits, sampler=data.weighted(digits))}


class Script(RunnerCallback):
    """Epoch -> batch size, factors."""

    is_otf = True

    def __init__(self, plan: dict[int, tuple[int, dict[str, float]]]) -> None:
        self.plan = plan

    def on_train_epoch_start(self, run: Any) -> None:
        if run.counters.epoch not in self.plan:
            return
        size, factors = self.plan[run.counters.epoch]
        [loader] = run.fit_loop.loaders
        loader.batch_sampler.batch_size = size
        labels = loader.dataset.tensors[1]
        weights = labels.double() + 1
        for label, factor in factors.items():
            weights[labels == int(label)] *= factor
        loader.sampler.weights = weights
        run.fit_loop.count()
        run.fit_loop.val_check_batch = len(loader)


def scripted(tmp: Path, plan: dict[int, tuple[int, dict[str, float]]]) -> dict[str, Any]:
    run = fitted(Script(plan), pieces=pieces, max_epochs=4, dashboard="off", save_dir=tmp)
    return digest.of_run(run)


def ask(fit: Fit, cmd: str, **payload: Any) -> dict[str, Any]:
    reply = fit.dashboard.request(cmd, payload)
    assert reply["ok"], reply
    found: dict[str, Any] = reply["data"]
    return found


@pytest.mark.timeout(180)
def test_what_is_set_is_used_from_the_next_epoch_on(tmp_path: Path) -> None:
    barrier = Barrier(WITHIN, 20)
    options = {"pieces": pieces, "max_epochs": 4}
    with fitting(tmp_path / "run", barrier, **options) as fit:
        pause_in(fit, barrier, WITHIN)
        ask(fit, "set_param", path="data.batch_size", value=OTHER)
        for label, factor in FACTORS.items():
            ask(fit, "set_param", path=f"data.sampler.weights.{label}", value=factor)
        saved = ask(fit, "save_ckpt")["path"]
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        ask(fit, "resume")
        pause_in(fit, barrier, 20)
        for _ in range(3):
            ask(fit, "undo")
        ask(fit, "resume")
        live = digest.of_run(fit.outcome())
    undone = scripted(tmp_path / "a", {1: (OTHER, FACTORS), 3: (SIZE, {})})
    assert digest.differences(undone, live) == []
    path = tmp_path / "killed" / Path(saved).relative_to(tmp_path / "run")
    again = fitted(
        resume=path, dashboard="off", save_dir=tmp_path / "killed", telemetry="off", **options
    )
    stays = scripted(tmp_path / "b", {1: (OTHER, FACTORS)})
    assert digest.differences(stays, digest.of_run(again)) == []


@pytest.mark.timeout(120)
def test_at_once_the_epoch_begins_anew_as_in_a_fork_with_that_size(tmp_path: Path) -> None:
    found = []
    for how in ("set", "fork"):
        barrier = Barrier(WITHIN)
        with fitting(tmp_path / how, barrier, pieces=pieces) as fit:
            pause_in(fit, barrier, WITHIN)
            if how == "set":
                ask(fit, "set_param", path="data.batch_size", value=OTHER)
                ask(fit, "set_param", path="data.takes_effect", value="now")
            else:
                ask(fit, "fork", batch_size=OTHER)
            ask(fit, "resume")
            found.append(digest.of_run(fit.outcome()))
    assert digest.differences(*found) == []
