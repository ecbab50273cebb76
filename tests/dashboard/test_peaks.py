"""Curves for the screen: what they show is what the rows hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core.dashboard.columns import Columns, kept_rows
from otf_core.dashboard.peaks import curves
from tests.dashboard.bench import TOKEN, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble

Rows = list[tuple[int, float | None]]
TURNS = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.none() | st.integers(-9, 9).map(float), max_size=40)),
    min_size=1,
    max_size=4,
)


def told(turns: Any) -> list[Columns]:
    """Two sessions; each tells of some steps, and turns back to tell of some anew."""
    sessions = [Columns(), Columns()]
    for gen, (start, values) in enumerate(turns):
        columns = sessions[gen % 2]
        for at, value in enumerate(values, start=start):
            seq = len(columns) + 1
            columns.add({"event_seq": seq, "step": at, "ts": 0.0, "run_gen": gen, "loss": value})
    return sessions


@given(TURNS, st.integers(1, 70), st.none() | st.integers(0, 50), st.none() | st.integers(0, 110))
def test_a_curve_has_the_extremes_of_each_bucket_and_both_ends(
    turns: Any, buckets: int, low: int | None, high: int | None
) -> None:
    views = [columns.view(["loss"]) for columns in told(turns)]
    rows = [
        (view.step[row], view.values["loss"][row], view.seq[row], index)
        for index, (view, ranges) in enumerate(kept_rows(views))
        for rows in ranges
        for row in rows
        if (low is None or view.step[row] >= low) and (high is None or view.step[row] <= high)
        if "loss" in view.values
    ]
    found = curves(views, ["loss"], low=low, high=high, buckets=buckets)
    series = found.series["loss"]
    points = list(
        zip(series["step"], series["value"], series["seq"], series["session"], strict=True)
    )
    real = [row for row in rows if not math.isnan(row[1])]
    assert set(points) <= set(real)
    assert points == sorted(points, key=lambda point: (point[0], point[3], point[2]))
    assert len(points) <= 2 * buckets + 2
    by_bucket: dict[int, list[float]] = {}
    for at, value, _, _ in real:
        by_bucket.setdefault(at // found.bucket_steps, []).append(value)
    for bucket, values in by_bucket.items():
        shown = [v for at, v, _, _ in points if at // found.bucket_steps == bucket]
        assert (min(shown), max(shown)) == (min(values), max(values))
    if real:
        assert (points[0], points[-1]) == (real[0], real[-1])


@pytest.mark.parametrize(
    ("first", "last", "buckets", "steps"),
    [(1, 900, 900, 1), (1, 901, 900, 2), (0, 1023, 512, 2), (1, 1024, 512, 4),
     (1, 10**6, 900, 2048), (10**15, 10**15 + 10, 2, 8), (5, 5, 1, 1)],
)  # fmt: skip
def test_a_bucket_is_the_smallest_power_of_two_that_fits(
    first: int, last: int, buckets: int, steps: int
) -> None:
    columns = Columns()
    for seq, at in enumerate((first, last), start=1):
        columns.add({"event_seq": seq, "step": at, "ts": 0.0, "loss": 1.0})
    found = curves([columns.view()], ["loss"], low=None, high=None, buckets=buckets)
    assert (found.first, found.last) == (first, last)
    assert found.bucket_steps == steps


def test_a_bucket_that_begins_without_a_value_has_its_extremes_all_the_same() -> None:
    columns = Columns()
    for seq, value in enumerate([None, 3.0, 1.0, 5.0, None, 2.0], start=1):
        columns.add({"event_seq": seq, "step": 8, "ts": 0.0, "loss": value})
    found = curves([columns.view()], ["loss"], low=None, high=None, buckets=1)
    assert found.series["loss"]["value"] == [3.0, 1.0, 5.0, 2.0]


def test_full_buckets_stay_as_they_are_while_the_run_goes_on() -> None:
    columns = Columns()
    shown = []
    for at in range(1, 1501):
        columns.add({"event_seq": at, "step": at, "ts": 0.0, "loss": math.sin(at)})
        if at in (1200, 1500):
            found = curves([columns.view()], ["loss"], low=0, high=1999, buckets=100)
            shown.append([at for at in found.series["loss"]["step"] if at < 1184])
    assert shown[0] == shown[1]


@in_loop
async def test_the_api_answers_with_curves(tmp_path: Path) -> None:
    trainer = TrainerDouble("sess-1", token=TOKEN)
    trainer.begin()
    trainer.train(500)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", len(trainer.events))
        found = await bench.get("api/runs/digits/metrics?names=loss,nope&buckets=50")
        assert (found["from"], found["to"], found["bucket_steps"]) == (1, 500, 16)
        assert (found["total"], found["session_ids"]) == (500, ["sess-1"])
        told = {e["event_seq"]: e for e in trainer.events}
        loss = found["series"]["loss"]
        for at, value, seq in zip(loss["step"], loss["value"], loss["seq"], strict=True):
            assert (told[seq]["step"], told[seq]["loss"]) == (at, value)
        assert 32 <= len(loss["step"]) <= 102
        assert found["series"]["nope"] == {"step": [], "value": [], "seq": [], "session": []}
        part = await bench.get("api/runs/digits/metrics?names=loss&buckets=50&from=100&to=120")
        assert part["series"]["loss"]["step"] == list(range(100, 121))
        for wrong in ("buckets=0", "buckets=2001", "buckets=x", "buckets=9&from=-1"):
            answer = await bench.http.get(f"api/runs/digits/metrics?{wrong}")
            assert answer.status_code == 400, wrong
