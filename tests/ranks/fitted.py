"""One rank of a fit that something else has launched: ``python -m tests.ranks.fitted FOLDER PORT``.

PORT 0: no dashboard, a checkpoint at every fifth step, and a fit that goes on by itself. Without
PORT: without us. GROUP_S is the time-out of the process group, NODES on how many machines it is,
DIES at which batch rank 1 is killed, the first time that it is launched, FAILS behind which it
fails, DAWDLES that it ends late. Notes the end of the fit, and to what its sockets were connected.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from torch.distributed import distributed_c10d

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Counting, Net, _train, _trainer, _val
from tests.plugin.ranks_live import OfRank
from tests.ranks.rig import be_impatient, note

STEPS: Final = 40
ENDLESS: Final = 100_000


class Counts(L.Callback):
    """The collectives of two steps, as the process group numbers them."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        group = distributed_c10d._get_default_group()
        self.begun[trainer.global_step] = group._get_sequence_number_for_group()

    def found(self) -> int | None:
        """Between them is no checkpoint, no end of an epoch and none of DDP's first two batches."""
        first, last = self.begun.get(27), self.begun.get(29)
        return None if first is None or last is None else last - first


class Impatient(L.Callback):
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        be_impatient(float(os.environ["GROUP_S"]))


class Dies(L.Callback):
    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(L.Callback):
    """Behind a batch, where all have the same collectives behind them, each rank waits for a file.
    Rank 0 goes on then, rank 1 fails."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.left, self.folder = batch, folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left:
            return
        rank = trainer.global_rank
        (self.folder / f"waits.{rank}").touch()
        while not (self.folder / f"go.{rank}").exists():
            threading.Event().wait(0.02)
        if rank:
            msg = "out of luck"
            raise ValueError(msg)


class Dawdles(L.Callback):
    """Rank 1 comes to its end long after rank 0."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank and trainer.global_step == STEPS:
            threading.Event().wait(3.0)


def connected() -> list[str]:
    """Fills with whatever a socket of Python's is connected to from now on."""
    found: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.bind"):
            found.append(str(args[1]))

    sys.addaudithook(hook)
    return found


def ours(folder: Path, port: int) -> OnTheFlyCallback:
    if port:
        return OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs", dashboard=f"127.0.0.1:{port}", after_fit="return",
            pause_at_start=True,
        )  # fmt: skip
    return OnTheFlyCallback(
        "p", "r", save_dir=folder / "runs", dashboard="off", checkpoint_every=5, resume="auto"
    )


def main(folder: Path, port: int | None) -> None:
    torch.set_num_threads(1)
    to = connected()
    L.seed_everything(7, verbose=False)
    counts = Counts()
    callbacks: list[L.Callback] = [OfRank(), Counting(), counts]
    callbacks += [] if port is None else [ours(folder, port)]
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and "DIES" in os.environ:
        callbacks.append(Dies(int(os.environ["DIES"])))
    callbacks += [Impatient()] if "GROUP_S" in os.environ else []
    callbacks += [Fails(folder, int(os.environ["FAILS"]))] if "FAILS" in os.environ else []
    callbacks += [Dawdles()] if "DAWDLES" in os.environ else []
    nodes = int(os.environ.get("NODES", "1"))
    trainer = _trainer(
        callbacks,
        strategy="ddp",
        devices=2 // nodes,
        num_nodes=nodes,
        max_epochs=-1,
        max_steps=ENDLESS if port else STEPS,
    )
    trainer.fit(Net(), _train(), _val())
    found = {
        **digest.of(trainer),
        "sum": callbacks[0].sum.hex(),  # type: ignore[attr-defined]
        "connected": to,
        "launched by": type(trainer.strategy.cluster_environment).__name__,
        "step": trainer.global_step,
        "collectives": counts.found(),
    }
    note(folder, trainer.global_rank, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
