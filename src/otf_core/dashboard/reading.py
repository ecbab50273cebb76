"""What a run has told, from memory and database together; event loop only.

Rule: what is here is looked at before the first wait, the database afterwards and no further than
that, so the two fit together whatever comes meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from otf_core.dashboard.blocks import Outline
from otf_core.dashboard.columns import Block, Columns, View
from otf_core.dashboard.run import Run
from otf_core.dashboard.store import MAX_EVENTS, Session, Store
from otf_core.errors import CommandError


class Archive(Protocol):
    """Where the rest is; the keeper of the database."""

    async def open_all(self, sessions: Sequence[Session]) -> None:
        """Somebody asks for these: what only their journals have is read."""

    async def rows(
        self, session_id: str, run_id: str, names: Sequence[str], columns: Columns, *, dated: bool
    ) -> Block:
        """All rows of these columns, those that are not saved yet too; see ``Chunks.columns``."""

    async def outline(
        self, session_id: str, run_id: str, names: Sequence[str], columns: Columns, buckets: int
    ) -> Outline | None:
        """What a chart needs of these columns instead of all rows; None where it needs these."""

    async def events(
        self, session_id: str, after: int, until: int, *, types: Sequence[str] | None,
        run_id: str | None, limit: int, newest: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Saved events that are no trainStep, oldest first: the oldest ``limit``, or the newest."""

    async def steps(
        self, session_id: str, run_id: str, after: int, until: int, *, limit: int, newest: bool
    ) -> tuple[Block, int]:
        """Saved rows with those numbers, the oldest ``limit`` or the newest, and how many."""


async def views(
    store: Store, run: Run, names: Sequence[str], *, dated: bool = True
) -> tuple[list[str], list[View]]:
    """The columns of a run's sessions, in order, and the ids of these sessions.

    Not ``dated``: the times of the rows may be missing, which takes a third off what is read.
    """
    held: list[tuple[str, Columns]] = []
    found: list[View] = []
    for _ in range(2):  # once more, if the database turns out to be damaged
        await _open(store, [store.sessions[key] for key in run.session_ids])
        archive, held = store.archive, run.in_order()
        found = []
        for key, columns in held:
            if archive is None or not columns.partial:
                found.append(columns.view(names))
            else:
                block = await archive.rows(key, run.run_id, names, columns, dated=dated)
                found.append(columns.view_of(block))
        if not any(store.sessions[key].away for key in run.session_ids):
            break
    return [key for key, _ in held], found


async def outline(store: Store, run: Run, names: Sequence[str], buckets: int) -> Outline | None:
    """What a chart of a whole run needs, where that is less than its rows.

    Only of a run that one session has told and that never turned back: else rows are superseded.
    """
    archive, held = store.archive, run.in_order()
    if archive is None or len(held) != 1 or len(run.session_ids) != 1:
        return None
    [(key, columns)] = held
    if store.sessions[key].away or not columns.partial or columns.turned:
        return None
    return await archive.outline(key, run.run_id, names, columns, buckets)


async def _open(store: Store, sessions: Sequence[Session]) -> None:
    if store.archive is not None:
        await store.archive.open_all(sessions)


async def events(
    store: Store, session: Session, *, after: int, types: frozenset[str] | None,
    run_id: str | None, limit: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Kept events with a higher number, oldest first; trainSteps only if asked for."""
    found: list[dict[str, Any]] = []
    for _ in range(2):  # as above
        await _open(store, [session])
        found = await _events(store, session, after, types, run_id, limit)
        if not session.away:
            break
    return found


async def _events(
    store: Store, session: Session, after: int, types: frozenset[str] | None,
    run_id: str | None, limit: int,
) -> list[dict[str, Any]]:  # fmt: skip
    archive = store.archive
    here = store.events(session, after=after, types=types, run_id=run_id, limit=limit)
    if archive is None or not _is_partial(store, session):
        return here
    until = session.have.highest
    wanted = None if types is None else sorted(types)
    found = await archive.events(
        session.session_id, after, until, types=wanted, run_id=run_id, limit=limit
    )
    if types is not None and "trainStep" in types:
        for run, columns in _columns_of(store, session):
            if run_id in (None, run.run_id):
                block, _ = await archive.steps(
                    session.session_id, run.run_id, after, until, limit=limit, newest=False
                )
                found += _told(session, run, columns, block, after, until)
    return _once(found + here)[:limit]


async def history(
    store: Store, session: Session, after: int, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """All after a number for a page: every event, the newest ``limit`` trainSteps.

    Returns the events in order and how many trainSteps were left out. With a disk that fails, what
    is in memory.
    """
    await _open(store, [session])
    here, left_out = store.history(session, after, limit)
    archive = store.archive
    if archive is None or not _is_partial(store, session):
        return here, left_out
    try:
        return await _history(store, archive, session, after, limit, here)
    except CommandError:
        return here, left_out


async def _history(
    store: Store, archive: Archive, session: Session, after: int, limit: int,
    here: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    until = session.have.highest
    unsaved = {
        run.key: [seq for block in columns.unsaved() for seq in block.seq if seq > after]
        for run, columns in _columns_of(store, session)
    }
    found = await archive.events(
        session.session_id, after, until, types=None, run_id=None, limit=MAX_EVENTS, newest=True
    )
    left_out = 0
    for run, columns in _columns_of(store, session):
        block, saved = await archive.steps(
            session.session_id, run.run_id, after, until, limit=limit, newest=True
        )
        told = _told(session, run, columns, block, after, until)
        mine = [e for e in here if e["type"] == "trainStep" and e.get("run_id") == run.run_id]
        newest = _once(told + mine)[-limit:] if limit else []
        left_out += max(0, saved + len(unsaved.get(run.key, ())) - len(newest))
        found += newest
    return _once(found + [e for e in here if e["type"] != "trainStep"]), left_out


def _is_partial(store: Store, session: Session) -> bool:
    return session.shelved or any(columns.partial for _, columns in _columns_of(store, session))


def _columns_of(store: Store, session: Session) -> list[tuple[Run, Columns]]:
    key = session.session_id
    return [(run, run.columns[key]) for run in store.runs.values() if key in run.columns]


def _told(
    session: Session, run: Run, columns: Columns, block: Block, after: int, until: int
) -> list[dict[str, Any]]:
    rows = [row for row, seq in enumerate(block.seq) if after < seq <= until]
    stamps = {"run_id": run.run_id, "session_id": session.session_id}
    return block.events(rows, stamps, columns.logged)


def _once(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of event_seq; one that was found twice is there once."""
    by_seq = {event["event_seq"]: event for event in found}
    return [by_seq[seq] for seq in sorted(by_seq)]
