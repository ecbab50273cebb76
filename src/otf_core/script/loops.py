"""The iterators of the loops that are under way; any thread, as the script runs.

A ``for`` holds its iterator where nobody can put another: it goes on by what lies inside it. Those
whose place Python neither tells nor sets get a twin that does the same and can be set.

Rule 1: torch is not imported here: the first loops of a script come before it.
Rule 2: an iterator that the script holds as well stays the one that it holds.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, GeneratorType
from typing import Any, Final

# They tell how much is left, and some can be set.
_RANGES: Final = frozenset({type(iter(range(1))), type(iter(range(1 << 70)))})
_SEQUENCES: Final = frozenset(map(type, map(iter, ([0], (0,), "a", "ä", b"a", bytearray()))))
_OTHERS: Final = frozenset(map(type, map(iter, ({}, {}.values(), {}.items(), set()))))
_BACKWARDS: Final[tuple[Any, ...]] = ([], {}, {}.values(), {}.items(), ())
_REVERSED: Final = frozenset(type(reversed(x)) for x in _BACKWARDS)
POSITIONED: Final = _RANGES | _SEQUENCES | _OTHERS | _REVERSED
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
        # (id of the frame, number of the loop) -> its iterator; what it runs over, for a range.
        self._live: dict[tuple[int, int], tuple[Any, Any]] = {}

    def begin(self, iterable: Iterable[Any], n: int) -> Any:
        """``__otf_loop__``: what the ``for`` runs over."""
        if self.compiling():
            return iterable
        iterator = iter(iterable)
        over = iterable if type(iterable) is range else None
        kind = type(iterator)
        if kind not in _IN_NO_NEED:
            del iterable
            iterator = self._followed(iterator, sole=sys.getrefcount(iterator) <= _SOLE)
        self._live[id(sys._getframe(1)), n] = iterator, over  # noqa: SLF001 -- no public way
        return iterator

    def done(self, n: int) -> None:
        """``__otf_done__``: the ``for`` is left."""
        if not self.compiling():
            self._live.pop((id(sys._getframe(1)), n), None)  # noqa: SLF001 -- as above

    def of(self, frame: FrameType) -> dict[int, tuple[Any, Any]]:
        """Number of the loop -> its iterator and its range, of a frame; the outermost first."""
        live = list(self._live.items())
        return {n: entry for (frame_id, n), entry in live if frame_id == id(frame)}

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


def set_count(iterator: enumerate[Any], count: int) -> None:
    """Have an ``enumerate`` number its next item ``count``; it may be held where nobody can reach.

    Raises:
        PlaceError: it is not laid out in memory as CPython 3.11 to 3.14 do.
    """
    state: Any = iterator.__reduce__()
    inner, now = state[1]
    number, held = ctypes.c_ssize_t, ctypes.c_void_p
    at = id(iterator) + object.__basicsize__
    index = number.from_address(at)
    if index.value != now or held.from_address(at + ctypes.sizeof(number)).value != id(inner):
        msg = "the count of an enumerate cannot be set"
        raise PlaceError(msg)
    index.value = count


LOOPS: Final = Loops()  # one script runs in a process, and its code calls it by name


def taken(iterator: Any, over: Any = None) -> int:
    """How many items a positioned iterator has given.

    Args:
        over: the range, of its iterator: from Python 3.12 on that has forgotten its beginning.
    """
    left: int = iterator.__length_hint__()
    if over is not None:
        return len(over) - left
    whole = next((x for x in gc.get_referents(iterator) if hasattr(x, "__len__")), None)
    if whole is not None:
        return len(whole) - left
    begun = iterator.__reduce__()
    return begun[2] if len(begun) > 2 and begun[2] is not None else 0  # a range, before 3.12


def go_to(iterator: Any, count: int, over: Any = None) -> None:
    """Have a positioned iterator go on after ``count`` items.

    Raises:
        PlaceError: it is further already and cannot go back, or ends before.
    """
    now = taken(iterator, over)
    if count < now:
        back = _SEQUENCES | (_RANGES if sys.version_info < (3, 12) else frozenset())
        if type(iterator) not in back:
            msg = f"a {type(iterator).__name__} cannot go back from item {now:,} to {count:,}"
            raise PlaceError(msg)
        iterator.__setstate__(count)
        return
    for _ in range(count - now):
        if next(iterator, _OVER) is _OVER:
            msg = f"a loop over {type(iterator).__name__} ended before item {count:,}"
            raise PlaceError(msg)
