"""The table's row for arrays of NumPy; see ``variables``.

What lies in the memory of another array is its view again. An array that is alone in its memory,
as far as the script shows, is copied by itself.
"""

from __future__ import annotations

import collections
from typing import Any, Final

import numpy as np

from otf_core.script.frames import ABSENT
from otf_core.script.variables import Giving, Kind, Taking, made_again, made_as_known
from otf_core.state.plain_values import Encoder, UnsupportedValueError


def _take_array(taking: Taking, value: np.ndarray, path: str) -> dict[str, Any]:
    """All but the numbers, which ``copy_arrays`` puts in."""
    taking.arrays.append((len(taking.arrays), value, path))
    return {"at": len(taking.arrays) - 1}


def _root(value: np.ndarray) -> np.ndarray:
    """The array in whose memory one lies."""
    while type(value.base) is np.ndarray:
        value = value.base
    return value


def copy_arrays(taking: Taking) -> None:
    """The numbers of all arrays that were met."""
    sharing = collections.Counter(id(_root(value)) for _, value, _ in taking.arrays)
    for _, value, path in list(taking.arrays):
        root = _root(value)
        if root is not value and sharing[id(root)] > 1:
            taking(root, f"{path} base")
    taking.run()
    nodes = {node["at"]: node for node in taking.nodes if node.get("k") == "array"}
    for n, value, path in taking.arrays:
        root, node = _root(value), nodes[n]
        if root is value or not taking.known(root) or value.dtype.kind == "V":
            node.update(_numbers(taking, value, path))
        elif not (root.flags.c_contiguous or root.flags.f_contiguous):
            taking.reasons.append(f"{path} is a view of memory that is not in one piece")
            node.update(_numbers(taking, value, path))
        else:
            node["base"] = taking(root, path)
            node["d"], node["o"] = value.dtype.str, value.ctypes.data - root.ctypes.data
            node["s"], node["t"] = value.shape, value.strides
            node["w"] = value.flags.writeable


def _numbers(taking: Taking, value: np.ndarray, path: str) -> dict[str, Any]:
    if (again := taking.large(value, path)) is not None:
        return {"again": again}
    try:
        return {"v": Encoder()(value)}
    except UnsupportedValueError:
        return taking.leave_state(path, value)


def _make_array(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if "again" in node:
        return made_again(giving, node["again"], live)
    if "base" in node:
        return _make_view(giving, node, live)
    if "v" not in node:
        return made_as_known(giving, node, live)
    new = giving.dec(node["v"])
    fits = (
        type(live) is np.ndarray
        and (live.dtype, live.shape, live.strides) == (new.dtype, new.shape, new.strides)
        and live.base is None
        and live.flags.writeable
        and live.ctypes.data not in giving.protected
    )
    if not fits:
        return new
    np.copyto(live, new)
    return live


def _make_view(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    is_view = type(live) is np.ndarray and _root(live) is not live
    root = giving(node["base"], _root(live) if is_view else ABSENT)
    if type(root) is not np.ndarray:
        giving.lose("an array that another lies in")
        return live
    # What is by column is by row when it is turned.
    memory = root if root.flags.c_contiguous else root.T
    if not memory.flags.c_contiguous:
        giving.lose("an array in one piece, which others lie in")
        return live
    new = np.ndarray(node["s"], node["d"], memory, node["o"], node["t"])
    new.flags.writeable = node["w"]
    return live if is_view and _root(live) is root and _place(live) == _place(new) else new


def _place(view: np.ndarray) -> tuple[Any, ...]:
    return view.ctypes.data, view.dtype, view.shape, view.strides, view.flags.writeable


ARRAY: Final = Kind("array", lambda _, x: type(x) is np.ndarray, _take_array, _make_array)
