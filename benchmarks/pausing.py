"""From the request on the socket to the training thread held, and from resume to training again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import lightning as L
import numpy as np

from benchmarks import fits, peers
from benchmarks.figures import Row, middle, percentile
from benchmarks.step_cost import attached

OVER_A_BATCH_MS: Final = 2.0


def pause_latency(*, quick: bool, tmp: Path) -> list[Row]:
    """A tiny model's batches, and batches of about 20 ms; asked by another process."""
    count = 5 if quick else 40
    tiny = fits.Workload((64, 32, 10), 16, steps=0, warm_up=0)
    long = fits.of_length(0.004 if quick else 0.020, steps=0, warm_up=0)
    return [
        row
        for name, work in (("tiny batches", tiny), ("batches of about 20 ms", long))
        for row in _paused(name, work, count, tmp)
    ]


class _Starts(L.Callback):
    """When each batch began, Unix time."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.at.append(time.time())


def _paused(name: str, work: fits.Workload, count: int, tmp: Path) -> list[Row]:
    starts = _Starts()
    with peers.peer("pause", str(count)) as (address, process):
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            callbacks=[starts, attached(address)(tmp / name.replace(" ", "-"))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        endless = fits.Workload(work.widths, work.batch, steps=2000, warm_up=0)
        trainer.fit(work.module(), endless.loader())
        told = peers.answer(process)
    at = np.array(starts.at)
    held = np.array([t["held"] for t in told])
    # A batch is what lies between two starts, unless a hold, or an epoch's end, lies there too.
    batch_s = middle(np.diff(at))
    latency = 1e3 * (held - np.array([t["asked"] for t in told]))
    excess = latency - 1e3 * batch_s
    replied = 1e3 * np.array([t["replied"] - t["asked"] for t in told])
    resumed = 1e3 * np.array([t["resumed"] - t["resume_asked"] for t in told])
    beside = {"a batch, median": 1e3 * batch_s, "pauses": float(count)}
    return [
        Row(
            bench="pause_latency",
            what=f"pause asked to held, over a batch, {name}, 95th percentile",
            unit="ms",
            ours=max(percentile(excess, 95), 0.0),
            limit=OVER_A_BATCH_MS,
            spread={
                "asked to held, median": middle(latency),
                "p5": percentile(latency, 5),
                "p95": percentile(latency, 95),
                "max": float(latency.max()),
                "reply (held and saved), median": middle(replied),
            },
            rivals=beside,
        ),
        Row(
            bench="pause_latency",
            what=f"resume asked to let go, {name}, median",
            unit="ms",
            ours=middle(resumed),
            spread={"p5": percentile(resumed, 5), "p95": percentile(resumed, 95)},
            rivals=beside,
        ),
    ]
