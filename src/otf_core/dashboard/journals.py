"""Journals of past runs: ``<dir>/<project>/<run_id>/journal/<session_id>.jsonl``.

Rule 1: read, never written. A half last line, or one that is no event, is left out and said by
``journal_complete`` of the session.
Rule 2: a run that was resumed has several, in the order of ``session_ids`` in its ``run.json``.
Rule 3: the newest first, at most ``MAX_FILES`` and ``MAX_BYTES``; the rest stays on the disk.
Rule 4: files are read and decoded in a worker thread, pieces of ``PIECE_BYTES``, and taken into the
store on the event loop, so that trainers and pages are served meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from otf_core.dashboard.store import Session, Store
from otf_core.errors import RemoteProtocolError
from otf_core.protocol import decode_message

MAX_FILES: Final = 200
MAX_BYTES: Final = 512 * 1024 * 1024
PIECE_BYTES: Final = 1024 * 1024


class Journals:
    """The journals below a folder; event loop only."""

    def __init__(self, folder: Path, store: Store, say: Callable[[str], None]) -> None:
        self._folder, self._store, self._say = folder, store, say
        self._waiting: dict[str, Path] = {}
        self._lock = asyncio.Lock()

    def find(self) -> None:
        """Note which there are; reads only the folders."""
        found = []
        for path in self._folder.glob("*/*/journal/*.jsonl"):
            try:
                stat = path.stat()
            except OSError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True)[:MAX_FILES]:
            total += size
            if total > MAX_BYTES:
                break
            self._waiting.setdefault(path.stem, path)
        left_out = len(found) - len(self._waiting)
        if left_out:
            self._say(f"{left_out} older journals below {self._folder} are not read")

    async def load_all(self) -> None:
        """Read what was found, newest first."""
        while self._waiting:
            await self.load(next(iter(self._waiting)))

    async def load_run(self, run_dir: Path) -> None:
        """Read what other sessions of a run have written: a trainer has come back to its folder."""
        names = await asyncio.to_thread(lambda: sorted(run_dir.glob("journal/*.jsonl")))
        await self._note_order(run_dir)
        for path in names:
            self._waiting.setdefault(path.stem, path)
            await self.load(path.stem)

    async def load(self, session_id: str) -> None:
        """Read the journal of one session, if there is one that has not been read."""
        async with self._lock:
            path = self._waiting.pop(session_id, None)
            if path is None or session_id in self._store.sessions:
                return
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except OSError as error:
                self._say(f"the journal {path} cannot be read ({error})")
                return
            await self._note_order(path.parent.parent)
            with file:
                await self._read(file, session_id, path.parent.parent)

    async def _note_order(self, run_dir: Path) -> None:
        session_ids = await asyncio.to_thread(_session_ids, run_dir)
        if session_ids:
            self._store.note_order(run_dir.parent.name, run_dir.name, session_ids)

    async def _read(self, file: BinaryIO, session_id: str, run_dir: Path) -> None:
        session = self._store.session(session_id, source="journal")
        session.run_dir = run_dir
        session.run_id = session.run_name = run_dir.name
        self._store.name_project(session, run_dir.parent.name)
        rest = b""
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            await self._take(session, lines)
        if rest.strip():
            session.lines_lost = True  # the process died while it wrote
        session.run_dir = run_dir  # where the files are now, not where they were written

    async def _take(self, session: Session, lines: list[bytes]) -> None:
        events, lost = await asyncio.to_thread(_decode, lines)
        session.lines_lost = session.lines_lost or lost
        for at in range(0, len(events), 1000):
            for event, line in events[at : at + 1000]:
                self._store.add(session, event, line)
            await asyncio.sleep(0)


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
