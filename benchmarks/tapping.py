"""What the loader tap costs a step, beside a bare DataLoader of torch; no Lightning."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import fits
from benchmarks.figures import Row
from otf_core.state.data_tap import tap

STEP_US: Final = 50.0  # all that a step may cost with nobody there
NAMES: Final = 5_000
ROWS: Final = 1_797
BATCH: Final = 16


class Rows(Dataset[Any]):
    """Random rows, and the names of their files."""

    def __init__(self, names: int) -> None:
        self.x, self.y = torch.randn(ROWS, 64), torch.randint(0, 10, (ROWS,))
        self.names = [f"{n:06d}.png" for n in range(names)]

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


def loader_tap(*, quick: bool, tmp: Path) -> list[Row]:
    """Steps of a tiny model, loaders alternately bare and tapped; bare twice, for the noise."""
    steps, rounds = (20, 2) if quick else (50, 40)
    return [
        _added(workers, names, steps=steps, rounds=rounds)
        for workers, names in ((0, 0), (2, 0), (0, NAMES), (2, NAMES))
    ]


def _added(workers: int, names: int, *, steps: int, rounds: int) -> Row:
    torch.manual_seed(5)
    data = Rows(names)
    bare = functools.partial(DataLoader, data, BATCH, shuffle=True, num_workers=workers)
    arms: dict[str, Callable[[], DataLoader[Any]]] = {
        "bare": bare,
        "bare again": bare,
        "tap": lambda: tap(bare()),
    }
    found: dict[str, list[fits.Steps]] = {name: [] for name in arms}
    order = random.Random(7)
    for number in range(-1, rounds):
        for name in order.sample([*arms], len(arms)):
            measured = _steps(arms[name](), steps)
            if number >= 0:
                found[name].append(measured)
    cost, again = (fits.added(found[name], found["bare"]) for name in ("tap", "bare again"))
    held = f", the data set holds {names:,} names" if names else ""
    return Row(
        bench="tap",
        what=f"added per step by the loader tap, {workers} workers{held}",
        unit="us",
        ours=cost.judged,
        limit=None if workers else STEP_US,  # what three processes take of two cores is noise
        spread=cost.spread(),
        rivals={
            "bare again, cpu median": again.median,
            "bare again, wall median": again.wall,
            **fits.step_us(found["bare"]),
        },
    )


def _steps(loader: DataLoader[Any], count: int, warm_up: int = 10) -> fits.Steps:
    """A training loop without anything around it."""
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    clocks = np.zeros((3, count + warm_up + 1))
    batches = iter(loader)
    for n in range(count + warm_up + 1):
        clocks[:, n] = time.thread_time(), time.perf_counter(), time.process_time()
        x, y = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    cpu, wall, process = np.diff(clocks[:, warm_up:])
    return fits.Steps(cpu, wall, float(process.mean()))
