"""What a run is doing, in the sentences of the page; pure functions, any thread.

Rule: what is not known is not said. A sentence made from a session alone is shorter than one that
also knows what the run has told (``More``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from otf_core.client.words import number, size, span

ENDED: Final = frozenset({"finished", "failed", "interrupted"})
_HELD_BY: Final = {"after_fit": "training is done, the process is held"}


@dataclasses.dataclass(frozen=True)
class More:
    """What a session does not say of itself.

    Attributes:
        total: steps in all, where only epochs are limited: worked out from the first one's length.
        val_falls: whether the last validation was better than the one before.
        paused_since_ts, stalled_since_ts: None where it does not stand.
        stalled_in: where, as the trainer has told it.
        took_s: time of training, without pauses.
    """

    total: int | None = None
    val_loss: float | None = None
    val_falls: bool | None = None
    best: float | None = None
    best_step: int | None = None
    paused_since_ts: float | None = None
    stalled_since_ts: float | None = None
    stalled_in: str | None = None
    checkpoint_step: int | None = None
    took_s: float | None = None


NOTHING: Final = More()


def name_of(session: Mapping[str, Any]) -> str:
    """What people call the run."""
    return str(session.get("run_name") or session.get("run_id") or session.get("session_id"))


def standing(session: Mapping[str, Any]) -> str:
    """The state in a word; of what nobody trains any more how it ended, where that is known."""
    state, ended = str(session.get("state")), (session.get("finished") or {}).get("status")
    if state not in ("journal", "lost") or ended is None:
        return state
    return "finished" if ended == "completed" else str(ended)


def parked(session: Mapping[str, Any]) -> str | None:
    """What a held run has given back of its device; None where nothing."""
    found = (session.get("status") or {}).get("parked")
    if not isinstance(found, Mapping):
        return None
    freed = found.get("freed_bytes")
    return f"parked, {size(freed)} freed" if isinstance(freed, int | float) else "parked"


def total_of(session: Mapping[str, Any], more: More = NOTHING) -> int | None:
    """Steps in all, None if there is no limit that is known."""
    of = session.get("max_steps")
    return of if isinstance(of, int) and of > 0 else more.total


def speed_of(session: Mapping[str, Any]) -> float | None:
    """Steps a second while it trains; the time that it stood is not in it."""
    speed = (session.get("status") or {}).get("steps_per_s")
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None


def left_s(session: Mapping[str, Any], more: More = NOTHING) -> float | None:
    """Seconds of training left; pauses, validations and stalls are not in it."""
    speed, of, step = speed_of(session), total_of(session, more), session.get("step")
    if speed is None or of is None or not isinstance(step, int) or of <= step:
        return None
    return (of - step) / speed


def state_sentence(session: Mapping[str, Any], now_ts: float, more: More = NOTHING) -> str:
    """The sentence that the page shows for a session, in its words."""
    name, step = name_of(session), number(session.get("step"))
    place = _place(session, more)
    last_ts = session.get("last_ts")
    ago = span(max(0.0, now_ts - last_ts)) if isinstance(last_ts, int | float) else "some time"
    kept = _kept(more)
    match session.get("state"):
        case "starting":
            return f"Starting {name} — attached, training has not begun"
        case "running" | "paused" if more.stalled_since_ts is not None:
            where = more.stalled_in or "no batch has ended, and the trainer does not know where"
            return (
                f"Stalled {span(now_ts - more.stalled_since_ts)} — {name} at step {step}: {where}"
            )
        case "running":
            return f"Training {name} — {place}{_loss(more)}{_left(session, more)}"
        case "pausing":
            return f"Pausing {name} — finishing the batch after step {step}, then it holds there"
        case "paused":
            where = place if more is NOTHING else f"step {step}"
            return f"Paused {name} at {where}{_held(session, now_ts, more)}"
        case "validating" | "testing" as doing:
            after = "" if more is NOTHING else " — training goes on when it is done"
            return f"{doing.capitalize()} {name} at {place}{after}"
        case "finished":
            return f"Finished {name} — {step} steps{_took(more)}{_best(more)}"
        case "interrupted":
            return f"Stopped {name} at step {step}{kept}"
        case "failed":
            error = (session.get("finished") or {}).get("error") or "no reason given"
            return f"Failed {name} at step {step} — {error}{kept}"
        case "lost":
            return f"Connection lost — {name} was at {place}; it goes on without this dashboard"
        case "journal":
            ended = session.get("finished") or {}
            why = f"; it failed: {ended.get('error')}" if ended.get("status") == "failed" else ""
            return (
                f"Journal of {name} — last written {ago} ago at step {step}{why}; "
                "no trainer attached"
            )
        case state:
            return f"{name} is {state} at {place}"


def ranks_sentence(status: Mapping[str, Any]) -> str | None:
    """How the ranks of a run fare, from its ``status``; None where there is one."""
    count = status.get("world_size")
    if not isinstance(count, int) or count < 2:
        return None
    said, found = f"{number(count)} ranks", status.get("ranks") or {}
    for state in ("failed", "silent"):
        if which := found.get(state):
            said += f", {ranks_in_words(which)} {state}"
    steps = found.get("steps") or {}
    if steps.get("max", 0) - steps.get("min", 0) > 1:
        said += f", at steps {number(steps['min'])} to {number(steps['max'])}"
    if isinstance(found.get("slowest"), int):
        said += f", slowest {ranks_in_words([found['slowest']])}"
    return said


def ranks_in_words(ranks: Sequence[Any]) -> str:
    """``rank 3``, ``ranks 1, 3``; of many the first eight, and how many more."""
    rest = f" and {number(len(ranks) - 8)} more" if len(ranks) > 8 else ""
    names = ", ".join(number(rank) for rank in ranks[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {names}{rest}"


def _place(session: Mapping[str, Any], more: More) -> str:
    of, said = session.get("max_steps"), f"step {number(session.get('step'))}"
    if isinstance(of, int) and of > 0:
        said += f" of {number(of)}"
    elif more.total is not None:
        said += f" of about {number(more.total)}"
    if session.get("epoch") is not None:
        epochs = session.get("max_epochs")
        said += f", epoch {number(session['epoch'])}"
        said += f" of {number(epochs)}" if isinstance(epochs, int) and epochs > 0 else ""
    return said


def _loss(more: More) -> str:
    if more.val_loss is None:
        return ""
    way = {True: " ↓", False: " ↑", None: ""}[more.val_falls]
    return f", val loss {number(more.val_loss)}{way}"


def _left(session: Mapping[str, Any], more: More) -> str:
    speed, left = speed_of(session), left_s(session, more)
    # With what is known beside it the speed stands among the facts.
    said = f", {speed:.3g} steps/s" if speed is not None and more is NOTHING else ""
    return said + (f", {span(left)} left" if left is not None else "")


def _held(session: Mapping[str, Any], now_ts: float, more: More) -> str:
    why = session.get("reason")
    freed = parked(session)
    if more is NOTHING:
        why = _HELD_BY.get(str(why), why)
        said = [str(why)] if why not in (None, "user") else []
        said += [freed] if freed else []
        return f" ({', '.join(said)})" if said else ""
    since = more.paused_since_ts
    how = f" for {span(max(0.0, now_ts - since))}" if since is not None else ""
    if why in _HELD_BY:
        return f"{how} — {_HELD_BY[str(why)]}"
    left = left_s(session, more)
    said = [freed] if freed else []
    said += [f"{span(left)} of training left"] if left is not None else []
    return f"{how} — {', '.join(said)}" if said else how


def _took(more: More) -> str:
    return f" in {span(more.took_s)}" if more.took_s is not None else ""


def _best(more: More) -> str:
    if more.best is None:
        return ""
    at = f" at step {number(more.best_step)}" if more.best_step is not None else ""
    return f", best val loss {number(more.best)}{at}"


def _kept(more: More) -> str:
    if more.checkpoint_step is None:
        return ""
    return f"; the checkpoint at {number(more.checkpoint_step)} is intact"
