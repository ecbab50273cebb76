"""The loss of each sample, beside a plain evaluation of the same loader, and Lightning's.

Both see the same batches in eval mode without gradients, and both read what they found. Judged by
the CPU time of the thread that does all of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import Row, middle, percentile
from otf_core.runs.samples import Rule, Scan
from otf_core.runs.subject import Subject
from otf_core.state.parked import parked

SHARE: Final = 0.9


def per_sample(*, quick: bool, tmp: Path) -> list[Row]:
    """A small convolutional net, and the tiny one of the other benchmarks; alternately."""
    rounds = 2 if quick else 10
    conv = nn.Sequential(
        nn.Unflatten(1, (1, 16, 16)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 256, 10),
    )
    tiny = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return [
        _compared("a convolutional net, batch 64", conv, 256, 64, rounds, quick=quick),
        _compared("the tiny model, batch 16", tiny, 64, 16, rounds, quick=quick),
    ]


class _Validated(L.LightningModule):
    """What one has of an evaluation by Lightning."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def validation_step(self, pair: Any, batch_idx: int) -> torch.Tensor:
        loss = functional.cross_entropy(self.net(pair[0]), pair[1])
        self.log("val_loss", loss)
        return loss


def _compared(
    name: str, net: nn.Module, width: int, batch: int, rounds: int, *, quick: bool
) -> Row:
    torch.manual_seed(5)
    size = batch * (4 if quick else 100)
    data = TensorDataset(torch.randn(size, width), torch.randint(0, 10, (size,)))
    loader = DataLoader(data, batch)

    def step(pair: Any, batch_idx: int) -> torch.Tensor:
        x, y = pair
        return functional.cross_entropy(net(x), y)

    def plain() -> None:
        losses = []
        net.eval()
        with torch.no_grad():
            for number, pair in enumerate(loader):
                losses.append(step(pair, number))
        net.train()
        torch.stack(losses).mean().item()

    def scan() -> None:
        modules = {"": net}
        subject = Subject(
            name="train",
            dataset=data,
            collate=loader.collate_fn,
            batch_size=batch,
            modules=modules,
            step=step,
            step_name="step",
            around=lambda: parked(modules, [loader]),
        )
        made = Scan(subject)
        made.work()
        assert made.rule is Rule.STEP
        assert len(made.table()) == size

    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    validated = _Validated(net)

    def lightning() -> None:
        trainer.validate(validated, loader, verbose=False)

    arms: dict[str, Callable[[], None]] = {
        "plain": plain,
        "plain again": plain,
        "scan": scan,
        "lightning": lightning,
    }
    took: dict[str, list[float]] = {arm: [] for arm in arms}
    wall: dict[str, list[float]] = {arm: [] for arm in arms}
    order = random.Random(7)
    for number in range(-1, rounds):
        for arm in order.sample([*arms], len(arms)):
            began, began_wall = time.thread_time(), time.perf_counter()
            arms[arm]()
            if number >= 0:
                took[arm].append(time.thread_time() - began)
                wall[arm].append(time.perf_counter() - began_wall)
    shares = {
        arm: [a / b for a, b in zip(took["plain"], took[arm], strict=True)]
        for arm in ("scan", "plain again")
    }
    return Row(
        bench="scan",
        what=f"samples a second by a scan, as a part of plain evaluation's, {name}",
        unit="x",
        ours=middle(shares["scan"]),
        limit=SHARE,
        at_least=True,
        spread={
            "p5": percentile(shares["scan"], 5),
            "p95": percentile(shares["scan"], 95),
            "wall": middle([a / b for a, b in zip(wall["plain"], wall["scan"], strict=True)]),
            "samples/s": size / middle(took["scan"]),
        },
        rivals={
            "plain again": middle(shares["plain again"]),
            "plain, samples/s": size / middle(took["plain"]),
            "trainer.validate, samples/s": size / middle(took["lightning"]),
        },
    )
