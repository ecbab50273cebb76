"""How long a rollback in place takes, beside what one does without it: start again from a file.

As a program, ``python -m benchmarks.going_back FILE``: starts again, and prints a line when the
first batch begins.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import fits, peers
from benchmarks.figures import Row, middle, percentile
from otf_lightning import OnTheFlyCallback

APPLY_MS: Final = 10.0
WIDTHS: Final = (64, 128, 10)
MOST_STEPS: Final = 20_000  # were the other process to die
ROWS: Final = 1_797  # as scikit-learn's digits


class _Times:
    """What the training thread spends in parts of a rollback, in ms."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def put_on(self, owner: Any, method: str, name: str) -> None:
        setattr(owner, method, self.timed(getattr(owner, method), name))

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.cpu.setdefault(name, []).append(1e3 * (time.thread_time() - cpu))
                self.wall.setdefault(name, []).append(1e3 * (time.perf_counter() - wall))

        return timed


class _Watch(L.Callback):
    """Puts the clocks on, as soon as there is a session."""

    is_otf = True  # its attributes are no part of the state

    def __init__(self, ours: OnTheFlyCallback, times: _Times) -> None:
        self._ours, self._times = ours, times

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        session: Any = self._ours.session
        delegate, handlers = session._delegate, session.router._handlers
        self._times.put_on(session.store, "read", "read and verified")
        self._times.put_on(session.history, "_keep_now", "undo point")
        self._times.put_on(delegate, "check", "checked")
        self._times.put_on(delegate, "apply", "put in place")
        handler, check = handlers["rollback"]
        handlers["rollback"] = self._times.timed(handler, "in all"), check


class _FirstBatch(L.Callback):
    """Notes when the first batch begins, and ends the fit behind it."""

    def __init__(self, *, say: bool = False) -> None:
        self._say, self.at_s = say, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.at_s = time.perf_counter()
        trainer.should_stop = True
        if self._say:
            sys.stdout.write("begun\n")
            sys.stdout.flush()


def _module() -> L.LightningModule:
    torch.manual_seed(5)
    return fits.Mlp(WIDTHS)


def _loader() -> DataLoader[Any]:
    torch.manual_seed(6)
    data = TensorDataset(torch.randn(ROWS, 64), torch.randint(0, 10, (ROWS,)))
    return DataLoader(data, 32, shuffle=True)


_trainer = functools.partial(
    L.Trainer,
    accelerator="cpu",
    max_epochs=-1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)


def rollback(*, quick: bool, tmp: Path) -> list[Row]:
    """Rollbacks asked by another process while the run trains; starting again in between."""
    rounds, count = (1, 3) if quick else (6, 8)
    times, answered = _Times(), list[float]()
    again, anew = list[float](), list[float]()
    own = tmp / "lightning.ckpt"
    first = _trainer(max_steps=12, max_epochs=None)
    first.fit(_module(), _loader())
    first.save_checkpoint(own)
    for number in range(-1, rounds):
        kept = times if number >= 0 else _Times()  # the first round pays for loading
        told = _rolled_back(kept, count, tmp / str(number))
        here = _started_again(own)
        if number >= 0:
            answered += [1e3 * (t["replied"] - t["asked"]) for t in told]
            again.append(here)
            anew.append(_started_anew(own))
    beside = {
        "a new trainer until the first batch of fit(ckpt_path=), in this process": middle(again),
        "p5": percentile(again, 5),
        "in a new one": middle(anew),
    }
    wall, cpu = times.wall, times.cpu
    applied = [a + b for a, b in zip(wall["checked"], wall["put in place"], strict=True)]

    def spread(name: str) -> dict[str, float]:
        return {
            "p5": percentile(wall[name], 5),
            "p95": percentile(wall[name], 95),
            "cpu median": middle(cpu[name]),
        }

    parts = ("read and verified", "undo point", "put in place")
    return [
        Row(
            bench="rollback",
            what="training thread held by a state that is checked and put in place, median",
            unit="ms",
            ours=middle(applied),
            limit=APPLY_MS,
            spread=spread("put in place"),
            rivals=beside,
        ),
        Row(
            bench="rollback",
            what="training thread held by a rollback in all, median",
            unit="ms",
            ours=middle(wall["in all"]),
            spread={**spread("in all"), **{name: middle(wall[name]) for name in parts}},
            rivals=beside,
        ),
        Row(
            bench="rollback",
            what="rollback asked to answered, the run training, median",
            unit="ms",
            ours=middle(answered),
            spread={"p5": percentile(answered, 5), "p95": percentile(answered, 95)},
            rivals=beside,
        ),
    ]


def _rolled_back(times: _Times, count: int, tmp: Path) -> list[dict[str, float]]:
    """One fit; when each rollback was asked and answered."""
    with peers.peer("rollback", str(count)) as (address, process):
        ours = OnTheFlyCallback(project="bench", save_dir=tmp, dashboard=address)
        trainer = _trainer(callbacks=[ours, _Watch(ours, times)], max_steps=MOST_STEPS)
        trainer.fit(_module(), _loader())
        told: list[dict[str, float]] = peers.answer(process)
    return told


def _started_again(path: Path) -> float:
    """Milliseconds until the first batch, in this process, where all is imported."""
    noted = _FirstBatch()
    began = time.perf_counter()
    _trainer(callbacks=[noted]).fit(_module(), _loader(), ckpt_path=path)
    return 1e3 * (noted.at_s - began)


def _started_anew(path: Path) -> float:
    """The same, from the start of a new process."""
    command = [sys.executable, "-m", "benchmarks.going_back", str(path)]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=peers.ROOT
    ) as process:
        peers.line(process)
        return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _trainer(callbacks=[_FirstBatch(say=True)]).fit(_module(), _loader(), ckpt_path=sys.argv[1])
