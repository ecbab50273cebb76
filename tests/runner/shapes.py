"""The shapes of modules on which the Runner is compared with Lightning."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision, MulticlassRecall

from tests.exact import data, models
from tests.exact.models import CLASSES, Net


@dataclasses.dataclass
class Shape:
    """A module with its data and options; ``trainer`` is what only Lightning is given."""

    module: Callable[[], Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: Callable[[], Any] = lambda: data.loader(drop_last=True)
    val: Callable[[], Any] | None = data.val_loader
    datamodule: Callable[[], Any] | None = None
    trainer: Callable[[], dict[str, Any]] = dict
    after: tuple[str, ...] = ()


class Dicts(Net):
    """Returns a dict, and finds it again at the batch's end."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "first": batch[1][0]}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("first", outputs["first"].float() + outputs["loss"])


class Nones(Net):
    """Skips every third batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


class Leaves(Net):
    """Wants no more of the epoch after three batches."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 and self.current_epoch == 0 else None


class Stops(Net):
    """Wants to stop, though more was asked for."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            self.trainer.should_stop = True


class Gan(L.LightningModule):
    """Two optimizers that take turns, with schedulers, toggling and a clip by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gen, self.dis = nn.Linear(8, 64), nn.Linear(64, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[attr-defined]
        x, _ = batch
        noise = torch.randn(len(x), 8, device=self.device)
        self.toggle_optimizer(first)
        loss = -self.dis(self.gen(noise)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        first.step()
        self.untoggle_optimizer(first)
        with self.toggled_optimizer(second):
            loss = self.dis(self.gen(noise).detach()).mean() - self.dis(x).mean()
            second.zero_grad()
            self.manual_backward(loss)
            second.step()
        self.log_dict({"g": loss, "steps": float(self.global_step)}, prog_bar=True)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
                scheduler.step()

    def configure_optimizers(self) -> Any:
        both = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (self.gen, self.dis)]
        return both, [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in both]


class ByClosure(Net):
    """Manual, one optimizer, with a closure and ``toggle_model``; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        losses = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            losses.append(loss)
            return loss

        with optimizer.toggle_model():
            optimizer.step(closure=closure)
        self.log("loss", losses[-1])
        return {"loss": losses[-1], "times": len(losses)}

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Lbfgs(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class LbfgsLogs(Lbfgs):
    """Another hook logs between two evaluations of the closure."""

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.log("zero_grad", 1.0, on_epoch=True, reduce_fx="sum")


class Overrides(Net):
    """Every hook of the optimization written by the user."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.global_step + 1) / 4)
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if self.current_epoch:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        self.log_rate = scheduler.get_last_lr()[0]

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        (loss * 0.5).backward()  # type: ignore[no-untyped-call]

    def on_before_backward(self, loss: torch.Tensor) -> None:
        self.log("before_backward", loss)

    def on_after_backward(self) -> None:
        self.log("grad", next(self.net.parameters()).grad.norm())  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Metrics(Net):
    """Metrics and a collection with compute groups, by step and by epoch, to test as well."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (MulticlassAccuracy, MulticlassPrecision, MulticlassRecall)
        both = MetricCollection({k.__name__: k(CLASSES, average="macro") for k in kinds})
        self.train_acc = MulticlassAccuracy(CLASSES)
        self.all = nn.ModuleDict({n: both.clone(prefix=f"{n}_") for n in ("fit", "val", "test")})

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        self.log_dict(self.all["fit"](logits, y), on_step=True, on_epoch=False)
        self.train_acc(logits, y)
        self.log("acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.all["val"].update(self.net(batch[0]), batch[1])
        self.log_dict(self.all["val"], on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.all["test"].update(self.net(batch[0]), batch[1])
        self.log_dict(self.all["test"])
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("test_loss", loss, on_step=True, on_epoch=True)
        return loss


class LogsEverywhere(Net):
    """Logs in every hook that may, in the ways that there are."""

    def on_train_start(self) -> None:
        self.log("on_train_start", 1.5)

    def on_train_epoch_start(self) -> None:
        self.log("epoch_start", float(self.current_epoch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("batch_start", batch_idx, on_epoch=True)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.log("zero_grad", float(self.global_step), prog_bar=True, on_epoch=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("hidden", loss, logger=False)
        self.log("low", loss, reduce_fx=min, on_step=True, on_epoch=True)
        self.log("high", loss, reduce_fx="max", on_step=False, on_epoch=True)
        self.log("total", y.sum(), reduce_fx=torch.sum, on_epoch=True)
        self.log("weighted", loss, batch_size=1 + batch_idx, on_epoch=True)
        self.log("double", loss.double(), on_epoch=True)
        self.log("half", loss.half(), on_epoch=True)
        self.log("row", loss.reshape(1), on_epoch=True)
        self.log("step", float(batch_idx * 10))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("batch_end", outputs["loss"], on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("epoch_end", float(self.global_step), prog_bar=True)

    def on_validation_start(self) -> None:
        self.log("val_start", 1.0)

    def on_validation_epoch_start(self) -> None:
        self.log("val_epoch_start", 2.0)

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("val_batch_start", float(batch_idx))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("val_max", loss, reduce_fx="max")
        return loss

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_batch_end", outputs, on_step=True)

    def on_validation_epoch_end(self) -> None:
        self.log("val_epoch_end", 3.0)


class Reads(Net):
    """Reads what was logged, in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[dict[str, float]] = []

    def _read(self) -> None:
        trainer: Any = self.trainer
        for found in (trainer.callback_metrics, trainer.logged_metrics):
            self.read.append({k: float(v) for k, v in found.items()})
        self.read.append(dict(trainer.progress_bar_metrics))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._read()

    def on_validation_epoch_end(self) -> None:
        self._read()

    def on_validation_end(self) -> None:
        self._read()

    def on_train_epoch_end(self) -> None:
        self._read()

    def on_train_end(self) -> None:
        self._read()


class NoOptimizers(Net):
    def configure_optimizers(self) -> None:
        return None


class Built(Net):
    """Makes its layers late."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = self.layers()


class OnlyBatch(Net):
    """Steps that do not ask for batch_idx, and batches of a type of its own."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step((batch.images, batch.labels), 0)

    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step((batch.images, batch.labels), 0)


Named = namedtuple("Named", "images labels")


def named(rows: Any) -> Named:
    return Named(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))


class Unfrozen(models.BatchNormed):
    """A part that stays in eval mode, and hooks of its own for the modes."""

    def on_fit_start(self) -> None:
        self.net[1].eval()

    def on_validation_model_eval(self) -> None:
        self.net[0].eval()

    def on_validation_model_train(self) -> None:
        self.net[0].train()


class Data(L.LightningDataModule):
    """All hooks that a data module has."""

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        self.rows = data.digits(80)

    def train_dataloader(self) -> Any:
        return data.loader(self.rows)

    def val_dataloader(self) -> Any:
        return data.val_loader()

    def test_dataloader(self) -> Any:
        return [data.val_loader(), data.val_loader(data.digits(20, first=700))]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        scale = 1.0 if self.trainer.training else 0.9  # type: ignore[union-attr]
        return [batch[0] + torch.rand(()) * 0.1 * scale, batch[1]]

    def teardown(self, stage: str) -> None:
        del self.rows


class IsTested(Net):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("test_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_test_epoch_end(self) -> None:
        self.log("tests", 1.0)


class OwnLoaders(IsTested):
    """The loaders are hooks of the module."""

    def train_dataloader(self) -> Any:
        return data.loader()

    def val_dataloader(self) -> Any:
        return data.val_loader()

    def test_dataloader(self) -> Any:
        return data.val_loader(data.digits(48, first=800))

    def setup(self, stage: str) -> None:
        self.was_set_up = stage

    def teardown(self, stage: str) -> None:
        self.was_torn_down = stage


class OwnLog(Net):
    """Its log is its own, in front of Lightning's; so is what it clips and propagates with."""

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        super().log(f"mine/{name}", value, *args, **kwargs)

    def on_train_epoch_end(self) -> None:
        self.log_dict({"end": 2.0})


class ChangesLoss(Net):
    """Changes the loss in place before it is propagated back; its outputs are as they were."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        with torch.no_grad():
            loss.mul_(3.0)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("output", outputs["loss"])


class OwnClip(Net):
    """Clips in its own way, whatever was asked for."""

    def clip_gradients(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        super().clip_gradients(optimizer, 0.01 if gradient_clip_val is None else 0.2, "value")


class Frequencies(Net):
    """A scheduler every second step, and one that only a dict can say."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        every = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [{"optimizer": optimizer, "lr_scheduler": {"scheduler": every, **self.how}}]

    how: dict[str, Any] = {"interval": "step", "frequency": 2, "name": "mine"}  # noqa: RUF012


class ByEpochs(Frequencies):
    how: dict[str, Any] = {"interval": "epoch", "frequency": 2}  # noqa: RUF012


class MonitorsNothing(Net):
    """A plateau whose metric is there only at times."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        how = {"monitor": "train_loss_epoch", "strict": False, "interval": "step", "frequency": 3}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **how}}


class MonitorAtTheTop(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}


class StopsIn(Net):
    """Wants to stop, in a hook that is named."""

    hook = ""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.maybe("training_step")
        return super().training_step(batch, batch_idx)

    def on_fit_start(self) -> None:
        self.maybe("on_fit_start")

    def on_train_start(self) -> None:
        self.maybe("on_train_start")

    def on_train_epoch_start(self) -> None:
        self.maybe("on_train_epoch_start")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.maybe("on_train_batch_start")

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.maybe("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self.maybe("on_train_epoch_end")

    def maybe(self, hook: str) -> None:
        if hook == self.hook:
            self.trainer.should_stop = True


@dataclasses.dataclass
class Sample:
    images: torch.Tensor
    more: dict[str, Any]


class DataclassBatches(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch.images, batch.more["labels"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step((batch.images, batch.more["labels"]), batch_idx)


def sampled(rows: Any) -> Sample:
    more = {"names": ["x"], "labels": torch.stack([y for _, y in rows])}
    return Sample(torch.stack([x for x, _ in rows]), more)


class SomeNone(data.Batches):
    """Has a batch that is None."""

    def __iter__(self) -> Any:
        for number, batch in enumerate(super().__iter__()):
            yield None if number == 2 else batch


class Nothing(data.Batches):
    def __len__(self) -> int:
        return 0


class MixedIn:
    """Hooks from beside the module."""

    def on_train_epoch_end(self) -> None:
        self.log("mixed_in", 4.0)  # type: ignore[attr-defined]


class WithMixin(MixedIn, Net):
    pass


class Borrowed(Net):
    """Hooks that lie in the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.on_train_epoch_start = lambda: self.log("borrowed", 5.0)  # type: ignore[method-assign]


class Nested(Net):
    """A LightningModule within, whose hooks nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = cross_entropy(self.net(x) + self.inner.net(x), y)
        self.log("epoch_seen_inside", float(self.inner.trainer.current_epoch))
        return loss


class MetricsEverywhere(Net):
    """A metric that is logged late, one by step in the validation, one that nobody updates."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.by_step = MulticlassAccuracy(CLASSES), MulticlassAccuracy(CLASSES)

    def seen(self, logits: torch.Tensor, y: torch.Tensor, batch_idx: int) -> None:
        self.late.update(logits, y)

    def on_train_epoch_end(self) -> None:
        self.log("late", self.late)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.by_step(self.net(batch[0]), batch[1])
        self.log("by_step", self.by_step, on_step=True, on_epoch=True, prog_bar=True)


class SumsOverLoaders(Net):
    """Two loaders, and names of its own for each."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log(f"loss_of_{dataloader_idx}", loss, add_dataloader_idx=False)
        self.log("joint", loss, on_step=True, on_epoch=True)

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log("last", float(dataloader_idx))

    def on_validation_epoch_end(self) -> None:
        self.log("over", 1.0)


class Accumulates(Net):
    """Changes how much it accumulates, and how it clips, under way."""

    def on_train_epoch_start(self) -> None:
        self.trainer.accumulate_grad_batches = 1 + self.current_epoch
        self.trainer.gradient_clip_val = 0.1 * (1 + self.current_epoch)


def two_val_loaders() -> list[Any]:
    return [data.val_loader(), DataLoader(data.digits(24, first=600), 8, shuffle=True)]


def half() -> dict[str, Any]:
    return {"plugins": MixedPrecision("16-mixed", "cpu"), "precision": None}


SHAPES: dict[str, Shape] = {
    "plain": Shape(Net),
    "no validation": Shape(Net, val=None),
    "loaders of the module, tested": Shape(OwnLoaders, train=None, val=None, after=("validate", "test")),  # type: ignore[arg-type]  # noqa: E501
    "data module with all hooks, tested": Shape(IsTested, datamodule=Data, after=("test",)),
    "one cycle by step": Shape(models.OneCycle, {"max_epochs": 3}),
    "cosine, batch norm": Shape(models.Conv),
    "chained schedulers": Shape(models.Chained),
    "by epoch, own hooks of the optimization": Shape(Overrides, {"gradient_clip_val": 0.3}),
    "plateau by epoch": Shape(models.Plateau, {"max_epochs": 4}),
    "plateau in mid-epoch": Shape(models.PlateauBySteps, {"val_check_interval": 4}),
    "accumulation with a short last": Shape(models.Cosine, {"accumulate_grad_batches": 4}),
    "accumulation and clipping by value": Shape(
        Net,
        {
            "accumulate_grad_batches": 3,
            "gradient_clip_val": 0.05,
            "gradient_clip_algorithm": "value",
        },
    ),
    "clipping by norm": Shape(Net, {"gradient_clip_val": 0.1}),
    "old gradients read": Shape(models.ReadsOldGradients),
    "validation by a share": Shape(Net, {"val_check_interval": 0.4, "log_every_n_steps": 2}),
    "validation every second epoch": Shape(Net, {"check_val_every_n_epoch": 2, "max_epochs": 5}),
    "validation over epochs": Shape(
        Net, {"val_check_interval": 5, "check_val_every_n_epoch": None}
    ),
    "no sanity check": Shape(Net, {"num_sanity_val_steps": 0}),
    "whole sanity check": Shape(Net, {"num_sanity_val_steps": -1}),
    "two loaders to validate": Shape(Net, val=two_val_loaders),
    "two loaders, one of unknown length": Shape(
        Net, val=lambda: [DataLoader(data.Stream(24), 8), data.val_loader()]
    ),
    "gan": Shape(Gan, val=None),
    "two by hand": Shape(models.Manual),
    "accumulation by hand": Shape(models.ManualAccumulation),
    "closure by hand": Shape(ByClosure),
    "lbfgs": Shape(Lbfgs),
    "lbfgs, two hooks log": Shape(LbfgsLogs),
    "dicts": Shape(Dicts),
    "nones": Shape(Nones, {"accumulate_grad_batches": 2}),
    "leaves the epoch": Shape(Leaves),
    "stops": Shape(Stops, {"max_epochs": 5, "min_steps": 8}),
    "stops after an epoch at least": Shape(Stops, {"max_epochs": 5, "min_epochs": 2}),
    "stops at once": Shape(Stops, {"max_epochs": 5}),
    "max steps": Shape(models.Cosine, {"max_epochs": None, "max_steps": 8}),
    "max steps and accumulation": Shape(Net, {"max_steps": 3, "accumulate_grad_batches": 4}),
    "limits": Shape(Net, {"limit_train_batches": 0.7, "limit_val_batches": 1}),
    "limits by number": Shape(Net, {"limit_train_batches": 4, "limit_val_batches": 0}),
    "metrics, tested": Shape(Metrics, after=("validate", "test")),
    "metrics by step and epoch": Shape(models.StepAndEpochMetrics),
    "metrics with lists": Shape(models.Ranking),
    "compute groups": Shape(models.ComputeGroup),
    "now and then": Shape(models.NowAndThen, {"max_epochs": 3}),
    "several hooks log": Shape(models.LogsInSeveralHooks),
    "logs everywhere": Shape(LogsEverywhere, {"log_every_n_steps": 3}),
    "reads what is logged": Shape(Reads, {"val_check_interval": 3}),
    "bf16": Shape(models.Conv, {"precision": "bf16-mixed"}),
    "fp16 with a scaler": Shape(Net, {"precision": "16-mixed", "gradient_clip_val": 0.5}, trainer=half),  # noqa: E501
    "fp16 by hand": Shape(models.Manual, {"precision": "16-mixed"}, trainer=half),
    "half weights": Shape(models.HalfWeights),
    "no optimizer": Shape(NoOptimizers),
    "built late": Shape(Built),
    "only the batch": Shape(
        OnlyBatch,
        train=lambda: data.loader(collate_fn=named),
        val=lambda: data.val_loader(collate_fn=named),
    ),
    "modes": Shape(Unfrozen, {"val_check_interval": 2}),
    "sets modes": Shape(models.SetsModes),
    "freezes": Shape(models.FreezesOnce),
    "odd attributes": Shape(models.OddAttributes),
    "asks for the last": Shape(models.AsksForTheLast),
    "loaders of the module, no sanity check": Shape(
        OwnLoaders,
        {"num_sanity_val_steps": 0},
        train=None,  # type: ignore[arg-type]
        val=None,
    ),
    "loss changed in place": Shape(ChangesLoss),
    "validation that epochs decide": Shape(
        Net,
        {"max_epochs": 3},
        val=lambda: data.val_loader(sampler=data.LazySampler(32)),
        after=("validate",),
    ),
    "own log": Shape(OwnLog),
    "own clip": Shape(OwnClip),
    "scheduler every second step": Shape(Frequencies),
    "scheduler every second epoch": Shape(ByEpochs, {"max_epochs": 5}),
    "monitors what is not there": Shape(MonitorsNothing, {"val_check_interval": 2}),
    "monitor at the top": Shape(MonitorAtTheTop, {"max_epochs": 3}),
    **{
        f"stops in {hook}": Shape(
            type("StopsIn", (StopsIn,), {"hook": hook}), {"max_epochs": 3, "val_check_interval": 3}
        )
        for hook in (
            "on_fit_start",
            "on_train_start",
            "on_train_epoch_start",
            "on_train_batch_start",
            "training_step",
            "on_validation_end",
            "on_train_epoch_end",
        )
    },
    "dataclass batches": Shape(
        DataclassBatches,
        train=lambda: data.loader(collate_fn=sampled),
        val=lambda: data.val_loader(collate_fn=sampled),
    ),
    "a batch that is None": Shape(Net, train=SomeNone),
    "nothing to train with": Shape(Net, train=Nothing),
    "nothing to validate with": Shape(Net, val=Nothing),
    "no epochs": Shape(Net, {"max_epochs": 0}),
    "no steps": Shape(Net, {"max_steps": 0}),
    "no training batches": Shape(Net, {"limit_train_batches": 0}),
    "mixin": Shape(WithMixin),
    "hooks in the instance": Shape(Borrowed),
    "a module within": Shape(Nested),
    "metrics everywhere": Shape(MetricsEverywhere),
    "names of two loaders": Shape(SumsOverLoaders, val=two_val_loaders, after=("validate",)),
    "accumulation that changes": Shape(Accumulates, {"max_epochs": 3, "val_check_interval": 3}),
    "validation while accumulating": Shape(
        Net, {"accumulate_grad_batches": 4, "val_check_interval": 3}
    ),
    "lbfgs, accumulation": Shape(Lbfgs, {"accumulate_grad_batches": 2}),
    "many steps at least": Shape(Stops, {"min_epochs": 1, "min_steps": 4, "max_epochs": 3}),
    "shares of validation": Shape(Net, {"limit_val_batches": 0.5, "num_sanity_val_steps": 9}),
    "stream": Shape(models.AsksForTheLast, train=lambda: data.loader(data.Stream())),
    "stream with a limit": Shape(
        models.AsksForTheLast,
        {"limit_train_batches": 4, "val_check_interval": 2},
        train=lambda: data.loader(data.Stream()),
    ),
    "stream shorter than its limit": Shape(
        models.Plateau, {"limit_train_batches": 20}, train=lambda: data.loader(data.Stream())
    ),
    "stream, accumulation": Shape(
        models.Cosine, {"accumulate_grad_batches": 4}, train=lambda: data.loader(data.Stream())
    ),
    "no DataLoader": Shape(Net, train=data.Batches),
    "sampler with epochs": Shape(Net, train=lambda: data.loader(sampler=data.LazySampler())),
    "batch sampler": Shape(Net, train=lambda: data.loader(batch_sampler=data.EagerBuckets())),
    "augmented in the process": Shape(Net, train=lambda: data.loader(data.Augmented())),
}  # fmt: skip
# Once each: workers take their time to start.
WORKERS: dict[str, Shape] = {
    "workers": Shape(
        Net, train=lambda: data.loader(data.Augmented(), num_workers=2), val=data.val_loader
    ),
    "persistent worker, seeded": Shape(
        Net,
        train=lambda: data.loader(data.Augmented(), num_workers=1, persistent_workers=True),
        val=lambda: data.val_loader(num_workers=1),
    ),
}
