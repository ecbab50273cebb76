"""The state band of a screen in words: sentence, facts, controls, receipts. Pure functions.

Rule: nothing is optimistic. A control is pending until the receipt of its command is settled, and
"applied @ N" stands only where the trainer has said so.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, Final, Literal

from otf_core.client.board import Board, Held, Row
from otf_core.client.states import (
    ENDED,
    left_s,
    name_of,
    ranks_sentence,
    speed_of,
    state_sentence,
    total_of,
)
from otf_core.client.verbs import EXPORTS, VERBS, Verb
from otf_core.client.words import number, span

APPLIED_SHOWN_S: Final = 6.0
QUIET_S: Final = 5.0
START_ONE: Final = "start one with: otf dashboard"

ControlState = Literal["idle", "pending", "applied", "refused", "off"]
Tone = Literal["live", "warn", "bad", "mute", "done"]


@dataclasses.dataclass(frozen=True)
class Control:
    """A key verb as it stands: what it says, and the line below it."""

    key: str
    cmd: str
    label: str
    state: ControlState
    line: str


def state_of(board: Board, row: Row | None) -> str:
    """What a screen takes the state to be, connection and stalls included."""
    if board.link.state == "refused":
        return "refused"
    if row is None:
        return {"up": "empty", "looking": "no-dashboard", "lost": "connection-lost"}[
            board.link.state
        ]
    if board.link.state != "up":
        return "connection-lost"
    if row.state in ("running", "paused") and board.more_of(row).stalled_since_ts is not None:
        return "stalled"
    return row.state


TONES: Final[Mapping[str, Tone]] = {
    "running": "live", "starting": "live", "validating": "live", "testing": "live",
    "pausing": "warn", "paused": "warn", "left": "warn", "stalled": "bad", "failed": "bad",
    "finished": "done", "interrupted": "done",
}  # fmt: skip
GLYPHS: Final[Mapping[str, str]] = {
    "running": "▶", "starting": "◌", "validating": "◆", "testing": "◇", "pausing": "◖",
    "paused": "‖", "stalled": "✖", "failed": "✖", "finished": "✓", "interrupted": "■",
    "left": "↷", "journal": "≡", "connection-lost": "?", "lost": "?", "refused": "?",
}  # fmt: skip


def sentence(board: Board, row: Row | None) -> str:
    """What is going on."""
    now_ts, link = board.now_ts(), board.link
    ago = span(max(0.0, now_ts - link.since_ts))
    match state_of(board, row):
        case "refused":
            return f"Not let in — {link.why}"
        case "no-dashboard":
            return f"No dashboard runs — {START_ONE}"
        case "empty":
            return "No run yet — this page listens and shows the first run within a second"
        case "connection-lost" if row is None:
            return f"Connection lost {ago} ago — the dashboard does not answer; {START_ONE}"
        case "connection-lost" if row is not None:
            name, step = name_of(row.session), number(row.session.get("step"))
            state = row.state
            if state in ENDED or state == "journal":
                return f"Connection lost {ago} ago — {name} had ended at step {step}"
            doing = "training" if state == "running" else state
            return (
                f"Connection lost {ago} ago — {name} was {doing} at step {step}; "
                "it goes on without this page"
            )
        case "left" if row is not None:
            at = number(((row.run or {}).get("summary") or {}).get("step"))
            return f"Left {row.key[1]} at step {at} — its process trains {name_of(row.session)} now"
    assert row is not None
    return state_sentence(row.session, now_ts, board.more_of(row))


def facts(board: Board, row: Row | None) -> list[str]:
    """What else is known, the more telling first."""
    state = state_of(board, row)
    if row is None:
        return []
    session, now_ts = row.session, board.now_ts()
    more, said = board.more_of(row), []
    if state == "connection-lost":
        return ["values are from then", "unknown until reconnected"]
    if not board.may_write:
        said.append("read-only")
    speed, left = speed_of(session), left_s(session, more)
    if state == "running" and speed is not None:
        said.append(f"{speed:.3g} steps/s")
    if state == "running" and left is not None:
        said.append(f"done about {_clock(now_ts + left)}, pauses not counted")
    stood_s, _ = board.told_of(session["session_id"]).pauses(now_ts)
    if stood_s >= 1 and state != "paused":
        said.append(f"{span(stood_s)} of pauses so far")
    if ranks := ranks_sentence(session.get("status") or {}):
        said.append(ranks)
    where = " on ".join(str(session[key]) for key in ("device", "host") if session.get(key))
    said += [where] if where else []
    said += [f"project {session['project']}"] if session.get("project") else []
    if exact := session.get("exactness"):
        said.append(f"resumes {exact}" if str(exact).startswith("exact") else str(exact))
    return said


def _clock(ts: float) -> str:
    return datetime.datetime.fromtimestamp(ts).astimezone().strftime("%H:%M")


def progress(board: Board, row: Row | None) -> float | None:
    """Share of the steps that are done."""
    if row is None:
        return None
    of, step = total_of(row.session, board.more_of(row)), row.session.get("step")
    return min(1.0, step / of) if of and isinstance(step, int) else None


# -- controls ------------------------------------------------------------------------------------


def closed(board: Board, row: Row | None) -> str | None:
    """Why no command can be given now, or None."""
    if board.link.state != "up":
        return "offline"
    if row is None:
        return "no run"
    if not board.may_write:
        return "read-only"
    return {
        "finished": "finished", "failed": "ended", "interrupted": "ended", "journal": "no trainer",
        "lost": "trainer lost", "left": "left",
    }.get(row.state)  # fmt: skip


class _Controls:
    def __init__(self, board: Board, row: Row) -> None:
        self.board, self.row, self.now_ts = board, row, board.now_ts()
        self.shut, self.state = closed(board, row), state_of(board, row)
        self.receipts = board.receipts_of(row.session["session_id"])

    def not_offered(self, cmd: str) -> str | None:
        can = self.row.session.get("capabilities") or []
        if self.shut is not None:
            return self.shut
        if can and cmd not in can:
            return "not in this run"
        return "no step end" if self.state == "stalled" else None

    def make(
        self, key: str, cmd: str, label: str, doing: str, fact: str, why_not: str | None = None
    ) -> Control:
        held = next((one for one in self.receipts if one.receipt.get("cmd") in _same(cmd)), None)
        asked = next((p for p in self.row.session.get("pending") or () if p["cmd"] == cmd), None)
        is_open = held is not None and not held.settled
        if self.shut == "offline":
            return Control(key, cmd, label, "off", "unknown" if is_open else "offline")
        if self.shut is None and (is_open or asked is not None):
            said = held.receipt if held is not None and is_open else asked or {}
            line = f"waits for {waits(said.get('waits_for'))}"
            if is_open and self._is_quiet(said):
                line = "no answer yet"
            return Control(key, cmd, doing, "pending", line)
        why_not = self.not_offered(cmd) or why_not
        if why_not is not None:
            return Control(key, cmd, label, "off", why_not)
        if held is not None and held.state == "refused":
            return Control(key, cmd, label, "refused", "refused: see why")
        age_s = self.now_ts - ((held.receipt.get("answered_ts") or 0.0) if held else 0.0)
        if held is not None and held.state == "applied" and age_s < APPLIED_SHOWN_S:
            return Control(key, cmd, label, "applied", f"applied @ {number(applied_step(held))}")
        return Control(key, cmd, label, "idle", fact)

    def _is_quiet(self, said: Mapping[str, Any]) -> bool:
        sent = said.get("sent_ts") or self.now_ts
        return said.get("state") == "sent" and self.now_ts - sent > QUIET_S


def _same(cmd: str) -> tuple[str, ...]:
    return ("rollback", "load_ckpt") if cmd == "rollback" else (cmd,)


def controls(board: Board, row: Row | None) -> list[Control]:
    """The key verbs in order, from what the trainer and the receipts say."""
    if row is None:
        return []
    c = _Controls(board, row)
    step, summary = row.session.get("step"), (row.run or {}).get("summary") or {}
    kept = board.checkpoints_of(row)
    saved = board.more_of(row).checkpoint_step
    told = board.told_of(row.session["session_id"])
    test = (told.last("test_complete", "auto_test_complete") or {}).get("avg_loss")
    val = summary.get("val_loss")
    busy = "pausing" if c.state == "pausing" else None
    other = {"validating": "running", "testing": "after this"}.get(c.state)
    other_test = {"testing": "running", "validating": "after this"}.get(c.state)
    evaluating = "after this" if c.state in ("validating", "testing") else None
    if c.state == "paused":
        goes_on = f"from {number(step + 1)}" if isinstance(step, int) else "goes on"
        first = c.make("Space", "resume", "Resume", "Resuming", goes_on)
    elif busy and c.not_offered("pause") is None:
        first = Control("Space", "pause", "Pausing", "pending", "waits for step end")
    else:
        begun = "not begun" if c.state == "starting" else None
        first = c.make("Space", "pause", "Pause", "Pausing", "at step end", begun)
    last_saved = "none yet" if saved is None else f"last: step {number(saved)}"
    return [
        first,
        c.make("C", "save_ckpt", "Save", "Saving", last_saved),
        c.make("V", "validate_now", "Validate", "Validating",
               "not run yet" if val is None else f"last: {number(val)}", busy or other),
        c.make("T", "test_now", "Test", "Testing",
               "not run yet" if test is None else f"last: {number(test)}", busy or other_test),
        c.make("R", "rollback", "Roll back…", "Rolling back", f"{len(kept)} kept",
               busy or evaluating or (None if kept else "none kept yet")),
        c.make("X", "stop", "Stop…", "Stopping", "asks first"),
    ]  # fmt: skip


def waits(waits_for: Any) -> str:
    """What a command waits for, in words."""
    if waits_for is None:
        return "the trainer"
    return "step end" if waits_for == "safe_point" else str(waits_for)


# -- receipts ------------------------------------------------------------------------------------

_VERB_OF: Final[dict[str, Verb]] = {verb.cmd: verb for verb in (*EXPORTS, *VERBS)} | {
    "load_ckpt": next(verb for verb in VERBS if verb.cmd == "rollback")
}


def applied_step(held: Held) -> Any:
    """Where it was applied, as the reply says."""
    data = (held.receipt.get("reply") or {}).get("data")
    if not isinstance(data, dict):
        return None
    return data.get("applied_step") if data.get("applied_step") is not None else data.get("step")


def asked_for(receipt: Mapping[str, Any]) -> str:
    """What a command asks, as it would be typed: "set lr 0.0005"."""
    cmd, payload = str(receipt.get("cmd")), receipt.get("payload") or {}
    verb = _VERB_OF.get(cmd)
    word = verb.word if verb is not None else cmd
    if cmd == "set_param":
        given = [payload.get("path")]
        given += ["back to the script"] if payload.get("release") else []
        given += [f"{number(payload['mul'])} --mul"] if "mul" in payload else []
        given += [number(payload["value"])] if "value" in payload else []
        return " ".join(["set", *map(str, given)])
    wanted = payload.get("checkpoint", payload.get("step", payload.get("path")))
    return f"{word} {wanted}" if cmd in ("rollback", "load_ckpt") else word


def outcome(board: Board, held: Held) -> str:
    """What came of a command, in a line."""
    receipt = held.receipt
    reply = receipt.get("reply") or {}
    match held.state:
        case "applied":
            session = board.sessions.get(held.session_id, {})
            data, verb = reply.get("data"), _VERB_OF.get(str(receipt.get("cmd")))
            if verb is None or not isinstance(data, dict):
                return f"{receipt.get('cmd')} applied"
            said = verb.say(name_of(session), data, session).splitlines()[0]
            at = applied_step(held)
            tells = at is None or number(at) in said
            return said if tells else f"{said}, applied at step {number(at)}"
        case "refused":
            why = reply.get("detail") or reply.get("error") or "no reason given"
            return f"{asked_for(receipt)} refused: {why} Nothing changed."
        case "unknown":
            return f"{asked_for(receipt)}: no answer, and the dashboard has no record of it"
    if board.link.state != "up":
        return f"{asked_for(receipt)} sent, no answer — unknown until reconnected"
    quiet = board.now_ts() - (receipt.get("sent_ts") or 0.0) > QUIET_S
    if held.state == "sent" and quiet:
        return f"{asked_for(receipt)} sent, no answer yet"
    return f"{asked_for(receipt)} sent, waits for {waits(receipt.get('waits_for'))}"
