"""A DDP run of two ranks that a test kills, stops and lets sleep: ``python -m … FOLDER PORT``.

Each rank writes ``FOLDER/pid.<rank>``. While ``FOLDER/sleep`` is there, rank 1 sleeps in its
forward. Without a checkpoint to go on from it trains until it is told to stop; else to step 13.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch

from otf_core.telemetry import stalls
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _train, _trainer


class Sleepy(Net):
    """Rank 1 is in its own code while the other waits for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bed = folder / "sleep"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        threading.Event().wait(0.02)
        while self.global_rank == 1 and self.bed.exists():
            threading.Event().wait(0.05)
        return super().training_step(batch, batch_idx)


def main(folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    stalls.LIMIT_S = stalls.FIRST_LIMIT_S = 3.0  # type: ignore[misc]
    L.seed_everything(7, verbose=False)
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    resumed = "OTF_RESUME" in os.environ
    ours = OnTheFlyCallback(
        "p", "r", save_dir=folder / "runs", dashboard=f"127.0.0.1:{port}" if port else "off",
        pause_at_start=not resumed, checkpoint_every=5, after_fit="return",
    )  # fmt: skip
    steps = 13 if resumed else 100_000
    trainer = _trainer([ours], strategy="ddp", devices=2, max_epochs=-1, max_steps=steps)
    trainer.fit(Sleepy(folder), _train())
    (folder / f"done.{rank}").write_text(str(trainer.global_step))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
