"""What is due when, under scripted costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core.telemetry.governor import (
    MAX_EVERY,
    WARM_UP,
    WARM_UP_EVERY,
    Governor,
    _Cost,
    _densen,
)

STEP_S = 0.01  # so that a budget of 1 % is 100 microseconds a step


def every(governor: Governor, name: str) -> int:
    found = governor.cadence()[name]["every"]
    assert isinstance(found, int)
    return found


def play(
    governor: Governor, costs_s: dict[str, float], steps: range, step_s: float = STEP_S
) -> dict[str, list[int]]:
    """A run: each step computes what is due, says what it cost, then ends."""
    done: dict[str, list[int]] = {name: [] for name in costs_s}
    for step in steps:
        for name, cost_s in costs_s.items():
            if governor.due(name, step):
                done[name].append(step)
                governor.record(name, cost_s)
        governor.step_time(step_s)
    return done


def test_every_metric_is_due_at_once_and_until_it_was_measured() -> None:
    governor = Governor(0.01)
    assert [governor.due("a", step) for step in (1, 1, 2, 4999)] == [True] * 4
    assert governor.cadence() == {}


def test_asking_what_is_due_changes_nothing() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 4e-4}, range(1, 40))
    assert every(governor, "a") == 4
    assert [
        step for step in range(40, 50) if governor.due("a", step) and governor.due("a", step)
    ] == [40, 44, 48]
    assert governor.due("a", 8)  # after a rollback the same steps are due again


def test_a_cheap_metric_is_computed_every_step() -> None:
    governor = Governor(0.01)
    assert play(governor, {"a": 1e-4}, range(1, 6)) == {"a": [1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("cost_s", "expected"),
    [
        (1.0e-4, 1),
        (1.01e-4, 2),
        (2e-4, 2),
        (2.01e-4, 4),
        (6.4e-3, 64),
        (6.41e-3, 128),
        (99.0, MAX_EVERY),
    ],
)
def test_the_interval_doubles_until_the_cost_fits_the_budget(cost_s: float, expected: int) -> None:
    governor = Governor(0.01)
    play(governor, {"a": cost_s}, range(1, 100))
    assert every(governor, "a") == expected


def test_the_sum_of_all_stays_within_the_budget_and_the_largest_share_is_thinned_first() -> None:
    governor = Governor(0.01)
    play(governor, {"cheap": 1e-5, "dear": 7e-4, "middle": 1e-4}, range(1, 200))
    found = {name: entry["every"] for name, entry in governor.cadence().items()}
    assert found == {"cheap": 1, "dear": 16, "middle": 4}


def test_cadence_tells_interval_cost_and_share() -> None:
    governor = Governor(0.01)
    governor.record("a", 4e-4)
    assert governor.cadence()["a"]["share_pct"] is None
    play(governor, {"a": 4e-4}, range(2, 40))
    found = governor.cadence()["a"]
    assert found == {
        "every": 4,
        "unit": "step",
        "cost_us": pytest.approx(400.0),
        "share_pct": pytest.approx(1.0),
    }


def test_a_slow_first_call_is_measured_again_soon_and_forgotten() -> None:
    governor = Governor(0.01)
    governor.step_time(STEP_S)
    governor.record("a", 2.0)  # it loaded something
    assert every(governor, "a") == WARM_UP_EVERY
    assert play(governor, {"a": 1e-5}, range(2, 12)) == {"a": [8, 9, 10, 11]}
    assert governor.cadence()["a"]["cost_us"] == pytest.approx(10.0)


def test_until_it_was_measured_three_times_a_metric_comes_at_least_every_eighth_step() -> None:
    governor = Governor(0.01)
    done = play(governor, {"a": 0.05}, range(1, 2049))["a"]
    assert done[:WARM_UP] == [1, 8, 16]
    assert done[WARM_UP:] == list(range(512, 2049, 512))


def test_one_outlier_does_not_silence_a_metric() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 4e-5}, range(1, 20))
    governor.record("a", 5.0)
    assert governor.cadence()["a"]["cost_us"] == pytest.approx(40 * (1 + 0.3 * 3))
    assert every(governor, "a") == 1


def test_a_cost_that_really_grew_is_followed() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 1e-5}, range(1, 20))
    play(governor, {"a": 1e-3}, range(20, 400))
    assert every(governor, "a") == 16


def test_it_comes_down_only_when_there_is_clearly_room() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 1.5e-4}, range(1, 100))
    assert every(governor, "a") == 2
    play(governor, {"a": 0.8e-4}, range(100, 300))  # would fit the budget, but not with room
    assert every(governor, "a") == 2
    play(governor, {"a": 0.69e-4}, range(300, 500))
    assert every(governor, "a") == 1


def test_a_cost_at_the_edge_does_not_flap() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 1e-4}, range(1, 50))
    seen = []
    for step in range(50, 450, 2):
        play(governor, {"a": 1.1e-4 if step % 4 else 0.9e-4}, range(step, step + 2))
        seen.append(every(governor, "a"))
    assert seen == sorted(seen)
    assert seen[-1] == 2


def test_what_is_cheapest_comes_back_first() -> None:
    light, heavy = _Cost(), _Cost()
    light.mean.value, heavy.mean.value = 4.0, 8.0
    light.every = heavy.every = 4
    _densen([heavy, light], 5.0)  # 3 of 5 are taken: room for one more of the light alone
    assert (light.every, heavy.every) == (2, 4)


def test_longer_steps_bring_the_metrics_back() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 1e-3}, range(1, 100))
    assert every(governor, "a") == 16
    for _ in range(200):
        governor.step_time(1.0)
    assert every(governor, "a") == 1


def test_shorter_steps_thin_them_without_a_new_measurement() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 1e-3}, range(1, 10), step_s=1.0)
    assert every(governor, "a") == 1
    for _ in range(200):
        governor.step_time(STEP_S)
    assert every(governor, "a") == 16


def test_what_cannot_be_computed_is_recorded_as_free_and_takes_nothing() -> None:
    governor = Governor(0.01)
    play(governor, {"none": 0.0, "a": 1e-4}, range(1, 50))
    assert governor.cadence()["none"]["every"] == 1
    assert governor.cadence()["none"]["share_pct"] == 0.0
    assert every(governor, "a") == 1


def test_a_metric_that_was_free_and_then_costs_is_seen() -> None:
    governor = Governor(0.01)
    play(governor, {"a": 0.0}, range(1, 10))
    play(governor, {"a": 8e-4}, range(10, 200))
    assert every(governor, "a") == 8


def test_a_measured_block_is_recorded_even_if_it_raises() -> None:
    ticks = iter([1.0, 1.5, 2.0, 2.25])
    governor = Governor(0.01, clock=lambda: next(ticks))
    with governor.measure("a"):
        pass
    assert governor.cadence()["a"]["cost_us"] == 500_000.0
    with pytest.raises(KeyError), governor.measure("a"):
        raise KeyError
    assert governor.cadence()["a"]["cost_us"] == 250_000.0


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.1])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=rf"asked to be {budget}; allowed: 0 < budget <= 1"):
        Governor(budget)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(1e-7, 2e-3), min_size=1),
    st.floats(1e-3, 1.0),
)
def test_any_steady_costs_end_within_the_budget_or_as_thin_as_can_be(
    costs_s: dict[str, float], step_s: float
) -> None:
    governor = Governor(0.01)
    play(governor, costs_s, range(1, 200), step_s)
    cadence = governor.cadence()
    share_pct = sum(entry["share_pct"] for entry in cadence.values())
    assert share_pct <= 1.0 + 1e-9 or all(e["every"] == MAX_EVERY for e in cadence.values())
    assert all(entry["every"] & (entry["every"] - 1) == 0 for entry in cadence.values())


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1)), max_size=60))
def test_the_same_costs_give_the_same_plan(script: list[tuple[str, float]]) -> None:
    def run() -> list[object]:
        governor = Governor(0.01)
        tape: list[object] = []
        for step, (name, cost_s) in enumerate(script, 1):
            tape.append(governor.due(name, step))
            governor.record(name, cost_s)
            governor.step_time(STEP_S)
        return [*tape, governor.cadence()]

    assert run() == run()


@pytest.mark.parametrize(
    ("fixed_s", "expected"),
    [
        (0.0, 4),  # 100 us are allowed: 4e-4 / 4
        (49e-6, 8),  # 51 us: / 8 is 50
        (51e-6, 16),  # 49 us
        (74e-6, 16),  # 26 us: / 16 is 25
        (76e-6, 16),  # 24 us would be left; a quarter of the budget is kept, 25
        (5.0, 16),
    ],
)
def test_what_is_taken_at_every_step_comes_out_of_the_budget_down_to_a_quarter(
    fixed_s: float, expected: int
) -> None:
    governor = Governor(0.01)
    for step in range(1, 200):
        if governor.due("a", step):
            governor.record("a", 4e-4)
        governor.fixed(fixed_s)
        governor.step_time(STEP_S)
    assert every(governor, "a") == expected
