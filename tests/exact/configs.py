"""Lightning fits as users write them, small, each with what it promises.

``CONFIGS`` is the table. A configuration builds everything anew, so that two runs share nothing
but the files in the folder it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader

from tests.exact import data as d
from tests.exact import models as m
from tests.exact.data import loader, val_loader


@dataclasses.dataclass
class Setup:
    """What a script hands to ``Trainer`` or ``Runner`` and to ``fit``."""

    model: Any
    train: Any = None
    val: Any = None
    datamodule: Any = None
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Config:
    """A row of the table.

    Attributes:
        group: the row of the first table of configurations that it belongs to.
        inexact: why it cannot be exact, and then the report must have said so; None: it is exact.
        cautious: why the run says that it may be inexact, though it is not.
        slice: whether ``make test`` runs it.
        side: "lightning" or "runner", what trains it.
    """

    name: str
    group: str
    build: Callable[[Path], Setup]
    inexact: str | None = None
    cautious: str | None = None
    slice: bool = False
    side: str = "lightning"


CONFIGS: Final[dict[str, Config]] = {}
_OWN_ITER: Final = "what an __iter__ of its own does is not known"


def config(
    group: str,
    *,
    inexact: str | None = None,
    cautious: str | None = None,
    in_slice: bool = False,
) -> Callable[[Callable[[Path], Setup]], Callable[[Path], Setup]]:
    def add(build: Callable[[Path], Setup]) -> Callable[[Path], Setup]:
        name = build.__name__
        CONFIGS[name] = Config(name, group, build, inexact, cautious, in_slice)
        return build

    return add


def _setup(
    model: L.LightningModule | None = None,
    train: Any = None,
    val: Any = None,
    *callbacks: L.Callback,
    **trainer: Any,
) -> Setup:
    return Setup(
        model or m.Net(),
        loader() if train is None else train,
        val_loader() if val is None else val,
        callbacks=list(callbacks),
        trainer=trainer,
    )


# ------------------------------------------------------------------------------ order


@config("order", in_slice=True)
def shuffle(tmp: Path) -> Setup:
    return _setup(train=loader(drop_last=True, shuffle=True))


@config("order")
def weighted(tmp: Path) -> Setup:
    return _setup(train=loader(sampler=d.weighted(d.digits())))


@config("order")
def replacement(tmp: Path) -> Setup:
    return _setup(train=loader(sampler=d.replacement(d.digits())))


@config("order")
def lazy_sampler(tmp: Path) -> Setup:
    return _setup(train=loader(sampler=d.LazySampler()))


@config("order")
def eager_sampler(tmp: Path) -> Setup:
    return _setup(train=loader(sampler=d.EagerSampler()))


@config("order", in_slice=True)
def counting_sampler(tmp: Path) -> Setup:
    return _setup(train=loader(sampler=d.CountingSampler()))


class Mines(L.Callback):
    """Gives hard samples more weight, under way."""

    def __init__(self, sampler: d.HardOnes) -> None:
        self.sampler = sampler

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.sampler.weights[batch_idx] += float(outputs["loss"])


@config("order")
def sampler_changed_under_way(tmp: Path) -> Setup:
    sampler = d.HardOnes()
    return _setup(None, loader(sampler=sampler), None, Mines(sampler))


@config("order")
def own_batch_sampler(tmp: Path) -> Setup:
    return _setup(train=loader(batch_sampler=d.LengthBuckets()))


@config("order")
def eager_batch_sampler(tmp: Path) -> Setup:
    return _setup(train=loader(batch_sampler=d.EagerBuckets()))


@config("order")
def user_generator(tmp: Path) -> Setup:
    return _setup(train=loader(generator=torch.Generator().manual_seed(5)))


@config("order")
def user_generator_with_workers(tmp: Path) -> Setup:
    generator = torch.Generator().manual_seed(5)
    return _setup(train=loader(d.Augmented(), generator=generator, num_workers=2))


@config("order")
def generator_beside_a_sampler(tmp: Path) -> Setup:
    generator = torch.Generator().manual_seed(5)
    train = loader(d.Augmented(), sampler=d.LazySampler(), generator=generator, num_workers=2)
    return _setup(train=train)


# ------------------------------------------------------------------- data that draws


@config("drawing data")
def augmented_in_process(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented()), val=val_loader(d.Augmented(32, first=500)))


@config("drawing data")
def own_generators_in_process(tmp: Path) -> Setup:
    return _setup(train=loader(d.OwnGenerators()))


@config("drawing data", in_slice=True)
def workers(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented(), num_workers=2))


@config("drawing data", in_slice=True)
def workers_persistent(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented(), num_workers=2, persistent_workers=True))


@config("drawing data")
def one_worker(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented(), num_workers=1, prefetch_factor=3))


@config("drawing data")
def workers_with_own_generators(tmp: Path) -> Setup:
    return _setup(train=loader(d.OwnGenerators(), num_workers=2, persistent_workers=True))


@config("drawing data")
def validation_workers(tmp: Path) -> Setup:
    train = loader(d.Augmented(), num_workers=2, persistent_workers=True)
    val = val_loader(d.Augmented(48, first=500), num_workers=2, persistent_workers=True)
    return _setup(train=train, val=val, num_sanity_val_steps=2)


@config("drawing data")
def workers_cut_short(tmp: Path) -> Setup:
    train = loader(d.Augmented(), num_workers=2, persistent_workers=True)
    val = val_loader(d.Augmented(64, first=500), num_workers=2, persistent_workers=True)
    return _setup(
        train=train, val=val, limit_train_batches=4, limit_val_batches=1, num_sanity_val_steps=1
    )


class Harder(L.Callback):
    """Makes the data harder, under way; workers know when they begin."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.train_dataloader.dataset.level += 1  # type: ignore[union-attr]


@config("drawing data")
def data_changed_under_way(tmp: Path) -> Setup:
    return _setup(None, loader(d.Curriculum(), num_workers=2), None, Harder())


@config("drawing data")
def validation_with_state(tmp: Path) -> Setup:
    sampler, generator = d.CountingSampler(32), torch.Generator().manual_seed(6)
    vals = [
        val_loader(d.OwnGenerators(32), sampler=sampler),
        val_loader(d.Augmented(32, first=600), sampler=sampler, generator=generator, num_workers=1),
    ]
    return _setup(val=vals)


# -------------------------------------------------------------------------- iterables


@config("iterables", in_slice=True)
def stream(tmp: Path) -> Setup:
    return _setup(train=loader(d.SeededStream()))


@config("iterables")
def stream_begun_by_the_process_rng(tmp: Path) -> Setup:
    return _setup(train=loader(d.Stream()), val=val_loader(d.Stream(32, first=500)))


@config("iterables")
def stream_with_a_short_last_batch(tmp: Path) -> Setup:
    return _setup(train=loader(d.StatefulStream(90)), val=val_loader(d.Stream(30, first=500)))


@config("iterables")
def stream_with_a_short_last_batch_in_workers(tmp: Path) -> Setup:
    train = loader(d.StatefulStream(90), num_workers=2, persistent_workers=True)
    return _setup(train=train)


@config("iterables", in_slice=True)
def stream_in_workers(tmp: Path) -> Setup:
    return _setup(train=loader(d.Stream(), num_workers=2))


@config("iterables")
def stream_in_persistent_workers(tmp: Path) -> Setup:
    return _setup(train=loader(d.SeededStream(), num_workers=2, persistent_workers=True))


@config("iterables")
def stream_with_state(tmp: Path) -> Setup:
    return _setup(train=loader(d.StatefulStream()))


@config("iterables")
def stream_with_state_in_workers(tmp: Path) -> Setup:
    return _setup(train=loader(d.StatefulStream(), num_workers=2))


@config("iterables")
def shuffle_buffer_in_workers(tmp: Path) -> Setup:
    return _setup(train=loader(d.ShuffleBuffer(), num_workers=2))


@config("iterables", cautious="what draws while it is read is watched in a DataLoader only")
def no_loader_at_all(tmp: Path) -> Setup:
    return _setup(train=d.Batches())


@config("loaders", cautious=_OWN_ITER, in_slice=True)
def own_iter(tmp: Path) -> Setup:
    train = d.Doubling(d.digits(), batch_size=d.BATCH, shuffle=True)
    return _setup(train=train, val=train, val_check_interval=3, limit_val_batches=2)


@config("loaders", cautious=_OWN_ITER)
def two_own_iters_cycle(tmp: Path) -> Setup:
    a = d.Doubling(d.Augmented(), batch_size=12, shuffle=True)
    b = d.Doubling(d.Augmented(40), batch_size=8, shuffle=True, num_workers=1)
    return _setup(m.TwoLoaders(), CombinedLoader({"a": a, "b": b}, "max_size_cycle"))


@config("loaders", cautious=_OWN_ITER, in_slice=True)
def no_loaders_cycle(tmp: Path) -> Setup:
    pair = {"a": d.Batches(), "b": d.Batches(d.BATCH * 3)}
    return _setup(m.TwoLoaders(), CombinedLoader(pair, "max_size_cycle"))


@config("loaders", cautious=_OWN_ITER)
def no_loaders_until_the_longest(tmp: Path) -> Setup:
    pair = {"a": d.Batches(), "b": d.Batches(d.BATCH * 3), "c": loader(drop_last=True)}
    return _setup(m.TwoLoaders(), CombinedLoader(pair, "max_size"))


@config("iterables")
def own_loader_with_state(tmp: Path) -> Setup:
    return _setup(train=d.OwnPosition())


@config("iterables", inexact="draws from the training process's generator for every sample")
def opaque_stream(tmp: Path) -> Setup:
    return _setup(train=loader(d.ShuffleBuffer()))


@config("iterables", inexact="batches come in the order in which workers finish")
def out_of_order(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented(), num_workers=2, in_order=False))


# -------------------------------------------------------------------- several loaders


@config("loaders")
def two_loaders_cycle(tmp: Path) -> Setup:
    pair = {"a": loader(batch_size=12), "b": loader(d.digits(40, first=200))}
    return _setup(m.TwoLoaders(), CombinedLoader(pair, "max_size_cycle"))


@config("loaders")
def two_streams_cycle(tmp: Path) -> Setup:
    pair = {"a": loader(d.SeededStream(), batch_size=12), "b": loader(d.SeededStream(40))}
    return _setup(m.TwoLoaders(), CombinedLoader(pair, "max_size_cycle"))


@config("loaders")
def two_loaders_with_a_worker(tmp: Path) -> Setup:
    pair = {"a": loader(batch_size=12), "b": loader(d.Augmented(40, first=200), num_workers=1)}
    return _setup(m.TwoLoaders(), CombinedLoader(pair, "max_size"), [val_loader(), val_loader()])


class Reloaded(m.Net):
    """Makes loaders that depend on the epoch."""

    def train_dataloader(self) -> Any:
        first = 100 * self.trainer.current_epoch
        self.made_for = self.trainer.current_epoch
        return loader(d.digits(80 + 16 * (self.made_for % 2), first=first))

    def val_dataloader(self) -> Any:
        return val_loader(d.digits(32, first=600 + 32 * self.trainer.current_epoch))


@config("loaders", in_slice=True)
def reloaded_every_epoch(tmp: Path) -> Setup:
    return Setup(Reloaded(), trainer={"reload_dataloaders_every_n_epochs": 1})


@config("loaders")
def reloaded_every_second_epoch(tmp: Path) -> Setup:
    return Setup(Reloaded(), trainer={"reload_dataloaders_every_n_epochs": 2, "max_epochs": 4})


@config("loaders")
def no_sanity_check(tmp: Path) -> Setup:
    return _setup(train=loader(d.Augmented()), num_sanity_val_steps=0)


class Count:
    """Of a type that only its owner can store."""

    served = 0


class CountingDigits(L.LightningDataModule):
    """Has state, by which it changes every batch, and loaders that depend on the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def setup(self, stage: str) -> None:
        self.data = d.digits()

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return loader(
            torch.utils.data.Subset(self.data, range(8 * self.trainer.current_epoch, d.N))
        )

    def val_dataloader(self) -> Any:
        return val_loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.count.served += len(batch[0])
        return batch[0] * (1 + 1e-3 * self.count.served), batch[1]

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.count.served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count.served = state["served"]


@config("loaders", in_slice=True)
def data_module_with_state(tmp: Path) -> Setup:
    return Setup(m.Net(), datamodule=CountingDigits())


class ForgetfulDigits(L.LightningDataModule):
    """Counts, and has no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0
        self.last: list[float] = []

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return val_loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.served += len(batch[0])
        self.last = [*self.last[-2:], float(batch[0][0, 3])]
        return batch[0] * (1 + 1e-3 * self.served + sum(self.last)), batch[1]


@config("loaders")
def data_module_without_state_dict(tmp: Path) -> Setup:
    return Setup(m.Net(), datamodule=ForgetfulDigits())


class Resampling(m.Net):
    """Draws another part of the data every epoch."""

    def train_dataloader(self) -> Any:
        chosen = torch.randperm(300)[: d.N].tolist()
        return loader(torch.utils.data.Subset(d.digits(300), chosen))

    def val_dataloader(self) -> Any:
        return val_loader()


@config("loaders")
def resampled_every_epoch(tmp: Path) -> Setup:
    return Setup(Resampling(), trainer={"reload_dataloaders_every_n_epochs": 1})


class ShrinkingDigits(CountingDigits):
    """Makes its loaders by what it has counted so far."""

    def train_dataloader(self) -> Any:
        self.count.served += 1
        first = self.count.served // 16 % 32
        return loader(torch.utils.data.Subset(self.data, range(first, d.N)))


@config("loaders")
def loaders_made_by_what_was_counted(tmp: Path) -> Setup:
    more = {"reload_dataloaders_every_n_epochs": 1}
    return Setup(m.Net(), datamodule=ShrinkingDigits(), trainer=more)


# ------------------------------------------------------------- accumulation and limits


@config("limits", in_slice=True)
def accumulation_with_clipping(tmp: Path) -> Setup:
    return _setup(accumulate_grad_batches=3, gradient_clip_val=0.5)


@config("limits")
def accumulation_over_the_end(tmp: Path) -> Setup:
    return _setup(m.Cosine(), accumulate_grad_batches=4)


@config("limits")
def accumulation_by_epoch(tmp: Path) -> Setup:
    return _setup(None, None, None, GradientAccumulationScheduler({0: 1, 1: 3, 2: 2}))


@config("limits")
def max_steps_with_accumulation(tmp: Path) -> Setup:
    return _setup(max_epochs=-1, max_steps=7, accumulate_grad_batches=2)


@config("limits")
def overfit_batches(tmp: Path) -> Setup:
    return _setup(overfit_batches=3)


@config("limits")
def limit_train_batches(tmp: Path) -> Setup:
    return _setup(limit_train_batches=4)


@config("limits")
def max_time(tmp: Path) -> Setup:
    return _setup(max_epochs=3, max_time="00:01:00:00")


class AsksToStop(L.Callback):
    """Asks once, long before the run may stop."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.should_stop = True


@config("limits")
def asked_to_stop_early(tmp: Path) -> Setup:
    return _setup(None, None, None, AsksToStop(), min_steps=10)


# --------------------------------------------------------------- validation and schedules


@config("schedules", in_slice=True)
def validation_in_the_epoch(tmp: Path) -> Setup:
    return _setup(val=val_loader(d.Augmented(32, first=500)), val_check_interval=4)


@config("schedules")
def validation_over_epochs(tmp: Path) -> Setup:
    return _setup(val_check_interval=8, check_val_every_n_epoch=None)


@config("schedules")
def plateau_by_epoch(tmp: Path) -> Setup:
    return _setup(m.Plateau())


@config("schedules")
def plateau_on_a_validation_in_the_epoch(tmp: Path) -> Setup:
    return _setup(m.PlateauBySteps(), val_check_interval=3)


@config("schedules")
def cosine_by_step(tmp: Path) -> Setup:
    return _setup(m.Cosine(), None, None, LearningRateMonitor("step"))


@config("schedules")
def one_cycle(tmp: Path) -> Setup:
    return _setup(m.OneCycle())


@config("schedules")
def chained_schedules(tmp: Path) -> Setup:
    return _setup(m.Chained())


# ------------------------------------------------------------------------ optimization


@config("optimization", in_slice=True)
def manual(tmp: Path) -> Setup:
    return _setup(m.Manual())


@config("optimization")
def manual_accumulation(tmp: Path) -> Setup:
    return _setup(m.ManualAccumulation())


@config("optimization")
def reads_old_gradients(tmp: Path) -> Setup:
    return _setup(m.ReadsOldGradients())


@config("optimization", in_slice=True)
def float64_state_under_bf16_weights(tmp: Path) -> Setup:
    return _setup(m.HalfWeights())


@config("optimization")
def fp16_with_a_scaler(tmp: Path) -> Setup:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    return _setup(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


@config("optimization")
def bf16_mixed(tmp: Path) -> Setup:
    return _setup(m.StepAndEpochMetrics(), precision="bf16-mixed")


# --------------------------------------------------------------- metrics, models, callbacks


@config("metrics", in_slice=True)
def metrics_of_step_and_epoch(tmp: Path) -> Setup:
    return _setup(m.StepAndEpochMetrics())


@config("metrics")
def compute_group(tmp: Path) -> Setup:
    return _setup(m.ComputeGroup())


@config("metrics")
def auroc(tmp: Path) -> Setup:
    return _setup(m.Ranking())


@config("metrics")
def logged_now_and_then(tmp: Path) -> Setup:
    return _setup(m.NowAndThen(), log_every_n_steps=2)


@config("metrics")
def logged_in_several_hooks(tmp: Path) -> Setup:
    return _setup(m.LogsInSeveralHooks())


class ReadsLogged(L.Callback):
    """Sets the rate by what was logged before, in each of the places where Lightning keeps it."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        kept = (trainer.logged_metrics, trainer.progress_bar_metrics, trainer.callback_metrics)
        known = sum(float(value) for metrics in kept for value in metrics.values())
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 1e-2 / (1 + known)


@config("metrics")
def reads_what_was_logged(tmp: Path) -> Setup:
    return _setup(None, None, None, ReadsLogged())


@config("models")
def layer_norm(tmp: Path) -> Setup:
    return _setup(m.WithLayerNorm())


@config("models", in_slice=True)
def conv_with_batch_norm_and_dropout(tmp: Path) -> Setup:
    return _setup(m.Conv())


@config("models")
def freezes_once(tmp: Path) -> Setup:
    return _setup(m.FreezesOnce())


@config("models")
def asks_for_the_last_batch(tmp: Path) -> Setup:
    return _setup(m.AsksForTheLast())


@config("models")
def sets_modes(tmp: Path) -> Setup:
    return _setup(m.SetsModes())


@config("models", in_slice=True)
def odd_attributes(tmp: Path) -> Setup:
    return _setup(m.OddAttributes())


class Moody(L.Callback):
    """Has state that it tells nobody, and that changes the training."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weight = torch.ones(())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses = [*self.losses[-4:], float(outputs["loss"])]
        self.weight.mul_(0.99)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 1e-2 * float(self.weight) * (1 + sum(self.losses) / 10)


@config("callbacks", in_slice=True)
def user_callback_and_early_stopping(tmp: Path) -> Setup:
    stopping = EarlyStopping("val_loss", patience=1, min_delta=0.3)
    return _setup(None, None, None, Moody(), stopping, max_epochs=5)


@config("callbacks")
def model_checkpoint(tmp: Path) -> Setup:
    keeping = ModelCheckpoint(
        tmp / "best", filename="{step}", monitor="val_loss", save_top_k=2, save_last=True
    )
    return _setup(None, None, None, keeping, enable_checkpointing=True, val_check_interval=2)


@config("averages")
def ema(tmp: Path) -> Setup:
    return _setup(m.BatchNormed(), None, None, EMAWeightAveraging(decay=0.9))


class EveryEpoch(WeightAveraging):
    """Averages once an epoch."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


@config("averages")
def average_by_epoch(tmp: Path) -> Setup:
    return _setup(m.BatchNormed(), None, None, EveryEpoch(), max_epochs=4)


@config("averages", in_slice=True)
def stochastic_weight_averaging(tmp: Path) -> Setup:
    swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=2)
    return _setup(m.BatchNormed(), None, None, swa, max_epochs=4)


class Unfreezing(BaseFinetuning):
    """Trains the first part from the second epoch on."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        self.freeze(pl_module.net[0])  # type: ignore[index]

    def finetune_function(
        self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if epoch == 1:
            first = pl_module.net[0]  # type: ignore[index]
            self.unfreeze_and_add_param_group(first, optimizer, lr=0.01)


@config("averages", in_slice=True)
def unfreezing(tmp: Path) -> Setup:
    return _setup(m.Backbone(), None, None, Unfreezing())
