"""Fits of the Runner as users write them: those of ``configs`` that it can do, and its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from otf_core.runner import RunnerCallback
from tests.exact import data as d
from tests.exact import models as m
from tests.exact.configs import CONFIGS as LIGHTNING
from tests.exact.configs import Config, Setup
from tests.exact.data import loader, val_loader
from tests.runner import shapes

PREFIX: Final = "runner_"
# What the Runner does with the very same script; those in the slice of ``make test``.
SAME: Final = (
    "shuffle",
    "weighted",
    "replacement",
    "lazy_sampler",
    "eager_sampler",
    "counting_sampler",
    "own_batch_sampler",
    "eager_batch_sampler",
    "user_generator",
    "user_generator_with_workers",
    "generator_beside_a_sampler",
    "augmented_in_process",
    "own_generators_in_process",
    "workers",
    "workers_persistent",
    "one_worker",
    "workers_with_own_generators",
    "validation_workers",
    "workers_cut_short",
    "validation_with_state",
    "stream",
    "stream_begun_by_the_process_rng",
    "stream_with_a_short_last_batch",
    "stream_with_a_short_last_batch_in_workers",
    "stream_in_workers",
    "stream_in_persistent_workers",
    "stream_with_state",
    "stream_with_state_in_workers",
    "shuffle_buffer_in_workers",
    "no_loader_at_all",
    "own_iter",
    "own_loader_with_state",
    "opaque_stream",
    "out_of_order",
    "no_sanity_check",
    "data_module_with_state",
    "data_module_without_state_dict",
    "accumulation_with_clipping",
    "accumulation_over_the_end",
    "max_steps_with_accumulation",
    "limit_train_batches",
    "validation_in_the_epoch",
    "validation_over_epochs",
    "plateau_by_epoch",
    "plateau_on_a_validation_in_the_epoch",
    "one_cycle",
    "chained_schedules",
    "manual",
    "manual_accumulation",
    "reads_old_gradients",
    "float64_state_under_bf16_weights",
    "bf16_mixed",
    "metrics_of_step_and_epoch",
    "compute_group",
    "auroc",
    "logged_now_and_then",
    "logged_in_several_hooks",
    "layer_norm",
    "conv_with_batch_norm_and_dropout",
    "freezes_once",
    "asks_for_the_last_batch",
    "sets_modes",
    "odd_attributes",
)
IN_SLICE: Final = (
    "workers_persistent",
    "stream",
    "accumulation_with_clipping",
    "metrics_of_step_and_epoch",
)

CONFIGS: Final[dict[str, Config]] = {}
for _name in SAME:
    _of = LIGHTNING[_name]
    CONFIGS[PREFIX + _name] = Config(
        PREFIX + _name,
        _of.group,
        _of.build,
        _of.inexact,
        _of.cautious,
        _name in IN_SLICE,
        "runner",
    )


def config(*, in_slice: bool = False) -> Callable[..., Any]:
    def add(build: Callable[[Path], Setup]) -> Callable[[Path], Setup]:
        name = PREFIX + build.__name__
        CONFIGS[name] = Config(name, "the Runner's own", build, slice=in_slice, side="runner")
        return build

    return add


def _setup(
    model: Any = None, train: Any = None, val: Any = None, *callbacks: Any, **options: Any
) -> Setup:
    return Setup(
        model or m.Net(),
        loader() if train is None else train,
        val_loader() if val is None else val,
        callbacks=list(callbacks),
        trainer=options,
    )


# ------------------------------------------------------------------------ plain pieces


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )


@config(in_slice=True)
def plain_pieces(tmp: Path) -> Setup:
    model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.05)
    setup = _setup(model, gradient_clip_val=1.0)
    setup.fit = {"optimizer": optimizer, "loss_fn": nn.CrossEntropyLoss(), "scheduler": schedule}
    return setup


@config()
def plain_training_step(tmp: Path) -> Setup:
    model = _network()

    def step(model: Any, batch: Any, batch_idx: int) -> Any:
        noise = torch.randn_like(batch[0]) * 0.1 if model.training else 0.0
        return {"loss": cross_entropy(model(batch[0] + noise), batch[1]), "n": len(batch[1])}

    setup = _setup(model, accumulate_grad_batches=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    setup.fit = {"optimizer": optimizer, "training_step": step}
    return setup


@config()
def parameter_in_no_module(tmp: Path) -> Setup:
    model, temperature = _network(), nn.Parameter(torch.ones(()))

    def step(model: Any, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(model(batch[0]) * temperature, batch[1])

    setup = _setup(model)
    optimizer = torch.optim.Adam([*model.parameters(), temperature], lr=1e-2)
    setup.fit = {"optimizer": optimizer, "training_step": step}
    return setup


class Pair:
    """No nn.Module: two networks and a number as attributes, which decide what comes."""

    log: Callable[..., None]
    optimizers: Callable[..., Any]
    manual_backward: Callable[..., None]

    def __init__(self) -> None:
        self.automatic_optimization = False
        self.gen, self.dis = nn.Linear(8, 64), nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.2))
        self.met = 0.0
        self.last: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        x, _ = batch
        noise = torch.randn(len(x), 8) * (1 + 0.01 * self.met)
        loss = -self.dis(self.gen(noise)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        loss = self.dis(self.gen(noise).detach()).mean() - self.dis(x).mean()
        self.manual_backward(loss)
        if batch_idx % 2:  # gathers over two batches
            second.step()
            second.zero_grad()
        self.met += float(x.sum())
        self.last = [*self.last[-2:], float(loss)]
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("met", self.met + sum(self.last))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (self.gen, self.dis)]


@config(in_slice=True)
def object_that_is_no_module(tmp: Path) -> Setup:
    return _setup(Pair(), loader(drop_last=True))


class PlainData:
    """A data module without a base class, which counts."""

    def __init__(self) -> None:
        self.served = 0

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return [val_loader(), val_loader(d.digits(20, first=600))]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.served += len(batch[0])
        return batch[0] * (1 + 1e-3 * self.served), batch[1]


@config()
def plain_data_module(tmp: Path) -> Setup:
    return Setup(m.Net(), datamodule=PlainData())


# ----------------------------------------------------------------------------- callbacks


class Ema(RunnerCallback):
    """An average of the weights, which the training is drawn to."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for name, p in run.module.named_parameters():
                mean = self.average.setdefault(name, p.detach().clone())
                mean.lerp_(p, 0.1)
                p.lerp_(mean, 0.05)


@config()
def ema(tmp: Path) -> Setup:
    return _setup(m.BatchNormed(), None, None, Ema())


class Average(RunnerCallback):
    """The same, kept as a copy of the network."""

    def on_train_start(self, run: Any) -> None:
        self.model = torch.optim.swa_utils.AveragedModel(
            run.module.net, avg_fn=lambda mean, new, _: mean.lerp(new, 0.1)
        )

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.model.update_parameters(run.module.net)
        with torch.no_grad():
            for p, mean in zip(run.module.net.parameters(), self.model.parameters(), strict=True):
                p.lerp_(mean, 0.05)


@config()
def ema_as_a_network(tmp: Path) -> Setup:
    return _setup(m.BatchNormed(), None, None, Average())


class Unfreezing(RunnerCallback):
    """Trains the first part from the second epoch on, as a parameter group of its own."""

    def on_fit_start(self, run: Any) -> None:
        run.module.net[0].requires_grad_(False)

    def on_train_epoch_start(self, run: Any) -> None:
        if run.counters.epoch == 1:
            first = run.module.net[0].requires_grad_(True)
            run.optimizers[0].add_param_group({"params": list(first.parameters()), "lr": 0.01})


class Backbone(m.Backbone):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[1].parameters(), lr=0.05, momentum=0.9)


@config()
def unfreezing(tmp: Path) -> Setup:
    return _setup(Backbone(), None, None, Unfreezing())


class Patience(RunnerCallback):
    """Asks to stop once the validation gets no better, and accumulates more by epoch."""

    def __init__(self) -> None:
        self.best, self.waited = float("inf"), 0

    def on_train_epoch_start(self, run: Any) -> None:
        run.accumulate_grad_batches = (1, 3, 2, 2, 1)[run.counters.epoch]

    def on_validation_end(self, run: Any) -> None:
        if run.sanity_checking:
            return
        loss = float(run.callback_metrics["val_loss"])
        self.waited = 0 if loss < self.best - 0.5 else self.waited + 1
        self.best = min(loss, self.best)
        if self.waited == 2:
            run.should_stop = True


@config()
def early_stopping_and_accumulation_by_epoch(tmp: Path) -> Setup:
    return _setup(None, None, None, Patience(), max_epochs=5)


class ClipsMore(RunnerCallback):
    """Sets the clip once, by the first loss."""

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if run.counters.global_step == 1:
            run.gradient_clip_val = 0.01 * float(outputs["loss"])


@config()
def clip_changed_under_way(tmp: Path) -> Setup:
    return _setup(None, None, None, ClipsMore(), gradient_clip_val=10.0)


class AsksToStop(RunnerCallback):
    """Asks once, long before the run may stop."""

    def on_train_batch_end(self, run: Any, *_: Any) -> None:
        if run.counters.global_step == 3:
            run.should_stop = True


@config()
def asked_to_stop_early(tmp: Path) -> Setup:
    return _setup(None, None, None, AsksToStop(), min_steps=10)


class ReadsLogged(RunnerCallback):
    """Sets the rate by what was logged before, in each of the places where it is kept."""

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        kept = (run.logged_metrics, run.progress_bar_metrics, run.callback_metrics)
        known = sum(float(value) for metrics in kept for value in metrics.values())
        for group in run.optimizers[0].param_groups:
            group["lr"] = 1e-2 / (1 + known)


@config()
def reads_what_was_logged(tmp: Path) -> Setup:
    return _setup(None, None, None, ReadsLogged())


# ----------------------------------------------------------------------- hooks and limits


@config()
def leaves_the_epoch(tmp: Path) -> Setup:
    return _setup(shapes.Leaves())


@config()
def skips_batches(tmp: Path) -> Setup:
    return _setup(shapes.Nones(), accumulate_grad_batches=2)


@config()
def gan(tmp: Path) -> Setup:
    return _setup(shapes.Gan())


@config()
def lbfgs(tmp: Path) -> Setup:
    return _setup(shapes.Lbfgs())


@config()
def lbfgs_by_hand(tmp: Path) -> Setup:
    return _setup(shapes.ByClosure())


@config()
def every_hook_overridden(tmp: Path) -> Setup:
    return _setup(shapes.Overrides(), gradient_clip_val=0.5)


@config()
def logs_everywhere(tmp: Path) -> Setup:
    return _setup(shapes.LogsEverywhere(), val_check_interval=2, log_every_n_steps=2)


@config()
def metric_collections(tmp: Path) -> Setup:
    return _setup(shapes.Metrics(), val_check_interval=0.5)


@config()
def model_made_late(tmp: Path) -> Setup:
    return _setup(shapes.Built())


class Lazy(m.Cosine):
    """Its first layer takes its shape from the first batch."""

    def layers(self) -> nn.Sequential:
        return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 10))


@config()
def lazy_layer(tmp: Path) -> Setup:
    # Without the sanity check there is nothing to keep before the first batch.
    return _setup(Lazy())


@config()
def max_steps_within_an_epoch(tmp: Path) -> Setup:
    return _setup(m.Cosine(), max_steps=15)


@config()
def several_validation_loaders(tmp: Path) -> Setup:
    drawing = val_loader(d.Augmented(40, first=600), num_workers=1, persistent_workers=True)
    return _setup(val=[val_loader(d.Augmented(32, first=500)), drawing], val_check_interval=3)


@config()
def limits_of_both(tmp: Path) -> Setup:
    return _setup(
        train=loader(d.Augmented(), num_workers=1),
        val=val_loader(d.Augmented(64, first=500)),
        limit_train_batches=0.7,
        limit_val_batches=1,
    )


@config()
def fp16_with_a_scaler(tmp: Path) -> Setup:
    return _setup(precision="16-mixed", accumulate_grad_batches=2)


class Remembering(torch.optim.SGD):
    """Keeps a number of its own, by which it steps."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1e-2)
        self.steps_done = 0

    def step(self, closure: Any = None) -> Any:
        self.steps_done += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps_done
        return super().step(closure)


class WithMemory(m.Net):
    def configure_optimizers(self) -> Any:
        return Remembering(self.parameters())


@config()
def optimizer_with_a_memory(tmp: Path) -> Setup:
    return _setup(WithMemory())
