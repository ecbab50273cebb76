"""A run that goes on writes into the logs it had, as if it had never been away."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit
from tests.plugin.rig import Stop, StopAt


def ours(tmp_path: Path, **options: Any) -> OnTheFlyCallback:
    return OnTheFlyCallback("p", "r", save_dir=tmp_path / "runs", dashboard="off", **options)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    return [{k: v for k, v in sorted(row.items()) if v} for row in found]


@pytest.mark.parametrize("flush", [1, 5, 100])
def test_a_csv_has_the_rows_of_the_run_that_nobody_stopped(flush: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    _fit([], Net(), logger=CSVLogger(tmp_path / "bare", flush_logs_every_n_steps=flush))
    expected = rows(tmp_path / "bare" / "lightning_logs" / "version_0")

    def logger() -> CSVLogger:
        return CSVLogger(tmp_path / "logs", flush_logs_every_n_steps=flush)

    torch.manual_seed(3)
    with pytest.raises(Stop):
        _fit([ours(tmp_path, checkpoint_every=4), StopAt(18)], Net(), logger=logger())
    torch.manual_seed(99)
    _fit([ours(tmp_path, checkpoint_every=4, resume="auto")], Net(), logger=logger())

    versions = [p.name for p in (tmp_path / "logs" / "lightning_logs").iterdir()]
    assert versions == ["version_0"]
    assert rows(tmp_path / "logs" / "lightning_logs" / "version_0") == expected


def test_tensorboard_goes_on_in_its_version(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _fit(
            [ours(tmp_path, checkpoint_every=4), StopAt(18)],
            Net(),
            logger=TensorBoardLogger(tmp_path / "logs"),
        )
    _fit(
        [ours(tmp_path, checkpoint_every=4, resume="auto")],
        Net(),
        logger=TensorBoardLogger(tmp_path / "logs"),
    )
    logs = tmp_path / "logs" / "lightning_logs"
    assert last_step(logs / "version_0") == 23
    assert [path.name for path in logs.iterdir()] == ["version_0"], "the new one was empty"


def test_a_new_version_in_which_something_lies_stays(tmp_path: Path) -> None:
    def logger() -> TensorBoardLogger:
        return TensorBoardLogger(tmp_path / "logs")

    with pytest.raises(Stop):
        _fit([ours(tmp_path, checkpoint_every=4), StopAt(18)], Net(), logger=logger())
    second = logger()
    second.experiment.add_scalar("mine", 1.0)
    other = Path(second.log_dir) / "events.out.tfevents.1.elsewhere.1.0"
    event_file = next(Path(second.log_dir).iterdir())
    other.write_bytes(bytes(16))  # one record, but of another process
    _fit([ours(tmp_path, checkpoint_every=4, resume="auto")], Net(), logger=second)

    assert sorted(Path(tmp_path / "logs" / "lightning_logs" / "version_1").iterdir()) == sorted(
        [event_file, other]
    )


def last_step(folder: Path) -> int | None:
    found = EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()["scalars"]
    return max(event.step for event in found.Scalars("train_loss_step")) if tags else None


def test_a_version_that_the_script_names_is_left_alone(tmp_path: Path) -> None:
    _fit(
        [ours(tmp_path)],
        Net(),
        logger=CSVLogger(tmp_path / "logs"),
    )
    _fit(
        [ours(tmp_path, resume="auto")],
        Net(),
        max_epochs=3,
        logger=CSVLogger(tmp_path / "logs", version="mine"),
    )
    versions = sorted(p.name for p in (tmp_path / "logs" / "lightning_logs").iterdir())
    assert versions == ["mine", "version_0"]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_checkpoints_of_lightning_go_on_beside_them(kind: Any, tmp_path: Path) -> None:
    """In their folder, with their scores; a warning that they do not would be an error here."""

    def fit(*more: L.Callback) -> L.Trainer:
        best = ModelCheckpoint(monitor="train_loss_step", save_top_k=2, every_n_train_steps=3)
        return _fit(
            [best, ours(tmp_path, checkpoint_every=4, resume="auto"), *more],
            Net(),
            logger=kind(tmp_path / "logs"),
            enable_checkpointing=True,
        )

    with pytest.raises(Stop):
        fit(StopAt(18))
    [best] = fit().checkpoint_callbacks
    folder = tmp_path / "logs" / "lightning_logs" / "version_0" / "checkpoints"
    assert isinstance(best, ModelCheckpoint)
    assert best.dirpath == str(folder)
    assert {Path(path).parent for path in best.best_k_models} == {folder}
    assert [path.name for path in (tmp_path / "logs" / "lightning_logs").iterdir()] == ["version_0"]
