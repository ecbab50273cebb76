"""What trainers have said, in bounded memory; event loop only.

Rule 1: an event is kept once, by (session_id, event_seq), however often it comes.
Rule 2: trainSteps go to columns (``columns.py``); other events are kept as they are, at most
``MAX_EVENTS`` and ``MAX_EVENT_BYTES`` a session: over that the oldest ``log`` and ``testStep`` go
first, then the oldest of all.
Rule 3: what a database has need not be here (``keeper.py``, ``reading.py``): of a session that
nobody trains no more than is listed, of one that trains the newest.
Rule 4: a run belongs to (project, run_id); a resumed run has several sessions, in the order that
its run.json gives, else by their start. A later one supersedes the earlier from its first step on.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otf_core.dashboard.columns import MAX_ROWS, Columns, is_count
from otf_core.dashboard.run import Run, is_number

if TYPE_CHECKING:
    from otf_core.dashboard.reading import Archive

MAX_EVENTS: Final = 50_000
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
MAX_UNSAVED_EVENTS: Final = 50_000  # of a session; over it, it is kept in memory alone
MAX_FEED_BYTES: Final = 32 * 1024 * 1024
MAX_FEED: Final = 20_000  # lines a live page may be behind before it is served from the store
ENDED: Final = {"completed": "finished", "stopped": "interrupted", "failed": "failed"}
FINAL: Final = frozenset(ENDED.values())
_OF_THE_RUN: Final = frozenset({"checkpoint_saved", "auto_test_complete"})
_CHATTER: Final = frozenset({"log", "testStep"})


class Ranges:
    """A set of positive integers as ranges; cheap when they come in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, number: int) -> bool:
        at = bisect.bisect_right(self._starts, number) - 1
        return at >= 0 and number <= self._ends[at]

    def add(self, first: int, last: int | None = None) -> None:
        """Take in ``first`` … ``last``."""
        last = first if last is None else last
        if self._ends and self._starts[-1] <= first <= self._ends[-1] + 1:
            self._ends[-1] = max(self._ends[-1], last)
            return
        low = bisect.bisect_left(self._ends, first - 1)
        high = bisect.bisect_right(self._starts, last + 1)
        if low < high:
            first = min(first, self._starts[low])
            last = max(last, self._ends[high - 1])
        self._starts[low:high], self._ends[low:high] = [first], [last]

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ranges within ``first`` … ``last`` that are not held."""
        holes = []
        for start, end in zip(self._starts, self._ends, strict=True):
            if end < first:
                continue
            if start > last:
                break
            if start > first:
                holes.append((first, start - 1))
            first = end + 1
        if first <= last:
            holes.append((first, last))
        return holes

    def to_json(self) -> list[list[int]]:
        """First and last of each range."""
        return [[*pair] for pair in zip(self._starts, self._ends, strict=True)]

    @classmethod
    def from_json(cls, pairs: Iterable[tuple[int, int]]) -> Ranges:
        """What ``to_json`` made."""
        made = cls()
        for first, last in pairs:
            made.add(first, last)
        return made

    @property
    def contiguous(self) -> int:
        """The highest n with all of 1 … n held; 0 if 1 is missing."""
        return self._ends[0] if self._starts and self._starts[0] <= 1 else 0

    @property
    def highest(self) -> int:
        """The highest number held, 0 if none."""
        return self._ends[-1] if self._ends else 0


@dataclasses.dataclass(frozen=True)
class Place:
    """How far a journal has been read, and what the file was then."""

    path: str
    bytes: int = 0
    lines: int = 0
    tail_crc: int | None = None  # of the last bytes before; tells a file that was replaced
    size: int = 0
    mtime_ns: int = 0


@dataclasses.dataclass
class Session:
    """One process (or reset) that trains or has trained."""

    session_id: str
    started_ts: float
    run_id: str = "live"
    project: str = ""
    run_name: str = ""
    source: str = "live"  # or "journal": read from disk, no trainer has come
    state: str = "starting"
    reason: str | None = None
    step: int = 0
    epoch: int | None = None
    connected: bool = False
    protocol: str = "legacy"
    pid: int | None = None
    host: str | None = None
    device: str | None = None
    version: str | None = None
    capabilities: list[str] = dataclasses.field(default_factory=list)
    max_steps: int | None = None
    max_epochs: int | None = None
    params: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    last_checkpoint: dict[str, Any] | None = None
    exactness: str | None = None
    status: dict[str, Any] | None = None
    status_ts: float | None = None
    cadence: dict[str, Any] = dataclasses.field(default_factory=dict)
    finished: dict[str, Any] | None = None
    last_ts: float | None = None
    run_dir: Path | None = None
    lines_lost: bool = False
    known_last_seq: int = 0  # what the trainer had when it last told its state
    have: Ranges = dataclasses.field(default_factory=Ranges)
    settled: Ranges = dataclasses.field(default_factory=Ranges)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    event_bytes: int = 0
    pending: Callable[[], list[dict[str, Any]]] = list
    ranks: bytes | None = None  # the newest event ``ranks``, as it came
    # How far its journal has been read, if it has one that can be.
    place: Place | None = None
    half_line: bool = False  # at the end of the journal, when it was read
    # What a database has of it.
    saves: bool = False  # somebody writes into one
    revision: int = 0
    unsaved: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    shelved: bool = False  # events are there that are not here
    away: bool = False  # nor there: they are in the journal alone
    opened_ts: float = 0.0

    def __post_init__(self) -> None:
        self._next_seq = 0  # for trainers that stamp none
        self._sizes: collections.Counter[int] = collections.Counter()
        # Number of the event, whether it is a step, and its line.
        self.feed: collections.deque[tuple[int, bool, bytes]] = collections.deque()
        self.fed = 0  # lines ever put into the feed
        self._feed_bytes = 0

    def show(self, seq: int, line: bytes, *, is_step: bool = False) -> None:
        """Put a line into the feed; the oldest go when it is too long or too large."""
        self.feed.append((seq, is_step, line))
        self.fed += 1
        self._feed_bytes += len(line)
        while len(self.feed) > MAX_FEED or (self._feed_bytes > MAX_FEED_BYTES and self.feed):
            self._feed_bytes -= len(self.feed.popleft()[2])

    @property
    def shown_state(self) -> str:
        """The state for others: what the trainer said, or why it says nothing."""
        if self.source == "journal":
            return "journal"
        if not self.connected and self.state not in FINAL:
            return "lost"
        return self.state

    def to_json(self) -> dict[str, Any]:
        """``Session`` of the API."""
        plain = (
            "session_id", "run_id", "project", "run_name", "reason", "step", "epoch", "max_steps",
            "max_epochs", "connected", "protocol", "pid", "host", "device", "version", "started_ts",
            "last_ts", "capabilities", "params", "last_checkpoint", "exactness", "status",
            "status_ts", "cadence", "finished",
        )  # fmt: skip
        last = self.have.highest
        return {
            **{name: getattr(self, name) for name in plain},
            "state": self.shown_state,
            "last_seq": last,
            "pending": self.pending(),
            "journal_complete": self.have.contiguous == last
            and not self.lines_lost
            and not self.half_line,
        }

    def to_row(self) -> dict[str, Any]:
        """What a database lists."""
        return {
            **{name: getattr(self, name) for name in _ROW_FIELDS},
            "run_dir": str(self.run_dir) if self.run_dir is not None else None,
            "place": self.place,
            "have": self.have.to_json(),
            "settled": self.settled.to_json(),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Session:
        """A session as a database lists it; no trainer has come."""
        made = cls(row["session_id"], row["started_ts"], source="journal", saves=True, shelved=True)
        for name in _ROW_FIELDS:
            setattr(made, name, row[name])
        made.run_dir = Path(row["run_dir"]) if row["run_dir"] is not None else None
        made.place = Place(**row["place"]) if row["place"] is not None else None
        made.have, made.settled = Ranges.from_json(row["have"]), Ranges.from_json(row["settled"])
        made.revision, made.opened_ts = row["revision"], row["opened_ts"]
        made._next_seq = made.have.highest
        return made

    def note_last_checkpoint(self, said: dict[str, Any]) -> None:
        """What status says of it; size and kind, which only its event says, are kept."""
        known = self.last_checkpoint or {}
        self.last_checkpoint = known | said if known.get("path") == said.get("path") else said

    def take_seq(self, event: dict[str, Any]) -> bool:
        """Note the number of an event; False if it is held already."""
        seq = event.get("event_seq")
        if not is_count(seq) or seq < 1:
            seq = event["event_seq"] = max(self._next_seq, self.have.highest) + 1
        self._next_seq = seq
        if seq in self.have:
            return False
        self.have.add(seq)
        self.settled.add(seq)
        return True

    def keep(self, event: dict[str, Any], size: int) -> None:
        """Keep an event that is no trainStep, in order of event_seq."""
        if self.events and self.events[-1]["event_seq"] > event["event_seq"]:
            bisect.insort(self.events, event, key=_seq_of)
        else:
            self.events.append(event)
        if self.saves:
            self.unsaved.append(event)
            if len(self.unsaved) > MAX_UNSAVED_EVENTS:
                self.saves = False
                self.unsaved.clear()
        self._sizes[event["event_seq"]] = size
        self.event_bytes += size
        if len(self.events) > MAX_EVENTS or self.event_bytes > MAX_EVENT_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """A tenth goes at once, so that the next thousand events cost nothing."""
        count = max(1, len(self.events) // 10)
        chatter = [e["event_seq"] for e in self.events if e["type"] in _CHATTER][:count]
        gone = set(chatter or [e["event_seq"] for e in self.events[:count]])
        self._let_go(gone)

    def shelve(self) -> None:
        """Let go of the events that the database has."""
        held = {event["event_seq"] for event in self.unsaved}
        self._let_go({e["event_seq"] for e in self.events} - held)

    def _let_go(self, gone: set[int]) -> None:
        self.events = [e for e in self.events if e["event_seq"] not in gone]
        self.shelved = self.shelved or (self.saves and bool(gone))
        self.event_bytes -= sum(self._sizes.pop(seq, 0) for seq in gone)


def _seq_of(event: Mapping[str, Any]) -> int:
    return int(event["event_seq"])


_ROW_FIELDS: Final = (
    "session_id", "started_ts", "run_id", "project", "run_name", "state", "reason", "step", "epoch",
    "protocol", "pid", "host", "device", "version", "capabilities", "max_steps", "max_epochs",
    "params", "last_checkpoint", "exactness", "status", "status_ts", "cadence", "finished",
    "last_ts", "lines_lost", "known_last_seq", "half_line", "away",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """What an event has changed, for who watches."""

    session: bool = False
    run: Run | None = None
    urgent: bool = False
    ranks: bool = False


class Store:
    """All sessions and runs."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        max_rows: int = MAX_ROWS,
        runs_dir: Path | None = None,
    ) -> None:
        self._wall, self.max_rows, self.runs_dir = wall, max_rows, runs_dir
        self.sessions: dict[str, Session] = {}
        self.runs: dict[tuple[str, str], Run] = {}
        self._orders: dict[tuple[str, str], list[str]] = {}
        self.watchers: set[Callable[[Session, Change], None]] = set()
        self.saves = False  # a database is fed from here
        self.archive: Archive | None = None  # and read
        self.kept: dict[str, Any] = {"mode": "memory", "text": None}  # by whom; see keeper.py

    def session(self, session_id: str, *, source: str = "live") -> Session:
        """The session of that id, made if it is new."""
        found = self.sessions.get(session_id)
        if found is None:
            found = Session(session_id, self._wall(), source=source, saves=self.saves)
            self.sessions[session_id] = found
        return found

    def find_run(self, run_id: str, project: str | None = None) -> Run | None:
        """The newest run of that id, of that project if one is named."""
        fits = [
            run
            for run in self.runs.values()
            if run.run_id == run_id and project in (None, run.project)
        ]
        return max(fits, key=lambda run: run.created_ts or 0.0, default=None)

    def changed(self, session: Session, change: Change) -> None:
        """Tell the watchers; also for what no event says (connected, status, receipts)."""
        for watch in tuple(self.watchers):
            watch(session, change)

    def add(self, session: Session, event: dict[str, Any], line: bytes) -> bool:
        """Take in one numbered event; False if it was held already."""
        if not session.take_seq(event):
            return False
        kind = event.get("type")
        ts = event.get("ts")
        if is_number(ts):
            if session.last_ts is None:
                session.started_ts = min(session.started_ts, float(ts))
            session.last_ts = max(session.last_ts or 0.0, float(ts))
        newest = event["event_seq"] == session.have.highest
        # An old event that is replayed says how it was, not how it is.
        current = newest and event["event_seq"] >= session.known_last_seq
        if kind == "trainStep":
            run = self._run_of(session, event)
            if run.columns_of(session.session_id).add(event):
                run.superseded_from(event["step"])
            self._bound(run)
            if newest:
                run.note_step(session.session_id, event)
            if current:
                self._note_train_step(session, event)
            change = Change(run=run)
        else:
            session.keep(event, len(line))
            run = self._run_of(session, event)
            reduce = _REDUCERS.get(str(kind))
            if reduce is not None:
                reduce(session, run, event, newest if kind in _OF_THE_RUN else current)
            change = Change(session=True, run=run, urgent=kind not in _CHATTER)
        if session.source == "live":  # who opens a journal reads the store
            session.show(event["event_seq"], line, is_step=kind == "trainStep")
        self.changed(session, change)
        return True

    def _run_of(self, session: Session, event: Mapping[str, Any]) -> Run:
        run_id = event.get("run_id")
        run_id = run_id if isinstance(run_id, str) and run_id else session.run_id
        if event.get("type") in ("session_started", "newRun"):
            project = event.get("project")
            if isinstance(project, str) and project:
                self.name_project(session, project)
        run = self.runs.get((session.project, run_id))
        if run is None:
            run = Run(
                session.project, run_id, run_id, session.started_ts, max_rows=self.max_rows,
                saves=self.saves,
            )  # fmt: skip
            self.runs[run.key] = run
        if session.session_id not in run.session_ids:
            run.session_ids.append(session.session_id)
            self._put_in_order(run)
        return run

    def runs_of(self, session: Session) -> list[Run]:
        """The runs that a session has told of."""
        return [run for run in self.runs.values() if session.session_id in run.session_ids]

    def put_back(self, session: Session) -> None:
        """A session as a database lists it."""
        self.sessions[session.session_id] = session

    def put_back_run(self, row: Mapping[str, Any], columns: Mapping[str, Columns]) -> None:
        """A run as a database lists it, with the columns of its sessions."""
        found = Run.from_row(row, columns, max_rows=self.max_rows, saves=self.saves)
        found.session_ids = [key for key in found.session_ids if key in self.sessions]
        run = self.runs.get(found.key)
        if run is not None:
            run.take_in(found)
            self._put_in_order(run)
        elif any(self.sessions[key].project == found.project for key in found.session_ids):
            self.runs[found.key] = found

    def forget(self, session: Session) -> list[tuple[str, str]]:
        """A session is no more; the keys of the runs that were its alone, which are gone too."""
        del self.sessions[session.session_id]
        gone = []
        for run in self.runs_of(session):
            run.forget(session.session_id)
            if not run.session_ids:
                del self.runs[run.key]
                gone.append(run.key)
        return gone

    def start_again(self, session: Session) -> None:
        """Its events and rows are told again from the first; what is listed of it stays."""
        session.have, session.settled = Ranges(), Ranges()
        session.events, session.unsaved, session.event_bytes = [], [], 0
        session.shelved = session.away = False
        for run in self.runs_of(session):
            run.columns.pop(session.session_id, None)

    def note_order(self, project: str, run_id: str, session_ids: list[str]) -> None:
        """The sessions of a run in their order, as its run.json has them."""
        self._orders[project, run_id] = session_ids
        run = self.runs.get((project, run_id))
        if run is not None:
            self._put_in_order(run)

    def _put_in_order(self, run: Run) -> None:
        named = {key: at for at, key in enumerate(self._orders.get(run.key, ()))}

        def place(key: str) -> tuple[int, float]:
            return named.get(key, len(named)), self.sessions[key].started_ts

        run.session_ids.sort(key=place)

    def name_project(self, session: Session, project: str) -> None:
        """Put a session, and what it said before its project was known, into a project."""
        if session.project == project:
            return
        session.project = project
        for run in [r for r in self.runs.values() if r.session_ids == [session.session_id]]:
            if not run.project and (project, run.run_id) not in self.runs:
                del self.runs[run.key]
                run.project = project
                self.runs[run.key] = run

    def note_run_dir(self, session: Session, run_dir: str) -> None:
        """Where a session keeps its files, as its trainer says."""
        session.run_dir = Path(run_dir)

    def feed_only(self, session: Session, line: bytes) -> None:
        """Show a line to the pages that are there now; it is not kept."""
        session.show(0, line)
        self.changed(session, Change(urgent=True))

    def note_ranks(self, session: Session, line: bytes) -> None:
        """How its ranks fare now; the newest alone is kept, and no earlier one is told."""
        session.ranks = line
        self.changed(session, Change(ranks=True))

    def _bound(self, run: Run) -> None:
        if len(run.columns) > 1:
            sizes = {key: columns.in_memory for key, columns in run.in_order()}
            if sum(sizes.values()) > self.max_rows:
                oldest = next((key for key, size in sizes.items() if size >= 4), None)
                if oldest is not None:
                    run.columns[oldest].thin()

    @staticmethod
    def _note_train_step(session: Session, event: Mapping[str, Any]) -> None:
        step, epoch, run_id = event.get("step"), event.get("epoch"), event.get("run_id")
        if is_count(step):
            session.step = step
        if is_number(epoch):
            session.epoch = int(epoch)
        if isinstance(run_id, str) and run_id:
            session.run_id = run_id
        # A legacy trainer never says "running"; one of ours says all its states itself.
        if session.protocol == "legacy" and session.state in ("starting", "paused"):
            session.state = "running"

    def events(
        self,
        session: Session,
        *,
        after: int = 0,
        types: frozenset[str] | None = None,
        run_id: str | None = None,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Kept events with a higher number, oldest first; trainSteps only if asked for."""
        start = bisect.bisect_right(session.events, after, key=_seq_of)
        found: Iterable[dict[str, Any]] = (
            event
            for event in session.events[start:]
            if (types is None or event["type"] in types)
            and (run_id is None or event.get("run_id", run_id) == run_id)
        )
        if types is None or "trainStep" not in types:
            return list(_take(iter(found), limit))
        made = list(_take(iter(found), limit))
        for run in self.runs.values():
            columns = run.columns.get(session.session_id)
            if columns is not None and run_id in (None, run.run_id):
                stamps = {"run_id": run.run_id, "session_id": session.session_id}
                made += columns.events(columns.rows_after(after)[:limit], stamps)
        return sorted(made, key=_seq_of)[:limit]

    def history(self, session: Session, after: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """All after a number for a page: every event, the newest ``limit`` trainSteps.

        Returns the events in order and how many trainSteps were left out.
        """
        start = bisect.bisect_right(session.events, after, key=_seq_of)
        steps: list[dict[str, Any]] = []
        left_out = 0
        for run in self.runs.values():
            columns = run.columns.get(session.session_id)
            if columns is not None:
                rows = columns.rows_after(after)
                left_out += max(0, len(rows) - limit)
                stamps = {"run_id": run.run_id, "session_id": session.session_id}
                steps += columns.events(rows[-limit:], stamps)
        return sorted(session.events[start:] + steps, key=_seq_of), left_out


def _take(found: Iterator[dict[str, Any]], limit: int) -> Iterator[dict[str, Any]]:
    for _, event in zip(range(limit), found, strict=False):
        yield event


Reducer = Callable[[Session, Run, dict[str, Any], bool], None]
_REDUCERS: dict[str, Reducer] = {}


def _on(*kinds: str) -> Callable[[Reducer], Reducer]:
    def register(reduce: Reducer) -> Reducer:
        _REDUCERS.update(dict.fromkeys(kinds, reduce))
        return reduce

    return register


# What ``newRun`` says of how a run came to be.
_MADE: Final = (
    *("kind", "from", "at_step", "init_from", "subset_count", "selection"),
    *("strategy", "optimizer", "sources"),
)


@_on("session_started", "newRun")
def _started(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: FBT001 -- reducers are called by the table only
    name, parents = event.get("run_name"), event.get("parents")
    meta = event.get("meta") if isinstance(event.get("meta"), dict) else {}
    assert isinstance(meta, dict)  # for the type checker
    if isinstance(name, str) and name:
        run.run_name = name
    if isinstance(parents, list) and not run.parents:
        run.parents = [str(parent) for parent in parents]
    if event["type"] == "newRun":
        run.made = {key: meta[key] for key in _MADE if key in meta}
    ts = event.get("ts")
    if event["type"] == "newRun" and is_number(ts):
        # A later session of the run may have been read first.
        run.created_ts = min(run.created_ts or ts, ts) if run.columns else ts
    run_dir = event.get("run_dir") or meta.get("run_dir")
    if isinstance(run_dir, str) and run_dir:
        session.run_dir = Path(run_dir)
    cadence = event.get("cadence")
    if isinstance(cadence, dict):
        session.cadence = cadence
    if newest:
        session.run_id, session.run_name = run.run_id, run.run_name


@_on("state")
def _state(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    if newest and isinstance(event.get("state"), str):
        session.state, session.reason = event["state"], event.get("reason")
        _note_place(session, event)


@_on("finalizeRun")
def _left(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    to = event.get("next_run")
    if newest and isinstance(to, str) and to:
        session.run_id = session.run_name = to


@_on("checkpoint_loaded")
def _loaded(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: FBT001 -- as above
    step = event.get("step")
    if is_count(step):
        run.turn_back(session.session_id, event["event_seq"], step)
        if newest:
            _note_place(session, event)


@_on("exactness")
def _exactness(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    if newest and isinstance(event.get("text"), str):
        session.exactness = event["text"]


@_on("paused", "resumed", "stopping")
def _moved(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    if not newest:
        return
    _note_place(session, event)
    if session.protocol == "legacy" and event["type"] in ("paused", "resumed"):
        session.state = "paused" if event["type"] == "paused" else "running"


def _note_place(session: Session, event: Mapping[str, Any]) -> None:
    if is_count(event.get("step")):
        session.step = event["step"]
    if is_count(event.get("epoch")):
        session.epoch = event["epoch"]


@_on("trainingFinished")
def _finished(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    session.finished = {key: event.get(key) for key in ("status", "step", "error")}
    # "stopped" is said of a run that a person has ended, too: its own last state knows better.
    if (newest and session.state not in FINAL) or session.protocol == "legacy":
        session.state = ENDED.get(str(event.get("status")), "finished")
        _note_place(session, event)


@_on("rank_state")
def _rank(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    if event.get("state") == "failed":  # the launcher may end rank 0 before it says so itself
        finished = {"status": "failed", "step": event.get("step"), "error": event.get("why")}
        session.finished = session.finished or finished


@_on("epoch_end")
def _epoch_end(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    run.note_val_loss(session.session_id, event.get("val_loss"), run.summary["step"])


@_on("checkpoint_saved", "auto_test_complete")
def _saved(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: FBT001 -- as above
    path = event.get("path") or event.get("ckpt_path")
    if not isinstance(path, str) or not path:
        return
    checkpoint: dict[str, Any] = {
        "id": str(event.get("id") or Path(path).stem),
        "path": path,
        "step": event.get("step"),
        "kind": event.get("kind"),
        "bytes": event.get("bytes"),
        "ts": event.get("ts"),
        "exact": event.get("exact"),
        "session_id": session.session_id,
        "run_id": run.run_id,
    }
    run.checkpoints[session.session_id, checkpoint["id"]] = checkpoint
    if newest or session.last_checkpoint is None:
        session.last_checkpoint = checkpoint


@_on("checkpoint_removed")
def _removed(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    for key in [k for k in run.checkpoints if k[1] == event.get("id")]:
        del run.checkpoints[key]


@_on("param_changed")
def _param_changed(session: Session, run: Run, event: dict[str, Any], newest: bool) -> None:  # noqa: ARG001, FBT001 -- as above
    if newest:
        session.params = [
            {**param, "value": event.get("new"), "pending": None}
            if param.get("path") == event.get("path")
            else param
            for param in session.params
        ]
