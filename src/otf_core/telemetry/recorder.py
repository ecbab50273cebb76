"""From the hooks of a loop to one ``trainStep`` a step; training thread.

Rule 1: nothing here waits for a device. Values that lie on one are read when their copy has
arrived, at the latest at the gate before ``paused``.
Rule 2: a value belongs to the step at which it was measured; a step without one says null.
Rule 3: the costly ones are thinned by the governor, so that telemetry stays within its budget.
Rule 4: the training thread reads numbers and notes them; the event is made of them on another.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import torch
from torch import nn

from otf_core.telemetry.activations import ActivationZeroTracker
from otf_core.telemetry.batch import batch_size
from otf_core.telemetry.canonical import Canonical
from otf_core.telemetry.governor import Governor
from otf_core.telemetry.late import LateReader
from otf_core.telemetry.metrics import cadences
from otf_core.telemetry.norms import combine_norms, grad_norm, weight_norm
from otf_core.telemetry.system import DeviceStatsMonitor

Level = Literal["full", "basic", "off"]
Phases = Callable[[], Mapping[str, float]]  # seconds of each since it began
# Told a step's values as soon as they are read: the step, the values, the names that were logged
# anew, and all that ever were.
Seen = Callable[[int, Mapping[str, float | None], Sequence[str], Sequence[str]], None]

HISTORY: Final = 1000  # losses that are kept
# Measured by us, beside what the module logs; the space keeps them apart from any logged name
# without a copy of the logged ones.
_LOSS: Final = " loss"
_GRAD: Final = " grad_norm"
_WEIGHT: Final = " weight_norm"
_ZEROS: Final = " activation_zero_frac"
_LR: Final = " lr"
# What is measured at every step, or where the governor has it done, by the name it is told under.
MEASURED: Final[Mapping[str, str]] = {
    "loss": _LOSS, "grad_norm": _GRAD, "weight_norm": _WEIGHT, "activation_zero_frac": _ZEROS,
}  # fmt: skip
PHASE: Final = "otf/{}_ms"  # what a phase is called among the metrics of a step
_NO_PHASES: Final[Mapping[str, float]] = {}
_MAIN: Final = ("loss", "val_loss", "accuracy", "step")


class Teller(Protocol):
    """What is used of the emitter."""

    def emit_later(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> None: ...
    def drain(self) -> None: ...


@dataclasses.dataclass(slots=True)
class _Step:
    """What is known of a step before its values have arrived; not changed any more."""

    step: int
    global_step: int
    epoch: int
    active_s: float
    wait_s: float
    samples: int
    batches: int
    new: tuple[str, ...]  # names of the values that were logged since the step before
    logged: tuple[str, ...]  # names of all that was ever logged
    rates: int  # parameter groups with a learning rate
    phases: Mapping[str, float]  # ms of the step's phases, by the names that are told


class StepRecorder:
    """Gathers one step and emits it.

    Args:
        emitter: gets one ``trainStep`` a step.
        level: "full", "basic" (nothing that has to be computed) or "off" (no ``trainStep``).
        monitor: system counters; None where they are not sampled.
        gpu: which of the visible GPUs the run is on, None on the CPU.
    """

    def __init__(
        self,
        emitter: Teller,
        *,
        level: Level = "full",
        monitor: DeviceStatsMonitor | None = None,
        gpu: int | None = None,
        governor: Governor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._emitter, self.level, self._monitor, self.gpu = emitter, level, monitor, gpu
        self._clock = clock
        self.governor = governor or Governor(clock=clock)
        self._tracker = ActivationZeroTracker(clock=clock)
        self._late: LateReader[_Step] = LateReader()
        self._seen: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()  # of what was ever logged
        self._step = 0  # steps done; the one under way is the next
        self._loss: Any = None
        self._zeros: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None
        self._grads: list[torch.Tensor | None] = []
        self._fetch_from_s = self._began_s = 0.0
        self._active_s = self._wait_s = 0.0
        self._lr_names: list[str] = []  # made once, a step has no use for new ones
        self._samples, self._batches = 0, 0
        self._own_s = 0.0  # taken here since the last step was told, the costly metrics apart
        self.watch: Seen | None = None
        self._phases: Phases | None = None
        self._phases_s: Mapping[str, float] = {}  # when the last step was told
        # Where events are made, by one thread at a time.
        self._canonical = Canonical()
        self._latest: dict[str, Any] = {}
        self._losses: deque[tuple[int, float]] = deque(maxlen=HISTORY)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of the newest steps, oldest first; any thread."""
        self._emitter.drain()
        return list(self._losses)

    @property
    def latest(self) -> dict[str, Any]:
        """Newest value of loss, val_loss and accuracy, and the step; any thread."""
        self._emitter.drain()
        return dict(self._latest)

    def time_phases(self, phases: Phases) -> None:
        """Tell with every step how long each of its phases was; see ``PHASE``.

        Args:
            phases: seconds of each so far.
        """
        self._phases, self._phases_s = phases, dict(phases())

    def fetching(self, at_s: float | None = None) -> None:
        """The next batch is about to be fetched, or was at ``at_s`` of the clock."""
        self._fetch_from_s = self._clock() if at_s is None else at_s

    def batch_started(self, module: nn.Module | None, at_s: float | None = None) -> None:
        """The batch is there; its forward comes.

        Args:
            module: where zero activations may be counted; None: nowhere.
            at_s: when it came, if not now.
        """
        if self.level == "off":
            return
        self._began_s = self._clock() if at_s is None else at_s
        if module is not None and self._due("activation_zero_frac"):
            self._tracker.arm(module)

    def before_optimizer_step(self, params: Callable[[], Iterable[torch.Tensor]]) -> None:
        """Gradients are complete and not clipped yet; once for each optimizer that steps."""
        if self._due("grad_norm"):
            with self.governor.measure("grad_norm"):
                self._grads.append(grad_norm(params()))

    def batch_ended(
        self,
        loss: Any,
        batch: Any,
        params: Callable[[], Iterable[torch.Tensor]],
        *,
        samples: int | None = None,
    ) -> None:
        """The batch is through, its optimizer step too if there was one.

        Args:
            samples: in the batch, where the batch itself is not kept.
        """
        if self.level == "off":
            return
        now = self._clock()
        self._active_s += now - self._fetch_from_s
        self._wait_s += self._began_s - self._fetch_from_s
        self._loss = loss
        self._batches += 1
        self._samples += (batch_size(batch) if samples is None else samples) or 0
        self._own_s += self._clock() - now
        if self._tracker.armed:
            self._zeros = self._tracker.disarm()
            self.governor.record("activation_zero_frac", self._tracker.cost_s)
        if self._due("weight_norm"):
            with self.governor.measure("weight_norm"):
                self._weights = weight_norm(params())

    def boundary(
        self,
        *,
        step: int,
        global_step: int,
        epoch: int,
        lrs: Callable[[], Sequence[Any]],
        logged: Mapping[str, Any],
    ) -> None:
        """Between two batches; emits what has arrived.

        Args:
            step: steps done by now; the same as before while gradients accumulate.
            epoch: the epoch of the step.
            logged: all that was logged, the live mapping; values that are other objects than at
                the last step are new.
        """
        if self.level == "off" or step == self._step:
            return
        begun = self._clock()
        self._step = step
        values = {name: v for name, v in logged.items() if self._seen.get(name) is not v}
        new = tuple(values)
        if self._seen.keys() != logged.keys():
            self._names = tuple(logged)
        self._seen = dict(logged)
        rates = lrs()
        while len(self._lr_names) < len(rates):
            self._lr_names.append(f"{_LR}{len(self._lr_names)}")
        values.update(zip(self._lr_names, rates, strict=False))
        values[_LOSS], values[_WEIGHT], values[_ZEROS] = self._loss, self._weights, self._zeros
        values[_GRAD] = combine_norms(self._grads) if self._grads else None
        self._late.put(
            _Step(
                step,
                global_step,
                epoch,
                self._active_s,
                self._wait_s,
                self._samples,
                self._batches,
                new,
                self._names,
                len(rates),
                self._new_phases(),
            ),
            values,
        )
        self._tell(self._late.ready())
        active_s = self._active_s
        self._start_step()
        self._own_s += self._clock() - begun
        if active_s:
            self.governor.fixed(self._own_s)
            self._own_s = 0.0
            self.governor.step_time(active_s)

    def flush(self) -> None:
        """Emit what is still on its way; waits for the device. Before ``paused`` and at the end."""
        self._tell(self._late.flush())

    def rewind(self, step: int, logged: Mapping[str, Any]) -> None:
        """The run was put back to another step; what is logged now is not new."""
        self.abort()
        self._step, self._seen, self._names = step, dict(logged), tuple(logged)
        self._own_s = 0.0
        self._new_phases()
        self._latest = {}
        self._losses = deque((s for s in list(self._losses) if s[0] <= step), HISTORY)

    def abort(self) -> None:
        """The batch under way has failed or was cut short: its hooks go."""
        if self._tracker.armed:
            self._tracker.disarm()
        self._start_step()

    def cadence(self) -> dict[str, dict[str, Any]]:
        """How often each metric comes; any thread."""
        interval_s = self._monitor.interval_s if self._monitor is not None else 1.0
        return cadences(self.governor.cadence(), sampler_interval_s=interval_s)

    def _new_phases(self) -> Mapping[str, float]:
        if self._phases is None:
            return _NO_PHASES
        before, self._phases_s = self._phases_s, self._phases()
        return {
            PHASE.format(name): 1000 * (now_s - before.get(name, 0.0))
            for name, now_s in self._phases_s.items()
        }

    def _due(self, name: str) -> bool:
        return self.level == "full" and self.governor.due(name, self._step + 1)

    def _start_step(self) -> None:
        self._loss = self._zeros = self._weights = None
        self._grads = []
        self._active_s = self._wait_s = 0.0
        self._samples = self._batches = 0

    def _tell(self, steps: Iterable[tuple[_Step, Mapping[str, float | None]]]) -> None:
        for step, values in steps:
            self._emitter.emit_later("trainStep", functools.partial(self._fields, step, values))
            if self.watch is not None:
                self.watch(step.step, values, step.new, step.logged)

    def _fields(self, step: _Step, values: Mapping[str, float | None]) -> dict[str, Any]:
        """What the event says; wherever events are made."""
        metrics = {**{name: values[name] for name in step.new}, **step.phases}
        # By all that was ever logged, so that a name means the same at every step.
        pairs = self._canonical.pairs(step.logged)
        canonical = {name: metrics.get(logged) for name, logged in pairs}
        lrs = [values[name] for name in self._lr_names[: step.rates]]
        loss = canonical.get("loss")
        active_s = step.active_s
        fields: dict[str, Any] = {
            "step": step.step,
            "epoch": step.epoch,
            "global_step": step.global_step,
            "loss": values[_LOSS] if loss is None else loss,
            "val_loss": canonical.get("val_loss"),
            "accuracy": canonical.get("accuracy"),
            "lr": lrs[0] if lrs else None,
            "lrs": lrs,
            "grad_norm": values[_GRAD],
            "weight_norm": values[_WEIGHT],
            "activation_zero_frac": values[_ZEROS],
            "throughput": step.samples / active_s if step.samples and active_s else None,
            "batches_per_s": step.batches / active_s if active_s else None,
            "data_wait_frac": step.wait_s / active_s if active_s else None,
            "metrics": metrics,
            **self._sampled(),
        }
        if (told := fields["loss"]) is not None:
            self._losses.append((step.step, told))
        self._latest.update({name: fields[name] for name in _MAIN if fields[name] is not None})
        return fields

    def _sampled(self) -> dict[str, float | None]:
        sample = self._monitor.latest() if self._monitor is not None else None
        gpu = sample.gpu(self.gpu) if sample is not None and self.gpu is not None else None
        return {
            "mem_vram": gpu.mem_used_mib if gpu is not None else None,
            "gpu_util": gpu.util_pct if gpu is not None else None,
            "ram_mb": sample.rss_mib if sample is not None else None,
        }
