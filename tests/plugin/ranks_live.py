"""A DDP run of two ranks that a dashboard holds: ``python -m tests.plugin.ranks_live FOLDER PORT``.

Port 0: without us, and the script itself sets what the dashboard sets in the other; or, with the
file of a recipe as a third argument, that does. Writes ``FOLDER/<bare, live …>.<rank>.json``.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from otf_core.state import park
from otf_core.testing import FakeAccelerator
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, _train, _trainer, _val
from tests.plugin.steered import ACCUMULATE, ALL, Steered, write

STEPS = 40
SET_AT = 12
DECAY = 0.25
KINDS = [{**change, "value": 2} if change["path"] == ACCUMULATE else change for change in ALL]


class OfRank(L.Callback):
    """Another stream of random numbers on each rank, and another pace."""

    def __init__(self) -> None:
        self.sum = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(100 + trainer.global_rank)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        threading.Event().wait(0.01 * (1 + trainer.global_rank))
        self.sum += float(torch.rand(())) * (1 + trainer.global_rank)


class SetsItself(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == SET_AT:
            for group in trainer.optimizers[0].param_groups:
                group["weight_decay"] = DECAY
            for change in KINDS:
                write(trainer, trainer.lightning_module, change["path"], change["value"])


def main(folder: Path, port: int, recipe: str | None = None) -> None:
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    callbacks: list[L.Callback] = [OfRank(), Counting()]
    park.accelerator_of = lambda _: FakeAccelerator()
    if port:
        ours = OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs", dashboard=f"127.0.0.1:{port}",
            pause_at_start=True, after_fit="return",
        )  # fmt: skip
        callbacks.append(ours)
    elif recipe is not None:
        given = {"save_dir": folder / "again", "dashboard": "off", "after_fit": "return"}
        callbacks.append(OnTheFlyCallback("p", "r", recipe=recipe, **given))  # type: ignore[arg-type]
    else:
        callbacks.append(SetsItself())
    trainer = _trainer(callbacks, strategy="ddp", devices=2, max_epochs=-1, max_steps=STEPS)
    trainer.fit(Steered(), _train(), _val())
    found = {**digest.of(trainer), "sum": callbacks[0].sum.hex()}  # type: ignore[attr-defined]
    name = "live" if port else "bare" if recipe is None else "replayed"
    (folder / f"{name}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    dist.destroy_process_group()  # else its threads may abort the process that exits
