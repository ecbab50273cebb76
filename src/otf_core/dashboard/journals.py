"""Journals of past runs: ``<dir>/<project>/<run_id>/journal/<session_id>.jsonl``.

Rule 1: read, never written. A half last line, or one that is no event, is left out and said by
``journal_complete`` of the session.
Rule 2: a run that was resumed has several, in the order of ``session_ids`` in its ``run.json``.
Rule 3: read once. The store knows how far each has been read (``Place``): one that is as it was is
not opened, one that has grown is read from there, another file under that name from its beginning.
Line n is event n: what its trainer has told already is passed over unread.
Rule 4: the newest first. Files are read and decoded in a worker thread, pieces of ``PIECE_BYTES``,
and taken into the store on the event loop, so that trainers and pages are served meanwhile.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from otf_core.dashboard.keeper import Keeper
from otf_core.dashboard.store import Change, Place, Session, Store
from otf_core.errors import RemoteProtocolError
from otf_core.protocol import decode_message

PIECE_BYTES: Final = 1024 * 1024
TAIL_BYTES: Final = 4096  # before a place, by which the file is known again


class Journals:
    """The journals below a folder; event loop only."""

    def __init__(
        self, folder: Path, store: Store, say: Callable[[str], None], keeper: Keeper
    ) -> None:
        self._folder = folder.absolute()
        self._store, self._say, self._keeper = store, say, keeper
        self._waiting: dict[str, Path] = {}
        self._lock = asyncio.Lock()
        keeper.read_journal, keeper.read_run = self.load, self.load_run

    async def find(self) -> None:
        """Note which there are to read; looks at the folders only."""
        found = await asyncio.to_thread(_journals_below, self._folder)
        for path, size, mtime_ns in found:
            session = self._store.sessions.get(path.stem)
            if session is not None and session.place is not None:
                # The folder may have been moved.
                session.place = dataclasses.replace(session.place, path=str(path))
            if self._is_news(path, size, mtime_ns):
                self._waiting.setdefault(path.stem, path)
        there = {path.stem for path, _, _ in found}
        gone = [
            session
            for session in self._store.sessions.values()
            if session.place is not None and session.session_id not in there
            if Path(session.place.path).is_relative_to(self._folder)
            if await asyncio.to_thread(_is_gone, Path(session.place.path))
        ]
        for session in gone:
            await self._keeper.forget(session)
        if gone:
            self._say(f"{len(gone)} sessions whose journals are gone were taken off the list")

    def _is_news(self, path: Path, size: int, mtime_ns: int) -> bool:
        session = self._store.sessions.get(path.stem)
        if session is None or session.place is None:
            return True
        if session.away:  # read when somebody opens it
            return False
        return (session.place.size, session.place.mtime_ns) != (size, mtime_ns)

    async def load_all(self) -> None:
        """Read what was found, newest first; returns when all is read, by whomever."""
        while self._waiting:
            await self.load(next(iter(self._waiting)))
        async with self._lock:
            pass

    async def load_run(self, run_dir: Path) -> None:
        """Read what other sessions of a run have written: a trainer has come back to its folder."""
        found = await asyncio.to_thread(_journals_of, run_dir)
        await self._note_order(run_dir)
        for path, size, mtime_ns in found:
            if self._is_news(path, size, mtime_ns):
                self._waiting.setdefault(path.stem, path)
                await self.load(path.stem)

    async def load(self, session_id: str) -> None:
        """Read what the journal of one session has more than is known, if it has."""
        async with self._lock:
            path = self._waiting.pop(session_id, None)
            session = self._store.sessions.get(session_id)
            if session is not None and session.away and session.place is not None:
                path = Path(session.place.path)
                if not session.connected:
                    self._store.start_again(session)
                session.away = False
            elif session is not None and session.connected:
                return
            if path is None:
                return
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except OSError as error:
                self._say(f"the journal {path} cannot be read ({error})")
                return
            await self._note_order(path.parent.parent)
            with file:
                await self._read(file, session_id, path)

    async def _note_order(self, run_dir: Path) -> None:
        session_ids = await asyncio.to_thread(_session_ids, run_dir)
        if session_ids:
            self._store.note_order(run_dir.parent.name, run_dir.name, session_ids)

    async def _read(self, file: BinaryIO, session_id: str, path: Path) -> None:
        run_dir = path.parent.parent
        is_new = session_id not in self._store.sessions
        session = self._store.session(session_id, source="journal")
        if is_new:
            session.run_dir = run_dir
            session.run_id = session.run_name = run_dir.name
            self._store.name_project(session, run_dir.parent.name)
        begins = await asyncio.to_thread(
            _find_place, file, path, session.place, session.have.contiguous
        )
        if begins is None:
            await self._keeper.begin_again(session, str(path))
            begins = await asyncio.to_thread(_find_place, file, path, None, 0)
        session.place = begins
        rest = b""
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            await self._take(session, lines)
            await self._keeper.relieve(session)
        session.half_line = bool(rest.strip())  # the process died while it wrote, or it writes
        session.place = await asyncio.to_thread(_leave, file, session.place)
        session.run_dir = run_dir  # where the files are now, not where they were written
        for run in self._store.runs_of(session):
            # In whatever order they were read, and whoever looked meanwhile.
            run.recount = run.recount or (len(run.session_ids) > 1 and "val_loss" in run.names())
        self._store.changed(session, Change(session=True))

    async def _take(self, session: Session, lines: list[bytes]) -> None:
        events, lost = await asyncio.to_thread(_decode, lines)
        session.lines_lost = session.lines_lost or lost
        for at in range(0, len(events), 1000):
            for event, line in events[at : at + 1000]:
                self._store.add(session, event, line)
            await asyncio.sleep(0)
        if session.place is not None:
            read = sum(map(len, lines)) + len(lines)
            session.place = dataclasses.replace(
                session.place, bytes=session.place.bytes + read,
                lines=session.place.lines + len(lines), tail_crc=None,
            )  # fmt: skip


_Found = tuple[Path, int, int]  # path, size, mtime_ns


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # nobody can tell
    return False


def _journals_below(folder: Path) -> list[_Found]:
    """The newest first; any thread."""
    return sorted(_stats(folder.glob("*/*/journal/*.jsonl")), key=lambda f: f[2], reverse=True)


def _journals_of(run_dir: Path) -> list[_Found]:
    return sorted(_stats(run_dir.glob("journal/*.jsonl")))


def _stats(paths: Iterable[Path]) -> Iterator[_Found]:
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        yield path, stat.st_size, stat.st_mtime_ns


def _find_place(file: BinaryIO, path: Path, known: Place | None, told: int) -> Place | None:
    """Where to go on, the file put there; None if what was read is not in it any more.

    ``told``: so many events are known already, and need no reading. Any thread.
    """
    stat = os.fstat(file.fileno())
    place = Place(str(path), size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    if known is not None and known.bytes:
        if known.bytes > stat.st_size:
            return None
        if known.tail_crc is not None and known.tail_crc != _tail_crc(file, known.bytes):
            return None
        place = dataclasses.replace(place, bytes=known.bytes, lines=known.lines)
    if told > place.lines:
        place = _pass_over(file, place, told)
    file.seek(place.bytes)
    return place


def _pass_over(file: BinaryIO, place: Place, told: int) -> Place:
    """Behind line ``told``, if that is event ``told``; else where it was."""
    file.seek(place.bytes)
    at, lines = place.bytes, place.lines
    while piece := file.read(PIECE_BYTES):
        count = piece.count(b"\n")
        if lines + count < told:
            at, lines = at + len(piece), lines + count
            continue
        end = -1
        for _ in range(told - lines):
            end = piece.index(b"\n", end + 1)
        at += end + 1
        file.seek(max(0, at - PIECE_BYTES))
        last = file.read(at - file.tell()).split(b"\n")[-2]
        events, _ = _decode([last])
        if events and events[0][0].get("event_seq") == told:
            return dataclasses.replace(place, bytes=at, lines=told)
        break
    return place


def _tail_crc(file: BinaryIO, end: int) -> int:
    start = max(0, end - TAIL_BYTES)
    file.seek(start)
    return zlib.crc32(file.read(end - start))


def _leave(file: BinaryIO, place: Place | None) -> Place | None:
    """With what the file is known by next time; any thread."""
    if place is None:
        return None
    return dataclasses.replace(place, tail_crc=_tail_crc(file, place.bytes))


def _session_ids(run_dir: Path) -> list[str]:
    """The sessions of a run as its ``run.json`` has them, none if it cannot be read."""
    try:
        record = json.loads((run_dir / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    named = record.get("session_ids") if isinstance(record, dict) else None
    return [key for key in named if isinstance(key, str)] if isinstance(named, list) else []


def _decode(lines: list[bytes]) -> tuple[list[tuple[dict[str, Any], bytes]], bool]:
    events: list[tuple[dict[str, Any], bytes]] = []
    lost = False
    for line in lines:
        if not line.strip():
            continue
        try:
            event = decode_message(line)
        except RemoteProtocolError:
            lost = True
            continue
        if isinstance(event.get("type"), str):
            events.append((event, line.strip()))
        else:
            lost = True
    return events, lost
