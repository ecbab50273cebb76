"""A DDP run of two ranks that is looked at: ``python -m tests.plugin.ranks_look FOLDER PORT``.

Port 0: without us. Writes ``FOLDER/<bare or live>.<rank>.json``.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, Net, _trainer, digits
from tests.plugin.ranks_live import OfRank

STEPS: Final = 24
WAITS_AT: Final = (0, 8, 14)
PARTED_AT: Final = 10  # from here on rank 1 has a weight of its own
APART: Final = 0.5
GATHERS_AT: Final = 16  # from here on a training step runs a collective
SIZES: Final = {"train": 149, "val": 37, "test": 53}  # in batches of 8: 19, 5, 7
BATCH: Final = 8


class Slow(Dataset[Any]):
    """Takes its time where there is a file that says so."""

    def __init__(self, flag: Path) -> None:
        self._flag, self._data = flag, digits(SIZES["test"])

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        if self._flag.exists():
            threading.Event().wait(0.05)
        return self._data[index]


class Looked(Net):
    """Logs what Lightning brings together over the ranks; loaders of uneven sizes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.gathers = False
        self._folder = str(folder)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("together", loss, on_step=True, sync_dist=True)
        if self.gathers:
            self.all_gather(loss.detach())
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader(digits(SIZES["train"]), batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(digits(SIZES["val"]), batch_size=BATCH)

    def test_dataloader(self) -> Any:
        return DataLoader(Slow(Path(self._folder) / "slow"), batch_size=BATCH)


class Changes(L.Callback):
    """Waits for a file before some steps, so that a pause can be asked for a later one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = str(folder) if folder is not None else None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if self._folder is not None and trainer.global_step in WAITS_AT:
            while not (Path(self._folder) / f"go{trainer.global_step}").exists():
                threading.Event().wait(0.02)
        pl_module.gathers = trainer.global_step >= GATHERS_AT
        if trainer.global_step == PARTED_AT and trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.net[0].weight[0, 0] += APART


def main(folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    callbacks: list[L.Callback] = [OfRank(), Counting(), Changes(folder if port else None)]
    if port:
        ours = OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs", dashboard=f"127.0.0.1:{port}",
            pause_at_start=True, after_fit="return",
        )  # fmt: skip
        callbacks.append(ours)
    trainer = _trainer(callbacks, strategy="ddp", devices=2, max_epochs=-1, max_steps=STEPS)
    trainer.fit(Looked(folder))
    found = {**digest.of(trainer), "sum": callbacks[0].sum.hex()}  # type: ignore[attr-defined]
    name = "live" if port else "bare"
    (folder / f"{name}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    dist.destroy_process_group()  # else its threads may abort the process that exits
