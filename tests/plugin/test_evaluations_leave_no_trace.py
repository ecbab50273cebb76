"""What a validation or a test between two batches must not leave behind, user by user."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

from tests.no_harm import digest
from tests.no_harm.configs import Augmented, Net, _trainer, digits
from tests.plugin.rig import Barrier, fitting

RATE, HELD_AT = 0.004, 5


def seed() -> None:
    torch.manual_seed(21)
    np.random.seed(22)
    random.seed(23)


class Plain(Net):
    """Its test logs names of its own, so that a user's logger tells them apart."""

    def __init__(self) -> None:
        super().__init__(schedule=None)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, name: str) -> None:
        x, y = batch
        logits = self.net(x)
        # A test uses, and resets, the very objects that training and validation use.
        self.auroc(logits.softmax(-1), y)
        self.log(f"{name}_auroc", self.auroc)
        self.log(f"{name}_loss", nn.functional.cross_entropy(logits, y))
        if name == "test":
            self.acc(logits, y)
            self.log("test_acc", self.acc)

    def test_dataloader(self) -> Any:
        return DataLoader(digits(48), batch_size=16)


class SetsRate(L.Callback):
    """The edit, as a person would have written it into the script."""

    def __init__(self) -> None:
        self._seen = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._seen += 1
        if self._seen == HELD_AT:  # before the next batch's hooks, as an edit at the gate is
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = RATE


Run = Callable[[list[L.Callback], Path], L.Trainer]


def fit(
    callbacks: list[L.Callback], model: L.LightningModule, *data: Any, **kwargs: Any
) -> L.Trainer:
    more = kwargs.pop("more", ())
    trainer = _trainer(callbacks, *more, **kwargs)
    loaders = data or (
        DataLoader(digits(192), batch_size=16, shuffle=True),
        DataLoader(digits(64), batch_size=32),
    )
    if "datamodule" in kwargs:
        loaders = ()
    trainer.fit(model, *loaders)
    return trainer


def shared_metric(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return fit(callbacks, Plain())


def shared_generator(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    generator = torch.Generator().manual_seed(5)

    class Model(Plain):
        def test_dataloader(self) -> Any:
            return DataLoader(digits(48), 16, shuffle=True, generator=generator)

    return fit(
        callbacks,
        Model(),
        DataLoader(Augmented(160), 16, shuffle=True, generator=generator),
        DataLoader(Augmented(64), 16, shuffle=True, generator=generator),
    )


def generator_of_the_test_alone(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    """Kept by the module, and training draws from it as well."""

    class Model(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(8)
            self.rng = np.random.default_rng(8)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            noise = torch.randn(x.shape, generator=self.generator) * float(self.rng.random())
            return super().training_step((x + 0.1 * noise, y), batch_idx)

        def test_dataloader(self) -> Any:
            return DataLoader(digits(48), 16, shuffle=True, generator=self.generator)

        def on_validation_epoch_start(self) -> None:
            self.rng.random(7)

    return fit(callbacks, Model())


class Splits(L.LightningDataModule):
    """Splits anew at every setup, and draws for it from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(4)
        self.setups: list[str] = []

    def setup(self, stage: str) -> None:
        self.setups.append(stage)
        torch.rand(3), np.random.rand(3), random.random()
        parts = random_split(digits(256), [160, 64, 32], generator=self.generator)
        self.train, self.val, self.test = parts

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, 16, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 16)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, 16)


def splitting_data_module(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks, reload_dataloaders_every_n_epochs=1)
    data = Splits()
    trainer.fit(Plain(), datamodule=data)
    trainer.logger.lines.append((None, tuple((s, "") for s in data.setups if s != "test")))  # type: ignore[union-attr]
    return trainer


def persistent_workers_everywhere(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    more = {"num_workers": 1, "persistent_workers": True}
    return fit(
        callbacks,
        Plain(),
        DataLoader(Augmented(128), 16, shuffle=True, **more),  # type: ignore[arg-type]
        DataLoader(Augmented(32), 16, **more),  # type: ignore[arg-type]
        val_check_interval=4,
    )


def one_loader_for_both(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    data = DataLoader(Augmented(96), 16, shuffle=True, num_workers=1, persistent_workers=True)
    return fit(callbacks, Plain(), data, DataLoader(digits(32), 16))


class Remembers(Dataset[Any]):
    """Counts its reads, and what it gives depends on the count."""

    def __init__(self) -> None:
        self.x, self.y = digits(96).tensors
        self.reads = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.x[i] + self.reads * 1e-4, self.y[i]


def frozen_part(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    class Model(Plain):
        def on_train_start(self) -> None:
            self.net[1].eval()
            self.net[1].weight.requires_grad_(False)

    return fit(callbacks, Model())


def state_of_the_module(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    class Model(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.outputs: list[torch.Tensor] = []
            self.counts = {"val": 0, "seen": [0]}
            self.register_buffer("ema", torch.zeros(10))
            self.plain_tensor = torch.zeros(3)

        def _evaluate(self, batch: Any, name: str) -> None:
            super()._evaluate(batch, name)
            self.counts["val"] += 1  # type: ignore[operator]
            self.counts["seen"].append(1)  # type: ignore[attr-defined]
            self.outputs.append(self.net(batch[0]).mean(0).detach())
            self.ema.mul_(0.9).add_(self.outputs[-1])
            self.plain_tensor += 1
            self.made_late = 1

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            scale = 1 + 1e-3 * self.counts["val"] + 1e-3 * len(self.outputs)  # type: ignore[operator]
            scale = scale + 1e-3 * self.plain_tensor.sum() + 1e-3 * self.ema.sum()
            scale = scale + 1e-3 * len(self.counts["seen"]) + 0.01 * hasattr(self, "made_late")  # type: ignore[arg-type]
            return super().training_step(batch, batch_idx) * scale

    return fit(callbacks, Model())


def the_users_callbacks(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    best = ModelCheckpoint(tmp / "best", monitor="val_loss", save_top_k=1)
    trainer = fit(
        callbacks,
        Plain(),
        more=(EarlyStopping("val_loss", patience=2), best, LearningRateMonitor("step")),
        enable_checkpointing=True,
        max_epochs=3,
    )
    kept = tuple(sorted((p.name, "") for p in (tmp / "best").glob("*.ckpt")))
    trainer.logger.lines.append((None, kept))  # type: ignore[union-attr]
    return trainer


def validates_within_the_epoch(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return fit(callbacks, Plain(), val_check_interval=3, num_sanity_val_steps=2)


def accumulating(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return fit(callbacks, Plain(), accumulate_grad_batches=3, gradient_clip_val=0.5)


RUNS: dict[str, Run] = {
    run.__name__: run
    for run in (
        shared_metric, shared_generator, generator_of_the_test_alone, splitting_data_module,
        persistent_workers_everywhere, one_loader_for_both, frozen_part, state_of_the_module,
        the_users_callbacks, validates_within_the_epoch, accumulating,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_validation_and_a_test_in_the_middle_are_as_if_they_had_not_been(
    name: str, tmp_path: Path
) -> None:
    seed()
    expected = digest.of(RUNS[name]([SetsRate()], tmp_path / "a"))

    barrier = Barrier(HELD_AT - 1)
    seed()
    with fitting(lambda c: RUNS[name](c, tmp_path / "b"), tmp_path / "runs", barrier) as run:
        dashboard = run.dashboard
        barrier.wait_for(HELD_AT - 1)
        pause = dashboard.send("pause")
        dashboard.expect("state", state="pausing")
        barrier.let_go(HELD_AT - 1)
        assert dashboard.reply_to(pause)["ok"]
        for cmd in ("validate_now", "test_now", "validate_now"):
            payload = {"limit_batches": 1} if cmd == "validate_now" else {"label": "now"}
            reply = dashboard.request(cmd, payload)
            assert reply["ok"], reply
        assert dashboard.request("set_param", {"path": "lr", "value": RATE})["ok"]
        assert dashboard.request("resume")["ok"]
        trainer = run.outcome()
    found = digest.of(trainer)

    tested = [line for line in found["logged"] if any(k.startswith("test_") for k, _ in line[1])]
    assert tested, "the user's logger has not seen the test"
    found["logged"] = [line for line in found["logged"] if line not in tested]
    for part, value in expected.items():
        assert found[part] == value, part
