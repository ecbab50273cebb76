"""The iterators of the loops that are under way; any thread, as the script runs.

A ``for`` holds its iterator where nobody can put another: it goes on by what lies inside it. Those
whose place Python neither tells nor sets get a twin that does the same and can be set.

Rule 1: torch is not imported here: the first loops of a script come before it.
Rule 2: an iterator that the script holds as well stays the one that it holds.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, GeneratorType
from typing import Any, Final

# They tell how much is left, and can be set or asked again.
RANGE: Final = type(iter(range(1)))
_SEQUENCES: Final = frozenset(map(type, map(iter, ([0], (0,), "a", "ä", b"a", bytearray()))))
_OTHERS: Final = frozenset(map(type, map(iter, ({}, {}.values(), {}.items(), set()))))
_BACKWARDS: Final[tuple[Any, ...]] = ([], {}, {}.values(), {}.items(), ())
_REVERSED: Final = frozenset(type(reversed(x)) for x in _BACKWARDS)
POSITIONED: Final = _SEQUENCES | _OTHERS | _REVERSED | {RANGE}
_IN_NO_NEED: Final = POSITIONED | {GeneratorType}
# Asked again as often they are where they were.
SURE: Final = (itertools.count, itertools.cycle, itertools.chain, itertools.islice)
_SOLE: Final = 3  # references to what nobody else holds: one holder, a name here, getrefcount's


class PlaceError(Exception):
    """The place in a loop cannot be had; says why."""


class Zip:
    """``zip``, which knows what it has already when one of its iterators is asked."""

    __slots__ = ("inner", "items")

    def __init__(self, inner: list[Iterator[Any]]) -> None:
        self.inner = inner
        self.items: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> tuple[Any, ...]:
        items = self.items = []
        for inner in self.inner:
            items.append(next(inner))  # noqa: PERF401 -- it is looked at in between
        if not items:
            raise StopIteration
        self.items = []
        return tuple(items)


class Counted:
    """Any iterator; ``count`` items were asked of it."""

    __slots__ = ("count", "inner")

    def __init__(self, inner: Iterator[Any]) -> None:
        self.inner, self.count = inner, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self.inner)
        self.count += 1
        return item

    def go_to(self, count: int) -> None:
        """Ask as often as is missing.

        Raises:
            PlaceError: it is further already, or ends before.
        """
        if count < self.count:
            msg = f"{type(self.inner).__name__} was asked {self.count} times, and cannot go back"
            raise PlaceError(msg)
        for _ in range(count - self.count):
            if next(self, _OVER) is _OVER:
                msg = f"{type(self.inner).__name__} ended before item {count:,}"
                raise PlaceError(msg)


_OVER: Final = object()
TWINS: Final = (Zip, Counted)


class Loops:
    """The loops under way, by frame.

    Args:
        known: whether the place in such an iterator is known without us.
        compiling: whether the caller is being compiled, and is not running.
    """

    def __init__(
        self,
        known: Callable[[Any], bool] = lambda _: False,
        compiling: Callable[[], bool] = lambda: False,
    ) -> None:
        self.known, self.compiling = known, compiling
        # (id of the frame, number of the loop) -> its iterator
        self._live: dict[tuple[int, int], Any] = {}

    def begin(self, iterable: Iterable[Any], n: int) -> Any:
        """``__otf_loop__``: what the ``for`` runs over."""
        if self.compiling():
            return iterable
        iterator = iter(iterable)
        kind = type(iterator)
        if kind not in _IN_NO_NEED:
            del iterable
            iterator = self._followed(iterator, sole=sys.getrefcount(iterator) <= _SOLE)
        self._live[id(sys._getframe(1)), n] = iterator  # noqa: SLF001 -- no public way
        return iterator

    def done(self, n: int) -> None:
        """``__otf_done__``: the ``for`` is left."""
        if not self.compiling():
            self._live.pop((id(sys._getframe(1)), n), None)  # noqa: SLF001 -- as above

    def of(self, frame: FrameType) -> dict[int, Any]:
        """Number of the loop -> its iterator, of a frame; the outermost first."""
        live = list(self._live.items())
        return {n: iterator for (frame_id, n), iterator in live if frame_id == id(frame)}

    def _followed(self, iterator: Any, *, sole: bool) -> Any:
        """The iterator, or a twin of it whose place can be had; never of what others hold."""
        kind = type(iterator)
        if kind in _IN_NO_NEED or kind in TWINS or self.known(iterator):
            return iterator
        if sole and kind is zip and len(iterator.__reduce__()) == 2:  # not strict
            parts = iterator.__reduce__()[1]
            return Zip([self._followed(i, sole=sys.getrefcount(i) <= _SOLE) for i in parts])
        if kind is enumerate or (kind is map and len(iterator.__reduce__()[1]) == 2):
            return iterator  # nothing is in its hand when its iterator is asked
        return Counted(iterator)


LOOPS: Final = Loops()  # one script runs in a process, and its code calls it by name


def holds(iterator: Any) -> Any:
    """What a positioned iterator runs over, which it holds; None for a range."""
    return next((x for x in gc.get_referents(iterator) if hasattr(x, "__len__")), None)


def place_of(iterator: Any) -> tuple[int, ...]:
    """Where a positioned iterator stands: items given; of a range start, step and length left."""
    if type(iterator) is RANGE:
        over, taken = _range_in(iterator)
        left = over[taken:]
        return left.start, left.step, len(left)
    return (len(holds(iterator)) - iterator.__length_hint__(),)


def put_at(iterator: Any, place: tuple[int, ...]) -> None:
    """Have a positioned iterator go on from there; what it runs over is as it was.

    Raises:
        PlaceError: it cannot go back, or ends before.
    """
    if type(iterator) is RANGE:
        _set_range(iterator, *place)
        return
    (count,), (now,) = place, place_of(iterator)
    kind, over = type(iterator), holds(iterator)
    if count > len(over):
        msg = f"a loop over a {type(over).__name__} ended before item {count:,}"
        raise PlaceError(msg)
    if kind in _SEQUENCES:
        iterator.__setstate__(count)
    elif hasattr(iterator, "__setstate__"):  # the index of what comes next, from behind
        iterator.__setstate__(len(over) - 1 - count)
    elif count < now:
        msg = f"a loop over a {type(over).__name__} cannot go back from item {now:,} to {count:,}"
        raise PlaceError(msg)
    else:
        collections.deque(itertools.islice(iterator, count - now), 0)


# What only lies in memory. It is read first: where that is not what Python says, nothing is set.


def set_count(iterator: enumerate[Any], count: int) -> None:
    """Have an ``enumerate`` number its next item ``count``; it may be held where nobody can reach.

    Raises:
        PlaceError: it is not laid out in memory as CPython 3.11 to 3.14 do.
    """
    state: Any = iterator.__reduce__()
    inner, now = state[1]
    _write(iterator, [now, id(inner)], [count, id(inner)])


def _set_range(iterator: Any, start: int, step: int, left: int) -> None:
    over, taken = _range_in(iterator)
    index, new = ([taken], [0]) if sys.version_info < (3, 12) else ([], [])
    _write(iterator, [*index, over.start, over.step, len(over)], [*new, start, step, left])


def _range_in(iterator: Any) -> tuple[range, int]:
    _, (over,), *taken = iterator.__reduce__()
    return over, (taken[0] if taken else None) or 0


def _write(obj: Any, known: list[int], new: list[int]) -> None:
    """Machine words behind the head of an object."""
    words = (ctypes.c_ssize_t * len(known)).from_address(id(obj) + object.__basicsize__)
    if list(words) != known:
        msg = f"the place of a {type(obj).__name__} cannot be set in this Python"
        raise PlaceError(msg)
    for n, word in enumerate(new):
        words[n] = word
