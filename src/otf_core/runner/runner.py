"""Runner: fit, validate and test for a module with Lightning's hooks, or for plain pieces."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from otf_core.opening import RunOptions
from otf_core.runner.batches import close_workers
from otf_core.runner.control import controlled
from otf_core.runner.hooks import framework_base, names_parameter, overridden
from otf_core.runner.module import attached
from otf_core.runner.optim import optimizers_to
from otf_core.runner.options import Options
from otf_core.runner.plain import PlainModule, TrainingStep
from otf_core.runner.progress import ProgressBar, wanted
from otf_core.runner.refusals import (
    ARGUMENTS,
    CALLS,
    RunnerError,
    refuse,
    refuse_arguments,
)
from otf_core.runner.run import Run, device_of, modules_of
from otf_core.session import Session
from otf_core.state.rng import parked_rng

REMOVED = ("training_epoch_end", "validation_epoch_end", "test_epoch_end")


class Runner:
    """Trains a LightningModule, any object with its hooks, or a model with an optimizer and a loss.

    What it does is bit for bit what Lightning 2.6 does with the same module; what it does not is
    in ``refusals.REFUSALS``, and is refused by name.

    Args:
        callbacks: of ``RunnerCallback``.
        options: the fields of ``Options`` (``max_epochs``, ``max_steps``, ``device``,
            ``precision``, ``accumulate_grad_batches``, ``gradient_clip_val`` …) and of
            ``RunOptions`` (``run_name``, ``dashboard``, ``resume``, ``checkpoint_every`` …).

    Raises:
        RunnerUnsupportedError: an argument of Lightning's Trainer that the Runner has not got.
        RunnerError, ValueError: a value that is out of range.
    """

    def __init__(self, *, callbacks: Any = (), **options: Any) -> None:
        own, of_run = _taken(Options, options), _taken(RunOptions, options)
        refuse_arguments(options, ARGUMENTS, "Runner")
        self.options, self.run_options = Options(**own), RunOptions(**of_run)
        self.callbacks = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        for callback in self.callbacks:
            if framework_base(callback) is not None:
                refuse("Lightning callback", type(callback).__name__)
        self.run: Run | None = None
        # For whoever controls the fit: to take its seams before anything has happened.
        self.prepare: Callable[[Run], None] = lambda _run: None
        self._fitted: Run | None = None
        self._session: Session | None = None

    def fit(
        self,
        model: Any,
        train_loader: Any = None,
        val_loader: Any = None,
        datamodule: Any = None,
        *,
        test_loader: Any = None,
        optimizer: Any = None,
        loss_fn: Callable[..., Any] | None = None,
        scheduler: Any = None,
        training_step: TrainingStep | None = None,
        **others: Any,
    ) -> None:
        """Train; on the training thread.

        Args:
            model: with ``training_step`` and ``configure_optimizers``; or any model, with
                ``optimizer=`` and ``loss_fn=`` or ``training_step=(model, batch, batch_idx)``.
            train_loader: or a data module, as Lightning's Trainer takes one there.
            datamodule: or loaders, or the hooks of the model for them.
            test_loader: for a test that is asked for meanwhile.

        Raises:
            RunnerUnsupportedError: something that the Runner does not do.
            RunnerError: what was given does not go together.
            ResumeError: the run that was to go on cannot.
        """
        refuse_arguments(others, CALLS, "fit")
        if self._fitted is not None:
            refuse("second fit")
        if datamodule is None and callable(getattr(train_loader, "train_dataloader", None)):
            datamodule, train_loader = train_loader, None
        pieces = (optimizer, loss_fn, scheduler, training_step)
        loaders = {
            "train_dataloader": train_loader,
            "val_dataloader": val_loader,
            "test_dataloader": test_loader,
        }
        run = self._new(_module(model, *pieces), "fit", datamodule, loaders)
        self._fitted = run
        with controlled(run, self.run_options) as control:
            run.listen([control])
            self._session = control.session
            try:
                self.prepare(run)
                self._execute(run, lambda: _fit(run))
            finally:
                self._session = None

    def validate(
        self, model: Any = None, *, datamodule: Any = None, val_loader: Any = None, **others: Any
    ) -> list[dict[str, Any]]:
        """Validate; what was logged, as numbers, of each loader. Raises as fit does."""
        refuse_arguments(others, CALLS, "validate")
        return self._evaluate("validate", model, datamodule, {"val_dataloader": val_loader})

    def test(
        self, model: Any = None, *, datamodule: Any = None, test_loader: Any = None, **others: Any
    ) -> list[dict[str, Any]]:
        """Test; what was logged, as numbers, of each loader. Raises as fit does."""
        refuse_arguments(others, CALLS, "test")
        return self._evaluate("test", model, datamodule, {"test_dataloader": test_loader})

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        """Is refused."""
        refuse("predict")

    @property
    def session(self) -> Session | None:
        """The session of the fit that is under way; None outside of fit."""
        return self._session

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """What was logged last, by name; empty before the first run."""
        return self.run.callback_metrics if self.run is not None else {}

    def _evaluate(
        self, fn: str, model: Any, datamodule: Any, loaders: dict[str, Any]
    ) -> list[dict[str, Any]]:
        fitted = self._fitted
        if fitted is not None and model in (None, getattr(fitted.module, "model", None)):
            model = fitted.module
            if datamodule is None and not any(v is not None for v in loaders.values()):
                datamodule, loaders = fitted.datamodule, fitted.given_loaders
        if model is None:
            msg = f"{fn} was asked without a model, and nothing was fitted; allowed: {fn}(model)"
            raise RunnerError(msg)
        counters = fitted.counters if fitted is not None else None
        run = self._new(model, fn, datamodule, loaders, counters)
        loop = run.validation if fn == "validate" else run.testing
        if loop.step_name not in run.hooks:
            name = type(model).__name__
            msg = f"{fn} was asked, but {name} has no {loop.step_name}; allowed: a model with one"
            raise RunnerError(msg)
        results: list[dict[str, Any]] = self._execute(run, loop.evaluate)
        return [{name: value.item() for name, value in part.items()} for part in results]

    def _new(
        self,
        module: Any,
        fn: str,
        datamodule: Any,
        loaders: dict[str, Any],
        counters: Any = None,
    ) -> Run:
        given = [name for name, loader in loaders.items() if loader is not None]
        if datamodule is not None and set(given) - {"test_dataloader"}:
            msg = f"{fn} was given a datamodule and loaders; allowed: one of them"
            raise RunnerError(msg)
        run = Run(
            self.options,
            module,
            fn=fn,
            datamodule=datamodule,
            loaders=loaders,
            counters=counters,
        )
        check(run)
        bar = [ProgressBar()] if fn == "fit" and wanted(self.options.progress) else []
        run.listen([*self.callbacks, *bar])
        self.run = run
        return run

    def _execute(self, run: Run, work: Callable[[], Any]) -> Any:
        home = device_of(run.parts)
        with attached(run):
            try:
                result = self._between_hooks(run, work, home)
            except BaseException as exception:
                for listener in run.listeners.get("on_exception", ()):
                    listener(run, exception)
                if "on_exception" in run.data_hooks:
                    run.data_hooks["on_exception"](exception)
                _leave_device(run, home)
                raise
            finally:
                run.enter(None)
        return result

    def _between_hooks(self, run: Run, work: Callable[[], Any], home: torch.device) -> Any:
        stage = run.fn
        if found := run.hook("configure_callbacks"):
            refuse("configure_callbacks", f"{type(run.module).__name__} returned {found!r}")
        _of_both(run, "prepare_data")
        _say_device(run)
        _of_both(run, "setup", stage=stage)
        if "configure_model" in run.hooks:
            with run.device:
                run.hook("configure_model")
        run.parts = modules_of(run.module)
        run.find_hooks()
        _enter_device(run)
        if stage == "fit":
            run.configure_optimizers()
            run.hook("on_fit_start")
        run.zero_grad()
        result = work()
        _leave_device(run, home)
        if stage == "fit":
            run.hook("on_fit_end")
        _of_both(run, "teardown", stage=stage)
        return result


def _of_both(run: Run, name: str, **arguments: Any) -> None:
    """A hook of the data module, then of the module."""
    if name in run.data_hooks:
        run.data_hooks[name](**arguments)
    run.hook(name, **arguments)


def _taken(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, taken out of what was given."""
    names = [field.name for field in dataclasses.fields(kind) if field.name in options]
    return {name: options.pop(name) for name in names}


def _module(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    scheduler: Any,
    training_step: Any,
) -> Any:
    """The object with hooks: the model, or what plain pieces make of it."""
    own = overridden(model, "training_step") is not None
    pieces = [optimizer, loss_fn, scheduler, training_step]
    if not any(piece is not None for piece in pieces):
        return model
    if own:
        msg = (
            f"{type(model).__name__} has a training_step, and was given optimizer=, loss_fn=, "
            "scheduler= or training_step= as well; allowed: its hooks or plain pieces"
        )
        raise RunnerError(msg)
    return PlainModule(model, optimizer, loss_fn, training_step, scheduler)


def _fit(run: Run) -> None:
    with parked_rng():
        if run.validation.enabled and run.num_sanity_val_steps > 0:
            with run.in_stage("sanity"):
                run.validation.evaluate()
                run.book.reset_results()
                run.book.forget()
    run.fit_loop.fit()


def check(run: Run) -> None:
    """Refuse at the start what can be seen there.

    Raises:
        RunnerUnsupportedError: by its name.
        RunnerError: a hook is missing that the Runner cannot do without.
    """
    module, name = run.module, type(run.module).__name__
    original = getattr(module, "_orig_mod", None)
    if original is not None and framework_base(original) is not None:
        refuse("compiled LightningModule")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world_size = torch.distributed.get_world_size()
        if world_size > 1:
            refuse("several processes", f"found {world_size}")
    for hook in (*REMOVED, "configure_sharded_model"):
        if overridden(module, hook) is not None:
            refuse(hook, name)
    steps = [
        run.hooks[s] for s in ("training_step", "validation_step", "test_step") if s in run.hooks
    ]
    for parameter in ("dataloader_iter", "optimizer_idx"):
        if any(names_parameter(step, parameter) for step in steps):
            refuse(parameter, name)
    if run.fn != "fit":
        return
    if not run.automatic:
        if run.gradient_clip_val:
            refuse("clipping by hand")
        if run.accumulate_grad_batches != 1:
            refuse("accumulation by hand")
    for hook in ("training_step", "configure_optimizers"):
        if hook not in run.hooks:
            msg = (
                f"fit was asked, but {name} has no {hook}; allowed: a module with training_step "
                "and configure_optimizers, or optimizer= and loss_fn= or training_step="
            )
            raise RunnerError(msg)
    if run.has_loader("val_dataloader") and "validation_step" not in run.hooks:
        msg = f"there is a loader to validate with, but {name} has no validation_step; none is run"
        warnings.warn(msg, stacklevel=5)
    if not run.has_loader("train_dataloader"):
        msg = f"fit was asked, but nobody has a loader to train with; allowed: train_loader=, or the hook train_dataloader of {name} or of the data module"  # noqa: E501
        raise RunnerError(msg)


def _say_device(run: Run) -> None:
    """Lightning's modules know in setup which device they will be on."""
    for part in run.parts:
        for module in part.modules():
            if any(kind.__name__ == "_DeviceDtypeModuleMixin" for kind in type(module).__mro__):
                vars(module)["_device"] = run.device


def _enter_device(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.set_device(run.device)
    for part in run.parts:
        part.to(run.device)


def _leave_device(run: Run, home: torch.device) -> None:
    """Back to where the model came from."""
    if home != run.device:
        optimizers_to(run.optimizers, home)
        for part in run.parts:
            part.to(home)
    run.fit_loop.batches.end()
    for loop in (run.validation, run.testing):
        loop.teardown()
    for loaders in (run.fit_loop.loaders, run.validation.loaders, run.testing.loaders):
        for loader in loaders or ():
            close_workers(loader)
    run.book.to_cpu()
