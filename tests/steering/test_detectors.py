"""Detectors find what they are for, nothing else, and the same after they were put away."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core.health.spikes import LEAST, WINDOW, Z, spikes
from otf_core.steering import detectors
from otf_core.steering.detectors import WATCHES, Detector

LOSSES = st.floats(-1e6, 1e6, allow_nan=False)
ANY = st.one_of(LOSSES, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]))


def made(watch: str, **given: Any) -> Detector:
    defaults = {name: setting.default for name, setting in WATCHES[watch].settings.items()}
    return WATCHES[watch].make(**{**defaults, **given})


def found(detector: Detector, values: list[float]) -> list[int]:
    """At which of them it was wrong."""
    return [at for at, value in enumerate(values) if detector.see(value)]


def steady(count: int) -> list[float]:
    return [1.0 + 0.1 * math.sin(n) for n in range(count)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_is_what_is_not_finite(value: float) -> None:
    assert found(made("nan"), [1.0, value, -1e308, 0.0]) == [1]
    assert made("nan").why("loss", value) == f"loss is {value}"


def test_a_spike_is_above_the_bound_that_it_says() -> None:
    spike = made("spike")
    values = steady(30)
    assert found(spike, values) == []
    median = statistics.median(values)
    mad = statistics.median(abs(value - median) for value in values)
    bound = median + 6 * mad / 0.6745
    assert not spike.see(bound - 1e-9)
    spike = made("spike")
    found(spike, values)
    assert spike.see(bound + 1e-9)
    assert spike.bound == pytest.approx(bound, rel=1e-12)
    assert spike.why("loss", bound + 1e-9) == (
        f"loss is {bound:.4g}, above {bound:.4g} by the 30 before it"
    )


def test_the_first_values_are_no_spike_and_what_hardly_moves_has_a_floor() -> None:
    assert found(made("spike"), [1.0] * 9 + [100.0]) == []
    assert found(made("spike"), [1.0] * 10 + [100.0]) == [10]
    # A hundredth of the median stands for MAD: 6 * 0.01 / 0.6745 above it.
    assert found(made("spike"), [1.0] * 10 + [1.088]) == []
    assert found(made("spike"), [1.0] * 10 + [1.090]) == [10]
    assert found(made("spike"), [1.0] * 10 + [math.inf, math.nan, -50.0]) == []


def test_a_spike_is_forgotten_when_its_window_is() -> None:
    spike = made("spike", window=10)
    assert found(spike, [1.0] * 10 + [2.0] * 12) == [10, 11, 12, 13, 14]
    assert spike.state() == {"window": [2.0] * 10}


@given(st.lists(LOSSES, max_size=150))
def test_spikes_are_those_of_the_check_of_the_runs_health(values: list[float]) -> None:
    steps = [each["step"] for each in spikes(list(enumerate(values)))]
    spike = made("spike")
    assert (spike_settings := WATCHES["spike"].settings)["z"].default == Z
    assert spike_settings["window"].default == WINDOW
    assert detectors.LEAST == LEAST
    assert found(spike, values) == steps


@given(st.lists(LOSSES, min_size=1, max_size=60))
def test_median_and_mad_are_those_of_the_book(values: list[float]) -> None:
    ordered = sorted(values)
    median = statistics.median(values)
    assert detectors._median(ordered) == median
    mad = statistics.median(abs(value - median) for value in values)
    assert detectors._mad(ordered, median) == mad


def test_a_plateau_is_patience_values_without_a_better_one() -> None:
    plateau = made("plateau", patience=3, min_delta=0.1)
    assert found(plateau, [1.0, 0.8, 0.75, 0.75]) == []  # 0.72 would have been better
    assert plateau.see(0.73)
    assert plateau.bound == pytest.approx(0.72)
    assert plateau.why("val_loss", 0.73) == ("val_loss is 0.73, no better than 0.8 for 3 values")
    plateau.fired()
    assert found(plateau, [0.73, 0.73, 0.73, 0.7]) == [2]
    assert found(plateau, [math.nan, math.nan, math.nan]) == [2]


def test_a_plateau_of_what_is_to_grow() -> None:
    plateau = made("plateau", patience=2, mode="max")
    assert found(plateau, [0.5, 0.6, 0.6, 0.7, 0.7, 0.6]) == [5]
    assert plateau.bound == pytest.approx(0.7 * (1 + 1e-4))


@given(st.lists(LOSSES, max_size=60), st.integers(1, 5))
def test_a_plateau_is_the_patience_of_torch(values: list[float], patience: int) -> None:
    """ReduceLROnPlateau lowers at one more than its patience; ours is told at it."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=1e-4, eps=0.0
    )
    plateau, ours, theirs, rate = made("plateau", patience=patience), [], [], 1.0
    # torch's relative threshold means the opposite below 0.
    for at, value in enumerate(map(abs, values)):
        if plateau.see(value):
            plateau.fired()
            ours.append(at)
        schedule.step(value)
        if (now := optimizer.param_groups[0]["lr"]) != rate:
            rate = now
            theirs.append(at)
    assert ours == theirs


def test_overfitting_is_a_worse_validation_while_the_training_gets_better() -> None:
    overfit = made("overfit", alpha=10.0, times=2)
    told: list[bool] = []
    for trained, value in [(1.0, 1.0), (0.9, 0.9), (0.8, 1.0), (0.7, 1.1)]:
        overfit.beside(trained)
        told.append(overfit.see(value))
    assert told == [False, False, False, True]
    assert overfit.bound == pytest.approx(0.99)
    assert overfit.why("val_loss", 1.1) == (
        "val_loss is 1.1, its best was 0.9, and the training loss still falls"
    )


@pytest.mark.parametrize(
    "rows",
    [
        [(1.0, 1.0), (1.1, 1.2), (1.2, 1.3)],  # the training gets worse as well
        [(1.0, 1.0), (0.9, 1.04), (0.8, 1.05)],  # not by so much
        [(1.0, 1.0), (0.9, 1.2), (0.8, 1.01), (0.7, 1.2)],  # not twice in a row
        [(1.0, 1.0), (0.9, math.nan), (0.8, math.inf), (0.7, 1.2)],  # no number counts for none
        [(None, 1.0), (None, 1.2), (None, 1.3)],  # nothing is known of the training
    ],
)
def test_what_is_no_overfitting(rows: list[tuple[float | None, float]]) -> None:
    overfit = made("overfit", alpha=5.0, times=2)
    for trained, value in rows:
        if trained is not None:
            overfit.beside(trained)
        assert not overfit.see(value)


def test_overfitting_of_an_accuracy() -> None:
    overfit = made("overfit", alpha=5.0, times=1, mode="max")
    overfit.beside(1.0)
    assert not overfit.see(0.8)
    overfit.beside(0.5)
    assert not overfit.see(0.77)
    overfit.beside(0.4)
    assert overfit.see(0.75)
    assert overfit.bound == pytest.approx(0.76)


def test_a_limit_is_passed_so_many_times_in_a_row() -> None:
    limit = made("limit", above=2.0, below=-1.0, times=2)
    assert found(limit, [2.0, 2.1, 2.0, 2.1, -1.1, -1.0, -1.1]) == [4]
    assert limit.bound == -1.0
    assert found(made("limit", above=0.5), [0.5, 0.51, math.nan]) == [1]
    limit = made("limit", above=2.0)
    limit.see(3.0)
    assert limit.why("norm", 3.0) == "norm is 3, above 2"


@pytest.mark.parametrize(
    "watch",
    ["nan", "spike", "plateau", "overfit", "limit"],
)
@given(values=st.lists(st.tuples(ANY, ANY), max_size=80), cut=st.integers(0, 80))
def test_put_away_and_taken_up_again_it_finds_the_same(
    watch: str, values: list[tuple[float, float]], cut: int
) -> None:
    given = {"spike": {"window": 12}, "plateau": {"patience": 3}, "limit": {"above": 0.5}}
    one, other = made(watch, **given.get(watch, {})), made(watch, **given.get(watch, {}))
    for at, (value, trained) in enumerate(values):
        if at == cut:
            state = other.state()
            assert _plain(state)
            other = made(watch, **given.get(watch, {}))
            other.load(state)
        one.beside(trained)
        other.beside(trained)
        told = one.see(value), other.see(value)
        assert told[0] == told[1]
        if told[0]:
            assert one.bound == other.bound
            assert one.why("x", value) == other.why("x", value)
            one.fired()
            other.fired()


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(v) for key, v in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, int | float | str)
