"""The callback in a LightningCLI: from YAML, with every argument, and going on."""

from __future__ import annotations

import csv
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits
from tests.no_harm import digest
from tests.plugin.rig import Stop

# Lightning 2.6 with jsonargparse 4.53: add_instantiator; ends with a Lightning that follows it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_train_batches": 8,
    "limit_val_batches": 1,
    "max_epochs": 1,
}
# Values that are not the defaults; the others of the signature are given their defaults.
GIVEN: dict[str, Any] = {
    "project": "cli",
    "run_name": "of-yaml",
    "dashboard": "off",
    "resume": "auto",
    "keep_checkpoints": 3,
    "checkpoint_every": 4,
    "telemetry": "basic",
    "after_fit": "return",
    "max_hold": 60,
    "max_pause": 30.5,
    "pause_at_start": False,
    "guards": "nan:pause",
    "mirror": False,
}


def config(tmp_path: Path, *more: Any, logger: Any = False, **options: Any) -> Path:
    """A YAML file with our callback, and others behind it."""
    ours = {
        "class_path": "otf_lightning.OnTheFlyCallback",
        "init_args": {"dashboard": "off", "save_dir": str(tmp_path / "runs"), **options},
    }
    trainer = {**QUIET, "logger": logger, "enable_checkpointing": False, "callbacks": [ours, *more]}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"seed_everything": 3, "trainer": trainer}))
    return file


def command(monkeypatch: pytest.MonkeyPatch, *args: str, **options: Any) -> LightningCLI:
    """As from a terminal."""
    monkeypatch.setattr(sys, "argv", ["main.py", *args])
    options.setdefault("save_config_callback", None)
    return LightningCLI(LitDigits, Digits, **options)


def ours_of(cli: LightningCLI) -> OnTheFlyCallback:
    [ours] = [c for c in cli.trainer.callbacks if isinstance(c, OnTheFlyCallback)]
    return ours


def test_every_argument_can_be_given_in_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = inspect.signature(OnTheFlyCallback).parameters
    assert GIVEN.keys() <= parameters.keys()
    given = {name: each.default for name, each in parameters.items()} | GIVEN
    given["save_dir"] = str(tmp_path / "runs")
    file = config(tmp_path, **given)

    ours = ours_of(command(monkeypatch, "fit", "--config", str(file)))

    found = {**vars(ours._options), "mirror": ours._mirrors}
    assert {name: found[name] for name in GIVEN} == GIVEN
    assert ours.run_dir == tmp_path / "runs" / "cli" / "of-yaml"
    record = json.loads((ours.run_dir / "run.json").read_text())
    assert (record["project"], record["run_name"], record["step"]) == ("cli", "of-yaml", 8)


def test_a_run_from_yaml_is_the_run_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = command(monkeypatch, "fit", "--config", str(config(tmp_path)))
    assert ours_of(cli).run_dir is not None
    torch.manual_seed(0)
    L.seed_everything(3, verbose=False)
    data, model = Digits(), LitDigits()
    bare = L.Trainer(**QUIET, logger=False, enable_checkpointing=False)  # type: ignore[arg-type]
    bare.fit(model, datamodule=data)
    found, expected = digest.of(cli.trainer), digest.of(bare)
    assert found["weights"] == expected["weights"]
    assert found == expected


def test_a_value_that_is_not_allowed_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("telemetry", "some"), ("checkpoint_every", "never"), ("speed", 3)):
        file = config(tmp_path, **{name: value})
        with pytest.raises((SystemExit, ValueError)) as refused:  # by its type, or by us
            command(monkeypatch, "fit", "--config", str(file))
        said = capsys.readouterr().err + str(refused.value)
        assert name in said
        assert "allowed: steps > 0" in said or name != "checkpoint_every"
    assert not (tmp_path / "runs").exists()


def test_the_command_line_does_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = "--trainer.callbacks"
    cli = command(
        monkeypatch, "fit", *(f"--trainer.{name}={value}" for name, value in QUIET.items()),
        "--seed_everything=3", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
        f"{callback}=OnTheFlyCallback", f"{callback}.project=line", f"{callback}.dashboard=off",
        f"{callback}.save_dir={tmp_path}",
    )  # fmt: skip
    assert ours_of(cli).run_dir == tmp_path / "line" / "LitDigits"


def test_the_same_command_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CLI's own copy of the configuration, which refuses to overwrite one."""
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(tmp_path / "logs"), "flush_logs_every_n_steps": 1},
    }
    stop = {"class_path": "tests.plugin.rig.StopAt", "init_args": {"step": 6}}
    options = {"project": "cli", "checkpoint_every": 2, "resume": "auto"}
    own = {"save_config_callback": L.pytorch.cli.SaveConfigCallback}
    first = config(tmp_path, stop, logger=logger, **options)
    with pytest.raises(Stop):
        command(monkeypatch, "fit", "--config", str(first), **own)
    again = config(tmp_path, logger=logger, **options)
    cli = command(monkeypatch, "fit", "--config", str(again), **own)

    assert cli.trainer.global_step == 8
    record = json.loads((tmp_path / "runs" / "cli" / "LitDigits" / "run.json").read_text())
    assert len(record["session_ids"]) == 2
    logs = tmp_path / "logs" / "lightning_logs"
    with (logs / "version_0" / "metrics.csv").open(newline="") as lines:
        steps = [int(row["step"]) for row in csv.DictReader(lines)]
    assert steps == sorted(steps)
    assert steps[-1] == 7
    copies = {path.relative_to(logs) for path in logs.rglob("config.yaml")}
    assert copies == {Path("version_0/config.yaml"), Path("version_1/config.yaml")}
