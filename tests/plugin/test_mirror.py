"""The user's loggers are told the run's name and its changes, and are otherwise left alone."""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from otf_lightning import OnTheFlyCallback, mirror
from otf_lightning.mirror import Mirror, Told, told_of
from tests.no_harm.configs import Net, _fit
from tests.plugin.rig import Barrier, Fit, fitting, pause_in
from tests.plugin.their_loggers import mlflow_logger, wandb_logger

NAMES = {"run_id": "r", "project": "p", "run_dir": "/runs/p/r"}


@contextlib.contextmanager
def changed(logger: Any, tmp_path: Path, change: Callable[[Fit], None]) -> Iterator[list[str]]:
    """A fit that is held at step 6, changed and let go; what its log warned of, when it is over."""
    barrier, said = Barrier(5), list[str]()
    torch.manual_seed(3)
    with fitting(
        lambda callbacks: _fit(callbacks, Net(), logger=logger),
        tmp_path / "runs",
        barrier,
        project="p",
        run_name="r",
    ) as fit:
        pause_in(fit, barrier, 5)
        change(fit)
        fit.dashboard.reply_to(fit.dashboard.send("resume"))
        yield said
        fit.wait()
        fit.dashboard.expect("trainingFinished")
        said += [
            e["text"]
            for e in fit.dashboard.events()
            if (e["type"], e.get("level")) == ("log", "warning")
        ]


def set_lr_and_note(fit: Fit) -> None:
    for cmd, payload in (
        ("set_param", {"path": "lr", "value": 0.002}),
        ("set_param", {"path": "weight_decay", "value": 0.02}),
        ("note", {"text": "half as fast"}),
    ):
        assert fit.dashboard.reply_to(fit.dashboard.send(cmd, payload))["ok"]


def run_of(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "p" / "r")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    told = found.Tensors(f"{tag}/text_summary")
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in told]


def test_tensorboard_has_two_texts_and_the_curves_that_it_had(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "lightning_logs" / "version_0"
    logger = TensorBoardLogger(tmp_path / "logs")
    with changed(logger, tmp_path, set_lr_and_note) as warned:
        pass
    assert not warned
    [(step, run)] = texts(folder, "otf/run")
    assert step == 0
    assert run == f"- run_id: `r`\n- project: `p`\n- run_dir: `{run_of(tmp_path)}`"
    lr, decay, note = texts(folder, "otf/changes")
    assert (lr[0], lr[1][:3]) == (6, "lr ")
    assert lr[1].endswith("→ 0.002, by user")
    assert decay == (6, "weight_decay 0.01 → 0.02, by user")
    assert note == (6, "note: half as fast")
    assert not [tag for tag in scalars(folder) if "otf" in tag]


def test_without_a_command_the_logs_are_those_of_the_run_without_otf(tmp_path: Path) -> None:
    def logged(name: str, *ours: OnTheFlyCallback) -> tuple[bytes, Any]:
        loggers = [CSVLogger(tmp_path / name / "c"), TensorBoardLogger(tmp_path / name / "t")]
        torch.manual_seed(3)
        _fit([*ours], Net(), logger=loggers)
        version = "lightning_logs/version_0"
        metrics = tmp_path / name / "c" / version / "metrics.csv"
        return metrics.read_bytes(), scalars(tmp_path / name / "t" / version)

    ours = OnTheFlyCallback(save_dir=tmp_path / "runs", dashboard="off")
    assert logged("with", ours) == logged("bare")
    assert [p.name for p in (tmp_path / "bare").rglob("otf*")] == []


def test_a_csv_gets_a_file_beside_it(tmp_path: Path) -> None:
    with changed(CSVLogger(tmp_path / "logs"), tmp_path, set_lr_and_note):
        pass
    folder = tmp_path / "logs" / "lightning_logs" / "version_0"
    with (folder / "otf_changes.csv").open(newline="") as lines:
        run, lr, decay, note = csv.DictReader(lines)
    assert (run["what"], run["run_id"], run["step"], run["text"]) == ("run", "r", "0", "r of p")
    named = ("what", "step", "path", "new", "by")
    assert tuple(lr[n] for n in named) == ("param_changed", "6", "lr", "0.002", "user")
    assert float(lr["old"]) > 0.002
    assert (decay["old"], decay["new"]) == ("0.01", "0.02")
    assert (note["what"], note["text"]) == ("note", "note: half as fast")
    with (folder / "metrics.csv").open(newline="") as lines:
        assert not [name for name in next(csv.reader(lines)) if "otf" in name]


def test_wandb_counts_no_step_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, run_of_bare = wandb_logger(monkeypatch)
    _fit([], Net(), logger=bare)
    logger, run = wandb_logger(monkeypatch)
    with changed(logger, tmp_path, set_lr_and_note):
        pass
    assert run.config["otf"] == {**NAMES, "run_dir": run_of(tmp_path)}
    lr, decay, note = run.summary["otf/changes"]
    assert lr.startswith("step 6: lr 0.00")
    assert decay == "step 6: weight_decay 0.01 → 0.02, by user"
    assert note == "step 6: note: half as fast"
    assert [row["otf/lr"] for row in run.rows if "otf/lr" in row] == [0.002]
    keys = [sorted(key for key in row if not key.startswith("otf/")) for row in run.rows]
    assert keys == [sorted(row) for row in run_of_bare.rows]
    steps = [row["trainer/global_step"] for row in run.rows]
    assert steps == [row["trainer/global_step"] for row in run_of_bare.rows]


def test_mlflow_has_tags_and_a_metric_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, client = mlflow_logger(monkeypatch)
    with changed(logger, tmp_path, set_lr_and_note):
        pass
    tags = {name: value for name, value in client.tags.items() if name != "otf.changes"}
    ours = {f"otf.{name}": value for name, value in NAMES.items()}
    assert tags == {**ours, "otf.run_dir": run_of(tmp_path), "status": "FINISHED"}
    assert len(client.tags["otf.changes"].splitlines()) == 3
    assert client.metrics == [("otf/lr", 0.002, 6), ("otf/weight_decay", 0.02, 6)]
    assert client.told_by == {"otf-mirror"}
    assert not [key for key, *_ in client.batches if "otf" in key]


def test_no_step_waits_for_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "FLUSH_S", 0.05)
    logger, client = mlflow_logger(monkeypatch)
    client.go.clear()
    try:
        with changed(logger, tmp_path, set_lr_and_note) as said:
            pass  # it trains to its end
    finally:
        client.go.set()
        for thread in threading.enumerate():
            if thread.name == "otf-mirror":
                thread.join(60)
    assert said == ["a logger has not taken all changes of this run in time"]


def test_a_logger_that_raises_is_told_of_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, client = mlflow_logger(monkeypatch)
    client.fails = RuntimeError("no such run at https://ada:secret@host/mlflow")
    with changed(logger, tmp_path, set_lr_and_note) as said:
        pass
    assert said == [
        "MLFlowLogger was not told what changes in this run: no such run at https://…@host/mlflow",
        "MLFlowLogger is not told any more what changes in this run",
    ]
    assert len(client.metrics) == 2
    assert client.asked == 3  # not for the note


def test_mirror_false_leaves_them_as_they_are(tmp_path: Path) -> None:
    ours = OnTheFlyCallback(save_dir=tmp_path / "runs", dashboard="off", mirror=False)
    logger = CSVLogger(tmp_path / "logs")
    _fit([ours], Net(), logger=logger)
    assert [p.name for p in Path(logger.log_dir).iterdir()] == ["metrics.csv"]


def test_a_run_that_goes_on_says_so_where_it_does(tmp_path: Path) -> None:
    def ours() -> OnTheFlyCallback:
        return OnTheFlyCallback(
            "p", "r", save_dir=tmp_path / "runs", dashboard="off", checkpoint_every=4, resume="auto"
        )

    logger = TensorBoardLogger(tmp_path / "logs")
    _fit([ours()], Net(), logger=logger)
    _fit([ours()], Net(), max_epochs=3, logger=TensorBoardLogger(tmp_path / "logs"))
    folder = tmp_path / "logs" / "lightning_logs" / "version_0"
    assert [step for step, _ in texts(folder, "otf/run")] == [0, 24]
    assert texts(folder, "otf/changes") == [(24, "resumed from step 24")]


class Slow:
    """A target that takes what it is told when it is let."""

    def __init__(self, logger: Any) -> None:
        self.go, self.told = threading.Event(), list[Told]()
        logger.append(self)

    def take(self, told: Told) -> None:
        assert self.go.wait(60)
        self.told.append(told)


def test_what_a_slow_logger_cannot_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "MAX_WAITING", 10)
    monkeypatch.setattr(mirror, "_KINDS", {list: Slow})
    warned, made = list[str](), list[Slow]()
    tells = Mirror([made], NAMES, 0, warned.append)
    for step in range(30):
        tells.hear({"type": "note", "step": step, "text": str(step)})
    [target] = made
    target.go.set()
    tells.close()
    tells.close()
    kept = [told.step for told in target.told]
    assert kept[-9:] == list(range(21, 30))
    assert len(kept) <= 11
    assert warned == [f"loggers were not told of {31 - len(kept)} changes: they are too slow"]


@pytest.mark.parametrize(
    ("event", "step", "text"),
    [
        (
            {
                "type": "param_changed", "path": "lr", "old": 0.1, "new": 0.05, "applied_step": 9,
                "by": "user", "who": "ada@lab", "mode": "override", "until": 5000,
            },
            9, "lr 0.1 → 0.05 until step 5,000, by ada@lab",
        ),
        (
            {"type": "checkpoint_loaded", "step": 4, "from_step": 1200, "path": "x", "id": "y"},
            4, "rolled back from step 1,200 to 4",
        ),
        ({"type": "runTransition", "from": "a", "to": "b", "prev_step": 7}, 7, "goes on with b"),
        ({"type": "note", "step": 3, "note_id": "n1", "removed": True}, 3, "note taken back"),
        (
            {
                "type": "newRun", "run_id": "hard", "parents": ["base"],
                "meta": {"kind": "fork", "at_step": 8, "run_dir": "/r/hard"},
            },
            8, "goes on as hard, a fork of base",
        ),
    ],
)  # fmt: skip
def test_what_is_told_of_an_event(event: dict[str, Any], step: int, text: str) -> None:
    assert event["type"] in mirror.HEARD
    told = told_of(event, "p")
    assert (told.step, told.text) == (step, text)
    if event["type"] == "newRun":
        assert told.names == {"run_id": "hard", "project": "p", "run_dir": "/r/hard"}


def test_who_has_a_cause_is_told_with_it() -> None:
    change = {"type": "param_changed", "path": "lr", "old": 1, "new": 2, "applied_step": 3}
    told = told_of({**change, "by": "guard", "who": None, "cause": "spike"}, "p")
    assert told.text == "lr 1 → 2, by guard (spike)"


def test_a_fault_of_its_own_stays_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_KINDS", {list: Slow})
    warned, made = list[str](), list[Slow]()
    tells = Mirror([made], NAMES, 0, warned.append)
    made[0].go.set()
    tells.hear({"type": "trainStep", "step": 1})  # is not told
    tells.hear({"type": "note"})  # has no step
    tells.close()
    assert [told.event["type"] for told in made[0].told] == ["run"]
    assert warned == ["list was not told what changes in this run: 'step'"]
