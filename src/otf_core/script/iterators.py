"""The table's rows for iterators and generators; see ``variables`` and ``loops``."""

from __future__ import annotations

import gc
import itertools
from types import GeneratorType
from typing import Any, Final

from otf_core.script import frames
from otf_core.script.frames import ABSENT, Spot
from otf_core.script.loops import (
    POSITIONED,
    SURE,
    Counted,
    PlaceError,
    Zip,
    holds,
    place_of,
    put_at,
    set_count,
)
from otf_core.script.prints import print_of
from otf_core.script.variables import Giving, Kind, Taking

_ASKED_AT_MOST: Final = 100  # until a generator stands where it stood


def _take_positioned(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    """What it runs over is put back first, or has to be the same."""
    return {
        "c": type(value).__name__,
        "n": place_of(value),
        "over": taking(holds(value), f"{path} over"),
    }


def _make_named(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if type(live).__name__ == node["c"]:
        return live
    giving.lose(f"a {node['c']}")
    return live


def _fill_positioned(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if type(made).__name__ != node["c"]:
        return
    over = holds(made)
    saved = giving(node["over"], over)
    if saved is not over and print_of(saved) != print_of(over):
        giving.lose(f"what a loop over a {type(over).__name__} runs over")
    giving.behind.append(lambda: _go(giving, lambda: put_at(made, node["n"])))


def _go(giving: Giving, go: Any) -> None:
    try:
        go()
    except PlaceError as error:
        giving.lose(str(error))


def _take_enumerate(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    inner, count = value.__reduce__()[1]
    return {"n": count, "inner": taking(inner, path)}


def _make_enumerate(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if type(live) is enumerate:
        return live
    inner = giving(node["inner"])
    return ABSENT if inner is ABSENT else enumerate(inner, node["n"])


def _fill_enumerate(giving: Giving, node: dict[str, Any], made: Any) -> None:
    giving(node["inner"], made.__reduce__()[1][0])
    _go(giving, lambda: set_count(made, node["n"]))


def _take_zip(taking: Taking, value: Zip, path: str) -> dict[str, Any]:
    return {
        "inner": [taking(inner, path) for inner in value.inner],
        "items": [taking(item, f"{path} item") for item in value.items],
    }


def _make_zip(giving: Giving, _node: dict[str, Any], live: Any) -> Any:
    if type(live) is not Zip:
        giving.lose("a zip")
    return live


def _fill_zip(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if type(made) is not Zip:
        return
    for saved, live in zip(node["inner"], made.inner, strict=False):
        giving(saved, live)
    there = list(made.items)
    items = [giving(v, there[n] if n < len(there) else ABSENT) for n, v in enumerate(node["items"])]
    made.items[:] = items  # it is being asked: the list in its hand


def _take_inside(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    found = value.__reduce__()[1]
    parts = found if type(value) is zip else found[1:]
    if any(part is taking.asked or getattr(part, "gi_running", False) for part in parts[1:]):
        taking.reasons.append(f"{path}: what a {type(value).__name__} has in hand is unknown")
    return {"inner": [taking(part, path) for part in parts], "c": type(value).__name__}


def _fill_inside(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if type(made).__name__ != node["c"]:
        return
    found = made.__reduce__()[1]
    parts = found if type(made) is zip else found[1:]
    for saved, live in zip(node["inner"], parts, strict=False):
        giving(saved, live)


def _take_counted(taking: Taking, value: Counted, path: str) -> dict[str, Any]:
    kind = type(value.inner)
    if kind not in SURE and not taking.own.cls(kind):
        taking.reasons.append(
            f"the place in a {kind.__name__} ({path}) is found by asking it again as often"
        )
    stored = taking.own.cls(kind) or kind is itertools.count
    return {"n": value.count, "inner": taking(value.inner, path) if stored else None}


def _fill_counted(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if type(made) is not Counted:
        return
    if node["inner"] is not None:
        inner = giving(node["inner"], made.inner)
        made.inner = made.inner if inner is ABSENT else inner
        made.count = node["n"]
    else:
        _go(giving, lambda: made.go_to(node["n"]))


# Generators.


def _take_generator(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    frame = value.gi_frame
    if frame is None:
        return {"ended": True}
    if value.gi_running:
        return {"running": True}  # its frame is one of the script's
    spot = frames.spot(frame, taking.own.folder)
    return {
        "spot": tuple(spot),
        "v": [(n, taking(v, f"{path}.{n}")) for n, v in frames.values(frame).items()],
        "loops": [taking(it, f"{path} loop") for it in _held(value)],
    }


def _held(generator: GeneratorType[Any, Any, Any]) -> list[Any]:
    """The iterators of the loops of a generator that waits, the outermost first."""
    found = list(gc.get_referents(generator))
    frame: Any = generator.gi_frame
    for value in (*frames.values(frame).values(), generator.gi_code):
        n = next((n for n, x in enumerate(found) if x is value), None)
        if n is not None:
            del found[n]
    return [x for x in found if hasattr(type(x), "__next__")]


def _make_generator(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if node.get("running") or node.get("ended"):
        return live
    if type(live) is not GeneratorType:
        giving.lose(f"the generator {Spot(*node['spot'])}, made after this place")
    return live


def _fill_generator(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if type(made) is not GeneratorType or "spot" not in node:
        return
    saved = Spot(*node["spot"])
    if not _brought(giving, made, saved):
        giving.lose(f"the place of the generator {saved}")
        return
    frame: Any = made.gi_frame
    live = frames.values(frame)
    new = {name: giving(value, live.get(name, ABSENT)) for name, value in node["v"]}
    held = _held(made)
    if len(held) != len(node["loops"]):
        giving.lose(f"the loops of the generator {saved}")
    for plain, iterator in zip(node["loops"], held, strict=False):
        giving(plain, iterator)
    new = {name: value for name, value in new.items() if value is not ABSENT}
    frames.write(frame, new, live.keys() - dict(node["v"]).keys())


def _brought(giving: Giving, generator: Any, saved: Spot) -> bool:
    """Ask until it stands there; nothing is asked of one that has not begun."""
    for _ in range(_ASKED_AT_MOST):
        if generator.gi_frame is None:
            return False
        now = frames.spot(generator.gi_frame, giving.own.folder)
        if now == saved:
            return True
        if now[:2] + now[3:] != saved[:2] + saved[3:] or saved.at[0] is None:
            return False
        next(generator, None)
    return False


ITERATORS: Final = (
    Kind(
        "positioned",
        lambda _, x: type(x) in POSITIONED,
        _take_positioned,
        _make_named,
        _fill_positioned,
    ),
    Kind(
        "enumerate",
        lambda _, x: type(x) is enumerate,
        _take_enumerate,
        _make_enumerate,
        _fill_enumerate,
    ),
    Kind("zip", lambda _, x: type(x) is Zip, _take_zip, _make_zip, _fill_zip),
    Kind(
        "inside",
        lambda _, x: type(x) in (zip, map, filter),
        _take_inside,
        _make_named,
        _fill_inside,
    ),
    Kind(
        "counted",
        lambda _, x: type(x) is Counted,
        _take_counted,
        lambda _giving, _node, live: live,
        _fill_counted,
    ),
    Kind(
        "generator frame",
        lambda _, x: type(x) is GeneratorType,
        _take_generator,
        _make_generator,
        _fill_generator,
    ),
)
