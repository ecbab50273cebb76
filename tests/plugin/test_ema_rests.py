"""``model.ema``: Lightning's own average of the weights rests, and goes on, while a fit runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit
from tests.plugin.rig import Barrier, Fit, fitting, pause_in

OFF_AT, ON_AT = 5, 17  # of three epochs of twelve


class Scripted(EMAWeightAveraging):
    """As a person would have written it."""

    def __init__(self, off: int, on: int, **kwargs: Any) -> None:
        super().__init__(decay=0.9, **kwargs)
        self.is_otf = True  # off and on are no part of the run
        self.off, self.on = off, on
        self.step = 0

    def rests(self) -> bool:
        return self.off <= self.step < self.on

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step

    def should_update(self, *args: Any, **kwargs: Any) -> bool:
        return not self.rests() and super().should_update(*args, **kwargs)

    def on_validation_epoch_start(self, *args: Any) -> None:
        if not self.rests():
            super().on_validation_epoch_start(*args)

    def on_validation_epoch_end(self, *args: Any) -> None:
        if not self.rests():
            super().on_validation_epoch_end(*args)

    def on_train_end(self, *args: Any) -> None:
        if not self.rests():
            super().on_train_end(*args)


def fit(callbacks: list[L.Callback], average: L.Callback) -> L.Trainer:
    return _fit([*callbacks, average], Net(), max_epochs=3)


def scripted(off: int, on: int) -> dict[str, Any]:
    torch.manual_seed(3)
    return compared(fit([], Scripted(off, on)))


def compared(trainer: L.Trainer) -> dict[str, Any]:
    found = digest.of(trainer)
    del found["callbacks"]  # by name; what they do is in weights and logged values
    return found


def ask(running: Fit, cmd: str, **payload: Any) -> Any:
    reply = running.dashboard.request(cmd, payload)
    assert reply["ok"], reply
    return reply["data"]


@pytest.mark.timeout(180)
def test_it_rests_and_goes_on_as_if_the_script_had_it_so(tmp_path: Path) -> None:
    torch.manual_seed(3)
    barrier, average = Barrier(OFF_AT - 1, ON_AT - 1), EMAWeightAveraging(decay=0.9)
    with fitting(
        lambda c: fit(c, average), tmp_path / "run", barrier, project="p", run_name="r"
    ) as running:
        pause_in(running, barrier, OFF_AT - 1)
        done = ask(running, "set_param", path="model.ema", value=False)
        assert (done["old"], done["new"]) == (True, False)
        saved = ask(running, "save_ckpt")["path"]
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        ask(running, "resume")
        pause_in(running, barrier, ON_AT - 1)
        assert ask(running, "undo")["now"] == {"model.ema": True}
        ask(running, "resume")
        live = compared(running.outcome())
        [told] = [e for e in running.dashboard.events() if e["type"] == "exactness"]
    assert type(average) is EMAWeightAveraging
    assert told["exact"], told
    assert live == scripted(OFF_AT, ON_AT)
    path = tmp_path / "killed" / Path(saved).relative_to(tmp_path / "run")
    torch.manual_seed(99)
    ours = OnTheFlyCallback(
        "p", "r", save_dir=tmp_path / "killed", dashboard="off", resume=path, telemetry="off"
    )
    again, stays = EMAWeightAveraging(decay=0.9), scripted(OFF_AT, 1000)
    found = compared(fit([ours], again))
    del found["logged"], stays["logged"]  # of one process each
    assert found == stays
    assert type(again) is EMAWeightAveraging, "nothing is left behind the end"


@pytest.mark.timeout(60)
def test_without_one_it_is_refused_by_name(tmp_path: Path) -> None:
    barrier = Barrier(2)
    with fitting(lambda c: _fit(c, Net(), max_epochs=1), tmp_path, barrier) as running:
        pause_in(running, barrier, 2)
        reply = running.dashboard.request("set_param", {"path": "model.ema", "value": True})
        assert reply["code"] == "unsupported"
        assert "callbacks=[EMAWeightAveraging()]" in reply["detail"]
        ask(running, "resume")
        running.outcome()
