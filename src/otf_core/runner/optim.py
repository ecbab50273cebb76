"""Optimizers and schedulers: the forms of configure_optimizers, and what wraps them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from otf_core.runner.refusals import RunnerError

FORMS: Final = (
    "an optimizer, a list of them, ([optimizers], [schedulers]), or a dict with optimizer and "
    "perhaps lr_scheduler and monitor, or a list of such dicts"
)


@dataclasses.dataclass
class SchedulerConfig:
    """One scheduler and when it steps; the keys of Lightning's ``lr_scheduler`` dict."""

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class NoOptimizer(torch.optim.Optimizer):
    """Where configure_optimizers returned None: the closure runs, and nothing else."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """There is nothing to optimize."""

    def state_dict(self) -> dict[str, Any]:
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is nothing to load."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return closure() if closure is not None else None

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """There is nothing to clear."""


class StepsOptimizer:
    """An optimizer as modules get it from ``self.optimizers()``: its step is the Runner's.

    Precision, hooks and counters belong to a step; all else is the optimizer's own. It passes as
    an instance of the optimizer's class.
    """

    def __init__(
        self, optimizer: Any, step: Callable[..., Any], toggled: Callable[..., Any]
    ) -> None:
        self._optimizer, self._step, self._toggled = optimizer, step, toggled
        self.__class__ = type(type(optimizer).__name__, (StepsOptimizer, type(optimizer)), {})

    @property
    def optimizer(self) -> Any:
        """The optimizer itself."""
        return self._optimizer

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """Step, with a closure where the optimizer wants one."""
        if closure is not None and not callable(closure):
            msg = f"optimizer.step was given a closure {closure!r}; allowed: a callable"
            raise RunnerError(msg)
        return self._step(self._optimizer, closure, **kwargs)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002 -- Lightning's signature
        """Only this optimizer's parameters require gradients inside."""
        del sync_grad
        with self._toggled(self):
            yield

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_optimizer"], name)


def unwrapped(optimizer: Any) -> Any:
    """The user's own optimizer."""
    return optimizer.optimizer if isinstance(optimizer, StepsOptimizer) else optimizer


def is_optimizer(found: Any) -> bool:
    """Whether it can be stepped and saved."""
    return all(hasattr(found, name) for name in ("step", "zero_grad", "state_dict", "param_groups"))


def parse_optimizers(
    found: Any, *, automatic: bool, steps_schedulers: bool
) -> tuple[list[Any], list[SchedulerConfig]]:
    """What configure_optimizers returned, in one form.

    Args:
        steps_schedulers: the module overrides lr_scheduler_step, so any scheduler will do.

    Raises:
        RunnerError: a form, a key or a scheduler that nobody knows.
    """
    if found is None:
        return [NoOptimizer()], []
    optimizers, schedulers, monitor = _split(found)
    configs = [_config(s, monitor, automatic=automatic) for s in schedulers]
    own = [unwrapped(o) for o in optimizers]
    for config in configs:
        _check_scheduler(config, own, automatic=automatic, any_will_do=steps_schedulers)
    return own, configs


def _split(found: Any) -> tuple[list[Any], list[Any], str | None]:
    if is_optimizer(found):
        return [found], [], None
    if isinstance(found, dict):
        schedulers = [found["lr_scheduler"]] if "lr_scheduler" in found else []
        _check_keys(found, {"optimizer", "lr_scheduler", "monitor"})
        return [found["optimizer"]], schedulers, found.get("monitor")
    if isinstance(found, list | tuple):
        if len(found) == 2 and isinstance(found[0], list) and all(map(is_optimizer, found[0])):
            second = found[1] if isinstance(found[1], list) else [found[1]]
            return found[0], second, None
        if all(isinstance(item, dict) for item in found):
            for item in found:
                _check_keys(item, {"optimizer", "lr_scheduler", "monitor"})
            schedulers = [item["lr_scheduler"] for item in found if "lr_scheduler" in item]
            return [item["optimizer"] for item in found], schedulers, None
        if all(map(is_optimizer, found)):
            return list(found), [], None
    msg = f"configure_optimizers returned {found!r}; allowed: {FORMS}"
    raise RunnerError(msg)


def _check_keys(found: dict[str, Any], known: set[str]) -> None:
    if unknown := found.keys() - known:
        msg = (
            f"configure_optimizers returned a dict with {sorted(unknown)}; allowed: {sorted(known)}"
        )
        raise RunnerError(msg)


def _config(scheduler: Any, monitor: str | None, *, automatic: bool) -> SchedulerConfig:
    if not isinstance(scheduler, dict):
        plateau = automatic and isinstance(scheduler, ReduceLROnPlateau)
        config = SchedulerConfig(scheduler, reduce_on_plateau=plateau, monitor=monitor)
    else:
        _check_keys(scheduler, {f.name for f in dataclasses.fields(SchedulerConfig)})
        if "scheduler" not in scheduler:
            msg = f"an lr_scheduler dict has no scheduler, found {sorted(scheduler)}"
            raise RunnerError(msg)
        config = SchedulerConfig(**scheduler)
        if "reduce_on_plateau" not in scheduler:
            config.reduce_on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
    if not automatic:
        config.reduce_on_plateau, config.monitor, config.strict = False, None, True
    if config.interval not in ("step", "epoch"):
        msg = f'an lr_scheduler has interval {config.interval!r}; allowed: "step", "epoch"'
        raise RunnerError(msg)
    if config.reduce_on_plateau and config.monitor is None:
        msg = 'ReduceLROnPlateau needs monitor, as {"scheduler": …, "monitor": "val_loss"} has'
        raise RunnerError(msg)
    return config


def _check_scheduler(
    config: SchedulerConfig, optimizers: Sequence[Any], *, automatic: bool, any_will_do: bool
) -> None:
    scheduler, name = config.scheduler, type(config.scheduler).__name__
    if not any(unwrapped(scheduler.optimizer) is optimizer for optimizer in optimizers):
        msg = f"{name} is of an optimizer that configure_optimizers did not return"
        raise RunnerError(msg)
    known = isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler | ReduceLROnPlateau)
    if automatic and not known and not any_will_do:
        msg = f"{name} is no scheduler of torch; allowed: override lr_scheduler_step for it"
        raise RunnerError(msg)


def optimizers_to(optimizers: Sequence[Any], device: torch.device) -> None:
    """Move their states; ``step`` stays where the optimizer has it."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for key, value in state.items() if isinstance(state, dict) else ():
                if key != "step" and isinstance(value, torch.Tensor):
                    state[key] = value.to(device)


def clip(optimizer: Any, value: float | None, algorithm: str | None) -> None:
    """Clip the gradients of its parameters, by norm unless ``algorithm`` is "value"."""
    if value is None or value <= 0:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, value)
    else:
        torch.nn.utils.clip_grad_norm_(parameters, value)
