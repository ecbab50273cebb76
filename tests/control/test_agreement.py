"""Ranks that agree where to stand: every interleaving of two, and thousands of meetings of four."""

from __future__ import annotations

import itertools
import json
import math
import queue
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otf_core.control.agreement import PeerLostError, Place, RankError, StepAgreement

WAIT_S = 20.0


class Boxes:
    """Mail within one process."""

    def __init__(self, ranks: int) -> None:
        self.boxes: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(ranks)]
        self.lose: set[int] = set()  # letters to these ranks are not delivered

    def of(self, rank: int) -> Box:
        return Box(self, rank)


class Box:
    def __init__(self, boxes: Boxes, rank: int) -> None:
        self._boxes, self._rank = boxes, rank

    def push(self, rank: int, letter: bytes) -> None:
        if rank not in self._boxes.lose:
            self._boxes.boxes[rank].put(letter)

    def pop(self) -> bytes:
        letter = self._boxes.boxes[self._rank].get()
        if letter is None:
            msg = "closed"
            raise ConnectionError(msg)
        return letter

    def close(self) -> None:
        self._boxes.boxes[self._rank].put(None)


# ---------------------------------------------------------------- one rank, every interleaving


class Stepped(Place):
    """A Place whose two lock-free variables are points at which threads may be changed over."""

    point: Callable[[], None] = staticmethod(lambda: None)  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name in ("reached", "limit"):
            object.__getattribute__(self, "point")()
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("reached", "limit") and "wakeup" in self.__dict__:
            object.__getattribute__(self, "point")()
        object.__setattr__(self, name, value)


class Marked(threading.Condition):
    """Knows who is inside: whoever waits there for his turn would keep the other out."""

    owner: int | None = None

    def __enter__(self) -> bool:
        entered = super().__enter__()
        self.owner = threading.get_ident()
        return entered

    def __exit__(self, *args: Any) -> None:
        self.owner = None
        super().__exit__(*args)


class Turns:
    """Lets one of two threads run at a time, in a given order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self._order, self._lock = list(order), threading.Condition()
        self._ended: set[int] = set()
        self._names: dict[int, int] = {}

    def name(self, number: int) -> None:
        self._names[threading.get_ident()] = number

    def point(self) -> None:
        me = self._names.get(threading.get_ident())
        if me is None:
            return
        with self._lock:
            while self._order and self._order[0] != me and self._order[0] not in self._ended:
                assert self._lock.wait(WAIT_S)
            if self._order:
                self._order.pop(0)
            self._lock.notify_all()

    def end(self) -> None:
        with self._lock:
            self._ended.add(self._names[threading.get_ident()])
            self._lock.notify_all()


@pytest.mark.parametrize("order", list(itertools.product((0, 1), repeat=6)))
def test_training_never_passes_what_was_promised(order: tuple[int, ...]) -> None:
    turns = Turns(order)
    inside = Marked(threading.Lock())
    place = Stepped(inside)

    def point() -> None:
        if inside.owner != threading.get_ident():
            turns.point()

    object.__setattr__(place, "point", point)
    promised: list[int] = []
    passed: list[int] = []

    def watch() -> None:
        turns.name(1)
        promised.append(place.promise())
        turns.end()

    def train() -> None:
        turns.name(0)
        for boundary in range(2):
            if not place.passes(boundary):
                with place.wakeup:
                    found = place.look(boundary)
                if found != "go":
                    break
            passed.append(boundary)
        turns.end()

    threads = [threading.Thread(target=train), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert all(boundary < promised[0] for boundary in passed)
    assert promised[0] <= max(passed, default=-1) + 1


def test_where_a_rank_may_pass() -> None:
    place = Place(threading.Condition(threading.Lock()))
    assert place.passes(0)
    assert place.promise() == 1
    assert not place.passes(1)
    with place.wakeup:
        assert place.look(1) == "wait"
    place.commit(3)
    with place.wakeup:
        assert place.look(1) == "go"
    assert place.passes(2)
    assert not place.passes(3)
    with place.wakeup:
        assert place.look(3) == "meet"
    assert place.promise() == 3  # it stands there: the next meeting may be there as well
    place.part()
    with place.wakeup:
        assert place.look(3) == "wait"
    place.commit(None)
    with place.wakeup:
        assert place.look(3) == "go"
    assert place.limit == math.inf


# ---------------------------------------------------------------- whole ranks


class Ranks:
    """Ranks in threads; each trains over so many boundaries, and notes what it did where."""

    def __init__(self, count: int, boundaries: int, **more: Any) -> None:
        self.boxes = Boxes(count)
        self.count, self.boundaries = count, boundaries
        self.done: list[list[tuple[int, str]]] = [[] for _ in range(count)]
        self.at = [-1] * count
        self.errors: dict[int, BaseException] = {}
        self.said: list[str] = []
        self.pauses: list[random.Random] = [random.Random(rank) for rank in range(count)]
        self.attend: Callable[[StepAgreement, int], bool] = lambda _a, _n: False
        self.skew: Callable[[int], None] = lambda _rank: None
        self.here: Callable[[int], bool] = lambda _n: False
        self.agreements = [
            StepAgreement(
                self.boxes.of(rank), rank, count,
                do=lambda name, args, rank=rank: self.do(rank, name, args), say=self.said.append,
                **more,
            )
            for rank in range(count)
        ]  # fmt: skip

    def do(self, rank: int, name: str, args: list[Any]) -> Any:
        self.done[rank].append((self.at[rank], name))
        if name == "fail" and rank in args:
            msg = "no room"
            raise OSError(msg)
        return [rank, *args]

    def train(self, rank: int) -> None:
        agreement = self.agreements[rank]
        try:
            for n in range(self.boundaries):
                self.skew(rank)
                self.at[rank] = n
                attend = lambda: self.attend(agreement, n)  # noqa: B023, E731 -- called here
                if agreement.boundary(attend, here=self.here(n)):
                    self.done[rank].append((n, "stop"))
                    return
        except PeerLostError as error:
            self.errors[rank] = error

    def run(self, beside: Callable[[], None] = lambda: None) -> None:
        threads = [
            threading.Thread(target=self.train, args=(rank,), name=f"rank-{rank}")
            for rank in range(self.count)
        ]
        for thread in threads:
            thread.start()
        beside()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), thread.name

    def close(self) -> None:
        for agreement in reversed(self.agreements):  # rank 0 waits for the others
            agreement.close()


@pytest.fixture
def ranks() -> Iterator[Callable[..., Ranks]]:
    made: list[Ranks] = []

    def make(*args: Any, **more: Any) -> Ranks:
        made.append(Ranks(*args, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(("count", "asked"), [(2, 100), (4, 30)])
def test_all_do_the_same_things_at_the_same_boundaries(
    ranks: Callable[..., Ranks], count: int, asked: int
) -> None:
    found = ranks(count, 10_000_000)
    seen: list[int] = []
    turn = threading.Semaphore(0)

    def attend(agreement: StepAgreement, n: int) -> bool:
        seen.append(n)
        number = agreement.tell("note", len(seen))
        found.done[0].append((n, "note"))
        assert agreement.answers(number) == {rank: [rank, len(seen)] for rank in range(1, count)}
        turn.release()
        return len(seen) == asked

    def skew(rank: int) -> None:
        for _ in range(found.pauses[rank].randrange(40 * (rank + 1))):
            pass

    found.attend, found.skew = attend, skew

    def beside() -> None:
        for _ in range(asked):
            found.agreements[0].ask()
            assert turn.acquire(timeout=WAIT_S)

    found.run(beside)
    assert found.errors == {}
    assert len(seen) == asked
    assert seen == sorted(seen)
    assert found.done[1:] == [found.done[0]] * (count - 1)


def test_who_counts_where_to_stand_and_who_asks_meet_alike(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 4_000)
    seen: list[int] = []

    def attend(agreement: StepAgreement, n: int) -> bool:
        seen.append(n)
        number = agreement.tell("note", len(seen))
        found.done[0].append((n, "note"))
        agreement.answers(number)
        if n % 600 == 7:
            agreement.ask()  # as whoever is woken there does
        return False

    def skew(rank: int) -> None:
        slow = found.pauses[rank].random() < 0.01  # longer than a thread has the interpreter
        if rank == 2 and slow:
            found.agreements[0].ask()
        for _ in range(200_000 if slow else found.pauses[rank].randrange(40 * (rank + 1))):
            pass

    found.attend, found.skew, found.here = attend, skew, lambda n: n % 200 == 7
    found.run(found.agreements[0].ask)
    assert found.errors == {}
    assert {n for n in range(4_000) if n % 200 == 7} <= set(seen)
    assert len(set(seen)) > 20  # and where somebody had asked
    assert found.done[1:] == [found.done[0]] * 2


def test_what_is_wanted_no_more_is_known_where_it_is_done(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 10_000_000)
    begun = threading.Barrier(3)

    def do(rank: int, name: str, _: list[Any]) -> bool:
        if name == "long":
            begun.wait(WAIT_S)
            until(found.agreements[rank].ceased)
        return found.agreements[rank].ceased()

    def attend(agreement: StepAgreement, _: int) -> bool:
        number = agreement.tell("long")
        begun.wait(WAIT_S)
        agreement.cease()
        assert agreement.answers(number) == {1: True, 2: True}
        assert agreement.answers(agreement.tell("next")) == {1: False, 2: False}
        return True

    found.attend = attend
    found.do = do  # type: ignore[method-assign]
    found.run(found.agreements[0].ask)
    assert found.errors == {}


# ---------------------------------------------------------------- an evaluation that is left


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("totals", [(30, 30, 30), (30, 12, 30), (9, 30, 30), (30, None, 30)])
def test_an_evaluation_is_left_by_all_behind_one_batch_or_by_none(
    ranks: Callable[..., Ranks], totals: tuple[int | None, ...], together: bool
) -> None:
    found = ranks(3, 0)
    alike = totals == (30, 30, 30)
    work = threading.Event()
    collective = threading.Barrier(3)  # of the script: all ranks or none must come to it

    def evaluate(rank: int, asks_at: int, left: list[int | None]) -> None:
        agreement, total = found.agreements[rank], totals[rank]
        agreement.leaving.begin()
        at: int | None = None
        for done in range(1, (total or 30) + 1):
            work.wait(found.pauses[rank].random() * 0.001 * (rank + 1))
            if together and done <= 9:
                collective.wait(WAIT_S)
            if rank == 0 and done >= asks_at and at is None:
                at = agreement.leave_evaluation(done, total)
            if (
                (at is not None and done >= at)
                if rank == 0
                else agreement.leaving.behind(done, total)
            ):
                left[rank] = done
                break
        else:
            collective.wait(WAIT_S)
        agreement.leaving.begin()

    ends: list[int | None] = []
    for asks_at in [1, 3, 9, 29, 31] * 2:
        left: list[int | None] = [None, None, None]
        threads = [
            threading.Thread(target=evaluate, args=(rank, asks_at, left), name=f"rank-{rank}")
            for rank in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), thread.name
        assert len(set(left)) == 1, left
        assert left[0] is None or left[0] >= asks_at
        ends.append(left[0])
    if alike:
        assert {end for end in ends if end is not None}
    if None in totals:
        assert set(ends) == {None}


def test_who_waits_to_leave_is_told_that_the_others_are_gone(ranks: Callable[..., Ranks]) -> None:
    leaving = ranks(2, 0).agreements[1].leaving
    leaving.begin()
    assert leaving.promise() is None  # before it has begun
    assert not leaving.behind(1, 5)
    assert leaving.promise() == (2, 5)
    leaving.end("gone")
    assert not leaving.behind(2, 5)
    leaving.commit(None)
    assert not leaving.behind(5, 5)
    assert leaving.promise() is None  # it is through


def test_asked_again_while_they_stand_they_meet_again(ranks: Callable[..., Ranks]) -> None:
    found = ranks(2, 10_000_000)
    places: list[int] = []

    def attend(agreement: StepAgreement, n: int) -> bool:
        places.append(n)
        agreement.ask()
        return len(places) == 4

    found.attend = attend
    found.run(found.agreements[0].ask)
    assert len(places) == 4


def test_a_stop_ends_all_at_one_boundary(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 10_000_000)
    places: list[int] = []

    def attend(_: StepAgreement, n: int) -> bool:
        places.append(n)
        return True

    found.attend = attend
    found.run(found.agreements[0].ask)
    assert found.done == [[(places[0], "stop")]] * 3


def test_what_a_rank_could_not_do_is_said_with_its_number(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 10_000_000)
    said: list[str] = []

    def attend(agreement: StepAgreement, _n: int) -> bool:
        with pytest.raises(RankError) as caught:
            agreement.answers(agreement.tell("fail", 2))
        said.append(str(caught.value))
        return True

    found.attend = attend
    found.run(found.agreements[0].ask)
    assert said == ["rank 2: OSError: no room"]


def test_a_rank_that_does_not_answer_is_named_and_nobody_waits_for_it(
    ranks: Callable[..., Ranks],
) -> None:
    found = ranks(3, 2_000, promise_s=0.05)
    found.boxes.lose.add(2)
    met: list[int] = []
    found.attend = lambda _a, n: bool(met.append(n))

    def beside() -> None:
        found.agreements[0].ask()

    found.run(beside)
    limit = threading.Event()
    for _ in range(200):
        if found.said:
            break
        limit.wait(0.05)
    assert "rank 2 gave no answer in 0.05 s" in found.said[0]
    assert met == []
    assert found.errors == {}


def test_who_stands_when_the_others_are_gone_is_told(ranks: Callable[..., Ranks]) -> None:
    found = ranks(2, 10_000_000)
    standing = threading.Event()

    def attend(agreement: StepAgreement, _n: int) -> bool:
        agreement.answers(agreement.tell("note"))
        standing.set()
        found.agreements[1].fail("control store lost")
        while 1 not in found.errors:
            threading.Event().wait(0.01)
        return True

    found.attend = attend
    found.run(found.agreements[0].ask)
    assert str(found.errors[1]) == "control store lost"


def test_rank_0_stays_until_the_others_have_read_what_it_has_written(
    ranks: Callable[..., Ranks],
) -> None:
    found = ranks(3, 0)
    first = threading.Thread(target=found.agreements[0].close)
    first.start()
    for agreement in found.agreements[1:]:
        first.join(0.01)
        assert first.is_alive()
        agreement.close()
    first.join(WAIT_S)
    assert not first.is_alive()


def until(fits: Callable[[], object]) -> None:
    for _ in range(2000):
        if fits():
            return
        threading.Event().wait(0.01)
    raise AssertionError


def test_an_answer_that_cannot_come_ends_the_wait_and_all_others(
    ranks: Callable[..., Ranks],
) -> None:
    found = ranks(3, 10_000_000)

    def attend(agreement: StepAgreement, _n: int) -> bool:
        found.boxes.lose.add(2)  # it stands, and hears nothing of what it is to do
        number = agreement.tell("note")
        until(lambda: agreement.awaited() == ("note", (2,)))
        agreement.fail("rank 2 ended with exit code -9 (SIGKILL)")
        agreement.answers(number)
        raise AssertionError

    found.attend = attend

    def beside() -> None:
        found.agreements[0].ask()
        until(lambda: 0 in found.errors)
        found.agreements[2].fail("killed")

    found.run(beside)
    assert {rank: str(error) for rank, error in found.errors.items() if rank < 2} == dict.fromkeys(
        (0, 1), "rank 2 ended with exit code -9 (SIGKILL)"
    )


def test_a_rank_that_is_silent_is_lost_only_where_this_one_broke_as_well(
    ranks: Callable[..., Ranks],
) -> None:
    found = ranks(2, 10_000_000)

    def attend(agreement: StepAgreement, _n: int) -> bool:
        agreement.silent = frozenset({1})
        assert agreement.answers(agreement.tell("note")) == {1: [1]}  # it was only slow
        found.boxes.lose.add(1)
        with pytest.raises(PeerLostError, match="rank 1 cannot be heard"):
            agreement.answers(agreement.tell("note"), broken=True)
        found.boxes.lose.clear()
        return True

    found.attend = attend
    found.run(found.agreements[0].ask)
    assert set(found.errors) == {0}


def test_nothing_is_asked_of_ranks_that_are_lost(ranks: Callable[..., Ranks]) -> None:
    found = ranks(2, 100, promise_s=0.05)
    found.agreements[0].fail("gone")
    found.agreements[0].ask()
    found.run()
    assert found.said == []
    assert found.errors == {}


def test_a_rank_that_hangs_is_asked_where_it_is_by_its_watch_thread(
    ranks: Callable[..., Ranks],
) -> None:
    found = ranks(3, 0)
    for rank, agreement in enumerate(found.agreements):
        agreement._place_of = lambda folder, rank=rank: [rank, folder]  # type: ignore[misc]
    assert found.agreements[0].places("here", WAIT_S) == {1: [1, "here"], 2: [2, "here"]}
    found.boxes.lose.add(2)
    assert found.agreements[0].places(None, 0.2) == {1: [1, None]}
    assert found.agreements[0]._asking == {}


def test_a_meeting_that_is_ahead_waits_for_all(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 0)
    assert found.agreements[0].awaited() == ("", ())
    found.agreements[0].ask()
    until(lambda: found.agreements[0]._place._meetings)
    assert found.agreements[0].awaited() == ("what was asked", (1, 2))


def test_who_stands_is_known(ranks: Callable[..., Ranks]) -> None:
    found = ranks(2, 10_000_000)
    seen: list[bool] = []

    def attend(agreement: StepAgreement, _n: int) -> bool:
        agreement.answers(agreement.tell("note"))
        seen.extend(each.stands for each in found.agreements)
        return True

    found.attend = attend
    assert not any(each.stands for each in found.agreements)
    found.run(found.agreements[0].ask)
    assert seen == [True, True]
    assert not any(each.stands for each in found.agreements)


def test_what_waits_for_a_promise_is_known_and_said_once(ranks: Callable[..., Ranks]) -> None:
    found = ranks(3, 0, promise_s=0.05)
    found.boxes.lose.add(2)
    found.agreements[0].ask()
    until(lambda: found.said)
    until(lambda: found.agreements[0]._round > 4)
    assert found.agreements[0].awaited() == ("what was asked", (2,))
    assert len(found.said) == 1


def test_letters_are_plain_text() -> None:
    boxes = Boxes(2)
    agreement = StepAgreement(boxes.of(0), 0, 2)
    agreement.tell("set", "lr", 0.5, {"a": None})
    boxes.of(1).push(0, b'["gone",1]')
    agreement.close()
    assert json.loads(boxes.boxes[1].get() or b"") == ["do", 1, "set", ["lr", 0.5, {"a": None}]]
