"""Short fits of several arms, alternately in one process, and what each step of them took.

Rule 1: all arms have the same model, data, seed and probe; they differ in what is attached.
Rule 2: a step is timed from the start of its batch to the start of the next, by a callback that is
the first of all. So it holds every hook of ours, the wrapper around ``advance`` too.
Rule 3: the order of the arms is drawn anew in each round, with a fixed seed.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import middle, percentile, pooled
from otf_lightning import OnTheFlyCallback

CONNECT_S: Final = 20.0
_POLL_S: Final = 0.005


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained: an MLP of these widths on random numbers."""

    widths: tuple[int, ...]
    batch: int
    steps: int  # measured ones of a fit
    warm_up: int  # before them

    def module(self) -> L.LightningModule:
        """The same weights each time."""
        torch.manual_seed(5)
        return Mlp(self.widths)

    def loader(self) -> DataLoader[Any]:
        """The same batches each time; few of them lie there, however many steps are made."""
        torch.manual_seed(6)
        inputs = torch.randn(self.batch * 8, self.widths[0])
        labels = torch.randint(0, self.widths[-1], (self.batch * 8,))
        # One long epoch: what happens between epochs is not the cost of a step.
        order = torch.arange(self.batch * (self.steps + self.warm_up + 2)) % len(labels)
        return DataLoader(
            TensorDataset(inputs, labels), batch_size=self.batch, sampler=order.tolist()
        )


class Mlp(L.LightningModule):
    """Logs its loss, as every arm does."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


TINY: Final = Workload((64, 32, 10), batch=16, steps=300, warm_up=40)


def of_length(step_s: float, *, steps: int, warm_up: int) -> Workload:
    """Real computation of about so long a step, found by trying batch sizes on this machine."""
    widths = (256, 512, 512, 10)

    def took_s(batch: int) -> float:
        work = Workload(widths, batch, steps=20, warm_up=3)
        return middle(run_fit(Arm("bare"), work, Path()).wall)

    small, large = 64, 512
    at_small, at_large = took_s(small), took_s(large)
    each_s = max((at_large - at_small) / (large - small), 1e-9)
    batch = max(int(small + (step_s - at_small) / each_s), 8)
    for _ in range(2):  # a large batch is not as quick for each as a small one
        batch = max(int(batch * step_s / took_s(batch)), 8)
    return Workload(widths, batch, steps=steps, warm_up=warm_up)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
        callback, logger: made anew for each fit, in a folder of its own.
        connected: whether the first batch waits until a dashboard is connected.
        at_step: called with the number of the batch that begins.
    """

    name: str
    callback: Callable[[Path], L.Callback] | None = None
    logger: Callable[[Path], Any] | None = None
    connected: bool = False
    at_step: Callable[[int], None] | None = None


@dataclasses.dataclass(frozen=True)
class Steps:
    """Seconds of each measured step of one fit."""

    cpu: np.ndarray[Any, Any]  # of the training thread
    wall: np.ndarray[Any, Any]
    process: float  # CPU of all threads, a step


class Probe(L.Callback):
    """Reads three clocks at the start of each batch; comes before every other callback."""

    def __init__(self, arm: Arm, steps: int) -> None:
        self._arm = arm
        self.cpu, self.wall, self.process = [np.zeros(steps) for _ in range(3)]
        self.count = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._arm.connected:
            return
        until_s = time.monotonic() + CONNECT_S
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning leaves it untyped
        ours = next(c for c in callbacks if isinstance(c, OnTheFlyCallback))
        waiting = threading.Event()
        while ours.session is not None and not ours.session.connected:
            if time.monotonic() > until_s:
                msg = f"no dashboard was connected within {CONNECT_S:g} s"
                raise TimeoutError(msg)
            waiting.wait(_POLL_S)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._arm.at_step is not None:
            self._arm.at_step(batch_idx)
        n = self.count
        self.process[n] = time.process_time()
        self.wall[n] = time.perf_counter()
        self.cpu[n] = time.thread_time()
        self.count = n + 1

    def steps(self, begin: int, end: int) -> Steps:
        """What the steps from ``begin`` up to, not including, ``end`` took."""
        clocks = (self.cpu, self.wall, self.process)
        cpu, wall, process = (np.diff(clock[begin : end + 1]) for clock in clocks)
        return Steps(cpu, wall, float(process.mean()))


def run_fit(arm: Arm, work: Workload, tmp: Path) -> Steps:
    """One fit; its steps without the warm-up."""
    total = work.steps + work.warm_up + 1
    probe = Probe(arm, total)
    callbacks: list[L.Callback] = [probe]
    if arm.callback is not None:
        callbacks.append(arm.callback(tmp))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=total,
        callbacks=callbacks,
        logger=arm.logger(tmp) if arm.logger is not None else False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    gc.collect()
    trainer.fit(work.module(), work.loader())
    if probe.count != total:
        msg = f"{arm.name}: {total} batches were asked, {probe.count} began"
        raise AssertionError(msg)
    return probe.steps(work.warm_up, total - 1)


def alternate(
    arms: Sequence[Arm], work: Workload, *, rounds: int, tmp: Path
) -> dict[str, list[Steps]]:
    """Every arm once a round; a first round is thrown away, since it pays for loading."""
    found: dict[str, list[Steps]] = {arm.name: [] for arm in arms}
    order = random.Random(7)
    for number in range(-1, rounds):
        for arm in order.sample(arms, len(arms)):
            folder = tmp / f"{arm.name}-{number}".replace(" ", "-")
            folder.mkdir(parents=True)
            steps = run_fit(arm, work, folder)
            if number >= 0:
                found[arm.name].append(steps)
    return found


@dataclasses.dataclass(frozen=True)
class Added:
    """What an arm's step takes more than the bare one's, in microseconds.

    Each is the median over rounds of the difference of two fits of the same round, so that what
    else the machine does in the meantime meets both.
    """

    median: float  # CPU of the training thread
    p5: float  # the same, 5th percentiles of the fits
    mean: float  # the same, means of the fits
    wall: float  # wall time, medians of the fits
    wall_p5: float
    process: float  # CPU of all threads
    error: float  # standard error of ``median``, from how the rounds differ

    @property
    def judged(self) -> float:
        """The larger of median and mean: what comes only now and then counts as well."""
        return max(self.median, self.mean)

    def spread(self) -> dict[str, float]:
        """By the names of the table."""
        return {
            "cpu median": self.median,
            "cpu p5": self.p5,
            "cpu mean": self.mean,
            "wall median": self.wall,
            "wall p5": self.wall_p5,
            "all threads' cpu": self.process,
            "standard error of the cpu median": self.error,
        }


def added(arm: Sequence[Steps], bare: Sequence[Steps]) -> Added:
    """The difference of two arms that ran in the same rounds."""
    pairs = list(zip(arm, bare, strict=True))

    def between(figure: Callable[[Steps], float]) -> float:
        return 1e6 * middle([figure(steps) - figure(plain) for steps, plain in pairs])

    rounds = np.array([middle(steps.cpu) - middle(plain.cpu) for steps, plain in pairs])
    # By the middle deviation: one fit that something else disturbed must not blow it up.
    deviation = 1.4826 * middle(np.abs(rounds - middle(rounds)))
    return Added(
        median=between(lambda steps: middle(steps.cpu)),
        p5=between(lambda steps: percentile(steps.cpu, 5)),
        mean=between(lambda steps: float(steps.cpu.mean())),
        wall=between(lambda steps: middle(steps.wall)),
        wall_p5=between(lambda steps: percentile(steps.wall, 5)),
        process=between(lambda steps: steps.process),
        error=1e6 * 1.2533 * deviation / len(rounds) ** 0.5,
    )


def step_us(steps: Sequence[Steps]) -> dict[str, float]:
    """What a step takes, to read the differences beside."""
    return {
        "bare step, cpu median": 1e6 * middle(pooled(s.cpu for s in steps)),
        "bare step, wall median": 1e6 * middle(pooled(s.wall for s in steps)),
    }
