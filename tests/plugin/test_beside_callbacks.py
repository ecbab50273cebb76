"""The callbacks that people have, all at once, and ours among them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
)

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _train, _trainer, _val
from tests.plugin.rig import Barrier, Stop, StopAt, fitting, pause_in

torch.set_num_threads(1)  # for what is made once for all tests, too
EPOCHS, BATCHES = 4, 12


def usual(tmp_path: Path) -> list[L.Callback]:
    return [
        ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=2, save_last=True),
        EarlyStopping("val_loss", patience=3),
        RichProgressBar(),
        LearningRateMonitor("step"),
        StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2, annealing_epochs=2),
        Timer("00:01:00:00"),
    ]


def trained(callbacks: list[L.Callback]) -> L.Trainer:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    trainer = _trainer(
        callbacks, max_epochs=EPOCHS, enable_progress_bar=True, enable_checkpointing=True
    )
    trainer.fit(Net(schedule=None), _train(), _val())
    return trainer


def kept(trainer: L.Trainer) -> dict[str, Any]:
    """What the callbacks have come to, without paths and clocks."""
    [best] = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
    [patience] = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]
    scores = sorted(float(score) for score in best.best_k_models.values())
    return {
        "best": best.best_model_score,
        "scores": scores,
        "files": sorted(path.name for path in Path(str(best.dirpath)).iterdir()),
        "waited": (patience.wait_count, float(patience.best_score)),
    }


def found_in(trainer: L.Trainer) -> dict[str, Any]:
    return digest.of(trainer) | {"kept": kept(trainer)}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_in(trained(usual(tmp_path_factory.mktemp("bare"))))


def equal(found: dict[str, Any], expected: dict[str, Any], *, logged: bool = True) -> None:
    for part, value in expected.items():
        if part != "logged" or logged:
            assert found[part] == value, part


@pytest.mark.parametrize("place", ["first", "last", "between"])
def test_nobody_touches_it(place: str, tmp_path: Path, bare: dict[str, Any]) -> None:
    ours: L.Callback = OnTheFlyCallback(save_dir=tmp_path / "runs", dashboard="off")
    theirs = usual(tmp_path)
    at = {"first": 0, "last": len(theirs), "between": 3}[place]
    equal(found_in(trained([*theirs[:at], ours, *theirs[at:]])), bare)


def test_held_validated_and_let_go_it_is_the_run_that_nobody_touched(
    tmp_path: Path, bare: dict[str, Any]
) -> None:
    barrier = Barrier(2 * BATCHES + 4)  # while weights are averaged
    with fitting(
        lambda ours: trained([*usual(tmp_path), *ours]), tmp_path / "runs", barrier
    ) as fit:
        pause_in(fit, barrier, 2 * BATCHES + 4)
        for cmd in ("validate_now", "save_ckpt"):
            assert fit.dashboard.reply_to(fit.dashboard.send(cmd))["ok"]
        assert fit.dashboard.reply_to(fit.dashboard.send("resume"))["ok"]
    equal(found_in(fit.outcome()), bare, logged=False)


class Drawn(Net):
    """Has the bar drawn within a validation, as its own thread may at any time."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        bar = self.trainer.progress_bar_callback
        assert isinstance(bar, RichProgressBar)
        assert bar.progress is not None
        bar.progress.refresh()
        super().validation_step(batch, batch_idx)


def test_the_bar_is_drawn_while_the_run_is_validated(tmp_path: Path) -> None:
    barrier = Barrier(4)

    def run(ours: list[Any]) -> L.Trainer:
        trainer = _trainer([RichProgressBar(), *ours], max_epochs=1, enable_progress_bar=True)
        trainer.fit(Drawn(), _train(), _val())
        return trainer

    with fitting(run, tmp_path / "runs", barrier) as fit:
        pause_in(fit, barrier, 4)
        reply = fit.dashboard.reply_to(fit.dashboard.send("validate_now"))
        assert reply["ok"], reply
        assert fit.dashboard.reply_to(fit.dashboard.send("resume"))["ok"]
    fit.outcome()


def test_a_rate_that_is_set_is_monitored(tmp_path: Path) -> None:
    barrier = Barrier(4)
    with fitting(
        lambda ours: trained([*usual(tmp_path), *ours]), tmp_path / "runs", barrier
    ) as fit:
        pause_in(fit, barrier, 4)
        asked = fit.dashboard.send("set_param", {"path": "lr", "value": 0.004})
        assert fit.dashboard.reply_to(asked)["data"]["applied_step"] == 5
        assert fit.dashboard.reply_to(fit.dashboard.send("resume"))["ok"]
    rates = [
        float.fromhex(dict(values)["lr-AdamW"])
        for _, values in fit.outcome().logger.lines
        if "lr-AdamW" in dict(values)
    ]
    assert rates[:5] == [0.01] * 5
    assert rates[5 : 2 * BATCHES] == [0.004] * (2 * BATCHES - 5)


def test_rolled_back_the_bars_go_on(tmp_path: Path) -> None:
    def without_averaging(folder: str) -> list[L.Callback]:
        found = usual(tmp_path / folder)
        return [c for c in found if not isinstance(c, StochasticWeightAveraging)]

    expected = found_in(trained(without_averaging("bare")))
    barrier = Barrier(4, BATCHES + 3)
    with fitting(
        lambda ours: trained([*without_averaging("ours"), *ours]), tmp_path / "runs", barrier
    ) as fit:
        held = pause_in(fit, barrier, 4)["step"]
        assert fit.dashboard.reply_to(fit.dashboard.send("resume"))["ok"]
        pause_in(fit, barrier, BATCHES + 3)
        back = fit.dashboard.reply_to(fit.dashboard.send("rollback", {"step": held}))
        assert back["ok"], back
        assert fit.dashboard.reply_to(fit.dashboard.send("resume"))["ok"]
    found = found_in(fit.outcome())
    assert found["weights"] == expected["weights"]
    assert found["kept"]["waited"] == expected["kept"]["waited"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # Lightning's
@pytest.mark.parametrize("batch", [BATCHES + 5, 2 * BATCHES + 5])
def test_killed_and_resumed_it_is_the_run_that_nobody_touched(
    batch: int, tmp_path: Path, bare: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def ours() -> OnTheFlyCallback:
        return OnTheFlyCallback(
            "p", "r", save_dir=tmp_path / "runs", dashboard="off", checkpoint_every=4, resume="auto"
        )

    with pytest.raises(Stop):
        trained([*usual(tmp_path), ours(), StopAt(batch)])
    found = found_in(trained([*usual(tmp_path), ours()]))
    assert "resumed from step" in capsys.readouterr().err
    equal(found, bare, logged=False)
