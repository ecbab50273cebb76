"""A run that failed leaves what it had, and says what that is worth."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, _utils

from otf_core.state.run_folder import find_checkpoint
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit, _trainer, _val, digits

BATCH = 16  # of 24, the fifth of the second epoch
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Fails(L.Callback):
    """Once, within batch ``BATCH``, or in the first batch of the second validation."""

    def __init__(self, hook: str, *, on: bool = True) -> None:
        self.batches, self.validations = 0, 0
        self.hook = hook if on else ""

    def on_train_batch_start(self, *_: Any) -> None:
        self.batches += 1
        self._at("on_train_batch_start")

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validations += 1
        if self.hook == "on_validation_batch_end" and self.validations == 3:
            raise MemoryError(self.hook)

    def on_train_epoch_end(self, *_: Any) -> None:
        if self.hook == "on_train_epoch_end" and self.batches == 24:
            raise MemoryError(self.hook)

    def _at(self, hook: str) -> None:
        if self.hook == hook and self.batches == BATCH:
            raise MemoryError(hook)


def _hook(name: str) -> Any:
    def hook(self: Fails, *_: Any) -> None:
        self._at(name)

    return hook


for _name in HOOKS[1:]:
    setattr(Fails, _name, _hook(_name))


def ours(save_dir: Path, **options: Any) -> OnTheFlyCallback:
    return OnTheFlyCallback("p", "r", save_dir=save_dir, dashboard="off", **options)


def commands(err: str) -> list[tuple[str, str]]:
    """What was said before each command, and its checkpoint."""
    lines = [line for line in err.splitlines() if "OTF_RESUME=" in line]
    return [(line, line.partition("OTF_RESUME=")[2].split()[0]) for line in lines]


@pytest.mark.parametrize("hook", [*HOOKS, "on_validation_batch_end", "on_train_epoch_end"])
def test_what_is_left_goes_on_to_the_end_and_is_never_called_exact(
    hook: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        _fit([ours(tmp_path, checkpoint_every=10), Fails(hook)], Net())
    (left, path), (whole, ring) = commands(capfd.readouterr().err)
    assert "MemoryError: step" in left
    assert "not exactly" in left
    assert "from step 10 the run goes on exactly" in whole or "from step 20" in whole
    manifest = json.loads(Path(path).with_suffix(".json").read_text())
    assert (manifest["exact"], manifest["left_by"]) == (False, "MemoryError")
    found = find_checkpoint(tmp_path, "p", "r")
    assert found is not None
    assert str(found[2]) == ring, "what goes on by itself goes on exactly"

    again = Fails(hook, on=False)
    trainer = _fit([ours(tmp_path, resume=path), again], Net())

    assert trainer.current_epoch == 2
    # The batch that failed was fetched, and is not fetched again; it counts all the same.
    assert trainer.global_step in (23, 24)
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed == 12
    last_epoch = [name for _, line in trainer.logger.lines[-2:] for name, _ in line]
    assert ("val_loss" in last_epoch) is (hook in HOOKS), "a validation is not begun again"
    assert "resumed from what MemoryError had left in the middle of a batch" in (
        capfd.readouterr().err
    )
    assert all(math.isfinite(p.detach().sum()) for p in trainer.lightning_module.parameters())


class Broken(Dataset[Any]):
    damaged = True

    def __init__(self) -> None:
        self.x, self.y = digits().tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        if i == 90 and Broken.damaged:
            raise OSError("this image is damaged")
        return self.x[i], self.y[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_leaves_the_run_at_the_batch_before(
    workers: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # the end of its workers
    torch.manual_seed(3)

    def fit(**options: Any) -> L.Trainer:
        loader = DataLoader(Broken(), batch_size=16, num_workers=workers)
        trainer = _trainer([ours(tmp_path, **options)])
        trainer.fit(Net(), loader, _val())
        return trainer

    with pytest.raises(OSError, match="damaged"):
        fit()
    gc.collect()  # the trainer that failed, and its workers
    (left, path), _ = commands(capfd.readouterr().err)
    assert "OSError: step 5 is kept as it was left" in left
    monkeypatch.setattr(Broken, "damaged", False)
    assert fit(resume=path).current_epoch == 2
    gc.collect()


def test_before_training_nothing_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class NoOptimizer(Net):
        def configure_optimizers(self) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        _fit([ours(tmp_path)], NoOptimizer())
    assert commands(capfd.readouterr().err) == []
    assert not list(tmp_path.glob("p/r/checkpoints/*"))


def test_right_behind_a_checkpoint_there_is_nothing_newer_to_keep(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        _fit([ours(tmp_path, checkpoint_every=15), Fails("on_train_batch_start")], Net())
    [(said, _)] = commands(capfd.readouterr().err)
    assert "from step 15 the run goes on exactly" in said


def test_the_checkpoint_from_which_it_went_on_outlives_an_exception(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is the oldest of the ring, and all newer ones are of another past."""
    torch.manual_seed(3)
    _fit([ours(tmp_path, checkpoint_every=12)], Net())
    origin = tmp_path / "p/r/checkpoints/12-ring.ckpt"
    fails = Fails("on_before_zero_grad")
    fails.batches = BATCH - 2
    capfd.readouterr()
    with pytest.raises(MemoryError):
        _fit([ours(tmp_path, keep_checkpoints=1, resume=origin), fails], Net())
    _, (said, whole) = commands(capfd.readouterr().err)
    assert "from step 12 the run goes on exactly" in said
    assert whole == str(origin)
    assert origin.is_file()


def test_the_one_exact_checkpoint_of_a_ring_of_one_outlives_an_exception(tmp_path: Path) -> None:
    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        _fit(
            [ours(tmp_path, checkpoint_every=14, keep_checkpoints=1), Fails("on_before_zero_grad")],
            Net(),
        )
    found = find_checkpoint(tmp_path, "p", "r")
    assert found is not None
    assert found[1].step == 14


class Modes(L.Callback):
    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def on_train_batch_start(self, _: L.Trainer, module: L.LightningModule, *__: Any) -> None:
        self.seen |= {each.training for each in module.modules()}


def test_what_a_failed_validation_leaves_trains_on_in_training_mode(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        _fit([ours(tmp_path), Fails("on_validation_batch_end")], Net())
    (_, path), _ = commands(capfd.readouterr().err)
    modes = Modes()
    _fit([ours(tmp_path, resume=path), modes], Net(), max_epochs=3)
    assert modes.seen == {True}
