"""Whether the same batch gives the same numbers twice, bit for bit; training thread.

Forward and backward are run twice from the same state: weights, buffers, modules' attributes and
random numbers. Where the two differ, the first module whose output did is named, or, where all
outputs are the same, the first layer on the way back whose gradient did. How the data is loaded is
not compared.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from otf_core.health.budget import Budget
from otf_core.health.dist import digest_of
from otf_core.health.hooks import open_modules, tensors_in, watching
from otf_core.health.report import Health, aligned, health, some
from otf_core.health.subject import (
    Subject,
    forget_gradients,
    need_step,
    propagate_back,
    undisturbed,
)
from otf_core.state.parts import named_parameters


class Once:
    """One run of the batch: digests of all that it gave, in the order in which it came."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, str, list[str]]] = []
        self.loss: str | None = None
        self.gradients: dict[str, str] = {}
        self.stopped_looking = False


def check(subject: Subject, budget: Budget) -> Health:
    """Run the next batch of a pass of its own twice and compare.

    Args:
        budget: one batch; behind its limit the modules are not looked at any more.

    Raises:
        CommandError: ``unsupported`` where no training step can be had.
    """
    need_step(subject)
    runs: list[Once] = []
    with undisturbed(subject) as trace:
        batch = next(budget.within(subject.batches()), None)
    for _ in range(2 if batch is not None else 0):
        budget.check()
        with undisturbed(subject) as trace:
            runs.append(_once(subject, budget, copy.deepcopy(batch)))
    if len(runs) < 2 or runs[0].loss is None:
        what = "the loader gave no batch" if not runs else "the training step skipped the batch"
        fields = {**flags(), "compared": False, "left_changed": trace.changed}
        return health(fields, [f"Nothing was compared: {what}.", *trace.lines()], ok=True)
    fields = compare(*runs)
    advice = [] if fields["equal"] else helps(subject.device)
    fields |= {**flags(), "advice": advice, "left_changed": trace.changed}
    return health(fields, [*_told(fields), *advice, *trace.lines()], ok=fields["equal"])


def _once(subject: Subject, budget: Budget, batch: Any) -> Once:
    found = Once()

    def seen(name: str, module: Any, _: Any, output: Any) -> None:
        if budget.left_s() < 0:
            found.stopped_looking = True
            return
        digests = [digest_of(tensor) for tensor in tensors_in(output)]
        found.outputs.append((name, type(module).__name__, digests))

    forget_gradients(subject)
    with watching(open_modules(subject.modules), seen):
        loss = subject.loss_of(subject.to_device(batch))
    if loss is None:
        return found
    found.loss = digest_of(loss)
    if loss.requires_grad:
        propagate_back(subject, loss)
    for name, p in named_parameters(subject.modules).items():
        if p.grad is not None:
            found.gradients[name] = digest_of(p.grad.to_dense() if p.grad.is_sparse else p.grad)
    return found


def compare(one: Once, other: Once) -> dict[str, Any]:
    """Where two runs differ first."""
    differing = [
        (name, kind)
        for (name, kind, digests), again in zip(one.outputs, other.outputs, strict=False)
        if (name, kind, digests) != again
    ]
    names = one.gradients.keys() | other.gradients.keys()
    gradients = {n for n in names if one.gradients.get(n) != other.gradients.get(n)}
    called = [name for name, _, _ in one.outputs]
    place = {name: i for i, name in enumerate(called)}
    back = sorted(gradients, key=lambda n: place.get(n.rpartition(".")[0], -1), reverse=True)
    equal = one.loss == other.loss and not differing and not gradients
    return {
        "compared": True,
        "equal": equal and len(one.outputs) == len(other.outputs),
        "loss_equal": one.loss == other.loss,
        "first_module": differing[0][0] if differing else None,
        "first_kind": differing[0][1] if differing else None,
        "first_gradient": back[0] if back and not differing else None,
        "gradients_differing": back,
        "gradients": len(names),
        "modules_seen": len(one.outputs),
        "all_modules_seen": not (one.stopped_looking or other.stopped_looking),
    }


def flags() -> dict[str, Any]:
    """What decides which kernels are taken."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def helps(device: torch.device) -> list[str]:
    """What would, of what is not set; where all is, what is left."""
    now = flags()
    told = []
    if not now["deterministic_algorithms"]:
        told.append(
            "torch.use_deterministic_algorithms(True) takes kernels that repeat, and names the "
            "operation that has none."
        )
    if device.type == "cuda":
        if now["cudnn_benchmark"]:
            told.append("torch.backends.cudnn.benchmark = False takes the same convolution twice.")
        if now["cublas_workspace_config"] not in (":4096:8", ":16:8"):
            told.append("CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment is needed by cuBLAS.")
    told.append("A module that draws from a generator which nobody seeds differs whatever is set.")
    return told


def _told(fields: Mapping[str, Any]) -> Iterator[str]:
    number = fields["gradients"]
    if fields["equal"]:
        yield f"Twice the same, bit for bit: loss, {number} gradients."
    else:
        yield "Twice the same batch from the same state gave other numbers."
        different = len(fields["gradients_differing"])
        yield from aligned(
            [
                ("Loss", "the same" if fields["loss_equal"] else "differs"),
                ("Gradients", f"{different} of {number} differ"),
            ]
        )
    if fields["first_module"] is not None:
        yield f"First to differ: the output of {fields['first_module']} ({fields['first_kind']})."
    elif fields["first_gradient"] is not None:
        yield f"First to differ: the gradient of {fields['first_gradient']}, on the way back."
        yield f"All of them: {some(fields['gradients_differing'])}."
    if not fields["all_modules_seen"]:
        yield f"For want of time only {fields['modules_seen']} outputs of modules were compared."
