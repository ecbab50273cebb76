"""What a dashboard has told, put together for a screen; one thread, no input or output.

Rule 1: every value on a screen comes from here, and here from a message; what was asked for and is
not answered is a receipt, never a value.
Rule 2: bounded: the newest receipts, events and lines are kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from otf_core.client.states import ENDED, More

Dict = dict[str, Any]
Key = tuple[str, str]

RECEIPTS_KEPT: Final = 200
EVENTS_KEPT: Final = 5_000
SETTLED: Final = frozenset({"applied", "refused", "unknown"})
READS: Final = frozenset(
    {
        "status",
        "ping",
        "list_params",
        "list_checkpoints",
        "results",
        "preview_params",
        "list_changes",
        "list_guards",
    }
)


@dataclasses.dataclass
class Link:
    """How we stand with the dashboard; ``looking`` until one was found."""

    state: Literal["looking", "up", "lost", "refused"] = "looking"
    since_ts: float = 0.0
    retry_ts: float | None = None
    why: str = ""


@dataclasses.dataclass
class Held:
    """A receipt and whose it is."""

    session_id: str
    receipt: Dict
    mine: bool = False

    @property
    def state(self) -> str:
        return str(self.receipt.get("state"))

    @property
    def settled(self) -> bool:
        """Whether an answer is there, or will never be."""
        return self.state in SETTLED


@dataclasses.dataclass
class Curve:
    """One metric of a run: steps and values where it has any."""

    steps: list[int] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Told:
    """What one session has told beside its numbers, newest last."""

    events: dict[int, Dict] = dataclasses.field(default_factory=dict)
    version: int = 0

    def take(self, events: Iterable[Dict]) -> None:
        """Each once, by its number; a trainStep is none of ours."""
        for event in events:
            seq = event.get("event_seq")
            if isinstance(seq, int) and event.get("type") != "trainStep" and seq not in self.events:
                late = bool(self.events) and seq < next(reversed(self.events))
                self.events[seq] = event
                self.version += 1
                if late:
                    self.events = dict(sorted(self.events.items()))
        while len(self.events) > EVENTS_KEPT:
            del self.events[next(iter(self.events))]

    def last(self, *types: str) -> Dict | None:
        """The newest event of these."""
        return next((e for e in reversed(self.events.values()) if e.get("type") in types), None)

    def pauses(self, now_ts: float) -> tuple[float, float | None]:
        """Seconds of pauses that are over, and since when it is held now."""
        total, since = 0.0, None
        for event in self.events.values():
            kind, ts = event.get("type"), event.get("ts")
            if not isinstance(ts, int | float):
                continue
            if kind == "paused" and since is None:
                since = float(ts)
            elif kind in ("resumed", "trainingFinished") and since is not None:
                total, since = total + max(0.0, min(ts, now_ts) - since), None
        return total, since


@dataclasses.dataclass
class Row:
    """A run in the list, and the session that speaks for it."""

    key: Key
    letter: str
    session: Dict
    run: Dict | None

    @property
    def state(self) -> str:
        """The session's; "left" where that trains another run by now."""
        ours = self.session.get("run_id") in (self.key[1], None)
        return str(self.session.get("state")) if ours else "left"


class Board:
    """All of it."""

    def __init__(self) -> None:
        self.link = Link()
        self.skew_s = 0.0
        self.may_write = True
        self.sessions: dict[str, Dict] = {}
        self.runs: dict[Key, Dict] = {}
        self.receipts: dict[str, Held] = {}
        self.told: dict[str, Told] = {}
        self.curves: dict[Key, dict[str, Curve]] = {}
        self.totals: dict[Key, int] = {}
        self.letters: dict[Key, str] = {}
        self.chosen: Key | None = None
        self.version = 0  # rises with every change

    # -- taking in --------------------------------------------------------------------------------

    def take(self, message: Mapping[str, Any], now_ts: float) -> None:
        """One message of the live feed."""
        self.version += 1
        match message:
            case {"kind": "welcome"}:
                self.link = Link("up", now_ts)
                ts = message.get("server_ts")
                self.skew_s = ts - now_ts if isinstance(ts, int | float) else 0.0
                self.may_write = message.get("read_only") is not True
                self.take_all(message.get("sessions") or (), message.get("runs") or ())
            case {"kind": "session", "session": dict(session)}:
                self.sessions[str(session.get("session_id"))] = session
                self._name()
            case {"kind": "run", "run": dict(run)}:
                self.runs[_key(run)] = run
                self._name()
            case {"kind": "events", "session_id": str(session_id), "events": list(events)}:
                self.told.setdefault(session_id, Told()).take(events)
            case {"kind": "receipt", "session_id": str(session_id), "receipt": dict(receipt)}:
                self.take_receipt(session_id, receipt)

    def take_all(self, sessions: Iterable[Dict], runs: Iterable[Dict]) -> None:
        """All sessions and runs there are, in place of those known."""
        self.sessions = {str(session["session_id"]): session for session in sessions}
        self.runs = {_key(run): run for run in runs}
        self._name()

    def take_receipt(self, session_id: str, receipt: Dict) -> None:
        """The newest state of a command; what is settled stays so."""
        if receipt.get("cmd") in READS:
            return
        key = str(receipt.get("id"))
        before = self.receipts.get(key)
        held = Held(session_id, receipt, mine=before.mine if before else False)
        if before is not None and before.settled and not held.settled:
            return
        self.version += 1
        self.receipts[key] = held
        if len(self.receipts) > RECEIPTS_KEPT:
            oldest = next((k for k, one in self.receipts.items() if one.settled), key)
            del self.receipts[oldest]

    def asked(self, session_id: str, request_id: str, cmd: str, payload: Dict) -> None:
        """Note a command of ours as it leaves."""
        ts = self.now_ts()
        said = {"id": request_id, "cmd": cmd, "payload": payload, "by": "cli", "sent_ts": ts}
        known = self.receipts.get(request_id)
        if known is None:
            self.take_receipt(session_id, {**said, "state": "sent", "waits_for": None})
        if request_id in self.receipts:
            self.receipts[request_id].mine = True

    def refused(self, session_id: str, request_id: str, error: Mapping[str, Any]) -> None:
        """A command of ours that the dashboard itself has refused, or that never left."""
        if request_id in self.receipts:
            before = self.receipts[request_id].receipt
            reply = {"ok": False, **error}
            settled = {**before, "state": "refused", "answered_ts": self.now_ts(), "reply": reply}
            self.take_receipt(session_id, settled)

    def lose(self, state: Literal["looking", "lost", "refused"], now_ts: float, why: str) -> None:
        """The dashboard is not there; what is shown is as of then."""
        since = self.link.since_ts if self.link.state == state else now_ts
        self.link = Link(state, since, None, why)
        self.version += 1

    clock: Any = None

    def now_ts(self) -> float:
        """Seconds since 1970 on the dashboard's clock."""
        import time

        return (self.clock or time.time)() + self.skew_s

    # -- giving out -------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """A row for each run: those with a trainer first, then the newest."""
        speakers: dict[Key, Dict] = {}
        for session in sorted(
            self.sessions.values(), key=lambda s: (bool(s["connected"]), s.get("started_ts") or 0.0)
        ):
            speakers[_key(session)] = session
        for key, run in self.runs.items():
            ids = [s for s in run.get("session_ids") or () if s in self.sessions]
            if key not in speakers and ids:
                speakers[key] = self.sessions[ids[-1]]
        rows = [
            Row(key, self.letters.get(key, "?"), session, self.runs.get(key))
            for key, session in speakers.items()
        ]
        rows.sort(key=_place)
        return rows

    def current(self) -> Row | None:
        """The run that is looked at; the first of the list until one is chosen."""
        rows = self.rows()
        for row in rows:
            if row.key == self.chosen:
                return row
        if rows:
            self.chosen = rows[0].key  # once shown, a run stays until another is chosen
        return rows[0] if rows else None

    def receipts_of(self, session_id: str) -> list[Held]:
        """Newest first."""
        found = [held for held in self.receipts.values() if held.session_id == session_id]
        return sorted(found, key=lambda held: -(held.receipt.get("sent_ts") or 0.0))

    def told_of(self, session_id: str) -> Told:
        return self.told.setdefault(session_id, Told())

    def more_of(self, row: Row) -> More:
        """What the sentence of a run may also say."""
        told, now_ts, session = self.told_of(row.session["session_id"]), self.now_ts(), row.session
        summary = (row.run or {}).get("summary") or {}
        stood_s, since = told.pauses(now_ts)
        stall = told.last("stall")
        stalled = stall is not None and not stall.get("over") and _at(stall) >= _at(session)
        steps = [c["step"] for c in self.checkpoints_of(row) if isinstance(c.get("step"), int)]
        started, last = session.get("started_ts"), session.get("last_ts")
        took = last - started - stood_s if started and last and last > started else None
        return More(
            total=self.totals.get(row.key),
            val_loss=summary.get("val_loss"),
            val_falls=_falls(self.curves.get(row.key, {}).get("val_loss")),
            best=summary.get("best_val_loss"),
            best_step=summary.get("best_val_step"),
            paused_since_ts=since if session.get("state") == "paused" else None,
            stalled_since_ts=_since(stall) if stalled and stall else None,
            stalled_in=str(stall["where"]) if stalled and stall and stall.get("where") else None,
            checkpoint_step=max(steps, default=None),
            took_s=took if session.get("state") in ENDED else None,
        )

    def checkpoints_of(self, row: Row) -> list[Dict]:
        """Those that are kept of a run, newest first."""
        gone = {
            event.get("id")
            for event in self.told_of(row.session["session_id"]).events.values()
            if event.get("type") == "checkpoint_removed"
        }
        known = (row.run or {}).get("checkpoints") or []
        kept = [c for c in known if c.get("id") not in gone]
        return sorted(kept, key=lambda c: (c.get("ts") or 0.0, c.get("step") or 0), reverse=True)

    def take_curves(self, row: Row, series: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """The numbers of a run, as the metrics endpoint draws them."""
        self.curves[row.key] = {
            name: Curve(list(one["step"]), list(one["value"]))
            for name, one in series.items()
            if one["step"] and name != "epoch"
        }
        if "epoch" in series and row.key not in self.totals:
            self._take_epochs(row, series["epoch"])
        self.version += 1

    def _take_epochs(self, row: Row, one: Mapping[str, Sequence[Any]]) -> None:
        """How long the whole run will be, from where its second epoch began."""
        of, steps, epochs = row.session.get("max_epochs"), one["step"], one["value"]
        if not (isinstance(of, int) and of > 0 and steps and epochs[0] == 0):
            return
        second = next((s for s, e in zip(steps, epochs, strict=True) if e == 1), None)
        if second is not None:
            self.totals[row.key] = (second - steps[0]) * of

    def _name(self) -> None:
        """Letters go by the age of the runs and are never given twice."""
        ages = {key: run.get("created_ts") or math.inf for key, run in self.runs.items()}
        for session in self.sessions.values():
            ages.setdefault(_key(session), session.get("started_ts") or math.inf)
        for key in sorted(ages, key=lambda key: ages[key]):
            if key not in self.letters:
                self.letters[key] = letter(len(self.letters))


def letter(index: int) -> str:
    """A … Z, AA …"""
    one = chr(65 + index % 26)
    return one if index < 26 else letter(index // 26 - 1) + one


def _key(said: Mapping[str, Any]) -> Key:
    return str(said.get("project") or ""), str(said.get("run_id") or said.get("session_id"))


def _place(row: Row) -> tuple[bool, float]:
    return not row.session["connected"], -(row.session.get("started_ts") or 0.0)


def _at(said: Mapping[str, Any]) -> int:
    step = said.get("step")
    return step if isinstance(step, int) else 0


def _since(stall: Mapping[str, Any]) -> float | None:
    ts, seconds = stall.get("ts"), stall.get("seconds")
    if not isinstance(ts, int | float):
        return None
    return ts - seconds if isinstance(seconds, int | float) else float(ts)


def _falls(curve: Curve | None) -> bool | None:
    """Whether the last value is below the last other one."""
    values = curve.values if curve is not None else []
    before = next((value for value in reversed(values) if value != values[-1]), None)
    return None if before is None else values[-1] < before
