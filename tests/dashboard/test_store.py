"""What is kept, in what bounds."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core.dashboard import columns as columns_module
from otf_core.dashboard import store as store_module
from otf_core.dashboard.columns import Columns, pick
from otf_core.dashboard.store import Ranges, Store


def step(seq: int, **values: Any) -> dict[str, Any]:
    return {"type": "trainStep", "step": seq, "event_seq": seq, "ts": float(seq), **values}


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8))))
def test_ranges_hold_what_a_set_would(spans: list[tuple[int, int]]) -> None:
    ranges, plain = Ranges(), set[int]()
    for first, length in spans:
        ranges.add(first, first + length)
        plain |= set(range(first, first + length + 1))
    assert {n for n in range(80) if n in ranges} == plain
    assert ranges.highest == max(plain, default=0)
    assert ranges.contiguous == next(n for n in range(80) if n + 1 not in plain)
    holes = {n for a, b in ranges.missing(3, 50) for n in range(a, b + 1)}
    assert holes == set(range(3, 51)) - plain


def test_a_missing_or_foreign_value_is_null_and_a_number_is_kept_exactly() -> None:
    columns = Columns()
    columns.add(step(1, loss=0.1, flag=True, text="x", nested=[1]))
    columns.add(step(2, loss=None, metrics={"aux": 3, "loss": 9.0}))
    columns.add(step(3, metrics={"aux": None}))
    picked = pick([columns.view()], ["loss", "aux", "flag"], low=0, high=None, points=100)
    assert picked.columns["loss"] == [0.1, None, None]
    assert picked.columns["aux"] == [None, 3.0, None]
    assert picked.columns["flag"] == [None] * 3
    assert columns.names == ["loss", "aux"]


def test_rows_that_come_late_are_put_in_their_place() -> None:
    columns = Columns()
    for seq in (1, 5, 6, 2, 3, 4):
        columns.add(step(seq, loss=float(seq), run_gen=seq))
    assert list(columns.view().seq) == [1, 2, 3, 4, 5, 6]
    assert list(columns.view().values["loss"]) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert list(columns.rows_after(4)) == [4, 5]
    assert [e["run_gen"] for e in columns.events(range(6), {})] == [1, 2, 3, 4, 5, 6]


def test_over_the_bound_the_older_half_is_thinned_and_rare_values_stay() -> None:
    columns = Columns(max_rows=100)
    for seq in range(1, 102):
        columns.add(step(seq, loss=1.0, val_loss=0.5 if seq % 10 == 0 else None))
    seqs = list(columns.view().seq)
    assert columns.thinned
    assert len(seqs) == 101 - 25
    assert seqs[-51:] == list(range(51, 102))  # the newer half is whole
    assert {10, 20, 30, 40, 50} <= set(seqs)
    for seq in range(102, 2000):
        columns.add(step(seq, loss=1.0))
        assert len(columns) <= 100
    assert columns.view().seq[-1] == 1999
    assert columns.view().seq[0] < 500


def test_names_and_cells_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "MAX_NAMES", 3)
    monkeypatch.setattr(columns_module, "MAX_CELLS", 70)
    columns = Columns()
    for seq in range(1, 40):
        columns.add(step(seq, **{f"m{seq}": 1.0}))
    assert columns.names == ["m1", "m2", "m3"]
    assert len(columns) <= 10


def test_thinned_rows_hold_the_extremes_of_every_bucket() -> None:
    columns = Columns()
    for seq in range(1, 10_001):
        columns.add(step(seq, loss=math.sin(seq / 50), spike=7.0 if seq == 5555 else None))
    picked = pick([columns.view()], ["loss", "spike"], low=0, high=None, points=400)
    assert (picked.total, picked.thinned) == (10_000, True)
    assert len(picked.columns["step"]) <= 402
    assert picked.columns["step"] == sorted(picked.columns["step"])
    assert picked.columns["step"][0] == 1
    assert picked.columns["step"][-1] == 10_000
    assert picked.columns["spike"].count(7.0) == 1
    losses = [math.sin(seq / 50) for seq in range(1, 10_001)]
    assert max(picked.columns["loss"]) == max(losses)
    assert min(picked.columns["loss"]) == min(losses)
    assert [math.sin(s / 50) for s in picked.columns["step"]] == picked.columns["loss"]


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_few_rows_are_not_thinned(rows: int) -> None:
    columns = Columns()
    for seq in range(1, rows + 1):
        columns.add(step(seq, loss=1.0))
    picked = pick([columns.view()], ["loss"], low=0, high=None, points=3)
    assert (picked.total, picked.thinned) == (rows, False)
    assert picked.columns["step"] == list(range(1, rows + 1))


def _event(seq: int, kind: str) -> dict[str, Any]:
    return {"type": kind, "event_seq": seq, "run_id": "r"}


def test_of_too_many_events_chatter_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_EVENTS", 100)
    store = Store()
    session = store.session("s")
    for seq in range(1, 101):
        store.add(session, _event(seq, "note" if seq <= 50 else "log"), b"x" * 10)
    store.add(session, _event(101, "log"), b"x" * 10)
    assert [e["event_seq"] for e in session.events] == [*range(1, 51), *range(61, 102)]
    for seq in range(102, 300):
        store.add(session, _event(seq, "note"), b"x" * 10)
    assert len(session.events) <= 100
    assert {e["type"] for e in session.events} == {"note"}
    assert session.event_bytes == 10 * len(session.events)


def test_an_event_is_kept_once_however_often_it_comes() -> None:
    store = Store()
    session = store.session("s")
    for _ in range(3):
        store.add(session, step(1, run_id="r", loss=1.0), b"{}")
        store.add(session, _event(2, "note"), b"{}")
    [run] = store.runs.values()
    assert len(run.columns["s"]) == 1
    assert len(session.events) == 1
    assert session.fed == 2


def test_a_resumed_run_is_one_run_of_two_sessions() -> None:
    store = Store(max_rows=100)
    for session_id in ("a", "b"):
        session = store.session(session_id)
        started = {"type": "session_started", "project": "p", "run_name": "n"}
        store.add(session, {**started, "run_id": "r", "event_seq": 1, "ts": 1.0}, b"")
        for seq in range(2, 82):
            store.add(session, step(seq, run_id="r", loss=1.0), b"")
    [run] = store.runs.values()
    assert run.session_ids == ["a", "b"]
    assert sum(len(columns) for columns in run.columns.values()) <= 100
    assert len(run.columns["b"]) == 80  # the older session is thinned


def test_runs_of_one_name_in_two_projects_are_two() -> None:
    store = Store()
    for project in ("p", "q"):
        session = store.session(project)
        started = {"type": "session_started", "project": project, "run_name": "n", "run_id": "r"}
        store.add(session, {**started, "event_seq": 1, "ts": 1.0}, b"")
    assert sorted(store.runs) == [("p", "r"), ("q", "r")]
    found = store.find_run("r", "p")
    assert found is not None
    assert found.project == "p"


def test_a_summary_knows_the_best_and_passes_over_what_is_no_number() -> None:
    store = Store()
    session = store.session("s")
    for seq, val_loss in enumerate((0.5, 0.3, None, 0.4, math.nan), start=1):
        store.add(session, step(seq, run_id="r", val_loss=val_loss), b"")
    store.add(session, {"type": "epoch_end", "val_loss": 0.2, "event_seq": 6, "run_id": "r"}, b"")
    [run] = store.runs.values()
    assert run.summary == {
        "step": 5, "loss": None, "val_loss": 0.2, "best_val_loss": 0.2, "best_val_step": 5,
    }  # fmt: skip


ODD = (
    st.none()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers())
)


@given(
    st.lists(ODD, min_size=1, max_size=8),
    st.sampled_from([*sorted(store_module._REDUCERS), "trainStep", "x"]),
)
def test_no_event_of_a_trainer_can_break_the_store(values: list[Any], kind: str) -> None:
    store = Store()
    session = store.session("s")
    fields = (
        "run_id", "parents", "meta", "path", "state", "step", "epoch", "val_loss", "ts", "id",
        "metrics", "status", "event_seq", "project", "run_name", "run_dir", "run_gen", "loss",
    )  # fmt: skip
    odd = {name: values[at % len(values)] for at, name in enumerate(fields)}
    store.add(session, {**odd, "type": kind}, b"{}")
    store.history(session, 0, 10)
    msgspec.json.encode([session.to_json(), *(run.to_json() for run in store.runs.values())])


def curve(*columns: Columns) -> list[tuple[int, float]]:
    picked = pick([c.view() for c in columns], ["loss"], low=0, high=None, points=10_000).columns
    return list(zip(picked["step"], picked["loss"], strict=True))


def test_a_later_generation_supersedes_from_its_first_step_on() -> None:
    columns = Columns()
    told = [(1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 0, 4), (5, 1, 3), (6, 1, 4), (7, 2, 4)]
    for seq, gen, at in told:
        columns.add({**step(seq, loss=float(seq), run_gen=gen), "step": at})
    assert curve(columns) == [(1, 1.0), (2, 2.0), (3, 5.0), (4, 7.0)]
    columns.turn_back(8, 2)
    assert curve(columns) == [(1, 1.0), (2, 2.0)]
    assert len(columns) == 7  # nothing is lost: another reading of it is possible


def test_the_first_steps_of_a_generation_may_come_last() -> None:
    columns = Columns()
    told = [(1, 0, 1), (2, 0, 2), (3, 0, 3), (6, 1, 3), (7, 1, 4), (5, 1, 2)]
    for seq, gen, at in told:
        columns.add({**step(seq, loss=float(seq), run_gen=gen), "step": at})
    assert curve(columns) == [(1, 1.0), (2, 5.0), (3, 6.0), (4, 7.0)]


def test_a_trainer_without_generations_that_goes_back_is_understood() -> None:
    columns = Columns()
    for seq, at in enumerate((1, 2, 3, 2, 3, 4), start=1):
        columns.add({**step(seq, loss=float(seq)), "step": at})
    assert curve(columns) == [(1, 1.0), (2, 4.0), (3, 5.0), (4, 6.0)]


def test_a_later_session_supersedes_and_may_go_back_before_its_own_start() -> None:
    first, second = Columns(), Columns()
    for at in range(1, 11):
        first.add({**step(at, loss=1.0), "step": at})
    for seq, at in enumerate((8, 9), start=2):
        second.add({**step(seq, loss=2.0, run_gen=1), "step": at})
    assert [s for s, loss in curve(first, second) if loss == 1.0] == [*range(1, 8)]
    second.turn_back(4, 5)
    assert curve(first, second) == [(at, 1.0) for at in range(1, 6)]
    second.add({**step(5, loss=3.0, run_gen=2), "step": 6})
    assert curve(first, second)[-1] == (6, 3.0)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), max_size=6))
def test_what_is_kept_is_what_was_told_last_of_each_step(turns: list[tuple[int, int]]) -> None:
    columns = Columns()
    seq, last = 0, dict[int, float]()
    for gen, (start, count) in enumerate(turns):
        last = {at: value for at, value in last.items() if at < start}
        for at in range(start, start + count):
            seq += 1
            columns.add({**step(seq, loss=float(seq), run_gen=gen), "step": at})
            last[at] = float(seq)
    assert curve(columns) == sorted(last.items())


def test_a_best_validation_that_was_undone_is_best_no_more() -> None:
    store = Store()
    session = store.session("s")
    for seq, val_loss in enumerate((0.5, 0.4, 0.2, 0.3), start=1):
        store.add(session, step(seq, run_id="r", val_loss=val_loss), b"")
    [run] = store.runs.values()
    assert run.to_json()["summary"]["best_val_step"] == 3
    back = {"type": "checkpoint_loaded", "step": 2, "path": "p", "event_seq": 5, "run_id": "r"}
    store.add(session, {**back, "run_gen": 1}, b"")
    assert session.step == 2
    assert run.to_json()["summary"] == {
        "step": 2, "loss": None, "val_loss": 0.4, "best_val_loss": 0.4, "best_val_step": 2,
    }  # fmt: skip
    again = step(6, run_id="r", val_loss=0.35, run_gen=1)
    store.add(session, {**again, "step": 3}, b"")
    assert run.to_json()["summary"]["best_val_loss"] == 0.35


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_sessions_are_in_the_order_of_their_start_however_they_are_read(order: str) -> None:
    """The newest journal is read first."""
    store = Store()
    for session_id in order:
        session = store.session(session_id)
        start = {"a": 100.0, "b": 200.0}[session_id]
        for seq in range(1, 11):
            at = seq + {"a": 0, "b": 5}[session_id]
            value = 0.1 if (session_id, at) == ("a", 7) else 1.0 / at
            event = step(seq, run_id="r", val_loss=value, loss=1.0)
            store.add(session, {**event, "step": at, "ts": start + seq}, b"")
    [run] = store.runs.values()
    assert run.session_ids == ["a", "b"]
    summary = run.to_json()["summary"]
    assert (summary["step"], summary["val_loss"]) == (15, 1.0 / 15)
    # Step 7 of "a" was the best, and "b" did it again.
    assert (summary["best_val_loss"], summary["best_val_step"]) == (1.0 / 15, 15)


def test_what_a_run_promises_is_taken_from_its_event() -> None:
    store = Store()
    session = store.session("s")
    said = {"type": "exactness", "exact": False, "text": "not exact because …", "event_seq": 1}
    store.add(session, {**said, "run_id": "r", "reasons": ["one"]}, b"")
    assert session.to_json()["exactness"] == "not exact because …"
