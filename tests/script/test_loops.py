"""Iterators tell where they stand and go on from there, held where nobody can reach them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from otf_core.script import loops
from otf_core.script.loops import Counted, Loops, PlaceError, Zip


def _begun(make: Callable[[], Any], items: int) -> Any:
    iterator = make()
    for _ in range(items):
        next(iterator)
    return iterator


ORDERED: dict[str, Callable[[], Any]] = {
    "range": lambda: iter(range(3, 40, 7)),
    "list": lambda: iter([1, 2, 3, 4]),
    "tuple": lambda: iter((1, 2, 3, 4)),
    "text": lambda: iter("abcd"),
    "wide text": lambda: iter("äöüß"),
    "bytes": lambda: iter(b"abcd"),
    "bytearray": lambda: iter(bytearray(b"abcd")),
    "reversed list": lambda: reversed([1, 2, 3, 4]),
    "reversed tuple": lambda: reversed((1, 2, 3, 4)),
    "dict": lambda: iter({1: 0, 2: 0, 3: 0, 4: 0}),
    "values": lambda: iter({1: 5, 2: 6, 3: 7, 4: 8}.values()),
    "items": lambda: iter({1: 5, 2: 6, 3: 7, 4: 8}.items()),
    "set": lambda: iter({1, 2, 3, 4}),
}
ONE_WAY = {"dict", "values", "items", "set"}


@pytest.mark.parametrize("kind", ORDERED)
@pytest.mark.parametrize(("saved", "live"), [(2, 0), (2, 1), (3, 3), (4, 1), (1, 3), (0, 2)])
def test_an_iterator_goes_on_where_another_stood(kind: str, saved: int, live: int) -> None:
    make = ORDERED[kind]
    place = loops.place_of(_begun(make, saved))
    iterator = _begun(make, live)
    if saved < live and kind in ONE_WAY:
        with pytest.raises(PlaceError, match="cannot go back from item"):
            loops.put_at(iterator, place)
        return
    loops.put_at(iterator, place)
    assert list(iterator) == list(_begun(make, saved))


def test_a_range_goes_on_in_another_range() -> None:
    iterator = iter(range(2))
    loops.put_at(iterator, loops.place_of(_begun(lambda: iter(range(10, 100, 30)), 1)))
    assert list(iterator) == [40, 70]


def test_a_place_behind_the_end_is_none() -> None:
    with pytest.raises(PlaceError, match="a loop over a list ended before item 3"):
        loops.put_at(iter([1, 2]), (3,))


def test_an_enumerate_counts_on_from_another_number() -> None:
    numbered = enumerate("abc")
    next(numbered)
    loops.set_count(numbered, 7)
    assert list(numbered) == [(7, "b"), (8, "c")]


def test_what_lies_otherwise_in_memory_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = enumerate("abc", 5)
    with pytest.raises(PlaceError, match="the place of a enumerate cannot be set in this Python"):
        loops._write(numbered, [4, 0], [1, 0])
    assert next(numbered) == (5, "a")


def _looped(iterable: Iterable[Any], known: Callable[[Any], bool] = lambda _: False) -> Any:
    return Loops(known).begin(iterable, 1)


def test_an_iterator_that_others_hold_gets_no_twin_in_its_place() -> None:
    begin, held = Loops().begin, zip(range(3), "abc", strict=False)
    # Outside of an assert, which pytest makes to hold what is in it.
    alone = {type(begin(zip(range(3), "abc", strict=False), 1)) for _ in range(20)}
    assert alone == {Zip}
    assert {type(begin(held, 1)) for _ in range(20)} == {Counted}
    assert next(begin(held, 1)) == (0, "a")
    assert next(held) == (1, "b")


@pytest.mark.parametrize(
    ("iterable", "kind"),
    [
        (range(3), type(iter(range(3)))),
        (enumerate("ab"), enumerate),
        ((x for x in "ab"), type(x for x in "ab")),
        (map(str, [1]), map),
        (map(max, [1], [2]), Counted),
        (itertools.count(), Counted),
        (iter(lambda: 1, 2), Counted),
    ],
)
def test_who_tells_his_place_gets_no_twin(iterable: Any, kind: type) -> None:
    assert type(_looped(iterable)) is kind


def test_what_another_knows_gets_no_twin() -> None:
    ticks = itertools.count()
    assert _looped(ticks, lambda each: each is ticks) is ticks


def test_a_zip_has_in_hand_what_it_got_before_it_asked_the_next() -> None:
    seen: list[Any] = []
    made: list[Zip] = []

    def second() -> Iterator[int]:
        for n in range(2):
            seen.append(list(made[0].items))
            yield n

    made.append(Zip([iter("ab"), second()]))
    assert list(made[0]) == [("a", 0), ("b", 1)]
    assert seen == [["a"], ["b"]]


def test_a_zip_of_nothing_is_empty() -> None:
    assert list(Zip([])) == []
    assert list(Zip([iter([1, 2]), iter([])])) == []


def test_a_counted_iterator_is_asked_as_often_as_the_other() -> None:
    counted = Counted(itertools.count(10))
    next(counted)
    counted.go_to(4)
    assert next(counted) == 14
    with pytest.raises(PlaceError, match="count was asked 5 times, and cannot go back"):
        counted.go_to(4)


def test_a_counted_iterator_that_ends_before_says_so() -> None:
    with pytest.raises(PlaceError, match="zip ended before item 3"):
        Counted(zip("ab", "cd", strict=True)).go_to(3)


def test_loops_are_known_by_their_frame_while_they_run() -> None:
    live = Loops()

    def inner() -> dict[int, Any]:
        live.begin([1], 5)
        found = live.of(sys._getframe())
        live.done(5)
        assert live.of(sys._getframe()) == {}
        return found

    outer = live.begin("ab", 3)
    assert list(inner()) == [5]
    assert live.of(sys._getframe()) == {3: outer}
    live.done(3)
    assert live.of(sys._getframe()) == {}
    live.done(3)  # it is not there any more


def test_a_loop_that_is_being_compiled_is_left_alone() -> None:
    live = Loops(compiling=lambda: True)
    items = [1]
    assert live.begin(items, 1) is items
    live.done(1)
    assert not live._live
