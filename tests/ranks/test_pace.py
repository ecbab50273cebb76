"""How fast a rank trains, from the moments that its training thread passes."""

from __future__ import annotations

from typing import Any

import torch

from otf_core.ranks import pace as module
from otf_core.ranks.pace import KEPT, Pace


class Trains:
    def __init__(self, **more: Any) -> None:
        self.now_s, self.step = 50.0, 0
        self.pace = Pace(clock=lambda: self.now_s, **more)
        self.pace.arrives(0)
        self.pace.leaves()

    def batch(
        self, wait_s: float, work_s: float, stand_s: float = 0.0, *, steps: bool = True
    ) -> None:
        self.now_s += wait_s
        self.pace.batch_started()
        self.now_s += work_s
        self.pace.batch_ended(torch.tensor(0.5))
        self.step += steps
        self.pace.arrives(self.step)
        self.now_s += stand_s
        self.pace.leaves()


def test_before_the_first_step_there_are_no_figures() -> None:
    figures = Trains().pace.figures()
    assert figures.pop("step") == 0
    assert set(figures.values()) == {None}


def test_a_step_is_what_it_took_without_what_the_run_stood() -> None:
    run = Trains()
    for n in range(100):
        run.batch(0.010, 0.090 if n % 10 else 0.190, stand_s=1000.0 if n == 50 else 0.0)
    figures = run.pace.figures()
    assert (figures["step"], figures["step_ms"], figures["data_wait_ms"]) == (100, 100.0, 10.0)
    assert figures["step_ms_p95"] == 200.0
    assert figures["wait_ms"] is None


def test_batches_that_are_gathered_are_one_step() -> None:
    run = Trains()
    for n in range(8):
        run.batch(0.001, 0.009, steps=n % 4 == 3)
    assert run.pace.figures()["step_ms"] == 40.0
    assert run.pace.figures()["data_wait_ms"] == 4.0


def test_only_the_newest_steps_count() -> None:
    run = Trains()
    for work_s in [0.5] * KEPT + [0.1] * KEPT:
        run.batch(0.0, work_s)
    assert run.pace.figures()["step_ms_p95"] == 100.0


def test_a_rollback_is_no_step() -> None:
    run = Trains()
    run.batch(0.0, 0.1)
    run.pace.arrives(0)
    run.step = 0
    run.batch(0.0, 0.3)
    assert run.pace.figures()["step"] == 1
    assert run.pace._count == 2


def test_what_is_waited_for_others_is_a_mean_since_it_was_last_asked() -> None:
    waited = [10.0]
    run = Trains(waited_s=lambda: waited[0])
    assert run.pace.figures()["wait_ms"] is None
    for _ in range(4):
        run.batch(0.0, 0.1)
    waited[0] += 0.2
    assert run.pace.figures()["wait_ms"] == 50.0
    assert run.pace.figures()["wait_ms"] is None  # no step since


def test_a_loss_is_taken_when_a_beat_has_asked_and_read_when_it_is_there(monkeypatch: Any) -> None:
    taken: list[Any] = []

    class Late(module.LateReader[None]):
        def put(self, tag: None, values: Any) -> None:
            taken.append(values["loss"])
            super().put(tag, values)

    monkeypatch.setattr(module, "LateReader", Late)
    run = Trains()
    for _ in range(10):
        run.batch(0.0, 0.1)
    assert taken == []
    assert run.pace.figures()["loss"] is None
    for _ in range(10):
        run.batch(0.0, 0.1)
    assert len(taken) == 1
    assert run.pace.figures()["loss"] == 0.5
