"""Lightning runs of every kind, each small, seeded and on real data.

A case builds everything anew, so that a bare and an attached run share nothing.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.tuner import Tuner
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

Run = Callable[[list[L.Callback]], L.Trainer]


def digits(n: int = 192) -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(
        torch.tensor(images[:n], dtype=torch.float32) / 16.0, torch.tensor(labels[:n])
    )


class Tape(Logger):
    """Every logged value, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, tuple[tuple[str, str], ...]]] = []

    @property
    def name(self) -> str:
        return "tape"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        exact = sorted((k, float(v).hex()) for k, v in metrics.items())
        self.lines.append((step, tuple(exact)))


class Net(L.LightningModule):
    """BatchNorm, dropout, metrics of a step and of an epoch."""

    def __init__(self, *, schedule: str | None = "cosine", lr: float = 1e-2) -> None:
        super().__init__()
        self.lr, self.schedule = lr, schedule
        self.net = nn.Sequential(
            nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10)
        )
        self.acc = MulticlassAccuracy(10)
        self.auroc = MulticlassAUROC(10, thresholds=8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.acc(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.acc, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        logits = self.net(x)
        self.auroc(logits.softmax(-1), y)
        self.log("val_loss", nn.functional.cross_entropy(logits, y))
        self.log("val_auroc", self.auroc)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.acc(logits, y)  # shared with training, on purpose
        self.log("test_loss", nn.functional.cross_entropy(logits, y))
        self.log("test_acc", self.acc)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        if self.schedule == "cosine":
            plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
            return [optimizer], [{"scheduler": plan, "interval": "step"}]
        if self.schedule == "plateau":
            worse = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": worse, "monitor": "val_loss", "interval": "epoch"},
            }
        return optimizer


class TwoLoaders(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        a, b = batch["a"], batch["b"]
        joined = torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])
        return super().training_step(joined, batch_idx)


class Manual(Net):
    """Two optimizers by hand, one every second batch."""

    def __init__(self) -> None:
        super().__init__(schedule=None)
        self.automatic_optimization = False
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        other = nn.functional.cross_entropy(self.head(x), y)
        self.manual_backward(other / 2)
        if batch_idx % 2:
            second.step()
            second.zero_grad()
        self.log("loss", loss)
        self.log("other", other)
        return {"loss": loss.detach(), "other": other.detach()}

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9),
            torch.optim.Adam(self.head.parameters(), lr=1e-2),
        )


class Augmented(Dataset[Any]):
    """Draws from all three generators of the worker, or of the training process."""

    def __init__(self, n: int = 128) -> None:
        self.x, self.y = digits(n).tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        noise = torch.randn(64) * 0.01 + float(np.random.rand()) * 0.01 + random.random() * 0.01
        return self.x[i] + noise, self.y[i]


class Stream(IterableDataset[Any]):
    def __init__(self, n: int = 128) -> None:
        self.x, self.y = digits(n).tensors

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(len(self.x)):
            yield self.x[i], self.y[i]


class Counting(L.Callback):
    """A user's callback with state and RNG of its own."""

    def __init__(self) -> None:
        self.seen, self.drawn = 0, 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        self.drawn += float(torch.rand(()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "drawn": self.drawn}


def _trainer(callbacks: list[L.Callback], *more: L.Callback, **kwargs: Any) -> L.Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": Tape(),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=[*more, *callbacks], **{**given, **kwargs})


def _train(n: int = 192, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(digits(n), batch_size=16, shuffle=True, **kwargs)


def _val() -> DataLoader[Any]:
    return DataLoader(digits(64), batch_size=32)


def _fit(
    callbacks: list[L.Callback], model: L.LightningModule | None = None, **kwargs: Any
) -> L.Trainer:
    trainer = _trainer(callbacks, **kwargs)
    trainer.fit(model or Net(), _train(), _val())
    return trainer


def epochs(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks)


def max_steps(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, max_epochs=-1, max_steps=17)


def max_time(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, max_epochs=-1, max_steps=15, max_time="00:01:00:00")


def accumulation_and_clipping(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, accumulate_grad_batches=3, gradient_clip_val=0.5)


def bf16(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, precision="bf16-mixed")


def sanity_check_and_plateau(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    model = Net(schedule="plateau")
    return _fit(callbacks, model, num_sanity_val_steps=2, val_check_interval=5)


def fast_dev_run(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, fast_dev_run=3)


def barebones(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, barebones=True, callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are trying to `self.log")
        trainer.fit(Net(), _train(), _val())
    return trainer


def several_loaders(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks)
    loaders = {"a": _train(96), "b": _train(64)}
    trainer.fit(TwoLoaders(), loaders, [_val(), _val()])
    return trainer


def manual_with_two_optimizers(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    return _fit(callbacks, Manual())


def workers(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks)
    data = DataLoader(Augmented(), 16, shuffle=True, num_workers=2, persistent_workers=True)
    trainer.fit(Net(), data, _val())
    return trainer


def draws_in_process(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks)
    generator = torch.Generator().manual_seed(3)
    data = DataLoader(Augmented(), 16, shuffle=True, generator=generator)
    trainer.fit(Net(), data, DataLoader(Augmented(32), 16))
    return trainer


def iterable(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks)
    trainer.fit(Net(), DataLoader(Stream(), 16), DataLoader(Stream(32), 16))
    return trainer


def user_callbacks(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(
        callbacks,
        Counting(),
        EarlyStopping("val_loss", patience=1, min_delta=0.5),
        ModelCheckpoint(tmp / "ckpt", monitor="val_loss", save_top_k=2, save_last=True),
        LearningRateMonitor("step"),
        max_epochs=4,
        enable_checkpointing=True,
    )
    trainer.fit(Net(), _train(), _val())
    return trainer


def weight_averaging(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
    trainer = _trainer(callbacks, averaging, max_epochs=3)
    trainer.fit(Net(schedule=None), _train(), _val())
    return trainer


def tuner(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer = _trainer(callbacks, default_root_dir=tmp)
    model = Net()
    Tuner(trainer).lr_find(model, _train(), _val(), num_training=16, attr_name="lr")
    trainer.fit(model, _train(), _val())
    return trainer


def second_fit(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer, model = _trainer(callbacks), Net()
    trainer.fit(model, _train(), _val())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, _train(), _val())
    return trainer


def validate_test_predict(callbacks: list[L.Callback], tmp: Path) -> L.Trainer:
    trainer, model = _trainer(callbacks), Net()
    trainer.validate(model, _val(), verbose=False)
    trainer.fit(model, _train(), _val())
    trainer.test(model, _val(), verbose=False)
    trainer.predict(model, _val())
    return trainer


CASES: dict[str, Callable[[list[L.Callback], Path], L.Trainer]] = {
    case.__name__: case
    for case in (
        epochs, max_steps, max_time, accumulation_and_clipping, bf16, sanity_check_and_plateau,
        fast_dev_run, barebones, several_loaders, manual_with_two_optimizers, workers,
        draws_in_process, iterable, user_callbacks, weight_averaging, tuner, second_fit,
        validate_test_predict,
    )
}  # fmt: skip
