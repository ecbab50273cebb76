"""One fit, validation or test: module, data, optimizers, loops, and what they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from otf_core.runner import batches as data
from otf_core.runner import optim
from otf_core.runner.callback import HOOKS as CALLBACK_HOOKS
from otf_core.runner.callback import RunnerCallback
from otf_core.runner.counters import Counters
from otf_core.runner.evaluation import EvaluationLoop
from otf_core.runner.hooks import DATA_HOOKS, MODULE_HOOKS, hooks_of
from otf_core.runner.logged import LogBook, is_metric, scalars
from otf_core.runner.loop import FitLoop
from otf_core.runner.options import Options
from otf_core.runner.precision import Precision
from otf_core.runner.refusals import refuse
from otf_core.runner.step import Toggle

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


class Run:
    """What the loops work on; ``run`` of a RunnerCallback. Training thread only.

    Attributes:
        fn: "fit", "validate" or "test": what was asked for.
        stage: "train", "sanity", "validate", "test": what goes on.
        counters: where the fit stands.
        hooks: of the module, those that the user has written.
        between_batches: the safe point: called when a batch is completely through and before the
            next is fetched; True ends the fit there.
        at_end: called when a limit is reached, before the loops are left; where it raises the
            limit they go on as if it had always been there.
        process_loader: every loader passes through it before it is iterated.
        before_epoch: called before the hooks and the iterator of an epoch.
        before_step: called with an optimizer whose gradients are complete and not clipped yet.
    """

    def __init__(
        self,
        options: Options,
        module: Any,
        *,
        fn: str,
        datamodule: Any = None,
        loaders: dict[str, Any] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.options, self.module, self.datamodule, self.fn = options, module, datamodule, fn
        self.given_loaders = loaders or {}
        self.stage: str | None = {"fit": "train"}.get(fn, fn)
        self.counters = counters or Counters()
        self.device = options.torch_device()
        self.precision = Precision(options.precision, self.device)
        self.book = LogBook()
        self.parts = modules_of(module)
        self.optimizers: list[Any] = []
        self.wrapped: list[Any] = []
        self.schedulers: list[optim.SchedulerConfig] = []
        self.should_stop = False
        self.max_epochs, self.min_epochs = options.epoch_limits()
        self.max_steps, self.min_steps = options.max_steps, options.min_steps
        self.accumulate_grad_batches = options.accumulate_grad_batches
        self.gradient_clip_val = options.gradient_clip_val
        self.gradient_clip_algorithm = options.gradient_clip_algorithm
        self.limit_train_batches = options.limit_train_batches
        self.limit_val_batches = options.limit_val_batches
        self.limit_test_batches = options.limit_test_batches
        self.val_check_interval = options.val_check_interval
        self.check_val_every_n_epoch = options.check_val_every_n_epoch
        self.num_sanity_val_steps = options.num_sanity_val_steps
        self.log_every_n_steps = options.log_every_n_steps
        self.between_batches: Callable[[], bool] = bool  # False
        self.at_end: Callable[[], None] = lambda: None
        self.process_loader: Callable[[Any], Any] = lambda loader: loader
        self.before_epoch: Callable[[], None] = lambda: None
        self.before_step: Callable[[Any], None] = lambda _: None
        self.on_step: list[
            Callable[[], None]
        ] = []  # the counters of a module that is no Lightning's
        self.listening: list[Any] = []
        self.listeners: dict[str, list[Callable[..., Any]]] = {}
        self.sinks: list[Callable[..., Any]] = []
        self.toggle = Toggle(lambda: self.optimizers)
        self.find_hooks()
        self.fit_loop = FitLoop(self)
        self.validation = EvaluationLoop(self, "validate")
        self.testing = EvaluationLoop(self, "test")
        self.book.device = self.device
        self.book.metrics = self._metrics
        self.enter(self.stage)

    @property
    def automatic(self) -> bool:
        """Whether the Runner propagates back and steps."""
        return bool(getattr(self.module, "automatic_optimization", True))

    @property
    def sanity_checking(self) -> bool:
        """The few batches of validation before the training."""
        return self.stage == "sanity"

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """What was logged, by name; the newest of step or epoch."""
        self.book.now()
        return self.book.callback

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """What a logger would have been given."""
        self.book.now()
        return self.book.logged

    @property
    def progress_bar_metrics(self) -> dict[str, Any]:
        """What was logged with ``prog_bar=True``, as numbers; waits for the device."""
        self.book.now()
        return scalars(self.book.progress)

    def find_hooks(self) -> None:
        """Look up the hooks; again when setup and configure_model may have made some."""
        self.hooks = hooks_of(self.module, MODULE_HOOKS)
        self.data_hooks = hooks_of(self.datamodule, DATA_HOOKS) if self.datamodule else {}
        self._transfers = {
            name: self.data_hooks.get(name) or self.hooks.get(name) for name in data_names
        }
        self._moves_only = not any(self._transfers.values())

    def listen(self, callbacks: list[Any]) -> None:
        """Call these beside the module."""
        self.listening += callbacks
        for callback in callbacks:
            for name in CALLBACK_HOOKS:
                hook = getattr(callback, name, None)
                default = getattr(RunnerCallback, name)
                if hook is not None and getattr(hook, "__func__", hook) is not default:
                    self.listeners.setdefault(name, []).append(hook)
        self.sinks = self.listeners.get("on_metrics", [])

    def hears(self, name: str) -> bool:
        """Whether anybody wants to know of this."""
        return name in self.hooks or name in self.listeners

    def hook(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the callbacks, then the module; what it returned."""
        if name in self.listeners:
            for listener in self.listeners[name]:
                listener(self, *args)
        hook = self.hooks.get(name)
        if hook is None:
            return None
        book = self.book
        before, book.fx = book.fx, name
        try:
            return hook(*args, **kwargs)
        finally:
            book.fx = before

    def enter(self, stage: str | None) -> None:
        """From now on this goes on; logged values are its own."""
        self.stage = stage
        name = "validate" if stage == "sanity" else stage
        self.book.active = self.book.results[name] if name is not None else None

    @contextlib.contextmanager
    def in_stage(self, stage: str) -> Iterator[None]:
        """Another stage inside."""
        before = self.stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    def has_loader(self, name: str) -> bool:
        """Whether somebody gives such a loader."""
        if self.given_loaders.get(name) is not None:
            return True
        return name in (self.hooks if self.datamodule is None else self.data_hooks)

    def request(self, name: str) -> list[Any]:
        """Ask for loaders where they come from, and have them processed."""
        found = self.given_loaders.get(name)
        where = f"{name.removesuffix('_dataloader')}_loader="
        if found is None:
            owner: Any = self.module if self.datamodule is None else self.datamodule
            where = f"{type(owner).__name__}.{name}"
            hooks = self.hooks if self.datamodule is None else self.data_hooks
            found = hooks[name]() if name in hooks else None
        loaders = (
            data.one_loader(found) if name == "train_dataloader" else data.several_loaders(found)
        )
        for loader in loaders:
            data.check_loader(loader, where)
        loaders = [self.process_loader(loader) for loader in loaders]
        for loader in loaders:
            data.seed_workers(loader)
        return loaders

    def transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """To the device, by the hooks of the data module or else of the module."""
        if self._moves_only:
            return data.to_device(batch, self.device)
        before, move, after = (self._transfers[name] for name in data_names)
        if before is not None:
            batch = before(batch, dataloader_idx)
        if move is not None:
            batch = move(batch, self.device, dataloader_idx)
        else:
            batch = data.to_device(batch, self.device)
        return batch if after is None else after(batch, dataloader_idx)

    def configure_optimizers(self) -> None:
        """Have the module make them."""
        found = self.hook("configure_optimizers")
        self.optimizers, self.schedulers = optim.parse_optimizers(
            found, automatic=self.automatic, steps_schedulers="lr_scheduler_step" in self.hooks
        )
        if self.automatic and len(self.optimizers) > 1:
            refuse("several optimizers", f"found {len(self.optimizers)}")
        self.wrapped = [
            optim.StepsOptimizer(o, self._step_optimizer, self.toggle.toggled)
            for o in self.optimizers
        ]
        optim.optimizers_to(self.optimizers, self.device)

    def _step_optimizer(self, optimizer: Any, closure: Any, **kwargs: Any) -> Any:
        return self.fit_loop.step.step(optimizer, closure, **kwargs)

    def stepped(self) -> None:
        """An optimizer has stepped."""
        self.counters.global_step += 1
        for tell in self.on_step:
            tell()

    def set_epoch(self, epoch: int) -> None:
        """So many epochs are over."""
        self.counters.epoch = epoch
        for tell in self.on_step:
            tell()

    def stop(self) -> None:
        """End the fit where it stands, whatever least was asked for."""
        self.should_stop = True
        self.min_epochs = self.min_steps = None

    def log_metrics(self, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Tell the callbacks what a logger would be given, as numbers."""
        if not self.sinks:
            return
        found = self.book.now() if metrics is None else metrics
        if not found:
            return
        self.book.logged.update(found)
        values = scalars(found)
        if step is None:
            said = values.pop("step", None)
            if said is not None:
                step = int(said)
            else:
                values.setdefault("epoch", self.counters.epoch)
                step = self.counters.batches_that_stepped
        for sink in self.sinks:
            sink(self, values, step)

    def zero_grad(self) -> None:
        """Of every module, not of the optimizers."""
        for part in self.parts:
            part.zero_grad()

    def zero_grad_for_validation(self) -> None:
        """No memory for gradients meanwhile."""
        if "on_validation_model_zero_grad" in self.hooks:
            self.hook("on_validation_model_zero_grad")
        else:
            self.zero_grad()

    def _metrics(self) -> dict[str, Any]:
        return {
            f"{place}.{name}": module
            for place, part in enumerate(self.parts)
            for name, module in part.named_modules()
            if is_metric(module)
        }


data_names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def modules_of(obj: Any) -> list[nn.Module]:
    """The modules that train: the object itself, or those among its attributes."""
    if isinstance(obj, nn.Module):
        return [obj]
    found = (v for v in vars(obj).values() if isinstance(v, nn.Module))
    return list({id(m): m for m in found}.values())


def device_of(parts: list[nn.Module]) -> torch.device:
    """Where the first parameter lies."""
    for part in parts:
        for parameter in part.parameters():
            return parameter.device
    return torch.device("cpu")
