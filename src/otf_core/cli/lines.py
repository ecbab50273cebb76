"""Events as lines for people."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final

from otf_core.client.words import number, one_line, size

Say = Callable[[Mapping[str, Any]], str]


def _step(event: Mapping[str, Any]) -> str:
    said = [f"step {number(event.get('step'))}"]
    shown = ("epoch", "loss", "val_loss", "accuracy", "lr")
    said += [f"{name} {number(event[name])}" for name in shown if event.get(name) is not None]
    return "  ".join(said)


def _guard(event: Mapping[str, Any]) -> str:
    value, bound = event.get("value"), event.get("bound")
    over = f" {number(value)}" if value is not None else ""
    over += f", bound {number(bound)}" if bound is not None else ""
    said = f"{event.get('rule')}: {event.get('metric')}{over} at step {number(event.get('step'))}"
    if event.get("text"):  # its own sentence
        return f"{event.get('rule')} at step {number(event.get('step'))}: {event['text']}"
    left = event.get("budget_left")
    rest = f", {number(left)} left" if left is not None else ""
    return f"{said}; {event.get('did') or event.get('action')}{rest}"


_SAY: Final[dict[str, Say]] = {
    "trainStep": _step,
    "log": lambda e: f"{e.get('level')}: {e.get('text')}",
    "error": lambda e: str(e.get("text")),
    "state": lambda e: f"{e.get('previous')} → {e.get('state')} at step {number(e.get('step'))}",
    "paused": lambda e: f"at step {number(e.get('step'))}",
    "resumed": lambda e: f"at step {number(e.get('step'))}",
    "parked": lambda e: (
        f"{size(e.get('freed_bytes'))} of the device freed"
        if e.get("parked")
        else f"back after {number(e.get('seconds'))} s, {size(e.get('moved_bytes'))}"
    ),
    "note": lambda e: f"at step {number(e.get('step'))}: {e.get('text')}",
    "param_changed": lambda e: (
        f"{e.get('path')} {number(e.get('old'))} → {number(e.get('new'))},"
        f" applied at step {number(e.get('applied_step'))}, by {e.get('by')}"
        + (f" ({e['cause']})" if e.get("cause") else "")
    ),
    "checkpoint_saved": lambda e: (
        f"step {number(e.get('step'))}, {size(e.get('bytes'))}: {e.get('path')}"
    ),
    "checkpoint_loaded": lambda e: (
        f"step {number(e.get('step'))}"
        + (f", rolled back from {number(e['from_step'])}" if e.get("from_step") else "")
        + f": {e.get('path')}"
    ),
    "exactness": lambda e: "; ".join(map(str, [e.get("text"), *(e.get("reasons") or [])])),
    "trainingFinished": lambda e: (
        f"{e.get('status')} at step {number(e.get('step'))}"
        + (f": {e['error']}" if e.get("error") else "")
    ),
    "rank_state": lambda e: (
        f"{e.get('why')}, at step {number(e.get('step'))}"
        + (f"; the run goes on exactly: {e['resume']}" if e.get("resume") else "")
    ),
    "guard": _guard,
    "stall": lambda e: (
        f"{'over' if e.get('over') else 'no batch has ended'} for {number(e.get('seconds'))} s"
        f" at step {number(e.get('step'))}, in {e.get('where')}"
    ),
}
_STAMPS: Final = frozenset(
    {"type", "run_id", "run_gen", "ts", "session_id", "event_seq", "replay", "metrics"}
)


def event_line(event: Mapping[str, Any]) -> str:
    """One event, one line: local time, type, what it says. Control characters are left out."""
    ts = event.get("ts")
    clock = "--:--:--"
    if isinstance(ts, int | float):
        clock = datetime.datetime.fromtimestamp(ts).astimezone().strftime("%H:%M:%S")
    say = _SAY.get(str(event.get("type")), _rest)
    return one_line(f"{clock}  {event.get('type')}  {say(event)}".rstrip())


def _rest(event: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in event.items() if k not in _STAMPS and not isinstance(v, dict | list)}
    return "  ".join(f"{key} {number(value)}" for key, value in plain.items())
