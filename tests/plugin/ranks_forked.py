"""A DDP run of two ranks that is forked and merged:
``python -m tests.plugin.ranks_forked FOLDER HOW PORT``.

HOW: ``bare`` (without us, on the samples that the other chooses), ``live`` (held at its beginning),
``resumed``. Writes ``FOLDER/<HOW>.<rank>.json`` at its end; ``seen``, ``synced`` and ``validated``
beside it have a line for each batch and each validation. Files in FOLDER say what else happens:
``slow``, ``together``, ``gathers``, ``fails``, ``torn``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Subset

from otf_core.runs.data import DataChoice, TrainingData
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, Net, _trainer, digits
from tests.plugin.ranks_live import OfRank

STEPS = 24
CHOSEN = list(range(3, 188, 3))  # 62 of 192; of two ranks 31 each
ODD = CHOSEN[:-1]  # one has to be drawn twice


class Numbered(Dataset[Any]):
    """Each sample with its id."""

    def __init__(self) -> None:
        self.data = digits()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return *self.data[index], index


class Told(Net):
    """Writes down what it was trained on, and which weights are validated."""

    def __init__(self, folder: Path, how: str) -> None:
        super().__init__()
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        files = {name: folder / f"{how}.{rank}.{name}" for name in ("seen", "synced", "validated")}

        def note(name: str, *what: Any) -> None:
            with files[name].open("a") as file:
                file.write(json.dumps(what) + "\n")

        self.note, self.asked = note, lambda name: (folder / name).exists()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.note("seen", self.trainer.current_epoch, batch[2].tolist())
        # Whether DDP will bring rank 0's buffers to all; in no attribute, which would be state.
        model: Any = self.trainer.strategy.model
        self.note("synced", model.require_forward_param_sync)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        if self.asked("gathers"):
            dist.all_reduce(torch.ones(1))
        return super().training_step((x, y), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.asked("slow"):
            threading.Event().wait(0.4 + 0.2 * self.global_rank)
            self.note("validated", "batch", batch_idx + 1)
        if self.asked("together"):
            dist.all_reduce(torch.ones(1))
        super().validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.note("validated", "weights", digest._exact(self.state_dict()))


class DrawsAgain(L.Callback):
    """A fork makes the iterator anew, which draws a number."""

    def on_train_start(self, *_: Any) -> None:
        torch.empty((), dtype=torch.int64).random_()


def break_one_rank(folder: Path) -> None:
    """Rank 1 cannot do its part of a fork, or of coming back, while there is a file for that."""
    begin_pass, choose = TrainingData.begin_pass, TrainingData.choose

    def fails(self: TrainingData) -> None:
        if (folder / "fails").exists():
            msg = "no room"
            raise OSError(msg)
        begin_pass(self)

    def torn(self: TrainingData, choice: DataChoice) -> list[str]:
        if (folder / "torn").exists():
            msg = "no room for anything"
            raise OSError(msg)
        return choose(self, choice)

    TrainingData.begin_pass = fails  # type: ignore[method-assign]
    TrainingData.choose = torn  # type: ignore[method-assign]


def main(folder: Path, how: str, port: int) -> None:
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    if os.environ.get("LOCAL_RANK") == "1":
        break_one_rank(folder)
    data: Any = Numbered()
    callbacks: list[L.Callback] = [OfRank(), Counting()]
    if how == "bare":
        callbacks.append(DrawsAgain())
        data = Subset(data, CHOSEN)
    else:
        ours = OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs", dashboard=f"127.0.0.1:{port}" if port else "off",
            pause_at_start=how == "live", after_fit="return",
            checkpoint_every="0.2s" if how == "resumed" else 4,
        )  # fmt: skip
        callbacks.append(ours)
    trainer = _trainer(callbacks, strategy="ddp", devices=2, max_epochs=-1, max_steps=STEPS)
    train = DataLoader(data, batch_size=8, shuffle=True)
    trainer.fit(Told(folder, how), train, DataLoader(digits(96), batch_size=4))
    found = {**digest.of(trainer), "sum": callbacks[0].sum.hex()}  # type: ignore[attr-defined]
    (folder / f"{how}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    dist.destroy_process_group()  # else its threads may abort the process that exits
