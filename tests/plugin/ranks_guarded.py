"""Two DDP ranks, one of which gives the other a NaN: ``-m tests.plugin.ranks_guarded DIR``.

Then the same in which the script itself has the smaller rate. Writes ``DIR/<name>.<rank>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, Net, _train, _trainer, _val
from tests.plugin.ranks_live import OfRank

STEPS = 30
SPOILT = 13
BACK = 12
FACTOR = 0.5


class Spoils(L.Callback):
    """The batch of rank 1, once."""

    done = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.global_step + 1 == SPOILT and not Spoils.done:
            Spoils.done = True  # of the class: attributes go back with the run
            batch[0].fill_(torch.nan)


class ScalesItself(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == BACK:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= FACTOR


def fit(folder: Path, name: str, *callbacks: L.Callback) -> None:
    L.seed_everything(7, verbose=False)
    of_rank = OfRank()
    how: dict[str, Any] = {"strategy": "ddp", "devices": 2, "max_epochs": -1, "max_steps": STEPS}
    trainer = _trainer([of_rank, Counting(), *callbacks], **how)
    trainer.fit(Net(schedule=None), _train(), _val())
    found = {**digest.of(trainer), "sum": of_rank.sum.hex()}
    (folder / f"{name}.{trainer.global_rank}.json").write_text(json.dumps(found))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ours = OnTheFlyCallback(
        "p", "r", save_dir=folder / "runs", dashboard="off", checkpoint_every=4,
        guards=f"nan:rollback,lr={FACTOR}",
    )  # fmt: skip
    fit(folder, "guarded", Spoils(), ours)
    fit(folder, "bare", ScalesItself())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.destroy_process_group()  # else its threads may abort the process that exits
