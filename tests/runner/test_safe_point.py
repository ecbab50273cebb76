"""Between two batches and at the end: what is there, and what may be changed there."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from otf_core.runner import Runner
from otf_core.runner.run import Run
from otf_core.state.rng import get_rng, set_rng
from tests.exact import data, models
from tests.exact.digest import differences, exact
from tests.exact.models import Net
from tests.runner.shapes import SHAPES, Shape
from tests.runner.sides import digest


def trained(shape: Shape, at_points: Callable[[Run], None] | None = None) -> Any:
    """Train a shape; ``at_points`` is called with the run before it begins."""
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    module = shape.module()
    datamodule = shape.datamodule() if shape.datamodule else None
    runner = Runner(device="cpu", **{"max_epochs": 2, "log_every_n_steps": 1, **shape.options})
    if at_points is not None:
        runner.prepare = at_points
    loaders = (
        {}
        if datamodule is not None or shape.train is None
        else {"train_loader": shape.train(), "val_loader": shape.val() if shape.val else None}
    )
    runner.fit(module, datamodule=datamodule, **loaders)
    run = runner.run
    assert run is not None
    end = digest(module, datamodule, run.optimizers, run.schedulers)
    end["metrics"] = {k: exact(v) for k, v in run.callback_metrics.items()}
    end["counters"] = {k: v for k, v in vars(run.counters).items() if k != "ahead"}
    return end


def places(shape: Shape) -> list[Any]:
    """What each safe point of a fit finds."""
    found: list[Any] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            c = run.counters
            found.append((c.epoch, c.batches_done, c.global_step, len(c.ahead)))
            return False

        run.between_batches = tick
        run.at_end = lambda: found.append("end")

    trained(shape, prepare)
    return found


def test_it_comes_before_every_batch_and_once_at_the_end() -> None:
    whole = [(e, b, e * 6 + b, 0) for e in range(2) for b in range(6)]
    assert places(Shape(Net)) == [*whole, "end"]


def test_a_batch_is_in_hand_where_the_loader_has_no_length() -> None:
    shape = Shape(Net, train=lambda: data.loader(data.Stream()))
    whole = [(e, b, e * 6 + b, 1) for e in range(2) for b in range(6)]
    assert places(shape) == [*whole, "end"]
    limited = Shape(Net, {"limit_train_batches": 3}, train=lambda: data.loader(data.Stream()))
    assert places(limited)[:3] == [(0, 0, 0, 0), (0, 1, 1, 0), (0, 2, 2, 0)]


def test_the_end_of_max_steps_is_told_behind_its_step() -> None:
    found = places(Shape(Net, {"max_steps": 8}))
    assert found[-3:] == [(1, 0, 6, 0), (1, 1, 7, 0), "end"]
    accumulated = places(Shape(Net, {"max_steps": 2, "accumulate_grad_batches": 3}))
    assert accumulated == [(0, b, b // 3, 0) for b in range(6)] + ["end"]


def test_it_finds_everything_of_the_batch_done() -> None:
    shape = SHAPES["plateau in mid-epoch"]
    told: list[str] = []

    class Tells(models.PlateauBySteps):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            told.append(f"batch {batch_idx}")

        def on_validation_end(self) -> None:
            told.append("validated")

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            told.append("scheduled")
            super().lr_scheduler_step(scheduler, metric)

    def prepare(run: Run) -> None:
        def tick() -> bool:
            told.append("safe point")
            return False

        run.between_batches = tick

    trained(Shape(Tells, {**shape.options, "max_epochs": 1, "num_sanity_val_steps": 0}), prepare)
    assert told == [
        *[part for b in range(3) for part in ("safe point", f"batch {b}")],
        *("safe point", "batch 3", "validated", "scheduled"),
        *("safe point", "batch 4", "safe point", "batch 5"),
    ]


@pytest.mark.parametrize("at", [1, 4, 7, 9])
def test_true_ends_the_fit_there_as_its_last_epoch_would(at: int) -> None:
    class Ends(Net):
        ends: tuple[str, ...] = ()

        def on_train_epoch_end(self) -> None:
            self.ends = (*self.ends, f"epoch {self.current_epoch}")

        def on_train_end(self) -> None:
            self.ends = (*self.ends, "train")

    modules: list[Ends] = []

    def make() -> Ends:
        modules.append(Ends())
        return modules[-1]

    def prepare(run: Run) -> None:
        count = iter(range(1, 99))
        run.between_batches = lambda: next(count) == at + 1

    end = trained(Shape(make, {"max_epochs": 5, "min_epochs": 3}), prepare)
    assert end["counters"]["global_step"] == at
    epochs = [f"epoch {e}" for e in range((at + 5) // 6)]
    assert modules[0].ends == (*epochs, "train")


def test_before_an_epochs_first_batch_true_leaves_no_epoch_end() -> None:
    def prepare(run: Run) -> None:
        run.between_batches = lambda: run.counters.global_step == 6

    end = trained(Shape(Net, {"max_epochs": 5}), prepare)
    assert (end["counters"]["epoch"], end["counters"]["global_step"]) == (1, 6)


LONGER = {
    "max_epochs": (SHAPES["cosine, batch norm"], {"max_epochs": 2}, {"max_epochs": 4}),
    "max_epochs, plateau": (SHAPES["plateau by epoch"], {"max_epochs": 1}, {"max_epochs": 3}),
    "max_epochs, stream": (SHAPES["stream, accumulation"], {"max_epochs": 1}, {"max_epochs": 3}),
    "max_steps in mid-epoch": (SHAPES["plain"], {"max_steps": 4}, {"max_steps": 9}),
    "max_steps at the epoch's end": (
        SHAPES["plateau by epoch"],
        {"max_steps": 6},
        {"max_steps": 9},
    ),
    "max_steps, accumulation": (
        SHAPES["accumulation with a short last"],
        {"max_steps": 1},
        {"max_steps": 3},
    ),
    "max_steps, metrics": (SHAPES["metrics by step and epoch"], {"max_steps": 4}, {"max_steps": 9}),
}


@pytest.mark.parametrize("name", LONGER)
def test_a_limit_raised_at_the_end_was_never_lower(name: str) -> None:
    shape, low, high = LONGER[name]
    options = {**shape.options, "max_epochs": 9}

    def prepare(run: Run) -> None:
        def raises() -> None:
            for limit, value in high.items():
                setattr(run, limit, value)

        run.at_end = raises

    longer = trained(Shape(**{**vars(shape), "options": {**options, **high}}))
    raised = trained(Shape(**{**vars(shape), "options": {**options, **low}}), prepare)
    assert differences(longer, raised) == []


class Snapshot:
    """All of a run with one loader that is not random inside, taken and put back in place."""

    def __init__(self, run: Run) -> None:
        parts: Any = run.parts[0]
        self.counters = copy.deepcopy(run.counters.state())
        self.weights = copy.deepcopy(parts.state_dict())
        self.optimizers = [copy.deepcopy(o.state_dict()) for o in run.optimizers]
        self.rng = get_rng()

    def apply(self, run: Run) -> None:
        run.parts[0].load_state_dict(self.weights)
        for optimizer, state in zip(run.optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
        run.counters.load(copy.deepcopy(self.counters))
        loop: Any = run.fit_loop
        iterator = iter(loop.loaders[0])
        for _ in range(run.counters.fetched):
            next(iterator)
        loop.batches.go_on(iterator)
        set_rng(self.rng)


@pytest.mark.parametrize(("taken", "put_back"), [(2, 4), (2, 9), (5, 6), (0, 11), (7, 8)])
@pytest.mark.parametrize("train", [data.Batches, lambda: iter_of(data.Batches())])
def test_counters_that_are_put_back_are_where_the_loop_goes_on(
    taken: int, put_back: int, train: Any
) -> None:
    shape = Shape(Net, train=train, val=None)
    steps: list[int] = []

    def prepare(run: Run) -> None:
        taken_at: list[Snapshot] = []

        def tick() -> bool:
            done = run.counters.global_step
            steps.append(done)
            if done == taken and not taken_at:
                taken_at.append(Snapshot(run))
            if done == put_back and len(taken_at) == 1:
                taken_at[0].apply(run)
                taken_at.append(taken_at[0])
            return False

        run.between_batches = tick

    straight = trained(shape)
    again = trained(shape, prepare)
    assert again["weights"] == straight["weights"]
    assert again["counters"] == straight["counters"]
    assert steps == [*range(put_back + 1), *range(taken + 1, 12)]


class iter_of:  # noqa: N801 -- a function to its callers
    """The same batches, and no length."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)


def test_every_loader_passes_through_the_tap() -> None:
    seen: list[Any] = []

    def prepare(run: Run) -> None:
        def tap(loader: Any) -> Any:
            seen.append(type(loader.sampler).__name__)
            return loader

        run.process_loader = tap

    trained(Shape(Net), prepare)
    assert seen == ["SequentialSampler", "RandomSampler"]
