"""The same shape trained by Lightning and by the Runner, and everything that each has told."""

from __future__ import annotations

import inspect
import random
import warnings
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers.logger import Logger

from otf_core.runner import Runner, RunnerCallback
from otf_core.runner.callback import HOOKS as CALLBACK_HOOKS
from otf_core.runner.hooks import DATA_HOOKS, MODULE_HOOKS
from tests.exact.digest import _attributes, _optimizer, exact
from tests.runner.shapes import Shape

SIDES = ("lightning", "runner")
# Called by nobody else than the loops, or told by the callbacks' tape.
TAPED = (*MODULE_HOOKS, "forward")


class Tape(list[Any]):
    """What was called, with what, and where the run stood; every value of it as plain data."""

    def note(self, what: str, module: Any, *args: Any) -> None:
        self.append([what, *map(summary, args), *_where(module)])


def _where(module: Any) -> list[Any]:
    trainer = getattr(module, "_trainer", None) or getattr(module, "trainer", None)
    rng = exact(torch.get_rng_state())[-1][:8]
    if trainer is None:
        return [rng]
    stage = [
        name
        for name in ("training", "validating", "testing", "sanity_checking")
        if getattr(trainer, name)
    ]
    modes = getattr(module, "training", None), torch.is_grad_enabled()
    counts = trainer.current_epoch, trainer.global_step, trainer.is_last_batch
    return [rng, *stage, *counts, *modes]


def summary(value: Any) -> Any:
    """A value by which two sides can be compared: objects by their class."""
    if isinstance(value, torch.optim.Optimizer):
        names = {"_MockOptimizer": "NoOptimizer"}
        name = type(value).__name__.removeprefix("Lightning")
        return names.get(name, name)
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return type(value).__name__
    if isinstance(value, dict):
        return {str(k): summary(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(summary, value)]
    if isinstance(value, torch.Tensor | np.ndarray | float):
        return exact(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, str):
        return str(getattr(value, "value", value))
    if isinstance(value, int | None):
        return value
    return "callable" if callable(value) else type(value).__name__


def taped(obj: Any, names: tuple[str, ...], tape: Tape, prefix: str = "") -> Any:
    """The same object, of a class that notes every hook before it does what it did."""
    kind = type(obj)

    def note(name: str) -> Any:
        inner = getattr(kind, name)

        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            tape.note(prefix + name, self, *args, *sorted(kwargs.items()))
            return inner(self, *args, **kwargs)

        # Not functools.wraps: Lightning looks behind it, and would find its own hook.
        hook.__name__, hook.__signature__ = name, inspect.signature(inner)  # type: ignore[attr-defined]
        return hook

    # What is not written must not be there: a loader's hook, or a step that is not taken.
    base = L.LightningModule if isinstance(obj, L.LightningModule) else L.LightningDataModule
    matters = {n for n in names if n.endswith(("_step", "_dataloader")) and n != "optimizer_step"}
    matters -= {"lr_scheduler_step"}
    own = {
        name: note(name)
        for name in names
        if hasattr(kind, name)
        and not (name in matters and getattr(kind, name) is getattr(base, name, None))
    }
    obj.__class__ = type(kind.__name__, (kind,), own)
    return obj


class TapeLogger(Logger):
    """What Lightning gives to loggers."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    @property
    def name(self) -> str:
        return "tape"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tape.append(["logged", step, {k: float(v).hex() for k, v in sorted(metrics.items())}])


class Metrics(RunnerCallback):
    """What the Runner gives to its callbacks."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def on_metrics(self, run: Any, metrics: Any, step: int) -> None:
        self._tape.append(["logged", step, {k: float(v).hex() for k, v in sorted(metrics.items())}])


def _callbacks(tape: Tape) -> tuple[Any, Any]:
    """A callback of each side that notes every hook that both have."""
    both = [n for n in CALLBACK_HOOKS if n not in ("on_metrics", "on_exception")]

    def of_lightning(name: str) -> Any:
        def hook(self: Any, trainer: Any, module: Any, *args: Any) -> None:
            tape.note(f"callback {name}", module, *args)

        return hook

    def of_runner(name: str) -> Any:
        def hook(self: Any, run: Any, *args: Any) -> None:
            tape.note(f"callback {name}", run.module, *args)

        return hook

    theirs = type("Notes", (L.Callback,), {n: of_lightning(n) for n in both})
    ours = type("Notes", (RunnerCallback,), {n: of_runner(n) for n in both})
    return theirs(), ours()


def trained(shape: Shape, side: str, *, hooks: bool) -> tuple[Tape, dict[str, Any]]:
    """Train from the same seed.

    Args:
        hooks: note every hook, which makes every hook one that the user has written.

    Returns:
        What was noted and logged, and all that the run is at its end.
    """
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    tape = Tape()
    module = shape.module()
    datamodule = shape.datamodule() if shape.datamodule else None
    theirs, ours = _callbacks(tape)
    if hooks:
        taped(module, TAPED, tape)
        if datamodule is not None:
            taped(datamodule, DATA_HOOKS, tape, "data ")
    options = {"max_epochs": 2, "log_every_n_steps": 1, **shape.options}
    train = shape.train() if shape.train and datamodule is None else None
    val = shape.val() if shape.val and datamodule is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small data, of steps that are skipped
        if side == "lightning":
            callbacks = [theirs] if hooks else []
            end = _lightning(shape, options, module, datamodule, train, val, tape, callbacks)
        else:
            callbacks = [ours] if hooks else []
            end = _runner(shape, options, module, datamodule, train, val, tape, callbacks)
    return tape, end


def _lightning(
    shape: Shape,
    options: Any,
    module: Any,
    datamodule: Any,
    train: Any,
    val: Any,
    tape: Tape,
    callbacks: list[Any],
) -> dict[str, Any]:
    trainer = L.Trainer(
        **{
            **options,
            "accelerator": "cpu",
            "logger": TapeLogger(tape),
            "callbacks": callbacks,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **shape.trainer(),
        }
    )
    trainer.fit(module, train, val, datamodule=datamodule)
    end = digest(module, datamodule, trainer.optimizers, trainer.lr_scheduler_configs)
    end["metrics"] = _metrics(trainer)
    end["scaler"] = exact(trainer.precision_plugin.state_dict())
    end["steps"] = trainer.global_step, trainer.current_epoch
    for what in shape.after:
        if datamodule is not None or train is None:
            given: Any = {"datamodule": datamodule}
        else:
            given = {"dataloaders": val}
        found = getattr(trainer, what)(module, verbose=False, **given)
        end[what] = [{k: float(v).hex() for k, v in part.items()} for part in found]
        end[what].append(_metrics(trainer))
    return end


def _runner(
    shape: Shape,
    options: Any,
    module: Any,
    datamodule: Any,
    train: Any,
    val: Any,
    tape: Tape,
    callbacks: list[Any],
) -> dict[str, Any]:
    runner = Runner(device="cpu", callbacks=[Metrics(tape), *callbacks], **options)
    runner.fit(module, datamodule=datamodule, train_loader=train, val_loader=val)
    run = runner.run
    assert run is not None
    end = digest(module, datamodule, run.optimizers, run.schedulers)
    end["metrics"] = _metrics(run)
    end["scaler"] = exact(run.precision.state())
    end["steps"] = run.counters.global_step, run.counters.epoch
    for what in shape.after:
        name = {"validate": "val_loader", "test": "test_loader"}[what]
        given: Any = {} if train is None else {name: val}
        found = getattr(runner, what)(module, datamodule=datamodule, **given)
        end[what] = [{k: float(v).hex() for k, v in part.items()} for part in found]
        end[what].append(_metrics(runner.run))
    return end


def _metrics(owner: Any) -> list[Any]:
    """What was logged last; values as they are, and those of the progress bar as numbers."""
    tensors = [
        {k: exact(v) for k, v in found.items()}
        for found in (owner.callback_metrics, owner.logged_metrics)
    ]
    return [*tensors, {k: float(v).hex() for k, v in owner.progress_bar_metrics.items()}]


def digest(module: Any, datamodule: Any, optimizers: Any, schedulers: Any) -> dict[str, Any]:
    """All that a run is at its end; compare by ==."""
    names = {p: n for n, p in module.named_parameters()}
    optimizers = [o for o in optimizers if summary(o) != "NoOptimizer"]
    of_data = {} if datamodule is None else _attributes(datamodule)
    of_data.pop("trainer", None)
    return {
        "weights": {n: exact(t) for n, t in module.state_dict().items()},
        "buffers": {n: exact(t) for n, t in module.named_buffers()},
        "grads": {n: exact(p.grad) for n, p in module.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in module.named_parameters()},
        "optimizers": [_optimizer(o, names) for o in optimizers],
        "schedules": [exact(c.scheduler.state_dict()) for c in schedulers],
        "torch": exact(torch.get_rng_state()),
        "numpy": exact(np.random.get_state()),
        "random": exact(random.getstate()),
        "module": {n: _attributes(m) for n, m in module.named_modules()},
        "data": of_data,
    }
