"""Keeps the store in the folder's database, and the database within its bounds; event loop.

Rule 1: the disk is touched in the thread ``otf-store`` alone; the event loop never waits for it.
Rule 2: one dashboard writes to a folder. Another one reads, keeps what it hears in memory, and
takes over when the first is gone.
Rule 3: a disk that fails costs nothing that is in memory; it is said once, and tried again.
Rule 4: what is saved and not needed leaves memory: a session without a trainer but for what is
listed of it, one with a trainer but for its newest rows.
Rule 5: over its bound, the database lets the sessions go that nobody has trained or looked at for
longest, of those whose journal can be read. They stay on the list and are read again when opened.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
import sqlite3
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from otf_core.dashboard import database
from otf_core.dashboard.blocks import Outline
from otf_core.dashboard.chunks import NO_ROWS
from otf_core.dashboard.columns import Block, Columns, joined
from otf_core.dashboard.database import Batch, DamagedError, Database, Listed
from otf_core.dashboard.folder_lock import FolderLock
from otf_core.dashboard.run import Run
from otf_core.dashboard.store import Change, Place, Session, Store
from otf_core.errors import CommandError, ErrorCode

SAVE_ROWS: Final = 1024  # so many wait for no time
SAVE_TICKS: Final = 15  # else so many ticks; what dies meanwhile is in the journal
LIVE_ROWS: Final = 65_536  # of a run that trains; over it, memory keeps the newest quarter
RELIEVE_ROWS: Final = 32_768  # while a journal is read
OPENED_EVERY_S: Final = 60.0
HOUSEKEEPING_TICKS: Final = 60
DEFAULT_MAX_BYTES: Final = 2 * 1024**3

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode


class Keeper:
    """The database of one folder; see the module.

    Attributes:
        mode: ``writer``, ``reader`` (another dashboard writes) or ``memory`` (there is no disk).
        read_journal: reads what the journal of a session has more than the store.
        read_run: the same for all journals in the folder of a run.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        say: Callable[[str], None],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        tick_s: float = 1.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.mode = "memory"
        self.read_journal: Callable[[str], Awaitable[None]] | None = None
        self.read_run: Callable[[Path], Awaitable[None]] | None = None
        self._folder, self._store, self._say = folder, store, say
        self._max_bytes, self._tick_s, self._wall = max_bytes, tick_s, wall
        self._lock = FolderLock(folder)
        self._database: Database | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._busy = asyncio.Lock()  # one change of the database at a time
        self._ended = asyncio.Event()
        self._at_work: set[asyncio.Future[Any]] = set()
        self._dirty: set[str] = set()
        self._due_ticks: dict[str, int] = {}
        self._trouble: str | None = None
        self._said_full = False

    def _be(self, mode: str, text: str | None) -> None:
        """What this is now; said to the person at the terminal where there is something to say."""
        self.mode = mode
        self._store.kept = {"mode": mode, "text": text}
        if text is not None:
            self._say(text)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # -- opening ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Have the list of all runs in the store, and from now on keep it."""
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "otf-store")
        try:
            has_lock = await self._run(self._acquire)
        except OSError as error:
            self._be_memory(f"{self._folder} cannot be written ({error.strerror or error})")
            return
        await (self._open_to_write() if has_lock else self._open_to_read())
        self._store.watchers.add(self._on_change)

    def _acquire(self) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._lock.acquire()

    def _be_memory(self, why: str) -> None:
        self._be("memory", f"{why}; what is shown is kept in memory alone")

    async def _open_to_write(self) -> None:
        try:
            listed, said = await self._run(self._open_or_set_aside)
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            self._be_memory(f"{self._folder / database.NAME} cannot be opened ({error})")
            return
        for line in said:
            self._say(line)
        self._be("writer", None)
        self._take_in(listed)

    def _open_or_set_aside(self) -> tuple[Listed, list[str]]:
        """A usable database, that of the folder or a new one; thread."""
        said = []
        path = self._folder / database.NAME
        expected = self._lock.read().get("database")
        found = Database(path)
        try:
            found.open(writes=True)
            if isinstance(expected, str) and found.identity != expected and not found.is_new:
                found.close()
                msg = "is not the one that was here"
                raise DamagedError(msg)
            listed = _usable(found)
        except DamagedError as error:
            found.close()
            said.append(self._set_aside(path, error))
            found = Database(path)
            found.open(writes=True)
            listed = _usable(found)
        self._database = found
        self._lock.write(
            {"pid": os.getpid(), "host": os.uname().nodename, "database": found.identity}
        )
        return listed, said

    def _set_aside(self, path: Path, error: DamagedError) -> str:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._wall()))
        kept = database.set_aside(path, stamp)
        return (
            f"the database {path} {error}; it is kept as {kept.name}, and a new one is made from "
            "the journals"
        )

    async def _open_to_read(self) -> None:
        holder = await self._run(self._lock.read)
        who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'this machine')}"
        self._be(
            "reader",
            f"another dashboard writes the database of {self._folder} ({who}); this one only reads "
            "it, and keeps in memory what it hears itself",
        )
        path = self._folder / database.NAME
        try:
            found, listed = await self._run(self._open_reading, path)
        except (DamagedError, OSError, sqlite3.Error) as error:
            self._say(f"the database {path} cannot be read yet ({error})")
            self._store.saves = True
            return
        self._database = found
        self._take_in(listed)

    @staticmethod
    def _open_reading(path: Path) -> tuple[Database, Listed]:
        found = Database(path)
        found.open(writes=False)
        try:
            return found, _usable(found)
        except BaseException:
            found.close()
            raise

    def _take_in(self, listed: Listed) -> None:
        store = self._store
        store.saves, store.archive = True, self
        for row in listed.sessions:
            if row["session_id"] not in store.sessions:
                store.put_back(Session.from_row(row))
        columns: dict[tuple[str, str], dict[str, Columns]] = {}
        for saved in listed.columns:
            session = store.sessions.get(saved.session_id)
            if session is not None:
                made = Columns.shelved_as(saved.meta, saved.rows, store.max_rows)
                columns.setdefault((session.project, saved.run_id), {})[saved.session_id] = made
        for row in listed.runs:
            store.put_back_run(row, columns.get((row["project"], row["run_id"]), {}))

    # -- the work ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Save, make room, take over; until ``close``, which waits for it."""
        work = asyncio.ensure_future(self._work())
        self._at_work.add(work)
        work.add_done_callback(self._at_work.discard)
        await work

    async def _work(self) -> None:
        if self._thread is None or self.mode == "memory":
            return
        if self._database is not None and self.mode == "writer" and self._database.was_killed:
            await self._guarded(self._check)
        for tick in range(2**62):
            try:
                async with asyncio.timeout(self._tick_s):
                    await self._ended.wait()
                return
            except TimeoutError:
                pass  # the next tick
            if self.mode == "reader":
                await self._take_over()
                continue
            is_idle = not await self.save(self._due())
            await self.recount()
            if is_idle and tick % HOUSEKEEPING_TICKS == HOUSEKEEPING_TICKS - 1:
                await self.make_room()

    async def _check(self) -> None:
        assert self._database is not None
        await self._run(self._database.check)

    def _on_change(self, session: Session, change: Change) -> None:  # noqa: ARG002 -- a watcher's shape
        self._dirty.add(session.session_id)

    def _due(self) -> list[Session]:
        due = []
        for key in tuple(self._dirty):
            session = self._store.sessions.get(key)
            if session is None or not session.saves:
                self._dirty.discard(key)
                continue
            waited = self._due_ticks[key] = self._due_ticks.get(key, 0) + 1
            if waited >= SAVE_TICKS or not session.connected or self._unsaved(session) >= SAVE_ROWS:
                due.append(session)
        return due

    def _unsaved(self, session: Session) -> int:
        key = session.session_id
        return len(session.unsaved) + sum(
            run.columns[key].unsaved_rows
            for run in self._store.runs_of(session)
            if key in run.columns
        )

    async def save_all(self) -> bool:
        """Save what is not saved; whether there is nothing left."""
        while self.mode == "writer":
            async with self._busy:  # what is on its way may come back
                pass
            found = (self._store.sessions.get(key) for key in self._dirty)
            due = [session for session in found if session is not None and session.saves]
            if not due:
                return True
            if not await self.save(due):
                return False
        return False

    async def save(self, sessions: Sequence[Session]) -> bool:
        """Write these, all or nothing; whether anything was written."""
        # Whoever waits may be cancelled; what was begun is finished, or it would be written twice.
        work = asyncio.ensure_future(self._save(sessions))
        self._at_work.add(work)
        work.add_done_callback(self._at_work.discard)
        return await asyncio.shield(work)

    async def _save(self, sessions: Sequence[Session]) -> bool:
        async with self._busy:
            database_ = self._database
            if not sessions or database_ is None or self.mode != "writer":
                return False
            taken = [_Taken(self._store, session) for session in sessions]
            for one in taken:
                self._dirty.discard(one.session.session_id)
            try:
                await self._run(database_.save, [one.batch for one in taken])
            except sqlite3.DatabaseError as error:
                for one in taken:
                    one.put_back()
                    self._dirty.add(one.session.session_id)
                if database.is_damage(error):
                    await self._start_over(database_, DamagedError(f"is damaged ({error})"))
                else:
                    self._note_trouble(str(error))
                return False
            for one in taken:
                one.settle()
                self._due_ticks.pop(one.session.session_id, None)
                self._shelve(one.session)
            self._note_trouble(None)
        return True

    def _note_trouble(self, trouble: str | None) -> None:
        if (trouble is None) == (self._trouble is None):
            return
        self._trouble = trouble
        if trouble is None:
            self._be("writer", None)
            self._say("the database can be written again")
        else:
            self._be(
                "writer", f"the database cannot be written ({trouble}); memory keeps what is new"
            )

    def _shelve(self, session: Session) -> None:
        mine = [
            run.columns[session.session_id]
            for run in self._store.runs_of(session)
            if session.session_id in run.columns
        ]
        if not session.connected:
            for columns in mine:
                columns.shelve(0)
            session.shelve()
            session.feed.clear()
        else:
            for columns in mine:
                if columns.in_memory > LIVE_ROWS:
                    columns.shelve(LIVE_ROWS // 4)

    async def relieve(self, session: Session) -> None:
        """While a journal is read: what has come together goes to the disk."""
        if self._unsaved(session) >= RELIEVE_ROWS:
            await self.save([session])

    async def recount(self) -> None:
        """Summaries that tell of steps which are superseded; their rows may be on the disk."""
        for run in [run for run in self._store.runs.values() if run.recount]:
            parts = []
            for key, columns in run.in_order():
                if columns.partial:
                    block = await self.rows(key, run.run_id, ["val_loss"], columns)
                    parts.append(columns.view_of(block))
                else:
                    parts.append(columns.view(["val_loss"]))
            run.count_again(parts)
            session = self._store.sessions[run.session_ids[-1]]
            self._store.changed(session, Change(run=run))

    # -- room -------------------------------------------------------------------------------------

    async def make_room(self) -> None:
        """Within the bound again, and what is free given back to the disk."""
        await self._guarded(self._make_room)

    async def _make_room(self) -> None:
        assert self._database is not None
        if await self._run(self._database.used_bytes) > self._max_bytes:
            await self._let_oldest_go()
        await self._run(self._database.compact)

    async def _let_oldest_go(self) -> None:
        """Until a tenth is free."""
        assert self._database is not None
        for session in tuple(self._store.sessions.values()):
            if session.place is None and session.run_dir is not None and not session.connected:
                assert self.read_run is not None
                await self.read_run(session.run_dir)  # which were told, and can be read as well
        old = [
            session
            for session in self._store.sessions.values()
            if session.place is not None and session.saves and not session.away
            if not session.connected and not self._unsaved(session)
        ]
        old.sort(key=lambda session: max(session.last_ts or 0.0, session.opened_ts))
        count = 0
        for session in old:
            if await self._run(self._database.used_bytes) <= 0.9 * self._max_bytes:
                break
            if session.connected or self._unsaved(session) or session.place is None:
                continue
            session.away, session.place = True, Place(session.place.path)
            await self._run(self._database.empty, session.session_id, _body(session))
            count += 1
        if count and not self._said_full:
            self._said_full = True
            self._say(
                f"the database is over its {self._max_bytes / 1e9:g} GB: {count} older sessions "
                "have left it; they stay listed, and are read from their journals when opened"
            )

    async def forget(self, session: Session) -> None:
        """A session whose folder is gone."""
        runs = self._store.forget(session)
        self._dirty.discard(session.session_id)
        await self._change(lambda found: found.forget(session.session_id, runs))

    async def begin_again(self, session: Session, path: str) -> None:
        """The journal is to be read from its first line; another file lies in its place."""
        self._store.start_again(session)
        session.place = Place(path)
        body = _body(session)
        await self._change(lambda found: found.empty(session.session_id, body))

    async def _change(self, work: Callable[[Database], None]) -> None:
        # Behind a save that is on its way: the thread does one after the other.
        found = self._database
        if found is not None and self.mode == "writer":
            await self._guarded(lambda: self._run(work, found))

    # -- trouble ----------------------------------------------------------------------------------

    async def _guarded(self, work: Callable[[], Awaitable[_T]]) -> _T | None:
        failed = self._database
        try:
            return await work()
        except DamagedError as error:
            damage = error
        except sqlite3.DatabaseError as error:
            if not database.is_damage(error):
                self._note_trouble(str(error))
                return None
            damage = DamagedError(f"is damaged ({error})")
        except zlib.error as error:
            damage = DamagedError(f"is damaged ({error})")
        async with self._busy:
            await self._start_over(failed, damage)
        return None

    async def _start_over(self, failed: Database | None, damage: DamagedError) -> None:
        """A new database: of what is in memory, and of the journals for the rest."""
        if failed is not self._database:
            return  # somebody has seen it before
        if self.mode != "writer" or self._database is None:
            self._say(f"the database {damage}")
            return
        path, old = self._folder / database.NAME, self._database

        def renew() -> tuple[Database, str]:
            old.close()
            said = self._set_aside(path, damage)
            made = Database(path)
            made.open(writes=True)
            self._lock.write(
                {"pid": os.getpid(), "host": os.uname().nodename, "database": made.identity}
            )
            return made, said

        try:
            self._database, said = await self._run(renew)
        except (OSError, sqlite3.Error, DamagedError) as error:
            self._store.archive, self._database = None, None
            self._be_memory(f"{path} cannot be made anew ({error})")
            return
        self._say(said)
        for session in self._store.sessions.values():
            self._note_lost(session)
            self._dirty.add(session.session_id)

    def _note_lost(self, session: Session) -> None:
        mine = [
            run.columns[session.session_id]
            for run in self._store.runs_of(session)
            if session.session_id in run.columns
        ]
        if session.shelved or any(columns.partial for columns in mine):
            if session.place is not None:
                session.place = Place(session.place.path)
            self._store.start_again(session)
            session.away = True
            return
        for columns in mine:
            columns.note_lost()
        session.unsaved = list(session.events)

    async def _take_over(self) -> None:
        """The other dashboard is gone: this one writes."""
        try:
            if not await self._run(self._lock.acquire):
                return
        except OSError:
            return
        reading, self._database = self._database, None
        if reading is not None:
            await self._run(reading.close)
        try:
            listed, said = await self._run(self._open_or_set_aside)
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            self._say(f"the other dashboard is gone, but its database cannot be opened ({error})")
            return
        for line in said:
            self._say(line)
        self._be("writer", None)
        self._reconcile(listed)
        self._take_in(listed)
        self._say(f"the other dashboard is gone; this one writes the database of {self._folder}")

    def _reconcile(self, listed: Listed) -> None:
        """What the other has written since this one read the list is not overwritten."""
        written = {row["session_id"]: row["revision"] for row in listed.sessions}
        for session in tuple(self._store.sessions.values()):
            revision = written.get(session.session_id)
            if revision == session.revision:
                continue
            if revision is None and session.revision:
                self._note_lost(session)  # the other had it set aside
            elif revision is not None and not session.connected and not self._unsaved(session):
                self._store.forget(session)  # and taken in as it is now
            elif revision is not None:
                session.saves = False

    # -- reading (see reading.Archive) ------------------------------------------------------------

    async def open_all(self, sessions: Sequence[Session]) -> None:
        """Somebody asks for these: what only their journals have is read."""
        now = self._wall()
        for session in sessions:
            if now - session.opened_ts > OPENED_EVERY_S:
                session.opened_ts = now
                self._dirty.add(session.session_id)
            if session.away and self.read_journal is not None:
                await self.read_journal(session.session_id)

    async def rows(
        self,
        session_id: str,
        run_id: str,
        names: Sequence[str],
        columns: Columns,
        *,
        dated: bool = True,
    ) -> Block:
        """All rows of these columns, those that are not saved yet too."""
        saved, unsaved = columns.saved, columns.unsaved()

        def read() -> Block:
            assert self._database is not None
            base = self._database.rows.columns(session_id, run_id, names, saved, dated=dated)
            return joined([base, *unsaved], names) if unsaved else base

        return await self._read(read, joined([NO_ROWS, *unsaved], names))

    async def outline(
        self, session_id: str, run_id: str, names: Sequence[str], columns: Columns, buckets: int
    ) -> Outline | None:
        """What a chart of all rows needs, those that are not saved yet too; None: all of them."""
        saved, unsaved = columns.saved, columns.unsaved()

        def read() -> Outline | None:
            assert self._database is not None
            found = self._database.rows.outline(session_id, run_id, names, saved, buckets)
            if found is None or not all(found.add_rows(block) for block in unsaved):
                return None
            return found

        return await self._read(read, None)

    async def events(
        self, session_id: str, after: int, until: int, *, types: Sequence[str] | None,
        run_id: str | None, limit: int, newest: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Saved events that are no trainStep, oldest first: the oldest ``limit``, or the newest."""

        def read() -> list[dict[str, Any]]:
            assert self._database is not None
            return self._database.events(
                session_id, after, until, types=types, run_id=run_id, limit=limit, newest=newest
            )

        return await self._read(read, [])

    async def steps(
        self, session_id: str, run_id: str, after: int, until: int, *, limit: int, newest: bool
    ) -> tuple[Block, int]:
        """Saved rows with those numbers, the oldest ``limit`` or the newest, and how many."""

        def read() -> tuple[Block, int]:
            assert self._database is not None
            return self._database.rows.steps(
                session_id, run_id, after, until, limit=limit, newest=newest
            )

        return await self._read(read, (NO_ROWS, 0))

    async def _read(self, read: Callable[[], _T], if_lost: _T) -> _T:
        """What is in the database; ``if_lost`` if that was damaged, and is not there any more.

        Raises:
            CommandError: ``internal``, the disk.
        """
        found = await self._guarded(lambda: self._run(read))
        if found is None and self._trouble is not None:
            detail = f"The dashboard's database cannot be read ({self._trouble})."
            raise CommandError(ErrorCode.INTERNAL, detail)
        return if_lost if found is None else found

    async def close(self) -> None:
        """Save what is left and let go of the folder."""
        self._store.watchers.discard(self._on_change)
        self._ended.set()
        if self._thread is None:
            return
        await asyncio.gather(*self._at_work)
        await self.save_all()
        if self._database is not None:
            await self._run(self._database.close)
            self._database = None
        self._lock.release()
        thread, self._thread = self._thread, None
        await asyncio.to_thread(thread.shutdown)


def _usable(found: Database) -> Listed:
    """The list, if the store can take it in; thread.

    Raises:
        DamagedError: it cannot.
    """
    try:
        listed = found.listed()
        for row in listed.sessions:
            Session.from_row(row)
        for row in listed.runs:
            Run.from_row(row, {}, max_rows=0, saves=False)
        for saved in listed.columns:
            Columns.shelved_as(saved.meta, saved.rows, 0)
    except sqlite3.DatabaseError as error:
        if not database.is_damage(error):
            raise
        msg = f"cannot be read ({error})"
        raise DamagedError(msg) from error
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        msg = f"holds what no dashboard wrote ({error})"
        raise DamagedError(msg) from error
    return listed


def _body(session: Session) -> bytes:
    return _encode(session.to_row())


@dataclasses.dataclass
class _Taken:
    """What is on its way to the disk of one session."""

    store: Store
    session: Session

    def __post_init__(self) -> None:
        session = self.session
        key = session.session_id
        runs: list[Run] = self.store.runs_of(session)
        self._columns = [(run, run.columns[key]) for run in runs if key in run.columns]
        self._blocks = [columns.unsaved() for _, columns in self._columns]
        self._events, session.unsaved = session.unsaved, []
        session.revision += 1
        self.batch = Batch(
            key, session.revision, session.opened_ts, _body(session),
            [(run.project, run.run_id, _encode(run.to_row())) for run in runs],
            self._events,
            [
                (run.run_id, _encode(columns.meta()), blocks)
                for (run, columns), blocks in zip(self._columns, self._blocks, strict=True)
            ],
        )  # fmt: skip

    def settle(self) -> None:
        """It is there."""
        for (_, columns), blocks in zip(self._columns, self._blocks, strict=True):
            columns.note_saved(blocks)

    def put_back(self) -> None:
        """It is not."""
        self.session.unsaved = self._events + self.session.unsaved
        if not all(columns.saves for _, columns in self._columns):
            self.session.saves = False
