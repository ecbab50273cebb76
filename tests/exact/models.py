"""The modules of the configurations: one habit of users each."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassPrecision,
    MulticlassRecall,
)

CLASSES = 10


class Net(L.LightningModule):
    """Dropout, a loss of the step and of the epoch, one optimizer without a schedule."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.net = self.layers()

    def layers(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.net(x)
        loss = cross_entropy(logits, y)
        self.seen(logits.detach(), y, batch_idx)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        """What a module does beside its loss."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("val_loss", cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class TwoLoaders(Net):
    """A batch of each of two loaders; the second may be over."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        given = [b for b in (batch["a"], batch["b"]) if b is not None]
        joined = [torch.cat(column) for column in zip(*given, strict=True)]
        return super().training_step(joined, batch_idx)


class Plateau(Net):
    """Lower the rate when the validation gets no better."""

    interval, frequency = "epoch", 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, factor=0.5, threshold=0.05
        )
        config = {"scheduler": schedule, "monitor": "val_loss"}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {**config, "interval": self.interval, "frequency": self.frequency},
        }


class PlateauBySteps(Plateau):
    """The same by steps, on a validation in the middle of an epoch."""

    interval, frequency = "step", 4


class Cosine(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 18)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class OneCycle(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Chained(Net):
    """Warm-up, then steps: schedules inside a schedule, one of them with a Counter."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        plans = torch.optim.lr_scheduler
        warm = plans.LinearLR(optimizer, 0.1, total_iters=4)
        steps = plans.MultiStepLR(optimizer, [3, 3, 8], gamma=0.5)
        chain = plans.SequentialLR(optimizer, [warm, steps], milestones=[5])
        return [optimizer], [{"scheduler": chain, "interval": "step"}]


class Manual(Net):
    """Two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.head = nn.Linear(64, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()  # type: ignore[attr-defined]
        x, y = batch
        for name, part, optimizer in (("loss", self.net, first), ("other", self.head, second)):
            loss = cross_entropy(part(x), y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(name, loss)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9),
            torch.optim.Adam(self.head.parameters(), lr=1e-2),
        )


class ManualAccumulation(Manual):
    """Gathers gradients over several batches, each optimizer and schedule at its own pace."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        parts = (("loss", self.net, 3), ("other", self.head, 4))
        schedules = self.lr_schedulers()
        rows: Any = zip(parts, self.optimizers(), schedules, strict=True)  # type: ignore[arg-type]
        for (name, part, every), optimizer, schedule in rows:
            loss = cross_entropy(part(x), y) / every
            self.manual_backward(loss)
            if (batch_idx + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            self.log(name, loss, on_step=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizers = list(super().configure_optimizers())
        schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.7) for o in optimizers]
        return optimizers, schedules


class ReadsOldGradients(Net):
    """Looks at the gradients of the batch before, just before they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = 0.0

    def on_before_zero_grad(self, optimizer: Any) -> None:
        grads = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.norm = 0.9 * self.norm + float(sum(grads)) if grads else self.norm
        self.lr_factor = 1.0 / (1.0 + self.norm)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self.lr_factor


class DoubleState(torch.optim.Optimizer):
    """Momentum in float64, whatever the weights are."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["sum"] = torch.zeros_like(p, dtype=torch.float64)
                    state["steps"] = 0
                state["steps"] += 1
                state["sum"].mul_(0.9).add_(p.grad.double())
                p.sub_((group["lr"] * state["sum"]).to(p.dtype))
        return loss


class HalfWeights(Net):
    """bf16 weights under an optimizer with float64 state."""

    def __init__(self) -> None:
        super().__init__()
        self.net.bfloat16()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0].bfloat16(), batch[1]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step((batch[0].bfloat16(), batch[1]), batch_idx)

    def configure_optimizers(self) -> Any:
        return DoubleState(self.parameters(), lr=1e-2)


class StepAndEpochMetrics(Net):
    """Metrics logged by the step and by the epoch, and one that nobody logs before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = MulticlassAccuracy(CLASSES)
        self.val_acc = MulticlassAccuracy(CLASSES)
        self.spread = MeanMetric()

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        self.acc(logits, y)
        self.log("train_acc", self.acc, on_step=True, on_epoch=True)
        self.spread.update(logits.std())
        self.log("least", logits.min(), reduce_fx="min", on_step=False, on_epoch=True)
        self.log("most", logits.max(), reduce_fx="max", on_step=False, on_epoch=True)
        self.log("sum", float(y.sum()), reduce_fx=torch.sum, on_step=False, on_epoch=True)
        self.log_dict({"std": logits.std(), "mean": logits.mean()}, on_step=True, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("spread", self.spread.compute())
        self.spread.reset()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.val_acc(self.net(batch[0]), batch[1])
        self.log("val_acc", self.val_acc)


class ComputeGroup(Net):
    """Metrics that share their state tensors."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (MulticlassAccuracy, MulticlassPrecision, MulticlassRecall)
        self.both = MetricCollection({k.__name__: k(CLASSES, average="macro") for k in kinds})

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        self.both.update(logits, y)
        if batch_idx % 4 == 3:
            self.log_dict({f"{k}_so_far": v for k, v in self.both.compute().items()})

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.both.compute())
        self.both.reset()


class Ranking(Net):
    """Metrics whose state are lists of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.auroc = MulticlassAUROC(CLASSES)

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        self.auroc.update(logits.softmax(-1), y)
        self.log("auroc", self.auroc, on_step=False, on_epoch=True)


class NowAndThen(Net):
    """Logs some values in some batches only."""

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        if batch_idx % 3 == 1:
            self.log("now_and_then", logits.mean(), on_step=True, on_epoch=True)
        if self.global_step == 7:
            self.log("once", logits.max(), on_step=False, on_epoch=True)
        if self.current_epoch == 1:
            self.log("in_one_epoch", float(y[0]), reduce_fx=max, on_step=False, on_epoch=True)


class LogsInSeveralHooks(Net):
    """Lightning forgets what a hook has logged when another logs in an epoch's first batch."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("weights", next(self.net.parameters()).norm(), on_step=True, on_epoch=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("labels", batch[1].float().mean(), on_step=True, on_epoch=True)


class WithLayerNorm(Net):
    def layers(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, CLASSES))


class Conv(Cosine):
    """A small CNN with BatchNorm and dropout."""

    def layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64, CLASSES),
        )


class BatchNormed(Net):
    def layers(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


class Backbone(Net):
    """Two parts, so that one can be frozen for a while."""

    def layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU()), nn.Linear(24, CLASSES)
        )

    def configure_optimizers(self) -> Any:
        wanted = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(wanted, lr=0.05, momentum=0.9)


class FreezesOnce(Net):
    """Freezes a layer in the seventh step and nowhere says so again."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 6:
            self.net[0].requires_grad_(False)
            for p in self.net[0].parameters():
                p.grad = None


class OddAttributes(Net):
    """State where no state_dict looks: attributes, containers, generators, an alias, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.recent: deque[float] = deque(maxlen=3)
        self.also_recent = self.recent
        self.labels: Counter[int] = Counter()
        self.met: set[int] = set()
        self.table: dict[str, Any] = {"rows": [[0.0]], "shape": (1, 1)}
        self.array = np.zeros(3)
        self.torch_gen = torch.Generator().manual_seed(1)
        self.numpy_gen = np.random.default_rng(2)
        self.legacy_gen = np.random.RandomState(3)
        self.python_gen = random.Random(4)
        self.ema: torch.Tensor | None = None
        self.views: list[torch.Tensor] = []
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        noise = torch.randn(64, generator=self.torch_gen) * 0.1
        noise += self.numpy_gen.random() + self.legacy_gen.rand() + self.python_gen.random()
        loss = cross_entropy(self.net(x * self.scale + noise * 0.1), y)
        loss = loss * (
            1.0 + 0.01 * sum(self.recent) + 0.001 * self.labels[3] + float(self.array[0])
        )
        if self.ema is not None:
            loss = loss + 0.01 * (self.ema - loss.detach()) ** 2
        self.notice(loss.detach(), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("aliased", float(self.also_recent is self.recent))
        return loss

    def notice(self, loss: torch.Tensor, y: torch.Tensor) -> None:
        self.ema = loss if self.ema is None else 0.9 * self.ema + 0.1 * loss
        self.also_recent.append(float(loss))
        self.labels.update(y.tolist())
        self.met |= {int(y[0])}
        self.table["rows"][0].append(float(len(self.met)))
        self.array[0] += 0.001 * len(self.table["rows"][0])
        self.views = [*self.views[-1:], loss.reshape(1)]
        self.made_later = float(loss)
        with torch.no_grad():
            self.scale *= 1.01


class AsksForTheLast(Net):
    """Does something else with the last batch of an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * 2 if self.trainer.is_last_batch else loss


class SetsModes(Net):
    """Puts a part in eval mode in one step and leaves it there until the next epoch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.net[2].eval()
