"""The verbs, once: the word, the wire's command, its arguments, and the sentence of its answer.

The command line is made from this table, and so is whatever else speaks to people in verbs. A verb
that is only on the command line (``ps``, ``tail`` …) is not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final, Literal

Kind = Literal["text", "int", "float", "flag", "value"]


@dataclasses.dataclass(frozen=True)
class Arg:
    """One argument of a verb.

    Attributes:
        key: of the payload.
        words: option names; none for a positional argument.
        kind: "value" is read as bool, int, float or text, whichever fits first.
        sent: what a flag sends when it is given.
    """

    key: str
    help: str
    words: tuple[str, ...] = ()
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    sent: Any = True


@dataclasses.dataclass(frozen=True)
class Verb:
    """A row of ``VERBS``.

    Attributes:
        say: name of the run, reply's data and session -> one sentence, or several lines.
    """

    word: str
    cmd: str
    help: str
    say: Callable[[str, Any, Mapping[str, Any]], str]
    args: tuple[Arg, ...] = ()


def size(count: Any) -> str:
    """Bytes for people: 91 kB, 1.2 GB."""
    if not isinstance(count, int | float):
        return "size unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            shown = count / factor
            return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"
    return f"{count:.0f} B"


def number(value: Any) -> str:
    """A number for people: 12,400; 0.312; 0.0001."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off"}.get(value, "none") if value is not None else "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return str(value)


def span(seconds: float) -> str:
    """A time for people, no more than two units: 41 s, 12 min 5 s, 2 h 14 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    if whole < 86400:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")
    return f"{whole // 86400} d" + (f" {whole % 86400 // 3600} h" if whole % 86400 >= 3600 else "")


def _checkpoint(path: Any, session: Mapping[str, Any]) -> str:
    if not path:
        return "; no checkpoint yet"
    last = session.get("last_checkpoint") or {}
    weight = (
        f" ({size(last.get('bytes'))})" if last.get("path") == path and last.get("bytes") else ""
    )
    return f"; checkpoint {PurePath(str(path)).name}{weight}"


def _paused(name: str, data: Any, session: Mapping[str, Any]) -> str:
    where = _checkpoint(data.get("ckpt"), session)
    return f"Paused {name} at step {number(data.get('step'))}{where}"


def _resumed(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- the table's shape
    if data.get("changed") is False:
        return f"{name} was training already, at step {number(data.get('step'))}"
    return f"Resumed {name} at step {number(data.get('step'))}"


def _stopped(name: str, data: Any, session: Mapping[str, Any]) -> str:
    where = _checkpoint(data.get("ckpt"), session)
    return f"Stopping {name} at step {number(data.get('step'))}{where}"


def _saved(name: str, data: Any, session: Mapping[str, Any]) -> str:
    path = data.get("path")
    if not path:
        return f"{name} saved nothing at step {number(data.get('step'))}"
    last = session.get("last_checkpoint") or {}
    weight = (
        f" ({size(last.get('bytes'))})" if last.get("path") == path and last.get("bytes") else ""
    )
    return f"Saved {PurePath(str(path)).name}{weight} of {name} at step {number(data.get('step'))}"


def _metrics(values: Any) -> str:
    shown = [f"{key} {number(value)}" for key, value in (values or {}).items()]
    return ", ".join(shown) or "no metrics"


def _validated(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    took = data.get("seconds")
    time = f" in {took:.1f} s" if isinstance(took, int | float) else ""
    said = _metrics(data.get("metrics"))
    return f"Validated {name} at step {number(data.get('step'))}{time}: {said}"


def _tested(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    loss = data.get("avg_loss")
    said = f"average loss {number(loss)}" if loss is not None else "no finite loss"
    values = data.get("metrics")
    more = f"; {_metrics(values)}" if values else ""
    return f"Tested {name} at step {number(data.get('step'))}: {said}{more}"


def _set(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    step, until = data.get("applied_step"), data.get("until")
    lasts = f"; something else writes it at step {number(until)}" if until is not None else ""
    mode = " (scales the rest of the schedule)" if data.get("mode") == "scale" else ""
    change = f"{number(data.get('old'))} → {number(data.get('new'))}"
    return (
        f"Set {data.get('path')} of {name}: {change}, applied at step {number(step)}{mode}{lasts}"
    )


def _params(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    rows = data.get("params") or []
    if not rows:
        return f"{name} has no parameter that can be set"
    width = max(len(str(row.get("path"))) for row in rows)
    lines = []
    for row in rows:
        pending = row.get("pending")
        waits = f", becomes {number(pending.get('value'))}" if isinstance(pending, dict) else ""
        bounds = f"{number(row.get('min'))} to {number(row.get('max'))}"
        choices = row.get("choices")
        allowed = ", ".join(map(str, choices)) if choices else bounds
        value = number(row.get("value"))
        lines.append(
            f"{row.get('path')!s:<{width}}  {value}{waits}  ({row.get('owner')}; {allowed})"
        )
    return "\n".join(lines)


def _checkpoints(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    rows = data.get("checkpoints") or []
    if not rows:
        return f"{name} has no checkpoint yet"
    width = max(len(str(row.get("id"))) for row in rows)
    return "\n".join(
        f"{row.get('id')!s:<{width}}  step {number(row.get('step'))}  {row.get('kind')}  "
        f"{size(row.get('bytes'))}  {row.get('path')}"
        for row in rows
    )


def _noted(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    return f"Noted at step {number(data.get('step'))} of {name}"


def state_sentence(session: Mapping[str, Any], now_ts: float) -> str:
    """The sentence that the page shows for a session, in its words."""
    name, step = session.get("run_name") or session.get("run_id"), number(session.get("step"))
    of = session.get("max_steps")
    place = f"step {step}" + (f" of {number(of)}" if isinstance(of, int) and of > 0 else "")
    if session.get("epoch") is not None:
        epochs = session.get("max_epochs")
        place += f", epoch {number(session['epoch'])}"
        place += f" of {number(epochs)}" if isinstance(epochs, int) and epochs > 0 else ""
    state, finished = session.get("state"), session.get("finished") or {}
    last_ts = session.get("last_ts")
    ago = span(max(0.0, now_ts - last_ts)) if isinstance(last_ts, int | float) else "some time"
    match state:
        case "starting":
            return f"Starting {name} — attached, training has not begun"
        case "running":
            return f"Training {name} — {place}{_left(session)}"
        case "pausing":
            return f"Pausing {name} — finishing the batch after step {step}, then it holds there"
        case "paused":
            why = session.get("reason")
            return f"Paused {name} at {place}" + (f" ({why})" if why not in (None, "user") else "")
        case "validating" | "testing":
            return f"{str(state).capitalize()} {name} at {place}"
        case "finished":
            return f"Finished {name} — {step} steps"
        case "interrupted":
            return f"Stopped {name} at step {step}"
        case "failed":
            return f"Failed {name} at step {step} — {finished.get('error') or 'no reason given'}"
        case "lost":
            return f"Connection lost — {name} was at {place}; it goes on without this dashboard"
        case "journal":
            return f"Journal of {name} — last written {ago} ago at step {step}; no trainer attached"
    return f"{name} is {state} at {place}"


def _left(session: Mapping[str, Any]) -> str:
    status = session.get("status") or {}
    speed, of, step = status.get("steps_per_s"), session.get("max_steps"), session.get("step")
    if not isinstance(speed, int | float) or speed <= 0:
        return ""
    said = f", {speed:.3g} steps/s"
    if isinstance(of, int) and isinstance(step, int) and of > step:
        said += f", {span((of - step) / speed)} left"
    return said


def _status(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    known = {**session, **{key: data[key] for key in ("state", "step", "epoch") if key in data}}
    lines = [state_sentence({**known, "status": data}, float(session.get("status_ts") or 0.0))]
    lines += [
        f"  pending: {pending.get('cmd')}, waits for {pending.get('waits_for')}"
        for pending in data.get("pending") or []
    ]
    last = data.get("last_checkpoint")
    if last:
        at = f"{PurePath(str(last.get('path'))).name} at step {number(last.get('step'))}"
        lines.append(f"  last checkpoint: {at}")
    if data.get("exactness"):
        lines.append(f"  exactness: {data['exactness']}")
    return "\n".join(lines)


_AT_STEP: Final = Arg("at_step", "Not before this step.", ("--at-step",), "int")

VERBS: Final[tuple[Verb, ...]] = (
    Verb("status", "status", "Say what the run is doing.", _status),
    Verb(
        "pause", "pause", "Hold the run after the batch; it saves a checkpoint.", _paused,
        (Arg("reason", "Why, for the record.", ("--reason",)), _AT_STEP),
    ),
    Verb("resume", "resume", "Let a held run go on.", _resumed),
    Verb("save", "save_ckpt", "Save a checkpoint.", _saved),
    Verb(
        "validate", "validate_now", "Run the validation loop now.", _validated,
        (Arg("limit_batches", "At most so many batches.", ("--limit-batches",), "int"),),
    ),
    Verb(
        "test", "test_now", "Run the test loop now.", _tested,
        (Arg("label", "What to call the result.", ("--label",)),),
    ),
    Verb(
        "set", "set_param", "Set a parameter: otf set lr 0.0005", _set,
        (
            Arg("path", "Its name, as otf params lists it."),
            Arg("value", "The new value.", kind="value"),
            Arg("mul", "VALUE is a factor.", ("--mul",), "flag"),
            _AT_STEP,
            Arg("mode", "Under a schedule: scale what remains of it, or hold the value.",
                ("--mode",), choices=("scale", "override")),
        ),
    ),
    Verb("params", "list_params", "List the parameters that can be set.", _params),
    Verb(
        "checkpoints", "list_checkpoints", "List the checkpoints, newest first.", _checkpoints,
        (Arg("run_id", "Only of this run.", ("--of",)),),
    ),
    Verb(
        "stop", "stop", "End training; it saves a checkpoint.", _stopped,
        (Arg("save", "Without a checkpoint.", ("--no-save",), "flag", sent=False),),
    ),
    Verb(
        "note", "note", "Write a note into the run's record.", _noted,
        (
            Arg("text", "At most 4,096 characters."),
            Arg("step", "Of this step.", ("--step",), "int"),
        ),
    ),
)  # fmt: skip


def payload_of(verb: Verb, given: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of a verb's arguments; what was not given is left out."""
    payload: dict[str, Any] = {}
    for arg in verb.args:
        value = given.get(arg.key)
        if arg.kind == "flag":
            if value:
                payload[arg.key] = arg.sent
        elif value is not None:
            payload[arg.key] = read_value(value) if arg.kind == "value" else value
    if verb.word == "set" and payload.pop("mul", None):
        payload["mul"] = payload.pop("value")
    return payload


def read_value(text: str) -> bool | int | float | str:
    """``true``, 3, 1e-4 or text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
