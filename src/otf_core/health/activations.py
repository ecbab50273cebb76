"""What comes out of each layer: zeros, units that are always zero, values at their bounds.

Training thread. Looked at are the modules without modules in them, and activations that are called
as functions.

A unit is a place in the second dimension, of a tensor with three in the last (a sequence of
tokens). It is dead where it was zero in all that was seen. Saturated is a value within ``eps`` of
a bound of Tanh, Sigmoid and their like. A layer is an issue where it has a NaN or Inf, or where
half of its units are dead or half of its values saturated.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import nn

from otf_core.health.budget import Budget
from otf_core.health.functions import Calls
from otf_core.health.hooks import open_modules, tensors_in, watching
from otf_core.health.report import NONE, Health, aligned, health, percent
from otf_core.health.subject import Subject, need_step, undisturbed
from otf_core.state.parts import named_modules

ISSUE: Final = 0.5
UNSEEN: Final = "Not seen: functions, and modules that are compiled or a TransformerEncoder."
# Whose zeros are drawn, or are those of what they were given.
_PASSIVE: Final = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.dropout._DropoutNd,  # noqa: SLF001 -- the base of all of them
    nn.modules.loss._Loss,  # noqa: SLF001 -- as above
)


@dataclasses.dataclass
class Layer:
    """What was seen of one layer; counts stay on the device until they are asked for."""

    name: str
    kind: str
    bounds: tuple[float, float] | None
    numel: int = 0
    zeros: Any = 0
    saturated: Any = 0
    not_finite: Any = 0
    alive: dict[int, Any] = dataclasses.field(default_factory=dict)  # by the number of units

    def add(self, output: torch.Tensor, eps: float) -> None:
        """Take an output in."""
        self.numel += output.numel()
        zero = output == 0
        self.zeros = self.zeros + zero.sum()
        if output.is_floating_point():
            self.not_finite = self.not_finite + (~torch.isfinite(output)).sum()
        if self.bounds is not None:
            low, high = self.bounds
            self.saturated = self.saturated + ((output < low + eps) | (output > high - eps)).sum()
        if output.ndim >= 2:
            place = output.ndim - 1 if output.ndim == 3 else 1
            others = [d for d in range(output.ndim) if d != place]
            units = output.shape[place]
            alive = (~zero).any(dim=others[0]) if len(others) == 1 else _any(~zero, place)
            self.alive[units] = alive | self.alive.get(units, torch.zeros_like(alive))

    def figures(self) -> dict[str, Any]:
        """As plain values; waits for the device."""
        units = sum(self.alive)
        dead = sum(int((~alive).sum()) for alive in self.alive.values())
        return {
            "layer": self.name,
            "kind": self.kind,
            "zero_frac": int(self.zeros) / self.numel,
            "units": units,
            "dead": dead,
            "dead_frac": dead / units if units else 0.0,
            "saturated_frac": int(self.saturated) / self.numel if self.bounds else None,
            "not_finite": int(self.not_finite),
        }


def _any(mask: torch.Tensor, place: int) -> torch.Tensor:
    """Over all dimensions but one."""
    return mask.movedim(place, 0).flatten(1).any(dim=1)


def check(subject: Subject, budget: Budget, *, topk: int = 12, eps: float = 1e-3) -> Health:
    """Run a few training steps without their optimizer's, and look at what each layer gives.

    Args:
        topk: so many layers are told, the worst first.
        eps: how near to its bound a value is saturated.

    Raises:
        CommandError: ``unsupported`` where no batch or no training step can be had.
    """
    need_step(subject)
    layers: dict[str, Layer] = {}

    def seen(name: str, module: nn.Module, _: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.numel() and not tensor.is_complex():
                if name not in layers:
                    kind = type(module).__name__
                    layers[name] = Layer(name, kind, bounds_of(module))
                layers[name].add(tensor.detach(), eps)

    found = open_modules(subject.modules)
    leaves = {n: m for n, m in found.items() if not any(True for _ in m.children())}
    watched = {n: m for n, m in leaves.items() if not isinstance(m, _PASSIVE)}
    everything = len(found) == len(named_modules(subject.modules))
    calls = Calls(
        type(next(iter(subject.modules.values()))).__name__,
        frozenset(n for n, m in leaves.items() if type(m).__module__.startswith("torch.nn.")),
        lambda name, kind, output: seen(name, kind, None, output),
    )
    with undisturbed(subject) as trace:
        looking = calls if everything else contextlib.nullcontext()
        with watching(watched, seen), calls.places(found):
            for batch in budget.within(subject.batches()):
                batch = subject.to_device(batch)
                with looking:  # not at what makes the batch
                    subject.loss_of(batch)
                calls.begin()
        rows = [layer.figures() for layer in layers.values()]
    rows.sort(key=_badness, reverse=True)
    issues = [row for row in rows if is_issue(row)]
    told = _told(rows, issues, topk, budget, everything=everything)
    fields = {
        "top": rows[: max(0, topk)],
        "total_layers": len(rows),
        "steps_probed": budget.done,
        "eps": eps,
        "functions_seen": everything,
        "issues": [row["layer"] for row in issues],
        "left_changed": trace.changed,
    }
    return health(fields, [*told, *trace.lines()], ok=not issues)


def bounds_of(module: nn.Module) -> tuple[float, float] | None:
    """The bounds at which its gradient vanishes; None where it has none, or only one."""
    if isinstance(module, nn.Tanh | nn.Softsign):
        return -1.0, 1.0
    if isinstance(module, nn.Sigmoid | nn.Hardsigmoid):
        return 0.0, 1.0
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return float(module.min_val), float(module.max_val)
    return None


def is_issue(row: dict[str, Any]) -> bool:
    """Whether a layer ought to be looked at."""
    saturated = row["saturated_frac"] or 0.0
    return row["not_finite"] > 0 or row["dead_frac"] >= ISSUE or saturated >= ISSUE


def _badness(row: dict[str, Any]) -> tuple[Any, ...]:
    worst = max(row["dead_frac"], row["saturated_frac"] or 0.0)
    return row["not_finite"] > 0, worst, row["zero_frac"]


def _told(
    rows: Sequence[dict[str, Any]],
    issues: Sequence[dict[str, Any]],
    topk: int,
    budget: Budget,
    *,
    everything: bool,
) -> Iterable[str]:
    if not rows:
        return ["No layer was seen."]
    head = f"{len(issues)} of {len(rows)} layers ought to be looked at, over {budget.done} batches."
    table = [("Layer", "kind", "zeros", "dead units", "saturated", "NaN or Inf")]
    table += [
        (
            row["layer"],
            row["kind"],
            percent(row["zero_frac"]),
            f"{row['dead']} of {row['units']}" if row["units"] else NONE,
            percent(row["saturated_frac"]),
            str(row["not_finite"] or NONE),
        )
        for row in rows[: max(0, topk)]
    ]
    unseen = [] if everything else [UNSEEN]
    return [head, *aligned(table), *unseen]
