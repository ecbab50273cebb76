"""What a module is given for the time of a run, and what is taken off it again.

A LightningModule has its own ``log``, ``optimizers``, ``manual_backward`` …, which need a Trainer:
ours are put into the instance and hide them; where the user has written one himself, ours is what
he finds behind ``super()``. Another object gets those names that it lacks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from otf_core.runner.facade import TrainerFacade
from otf_core.runner.hooks import framework_base, overridden
from otf_core.runner.logged import items_of
from otf_core.runner.refusals import RunnerError

if TYPE_CHECKING:
    from otf_core.runner.run import Run


def _gone(name: str) -> Any:
    def gone(*_: Any, **__: Any) -> None:
        msg = f"{name} was called on a copy of a module, which is in no run"
        raise RunnerError(msg)

    return gone


class Placed(functools.partial[Any]):
    """A function of ours on the user's object; copies and pickles do not take the run along."""

    def __reduce__(self) -> Any:
        return _gone, (getattr(self.func, "__name__", "it"),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _gone(getattr(self.func, "__name__", "it"))


def _all_gather(run: Run, data: Any, group: Any = None, sync_grads: Any = None) -> Any:
    """Of one process: the same, as tensors."""
    del group, sync_grads
    if isinstance(data, Mapping):
        return {key: _all_gather(run, value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)([_all_gather(run, value) for value in data])
    return data if isinstance(data, torch.Tensor) else torch.tensor(data, device=run.device)


def _functions(run: Run) -> dict[str, Any]:
    def log_dict(dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in items_of(dictionary):
            run.module.log(name, value, *args, **kwargs)

    def optimizers(use_pl_optimizer: bool = True) -> Any:  # noqa: FBT001, FBT002 -- Lightning's signature
        found = run.wrapped if use_pl_optimizer else run.optimizers
        return found[0] if len(found) == 1 else found

    def lr_schedulers() -> Any:
        found = [config.scheduler for config in run.schedulers]
        if not found:
            return None
        return found[0] if len(found) == 1 else found

    def manual_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if run.automatic:
            msg = "manual_backward was called; allowed: with automatic_optimization = False"
            raise RunnerError(msg)
        run.fit_loop.step.backward(loss, *args, **kwargs)

    def clip_gradients(
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        run.fit_loop.step.clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    functions = {
        "log": run.book.log,
        "optimizers": optimizers,
        "manual_backward": manual_backward,
        "clip_gradients": clip_gradients,
        "toggle_optimizer": run.toggle.toggle,
        "untoggle_optimizer": run.toggle.untoggle,
        "all_gather": functools.partial(_all_gather, run),
    }
    if framework_base(run.module) is not None:
        return functions
    # Lightning's own of these only call those above.
    return {
        **functions,
        "log_dict": log_dict,
        "lr_schedulers": lr_schedulers,
        "toggled_optimizer": run.toggle.toggled,
    }


_VALUES: Final = ("trainer", "device", "logger", "current_epoch", "global_step")


def not_state(run: Run) -> frozenset[str]:
    """Attributes of a module that are not its state.

    Ours, and those of Lightning's class: links to the trainer, caches keyed by ``id()``.
    """
    base: Any = framework_base(run.module)
    of_framework = vars(base()).keys() - {"training"} if base is not None else ()
    return frozenset((*_functions(run), *_VALUES, *of_framework))


def modules_by_name(module: Any, parts: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """One alone has no name; several in an object are named by its attributes."""
    if len(parts) == 1:
        return {"": parts[0]}
    names = {id(value): name for name, value in vars(module).items()}
    return {names[id(part)]: part for part in parts}


@contextlib.contextmanager
def attached(run: Run) -> Iterator[TrainerFacade]:
    """The module and the data module have what they may use; as before at the end."""
    facade = TrainerFacade(run)
    module, datamodule = run.module, run.datamodule
    lightning = framework_base(module) is not None
    put: list[tuple[Any, str]] = []

    def place(obj: Any, name: str, value: Any) -> None:
        # Past __setattr__ of nn.Module, which looks at every value.
        vars(obj)[name] = value
        put.append((obj, name))

    functions = {name: Placed(function) for name, function in _functions(run).items()}
    kind = type(module)
    own = {name for name in functions if lightning and overridden(module, name) is not None}
    if own:
        module.__class__ = _behind(kind, framework_base(module), {n: functions[n] for n in own})
    for name, function in functions.items():
        if name not in own and (lightning or not hasattr(module, name)):
            place(module, name, function)
    own_trainer = getattr(datamodule, "trainer", None)
    if datamodule is not None:
        vars(datamodule)["trainer"] = facade
    if lightning:
        module.trainer = facade
    else:
        _place_values(run, facade, place)
    try:
        yield facade
    finally:
        run.on_step.clear()
        for obj, name in put:
            vars(obj).pop(name, None)
        if own:
            module.__class__ = kind
        if datamodule is not None:
            vars(datamodule)["trainer"] = own_trainer
        if lightning:
            module.trainer = None


def _behind(kind: Any, base: Any, functions: dict[str, Any]) -> Any:
    """The user's class with ours between it and Lightning's, where his ``super()`` finds them."""
    ours = type(base.__name__, (base,), {n: staticmethod(f) for n, f in functions.items()})
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind, ours), names)


def _place_values(run: Run, facade: TrainerFacade, place: Any) -> None:
    module, counters = run.module, run.counters
    for name, value in (("trainer", facade), ("device", run.device), ("logger", None)):
        if not hasattr(module, name):
            place(module, name, value)
    own = vars(module)
    for name, counter in (("current_epoch", "epoch"), ("global_step", "global_step")):
        if hasattr(module, name):
            continue

        def tell(name: str = name, counter: str = counter) -> None:
            own[name] = getattr(counters, counter)

        place(module, name, getattr(counters, counter))
        run.on_step.append(tell)
