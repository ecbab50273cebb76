"""An FSDP2 run on gloo: ``python -m tests.plugin.sharded FOLDER RANKS HOW [PORT]``.

Each rank draws differently; weights and optimizer states are sharded over all of them. Writes
``FOLDER/<HOW>.<rank>.json``. HOW: ``bare`` (without us), ``live``, ``kill`` at a batch, ``begin``
(stopped behind the first checkpoints), ``torn`` (the last rank has no memory for its part of one
checkpoint, and all are killed within the next), ``held`` by a dashboard at PORT.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from otf_core.state import park, shard_files
from otf_core.testing import FakeAccelerator
from otf_lightning import OnTheFlyCallback, inside
from tests.no_harm import digest
from tests.no_harm.configs import Counting, _trainer, _val, digits

KILLED_IN = 14  # the batch: in the middle of an epoch
ACCUMULATED = 2
STEPS = 15
SEEN = "seen"


class Net(L.LightningModule):
    """Sharded over all ranks; remembers which samples this rank was given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 25), nn.LayerNorm(25), nn.ReLU(), nn.Dropout(0.2), nn.Linear(25, 10)
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        if not any(isinstance(p, DTensor) for p in self.parameters()):
            for layer in (self.net[0], self.net[4], self.net):
                fully_shard(layer, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        self.steps += 1
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x), y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


class OfRank(L.Callback):
    """Another stream of random numbers on each rank; and which samples each had, by epoch."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.had: list[list[int]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.manual_seed(100 + trainer.global_rank)

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self.had.append([trainer.current_epoch, *rest[2][2].tolist()])
        self.sum += float(torch.rand(())) * (1 + trainer.global_rank)


class KillsAll(L.Callback):
    """SIGKILL to the whole group of processes, from the last rank."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.batches += 1
        if self.batches == KILLED_IN and trainer.global_rank == trainer.world_size - 1:
            os.killpg(0, signal.SIGKILL)


class Whole(L.Callback):
    """The full state before each batch, by step: the same on any number of ranks."""

    found: ClassVar[dict[int, str]] = {}  # of the class: an attribute would be put back

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        Whole.found[trainer.global_step] = full_hash(trainer)


class Reshards(L.Callback):
    """A forward without a backward leaves parameters of the root whole; they are parts again."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert not all(isinstance(p, DTensor) for p in pl_module.parameters())
        inside.reshard(trainer)
        assert all(isinstance(p, DTensor) for p in pl_module.parameters())


class Torn(L.Callback):
    """The last rank's part of the second checkpoint finds no memory, that of the third no time."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            self.write, shard_files.ShardWriter.write = shard_files.ShardWriter.write, self  # type: ignore[method-assign, assignment]
            self.on_host, self.saves = shard_files._on_host, 0

    def __get__(self, writer: Any, _: type) -> Any:
        def write(*args: Any) -> Any:
            self.saves += 1
            with pytest.MonkeyPatch.context() as patch:
                if self.saves == 2:
                    patch.setattr(shard_files, "_on_host", self.full)
                if self.saves == 3:
                    shard_files.filesystem.FileSystemWriter.write_data = self.half  # type: ignore[method-assign]
                return self.write(writer, *args)

        return write

    @staticmethod
    def full(_: Any) -> Any:
        raise MemoryError

    @staticmethod
    def half(writer: Any, *_: Any) -> Any:
        (Path(writer.path) / "__1_0.distcp").write_bytes(b"half")
        os.killpg(0, signal.SIGKILL)


def full_hash(trainer: L.Trainer) -> str:
    whole: dict[str, Any] = dict(trainer.lightning_module.state_dict())
    names = {p: n for n, p in trainer.lightning_module.named_parameters()}
    for optimizer in trainer.optimizers:
        for p, state in optimizer.state.items():
            whole |= {f"{names[p]}.{key}": value for key, value in state.items()}
    found = hashlib.sha256()
    for name, value in sorted(whole.items()):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if name != "steps":
            found.update(name.encode() + full.detach().numpy().tobytes())
    return found.hexdigest()


def local(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.to_local()
    if isinstance(value, dict):
        return {k: local(v) for k, v in value.items()}
    return [local(v) for v in value] if isinstance(value, list) else value


def main(folder: Path, ranks: int, how: str, port: int) -> None:
    torch.set_num_threads(1)
    park.accelerator_of = lambda _: FakeAccelerator()
    L.seed_everything(7, verbose=False)
    x, y = digits().tensors
    data = torch.utils.data.TensorDataset(x, y, torch.arange(len(x)))
    callbacks: list[L.Callback] = [OfRank(), Counting(), Whole()]
    if how != "bare":
        ours = OnTheFlyCallback(
            "p", "r", save_dir=folder / "runs",
            dashboard=f"127.0.0.1:{port}" if port else "off",
            checkpoint_every=None if port else 5, resume="auto", pause_at_start=bool(port),
            after_fit="return",
        )  # fmt: skip
        callbacks.append(ours)
    callbacks += [KillsAll()] if how == "kill" else []
    callbacks += [Torn()] if how == "torn" else []
    callbacks += [Reshards()] if how == "live" else []
    trainer = _trainer(
        callbacks,
        strategy="otf_fsdp2",
        devices=ranks,
        max_epochs=-1,
        max_steps=STEPS,
        val_check_interval=5,
        accumulate_grad_batches=ACCUMULATED,
    )
    trainer.fit(Net(), DataLoader(data, batch_size=8, shuffle=True), _val())
    digest._exact = _exact_local  # of this rank's shards
    found = {
        **digest.of(trainer),
        "sum": callbacks[0].sum.hex(),  # type: ignore[attr-defined]
        SEEN: callbacks[0].had,  # type: ignore[attr-defined]
    }
    name = f"{how}.{trainer.global_rank}.json"
    (folder / name).write_text(json.dumps(found))
    (folder / f"whole.{name}").write_text(json.dumps(Whole.found))


_exact = digest._exact


def _exact_local(value: Any) -> Any:
    return _exact(local(value))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int((*sys.argv, "0")[4]))
