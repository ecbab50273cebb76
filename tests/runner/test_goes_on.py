"""A fit that goes on from what was captured at a safe point, in new objects or in place, ends as
the one that was never interrupted: bit for bit, over the shapes of modules."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from otf_core.runner.run import Run
from tests.exact.digest import differences
from tests.runner.shapes import SHAPES
from tests.runner.test_safe_point import trained

# Those that are not among the configurations of tests/exact.
NAMES = (
    "data module with all hooks, tested",
    "by epoch, own hooks of the optimization",
    "two loaders, one of unknown length",
    "gan",
    "closure by hand",
    "lbfgs, accumulation",
    "dicts",
    "nones",
    "leaves the epoch",
    "stops after an epoch at least",
    "metrics, tested",
    "logs everywhere",
    "reads what is logged",
    "fp16 with a scaler",
    "fp16 by hand",
    "no optimizer",
    "built late",
    "modes",
    "stream with a limit",
    "own log",
    "monitors what is not there",
    "accumulation that changes",
    "a module within",
)
AT = (1, 7)


def delegate_of(run: Run) -> Any:
    [control] = [c for c in run.listening if hasattr(c, "delegate")]
    return control.delegate


def through_a_file(state: Any) -> Any:
    """As a checkpoint is: nothing but tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def captured(name: str) -> tuple[Any, dict[int, Any]]:
    """The end of a fit that captures itself, and what it captured before its n-th batch."""
    states: dict[int, Any] = {}

    def prepare(run: Run) -> None:
        def tick() -> bool:
            done = run.counters.total_batches
            if done in AT and done not in states:
                states[done] = through_a_file(delegate_of(run).capture())
            return False

        run.between_batches = tick

    return trained(SHAPES[name], prepare), states


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_goes_on_in_new_objects(name: str) -> None:
    straight = trained(SHAPES[name])
    end, states = captured(name)
    assert differences(straight, end) == [], "capturing left a trace"
    assert states
    for done, state in states.items():
        applied: list[Any] = []

        def prepare(run: Run, state: Any = state, applied: list[Any] = applied) -> None:
            def tick() -> bool:
                if not applied:
                    applied.append(delegate_of(run).apply(state))
                return False

            run.between_batches = tick

        assert differences(straight, trained(SHAPES[name], prepare)) == [], f"from {done}"
        assert not applied[0].lost


@pytest.mark.parametrize("name", NAMES[::2])
def test_a_fit_that_is_put_back_goes_on_as_if_it_had_not_been_further(name: str) -> None:
    straight = trained(SHAPES[name])
    states: list[Any] = []

    def prepare(run: Run) -> None:
        def tick() -> bool:
            done = run.counters.total_batches
            if done == 2 and not states:
                states.append(through_a_file(delegate_of(run).capture()))
            elif done in (4, 7) and len(states) == (1 if done == 4 else 2):
                states.append(states[0])
                delegate_of(run).apply(through_a_file(states[0]))
            return False

        run.between_batches = tick

    assert differences(straight, trained(SHAPES[name], prepare)) == []
