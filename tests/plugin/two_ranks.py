"""A DDP run of two ranks on gloo: ``python -m tests.plugin.two_ranks FOLDER KIND HOW``.

Each rank draws differently, and BatchNorm's buffers are not alike between two synchronisations.
Writes ``FOLDER/<HOW>.<rank>.json``. HOW: ``bare`` (without us), ``live``, ``kill`` at a batch,
or another way in which ranks may part.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch.utils.data import DataLoader

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Augmented, Counting, Net, Stream, _train, _trainer, _val

KILLED_IN = 20  # the batch, over all epochs: in the middle of one, and of an accumulation


class OfRank(L.Callback):
    """Another stream of random numbers, and another attribute, on each rank."""

    def __init__(self) -> None:
        self.sum = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(100 + trainer.global_rank)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.sum += float(torch.rand(())) * (1 + trainer.global_rank)


class KillsAll(L.Callback):
    """SIGKILL to the whole group of processes, from rank 1."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.batches += 1
        if self.batches == KILLED_IN and trainer.global_rank == 1:
            os.killpg(0, signal.SIGKILL)


class Fails(L.Callback):
    """An exception, once, or Ctrl-C, on both ranks at the same batch."""

    raised = False  # of the class: an attribute of its own would be put back

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != 7 or Fails.raised:
            return
        Fails.raised = True
        if self.how == "twice":
            raise MemoryError
        os.kill(os.getpid(), signal.SIGINT)


class CannotSave(L.Callback):
    """On rank 1, once: whoever fails must not leave the others waiting."""

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 5:
            msg = "no room"
            raise OSError(msg)


def data(kind: str) -> DataLoader[Any]:
    if kind == "workers":
        return DataLoader(Augmented(192), batch_size=8, shuffle=True, num_workers=2)
    if kind == "stream":
        return DataLoader(Stream(96), batch_size=8)
    return _train()


def main(folder: Path, kind: str, how: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(7, verbose=False)
    callbacks: list[L.Callback] = [OfRank(), Counting()]
    if how != "bare":
        ours = OnTheFlyCallback(
            "p",
            "r",
            save_dir=folder / "runs",
            dashboard="off",
            checkpoint_every=5,
            resume=folder / "nowhere.ckpt" if how == "nowhere" else "auto",
        )
        callbacks.append(ours)
    callbacks += [KillsAll()] if how == "kill" else []
    callbacks += [CannotSave()] if how == "fails" else []
    if how in ("twice", "ctrl-c"):
        callbacks.append(Fails(how))
    if how == "finder":
        callbacks.append(LearningRateFinder(num_training_steps=10, max_lr=1e-2))
    more: dict[str, Any] = {"accumulate_grad_batches": 3} if kind == "accumulating" else {}
    epochs = 7 if kind == "accumulating" else 4
    trainer = _trainer(callbacks, strategy="ddp", devices=2, max_epochs=epochs, **more)
    if how == "twice":
        with contextlib.suppress(MemoryError):
            trainer.fit(Net(), data(kind), _val())
    trainer.fit(Net(), data(kind), _val())
    found = {**digest.of(trainer), "sum": callbacks[0].sum.hex()}  # type: ignore[attr-defined]
    (folder / f"{how}.{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
