"""The loader tap: lets a DataLoader of torch go on from where it stood; training thread only.

A tapped loader is of a subclass of its own class, and hands out torch's own iterators with more
knowledge (``tapped_iterators``). It gains ``otf_state`` and ``otf_load``. They are not called
state_dict and load_state_dict: Lightning would put the position into the user's own checkpoints,
and a run without the tap then refuses to resume from them.

Rule: whoever loads a position calls ``iter`` then, puts samplers and data set back with
``set_around(loader, state["around"], own=False)``, and the RNG last: making an iterator draws.
"""

# ruff: noqa: SLF001 -- the private names of torch are listed in tapped_iterators.PRIVATE

from __future__ import annotations

import abc
import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar, cast, runtime_checkable

from torch.utils.data import DataLoader, IterDataPipe, MapDataPipe

from otf_core.state.given import Given, Settled, given, settle, unchanged, with_text
from otf_core.state.loader_parts import (
    Look,
    PositionError,
    around,
    has_own_state,
    live_iterators,
    nested,
    ordering_parts,
    reading_parts,
    replayed,
    samplers,
    set_around,
    unstorable,
)
from otf_core.state.tapped_iterators import Heard, Position, SingleIter, Watch, WorkersIter

__all__ = [
    "PositionError",
    "around",
    "drew_while_read",
    "hear",
    "nested",
    "position",
    "reasons",
    "replayed",
    "samplers",
    "set_around",
    "settled",
    "tap",
    "tapped",
    "why_not",
    "with_given",
]

Loader = TypeVar("Loader")
Iter = SingleIter | WorkersIter


@runtime_checkable
class Tapped(Protocol):
    """What a tapped loader has more."""

    def otf_state(self, *, iterating: bool = True) -> dict[str, Any]:
        """The position, plain, or with ``iterating=False`` how it stands between two iterations."""
        ...

    def otf_load(self, state: dict[str, Any]) -> None:
        """The next ``iter`` goes on from there, and leaves RNG and samplers as they were then.

        Raises:
            PositionError: it is the position of another loader; nothing was touched.
        """
        ...


class OwnIter:
    """What an ``__iter__`` of the user's has made; knows the iterator of ours that it reads.

    A loader may be read twice at a time: a fit may validate with the loader that it trains with.
    """

    def __init__(self, tap: _Tap, loader: Any, begin: Callable[[Any], Iterator[Any]]) -> None:
        self._tap = tap
        self.inner: Iter | None = None
        with self._reading():
            self._made = begin(loader)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        self._tap.readers.append(self)
        try:
            yield
        finally:
            self._tap.readers.remove(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with self._reading():
            return next(self._made)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_made"], name)

    def otf_state(self) -> dict[str, Any] | None:
        """See SingleIter; None where it has not begun, and will draw then."""
        return None if self.inner is None else self.inner.otf_state()


class _Tap:
    """The part of a tapped loader that is ours, one for each."""

    def __init__(self, given: Given) -> None:
        self.given = given  # what the script has in data set and samplers
        self.pending: Position | None = None
        self.ready: Iter | None = None  # made, and not yet fetched by an __iter__ of the user's
        self.watch = Watch()
        self.heard: Heard = None
        self.readers: list[OwnIter] = []  # those that are being asked for a batch, outermost first
        self._made: list[weakref.ref[Iter]] = []

    def make(self, loader: DataLoader[Any]) -> Iter:
        """The iterator that goes on from what is pending."""
        back, self.pending = self.pending, None
        kind = WorkersIter if loader.num_workers else SingleIter
        iterator = kind(loader, back, self.watch, self.heard)
        self._made = [ref for ref in self._made if ref() is not None] + [weakref.ref(iterator)]
        return iterator

    def newest(self) -> Iter | None:
        """The one made last of those that somebody still holds."""
        return next((it for ref in reversed(self._made) if (it := ref()) is not None), None)

    def state(self, loader: DataLoader[Any], *, iterating: bool) -> dict[str, Any]:
        live, back = self.newest(), self.pending
        if back is not None and back["rng"] is not None:
            return {"around": back["around"], "iterator": back}
        if live is None or back is not None:
            return {"around": around(loader), "iterator": back}
        if iterating:
            return {"around": around(loader), "iterator": live.otf_state()}
        if isinstance(live, WorkersIter) and loader._iterator is live:
            pool = live.otf_state(iterating=False)
            return {"around": around(loader), "iterator": pool}
        return {"around": around(loader), "iterator": None}

    def load(self, loader: DataLoader[Any], state: dict[str, Any]) -> None:
        back = state["iterator"]
        if back is not None and back["num_workers"] != loader.num_workers:
            msg = (
                f"the position of a loader with {back['num_workers']} workers was asked for, "
                f"found {loader.num_workers}; allowed: the same number"
            )
            raise PositionError(msg)
        for live in (loader._iterator, self.newest()):
            if isinstance(live, WorkersIter):
                live._shutdown_workers()
        object.__setattr__(loader, "_iterator", None)
        self.pending = None if back is None else {**back, "around": state["around"]}
        if back is None or back["rng"] is None:
            set_around(loader, state["around"])


def _tapped_class(cls: Any) -> Any:
    # One base only: with two, "__class__ assignment: object layout differs".
    class TappedLoader(cls):  # type: ignore[misc]
        @property
        def _otf(self) -> _Tap:
            if "_otf_tap" not in vars(self):
                # The class may have a __setattr__.
                object.__setattr__(self, "_otf_tap", _Tap(_given(self)))
            return cast("_Tap", vars(self)["_otf_tap"])

        def _get_iterator(self) -> Iter:
            ready, self._otf.ready = self._otf.ready, None
            if ready is None:
                self.check_worker_number_rationality()  # torch's warns every time
            made = self._otf.make(self) if ready is None else ready
            if self._otf.readers:
                self._otf.readers[-1].inner = made
            return made

        def otf_state(self, *, iterating: bool = True) -> dict[str, Any]:
            return self._otf.state(self, iterating=iterating)

        def otf_load(self, state: dict[str, Any]) -> None:
            self._otf.load(self, state)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """A copy is not tapped: pickle finds the class by its name, and finds the user's."""
            _, _, state, *rest = super().__reduce_ex__(protocol)
            own, *slots = state if isinstance(state, tuple) else (state,)
            own = {name: value for name, value in own.items() if name != "_otf_tap"}
            return object.__new__, (cls,), (own, *slots) if slots else own, *rest

    if cls.__iter__ is not DataLoader.__iter__:

        def __iter__(self: Any) -> Any:  # noqa: N807 -- it is set as one
            made = OwnIter(self._otf, self, cls.__iter__)
            if self._otf.pending is not None:  # it is a generator, which has not begun
                made.inner = self._otf.ready = self._otf.make(self)
            return made

        TappedLoader.__iter__ = __iter__
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(TappedLoader, name, getattr(cls, name))
    return TappedLoader


def why_not(loader: Any) -> str | None:
    """Why tap leaves a loader as it is; None: it does not, or the loader has its own state_dict."""
    cls = type(loader)
    if tapped(loader) or has_own_state(loader):
        return None
    if not isinstance(loader, DataLoader):
        return f"{cls.__name__} is no DataLoader of torch"
    if cls._get_iterator is not DataLoader._get_iterator:
        return f"{cls.__name__} makes its own iterator (_get_iterator)"
    if cls.__init_subclass__.__func__ is not Generic.__init_subclass__.__func__:  # type: ignore[attr-defined]
        return f"{cls.__name__} has an __init_subclass__ of its own"
    if type(cls) not in (type, abc.ABCMeta):
        return f"{cls.__name__} has a metaclass of its own"
    if isinstance(loader.dataset, IterDataPipe | MapDataPipe):
        return f"the data set of {cls.__name__} is a DataPipe"
    return None


def hear(loader: Any, heard: Heard) -> None:
    """Have every iterator that a tapped loader makes from here on tell what it hands out."""
    if isinstance(loader, Tapped):
        loader._otf.heard = heard  # type: ignore[attr-defined]


def tapped(loader: Any) -> bool:
    """Whether the loader is one that tap has changed."""
    return isinstance(loader, Tapped)


def tap(loader: Loader) -> Loader:
    """Gives a DataLoader otf_state and otf_load, in place; ``why_not`` says which stay as is."""
    if not tapped(loader) and not has_own_state(loader) and why_not(loader) is None:
        object.__setattr__(loader, "__class__", _tapped_class(type(loader)))
        _ = cast("Any", loader)._otf  # looks at what the script has given, before it is read
    return loader


def _given(loader: Any) -> Given:
    found = {**ordering_parts(loader), **reading_parts(loader.dataset, loader.collate_fn)}
    return given(Look()({path: obj for path, obj in found.items() if not has_own_state(obj)}))


def with_given(loader: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The position of a tapped loader, and what the script gave of it and is as it was."""
    now = {**state["around"]["samplers"], **state["around"]["data"]}
    return {**state, "given": unchanged(loader._otf.given, now)}


def settled(loader: Any, state: dict[str, Any]) -> tuple[dict[str, Any], Settled]:
    """The position with the text that this process's script gives; and what differs."""
    found = settle(state.pop("given", {}), loader._otf.given)
    return with_text(state, found), found


def position(loader: Any, iterator: Any = None) -> Any:
    """Where a loader stands, by the tap or by itself; None: to be found by replay.

    Args:
        loader: tapped or not.
        iterator: the one that is meant, where the loader may have several; by default the one
            that was made last.
    """
    if not tapped(loader):
        return loader.state_dict() if has_own_state(loader) else None
    if isinstance(iterator, SingleIter | WorkersIter | OwnIter):
        return {"around": around(loader), "iterator": iterator.otf_state()}
    return loader.otf_state()


def drew_while_read(loader: Any) -> bool:
    """Whether an iterable data set was seen to draw from this process's RNG while it was read.

    Of those whose position is found by reading again, without workers. What is drawn for the
    first batch does not count: it is drawn again.
    """
    return tapped(loader) and loader._otf.watch.reads


def reasons(loader: Any, *, own_iter: bool = True) -> list[str]:
    """Sentences why the position of this loader cannot be had exactly; empty: it can.

    What is drawn while it is read shows in the first batches only.

    Args:
        own_iter: the state of an ``__iter__`` of the user's is unknown.
    """
    if has_own_state(loader) or isinstance(loader, Sequence):
        return []
    if (why := why_not(loader)) is not None:
        return [
            f"{why} and has no state_dict: its batches are fetched again to find the position, "
            "which is exact only if nothing is drawn for them"
        ]
    watch, found = loader._otf.watch if tapped(loader) else Watch(), []
    if loader.num_workers > 1 and not loader.in_order:
        found.append("in_order=False: which batch comes next depends on the speed of the workers")
    if own_iter and inspect.unwrap(type(loader).__iter__) is not DataLoader.__iter__:
        found.append(f"{type(loader).__name__} has an __iter__ of its own, whose state is unknown")
    objects = [*samplers(loader), *nested(loader.dataset)]
    found += [
        f"{name} holds an iterator, whose place cannot be read" for name in live_iterators(objects)
    ]
    found += [
        f"the state_dict of {name} holds values that cannot be stored"
        for name in unstorable(objects)
    ]
    if watch.reads:
        found.append(
            "its iterable data set draws from the training process's random numbers while it is "
            "read, and has no state_dict"
        )
    if watch.indexes:
        found.append(
            "its sampler draws from the training process's random numbers for every index, as "
            "others do in between: exact only if it remembers nothing from one to the next"
        )
    return found
