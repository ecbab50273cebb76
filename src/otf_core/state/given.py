"""What the script gives and a run never changes: the folder of the data, a mode, a limit.

Rule 1: numbers go on as they were saved, also where the script has others by now: they may have
been drawn.
Rule 2: text is the script's: elsewhere the data lies somewhere else. The same text in another
order, which may have been drawn, goes on as it was saved.
Rule 3: either is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from otf_core.state.loader_parts import LEFT, Attributes, same
from otf_core.state.plain_values import TAG

Given = dict[str, Attributes]  # what has the attributes -> name -> plain value
_NUMBERS: Final = (bool, int, float)
_SHOWN: Final = 160


class Settled(NamedTuple):
    """Where script and snapshot differ.

    Attributes:
        text: owner and attribute -> the saved value, the script's.
        told_text, told_numbers: a sentence each.
    """

    text: dict[tuple[str, str], tuple[Any, Any]]
    told_text: list[str]
    told_numbers: list[str]


def given(owners: Mapping[str, Attributes]) -> Given:
    """Of attributes as Encoder has them, those that a script may give as text or number."""
    found = {
        owner: {n: v for n, v in attributes.items() if type(v) in _NUMBERS or [*_leaves(v)]}
        for owner, attributes in owners.items()
        if TAG not in attributes
    }
    return {owner: values for owner, values in found.items() if values}


def unchanged(first: Given, now: Mapping[str, Attributes]) -> Given:
    """Those that are as the script gave them."""
    found = {
        owner: {n: v for n, v in values.items() if same(now.get(owner, {}).get(n, LEFT), v)}
        for owner, values in first.items()
    }
    return {owner: values for owner, values in found.items() if values}


def settle(saved: Given, here: Given) -> Settled:
    """Compare what the script gave to the run that was saved with what it gives here."""
    settled = Settled({}, [], [])
    for owner, values in saved.items():
        for name, was in values.items():
            now = here.get(owner, {}).get(name, was)
            if same(was, now):
                continue
            path = f"{owner.rpartition(':')[2]}.{name}".removeprefix(".")
            if sorted(_leaves(was)) == sorted(_leaves(now)):
                shown = _shown(was, ": {}") + _shown(now, " (the script has {})")
                settled.told_numbers.append(f"{path} goes on as saved{shown}")
            else:
                settled.text[owner, name] = was, now
                here_is = _shown(now) or "another"
                shown = _shown(was, " (it was {})")
                settled.told_text.append(f"{path}, which is {here_is} here{shown}")
    return settled


def with_text(state: Any, settled: Settled) -> Any:
    """A snapshot, or a part of it, with the script's text in the place of what was saved."""
    if not settled.text or not isinstance(state, dict) or TAG in state:
        return state
    return {
        key: _of_owner(key, value, settled) if isinstance(value, dict) else value
        for key, value in state.items()
    }


def settle_in(exact: dict[str, Any], here: Mapping[str, Given]) -> list[Settled]:
    """Put this script's text into a snapshot: part of it -> what was given to that part.

    Returns:
        Where the two differ.
    """
    found = []
    for part, saved in exact.get("given", {}).items():
        settled = settle(saved, here.get(part, {}))
        exact[part] = with_text(exact[part], settled)
        found.append(settled)
    return found


def _of_owner(owner: Any, value: dict[Any, Any], settled: Settled) -> dict[Any, Any]:
    swapped = {
        name: now
        for (of, name), (was, now) in settled.text.items()
        if of == owner and name in value and same(value[name], was)
    }
    found: dict[Any, Any] = {**with_text(value, settled), **swapped}
    return found


def _leaves(value: Any) -> Iterator[str]:
    """The text in a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict) and value.get(TAG) == "packed":
        yield from value["v"].split("\0") if value["of"] == "str" else ()
    elif isinstance(value, dict) and TAG in value:
        yield from _leaves(value.get("v")) if value[TAG] != "enum" else ()
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))


def _shown(value: Any, frame: str = "{}") -> str:
    """A short value in its frame; nothing in the place of a long one."""
    plain = value["v"] if isinstance(value, dict) and value.get(TAG) == "path" else value
    text = repr(plain)
    return frame.format(text) if not isinstance(plain, dict) and len(text) <= _SHOWN else ""
