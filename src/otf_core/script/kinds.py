"""The table of what a script's variables are: values, containers, objects; see ``variables``."""

from __future__ import annotations

import argparse
import array
import ast
import collections
import enum
import functools
import inspect
import io
import itertools
import logging
import queue
import random
import re
import socket
import sys
import threading
import types
import weakref
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import torch

from otf_core.script.arrays import ARRAY
from otf_core.script.frames import ABSENT
from otf_core.script.functions import FUNCTIONS, is_unknown
from otf_core.script.prints import attributes, holds_state
from otf_core.script.variables import (
    Giving,
    Kind,
    Taking,
    class_name,
    give_attributes,
    made_again,
    made_as_known,
    take_attributes,
)
from otf_core.state.plain_values import (
    FACTORIES,
    PACKED_FROM,
    PLAIN,
    SIMPLE,
    SMALL,
    Encoder,
    UnsupportedValueError,
    _packed,
    _unpacked,
)
from otf_core.state.rng import GENERATORS, generator_kind, set_generator_state

# Held by many, changed by none; or made again by the script before it is used.
SILENT: Final = (
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    types.GenericAlias,
    types.UnionType,
    types.MappingProxyType,
    type(Ellipsis),
    type(NotImplemented),
    property,
    staticmethod,
    classmethod,
    weakref.ReferenceType,
    logging.Logger,
    re.Pattern,
    np.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    torch.finfo,
    torch.iinfo,
    argparse.ArgumentParser,
)
# A library's object that holds one of them stands in the world outside.
OUTSIDE: Final = (
    io.IOBase,
    socket.socket,
    queue.Queue,
    threading.Thread,
    type(threading.Lock()),
    type(threading.RLock()),
)
NAMESPACES: Final = (argparse.Namespace, types.SimpleNamespace)
# Process groups, stores, what DDP reduces with: made again by each rank.
_OF_RANKS: Final = frozenset(
    f"torch.{name}"
    for name in ("_C._distributed_c10d", "distributed.distributed_c10d", "distributed.device_mesh")
)
_FEW: Final = 100
_CACHED: Final = type(functools.lru_cache(int))
_ASKED_AT_MOST: Final = 10_000_000
_CONTAINERS: Final = (list, dict, set, collections.deque, tuple, frozenset)


def is_silent(taking: Taking, value: Any) -> bool:
    """Whether a value is left alone without a word."""
    kind = type(value)
    if kind in (types.FunctionType, types.CellType):
        return False
    if isinstance(value, type | types.BuiltinFunctionType) or kind is np.ufunc:
        return is_unknown(taking, value)
    if kind is types.ModuleType or kind is object:
        return True
    standard = (
        value in (sys.stdout, sys.stderr, sys.stdin) if isinstance(value, io.IOBase) else False
    )
    typing_only = kind.__module__ in ("typing", "types", "typing_extensions", "_operator")
    return isinstance(value, SILENT) or kind.__module__ in _OF_RANKS or typing_only or standard


def _left(_giving: Giving, _node: dict[str, Any], live: Any) -> Any:
    return live


# Values.


def _is_value(_: Taking, value: Any) -> bool:
    if isinstance(value, np.generic | torch.Size | range | slice):
        return True
    return type(value) in [simple for simple, _, _ in SIMPLE.values()]


def _take_value(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, range | slice):
        return {"v": (type(value).__name__, value.start, value.stop, value.step)}
    try:
        return {"v": Encoder()(value)}
    except UnsupportedValueError:
        taking.leave(path, value)
        return {}


def _make_value(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    saved = node.get("v", ABSENT)
    if isinstance(saved, tuple) and saved and saved[0] in ("range", "slice"):
        return (range if saved[0] == "range" else slice)(*saved[1:])
    return live if saved is ABSENT else giving.dec(saved)


def _take_member(_: Taking, value: enum.Enum, _path: str) -> dict[str, Any]:
    v = value.value if isinstance(value, enum.Flag) else value.name
    return {"c": class_name(type(value)), "v": v}


def _make_member(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    kind = giving.own.find(node["c"], live)
    if kind is None or not issubclass(kind, enum.Enum):
        giving.lose(f"a {node['c']}")
        return live
    return kind(node["v"]) if issubclass(kind, enum.Flag) else kind[node["v"]]


def _make_generator(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    saved = node["v"]
    fits = type(live) in GENERATORS and generator_kind(live) == saved["c"]
    try:
        made = giving.dec(saved, live) if fits else giving.dec(saved)
    except UnsupportedValueError:
        giving.lose(f"a random generator of {saved['c']}")
        return live
    # A loader that is brought to its place may draw from it.
    giving.last.append(lambda: set_generator_state(made, giving.dec(saved["v"])))
    return made


def _take_bytes(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    if (again := taking.large(value, path)) is not None:
        return {"again": again}
    return {"of": getattr(value, "typecode", ""), "v": bytearray(bytes(value))}


def _make_bytes(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if "again" in node:
        return made_again(giving, node["again"], live)
    saved: Any = array.array(node["of"], bytes(node["v"])) if node["of"] else bytearray(node["v"])
    if type(live) is not type(saved) or getattr(live, "typecode", "") != node["of"]:
        return saved
    try:
        live[:] = saved
    except BufferError:
        giving.lose(f"a {type(live).__name__} that something else looks into")
    return live


def _take_count(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    try:
        start, step = (*ast.literal_eval(f"({repr(value)[6:-1]},)"), 1)[:2]
    except (ValueError, SyntaxError):  # of fractions, or of what is the script's
        return taking.leave_state(path, value)
    return {"v": (start, step)}


def _make_count(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    """The live one where it can be asked until it is there: a loop may hold it as well."""
    if "v" not in node:
        return made_as_known(giving, node, live)
    made = itertools.count(*node["v"])
    if type(live) is not itertools.count or repr(live) == repr(made):
        return made if type(live) is not itertools.count else live
    here = _take_count(Taking((), giving.own), live, "").get("v")
    (start, step) = node["v"]
    if here is None or here[1] != step or type(start) is not int or type(step) is not int:
        return made
    missing = (start - here[0]) // step if step else -1
    if not 0 <= missing <= _ASKED_AT_MOST or here[0] + missing * step != start:
        return made
    collections.deque(itertools.islice(live, missing), 0)
    return live


# Containers.


def _is_container(taking: Taking, value: Any) -> bool:
    return isinstance(value, _CONTAINERS) and (
        type(value).__module__ in ("builtins", "collections")
        or hasattr(value, "_fields")
        or taking.own.cls(type(value))
    )


def _take_container(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    if (again := taking.large(value, path)) is not None:
        return {"again": again}
    node: dict[str, Any] = {"c": class_name(type(value))}
    if isinstance(value, dict):
        node["v"] = [
            (taking(k, f"{path} key"), taking(v, _item(path, k))) for k, v in dict.items(value)
        ]
        node["f"] = getattr(getattr(value, "default_factory", None), "__name__", None)
    elif type(value) is list and len(value) >= PACKED_FROM and (packed := _packed(value)):
        node["p"] = packed
    else:
        node["v"] = [taking(v, _item(path, n)) for n, v in enumerate(value)]
    if isinstance(value, collections.deque):
        node["n"] = value.maxlen
    if type(value).__module__ not in ("builtins", "collections") and hasattr(value, "__dict__"):
        node["a"] = take_attributes(taking, value, path)
    return node


def _item(path: str, key: Any) -> str:
    return f"{path}[{key!r}]" if isinstance(key, int | str) else f"{path}[…]"


def _make_container(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if "again" in node:
        return made_again(giving, node["again"], live)
    kind: Any = giving.own.find(node["c"], live)
    if kind is None or not issubclass(kind, _CONTAINERS):
        giving.lose(f"a {node['c']}")
        return live
    if issubclass(kind, tuple | frozenset):
        return _immutable(giving, kind, node, live)
    same = type(live) is kind and getattr(live, "maxlen", None) == node.get("n")
    if same:
        return live
    if issubclass(kind, collections.deque):
        return kind((), node["n"])
    new: Any = kind.__new__(kind)
    if isinstance(new, collections.defaultdict):
        new.default_factory = FACTORIES.get(node["f"])
    if isinstance(new, collections.OrderedDict | collections.defaultdict | collections.Counter):
        dict.__init__(new)
    return new


def _immutable(giving: Giving, kind: Any, node: dict[str, Any], live: Any) -> Any:
    there = list(live) if type(live) is kind and isinstance(live, tuple) else []
    items = [giving(v, there[n] if n < len(there) else ABSENT) for n, v in enumerate(node["v"])]
    if any(item is ABSENT for item in items):
        giving.lose(f"what lies in a {kind.__name__}")
        return live
    if len(there) == len(items) and all(a is b for a, b in zip(there, items, strict=True)):
        return live
    return tuple.__new__(kind, items) if issubclass(kind, tuple) else kind(items)


def _fill_container(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if "again" in node or isinstance(made, tuple | frozenset):
        return
    if "p" in node:
        made[:] = _unpacked(node["p"]["v"], node["p"]["of"])
    elif isinstance(made, dict):
        _fill_dict(giving, node, made)
    else:
        there = [] if isinstance(made, set) else list(made)
        items = [giving(v, there[n] if n < len(there) else ABSENT) for n, v in enumerate(node["v"])]
        kept = [item for item in items if item is not ABSENT]
        if len(kept) < len(items):
            giving.lose(f"what lies in a {type(made).__name__}")
        made.clear()
        made.update(kept) if isinstance(made, set) else made.extend(kept)
    if "a" in node:
        give_attributes(giving, node["a"], made)


def _fill_dict(giving: Giving, node: dict[str, Any], made: dict[Any, Any]) -> None:
    new = {}
    for k, v in node["v"]:
        key = giving(k)
        new[key] = giving(v, dict.get(made, key, ABSENT))
    if any(value is ABSENT for value in new.values()):
        giving.lose(f"what lies in a {type(made).__name__}")
    dict.clear(made)
    for key, value in new.items():
        if value is not ABSENT:
            dict.__setitem__(made, key, value)


# Objects.


def _is_object(taking: Taking, value: Any) -> bool:
    known = taking.own.cls(type(value)) or type(value) in NAMESPACES
    return (
        known
        and not isinstance(value, type)
        and bool(attributes(value) or hasattr(value, "__dict__"))
    )


def _take_object(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    node = {"c": class_name(type(value)), "a": take_attributes(taking, value, path)}
    if isinstance(value, random.Random):
        node["random"] = Encoder()(random.Random.getstate(value))
    return node


def _make_object(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if class_name(type(live)) == node["c"]:
        return live
    kind: Any = giving.own.find(node["c"])
    if kind is None or kind.__new__ is not object.__new__:
        giving.lose(f"a {node['c']}")
        return ABSENT
    return object.__new__(kind)


def _fill_object(giving: Giving, node: dict[str, Any], made: Any) -> None:
    give_attributes(giving, node["a"], made)
    if "random" in node:
        state = giving.dec(node["random"])
        giving.last.append(lambda: random.Random.setstate(made, state))


def _make_class(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    same = isinstance(live, type) and class_name(live) == node["function"]
    found = live if same else giving.own.find(node["function"])
    return found if found is not None else ABSENT


def _take_class(taking: Taking, value: type, path: str) -> dict[str, Any]:
    own = {
        name: item
        for name, item in vars(value).items()
        if not name.startswith("__")
        and (not hasattr(item, "__get__") or type(item) is _CACHED)
        and not isinstance(item, type | types.ModuleType)
    }
    found = [(name, taking(item, f"{path}.{name}")) for name, item in own.items()]
    return {"function": class_name(value), "a": found}


def _fill_class(giving: Giving, node: dict[str, Any], made: type) -> None:
    for name, saved in node["a"]:
        live = vars(made).get(name, ABSENT)
        new = giving(saved, live)
        if new is not live and new is not ABSENT:
            type.__setattr__(made, name, new)


# Objects of libraries.


def _take_library(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    """What it counts and collects, where that has changed; and what of the script's it holds.

    One that was made since may not be there when the script goes on: it is named.
    """
    outside = _stands_outside(value)
    known = _is_as_it_was(taking, value, path)
    closed = outside or _package(value) in _CLOSED or _package(value) in sys.stdlib_module_names
    if outside or not (known or closed):
        taking.leave(path, value)
    elif type(value) is _CACHED:
        _tell_cache(taking, value, path)
    found = []
    for name, item in list(vars(value).items()):
        at = f"{path}.{name}"
        if (
            _is_of_interest(taking, item)
            or (_is_simple(item) and _is_another(taking, item, at, new=known and not closed))
            or (_holds_numbers(item) and not outside and _is_another(taking, item, at, new=known))
            or (not closed and _is_part(item) and _is_as_it_was(taking, item, at))
        ):
            found.append((name, taking(item, at)))
    return {"c": class_name(type(value)), "a": found}


# Libraries whose objects have others inside that stand outside, or change with the clock.
_CLOSED: Final = ("tqdm", "torch", "logging")


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _is_another(taking: Taking, item: Any, at: str, *, new: bool) -> bool:
    """Whether it has changed since the run began, or, where that counts, is new since."""
    known = taking.first is not None and at in taking.first.prints
    return taking.changed(item, at) or (new and not known and taking.first is not None)


def _holds_numbers(item: Any) -> bool:
    return isinstance(item, torch.Tensor | np.ndarray)


def _is_part(item: Any) -> bool:
    """Whether it is a library's object that another holds, or some of them."""
    if type(item) in (list, tuple, dict) and 0 < len(item) <= _FEW:
        return all(map(_is_part, item.values() if type(item) is dict else item))
    if not hasattr(item, "__dict__") or isinstance(item, _NO_PARTS) or callable(item):
        return False
    return not (_stands_outside(item) or _package(item) in _CLOSED)


def _is_as_it_was(taking: Taking, item: Any, at: str) -> bool:
    """Whether it is of the class that was there when the run began: there will be one again."""
    return taking.again(_parts(item), f"{at} is") or taking.first is None


def _parts(item: Any) -> Any:
    if type(item) is dict:
        return {name: _parts(part) for name, part in item.items()}
    return list(map(_parts, item)) if type(item) in (list, tuple) else class_name(type(item))


_NO_PARTS: Final = (type, types.ModuleType, *OUTSIDE)


def _tell_cache(taking: Taking, value: Any, path: str) -> None:
    """Nobody can look into it. A first answer may well be of the first step: then it is named."""
    if not taking.own.function(inspect.unwrap(value)):
        return
    made = value.cache_info().misses
    if made:
        taking.leave(path, value)
    if not taking.again(made, path) and taking.first is not None and made:
        taking.reasons.append(f"{path} has cached more since, which is not stored")


def _is_of_interest(taking: Taking, item: Any) -> bool:
    kinds = (torch.nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader, *GENERATORS)
    if isinstance(item, list | tuple) and 0 < len(item) <= _FEW:
        return all(_is_of_interest(taking, each) for each in item)
    if isinstance(item, kinds) or taking.own.cls(type(item)):
        return not isinstance(item, type)
    return hasattr(type(item), "state_dict") and hasattr(type(item), "load_state_dict")


def _is_simple(item: Any, depth: int = 3) -> bool:
    if type(item) in PLAIN:
        return True
    if not isinstance(item, list | dict | set | tuple | collections.deque) or depth == 0:
        return isinstance(item, np.generic)
    if type(item).__module__ not in ("builtins", "collections") or len(item) > SMALL:
        return False
    parts: Iterable[Any] = (*item.keys(), *item.values()) if isinstance(item, dict) else item
    return all(_is_simple(part, depth - 1) for part in parts)


def _stands_outside(value: Any, depth: int = 2) -> bool:
    if _package(value) in _CLOSED:
        return False
    held = getattr(value, "__dict__", {}).values()
    return any(isinstance(x, OUTSIDE) or (depth and _stands_outside(x, depth - 1)) for x in held)


def _fill_library(giving: Giving, node: dict[str, Any], made: Any) -> None:
    for name, saved in node["a"]:
        live = vars(made).get(name, ABSENT)
        new = giving(saved, live)
        if new is not ABSENT and new is not live:
            vars(made)[name] = new


def _same_library(_giving: Giving, node: dict[str, Any], live: Any) -> Any:
    return live if live is not ABSENT and class_name(type(live)) == node["c"] else ABSENT


def is_a(*kinds: type) -> Any:
    """``fits`` of a row for instances."""
    return lambda _, value: issubclass(type(value), kinds)  # a lazy proxy answers isinstance


VALUES: Final = (
    Kind(
        "text",
        lambda _taking, _value: False,
        lambda *_: {},
        lambda g, n, x: made_again(g, n["again"], x),
    ),
    Kind("value", _is_value, _take_value, _make_value),
    Kind("member", is_a(enum.Enum), _take_member, _make_member),
    Kind(
        "generator",
        lambda _, value: type(value) in GENERATORS,
        lambda _taking, value, _path: {"v": Encoder()(value)},
        _make_generator,
    ),
    Kind(
        "bytes", lambda _, value: type(value) in (bytearray, array.array), _take_bytes, _make_bytes
    ),
    Kind("count", lambda _, value: type(value) is itertools.count, _take_count, _make_count),
    ARRAY,
)
OBJECTS: Final = (
    Kind("container", _is_container, _take_container, _make_container, _fill_container),
    *FUNCTIONS,
    Kind("class", is_a(type), _take_class, _make_class, _fill_class),
    Kind("object", _is_object, _take_object, _make_object, _fill_object),
)
LIBRARY: Final = (
    Kind(
        "state",
        lambda _, value: holds_state(value),
        lambda taking, value, path: {
            "c": type(value).__name__,
            **taking.leave_state(path, value),
        },
        made_as_known,
    ),
    Kind(
        "library",
        lambda _, value: hasattr(value, "__dict__") and not isinstance(value, (type, *OUTSIDE)),
        _take_library,
        _same_library,
        _fill_library,
    ),
)
