"""Which hooks a module, a data module or a callback of ours has; found once, called often.

A hook that is only inherited from Lightning is not called: what it does by default, the loop does
itself. Whether a class is Lightning's is told by its name, since Lightning is not imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

FRAMEWORK: Final = ("lightning", "pytorch_lightning")
BASES: Final = ("LightningModule", "LightningDataModule", "Callback")

BATCH_HOOKS: Final = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
LOADER_HOOKS: Final = ("train_dataloader", "val_dataloader", "test_dataloader")
_STAGES: Final = tuple(
    f"on_{stage}_{when}"
    for stage in ("validation", "test")
    for when in (
        "start",
        "end",
        "epoch_start",
        "epoch_end",
        "batch_start",
        "batch_end",
        "model_eval",
        "model_train",
    )
)
MODULE_HOOKS: Final = (
    "configure_callbacks",
    "prepare_data",
    "setup",
    "configure_model",
    "configure_optimizers",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "training_step",
    "validation_step",
    "test_step",
    "on_validation_model_zero_grad",
    *_STAGES,
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "lr_scheduler_step",
    *BATCH_HOOKS,
    *LOADER_HOOKS,
)
DATA_HOOKS: Final = (
    "prepare_data",
    "setup",
    "teardown",
    "on_exception",
    *BATCH_HOOKS,
    *LOADER_HOOKS,
)


def framework_base(obj: Any) -> type | None:
    """Lightning's class among the bases of an object, None where it has none."""
    for kind in type(obj).__mro__:
        if kind.__name__ in BASES and kind.__module__.partition(".")[0] in FRAMEWORK:
            return kind
    return None


def overridden(obj: Any, name: str) -> Callable[..., Any] | None:
    """The hook where the user has written one."""
    own = getattr(obj, name, None)
    if not callable(own):
        return None
    base = framework_base(obj)
    inherited = getattr(base, name, None) if base is not None else None
    function = getattr(own, "__func__", own)
    return None if inherited is not None and function is inherited else own


def hooks_of(obj: Any, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """Those of the names that the user has written."""
    found = ((name, overridden(obj, name)) for name in names)
    return {name: hook for name, hook in found if hook is not None}


def takes(step: Callable[..., Any], name: str, *, at_least: int = 0) -> bool:
    """Whether a step has this parameter, or as many positional ones, or ``*args``."""
    parameters = inspect.signature(step).parameters
    positional = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if name in parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return True
    return 0 < at_least <= len(positional)


def names_parameter(step: Callable[..., Any], name: str, *, required: bool = False) -> bool:
    """Whether a step declares this very parameter, and without a default if it is required."""
    parameter = inspect.signature(step).parameters.get(name)
    return parameter is not None and (not required or parameter.default is parameter.empty)


def as_step(function: Callable[..., Any], dataloader_idx: int) -> Callable[[Any, int], Any]:
    """A step with ``(batch, batch_idx)``, whichever of its parameters it declares."""
    with_idx = takes(function, "batch_idx", at_least=2)
    more = {"dataloader_idx": dataloader_idx} if names_parameter(function, "dataloader_idx") else {}

    def step(batch: Any, batch_idx: int) -> Any:
        return function(batch, batch_idx, **more) if with_idx else function(batch, **more)

    return step
