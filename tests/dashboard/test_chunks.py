"""Rows in the database: what comes out is what went in, in order of event_seq."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from array import array
from typing import Any

import pytest

from otf_core.dashboard import chunks
from otf_core.dashboard.chunks import TABLES, TELLING, Chunks
from otf_core.dashboard.columns import NAN, Block

META = b'{"names":["a","b"]}'


def block(rows: list[tuple[int, float | None, float | None]]) -> Block:
    def column(at: int) -> Any:
        return array("d", [NAN if row[at] is None else row[at] for row in rows])

    seq = array("q", [row[0] for row in rows])
    values = {"a": column(1), "b": column(2)}
    return Block(seq, array("q", seq), array("d", seq), array("q", [1]) * len(rows), values)


def real(column: Any) -> list[float | None]:
    return [None if value != value else value for value in column]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_appended_in_any_pieces_and_order_is_read_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 7)
    chance = random.Random(seed)
    count = chance.randint(1, 40)
    order = list(range(1, count + 1))
    if seed % 2:
        chance.shuffle(order)
    numbers = [None, None, -1.5, 0.0, 2.0]
    rows = [(seq, chance.choice(numbers), chance.choice(numbers)) for seq in order]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in (*TABLES, TELLING):
            connection.execute(statement)
        held = Chunks(connection)
        known = 0
        while known < count:
            more = rows[known : known + chance.randint(1, 12)]
            held.append("s", "r", META, [block(more)])
            known += len(more)
            found = held.columns("s", "r", ["b", "a", "nope"], known)
            told = sorted(rows[:known], key=lambda row: row[0])
            assert list(found.seq) == list(found.step) == [row[0] for row in told]
            assert real(found.values["a"]) == [row[1] for row in told]
            assert real(found.values["b"]) == [row[2] for row in told]
        first = chance.randint(0, count)
        part = held.columns("s", "r", ["a"], first)
        assert list(part.seq) == sorted(row[0] for row in rows[:first])
        after, limit = chance.randint(0, count), chance.randint(1, 10)
        wanted = list(range(after + 1, count + 1))
        newest, total = held.steps("s", "r", after, count, limit=limit, newest=True)
        assert total == len(wanted)
        if not seed % 2:
            oldest, _ = held.steps("s", "r", after, count, limit=limit, newest=False)
            assert set(wanted[-limit:]) <= set(newest.seq)
            assert set(wanted[:limit]) <= set(oldest.seq)
