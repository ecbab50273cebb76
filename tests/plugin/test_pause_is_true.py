"""Pause is acknowledged only when the run is held; an edit in the middle changes nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.no_harm import digest
from tests.no_harm.configs import CASES, Net, _fit, digits
from tests.plugin.rig import Barrier, fitting


def seed() -> None:
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)


class Steps(L.Callback):
    """Counts what the optimizer really did."""

    def __init__(self) -> None:
        self.done = 0

    def on_before_zero_grad(self, *_: Any) -> None:
        self.done += 1


def test_pausing_at_once_and_paused_only_on_arrival(tmp_path: Path) -> None:
    barrier, steps = Barrier(5), Steps()
    with fitting(lambda c: _fit([*c, steps]), tmp_path, barrier) as fit:
        dashboard = fit.dashboard
        barrier.wait_for(5)  # inside the sixth batch, which takes as long as we like
        asked = dashboard.send("pause", {"reason": "to look"})
        accepted = dashboard.expect("accepted", request_id=asked)
        assert (accepted["cmd"], accepted["step"], accepted["waits_for"]) == (
            "pause", 5, "safe_point",
        )  # fmt: skip
        pausing = dashboard.expect("state", state="pausing")
        assert pausing["step"] == 5
        status = dashboard.request("status")["data"]
        assert status["state"] == "pausing"
        assert [p["request_id"] for p in status["pending"]] == [asked]
        assert not any(m.get("id") == asked and "ok" in m for m in dashboard.messages)
        assert not any(m.get("type") == "paused" for m in dashboard.messages)

        barrier.let_go(5)
        reply = dashboard.reply_to(asked)["data"]
        paused = dashboard.expect("paused")
        assert reply["step"] == reply["applied_step"] == paused["step"] == 6
        assert reply["ckpt"] == paused["ckpt"]
        saved = torch.load(reply["ckpt"], weights_only=True)
        assert saved["global_step"] == 6
        assert dashboard.request("status")["data"]["state"] == "paused"
        assert steps.done == 6

        again = dashboard.request("pause")["data"]
        assert again == reply
        gone = dashboard.request("resume")["data"]
        assert (gone["step"], gone["changed"]) == (6, True)
    kinds = [e["type"] for e in dashboard.events()]
    assert kinds.count("paused") == kinds.count("resumed") == 1
    between = kinds[kinds.index("paused") : kinds.index("resumed")]
    assert "trainStep" not in between


class SetsRate(L.Callback):
    """What a person would have written into the script."""

    def __init__(self, at_batch: int, rate: float) -> None:
        self._at, self._rate, self._seen = at_batch, rate, 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._seen == self._at:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = self._rate
        self._seen += 1


def plain(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, Net(schedule=None))


def accumulating(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, Net(schedule=None), accumulate_grad_batches=3)


def bf16(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, Net(schedule=None), precision="bf16-mixed")


RUNS = {
    "plain": plain,
    "accumulating": accumulating,
    "bf16": bf16,
    "workers": CASES["workers"],
    "draws_in_process": CASES["draws_in_process"],
    "manual": CASES["manual_with_two_optimizers"],
}


@pytest.mark.parametrize("name", RUNS)
def test_pause_validate_test_set_resume_is_the_run_with_that_rate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Net, "configure_optimizers", _without_schedule(Net.configure_optimizers))
    run = RUNS[name]
    seed()
    expected = digest.of(run([SetsRate(5, 0.004)], tmp_path / "a"))

    barrier = Barrier(4)
    seed()
    tests = DataLoader(digits(64), batch_size=16)
    with fitting(
        lambda c: run(c, tmp_path / "b"), tmp_path / "runs", barrier, test_dataloaders=tests
    ) as fit:
        dashboard = fit.dashboard
        barrier.wait_for(4)
        pause = dashboard.send("pause")
        dashboard.expect("state", state="pausing")
        barrier.let_go(4)
        step = dashboard.reply_to(pause)["data"]["step"]
        validated = dashboard.request("validate_now")
        assert validated["ok"], validated
        assert validated["data"]["metrics"]
        tested = dashboard.request("test_now", {"label": "now"})
        assert tested["ok"], tested
        assert tested["data"]["step"] == step
        groups = "optim.0.groups.0.lr" if name == "manual" else "lr"
        edited = dashboard.request("set_param", {"path": groups, "value": 0.004})["data"]
        assert (edited["new"], edited["applied_step"]) == (0.004, step)
        assert dashboard.request("resume")["ok"]
        trainer = fit.outcome()
    found = digest.of(trainer)

    # The test was logged by the user's logger, as it should be; nothing else differs.
    logged = [line for line in found.pop("logged") if "test_loss" not in dict(line[1])]
    assert logged == expected.pop("logged")
    for part, value in expected.items():
        assert found[part] == value, part


def _without_schedule(original: Any) -> Any:
    def configure(self: Net) -> Any:
        self.schedule = None
        return original(self)

    return configure
