"""Plain PyTorch: the Runner beside a loop written by hand and Lightning, otf-fit beside python.

A step of the Runner is timed from the start of one ``training_step`` to the start of the next, so
that all arms are timed at the same line; a step of a script by the script itself.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import lightning as L
import numpy as np
from torch import nn

from benchmarks import fits
from benchmarks.figures import Row
from benchmarks.fits import Steps, Workload
from otf_core.runner import Runner

SCRIPT_US: Final = 50.0
SCRIPT: Final = Path(__file__).with_name("tiny_script.py")
Fit = Callable[[Workload, Path], Steps]


class Clocks:
    """When each step began."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._times, self._count = np.zeros((3, total)), 0

    def step(self) -> None:
        now = (time.thread_time(), time.perf_counter(), time.process_time())
        self._times[:, self._count] = now
        self._count += 1

    def steps(self, warm_up: int) -> Steps:
        if self._count != self.total:
            msg = f"{self.total} steps were asked, {self._count} began"
            raise AssertionError(msg)
        cpu, wall, process = np.diff(self._times)[:, warm_up:]
        return Steps(cpu, wall, float(process.mean()))


class Timed(fits.Mlp):
    """Notes the time at the start of each step."""

    began: Callable[[], None]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.began()
        return super().training_step(batch, batch_idx)


def _timed(work: Workload) -> tuple[Timed, Clocks]:
    clocks = Clocks(work.steps + work.warm_up + 1)
    module = Timed(work.widths)
    module.load_state_dict(work.module().state_dict())
    module.began = clocks.step
    gc.collect()
    return module, clocks


def by_hand(work: Workload, _: Path) -> Steps:
    """The loop that the Runner stands for."""
    module, clocks = _timed(work)
    optimizer = module.configure_optimizers()
    for n, (x, y) in enumerate(work.loader()):
        if n == clocks.total:
            break
        clocks.step()
        loss = nn.functional.cross_entropy(module.net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return clocks.steps(work.warm_up)


def by_runner(telemetry: Literal["full", "off"]) -> Fit:
    """Ours, with a session and nobody connected."""

    def fit(work: Workload, tmp: Path) -> Steps:
        module, clocks = _timed(work)
        runner = Runner(
            max_steps=clocks.total,
            device="cpu",
            log_every_n_steps=1,
            save_dir=tmp,
            dashboard="off",
            telemetry=telemetry,
        )
        runner.fit(module, train_loader=work.loader())
        return clocks.steps(work.warm_up)

    return fit


def by_lightning(work: Workload, _: Path) -> Steps:
    """Bare Lightning."""
    module, clocks = _timed(work)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=clocks.total,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, work.loader())
    return clocks.steps(work.warm_up)


def runner(*, quick: bool, tmp: Path) -> list[Row]:
    """What a step of the Runner takes more than one written by hand, beside Lightning's."""
    work = Workload((64, 32, 10), 16, steps=60, warm_up=20) if quick else fits.TINY
    arms: dict[str, Fit] = {
        "by hand": by_hand,
        "by hand again": by_hand,
        "Runner": by_runner("off"),
        "Runner, telemetry full": by_runner("full"),
        "Lightning": by_lightning,
    }
    found = _alternate(arms, work, 2 if quick else 10, tmp)
    hand = found["by hand"]
    cost = {name: fits.added(steps, hand) for name, steps in found.items()}
    beside = {
        f"{name}, {which}": value
        for name in ("Lightning", "by hand again")
        for which, value in (("cpu median", cost[name].median), ("cpu p5", cost[name].p5))
    }
    return [
        Row(
            bench="runner",
            what=f"added per step beside a loop by hand, tiny model, {name}",
            unit="us",
            ours=cost[name].judged,
            spread=cost[name].spread(),
            rivals={**beside, **fits.step_us(hand)},
        )
        for name in ("Runner", "Runner, telemetry full")
    ]


def script(*, quick: bool, tmp: Path) -> list[Row]:
    """What a step of a script takes more under otf-fit than under python."""
    steps, rounds = (120, 2) if quick else (1500, 10)
    otf_fit = [sys.executable, "-m", "otf_core.cli.otf_fit"]
    options = ["--save-dir", str(tmp), "--dashboard", "off"]
    commands = {
        "python": [sys.executable],
        "python again": [sys.executable],
        "telemetry off": [*otf_fit, *options, "--telemetry", "off", "--"],
        "telemetry full": [*otf_fit, *options, "--"],
    }
    arms: dict[str, Fit] = {
        name: _by_command(command, steps=steps) for name, command in commands.items()
    }
    found = _alternate(arms, Workload((), 0, steps=steps, warm_up=steps // 4), rounds, tmp)
    cost = {name: fits.added(took, found["python"]) for name, took in found.items()}
    beside = {"python again, cpu median": cost["python again"].median}
    return [
        Row(
            bench="script",
            what=f"added per step of a script by otf-fit, tiny model, {name}",
            unit="us",
            ours=cost[name].judged,
            limit=SCRIPT_US if name == "telemetry off" else None,
            spread=cost[name].spread(),
            rivals={**beside, **fits.step_us(found["python"])},
        )
        for name in ("telemetry off", "telemetry full")
    ]


def _by_command(command: Sequence[str], *, steps: int) -> Fit:
    def run(work: Workload, tmp: Path) -> Steps:
        path = tmp / "steps.npy"
        subprocess.run(
            [*command, str(SCRIPT), str(steps), str(path)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        cpu, wall, process = np.load(path)[:, work.warm_up :]
        return Steps(cpu, wall, float(process.mean()))

    return run


def _alternate(
    arms: dict[str, Fit], work: Workload, rounds: int, tmp: Path
) -> dict[str, list[Steps]]:
    """Every arm once a round, in an order drawn anew; the first round is thrown away."""
    found: dict[str, list[Steps]] = {name: [] for name in arms}
    order = random.Random(7)
    for number in range(-1, rounds):
        for name in order.sample(list(arms), len(arms)):
            folder = tmp / f"{name}-{number}".replace(" ", "-").replace(",", "")
            folder.mkdir(parents=True)
            steps = arms[name](work, folder)
            if number >= 0:
                found[name].append(steps)
    return found
