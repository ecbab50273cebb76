"""How long a checkpoint holds the training thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import fits
from benchmarks.figures import Row, middle, percentile
from benchmarks.step_cost import attached
from otf_lightning import OnTheFlyCallback

MIB = 1024 * 1024


class _Saves(L.Callback):
    """Between two batches: a save of ours, a plain copy of the state, Lightning's own save."""

    def __init__(self, ours: OnTheFlyCallback, tmp: Path, warm_up: int) -> None:
        self._ours, self._tmp, self._warm_up = ours, tmp, warm_up
        self.ours: list[float] = []
        self.memcpy: list[float] = []
        self.lightning: list[float] = []
        self.state_bytes = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        session = self._ours.session
        if session is None or batch_idx < self._warm_up:
            return
        tensors = [p.detach() for p in pl_module.parameters()]
        state = [t for s in trainer.optimizers[0].state.values() for t in s.values()]
        tensors += [t for t in state if isinstance(t, torch.Tensor)]
        self.state_bytes = sum(t.numel() * t.element_size() for t in tensors)
        began = time.perf_counter()
        pending = session.save("manual")
        self.ours.append(time.perf_counter() - began)
        pending.wait(60.0)
        began = time.perf_counter()
        copies = [t.clone() for t in tensors]
        self.memcpy.append(time.perf_counter() - began)
        del copies
        began = time.perf_counter()
        trainer.save_checkpoint(self._tmp / "rival.ckpt")
        self.lightning.append(time.perf_counter() - began)


def checkpoint_block(*, quick: bool, tmp: Path) -> list[Row]:
    """About 100 MB, weights and Adam's moments; a limit (1.2 x memcpy) is for a later version."""
    widths = (256, 512, 512, 10) if quick else (256, 2048, 2048, 2048, 10)
    count = 2 if quick else 10
    ours = attached()(tmp)
    assert isinstance(ours, OnTheFlyCallback)
    saves = _Saves(ours, tmp, warm_up=2)
    work = fits.Workload(widths, 16, steps=count, warm_up=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=count + 2,
        callbacks=[ours, saves],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(work.module(), work.loader())
    ms, size = 1e3, f"{saves.state_bytes / MIB:.0f} MiB"
    return [
        Row(
            bench="checkpoint_block",
            what=f"training thread held by a save of {size}, wall median",
            unit="ms",
            ours=ms * middle(saves.ours),
            spread={
                "p5": ms * percentile(saves.ours, 5),
                "x memcpy": middle(saves.ours) / middle(saves.memcpy),
            },
            rivals={
                "memcpy of the state": ms * middle(saves.memcpy),
                "memcpy p5": ms * percentile(saves.memcpy, 5),
                "trainer.save_checkpoint": ms * middle(saves.lightning),
                "trainer.save_checkpoint p5": ms * percentile(saves.lightning, 5),
            },
        )
    ]
