"""What a step waits for: its data or its computation; training thread.

Rule 1: a batch is fetched in this process, without the loader's workers, and its cost shared among
them: with ``w`` workers a batch comes every ``fetch / w`` at best, beside the computation; without
workers it comes before it.
Rule 2: forward and backward as the training does them; no optimizer step, so the computation is
that much longer in the run.
Rule 3: the first pass warms up, and counts only where it is the only one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any, Final

import torch

from otf_core.health.budget import Budget
from otf_core.health.report import Health, aligned, health, percent, short
from otf_core.health.subject import (
    Subject,
    forget_gradients,
    need_step,
    propagate_back,
    undisturbed,
)
from otf_core.telemetry.batch import batch_size

WORTH: Final = 0.1  # waiting that takes more than this share of a step is worth a word
BACKWARD: Final = 2.0  # of a forward: a matrix product's two gradients cost as much as itself each


@dataclasses.dataclass
class Timings:
    """Seconds of each pass."""

    fetch: list[float] = dataclasses.field(default_factory=list)
    transfer: list[float] = dataclasses.field(default_factory=list)
    forward: list[float] = dataclasses.field(default_factory=list)
    backward: list[float] = dataclasses.field(default_factory=list)
    samples: list[int | None] = dataclasses.field(default_factory=list)

    def measured(self) -> Timings:
        """Without the pass that warmed up."""
        begin = 1 if len(self.fetch) > 1 else 0
        return Timings(**{name: values[begin:] for name, values in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class Loading:
    """How the run's loader works."""

    workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False

    @classmethod
    def of(cls, loaders: Sequence[Any]) -> Loading:
        """Of several loaders at a time the one with the fewest workers."""
        found = [
            cls(
                getattr(loader, "num_workers", 0),
                bool(getattr(loader, "pin_memory", False)),
                bool(getattr(loader, "persistent_workers", False)),
            )
            for loader in loaders
        ]
        return min(found, key=lambda each: each.workers, default=cls())


def check(
    subject: Subject, budget: Budget, *, backward: bool = True, cores: int | None = None
) -> Health:
    """Fetch a few batches and train on them without a step; say what a step waits for.

    Args:
        budget: of its steps, one more is run, which warms up.
        backward: measured as well; else taken to be twice a forward.
        cores: None: those that this process may use.

    Raises:
        CommandError: ``unsupported`` where no batch or no training step can be had.
    """
    need_step(subject)
    budget.steps += 1
    with undisturbed(subject) as trace:
        timings = _timed(subject, budget, backward=backward).measured()
    loading = Loading.of(subject.loaders)
    fields = figures(timings, loading, backward=backward)
    advice = helps(fields, loading, subject.device, _cores() if cores is None else cores)
    fields |= {"advice": advice, "left_changed": trace.changed}
    ok = (fields["wait_share"] or 0.0) <= WORTH
    return health(fields, [*_told(fields, loading), *advice, *trace.lines()], ok=ok)


def _timed(subject: Subject, budget: Budget, *, backward: bool) -> Timings:
    found, clock = Timings(), budget.clock
    source = iter(subject.batches())

    def fetched() -> Any:
        while True:
            began_s = clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            found.fetch.append(clock() - began_s)
            yield batch

    for batch in budget.within(fetched()):
        forget_gradients(subject)
        found.samples.append(batch_size(batch))
        _synchronize(subject.device)
        marks = [clock()]
        batch = subject.to_device(batch)
        _synchronize(subject.device)
        marks.append(clock())
        loss = subject.loss_of(batch)
        _synchronize(subject.device)
        marks.append(clock())
        if backward and loss is not None and loss.requires_grad:
            propagate_back(subject, loss)
            _synchronize(subject.device)
        marks.append(clock())
        times = (found.transfer, found.forward, found.backward)
        for values, begin, end in zip(times, marks, marks[1:], strict=False):
            values.append(end - begin)
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def figures(timings: Timings, loading: Loading, *, backward: bool = True) -> dict[str, Any]:
    """The numbers, and which of the two a step waits for."""
    if not timings.forward:
        return dict.fromkeys(_NUMBERS) | {"steps_probed": 0, "samples_seen": 0, "bound": None}
    fetch, transfer, forward, back = (
        1000 * statistics.median(values)
        for values in (timings.fetch, timings.transfer, timings.forward, timings.backward)
    )
    compute = transfer + forward + (back if backward else BACKWARD * forward)
    every = fetch / max(1, loading.workers)
    wait = max(0.0, every - compute) if loading.workers else fetch
    step = compute + wait
    samples = sum(n or 0 for n in timings.samples)
    per_batch = samples / len(timings.samples)
    return {
        "steps_probed": len(timings.forward),
        "samples_seen": samples,
        "num_workers": loading.workers,
        "fetch_batch_ms_med": fetch,
        "transfer_batch_ms_med": transfer,
        "forward_batch_ms_med": forward,
        "backward_batch_ms_med": back if backward else None,
        "compute_ms": compute,
        "loader_ms": every,
        "wait_ms": wait,
        "step_ms": step,
        "wait_share": wait / step if step else 0.0,
        "samples_per_s": 1000 * per_batch / step if step and samples else None,
        "bound": "loader" if every > compute else "compute",
    }


_NUMBERS: Final = (
    "num_workers",
    "fetch_batch_ms_med",
    "transfer_batch_ms_med",
    "forward_batch_ms_med",
    "backward_batch_ms_med",
    "compute_ms",
    "loader_ms",
    "wait_ms",
    "step_ms",
    "wait_share",
    "samples_per_s",
)


def helps(fields: dict[str, Any], loading: Loading, device: torch.device, cores: int) -> list[str]:
    """What would make a step shorter, in sentences; empty where nothing of the loader would."""
    if fields["bound"] is None:
        return []
    told = []
    if fields["wait_share"] > WORTH:
        compute = max(fields["compute_ms"], 1e-6)
        needed = math.ceil(fields["fetch_batch_ms_med"] / compute)
        if loading.workers < min(needed, cores):
            number = min(needed, cores)
            left = max(0.0, fields["fetch_batch_ms_med"] / number - fields["compute_ms"])
            rest = f"; {short(left)} ms of waiting would be left" if left > 0 else ""
            told.append(f"num_workers={number} would load beside the computation{rest}.")
        if needed > cores:
            told.append(
                f"Loading alone would keep {needed} processes busy, here are {cores} cores: "
                "a cheaper transform, or data prepared once, would help."
            )
    if loading.workers and not loading.persistent_workers:
        told.append("persistent_workers=True would spare starting the workers in every epoch.")
    is_slow = fields["transfer_batch_ms_med"] > WORTH * fields["step_ms"]
    if device.type == "cuda" and not loading.pin_memory and is_slow:
        told.append("pin_memory=True would make the way to the device quicker.")
    return told


def _told(fields: dict[str, Any], loading: Loading) -> list[str]:
    if fields["bound"] is None:
        return ["The loader gave no batch; nothing was measured."]
    names = {"loader": "Loader-bound", "compute": "Compute-bound"}
    waits = percent(fields["wait_share"])
    head = f"{names[fields['bound']]}: {waits} of a step is waiting for data."
    rows = [
        ("Fetch, median per batch", _ms(fields["fetch_batch_ms_med"])),
        ("To the device", _ms(fields["transfer_batch_ms_med"])),
        ("Forward", _ms(fields["forward_batch_ms_med"])),
    ]
    if fields["backward_batch_ms_med"] is None:
        rows.append(("Backward, taken to be", _ms(BACKWARD * fields["forward_batch_ms_med"])))
    else:
        rows.append(("Backward", _ms(fields["backward_batch_ms_med"])))
    workers = f"{loading.workers} workers" if loading.workers else "no workers"
    rows += [
        (f"A batch comes every ({workers})", _ms(fields["loader_ms"])),
        ("A step, without the optimizer's", _ms(fields["step_ms"])),
    ]
    if fields["samples_per_s"] is not None:
        rows.append(("Samples per second", f"{fields['samples_per_s']:,.0f}"))
    steps = fields["steps_probed"]
    return [head, *aligned(rows), f"Over {steps} batches, {fields['samples_seen']} samples."]


def _ms(value: float) -> str:
    return f"{short(value)} ms"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
