"""Where a NaN or Inf comes from, and how large gradients and steps are; training thread.

Looked through as they are: parameters, buffers, gradients, optimizer states, the history of
losses. Then one batch is run forward and backward, without a step: the first layer whose output is
not finite is the origin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from otf_core.health.budget import Budget
from otf_core.health.hooks import all_finite, open_modules, watching
from otf_core.health.report import Health, aligned, finite, health, percent, short, some
from otf_core.health.spikes import RULE, spikes
from otf_core.health.subject import (
    Subject,
    Trace,
    called,
    forget_gradients,
    layers_of,
    propagate_back,
    undisturbed,
)
from otf_core.health.updates import not_finite, ratio_of, states_of
from otf_core.state.parts import named_buffers, named_modules, named_parameters
from otf_core.telemetry.norms import local_part

LARGE: Final = 0.1  # of a layer's weights, changed in one step
RECENT: Final = 100  # losses; a spike among them is an issue


@dataclasses.dataclass
class Pass:
    """What one batch has shown.

    Attributes:
        origin: the first that was not finite; None where all was.
        order: the layers as they were called.
        loss: None where no batch was run or it was skipped.
        ran_out: there was no time to look at the step of every layer.
    """

    origin: dict[str, Any] | None = None
    order: list[str] = dataclasses.field(default_factory=list)
    loss: float | None = None
    gradients: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    layers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    untrained: list[str] = dataclasses.field(default_factory=list)
    ran_out: bool = False


def check(subject: Subject, budget: Budget, *, sample_layers: int = 25) -> Health:
    """Look for what is not finite, and measure what a step would do.

    Args:
        sample_layers: so many layers are told, those that change most first.

    Raises:
        CommandError: see ``subject.undisturbed``. A training step that cannot be had is told.
    """
    problems = list(_scan(subject, budget))
    found, trace = Pass(), Trace()
    if subject.why_no_step is None:
        with undisturbed(subject) as trace:
            found = _run(subject, budget)
    problems += found.gradients
    outliers = spikes(subject.history)
    recent = {step for step, _ in subject.history[-RECENT:]}
    issues = [row for row in found.layers if (row["ratio"] or 0.0) > LARGE]
    fields = {
        "problems": problems,
        "origin": found.origin,
        "loss": finite(found.loss),
        "layers": found.layers[: max(0, sample_layers)],
        "total_layers": len(found.layers),
        "all_layers_seen": not found.ran_out,
        "without_gradient": found.untrained,
        "spikes": outliers,
        "spike_rule": RULE,
        "tensors": sum(1 for _ in _tensors(subject)),
        "not_run": subject.why_no_step,
        "left_changed": trace.changed,
    }
    ok = not problems and found.origin is None and not issues
    ok = ok and not any(row["step"] in recent for row in outliers)
    return health(fields, [*_told(fields, sample_layers), *trace.lines()], ok=ok)


def _tensors(subject: Subject) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Everything that can be looked through as it is: what it is, its name, the tensor."""
    params = named_parameters(subject.modules)
    for name, p in params.items():
        yield "parameter", name, p
    for name, buffer in named_buffers(subject.modules).items():
        yield "buffer", name, buffer
    for name, p in params.items():
        if p.grad is not None:
            yield "gradient", name, p.grad
    names = {id(p): name for name, p in params.items()}
    for which, name, key, value in states_of(subject.optimizers, names):
        yield f"{which} state {key}", name, value


def _scan(subject: Subject, budget: Budget) -> Iterator[dict[str, Any]]:
    for what, name, tensor in _tensors(subject):
        budget.check()
        yield from _problem(what, name, tensor)


def _problem(what: str, name: str, tensor: torch.Tensor) -> Iterator[dict[str, Any]]:
    nan, inf = not_finite(local_part(tensor))
    if nan or inf:
        layer = name.rpartition(".")[0]
        numbers = {"nan": nan, "inf": inf, "numel": tensor.numel()}
        yield {"what": what, "name": name, "layer": layer, **numbers}


def _run(subject: Subject, budget: Budget) -> Pass:
    """One batch forward and backward."""
    found = Pass()

    def seen(name: str, module: Any, given: Any, output: Any) -> None:
        found.order.append(name)
        if found.origin is None and not all_finite(output):
            found.origin = _origin(name, module, given)

    batch = None
    for each in budget.within(subject.batches()):
        batch = subject.to_device(each)
        break
    if batch is None:
        return found
    if not all_finite(batch):
        found.origin = {"layer": "batch", "kind": type(batch).__name__, "because": "the data"}
    with watching(open_modules(subject.modules), seen):
        loss = subject.loss_of(batch)
    if loss is None:
        return found
    found.loss = float(loss.detach())
    if found.origin is None and not all_finite(loss):
        because = "it is computed from outputs that are finite"
        found.origin = {"layer": "loss", "kind": "loss", "because": because}
    if loss.requires_grad:
        forget_gradients(subject)
        propagate_back(subject, loss)
        _look_at_gradients(subject, budget, found)
    return found


def _origin(name: str, module: Any, given: Any) -> dict[str, Any]:
    wrong = [n for n, p in module.named_parameters() if not all_finite(p)]
    wrong += [n for n, b in module.named_buffers() if not all_finite(b)]
    if wrong:
        because = f"its {some(wrong)} is not finite"
    elif not all_finite(given):
        because = "its input was not finite already, by a function between the layers or the data"
    else:
        because = "it made it of an input and parameters that are finite"
    return {"layer": name, "kind": type(module).__name__, "because": because}


def _look_at_gradients(subject: Subject, budget: Budget, found: Pass) -> None:
    scaled = f", times {subject.loss_scale:g}" if subject.loss_scale != 1 else ""
    for name, p in named_parameters(subject.modules).items():
        if p.requires_grad and p.grad is None:
            found.untrained.append(name)
        elif p.grad is not None:
            found.gradients += _problem(f"gradient of this batch{scaled}", name, p.grad)
    place = {name: i for i, name in enumerate(found.order)}
    # The way back begins at the layer that was called last.
    found.gradients.sort(key=lambda row: place.get(row["layer"], -1), reverse=True)
    modules = named_modules(subject.modules)
    for name, params in layers_of(subject.modules).items():
        budget.check()
        if budget.left_s() < 0:
            found.ran_out = True
            break
        row = ratio_of(params.values(), subject.optimizers.values(), subject.loss_scale)
        if row["grad_norm"] is not None:
            numbers = {k: v if k == "estimate" else finite(v) for k, v in row.items()}
            found.layers.append({"layer": called(name, modules[name]), **numbers})
    found.layers.sort(key=lambda row: (row["ratio"] is None, row["ratio"] or 0.0), reverse=True)


def _told(fields: Mapping[str, Any], sample_layers: int) -> Iterator[str]:
    problems, origin = fields["problems"], fields["origin"]
    if not problems and origin is None:
        yield f"No NaN, no Inf in {fields['tensors']} tensors."
    elif problems:
        yield f"NaN or Inf in {len(problems)} tensors:"
        yield from aligned(
            [
                (row["name"], row["what"], f"{row['nan']} NaN", f"{row['inf']} Inf")
                for row in problems[: max(1, sample_layers)]
            ]
        )
    if origin is not None:
        yield f"First not finite: {origin['layer']} ({origin['kind']}), {origin['because']}."
    yield from _told_layers(fields)
    yield from _told_spikes(fields["spikes"])
    if fields["not_run"] is not None:
        yield f"No batch was run: {fields['not_run']}."


def _told_layers(fields: Mapping[str, Any]) -> Iterator[str]:
    layers = fields["layers"]
    if layers:
        yield f"What a step would change, {len(layers)} of {fields['total_layers']} layers:"
        yield from aligned(
            [
                ("Layer", "gradient", "weights", "step / weights"),
                *(
                    (
                        row["layer"],
                        short(row["grad_norm"]),
                        short(row["weight_norm"]),
                        percent(row["ratio"]) + (" (estimate)" if row["estimate"] else ""),
                    )
                    for row in layers
                ),
            ]
        )
    if not fields["all_layers_seen"]:
        yield f"For want of time only {fields['total_layers']} layers were looked at."
    if fields["without_gradient"]:
        yield f"Trained, and without a gradient: {some(fields['without_gradient'])}."


def _told_spikes(outliers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if outliers:
        yield f"{len(outliers)} losses stand out ({RULE}):"
        yield from aligned(
            [
                (f"step {row['step']}", short(row["loss"]), f"z {short(row['z'])}")
                if row["loss"] is not None
                else (f"step {row['step']}", "not finite", "")
                for row in outliers[-5:]
            ]
        )
