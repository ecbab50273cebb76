"""The table's rows for functions, and which function a variable holds; see ``variables``.

Rule 1: a function of the script's is known by its code; one of a library by the name under which
it can be imported and is that very object.
Rule 2: by its name only what the script's own code names is looked up, or what is the script's.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from otf_core.script.frames import ABSENT
from otf_core.script.variables import Giving, Kind, Own, Taking

_LOCALS: Final = ".<locals>."


def name_of(value: Any) -> str | None:
    """``module:path`` under which a function or class is found; None: it is not."""
    module: Any = getattr(value, "__module__", None)
    path = getattr(value, "__qualname__", "")
    if type(value) is np.ufunc:
        module, path = "numpy", value.__name__
    elif module is None and isinstance(value, types.BuiltinFunctionType):
        of = value.__self__
        module = of.__name__ if isinstance(of, types.ModuleType) else "torch"
    name = f"{module}:{str(path).removeprefix('_VariableFunctionsClass.')}"
    return name if _at(name) is value else None


def _at(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module, ABSENT)
    for part in path.split("."):
        found = getattr(found, part, ABSENT)
    return found


def is_unknown(taking: Taking, value: Any) -> bool:
    """Of a class or a built-in function: that nothing tells it from another."""
    own = isinstance(value, type) and taking.own.cls(value)
    return not own and not _is_named(taking, value)


def _code_of(module: str, code: types.CodeType) -> str:
    where = zlib.crc32(code.co_linetable)  # of two lambdas in a line
    return f"{module}:{code.co_qualname}:{code.co_firstlineno}:{where:08x}"


def _told_of(function: types.FunctionType) -> str:
    return _code_of(str(function.__globals__.get("__name__")), function.__code__)


class Functions:
    """What there is of the script's own code in this process."""

    def __init__(self, own: Own, stack: Iterable[types.FrameType], live: Iterable[Any]) -> None:
        self._own = own
        self._live: dict[str, list[types.FunctionType]] = {}
        self._codes: dict[str, types.CodeType] = {}
        self._names: set[str] = set()
        self._running: list[str] = []
        for frame in stack:
            module = str(frame.f_globals.get("__name__"))
            if own.module(module) is not None:
                self._running.append(f"{module}:{frame.f_code.co_qualname}{_LOCALS}")
                self._note(module, frame.f_code)
        for value in live:
            if isinstance(value, types.FunctionType):
                self._live.setdefault(_told_of(value), []).append(value)
                if own.function(value):
                    self._note(str(value.__globals__.get("__name__")), value.__code__)

    def _note(self, module: str, code: types.CodeType) -> None:
        told = _code_of(module, code)
        if told in self._codes:
            return
        self._codes[told] = code
        self._names.update(code.co_names)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._note(module, const)
            elif isinstance(const, str):
                self._names.add(const)

    def there(self, told: str) -> Iterator[types.FunctionType]:
        """Live ones of this code."""
        yield from self._live.get(told, ())

    def imported(self, name: str) -> Any:
        """ABSENT where it is not there, or not to be looked up."""
        module, _, path = name.partition(":")
        allowed = module == "torch.nn.functional" or path.rpartition(".")[2] in self._names
        if not allowed and self._own.module(module) is None:
            return ABSENT
        found = _at(name)
        return found if name_of(found) == name else ABSENT

    def make(self, told: str, cells: Any, name: tuple[str, str]) -> Any:
        """A new one of the script's code; ABSENT: what it closes over is a running frame's."""
        module = self._own.module(told.partition(":")[0])
        code = self._codes.get(told)
        if code is None or module is None:
            return ABSENT
        if code.co_freevars and any(told.startswith(running) for running in self._running):
            return ABSENT
        closure = tuple(cells())
        if any(cell is ABSENT for cell in closure):
            return ABSENT
        made = types.FunctionType(code, vars(module), name[0], None, closure)
        made.__qualname__ = name[1]
        return made


# Functions.


def _take_function(taking: Taking, value: types.FunctionType, path: str) -> dict[str, Any]:
    cells = value.__closure__ or ()
    if not taking.own.function(value):
        name = name_of(value)
        if name is not None and taking.own.module(name.partition(":")[0]) is None:
            return {"function": name}
        inner = [taking(f, f"{path}.{f.__name__}") for f in _inside(taking.own, value)]
        return {"function": name or _told_of(value), "inside": inner}
    names = value.__code__.co_freevars
    return {
        "function": _told_of(value),
        "name": (value.__name__, value.__qualname__),
        "cells": [taking(c, f"{path}.{n}") for n, c in zip(names, cells, strict=True)],
        "a": [(n, taking(v, f"{path}.{n}")) for n, v in value.__dict__.items()],
        "d": taking(value.__defaults__, f"{path} default"),
        "kw": taking(value.__kwdefaults__, f"{path} default"),
    }


def _inside(own: Own, wrapper: types.FunctionType, depth: int = 4) -> list[types.FunctionType]:
    """The script's functions that one of a library wraps."""
    found = []
    for function in map(_content, wrapper.__closure__ or ()):
        if isinstance(function, types.FunctionType):
            if own.function(function):
                found.append(function)
            elif depth:
                found += _inside(own, function, depth - 1)
    return found


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return ABSENT


def _make_function(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    told, known = node["function"], giving.functions
    if isinstance(live, types.FunctionType) and told in (_told_of(live), name_of(live)):
        return live
    for other in known.there(told):
        if giving.is_free(other):
            return other
    if "name" not in node:
        return known.imported(told)
    module, path = told.partition(":")[0], node["name"][1]
    named = _at(f"{module}:{path}") if giving.own.module(module) is not None else ABSENT
    if isinstance(named, types.FunctionType) and _told_of(named) == told and giving.is_free(named):
        return named
    return known.make(told, lambda: [giving(cell) for cell in node["cells"]], node["name"])


def _fill_function(giving: Giving, node: dict[str, Any], made: types.FunctionType) -> None:
    if "name" not in node:
        saved = node.get("inside", ())
        here = _inside(giving.own, made) if saved else []
        same = [giving(part, live) is live for part, live in zip(saved, here, strict=False)]
        if len(here) != len(saved) or not all(same):
            giving.lose(f"what lies in the function {node['function']}")
        return
    for saved, cell in zip(node["cells"], made.__closure__ or (), strict=True):
        if giving(saved, cell) is not cell:
            giving.lose(f"what the function {made.__qualname__} shares with another")
    for part, saved in (("__defaults__", node["d"]), ("__kwdefaults__", node["kw"])):
        live = getattr(made, part)
        new = giving(saved, live)
        if new is not live and new is not ABSENT:
            setattr(made, part, new)
    for name, value in node["a"]:
        live = made.__dict__.get(name, ABSENT)
        if (new := giving(value, live)) is not ABSENT:
            made.__dict__[name] = new


def _take_cell(taking: Taking, value: types.CellType, path: str) -> dict[str, Any]:
    content = _content(value)
    return {} if content is ABSENT else {"v": taking(content, path)}


def _make_cell(_giving: Giving, _node: dict[str, Any], live: Any) -> Any:
    return live if isinstance(live, types.CellType) else types.CellType()


def _fill_cell(giving: Giving, node: dict[str, Any], made: types.CellType) -> None:
    if "v" in node:
        live = _content(made)
        new = giving(node["v"], live)
        if new is not ABSENT and new is not live:
            made.cell_contents = new


def _is_named(taking: Taking, value: Any) -> bool:
    if isinstance(value, type):
        if taking.own.cls(value) and not issubclass(value, enum.Enum):
            return False
    elif not isinstance(value, types.BuiltinFunctionType | np.ufunc):
        return False
    return name_of(value) is not None


def _make_named(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    same = live is not ABSENT and name_of(live) == node["function"]
    return live if same else giving.functions.imported(node["function"])


def _take_method(taking: Taking, value: types.MethodType, path: str) -> dict[str, Any]:
    parts = (("__func__", value.__func__), ("__self__", value.__self__))
    return {"function": str(value.__qualname__), "v": [taking(v, f"{path}.{n}") for n, v in parts]}


def _make_method(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    there = (live.__func__, live.__self__) if type(live) is types.MethodType else (ABSENT,) * 2
    parts = [giving(saved, part) for saved, part in zip(node["v"], there, strict=True)]
    if all(part is was for part, was in zip(parts, there, strict=True)):
        return live
    return ABSENT if any(part is ABSENT for part in parts) else types.MethodType(*parts)


def _take_partial(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    parts = (value.func, *value.args, *value.keywords.values())
    return {
        "function": f"partial of {getattr(value.func, '__qualname__', value.func)}",
        "v": [taking(v, f"{path}.args") for v in parts],
        "kw": list(value.keywords),
    }


def _make_partial(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    of = type(live) is functools.partial
    there: list[Any] = [live.func, *live.args, *live.keywords.values()] if of else []
    parts = [
        giving(saved, there[n] if n < len(there) else ABSENT) for n, saved in enumerate(node["v"])
    ]
    same = len(parts) == len(there) and all(a is b for a, b in zip(parts, there, strict=True))
    if of and same and [*live.keywords] == node["kw"]:
        return live
    if any(part is ABSENT for part in parts):
        return ABSENT
    first = len(parts) - len(node["kw"])
    return functools.partial(
        parts[0], *parts[1:first], **dict(zip(node["kw"], parts[first:], strict=True))
    )


FUNCTIONS: Final = (
    Kind(
        "function",
        lambda _, x: isinstance(x, types.FunctionType),
        _take_function,
        _make_function,
        _fill_function,
    ),
    Kind("cell", lambda _, x: type(x) is types.CellType, _take_cell, _make_cell, _fill_cell),
    Kind("named", _is_named, lambda _t, x, _p: {"function": name_of(x)}, _make_named),
    Kind("method", lambda _, x: type(x) is types.MethodType, _take_method, _make_method),
    Kind("partial", lambda _, x: isinstance(x, functools.partial), _take_partial, _make_partial),
)
