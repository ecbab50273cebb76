"""A small family of real runs, trained once for all tests of the page that look at one.

Project ``family``, one session, LitDigits on the digits, 40 steps an epoch, a ring checkpoint every
40 steps. Each run is held where the next one begins:

| run | steps | what |
|---|---|---|
| ``digits`` | 1 to 200 | note and lr x 0.5 at 30, scanned and held at 120, held at 200 |
| ``hard`` | 121 to 180 | fork of ``digits`` at 120 on the worst fifth, validated at its end |
| ``gentle`` | 201 to 260 | fork of ``digits`` at 200, lr x 0.3, rolled back from 260 to 240 |
| ``both`` | 201 to 240 | merge of ``digits`` and ``gentle``, tested at its end, stopped |

``both`` is what trains last. The fixture ``family`` is the folder; a test that writes into it, or
starts a dashboard on it, takes a copy (``served`` does). ``living`` has the trainer back as well.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = "family"
ROOT = Path(__file__).parents[2]
RECORD_LIMIT_S = 120.0
PATIENCE_S = 30.0


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``save_dir`` of the family; read it, and copy it before anything else."""
    folder = tmp_path_factory.mktemp("recorded") / "otf_runs"
    done = subprocess.run(
        _command("record", folder),
        cwd=ROOT,
        capture_output=True,
        timeout=RECORD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder


@contextlib.contextmanager
def served(family: Path, folder: Path) -> Iterator[str]:
    """`otf dashboard` on a copy of the family in `folder`, with no trainer; the page's URL."""
    shutil.copytree(family, folder, dirs_exist_ok=True)
    with dashboard(folder) as url:
        yield url


@contextlib.contextmanager
def living(family: Path, folder: Path) -> Iterator[str]:
    """The same, and ``both`` goes on: a trainer that is attached, and paused at step 240."""
    with served(family, folder) as url:
        trainer = subprocess.Popen(_command("go-on", folder), cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            yield url
        finally:
            trainer.terminate()
            trainer.wait(PATIENCE_S)


@contextlib.contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """`otf dashboard --dir`; its URL, with the token."""
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def journal(folder: Path) -> list[dict[str, Any]]:
    """Every event of the family, as first sent."""
    (path,) = folder.glob(f"{PROJECT}/digits/journal/*.jsonl")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _command(what: str, folder: Path) -> list[str]:
    """This module as a process: torch and Lightning have threads and files of their own."""
    return [sys.executable, "-m", "tests.page.recorded", what, str(folder)]


# ---------------------------------------------------------------- in a process of its own


def _fit(callbacks: list[Any]) -> None:
    torch.set_num_threads(1)
    L.seed_everything(3, verbose=False)
    trainer = L.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(LitDigits(), datamodule=Digits())


def _record(folder: Path) -> None:
    # Its count is state of a callback, and so goes back and on with the run.
    barrier = Barrier(29, 119, 199, 239)
    options = {"project": PROJECT, "run_name": "digits", "checkpoint_every": 40}
    with fitting(_fit, folder, barrier, **options) as fit:

        def does(cmd: str, **payload: Any) -> None:
            reply = fit.dashboard.request(cmd, payload)
            assert reply["ok"], reply

        def trains_to(step: int) -> None:
            does("resume")
            fit.dashboard.expect("paused", step=step)

        pause_in(fit, barrier, 29)
        does("note", text="warm-up is over")
        does("set_param", path="lr", mul=0.5)
        does("resume")
        pause_in(fit, barrier, 119)
        does("scan")
        worst = {"kind": "quantile", "from": 0.8, "to": 1.0}
        does("fork", selection=worst, steps=60, run_name="hard")
        trains_to(180)
        does("validate_now", label="the end of hard")
        does("switch_run", run_id="digits")
        does("resume")
        pause_in(fit, barrier, 199)
        does("fork", hparams={"lr_mul": 0.3}, steps=60, run_name="gentle")
        does("resume")
        pause_in(fit, barrier, 239)
        trains_to(260)
        does("rollback", step=240)
        trains_to(260)
        does("merge", parents=["digits", "gentle"], steps=40, new_name="both")
        trains_to(240)
        does("test_now", label="final")
        does("stop")


def _go_on(folder: Path) -> None:
    _fit([OnTheFlyCallback(PROJECT, "digits", save_dir=folder, resume="auto", pause_at_start=True)])


if __name__ == "__main__":
    import lightning as L
    import torch

    from otf_lightning import OnTheFlyCallback
    from otf_lightning.digits import Digits, LitDigits
    from tests.plugin.rig import Barrier, fitting, pause_in

    {"record": _record, "go-on": _go_on}[sys.argv[1]](Path(sys.argv[2]))
