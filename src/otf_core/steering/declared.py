"""``otf_param``: an attribute of the user's that can be set while it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NoReturn

from torch import nn

from otf_core.steering.knobs import Effect, Knob, Owner

EFFECTS: Final = ("next step", "next batch", "next epoch")
_KINDS: Final = ("float", "int", "bool", "str")


@dataclasses.dataclass(frozen=True)
class Declared:
    """What ``otf_param`` returns; see there."""

    name: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
    kind: Literal["float", "int", "bool", "str"] | None = None
    unit: str | None = None
    takes_effect: Effect | None = None
    of: Any = dataclasses.field(default=None, repr=False, compare=False)

    def refuse_misfit(self, owner: Any) -> None:
        """Refuse what cannot be set there.

        Raises:
            ValueError: it says what is there, and what is allowed.
        """
        try:
            value = value_of(owner, self.name)
        except (AttributeError, LookupError, TypeError):
            found = f"{type(owner).__name__} has no such attribute"
            _refuse(self, found, "one that is there when training begins")
        kind = _kind_of(self, value)
        if kind is None:
            found = f"it is {value!r}"[:80] if value is None else f"it is {type(value).__name__}"
            _refuse(self, found, "a number, a switch, text")
        if self.kind is None and kind == "str" and self.bounds is not None:
            _refuse(self, "it is text", "choices in place of bounds")
        if self.choices is not None and value not in self.choices:
            _refuse(self, f"it is {value!r}"[:80], f"one of its choices {', '.join(self.choices)}")
        holder, last = _holder(owner, self.name)
        if isinstance(holder, tuple):
            _refuse(self, "it lies in a tuple", "an attribute, or a place in a list or dict")
        setter = getattr(type(holder), last, None)
        if isinstance(setter, property) and setter.fset is None:
            _refuse(self, "it is a property without a setter", "one that can be set")

    def knob(self, owner: Any, of: Owner, effect: Effect, *, in_state: bool) -> Knob | None:
        """What sets it; None where it is not there, or is nothing that can be set."""
        try:
            kind = _kind_of(self, value_of(owner, self.name))
        except (AttributeError, LookupError, TypeError):
            return None
        if kind is None:
            return None
        low, high = self.bounds or (None, None)
        return Knob(
            lambda: value_of(owner, self.name),
            lambda value: _set(owner, self.name, value),
            low=low,
            high=high,
            kind="enum" if self.choices is not None else kind,
            choices=self.choices,
            unit=self.unit,
            owner=of,
            takes_effect=self.takes_effect or effect,
            in_state=in_state and lies_in_state(owner, self.name),
        )


def otf_param(
    name: str,
    *,
    bounds: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    kind: Literal["float", "int", "bool", "str"] | None = None,
    unit: str | None = None,
    takes_effect: Literal["next step", "next batch", "next epoch"] | None = None,
    of: Any = None,
) -> Declared:
    """Declare an attribute that can be set while it trains, as ``attr.<name>``.

    ::

        class Model(L.LightningModule):
            otf_params = [otf_param("mixup_alpha", bounds=(0, 1))]

    Or in ``params=`` of ``OnTheFlyCallback``, ``Runner`` and ``attach``. Whatever reads the
    attribute in each batch has the new value from the next one on.

    Args:
        name: of the attribute; with dots it goes on from attribute to attribute, key of a dict or
            place in a list: ``loss.weights.0``.
        bounds: least and greatest value, both included; without them any finite number.
        choices: what text may be.
        kind: what its value is now, unless this says otherwise; ``"float"`` for an int that may
            have a fraction, or for a value that is None now.
        unit: shown behind it.
        takes_effect: shown; when the script reads it.
        of: an object or a dict that has it; the module, or else the data module, if None.

    Raises:
        TypeError, ValueError: an argument that is not allowed; it says what is.
    """
    if not _is_name(name):
        msg = f"otf_param was asked with the name {name!r}; allowed: that of an attribute"
        raise TypeError(msg)
    if bounds is not None and not _are_numbers(bounds):
        msg = f"otf_param({name!r}) was asked with bounds {bounds!r}; allowed: two numbers"
        raise TypeError(msg)
    if bounds is not None and bounds[0] > bounds[1]:
        msg = f"otf_param({name!r}) was asked with bounds {bounds!r}; allowed: the least first"
        raise ValueError(msg)
    if choices is not None and not _are_texts(choices):
        msg = f"otf_param({name!r}) was asked with choices {choices!r}; allowed: a list of text"
        raise TypeError(msg)
    if bounds is not None and (choices is not None or kind in ("bool", "str")):
        msg = f"otf_param({name!r}) was asked with bounds, and is no number; allowed: one of them"
        raise ValueError(msg)
    for what, asked, allowed in (("kind", kind, _KINDS), ("takes_effect", takes_effect, EFFECTS)):
        if asked is not None and asked not in allowed:
            msg = f"otf_param({name!r}) was asked with {what} {asked!r}; allowed: {allowed}"
            raise ValueError(msg)
    return Declared(
        name,
        None if bounds is None else (bounds[0], bounds[1]),
        None if choices is None else tuple(choices),
        kind,
        unit,
        takes_effect,
        of,
    )


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and all(given.split("."))


def _are_numbers(given: Any) -> bool:
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    numbers = (isinstance(end, int | float) and not isinstance(end, bool) for end in given)
    return all(numbers) and all(map(math.isfinite, given))


def _are_texts(given: Any) -> bool:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        return False
    return all(isinstance(each, str) for each in given)


def all_declared(given: Any, where: str) -> tuple[Declared, ...]:
    """What was given as a list of them. Raises TypeError."""
    found = (given,) if isinstance(given, Declared) else given
    if not isinstance(found, list | tuple) or not all(isinstance(d, Declared) for d in found):
        msg = f"{where} was asked to be {given!r}; allowed: a list of otf_param(…)"
        raise TypeError(msg)
    return tuple(found)


def lies_in_state(owner: Any, name: str) -> bool:
    """Whether what lies there is put back with the owner: not in an object that nobody stores."""
    *way, _ = name.split(".")
    for part in way:
        owner = _get(owner, part)
        if not isinstance(owner, dict | list | nn.Module):
            return False
    return True


def value_of(owner: Any, name: str) -> Any:
    """What lies at the end of the dots. Raises AttributeError, LookupError, TypeError."""
    holder, last = _holder(owner, name)
    return _get(holder, last)


def _holder(owner: Any, name: str) -> tuple[Any, str]:
    *way, last = name.split(".")
    for part in way:
        owner = _get(owner, part)
    return owner, last


def _get(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder[name]
    if isinstance(holder, list | tuple) and name.isdigit():
        return holder[int(name)]
    return getattr(holder, name)


def _set(owner: Any, name: str, value: Any) -> None:
    holder, last = _holder(owner, name)
    if isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, list):
        holder[int(last)] = value
    else:
        setattr(holder, last, value)


def _kind_of(declared: Declared, value: Any) -> Literal["float", "int", "bool", "str"] | None:
    if isinstance(value, bool):
        found: Any = "bool"
    elif isinstance(value, int | float | str):
        found = {int: "int", float: "float", str: "str"}.get(type(value))
    else:
        found = None
    if declared.kind is not None:
        fits = value is None or found == declared.kind or (found, declared.kind) == ("int", "float")
        return declared.kind if fits else None
    bounds = declared.bounds or ()
    if found == "int" and any(isinstance(bound, float) for bound in bounds):
        return "float"
    return None if found == "bool" and bounds else found


def _refuse(declared: Declared, found: str, allowed: str) -> NoReturn:
    msg = f"otf_param({declared.name!r}) was asked, {found}; allowed: {allowed}"
    raise ValueError(msg)
