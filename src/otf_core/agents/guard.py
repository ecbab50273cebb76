"""What an agent may do to a run; any thread.

Rule 1: nothing is changed unless a person has said so when the server was started.
Rule 2: what loses work needs a person each time; the answer is what that person types.
Rule 3: a refusal says which rule it was and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from otf_core.errors import OtfError

# What ends a run, or puts another state in its place.
NEEDS_PERSON: Final = frozenset({"stop", "rollback", "load_ckpt", "reset_session"})
WINDOW_S: Final = 60.0


class GuardError(OtfError):
    """The agent may not do that; ``code`` is read_only, out_of_bounds, too_many, needs_person."""

    def __init__(self, detail: str, *, code: str, **more: Any) -> None:
        super().__init__(detail)
        self.code, self.more = code, more


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a person has allowed.

    Attributes:
        write: whether anything may be changed.
        bounds: of parameters, by path: least and greatest value, narrower than the run's own.
        per_minute: changes, at most.
    """

    write: bool = False
    bounds: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    per_minute: int = 10


class Guard:
    """Keeps the rules."""

    def __init__(self, rules: Rules, now_s: Callable[[], float] = time.monotonic) -> None:
        self.rules, self._now_s = rules, now_s
        self._lock = threading.Lock()
        self._changes: deque[float] = deque()

    def check(self, word: str, cmd: str, payload: Mapping[str, Any], line: str) -> None:
        """Raise GuardError if this may not be sent.

        Args:
            word: the verb.
            line: what a person would type for the same.
        """
        if not self.rules.write:
            detail = (
                f"{word} changes a run, and this server was started to look only; "
                "a person starts it with: otf mcp --write"
            )
            raise GuardError(detail, code="read_only")
        if cmd in NEEDS_PERSON or (cmd == "undo" and payload.get("restore")):
            detail = f"{word} loses what was trained since; a person has to do it: {line}"
            raise GuardError(detail, code="needs_person", line=line)
        if cmd == "set_guard" and payload.get("action") not in ("notify", "pause"):
            detail = f"{word} may have the run go back, unless it says notify or pause: {line}"
            raise GuardError(detail, code="needs_person", line=line)
        changes = payload.get("changes") if cmd == "set_params" else [payload]
        if cmd in ("set_param", "set_params"):
            for change in changes or []:
                self._check_bounds(change)
        if cmd == "fork":
            for name, value in {**payload.get("hparams", {}), **payload.get("params", {})}.items():
                self._check_bounds({"path": name, "value": value})

    def bounded(self, payload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The changes of values that have bounds here."""
        changes = payload.get("changes") or [payload]
        return [each for each in changes if self._bounds(str(each.get("path"))) is not None]

    def check_curves(self, curves: Mapping[str, Any]) -> None:
        """Raise GuardError if a change takes a value out of the bounds: a scaled schedule can.

        What the schedule does by itself, as when it decays to 0, is not the agent's.
        """
        for path, values in (curves.get("then") or {}).items():
            low, high = self._bounds(path) or (-math.inf, math.inf)
            by_itself = curves["now"][path]
            for step, value, own in zip(curves["step"], values, by_itself, strict=True):
                if not min(low, own) <= value <= max(high, own):
                    detail = (
                        f"{path} would be {value:g} at step {step}; "
                        f"allowed here: {low:g} to {high:g}."
                    )
                    raise GuardError(
                        detail, code="out_of_bounds", allowed={"min": low, "max": high}
                    )

    def _bounds(self, path: str) -> tuple[float, float] | None:
        # optim.0.groups.1.lr is bound by what is said of lr.
        known = self.rules.bounds
        return known.get(path) or known.get(path.rpartition(".")[2])

    def _check_bounds(self, change: Mapping[str, Any]) -> None:
        path = str(change.get("path"))
        bounds = self._bounds(path)
        if bounds is None:
            return
        low, high = bounds
        if "mul" in change:
            detail = (
                f"{path} was asked to be multiplied by {change['mul']}; it has bounds here, and a "
                f"factor is not looked through; allowed: a value from {low:g} to {high:g}."
            )
            raise GuardError(detail, code="out_of_bounds", allowed={"min": low, "max": high})
        for value in (change.get("value"), change.get("to")):
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not (math.isfinite(value) and low <= value <= high):
                detail = f"{path} was asked to be {value}; allowed here: {low:g} to {high:g}."
                raise GuardError(detail, code="out_of_bounds", allowed={"min": low, "max": high})

    def count(self, word: str) -> None:
        """Note a change that is about to be sent; GuardError where there were too many."""
        with self._lock:
            now_s = self._now_s()
            while self._changes and self._changes[0] <= now_s - WINDOW_S:
                self._changes.popleft()
            if len(self._changes) >= self.rules.per_minute:
                wait_s = self._changes[0] + WINDOW_S - now_s
                detail = (
                    f"{word} was asked; {len(self._changes)} changes were made in the last minute, "
                    f"allowed: {self.rules.per_minute}. The next one in {wait_s:.0f} s."
                )
                raise GuardError(detail, code="too_many", retry_after_s=round(wait_s, 1))
            self._changes.append(now_s)


def bounds_of(text: str) -> tuple[str, tuple[float, float]]:
    """``lr=1e-5:1e-2``. Raises ValueError."""
    name, _, span = text.partition("=")
    low, _, high = span.partition(":")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = math.nan, math.nan
    if not name or not bounds[0] <= bounds[1]:
        msg = f"--bounds takes NAME=LEAST:GREATEST, as lr=1e-5:1e-2; found {text!r}"
        raise ValueError(msg)
    return name, bounds


def typed(word: str, given: Mapping[str, Any], options: Mapping[str, str], run: str) -> str:
    """The same as a line for the terminal.

    Args:
        options: by argument, the option's word; what has none is positional.
    """
    parts = ["otf", word]
    for key, value in given.items():
        if value is None or value is False:
            continue
        if key in options:
            parts += [options[key]] if value is True else [options[key], str(value)]
        else:
            parts += [str(each) for each in (value if isinstance(value, list) else [value])]
    return shlex.join([*parts, "--run", run])
