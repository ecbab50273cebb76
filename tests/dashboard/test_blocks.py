"""Charts without all rows: they show what all rows would."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from otf_core.dashboard import blocks, chunks, peaks, reading
from otf_core.dashboard.chunks import TABLES, TELLING, Chunks
from otf_core.dashboard.columns import Block, Columns
from tests.dashboard.bench import TOKEN, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble

NAMES = ["loss", "val_loss", "nope"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 rows and blocks of 4 steps."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 32)
    monkeypatch.setattr(blocks, "BLOCK_SHIFT", 2)


def rows_of(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Steps that rise, most by one; values of few kinds, so that many are the same."""
    told, step = [], chance.randint(0, 5)
    for seq in range(1, count + 1):
        step += chance.choice([0, 1, 1, 1, 1, 9])
        value, rare = chance.choice([None, 1.0, 1.0, 2.5, -3.0]), chance.choice([None] * 9 + [0.5])
        told.append({"event_seq": seq, "step": step, "ts": 0.0, "loss": value, "val_loss": rare})
    return told


@pytest.mark.parametrize("seed", range(60))
def test_a_chart_of_blocks_is_that_of_all_rows(seed: int) -> None:
    chance = random.Random(seed)
    columns, count = Columns(saves=True), chance.randint(33, 400)
    rows = rows_of(chance, count)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in (*TABLES, TELLING):
            connection.execute(statement)
        held = Chunks(connection)
        saved, tail = 0, chance.randint(0, 40)
        for row in rows[: count - tail]:
            columns.add(row)
            if chance.random() < 0.05:
                saved += _save(held, columns)
        saved += _save(held, columns)
        for row in rows[count - tail :]:
            columns.add(row)
        unsaved = columns.unsaved()
        compared = 0
        for buckets in (1, 2, 7, 20, 60):
            view = columns.view(NAMES)
            wanted = peaks.curves([view], NAMES, low=None, high=None, buckets=buckets)
            found = held.outline("s", "r", NAMES, saved, buckets)
            if found is None or not all(found.add_rows(block) for block in unsaved):
                assert wanted.bucket_steps <= 8 or saved < 32
                continue
            compared += 1
            assert found.curves(buckets) == wanted
        assert compared > 0 or saved < 32


def _save(held: Chunks, columns: Columns) -> int:
    waiting: tuple[Block, ...] = columns.unsaved()
    held.append("s", "r", b'{"names":["loss","val_loss"]}', waiting)
    columns.note_saved(waiting)
    return sum(map(len, waiting))


@in_loop
async def test_a_run_that_is_over_is_drawn_from_blocks_one_that_turned_back_from_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(300)
    asked: list[bool] = []
    plain = reading.outline

    async def noted(*args: Any) -> Any:
        found = await plain(*args)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(reading, "outline", noted)
    path = "api/runs/digits/metrics?buckets=20"
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 302)
        before = await bench.get(path)
        await bench.dashboard.keeper.save_all()
        [run] = bench.store.runs.values()
        for columns in run.columns.values():
            columns.shelve(16)
        assert await bench.get(path) == before
        assert asked == [False, True]
        assert len(before["series"]["loss"]["step"]) > 20
        zoomed = await bench.get(f"{path}&from=10&to=20")
        assert zoomed["series"]["loss"]["step"] == list(range(10, 21))
        trainer.train(20)  # to the end of a chunk
        await bench.until_has("sess-1", 322)
        trainer.step = 250
        trainer.run_gen = 1
        trainer.train(64)
        session = await bench.until_has("sess-1", 386)
        before = await bench.get(path)
        await bench.dashboard.keeper.save_all()
        for columns in run.columns.values():
            columns.shelve(16)
        assert session.have.highest == 386
        assert await bench.get(path) == before
        assert (before["to"], before["total"]) == (314, 314)
        assert asked == [False, True, False, False]


def test_rows_that_an_older_version_wrote_are_read_as_before() -> None:
    columns = Columns(saves=True)
    for row in rows_of(random.Random(1), 200):
        columns.add(row)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in (*TABLES, TELLING):
            connection.execute(statement)
        held = Chunks(connection)
        saved = _save(held, columns)
        assert held.outline("s", "r", ["loss"], saved, 10) is not None
        assert held.outline("s", "r", ["loss"], saved + 1, 10) is None
        connection.execute("DELETE FROM telling WHERE number = 3")
        assert held.outline("s", "r", ["loss"], saved, 10) is None
        held.empty("s")
        assert connection.execute("SELECT count(*) FROM telling").fetchone() == (0,)


def test_a_chart_ends_with_the_last_value_that_there_was() -> None:
    columns = Columns(saves=True)
    values = [2.0, 1.0, 3.0, 2.0, *[None] * 60]
    for seq, value in enumerate(values, start=1):
        columns.add({"event_seq": seq, "step": max(8, seq), "ts": 0.0, "loss": value})
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in (*TABLES, TELLING):
            connection.execute(statement)
        held = Chunks(connection)
        found = held.outline("s", "r", ["loss"], _save(held, columns), 1)
        assert found is not None
        assert found.curves(1).series["loss"]["seq"] == [1, 2, 3, 4]


def test_rows_that_come_late_are_not_put_behind_others() -> None:
    late, columns = Columns(saves=True), Columns(saves=True)
    late.add({"event_seq": 9, "step": 39, "ts": 0.0, "loss": 1.0})
    columns.add({"event_seq": 50, "step": 40, "ts": 0.0, "loss": 1.0})
    outline = blocks.Outline(["loss"], 1)
    assert outline.add_rows(*columns.unsaved())
    assert not outline.add_rows(*late.unsaved())
