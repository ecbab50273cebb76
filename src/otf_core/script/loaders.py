"""Where the script's DataLoaders stand; training thread.

A loader is tapped when it is first iterated (``otf_core.state.data_tap``). The ``for`` holds its
iterator, so that another one is put inside it.
"""

# ruff: noqa: SLF001 -- the private names of torch are listed in PRIVATE and tapped_iterators.PRIVATE

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter

from otf_core.script.border import Border, bordered, is_ours
from otf_core.script.data import another, told_of
from otf_core.script.frames import ABSENT
from otf_core.script.variables import Giving, Kind, Taking, class_name
from otf_core.state import data_tap
from otf_core.state.data_tap import OwnIter, PositionError, tap, tapped
from otf_core.state.loader_parts import set_around
from otf_core.state.tapped_iterators import SingleIter, WorkersIter

PRIVATE: Final = {
    "dataloader": ("_BaseDataLoaderIter",),
    "_BaseDataLoaderIter": ("_num_yielded", "_shutdown", "_shutdown_workers", "_workers"),
    "_utils.signal_handling": ("_remove_worker_pids", "_set_worker_pids"),
}
LOADER: Final = "otf_loader"  # of an iterator, what gives its loader
_OVER: Final = object()


@contextlib.contextmanager
def tapping(border: Border) -> Iterator[None]:
    """Every loader is tapped when it is iterated for the first time."""
    begin = DataLoader.__iter__

    def __iter__(loader: DataLoader[Any]) -> Any:  # noqa: N807 -- the name in a traceback
        numbers = torch.get_rng_state()
        if border.crossed:
            _untap(loader)
        ours.tap(loader)
        try:
            iterator = begin(loader)
        except Exception as error:
            if not tapped(loader) or not _failed_in_ours(error):
                raise
            border.cross(error)
            _untap(loader)
            torch.set_rng_state(numbers)
            return begin(loader)
        ours.name(loader, iterator)
        return iterator

    ours = _Ours(border)
    DataLoader.__iter__ = __iter__  # type: ignore[method-assign]
    try:
        yield
    finally:
        if DataLoader.__iter__ is __iter__:  # not what the script has put in since
            DataLoader.__iter__ = begin  # type: ignore[method-assign]


class _Ours:
    def __init__(self, border: Border) -> None:
        self.border = border

    @bordered
    def tap(self, loader: DataLoader[Any]) -> None:
        tap(loader)

    @bordered
    def name(self, loader: DataLoader[Any], iterator: Any) -> None:
        # A pool that persists is held by its loader, and must not hold it.
        known: Any = weakref.ref(loader) if loader.persistent_workers else lambda: loader
        vars(iterator)[LOADER] = known


def _untap(loader: DataLoader[Any]) -> None:
    if tapped(loader):
        object.__setattr__(loader, "__class__", type(loader).__bases__[0])


def _failed_in_ours(error: Exception) -> bool:
    """Whether something was raised in what a tap does beside what torch does."""
    inner = None
    trace = error.__traceback__
    while trace is not None:
        if is_ours(trace.tb_frame):
            inner = trace
        trace = trace.tb_next
    if inner is None or isinstance(error, PositionError):
        return False
    return inner.tb_next is None or inner.tb_frame.f_code.co_name not in _CALLS_TORCH


# Of a tap; what torch calls from there may be the script's, and raise.
_CALLS_TORCH: Final = ("__iter__", "__init__", "_get_iterator", "make", "_reset", "_next_index")


def is_batches(iterator: Any) -> bool:
    """Whether it is the iterator of a DataLoader, which knows its place."""
    return isinstance(iterator, _BaseDataLoaderIter | OwnIter)


def loader_of(iterator: Any) -> DataLoader[Any] | None:
    """The loader whose iterator it is; None where that is not known."""
    known = vars(iterator).get(LOADER)
    return known() if known is not None else None


def _take_batches(taking: Taking, value: Any, path: str) -> dict[str, Any]:
    loader = loader_of(value)
    if loader is None:
        taking.leave(path, value)
        return {}
    # An __iter__ of its own is a generator, whose frame is known.
    reasons = data_tap.reasons(loader, own_iter=False)
    taking.reasons += [f"{type(loader).__name__}: {why}" for why in reasons]
    taking.iterated.add(id(loader))
    node: dict[str, Any] = {"loader": taking(loader, f"{path} loader"), "n": value._num_yielded}
    if isinstance(value, SingleIter | WorkersIter):
        node["state"] = data_tap.with_given(loader, data_tap.position(loader, value))
    return node


def _make_batches(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if "loader" not in node or isinstance(live, _BaseDataLoaderIter):
        return live
    loader = giving(node["loader"])
    if not isinstance(loader, DataLoader):
        giving.lose("the iterator of a loader that was made after this place")
        return live
    return iter(loader)


def _fill_batches(giving: Giving, node: dict[str, Any], made: Any) -> None:
    loader = loader_of(made) if made is not ABSENT else None
    if "loader" not in node or loader is None:
        return
    if giving(node["loader"], loader) is not loader:
        giving.lose(f"the place in a {type(loader).__name__}: another is read here")
        return
    if "state" in node:
        giving.loaders.append((loader, made, node["state"]))
        return
    for _ in range(node["n"] - made._num_yielded):
        next(made, None)


def _take_loader(taking: Taking, value: DataLoader[Any], path: str) -> dict[str, Any]:
    taking.loaders.append((len(taking.loaders), value))
    own = {n: v for n, v in vars(value).items() if not n.startswith("_") and type(v) in (bool, int)}
    changed = {
        n: v
        for n, v in own.items()
        if not taking.again(v, f"{path}.{n}") and taking.first is not None
    }
    parts = ("dataset", "sampler", "batch_sampler", "generator", "collate_fn")
    return {
        "c": class_name(type(value)),
        "a": changed,
        "n": len(taking.loaders) - 1,
        "parts": [(name, taking(getattr(value, name), f"{path}.{name}")) for name in parts],
        "data": told_of(value.dataset),
    }


def take_positions(taking: Taking) -> list[Any]:
    """How the loaders stand that are not being read; in the order in which they were met."""
    return [
        data_tap.with_given(loader, loader.otf_state(iterating=False))
        if tapped(loader) and id(loader) not in taking.iterated
        else None
        for _, loader in taking.loaders
    ]


def _make_loader(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if not isinstance(live, DataLoader):
        giving.lose(f"a {node['c'].rpartition(':')[2]}, made after this place")
    return live


def _fill_loader(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if not isinstance(made, DataLoader):
        return
    for name, value in node["a"].items():
        object.__setattr__(made, name, value)
    for name, saved in node["parts"]:
        live = getattr(made, name)
        if giving(saved, live) is not live:
            giving.lose(f"the {name} of a {type(made).__name__}, which is another here")
    giving.data.append((made, node["data"]))
    state = giving.positions[node["n"]]
    if state is not None:
        giving.loaders.append((made, None, state))


def give_positions(giving: Giving) -> None:
    """Bring the loaders to their places; draws random numbers."""
    for loader, was in giving.data:
        here = told_of(loader.dataset)
        if here != tuple(was):
            giving.lose(f"the data of a {type(loader).__name__}: {another(tuple(was), here)}")
    for loader, iterator, saved in giving.loaders:
        tap(loader)
        if not tapped(loader):
            continue
        state, settled = data_tap.settled(loader, saved)
        giving.settled.append(settled)
        try:
            if iterator is None:
                loader.otf_load(state)
            else:
                _go_on(loader, iterator, state)
        except PositionError as error:
            giving.lose(str(error))
    for loader, _, state in giving.loaders:
        if tapped(loader):
            set_around(loader, state["around"], own=False)


def _go_on(loader: Any, iterator: Any, state: dict[str, Any]) -> None:
    """Put an iterator that stands at the place into the one that the script holds."""
    back = state["iterator"]
    if back["num_workers"] != loader.num_workers:
        msg = (
            f"the position of a loader with {back['num_workers']} workers was asked for, "
            f"found {loader.num_workers}; allowed: the same number"
        )
        raise PositionError(msg)
    if isinstance(iterator, WorkersIter):
        iterator._shutdown_workers()
    held = loader._iterator is iterator
    loader._otf.pending = {**back, "around": state["around"]}
    new = loader._otf.make(loader)
    if isinstance(new, WorkersIter):  # torch knows the processes by the id of their iterator
        known_to_torch: Any = signal_handling
        known_to_torch._remove_worker_pids(id(new))
        known_to_torch._set_worker_pids(id(iterator), tuple(w.pid for w in new._workers))
    known = vars(iterator)[LOADER]
    inside = dict(vars(new))
    vars(new).clear()
    vars(new)["_shutdown"] = True  # torch asks when it is deleted
    vars(iterator).clear()
    vars(iterator).update(inside)
    vars(iterator)[LOADER] = known
    if held:
        object.__setattr__(loader, "_iterator", iterator)


def _take_own(taking: Taking, value: OwnIter, path: str) -> dict[str, Any]:
    return {"v": taking(value._made, path)}


def _make_own(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    inside = live._made if type(live) is OwnIter else live
    giving(node["v"], inside)
    return live


LOADERS: Final = (
    Kind(
        "batches",
        lambda _, x: issubclass(type(x), _BaseDataLoaderIter),
        _take_batches,
        _make_batches,
        _fill_batches,
    ),
    # Of a loader with an __iter__ of its own: what that has made.
    Kind("own batches", lambda _, x: type(x) is OwnIter, _take_own, _make_own),
    Kind(
        "loader",
        lambda _, x: issubclass(type(x), DataLoader),
        _take_loader,
        _make_loader,
        _fill_loader,
    ),
)
