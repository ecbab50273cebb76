"""A module with a value of every kind that can be set, and a script that sets them itself."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from otf_core import otf_param
from tests.no_harm.configs import Net

ACCUMULATE = "trainer.accumulate_grad_batches"
# By path, what is set.
VALUES: dict[str, Any] = {
    "eps": 1e-3,
    "beta2": 0.9,
    "maximize": True,
    "gradient_clip_val": 0.25,
    ACCUMULATE: 4,
    "model.dropout": 0.5,
    "model.dropout.net.3": 0.05,
    "attr.weight": 0.25,
    "attr.how": "sum",
    "attr.on": True,
    "attr.n": 3,
    "attr.table.smooth": 0.3,
    "hparams.decay": 0.02,
}
# One after another: the rate of one module behind that of all.
ALL = [{"path": path, "value": value} for path, value in VALUES.items() if path != "maximize"]


class Steered(Net):
    """Reads all of it in each step."""

    otf_params = (
        otf_param("weight", bounds=(0, 1), kind="float"),
        otf_param("how", choices=["mean", "sum"]),
        otf_param("on"),
        otf_param("n", bounds=(1, 8), unit="times"),
        otf_param("table.smooth", bounds=(0.0, 1.0)),
    )

    def __init__(self) -> None:
        super().__init__(schedule=None)
        self.save_hyperparameters({"decay": 0.001, "width": 24, "lr": 0.01})
        self.weight, self.how, self.on, self.n, self.table = 1.0, "mean", False, 1, {"smooth": 0.1}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.net(x)
        self.acc(logits, y)
        loss = nn.functional.cross_entropy(
            logits, y, reduction=self.how, label_smoothing=self.table["smooth"]
        )
        loss = self.weight * self.n * loss + self.hparams["decay"] * logits.square().sum()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss.tanh() if self.on else loss


def write(trainer: Any, module: Any, path: str, value: Any) -> None:
    """As a script does; of Lightning's Trainer and of a run of the Runner."""
    group = trainer.optimizers[0].param_groups[0]
    kind, _, name = path.partition(".")
    if path == "beta2":
        group["betas"] = (group["betas"][0], value)
    elif path in group:
        group[path] = value
    elif path == "model.dropout":
        for each in module.modules():
            if isinstance(each, nn.Dropout):
                each.p = value
    elif path.startswith("model.dropout."):
        module.get_submodule(path.removeprefix("model.dropout.")).p = value
    elif path == "attr.table.smooth":
        module.table["smooth"] = value
    elif kind == "hparams":
        module.hparams[name] = value
    else:
        setattr(trainer if kind != "attr" else module, name or path, value)


def read(trainer: Any, module: Any, path: str) -> Any:
    """What ``write`` writes."""
    group = trainer.optimizers[0].param_groups[0]
    kind, _, name = path.partition(".")
    if path == "beta2":
        return group["betas"][1]
    if path in group:
        return group[path]
    if path.startswith("model.dropout"):
        return module.net[3].p
    if path == "attr.table.smooth":
        return module.table["smooth"]
    if kind == "hparams":
        return module.hparams[name]
    return getattr(trainer if kind != "attr" else module, name or path)


class Hand:
    """The script's own hand, of a callback.

    Args:
        values: what it sets, by path.
        at: batches done when it does.
        back_at: batches done when it has the old values back; None: never.
    """

    is_otf = True  # no part of the run

    def __init__(self, values: dict[str, Any], at: int, back_at: int | None = None) -> None:
        self.values, self.at, self.back_at = values, at, back_at
        self.batches, self._old = 0, {}  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        module = getattr(trainer, "lightning_module", None) or trainer.module
        if self.batches == self.at:
            self._old = {path: read(trainer, module, path) for path in self.values}
            for path, value in self.values.items():
                write(trainer, module, path, value)
        if self.batches == self.back_at:
            for path, value in self._old.items():
                write(trainer, module, path, value)
        self.batches += 1


class SetsItself(Hand, L.Callback):
    """For Lightning."""
