"""Single values that are in no parameter group: what one is, what is asked of it, and how it lasts.

Rule 1: a knob is written where the training reads it, and holds until it is released, its last
step is reached, or the script writes it itself, which is said.
Rule 2: a knob that stands for others is held by them, so that one of them can be set apart.
Rule 3: what belongs to the training's state is put back with it, and is written by nobody else.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam

Owner: TypeAlias = Literal["optimizer", "scheduler", "trainer", "data", "model", "user"]
Value: TypeAlias = float | int | bool | str | None
Effect: TypeAlias = Literal["next step", "next batch", "next epoch", "at the end"]


CLIP_MAX: Final = 1000.0  # 0 is no clipping; above a norm of 1,000 nothing is clipped in practice
MAX_TEXT: Final = 1000  # characters of a value that is text


@dataclasses.dataclass(frozen=True)
class Knob:
    """A single value that is not in a parameter group; read and written on the training thread.

    Attributes:
        read: the value in force; None where it is not set.
        write: takes what ``read`` may return.
        low, high: bounds, both included, for numbers; None is no bound.
        choices: what an enum may be.
        takes_effect: when the training reads it after it was written.
        parts: paths of the knobs for which this one stands; it is read and written by them.
        refused: a sentence why it cannot be set; it is not listed then.
        steps_until: steps until it can be that without spoiling one; 0 is now.
        in_state: it is a part of the training's state, and put back with it.
        check: given what is asked, within the bounds: as ``write`` takes it; CommandError where it
            cannot be.
        close: the run is over, and it was set.
        in_use: what the training reads now, where ``read`` is for later.
    """

    read: Callable[[], Value]
    write: Callable[[Any], None]
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "bool", "enum", "str"] = "float"
    choices: tuple[str, ...] | None = None
    unit: str | None = None
    owner: Owner = "trainer"
    takes_effect: Effect = "next step"
    parts: tuple[str, ...] = ()
    refused: str | None = None
    steps_until: Callable[[Any], int] | None = None
    in_state: bool = False
    check: Callable[[Any], Value] | None = None
    close: Callable[[], None] | None = None
    in_use: Callable[[], Value] | None = None


def refused_knob(why: str) -> Knob:
    """One that is there, and that nobody can set."""
    return Knob(lambda: None, lambda _: None, refused=why)


def clip_knob(read: Callable[[], Value], write: Callable[[Any], None]) -> Knob:
    """The knob for a gradient clip: 0 to 1,000, where 0 is no clipping."""
    return Knob(read, write, low=0.0, high=CLIP_MAX)


class Kept(NamedTuple):
    """How a knob was before it was set.

    Attributes:
        held: whether a person had set it.
        until: the step at which it was to be the script's again.
    """

    value: Value
    held: bool = False
    until: int | None = None


class Become(NamedTuple):
    """What has become of a value that was held.

    Attributes:
        ended: its last step was reached; else the script has written it.
    """

    path: str
    old: Value
    new: Value
    ended: bool


class HeldKnobs:
    """The knobs of a run, and what they were left with; training thread.

    Args:
        supplied: those of the framework, by path; looked up anew each time.
    """

    def __init__(self, supplied: Callable[[], Mapping[str, Knob]]) -> None:
        self._supplied = supplied
        self.added: dict[str, Knob] = {}  # no part of the training's state
        self._held: dict[str, Value] = {}
        self._live: dict[str, Knob] = {}  # of what is held
        self._script: dict[str, Value] = {}  # what the script has there
        self._until: dict[str, int] = {}

    def all(self) -> dict[str, Knob]:
        """By path; those that nobody can set as well."""
        return {**self._supplied(), **self.added}

    def paths(self, path: str, knob: Knob) -> Sequence[str]:
        """Those for which it stands, or its own."""
        return knob.parts or (path,)

    def held(self, paths: Iterable[str]) -> list[str]:
        """Those of these that are held."""
        return [path for path in paths if path in self._held]

    def put(self, values: Mapping[str, Value], until: int | None) -> dict[str, Kept]:
        """Hold these; how they were.

        Raises:
            CommandError: ``not_allowed_now``; nothing is written then.
        """
        knobs = self.all()
        self._refuse(knobs, values)
        before = {path: self._kept(path, knobs[path]) for path in values}
        for path, value in values.items():
            self._write(path, knobs[path], value, until, before[path].value)
        return before

    def put_back(self, before: Mapping[str, Kept]) -> dict[str, Kept]:
        """These are as they were: held, or the script's; how they were until now."""
        knobs = self.all()
        self.refuse_in_between(before)
        now = {path: self._kept(path, knobs[path]) for path in before}
        for path, kept in before.items():
            if kept.held:
                self._write(path, knobs[path], kept.value, kept.until, now[path].value)
            else:
                if knobs[path].read() != kept.value:
                    knobs[path].write(kept.value)
                self._forget(path)
        return now

    def release(self, paths: Iterable[str]) -> dict[str, Kept]:
        """These are as the script has them; how they were."""
        return self.put_back({path: Kept(self._script[path]) for path in paths})

    def scripts(self, paths: Iterable[str]) -> list[Value]:
        """What the script has there, of what is held."""
        return [self._script[path] for path in paths]

    def watch(self, step: int) -> list[Become]:
        """What has become of them since the last call; free where none is held."""
        found = []
        for path, value in tuple(self._held.items()):
            knob = self._live[path]
            now = knob.read()
            if now != value:
                found.append(Become(path, value, now, ended=False))
                self._forget(path)
            elif step >= self._until.get(path, step + 1):
                own = self._script[path]
                if knob.steps_until is not None and knob.steps_until(own) > 0:
                    continue
                self.release([path])
                found.append(Become(path, value, knob.read(), ended=True))
        return found

    def state(self) -> dict[str, Any]:
        """Plain values, to go into a checkpoint."""
        return {
            "knobs": dict(self._held),
            "until": dict(self._until),
            "script": {path: self._script[path] for path in self._held},
        }

    def strange(self, state: Mapping[str, Any]) -> set[str]:
        """Paths of a ``state`` that this run does not have."""
        return set(state["knobs"].keys() - self._supplied())

    def load(self, state: Mapping[str, Any]) -> None:
        """Hold what ``state`` held, and nothing else; after the rest of the state is in place."""
        knobs, held = self._supplied(), state["knobs"]
        saved = state.get("script", {})  # checkpoints of 0.2.0 have none
        for path in [path for path in self._held if path not in held]:
            # Set after that state was taken.
            if path in knobs and not knobs[path].in_state:
                knobs[path].write(self._script[path])
            self._forget(path)
        for path, value in held.items():
            now = knobs[path].read()
            own = saved.get(path, now) if now == value else now  # of a process that begins
            self._script.setdefault(path, own)
            knobs[path].write(value)
            self._held[path], self._live[path] = value, knobs[path]
        self._until = dict(state.get("until", {}))

    def close(self) -> None:
        """Hold nothing any more; the values stay as they are."""
        for path, knob in tuple(self._live.items()):
            if knob.close is not None:
                knob.close()
            self._forget(path)

    def _kept(self, path: str, knob: Knob) -> Kept:
        return Kept(knob.read(), path in self._held, self._until.get(path))

    def _write(self, path: str, knob: Knob, value: Value, until: int | None, old: Value) -> None:
        if old != value:
            knob.write(value)
        if path in self.added:
            return
        self._script.setdefault(path, old)
        self._held[path], self._live[path] = knob.read(), knob
        self._until.pop(path, None)
        if until is not None:
            self._until[path] = until

    def _forget(self, path: str) -> None:
        for table in (self._held, self._live, self._script, self._until):
            table.pop(path, None)

    def refuse_in_between(self, before: Mapping[str, Kept]) -> None:
        """Refuse to put these back in the middle of what they count. Raises CommandError."""
        self._refuse(self.all(), {path: kept.value for path, kept in before.items()})

    @staticmethod
    def _refuse(knobs: Mapping[str, Knob], values: Mapping[str, Value]) -> None:
        for path, value in values.items():
            wait = knobs[path].steps_until
            if wait is not None and (steps := wait(value)) > 0:
                detail = (
                    f"{path} was to be {value}, found in the middle of what it counts; allowed: "
                    f"{steps} step{'s' * (steps > 1)} later."
                )
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="at_step")


def plan(request: SetParam, knob: Knob) -> Value:
    """What is asked of a knob that stands for itself.

    Raises:
        CommandError: it cannot be that.
    """
    value: Value
    if knob.kind == "float":
        value = number_of(request, knob.read(), knob.low, knob.high)
    elif knob.kind == "int":
        value = whole(request, number_of(request, knob.read(), knob.low, knob.high))
    elif knob.kind == "str":
        value = text_of(request)
    else:
        value = choice_of(request, knob.choices or () if knob.kind == "enum" else (False, True))
    return value if knob.check is None else knob.check(value)


def whole(request: SetParam, value: float) -> int:
    """A number that is one. Raises CommandError."""
    if not value.is_integer():
        detail = f"{request.path} was asked to be {value}; allowed: a whole number."
        refuse_value(request, detail)
    return int(value)


def text_of(request: SetParam) -> str:
    """What is asked, as text. Raises CommandError."""
    asked = request.value
    if not isinstance(asked, str) or len(asked) > MAX_TEXT or request.mul is not msgspec.UNSET:
        said = "multiplied" if asked is msgspec.UNSET else repr(asked)[:80]
        detail = f"{request.path} was asked to be {said}; allowed: text of up to {MAX_TEXT:,}."
        refuse_value(request, detail)
    return asked


def agreed(values: Sequence[Any]) -> Any:
    """The one value where all are the same, else the list."""
    return values[0] if all(value == values[0] for value in values) else [*values]


def number_of(request: SetParam, old: Value, low: float | None, high: float | None) -> float:
    """What is asked, as a number within the bounds."""
    allowed = {"min": low, "max": high}
    span = "any number" if low is None and high is None else f"{low} to {high}"
    if (request.value is msgspec.UNSET) == (request.mul is msgspec.UNSET):
        detail = f"{request.path} needs one of value and mul; allowed: exactly one of them."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="value", allowed=allowed)
    asked: Any = request.mul if request.value is msgspec.UNSET else request.value
    if (
        isinstance(asked, bool)
        or not isinstance(asked, int | float)
        or not abs(asked) <= sys.float_info.max
    ):
        said = "any number" if span == "any number" else f"a number from {span}"
        detail = f"{request.path} was asked as {asked!r}; allowed: {said}."
        refuse_value(request, detail, allowed)
    if request.value is msgspec.UNSET:
        if isinstance(old, str | bool) or old is None:
            detail = f"{request.path} was asked to be multiplied, it is {old!r}; allowed: value."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mul", allowed=allowed)
        asked *= old
    below = low is not None and asked < low
    if below or (high is not None and asked > high) or not abs(asked) <= sys.float_info.max:
        detail = f"{request.path} was asked to be {asked}, is {old}; allowed: {span}."
        refuse_value(request, detail, allowed)
    return float(asked)


def choice_of(request: SetParam, allowed: Sequence[Value]) -> Value:
    asked: Any = request.value
    # 1 == True: the type is a part of it.
    fits = any(type(value) is type(asked) and value == asked for value in allowed)
    if not fits or request.mul is not msgspec.UNSET:
        said = "multiplied" if asked is msgspec.UNSET else repr(asked)
        detail = f"{request.path} was asked to be {said}; allowed: {', '.join(map(str, allowed))}."
        refuse_value(request, detail, [*allowed])
    return asked  # type: ignore[no-any-return]  # one of allowed


def refuse_value(request: SetParam, detail: str, allowed: Any = None) -> NoReturn:
    field = "value" if request.mul is msgspec.UNSET else "mul"
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field, allowed=allowed)
