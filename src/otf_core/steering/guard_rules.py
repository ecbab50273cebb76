"""What a person asks of guards: which values are watched, and what is done when they go wrong.

A rule is written ``WATCH[:ACTION][,NAME=VALUE]…`` (``spike:rollback,z=8,budget=2``), several with
``;`` between them, or given as a mapping with the same names.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from otf_core.steering.detectors import WATCHES, Detector

ACTIONS: Final = ("notify", "pause", "rollback")
INSTEAD: Final = ("pause", "notify")
MAX_RULES: Final = 20  # each costs time at every step
ROLLBACKS: Final = 3
MOST: Final = 1000  # ten times what PaLM went back
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_WORDS: Final = ("rule", "metric", "action", "then", "mode")
_OWN: Final = ("rule", "metric", "action", "lr", "back", "most", "budget", "then", "cool_down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardRule:
    """One rule; every value that is not given is a good one.

    Attributes:
        rule: its name.
        watch: which detector, a key of ``WATCHES``.
        metric: a field of ``trainStep``, or a name that is logged.
        action: "notify"; "pause"; "rollback": to a checkpoint of before, then the rate is scaled.
        params: of the detector.
        lr: factor on the learning rate behind a rollback.
        back: so many steps before the wrong value the checkpoint is at least.
        most: so many steps are given up at most; else the run is held.
        budget: how often it pauses or rolls back; None: without end.
        then: what is done in place of a rollback when the budget is used up.
        cool_down: steps after it has acted in which it does not.
        enabled: whether it acts at all.
    """

    rule: str
    watch: str
    metric: str
    action: str = "pause"
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lr: float = 0.5
    back: int = 2
    most: int = MOST
    budget: int | None = None
    then: str = "pause"
    cool_down: int = 0
    enabled: bool = True

    def make(self) -> Detector:
        """A new detector for it."""
        return WATCHES[self.watch].make(**self.params)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)


def guard_rules(asked: Any) -> tuple[GuardRule, ...]:
    """Every rule that ``guards=`` names, in its order; each has a name of its own.

    Raises:
        ValueError: one that is not allowed; it says what is.
    """
    rules: list[GuardRule] = []
    for each in _several(asked):
        given = _parsed(each) if isinstance(each, str) else dict(each)
        rules.append(guard_rule(given, {rule.rule for rule in rules}))
    if len(rules) > MAX_RULES:
        msg = f"guards was asked with {len(rules)} rules; allowed: at most {MAX_RULES}"
        raise ValueError(msg)
    return tuple(rules)


def _several(asked: Any) -> list[Any]:
    if asked is None:
        return []
    if isinstance(asked, str):
        return [part for part in asked.split(";") if part.strip()]
    if isinstance(asked, Mapping):
        return [asked]
    if isinstance(asked, Sequence) and all(isinstance(each, str | Mapping) for each in asked):
        return [rule for each in asked for rule in _several(each)]
    msg = f"guards was asked to be {asked!r}; allowed: text, a mapping, or a list of them"
    raise ValueError(msg)


def _parsed(text: str) -> dict[str, Any]:
    first, *settings = (part.strip() for part in text.split(","))
    watch, colon, action = first.partition(":")
    given: dict[str, Any] = {"watch": watch.strip()}
    if colon:
        given["action"] = action.strip()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            msg = (
                f"guards was asked with {setting!r} in {text.strip()!r}; allowed: "
                "WATCH:ACTION,NAME=VALUE"
            )
            raise ValueError(msg)
        key, text = name.strip(), value.strip()
        given[key] = text if key in _WORDS else _read(text)
    return given


def _read(text: str) -> Any:
    """A number where it is one, ``none`` for None, else the text."""
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def guard_rule(given: Mapping[str, Any], taken: set[str] | frozenset[str]) -> GuardRule:
    """One rule as it is asked, checked.

    Args:
        taken: names of other rules.

    Raises:
        ValueError: a value that is not allowed; it says what is.
    """
    left = dict(given)
    watch = left.pop("watch", None)
    if watch not in WATCHES:
        _refuse("watch", watch, ", ".join(WATCHES))
    row = WATCHES[watch]
    own: dict[str, Any] = {name: left.pop(name) for name in _OWN if name in left}
    enabled = left.pop("enabled", True)
    params = {**left.pop("params", {}), **left}
    action = _one_of("action", own.get("action", "pause"), ACTIONS)
    rule = GuardRule(
        rule=_name(own.get("rule"), watch, taken),
        watch=watch,
        metric=_metric(own.get("metric", row.metric)),
        action=action,
        params=_params(watch, params),
        lr=_number("lr", own.get("lr", 0.5), 1e-9, 1.0),
        back=_whole("back", own.get("back", 2), 1),
        most=_whole("most", own.get("most", MOST), 1),
        budget=_budget(own, action),
        then=_one_of("then", own.get("then", "pause"), INSTEAD),
        cool_down=_whole("cool_down", own.get("cool_down", row.cool_down), 0),
        enabled=enabled is True,
    )
    if enabled not in (True, False):
        _refuse("enabled", enabled, "true, false")
    return rule


def changed(rule: GuardRule, asked: Mapping[str, Any]) -> GuardRule:
    """The rule with other settings, checked. Raises as ``guard_rule``."""
    now = rule.to_plain()
    params = {**now.pop("params"), **asked.get("params", {})}
    if "watch" in asked and asked["watch"] != rule.watch:
        msg = (
            f"guard {rule.rule!r} was asked to watch {asked['watch']!r}, it watches "
            f"{rule.watch!r}; allowed: another rule"
        )
        raise ValueError(msg)
    if asked.get("action") == "rollback" and rule.budget is None and "budget" not in asked:
        del now["budget"]  # a rollback has one, unless that is asked otherwise
    return guard_rule({**now, **asked, "params": params}, frozenset())


def _params(watch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    row = WATCHES[watch]
    if strange := sorted(given.keys() - row.settings.keys()):
        allowed = ", ".join([*row.settings, *_OWN])
        msg = f"guards was asked with {strange[0]!r} for {watch}; allowed: {allowed}"
        raise ValueError(msg)
    found: dict[str, Any] = {}
    for name, setting in row.settings.items():
        value = given.get(name, setting.default)
        if value is None:
            found[name] = None
        elif setting.choices:
            found[name] = _one_of(name, value, setting.choices)
        elif setting.kind is int:
            found[name] = _whole(name, value, int(setting.low), int(setting.high))
        else:
            found[name] = _number(name, value, setting.low, setting.high)
    missing = [name for name, s in row.settings.items() if found[name] is None and s.default]
    if missing or (row.any_of and all(found[name] is None for name in row.any_of)):
        needed = missing[0] if missing else " or ".join(row.any_of)
        msg = f"guards was asked for {watch} without {needed}; allowed: a number"
        raise ValueError(msg)
    return found


def _name(asked: Any, watch: str, taken: set[str] | frozenset[str]) -> str:
    if asked is None:
        names = itertools.chain((watch,), (f"{watch}-{n}" for n in itertools.count(2)))
        return next(name for name in names if name not in taken)
    if not isinstance(asked, str) or not _NAME.fullmatch(asked):
        _refuse("rule", asked, "1 to 60 letters, digits and ._-")
    if asked in taken:
        _refuse("rule", asked, "each name once")
    return str(asked)


def _metric(asked: Any) -> str:
    if not isinstance(asked, str) or not 0 < len(asked) <= 200:
        _refuse("metric", asked, "the name of a value")
    return str(asked)


def _budget(own: Mapping[str, Any], action: str) -> int | None:
    asked = own.get("budget", ROLLBACKS if action == "rollback" else None)
    return None if asked is None else _whole("budget", asked, 0)


def _one_of(name: str, asked: Any, allowed: Sequence[str]) -> str:
    if asked not in allowed:
        _refuse(name, asked, ", ".join(allowed))
    return str(asked)


def _whole(name: str, asked: Any, low: int, high: int = 10**9) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int) or not low <= asked <= high:
        _refuse(name, asked, f"a whole number from {low} to {high}")
    return int(asked)


def _number(name: str, asked: Any, low: float, high: float) -> float:
    fits = not isinstance(asked, bool) and isinstance(asked, int | float)
    if not fits or not math.isfinite(asked) or not low <= asked <= high:
        _refuse(name, asked, f"a number from {low:g} to {high:g}")
    return float(asked)


def _refuse(name: str, asked: Any, allowed: str) -> None:
    msg = f"{name} of a guard was asked to be {asked!r}; allowed: {allowed}"
    raise ValueError(msg)
