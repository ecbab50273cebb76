"""From the hooks of a loop to one ``trainStep`` a step, on a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.telemetry.late import LateReader
from otf_core.telemetry.metrics import METRICS
from otf_core.telemetry.recorder import Level, StepRecorder

torch.set_num_threads(1)


class Always:
    """A governor for whom everything is due, unless told otherwise."""

    def __init__(self) -> None:
        self.never: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.times_s: list[float] = []
        self.fixed_s: list[float] = []
        self.costs: list[str] = []

    def due(self, name: str, step: int) -> bool:
        self.asked.append((name, step))
        return name not in self.never

    def measure(self, name: str) -> Any:
        self.costs.append(name)
        return _Nothing()

    def record(self, name: str, _cost_s: float) -> None:
        self.costs.append(name)

    def fixed(self, seconds: float) -> None:
        self.fixed_s.append(seconds)

    def step_time(self, seconds: float) -> None:
        self.times_s.append(seconds)

    def cadence(self) -> dict[str, dict[str, Any]]:
        return {"grad_norm": {"every": 5, "unit": "step"}}


class _Nothing:
    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return


class Monitor:
    interval_s = 2.0

    def __init__(self) -> None:
        gpu = SimpleNamespace(mem_used_mib=512.0, util_pct=75.0)
        self.sample = SimpleNamespace(rss_mib=100.0, gpu=lambda n: gpu if n == 1 else None)

    def latest(self) -> Any:
        return self.sample


class Rig:
    """A linear layer and a ReLU whose numbers are known."""

    def __init__(self, level: Level = "full", **options: Any) -> None:
        self.now_s = 100.0
        self.events: list[dict[str, Any]] = []
        self.governor = Always()
        self.recorder = StepRecorder(
            self,
            level=level,
            governor=self.governor,  # type: ignore[arg-type]
            clock=lambda: self.now_s,
            **options,
        )
        self.module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        with torch.no_grad():
            self.module[0].weight.copy_(torch.tensor([[3.0], [-4.0]]))  # type: ignore[operator]
        self.logged: dict[str, Any] = {}

    def emit_later(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> None:
        self.events.append({"type": kind, **make()})

    def drain(self) -> None:
        return

    def batch(
        self, loss: Any = None, *, wait_s: float = 1.0, run_s: float = 3.0, size: int = 8
    ) -> None:
        """One batch up to its optimizer step."""
        self.recorder.fetching()
        self.now_s += wait_s
        self.recorder.batch_started(self.module)
        x = torch.ones(size, 1)
        out = self.module(x).sum()
        self.module.zero_grad()
        out.backward()
        self.now_s += run_s
        self.recorder.before_optimizer_step(self.module.parameters)
        self.recorder.batch_ended(out.detach() if loss is None else loss, x, self.module.parameters)

    def boundary(self, step: int, **options: Any) -> None:
        known = {"global_step": step, "epoch": 0, "lrs": lambda: [0.1, 0.2], "logged": self.logged}
        self.recorder.boundary(step=step, **{**known, **options})

    def step(self, step: int, **options: Any) -> dict[str, Any]:
        self.batch()
        self.boundary(step, **options)
        return self.events[-1]


def test_a_step_has_exactly_the_fields_of_the_table_with_their_values() -> None:
    rig = Rig(monitor=Monitor(), gpu=1)
    rig.logged = {"train_loss": torch.tensor(0.5), "acc": 0.25, "odd": "text"}

    event = rig.step(1, global_step=2, epoch=3)

    assert event == {
        "type": "trainStep",
        "step": 1,
        "global_step": 2,
        "epoch": 3,
        "loss": 0.5,
        "val_loss": None,
        "accuracy": 0.25,
        "lr": 0.1,
        "lrs": [0.1, 0.2],
        "grad_norm": 8.0,
        "weight_norm": 5.0,
        "activation_zero_frac": 0.5,
        "throughput": 2.0,
        "batches_per_s": 0.25,
        "data_wait_frac": 0.25,
        "mem_vram": 512.0,
        "gpu_util": 75.0,
        "ram_mb": 100.0,
        "metrics": {"train_loss": 0.5, "acc": 0.25, "odd": None},
    }
    assert set(event) - {"type"} == {metric.name for metric in METRICS}
    assert rig.recorder.latest == {"loss": 0.5, "accuracy": 0.25, "step": 1}
    assert rig.governor.times_s == [4.0]
    assert sorted(rig.governor.costs) == ["activation_zero_frac", "grad_norm", "weight_norm"]


def test_phases_of_a_step_are_told_among_its_metrics() -> None:
    rig, total_s = Rig(), {"forward": 5.0, "backward": 1.0}
    rig.recorder.time_phases(lambda: dict(total_s))
    total_s["forward"] += 0.25
    assert rig.step(1)["metrics"] == {"otf/forward_ms": 250.0, "otf/backward_ms": 0.0}
    total_s["backward"] += 0.5
    rig.recorder.rewind(1, {})
    total_s["backward"] += 0.125
    assert rig.step(2)["metrics"] == {"otf/forward_ms": 0.0, "otf/backward_ms": 125.0}


def test_where_nothing_is_logged_the_returned_loss_is_the_loss() -> None:
    assert Rig().step(1)["loss"] == 24.0


def test_without_a_sampler_or_a_gpu_its_counters_are_null() -> None:
    event = Rig().step(1)
    assert (event["mem_vram"], event["gpu_util"], event["ram_mb"]) == (None, None, None)
    event = Rig(monitor=Monitor()).step(1)
    assert (event["mem_vram"], event["ram_mb"]) == (None, 100.0)
    event = Rig(monitor=Monitor(), gpu=7).step(1)
    assert (event["mem_vram"], event["ram_mb"]) == (None, 100.0)


def test_while_gradients_accumulate_there_is_no_step_and_then_one_for_all_its_batches() -> None:
    rig = Rig()
    rig.batch(loss=torch.tensor(9.0), wait_s=1, run_s=1)
    rig.boundary(0)
    assert rig.events == []
    rig.now_s += 50  # what lies between two batches is not the step's
    rig.batch(loss=torch.tensor(1.0), wait_s=3, run_s=3)
    rig.boundary(1)
    rig.boundary(1)

    assert len(rig.events) == 1
    event = rig.events[0]
    assert (event["loss"], event["throughput"], event["batches_per_s"]) == (1.0, 2.0, 0.25)
    assert event["data_wait_frac"] == 0.5
    assert rig.governor.times_s == [8.0]


def test_the_norm_of_several_optimizers_is_that_of_all_their_gradients() -> None:
    rig = Rig()
    rig.recorder.fetching()
    for value in (3.0, 4.0):
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([value])
        rig.recorder.before_optimizer_step(lambda p=parameter: [p])  # type: ignore[misc]
    rig.recorder.batch_ended(None, None, rig.module.parameters)
    rig.boundary(1)

    assert rig.events[0]["grad_norm"] == 5.0


def test_a_value_of_another_step_is_never_shown() -> None:
    rig = Rig()
    rig.logged = {"train_loss": torch.tensor(0.5), "val_loss": torch.tensor(0.7)}
    rig.step(1)
    rig.governor.never = {"grad_norm", "weight_norm", "activation_zero_frac"}
    rig.logged["train_loss"] = torch.tensor(0.4)
    rig.recorder.fetching()
    rig.recorder.batch_started(rig.module)
    rig.recorder.batch_ended(None, None, rig.module.parameters)
    rig.boundary(2, lrs=list)
    event = rig.events[1]

    assert (event["loss"], event["val_loss"], event["metrics"]) == (
        pytest.approx(0.4),
        None,
        {"train_loss": pytest.approx(0.4)},
    )
    gone = ("grad_norm", "weight_norm", "activation_zero_frac", "lr", "throughput")
    assert [event[name] for name in gone] == [None] * 5
    assert (event["lrs"], event["batches_per_s"], event["data_wait_frac"]) == ([], None, None)
    assert rig.recorder.latest["val_loss"] == pytest.approx(0.7)


def test_the_validation_loss_stands_at_the_step_after_which_a_validation_ran_alone() -> None:
    rig = Rig()
    seen = []
    for step in range(1, 7):
        rig.logged["train_loss"] = torch.tensor(float(step))
        if step in (2, 5):
            rig.logged["val_loss"] = torch.tensor(step / 10)  # the same number is news as well
        seen.append(rig.step(step)["val_loss"])

    expected = [None, pytest.approx(0.2), None, None, pytest.approx(0.5), None]
    assert seen == expected


def test_a_validation_with_the_same_result_is_shown_again() -> None:
    rig = Rig()
    seen = []
    for step in (1, 2):
        rig.logged["val_loss"] = torch.tensor(0.5)
        seen.append(rig.step(step)["val_loss"])

    assert seen == [0.5, 0.5]


def test_a_loss_that_is_not_finite_is_what_it_is() -> None:
    rig = Rig()
    rig.batch(loss=torch.tensor(math.nan))
    rig.boundary(1)

    assert math.isnan(rig.events[0]["loss"])


def test_a_batch_that_was_cut_short_leaves_no_hooks_and_nothing_for_the_next_step() -> None:
    rig = Rig()
    rig.recorder.fetching()
    rig.recorder.batch_started(rig.module)
    rig.module(torch.zeros(2, 1))
    rig.recorder.before_optimizer_step(rig.module.parameters)
    assert rig.module[1]._forward_hooks
    rig.now_s += 99
    rig.recorder.abort()
    rig.recorder.abort()

    assert not rig.module[1]._forward_hooks
    event = rig.step(1)
    assert (event["activation_zero_frac"], event["grad_norm"]) == (0.5, 8.0)
    assert rig.governor.times_s == [4.0]


def test_basic_computes_nothing() -> None:
    rig = Rig("basic")
    event = rig.step(1)

    costly = ("grad_norm", "weight_norm", "activation_zero_frac")
    assert [event[name] for name in costly] == [None] * 3
    assert (event["loss"], event["throughput"]) == (24.0, 2.0)
    assert (rig.governor.asked, rig.governor.costs) == ([], [])


def test_off_says_nothing() -> None:
    rig = Rig("off")
    rig.batch()
    rig.boundary(1)
    rig.recorder.flush()

    assert (rig.events, rig.governor.asked, rig.recorder.latest) == ([], [], {})


def test_the_governor_is_asked_for_the_step_that_is_under_way() -> None:
    rig = Rig()
    rig.step(1)
    rig.step(2)

    assert {(name, step) for name, step in rig.governor.asked if name == "grad_norm"} == {
        ("grad_norm", 1),
        ("grad_norm", 2),
    }
    assert max(step for _, step in rig.governor.asked) == 2


class Event:
    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = True


class Device:
    """Parameters lie on it; a copy arrives when told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def is_late(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, nn.Parameter)

    def start_copy(self, source: torch.Tensor) -> tuple[torch.Tensor, Event]:
        self.events.append(Event())
        return source.clone(), self.events[-1]

    def give_back(self, host: torch.Tensor) -> None:
        return


def test_values_of_a_device_come_late_in_order_and_at_the_latest_when_flushed() -> None:
    rig, device = Rig(), Device()
    rig.recorder._late = LateReader(device)
    for step in (1, 2, 3):
        rig.batch(loss=nn.Parameter(torch.tensor(float(step))))
        rig.boundary(step)
        if step == 2:
            assert rig.events == []
            device.events[0].passed = True
    assert [(e["step"], e["loss"]) for e in rig.events] == [(1, 1.0)]

    rig.recorder.flush()
    rig.recorder.flush()

    assert [(e["step"], e["loss"]) for e in rig.events] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert rig.recorder.latest["step"] == 3


def test_the_cadence_is_that_of_governor_and_sampler() -> None:
    assert Rig(monitor=Monitor()).recorder.cadence()["ram_mb"] == {"every": 2.0, "unit": "s"}
    cadence = Rig().recorder.cadence()
    assert cadence["ram_mb"] == {"every": 1.0, "unit": "s"}
    assert cadence["grad_norm"] == {"every": 5, "unit": "step"}
    assert cadence["loss"] == {"every": 1, "unit": "step"}
    assert "val_loss" not in cadence


def test_what_telling_a_step_takes_is_told_to_the_governor() -> None:
    rig = Rig()
    rates = iter([0.25, 0.5, 0.125])  # binary fractions, so that the sums are exact

    def lrs() -> list[float]:
        rig.now_s += next(rates)
        return [0.1]

    for step in (1, 2, 3):
        rig.step(step, lrs=lrs)
        rig.boundary(step, lrs=lrs)  # a second look at the same step tells nothing

    # The batch's own time, 3 s, is not among it.
    assert rig.governor.fixed_s == [0.25, 0.5, 0.125]
