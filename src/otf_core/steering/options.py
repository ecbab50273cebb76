"""The options of optimizers: where each lies in a parameter group, what it may be, and why others
cannot be set.

Rule 1: the bounds are those of torch's constructors (2.13), with a ceiling where torch has none.
Rule 2: what an optimizer has put into its state, or has chosen by when it was made, is refused by
name; setting it later would do nothing, or raise in the next step.
Rule 3: an optimizer that is not torch's has numbers; what a switch of it does in mid-run is only
known to whoever wrote it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    AdamW,
    Optimizer,
    RMSprop,
    Rprop,
    SparseAdam,
)


@dataclasses.dataclass(frozen=True)
class Option:
    """A value of parameter groups and its bounds, both included; None is no bound.

    Attributes:
        key: what the group calls it; its own name if empty.
        index: its place, where the group has several as one.
    """

    name: str
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "bool"] = "float"
    key: str = ""
    index: int | None = None

    def plain(self, value: Any) -> Any:
        """A number as the group has it."""
        if self.kind == "float":
            # The script's own int comes back as one.
            return value if type(value) is int else float(value)
        return bool(value) if self.kind == "bool" else int(value)


OPTIONS: Final[Mapping[str, Option]] = MappingProxyType(
    {
        option.name: option
        for option in (
            # 10: the largest learning rates in use (LARS, unscaled Adadelta at 1) stay below it;
            # more is a slip of the decimal point.
            Option("lr", 0.0, 10.0),
            # 1: decoupled decay of lr * 1 shrinks weights by a whole step; more turns their sign
            # with lr near 1.
            Option("weight_decay", 0.0, 1.0),
            # Above 1 the buffer grows without end.
            Option("momentum", 0.0, 1.0),
            # torch asks for beta < 1: at 1 the bias correction divides by 0.
            Option("beta1", 0.0, 0.999999, key="betas", index=0),
            Option("beta2", 0.0, 0.999999, key="betas", index=1),
            Option("beta3", 0.0, 0.999999, key="betas", index=2),  # of others than torch's
            # Above 1 it is all of the denominator.
            Option("eps", 0.0, 1.0),
            Option("eps1", 0.0, 1.0, key="eps", index=0),  # Adafactor
            Option("eps2", 0.0, 1.0, key="eps", index=1),
            Option("dampening", 0.0, 1.0),
            Option("nesterov", kind="bool"),
            Option("amsgrad", kind="bool"),
            Option("centered", kind="bool"),
            Option("maximize", kind="bool"),
            Option("decoupled_weight_decay", kind="bool"),
            Option("alpha", 0.0, 1.0),  # RMSprop: of the mean of squares
            Option("rho", 0.0, 1.0),
            Option("lr_decay", 0.0, 1.0),
            Option("momentum_decay", 0.0, 1.0),
            Option("lambd", 0.0, 1.0),
            Option("t0", 0.0, 1e12),
            Option("eta_minus", 1e-6, 0.999999, key="etas", index=0),
            Option("eta_plus", 1.000001, 100.0, key="etas", index=1),
            Option("step_size_min", 0.0, 1e6, key="step_sizes", index=0),
            Option("step_size_max", 0.0, 1e6, key="step_sizes", index=1),
            Option("beta2_decay", -10.0, 0.0),
            Option("d", 1.0, 1000.0),
            Option("ns_steps", 1, 99, kind="int"),
            Option("max_iter", 1, 10_000, kind="int"),
            Option("max_eval", 1, 100_000, kind="int"),
            Option("tolerance_grad", 0.0, 1.0),
            Option("tolerance_change", 0.0, 1.0),
            Option("history_size", 1, 10_000, kind="int"),
        )
    }
)
# One name, another meaning.
_OF_CLASS: Final[tuple[tuple[type, Option], ...]] = (
    (ASGD, Option("alpha", 0.0, 10.0)),  # a power
    (SparseAdam, Option("eps", sys.float_info.min, 1.0)),
)
_TORCH: Final = tuple(
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
)

_KERNELS: Final = "says how the steps are computed, and where the state lies, when it is made"
_SCHEDULES: Final = "is a schedule's own, which counts from it"
_NO_NUMBER: Final = "is no number and no switch"
FIXED: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), _KERNELS),
        "initial_accumulator_value": "went into the state when it was made",
        **dict.fromkeys(
            ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"),
            _SCHEDULES,
        ),
    }
)
# What a switch needs in the state, which is made in the first step.
_BUFFERS: Final = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg"}
_OF_WEIGHTS: Final = ("params", "param_names")


class Refusal(NamedTuple):
    """Why an option cannot be that.

    Attributes:
        allowed: None where no other value could be either.
    """

    why: str
    allowed: Any = None


def place_of(name: str) -> tuple[str, int | None]:
    """What a group calls it, and its place there."""
    option = OPTIONS.get(name)
    return (option.key or name, option.index) if option is not None else (name, None)


def option_of(optimizer: Optimizer, name: str) -> Option:
    """Its bounds in this optimizer; of a name that nobody knows, none."""
    for kind, option in _OF_CLASS:
        if option.name == name and isinstance(optimizer, kind):
            return option
    return OPTIONS.get(name) or Option(name)


def names_in(optimizers: Sequence[Optimizer]) -> list[str]:
    """The names that may be found in the groups of these."""
    there = {key for o in optimizers for group in o.param_groups for key in group}
    known = [name for name, option in OPTIONS.items() if (option.key or name) in there]
    more = {
        name: None
        for optimizer in optimizers
        if not isinstance(optimizer, _TORCH)
        for name, value in optimizer.defaults.items()
        if type(value) is float and name not in OPTIONS and name not in FIXED
    }
    return [*known, *more]


def found_in(optimizer: Optimizer, group: Mapping[str, Any], name: str) -> bool:
    """Whether the group has such a value, and it can be set."""
    key, index = place_of(name)
    if key not in group:
        return False
    value = group[key]
    if index is not None:
        if not isinstance(value, tuple | list) or index >= len(value):
            return False
        value = value[index]
    number = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    return number and why_fixed(optimizer, name, value) is None


def why_fixed(optimizer: Optimizer, name: str, value: Any) -> str | None:
    """Why this option is never set; None where it can be."""
    kind = type(optimizer).__name__
    if name in FIXED:
        return f"of {kind} {FIXED[name]}"
    if name == "decoupled_weight_decay" and isinstance(optimizer, AdamW):
        return f"is what makes it an {kind}, which sets it anew when it is loaded"
    if isinstance(value, Tensor | float):
        return None
    if not isinstance(value, bool | int):
        return f"of {kind} {_NO_NUMBER}"
    option = OPTIONS.get(name)
    number = option is not None and option.kind == "float"
    if not number and not isinstance(optimizer, _TORCH):
        return (
            f"is a switch or count of {kind}, which is not torch's: what it does later is its own"
        )
    return None


def fixed_in(optimizer: Optimizer, name: str) -> str | None:
    """Why what its groups have by this name cannot be set; None: they have no such."""
    key, index = place_of(name)
    for group in optimizer.param_groups:
        if key in _OF_WEIGHTS or key not in group or found_in(optimizer, group, name):
            continue
        several = [other for other, option in OPTIONS.items() if option.key == key]
        if there := [other for other in several if found_in(optimizer, group, other)]:
            return f"is several values; allowed: {', '.join(there)}"
        if index is None:
            return why_fixed(optimizer, name, group[key])
    return None


def refuse(optimizer: Optimizer, group: Mapping[str, Any], name: str, value: Any) -> Refusal | None:
    """What this optimizer cannot do once it is made, or with its other options as they are.

    Args:
        value: another than the group has.
    """
    states = [optimizer.state.get(parameter) for parameter in group["params"]]
    begun = [state for state in states if state]
    kind = type(optimizer).__name__
    if name == "lr" and isinstance(optimizer, Rprop) and begun:
        return Refusal(
            f"is what {kind} begins with; its step sizes are its own since its first step"
        )
    if name == "history_size" and isinstance(optimizer, LBFGS) and any(optimizer.state.values()):
        return Refusal(f"is the length of what {kind} has kept since its first step")
    buffer = _BUFFERS.get(name)
    if name == "momentum" and isinstance(optimizer, RMSprop):
        buffer = "momentum_buffer"
    if value and buffer is not None and any(buffer not in state for state in begun):
        without = "momentum" if name == "momentum" else "it"
        allowed = "0" if name == "momentum" else "False"
        return Refusal(
            f"is of an {kind} that has run without {without} and has no buffer for it; "
            f"allowed: {allowed}"
        )
    return _beside(optimizer, group, name, value)


def _beside(
    optimizer: Optimizer, group: Mapping[str, Any], name: str, value: Any
) -> Refusal | None:
    """What two options of one group cannot be together."""
    if name == "momentum" and value == 0 and group.get("nesterov"):
        allowed = {"min": sys.float_info.min, "max": OPTIONS["momentum"].high}
        return Refusal("is Nesterov momentum, which needs a momentum; allowed: above 0", allowed)
    if name == "dampening" and value != 0 and group.get("nesterov"):
        return Refusal("is of Nesterov momentum, which has no dampening; allowed: 0", [0.0])
    without = name == "nesterov" and isinstance(optimizer, SGD)
    if without and value and (group["momentum"] == 0 or group["dampening"] != 0):
        now = f"momentum {group['momentum']} and dampening {group['dampening']}"
        why = f"has {now}; allowed with a momentum and without dampening"
        return Refusal(why, [False])
    if name == "step_size_min" and value > group["step_sizes"][1]:
        high = group["step_sizes"][1]
        return Refusal(f"has a largest step of {high}; allowed: no more", {"min": 0.0, "max": high})
    if name == "step_size_max" and value < group["step_sizes"][0]:
        low, high = group["step_sizes"][0], OPTIONS[name].high
        return Refusal(f"has a least step of {low}; allowed: no less", {"min": low, "max": high})
    return None
