"""trainSteps in the database: columns cut into chunks of ``CHUNK_ROWS`` rows, a cell a metric.

Rule 1: rows are only ever appended, in the order in which they were saved; the last chunk is filled
up first. So the first n rows are the same for ever, and who knows n may read them at any time.
Rule 2: a metric without a value in a chunk has no cell there.
Rule 3: a chart reads the cells of its own metric, and of the axes.
"""

from __future__ import annotations

import sqlite3
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from otf_core.dashboard.blocks import Outline, fits, telling_rows
from otf_core.dashboard.columns import NAN, Block, end_to_end, joined, rises

CHUNK_ROWS: Final = 4096
CACHE_BYTES: Final = 128 * 1024 * 1024  # columns that were read, for the next chart
AXES: Final = {"event_seq": "q", "step": "q", "ts": "d", "run_gen": "q"}  # never names of metrics
NO_ROWS: Final = Block(array("q"), array("q"), array("d"), array("q"), {}, rises=True)

TABLES: Final = (
    "CREATE TABLE columns (columns_id INTEGER PRIMARY KEY, session_id TEXT NOT NULL,"
    " run_id TEXT NOT NULL, rows INTEGER NOT NULL, body BLOB NOT NULL,"
    " UNIQUE (session_id, run_id))",
    # first and last: of the event_seq in it; in_order: they rise.
    "CREATE TABLE chunks (columns_id INTEGER NOT NULL, number INTEGER NOT NULL,"
    " rows INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,"
    " in_order INTEGER NOT NULL, PRIMARY KEY (columns_id, number)) WITHOUT ROWID",
    "CREATE TABLE cells (columns_id INTEGER NOT NULL, name TEXT NOT NULL,"
    " number INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (columns_id, name, number))",
)
# Of full chunks (see blocks.py): event_seq, step and value of some rows, one after the other.
TELLING: Final = (
    "CREATE TABLE telling (columns_id INTEGER NOT NULL, name TEXT NOT NULL,"
    " number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (columns_id, name, number))"
    " WITHOUT ROWID"
)

_Key = tuple[str, str, str, int]  # session_id, run_id, name, rows


class Chunks:
    """The rows of all sessions; the thread of the database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cache: OrderedDict[_Key, Any] = OrderedDict()
        self._cache_bytes = 0

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    # -- writing ----------------------------------------------------------------------------------

    def append(self, session_id: str, run_id: str, meta: bytes, blocks: Iterable[Block]) -> None:
        """Rows behind those that are there; within the caller's transaction."""
        self._run(
            "INSERT OR IGNORE INTO columns (session_id, run_id, rows, body) VALUES (?, ?, 0, ?)",
            session_id, run_id, meta,
        )  # fmt: skip
        columns_id, rows = self._run(
            "SELECT columns_id, rows FROM columns WHERE session_id = ? AND run_id = ?",
            session_id, run_id,
        ).fetchone()  # fmt: skip
        for block in blocks:
            self._append(columns_id, rows, block)
            rows += len(block)
        self._run(
            "UPDATE columns SET rows = ?, body = ? WHERE columns_id = ?", rows, meta, columns_id
        )

    def _append(self, columns_id: int, rows: int, block: Block) -> None:
        number, filled = divmod(rows, CHUNK_ROWS)
        start = 0
        while start < len(block):
            stop = min(start + CHUNK_ROWS - filled, len(block))
            part = _cut(block, start, stop)
            if filled:
                before = self._whole_chunk(columns_id, number)
                # As they came: who knows how many there were reads the same rows again.
                part = end_to_end([before, part], {**before.values, **part.values})
            self._write(columns_id, number, part)
            start, number, filled = stop, number + 1, 0

    def _write(self, columns_id: int, number: int, block: Block) -> None:
        self._run(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
            columns_id, number, len(block), min(block.seq), max(block.seq), rises(block.seq),
        )  # fmt: skip
        axes = zip(AXES, (block.seq, block.step, block.ts, block.gen), strict=True)
        cells: dict[str, Any] = dict(axes)
        cells |= {
            name: column
            for name, column in block.values.items()
            if any(value == value for value in column)
        }
        is_full = len(block) == CHUNK_ROWS
        self._connection.executemany(
            "INSERT OR REPLACE INTO cells (columns_id, name, number, body) VALUES (?, ?, ?, ?)",
            [
                (columns_id, n, number, _pack(column, squeeze=is_full))
                for n, column in cells.items()
            ],
        )
        if is_full and rises(block.seq) and rises(block.step):
            self._connection.executemany(
                "INSERT OR REPLACE INTO telling VALUES (?, ?, ?, ?)",
                [
                    (columns_id, n, number, _told(block, cells[n]))
                    for n in cells.keys() - AXES.keys()
                ],
            )

    def empty(self, session_id: str) -> None:
        """All rows of a session leave; within the caller's transaction."""
        found = self._run("SELECT columns_id FROM columns WHERE session_id = ?", session_id)
        for (columns_id,) in found.fetchall():
            self._run("DELETE FROM cells WHERE columns_id = ?", columns_id)
            self._run("DELETE FROM telling WHERE columns_id = ?", columns_id)
            self._run("DELETE FROM chunks WHERE columns_id = ?", columns_id)
            self._run("UPDATE columns SET rows = 0 WHERE columns_id = ?", columns_id)
        for key in [key for key in self._cache if key[0] == session_id]:
            self._cache_bytes -= _size(self._cache.pop(key))

    # -- reading ----------------------------------------------------------------------------------

    def columns(
        self, session_id: str, run_id: str, names: Sequence[str], rows: int, *, dated: bool = True
    ) -> Block:
        """The first ``rows`` rows, or those that there are, in order of event_seq.

        Not ``dated``: without their times and generations, which are 0; a chart needs neither.
        """
        found = self._find(session_id, run_id)
        if found is None or rows <= 0:
            return NO_ROWS
        columns_id, held, known = found
        rows = min(rows, held)
        read: dict[str, Any] = {}
        axes = AXES if dated else ("event_seq", "step")
        for name in (*axes, *(name for name in names if name in known)):
            key = (session_id, run_id, name, rows)
            if key in self._cache:
                self._cache.move_to_end(key)
            else:
                self._remember(key, self._column(columns_id, name, rows))
            read[name] = self._cache[key]
        values = {name: column for name, column in read.items() if name not in AXES}
        for axis in AXES.keys() - read.keys():
            read[axis] = array(AXES[axis], bytes(8 * rows))
        in_order = self._in_order(columns_id, (rows - 1) // CHUNK_ROWS)
        seq, step, ts, gen = (read[axis] for axis in AXES)
        block = Block(seq, step, ts, gen, values, rises=in_order)
        return block if in_order else joined([block], values)

    def outline(
        self, session_id: str, run_id: str, names: Sequence[str], rows: int, buckets: int
    ) -> Outline | None:
        """What a chart of the first ``rows`` rows needs; None where it needs all of them."""
        found = self._find(session_id, run_id)
        full, rest = divmod(rows, CHUNK_ROWS)
        if found is None or full == 0 or rows > found[1]:
            return None
        columns_id, _, known = found
        ends = [
            self._cell(columns_id, "step", n, CHUNK_ROWS) for n in (0, (rows - 1) // CHUNK_ROWS)
        ]
        first, last = ends[0][0], ends[1][(rows - 1) % CHUNK_ROWS]
        if not fits(first, last, buckets) or not self._in_order(columns_id, full - (rest == 0)):
            return None
        made = Outline(names, first)
        for name in set(names).intersection(known):
            for (body,) in self._run(
                "SELECT t.body FROM cells c LEFT JOIN telling t ON t.columns_id = c.columns_id"
                " AND t.name = c.name AND t.number = c.number"
                " WHERE c.columns_id = ? AND c.name = ? AND c.number < ? ORDER BY c.number",
                columns_id, name, full,
            ):  # fmt: skip
                if body is None:
                    return None
                each = len(body) // 24
                made.add(
                    name,
                    *(
                        _unpack(b"r" + body[8 * each * at : 8 * each * (at + 1)], code)
                        for at, code in enumerate("qqd")
                    ),
                )
        before = (
            ends[1][-1] if not rest else self._cell(columns_id, "step", full - 1, CHUNK_ROWS)[-1]
        )
        made.note(before, full * CHUNK_ROWS)
        if rest and not made.add_rows(_cut(self._whole_chunk(columns_id, full), 0, rest)):
            return None
        return made

    def steps(
        self, session_id: str, run_id: str, after: int, until: int, *, limit: int, newest: bool
    ) -> tuple[Block, int]:
        """The oldest or newest ``limit`` rows of those numbers at least, and how many there are.

        Whole chunks: rows before and behind may be among them.
        """
        found = self._find(session_id, run_id)
        if found is None:
            return NO_ROWS, 0
        columns_id, _, names = found
        chunks = self._run(
            "SELECT number, rows, first, last FROM chunks WHERE columns_id = ? AND last > ?"
            " AND first <= ? ORDER BY first",
            columns_id, after, until,
        ).fetchall()  # fmt: skip
        total = 0
        for number, rows, first, last in chunks:
            if first > after and last <= until:
                total += rows
            else:
                seqs = self._cell(columns_id, "event_seq", number, rows)
                total += sum(after < seq <= until for seq in seqs)
        if newest:
            chunks.reverse()
        chosen: list[Block] = []
        inside = 0
        for number, *_ in chunks:
            if inside >= limit:
                break
            chosen.append(self._whole_chunk(columns_id, number))
            inside += sum(after < seq <= until for seq in chosen[-1].seq)
        return (joined(chosen[::-1] if newest else chosen, names) if chosen else NO_ROWS), total

    def _find(self, session_id: str, run_id: str) -> tuple[int, int, list[str]] | None:
        row = self._run(
            "SELECT columns_id, rows, body FROM columns WHERE session_id = ? AND run_id = ?",
            session_id, run_id,
        ).fetchone()  # fmt: skip
        return (row[0], row[1], msgspec.json.decode(row[2])["names"]) if row and row[1] else None

    def _in_order(self, columns_id: int, last: int) -> bool:
        before = 0
        for first, end, in_order in self._run(
            "SELECT first, last, in_order FROM chunks WHERE columns_id = ? AND number <= ?"
            " ORDER BY number",
            columns_id, last,
        ):  # fmt: skip
            if first < before or not in_order:
                return False
            before = end
        return True

    def _whole_chunk(self, columns_id: int, number: int) -> Block:
        [rows, in_order] = self._run(
            "SELECT rows, in_order FROM chunks WHERE columns_id = ? AND number = ?",
            columns_id, number,
        ).fetchone()  # fmt: skip
        names = self._run(
            "SELECT name FROM cells WHERE columns_id = ? AND number = ?", columns_id, number
        )
        read = {name: self._cell(columns_id, name, number, rows) for (name,) in names.fetchall()}
        seq, step, ts, gen = (read.pop(axis) for axis in AXES)
        return Block(seq, step, ts, gen, read, rises=bool(in_order))

    def _cell(self, columns_id: int, name: str, number: int, rows: int) -> Any:
        [body] = self._run(
            "SELECT body FROM cells WHERE columns_id = ? AND name = ? AND number = ?",
            columns_id, name, number,
        ).fetchone()  # fmt: skip
        return _unpack(body, AXES.get(name, "d"))[:rows]

    def _column(self, columns_id: int, name: str, rows: int) -> Any:
        """The first rows of a column."""
        code = AXES.get(name, "d")
        whole: Any = array(code)
        last = (rows - 1) // CHUNK_ROWS
        cells = self._run(
            "SELECT number, body FROM cells WHERE columns_id = ? AND name = ? AND number <= ?"
            " ORDER BY number",
            columns_id, name, last,
        )  # fmt: skip
        for number, body in cells:
            self._pad(whole, number * CHUNK_ROWS)
            whole.extend(_unpack(body, code))
        self._pad(whole, rows)
        del whole[rows:]
        return whole

    @staticmethod
    def _pad(column: Any, rows: int) -> None:
        if len(column) < rows:
            column.extend(array("d", [NAN]) * (rows - len(column)))

    def _remember(self, key: _Key, column: Any) -> None:
        self._cache[key] = column
        self._cache_bytes += _size(column)
        while self._cache_bytes > CACHE_BYTES and next(iter(self._cache)) != key:
            _, gone = self._cache.popitem(last=False)
            self._cache_bytes -= _size(gone)


def _size(column: Any) -> int:
    return len(column) * int(column.itemsize)


def _cut(block: Block, start: int, stop: int) -> Block:
    values: Mapping[str, Any] = {name: c[start:stop] for name, c in block.values.items()}
    return Block(
        block.seq[start:stop], block.step[start:stop], block.ts[start:stop], block.gen[start:stop],
        values, rises=block.rises,
    )  # fmt: skip


def _told(block: Block, column: Any) -> bytes:
    rows = telling_rows(block.step, column)
    told = [array(c.typecode, map(c.__getitem__, rows)) for c in (block.seq, block.step, column)]
    return b"".join(_little(each).tobytes() for each in told)


def _pack(column: Any, *, squeeze: bool) -> bytes:
    """Little-endian numbers behind a letter: "r" raw, "z" by zlib where that is worth it."""
    raw: bytes = _little(column).tobytes()
    if squeeze:
        small = zlib.compress(raw, 1)
        if len(small) < 0.9 * len(raw):
            return b"z" + small
    return b"r" + raw


def _unpack(body: bytes, code: str) -> Any:
    column: Any = array(code)
    column.frombytes(zlib.decompress(body[1:]) if body[:1] == b"z" else body[1:])
    return _little(column)


def _little(column: Any) -> Any:
    if sys.byteorder == "little":
        return column
    column = column[:]
    column.byteswap()
    return column
