"""``dashboard.sqlite``: what the journals say, ready to be opened; one thread.

Rule 1: a copy, never the truth. One that is damaged, of another program, of a later version or of
another folder is set aside under another name, never deleted; the journals fill a new one.
Rule 2: what belongs together is written together: with the rows and events of a session goes how
far they reach (``have``) and how far its journal has been read. Killed at any moment, the database
is as it was at one moment before, and the journal has what came after.
Rule 3: what trainers sent is a parameter of a statement, never a part of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from otf_core.dashboard.chunks import TABLES, TELLING, Chunks
from otf_core.dashboard.columns import Block

NAME: Final = "dashboard.sqlite"
APPLICATION_ID: Final = 0x6F746631  # "otf1"

# Each makes the next version of the one before; the first makes version 1 of an empty file.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, revision INTEGER NOT NULL,"
        " body BLOB NOT NULL)",
        "CREATE TABLE runs (project TEXT NOT NULL, run_id TEXT NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (project, run_id))",
        "CREATE TABLE events (session_id TEXT NOT NULL, event_seq INTEGER NOT NULL,"
        " run_id TEXT NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (session_id, event_seq)) WITHOUT ROWID",
        *TABLES,
        f"PRAGMA application_id = {APPLICATION_ID}",
    ),
    # When somebody last looked at a session: what nobody looks at leaves first.
    ("ALTER TABLE sessions ADD COLUMN opened_ts REAL NOT NULL DEFAULT 0",),
    (TELLING,),
)
VERSION: Final = len(MIGRATIONS)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


class DamagedError(Exception):
    """This file cannot be used as it is; says why. It is set aside."""


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is bad, and not the disk under it."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")) or not isinstance(
        error, sqlite3.OperationalError
    )


@dataclasses.dataclass(frozen=True)
class SavedColumns:
    """Columns of a session in a run, but for their rows."""

    session_id: str
    run_id: str
    rows: int
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Listed:
    """All that is shown of a run before somebody opens it."""

    sessions: Sequence[dict[str, Any]]
    runs: Sequence[dict[str, Any]]
    columns: Sequence[SavedColumns]


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one session has to be written."""

    session_id: str
    revision: int
    opened_ts: float
    body: bytes
    runs: Sequence[tuple[str, str, bytes]]
    events: Sequence[dict[str, Any]]
    columns: Sequence[tuple[str, bytes, Sequence[Block]]]  # run_id, meta, rows


def set_aside(path: Path, stamp: str) -> Path:
    """Give a database and what belongs to it another name; that name."""
    number, target = 1, path.with_name(f"{path.name}.set-aside-{stamp}")
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.set-aside-{stamp}-{number}")
    for tail in ("-wal", "-shm", ""):
        part = path.with_name(path.name + tail)
        if part.exists():
            part.rename(target.with_name(target.name + tail))
    return target


def _refuse_foreign(path: Path) -> None:
    """Look at the header before SQLite does, which would write into it.

    Raises:
        DamagedError: it is not ours, or of a later version.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    why = None
    version, application_id = header[60:64], header[68:72]
    if not header.startswith(b"SQLite format 3\x00") or len(header) < 100:
        why = "is no database" if header else "is empty"
    elif int.from_bytes(application_id, "big") != APPLICATION_ID:
        wal = path.with_name(path.name + "-wal")
        # A new one may have been killed before its first page had come from the WAL.
        is_new = not any(version + application_id) and wal.exists() and wal.stat().st_size > 0
        why = None if is_new else "is of another program"
    elif (found := int.from_bytes(version, "big")) > VERSION:
        why = f"is of version {found}, this dashboard knows {VERSION}"
    if why is not None:
        raise DamagedError(why)


class Database:
    """One open file. Used by one thread at a time.

    Raises:
        DamagedError: by ``open``.
        sqlite3.DatabaseError: by all; ``is_damage`` tells a bad file from a bad disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = ""
        self.is_new = False
        self.was_killed = False  # who had it before did not close it
        self._connection: sqlite3.Connection | None = None
        self._chunks: Chunks | None = None

    # -- opening ----------------------------------------------------------------------------------

    def open(self, *, writes: bool) -> None:
        """Open, and bring a file of an older version to ours; a new one is made."""
        _refuse_foreign(self.path)
        wal = self.path.with_name(self.path.name + "-wal")
        self.was_killed = wal.exists() and wal.stat().st_size > 0
        mode = "rwc" if writes else "ro"
        uri = f"{self.path.resolve().as_uri()}?mode={mode}"
        self._connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
        )
        self._chunks = Chunks(self._connection)
        try:
            self._prepare(writes=writes)
        except sqlite3.DatabaseError as error:
            self.close()
            if is_damage(error):
                msg = f"cannot be read ({error})"
                raise DamagedError(msg) from error
            raise
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, writes: bool) -> None:
        run = self._run
        if writes:
            run("PRAGMA page_size = 16384")  # columns are long; only a new file takes it
            run("PRAGMA auto_vacuum = INCREMENTAL")
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = NORMAL")
        found = int(run("PRAGMA user_version").fetchone()[0])
        if found and run("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            msg = "is of another program"
            raise DamagedError(msg)
        if not writes:
            if found != VERSION:
                msg = f"is of version {found}, and is not ours to change"
                raise DamagedError(msg)
        else:
            self.is_new = not found
            for number in range(found, VERSION):
                self._migrate(number)
            if found < VERSION:
                run("PRAGMA wal_checkpoint(TRUNCATE)")
        row = run("SELECT value FROM meta WHERE name = 'identity'").fetchone()
        self.identity = str(row[0]) if row else uuid.uuid4().hex
        if row is None and writes:
            run("INSERT INTO meta VALUES ('identity', ?)", self.identity)

    def _migrate(self, number: int) -> None:
        with self._together():
            for statement in MIGRATIONS[number]:
                self._run(statement)
            self._run(f"PRAGMA user_version = {number + 1}")

    @property
    def rows(self) -> Chunks:
        """The trainSteps."""
        assert self._chunks is not None
        return self._chunks

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        assert self._connection is not None
        return self._connection.execute(statement, values)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        assert self._connection is not None
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself ends it where the disk is full
                self._run("ROLLBACK")
            raise

    def check(self) -> None:
        """Read all of it; the file was left open by a process that died.

        Raises:
            DamagedError: it does not hold together.
        """
        found = self._run("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            msg = f"does not hold together ({str(found)[:120]})"
            raise DamagedError(msg)

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._chunks = None

    # -- the list ---------------------------------------------------------------------------------

    def listed(self) -> Listed:
        """Everything but events and rows."""
        sessions = self._run("SELECT body, revision, opened_ts FROM sessions")
        runs = self._run("SELECT body FROM runs")
        columns = self._run("SELECT session_id, run_id, rows, body FROM columns")
        return Listed(
            [
                {**_decode(body), "revision": revision, "opened_ts": opened_ts}
                for body, revision, opened_ts in sessions
            ],
            [_decode(body) for (body,) in runs],
            [SavedColumns(key, run_id, rows, _decode(body)) for key, run_id, rows, body in columns],
        )

    # -- writing ----------------------------------------------------------------------------------

    def save(self, batches: Sequence[Batch]) -> None:
        """Write, all or nothing."""
        with self._together():
            for batch in batches:
                self._save(batch)

    def _save(self, batch: Batch) -> None:
        assert self._connection is not None
        session_id = batch.session_id
        self._run(
            "INSERT OR REPLACE INTO sessions (session_id, revision, opened_ts, body)"
            " VALUES (?, ?, ?, ?)",
            session_id, batch.revision, batch.opened_ts, batch.body,
        )  # fmt: skip
        for project, run_id, body in batch.runs:
            self._run("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", project, run_id, body)
        self._connection.executemany(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)",
            (
                (session_id, event["event_seq"], str(event.get("run_id") or ""),
                 str(event.get("type")), _encode(event))
                for event in batch.events
            ),
        )  # fmt: skip
        for run_id, meta, blocks in batch.columns:
            self.rows.append(session_id, run_id, meta, blocks)

    def empty(self, session_id: str, body: bytes) -> None:
        """Events and rows leave; what is listed of it stays."""
        with self._together():
            self._empty(session_id)
            self._run("UPDATE sessions SET body = ? WHERE session_id = ?", body, session_id)

    def _empty(self, session_id: str) -> None:
        self.rows.empty(session_id)
        self._run("DELETE FROM events WHERE session_id = ?", session_id)

    def forget(self, session_id: str, runs: Sequence[tuple[str, str]]) -> None:
        """A session, and runs that were its alone, are no more."""
        with self._together():
            self._empty(session_id)
            self._run("DELETE FROM columns WHERE session_id = ?", session_id)
            self._run("DELETE FROM sessions WHERE session_id = ?", session_id)
            for project, run_id in runs:
                self._run("DELETE FROM runs WHERE project = ? AND run_id = ?", project, run_id)

    def used_bytes(self) -> int:
        """What is in use, without pages that wait to be given back."""
        size, count, free = (
            int(self._run(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        return size * (count - free)

    def compact(self) -> None:
        """Give free pages back to the disk, a few at a time, and empty the WAL."""
        assert self._connection is not None
        # A statement without rows is stepped once by execute, and one step frees one page.
        self._connection.executescript("PRAGMA incremental_vacuum(2000)")
        self._run("PRAGMA optimize")
        self._run("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- reading ----------------------------------------------------------------------------------

    def events(
        self, session_id: str, after: int, until: int, *, types: Sequence[str] | None,
        run_id: str | None, limit: int, newest: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Events that are no trainStep, in order; the oldest ``limit``, or the newest."""
        where = "session_id = ? AND event_seq > ? AND event_seq <= ?"
        values: list[Any] = [session_id, after, until]
        if types is not None:
            where += f" AND type IN ({', '.join('?' * len(types))})"
            values += types
        if run_id is not None:
            where += " AND run_id IN (?, '')"
            values.append(run_id)
        order = "DESC" if newest else "ASC"
        found = self._run(
            f"SELECT body FROM events WHERE {where} ORDER BY event_seq {order} LIMIT ?",
            *values, limit,
        )  # fmt: skip
        events = [_decode(body) for (body,) in found]
        return events[::-1] if newest else events
