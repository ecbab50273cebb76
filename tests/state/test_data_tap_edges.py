"""Loaders that are odd, processes that die, and what is said of a position that is not exact."""

from __future__ import annotations

import abc
import copy
import dataclasses
import multiprocessing
import os
import pickle
import select
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, _utils, get_worker_info
from torch.utils.data import dataloader as torch_loader
from torch.utils.data._utils import fetch, pin_memory, worker

from otf_core.state import worker_stamps
from otf_core.state.data_tap import (
    PositionError,
    drew_while_read,
    nested,
    position,
    reasons,
    replayed,
    samplers,
    set_around,
    tap,
    tapped,
    why_not,
)
from otf_core.state.loader_parts import Look, around, same
from otf_core.state.plain_values import SMALL, TAG, Decoder
from otf_core.state.rng import get_rng, set_rng
from otf_core.state.tapped_iterators import INSTANCE, PRIVATE, Watch
from otf_core.state.worker_stamps import Stamp, Stamped, merged
from tests.state.loader_kinds import (
    KINDS,
    STAY,
    Buffer,
    Jitter,
    Lazy,
    Noisy,
    Own,
    Rounds,
    ShuffledStream,
    Squares,
    Stateful,
    Stream,
    Transformed,
    loader,
    numbers_its_worker,
    plain,
    seed_all,
    through_a_file,
)

pytestmark = pytest.mark.usefixtures("queues_have_ended")
LEFT = {TAG: "left"}


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the others still live; torch looks every 5 s."""
    monkeypatch.setattr(worker, "MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


def rest(iterator: Any) -> list[Any]:
    return [plain(batch) for batch in iterator]


def halfway(loader: Any, n: int = 2) -> tuple[Any, Any, list[Any]]:
    """State and RNG after n batches, and what comes then."""
    iterator = iter(loader)
    for _ in range(n):
        next(iterator)
    state, rng = through_a_file(position(loader)), get_rng()
    return state, rng, rest(iterator)


def gone_on(loader: Any, state: Any, rng: Any) -> list[Any]:
    """What comes after a state was loaded."""
    seed_all(99)
    loader.otf_load(state)
    iterator = iter(loader)
    set_around(loader, state["around"], own=False)
    set_rng(rng)
    return rest(iterator)


class Colour:
    """Of a type that no snapshot has."""


class Heavy(Squares):
    """Much of it is data, and some of it of types of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.colour = Colour()
        self.tensor = torch.zeros(3)
        self.pixels = np.zeros((3, SMALL), np.uint8)
        self.names = [str(i) for i in range(SMALL + 1)]
        self.boxes = [[0.5] * 60 for _ in range(SMALL // 50)]
        self.blob = b"x" * 20 * SMALL
        self.itself: list[Any] = []
        self.itself.append(self.itself)
        self.few = [str(i) for i in range(SMALL // 2)]


def test_data_and_values_of_a_type_of_their_own_are_left_alone() -> None:
    live = Heavy()
    saved = around(loader(live))["data"]["dataset"]
    kept = {name: value for name, value in vars(live).items() if name not in ("count", "few")}
    other = tap(loader(live))
    state = position(other)
    live.count = 5
    live.few.append("more")
    live.late = np.zeros(SMALL + 1)  # type: ignore[attr-defined]  # made after the capture
    set_around(other, state["around"])

    assert {name for name, value in saved.items() if value != LEFT} == {"n", "count", "few"}
    assert (live.count, len(live.few)) == (0, SMALL // 2)
    assert all(vars(live)[name] is value for name, value in kept.items())
    assert hasattr(live, "late")


def test_a_list_is_compared_and_not_encoded_again_until_it_changes() -> None:
    live, look = Heavy(), Look()
    first = look({"": live})[""]["few"]
    assert look({"": live})[""]["few"] is first
    live.few[3] = "other"
    assert Decoder()(look({"": live})[""]["few"]) == live.few
    live.few.pop()
    assert Decoder()(look({"": live})[""]["few"]) == live.few
    live.few[3] = np.zeros(2)  # type: ignore[call-overload]  # == of a list would ask the array
    assert look({"": live})[""]["few"] != first


def test_a_flag_for_a_number_is_a_change_although_they_are_equal() -> None:
    live, look = Heavy(), Look()
    live.few = [0] * 100  # type: ignore[list-item]
    look({"": live})
    live.few[3] = False  # type: ignore[call-overload]
    assert Decoder()(look({"": live})[""]["few"])[3] is False


@dataclasses.dataclass(frozen=True)
class Frozen:
    n: int = 5_000

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return torch.tensor([i * self.n])


def test_what_is_as_it_was_is_not_set_again() -> None:
    data: Any = Frozen()
    state, rng, expected = halfway(tap(loader(data, shuffle=True)), 1)
    assert gone_on(tap(loader(data, shuffle=True)), state, rng) == expected


class Slots(DataLoader[Any]):
    __slots__ = ("extra",)
    extra: int


class Strict(DataLoader[Any]):
    """Nothing may be set once it is made."""

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("made"):
            raise AttributeError(name)
        super().__setattr__(name, value)

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.made = True


class Abstract(DataLoader[Any], abc.ABC):
    pass


class Doubling(DataLoader[Any]):
    """Its iterator is a generator, which begins at the first batch."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch * 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cls", [Slots, Strict, Abstract, Doubling])
def test_a_class_of_the_users_is_tapped_and_stays_what_it_is(cls: Any, workers: int) -> None:
    def make() -> Any:
        return tap(cls(Noisy(9), batch_size=2, shuffle=True, num_workers=workers))

    one = make()
    state, rng, expected = halfway(one)

    assert tapped(one)
    assert isinstance(one, cls)
    assert type(one).__name__ == cls.__name__
    assert why_not(one) is None
    assert gone_on(make(), state, rng) == expected
    assert len(expected) == 3
    assert bool(reasons(one)) == (cls is Doubling)


class Iterates(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return iter([1, 2])


class Registered(DataLoader[Any]):
    def __init_subclass__(cls) -> None:
        raise AssertionError("somebody makes a subclass")


class Meta(type(DataLoader)):  # type: ignore[misc]
    pass


class WithMeta(DataLoader[Any], metaclass=Meta):
    pass


class Pipe(IterDataPipe[Any]):
    def __iter__(self) -> Any:
        return iter([torch.zeros(1)])


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: Iterates(Squares()), "Iterates makes its own iterator (_get_iterator)"),
        (lambda: Registered(Squares()), "Registered has an __init_subclass__ of its own"),
        (lambda: WithMeta(Squares()), "WithMeta has a metaclass of its own"),
        (lambda: DataLoader(Pipe()), "the data set of DataLoader is a DataPipe"),
        (lambda: iter([1]), "list_iterator is no DataLoader of torch"),
    ],
)
def test_what_cannot_be_tapped_is_left_and_says_why(made: Any, why: str) -> None:
    one = made()
    cls = type(one)

    assert tap(one) is one
    assert type(one) is cls
    assert not tapped(one)
    assert why_not(one) == why
    assert position(one) is None
    assert [reason.startswith(why) for reason in reasons(one)] == [True]


class OwnState(DataLoader[Any]):
    """As torchdata's StatefulDataLoader."""

    def state_dict(self) -> Any:
        return {"at": 3}

    def load_state_dict(self, state: Any) -> None: ...


def test_a_loader_with_a_state_dict_is_asked_for_it_and_stays_as_it_is() -> None:
    one = OwnState(Squares())
    assert type(tap(one)) is OwnState
    assert (position(one), why_not(one), reasons(one)) == ({"at": 3}, None, [])


def test_tapping_twice_is_tapping_once() -> None:
    one = tap(loader(Squares()))
    cls = type(one)
    assert type(tap(one)) is cls


def test_a_copy_and_a_pickle_of_a_tapped_loader_are_loaders_without_the_tap() -> None:
    one = tap(Slots(Squares(), batch_size=4))
    one.extra = 3
    next(iter(one))
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(other) is Slots
        assert other.extra == 3
        assert len(rest(other)) == 6
        assert "_otf_tap" not in vars(other)


class Named(Squares):
    def __init__(self) -> None:
        self.name = "squares"


def test_a_loader_that_is_made_from_the_class_of_a_tapped_one_has_a_tap_of_its_own() -> None:
    one = tap(loader(Named()))  # Lightning makes loaders anew, with type(loader)(...)
    iterator = iter(one)
    other = type(one)(Named(), batch_size=4)
    assert tapped(other)
    assert position(other)["iterator"] is None
    assert position(one)["iterator"]["n"] == 0
    assert other._otf.given == one._otf.given
    assert other._otf.given["dataset"] == {"name": "squares"}
    del iterator


def test_the_loader_shows_the_users_functions_and_not_ours() -> None:
    one = tap(loader(Own(), num_workers=1, worker_init_fn=numbers_its_worker))
    before = {k: v for k, v in vars(one).items() if k != "_otf_tap"}
    iterator = iter(one)
    assert {k: v for k, v in vars(one).items() if k != "_otf_tap"} == before
    assert len(iterator) == len(one) == 6


def test_the_iterator_that_is_meant_is_the_one_asked() -> None:
    one = tap(loader(Squares()))
    first, second = iter(one), iter(one)
    next(first)
    next(first)
    next(second)

    assert position(one)["iterator"]["n"] == 1, "the one made last"
    assert position(one, first)["iterator"]["n"] == 2
    assert position(one, object())["iterator"]["n"] == 1, "a wrapper of the user's"
    del second
    assert position(one)["iterator"]["n"] == 2, "a callback has looked at a batch in between"
    del first
    assert position(one)["iterator"] is None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("data", [Noisy, Stream, Rounds])
def test_the_batches_are_counted_on(data: Any, workers: int) -> None:
    one: Any = tap(loader(data(), num_workers=workers))
    state, *_ = halfway(one, 1)
    one.otf_load(state)
    iterator = iter(one)
    assert position(one)["iterator"]["n"] == 1
    del iterator


def test_a_rollback_in_place_ends_the_workers_and_starts_others() -> None:
    seed_all(3)
    one = tap(loader(Noisy(), shuffle=True, num_workers=2, persistent_workers=True))
    iterator = iter(one)
    next(iterator)
    state, rng = through_a_file(position(one)), get_rng()
    before = {process.pid for process in multiprocessing.active_children()}
    expected = rest(iterator)
    rest(one)

    again = gone_on(one, state, rng)
    twice = gone_on(one, state, rng)
    after = {process.pid for process in multiprocessing.active_children()}
    one._iterator._shutdown_workers()  # type: ignore[union-attr]

    assert again == twice == expected
    assert len(after) == 2
    assert not before & after


def pool(one: Any) -> Any:
    """How it stands between two iterations, which is when a validation is not running."""
    return through_a_file(one.otf_state(iterating=False))


def test_a_pool_that_was_not_made_again_is_passed_on() -> None:
    def make() -> Any:
        return tap(loader(Noisy(), shuffle=True, num_workers=2, persistent_workers=True))

    seed_all(3)
    one = make()
    rest(one)
    state, rng = pool(one), get_rng()
    expected = rest(one)
    end = get_rng()
    one._iterator._shutdown_workers()

    seed_all(8)
    killed_early = make()
    killed_early.otf_load(state)
    set_around(killed_early, state["around"], own=False)
    again = pool(killed_early)
    last = make()
    last.otf_load(again)
    set_around(last, again["around"], own=False)
    set_rng(rng)
    assert rest(last) == expected
    assert get_rng() == end
    last._iterator._shutdown_workers()


def test_a_pool_that_was_loaded_is_passed_on_while_somebody_holds_the_old_one() -> None:
    one: Any = tap(loader(Noisy(), num_workers=1, persistent_workers=True))
    iterator = iter(one)
    rest(iterator)
    state = pool(one)
    one.otf_load(state)
    assert same(pool(one)["iterator"]["workers"], state["iterator"]["workers"])
    del iterator


class Resuming(Lazy):
    """What is loaded counts for the next iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.at = self.skip = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skip = state["at"]

    def __iter__(self) -> Iterator[int]:
        self.at, self.skip = self.skip, 0
        while self.at < self.n:
            self.at += 1
            yield self.at % self.n
        self.at = 0


def test_what_has_a_state_dict_is_loaded_before_the_iteration_and_not_for_the_next() -> None:
    def make() -> Any:
        return tap(loader(Squares(), sampler=Resuming()))

    state, rng, expected = halfway(one := make())
    last = make()
    assert gone_on(last, state, rng) == expected
    assert rest(last) == rest(one)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_that_was_loaded_and_not_gone_on_from_is_passed_on(workers: int) -> None:
    def make() -> Any:
        return tap(loader(Rounds(), num_workers=workers))

    state, rng, expected = halfway(make())
    loaded = make()
    loaded.otf_load(state)
    assert gone_on(make(), through_a_file(position(loaded)), rng) == expected


def test_an_epoch_that_is_set_between_loading_and_iterating_counts() -> None:
    def make() -> Any:
        how = {"num_workers": 1, "persistent_workers": True}
        return tap(loader(Own(), **how))

    one = make()
    rest(one)
    state, rng = pool(one), get_rng()
    one.dataset.set_epoch(5)  # of no effect: the workers were forked before
    expected = rest(one)
    one._iterator._shutdown_workers()

    last = make()
    last.otf_load(state)
    set_rng(rng)
    last.dataset.set_epoch(5)
    assert rest(last) == expected
    assert last.dataset.epoch == 5
    last._iterator._shutdown_workers()


def test_a_sampler_with_a_state_dict_is_put_back_between_two_epochs() -> None:
    one: Any = tap(loader(Squares(), sampler=Stateful()))
    rest(one)
    rest(one)
    state = pool(one)
    last: Any = tap(loader(Squares(), sampler=Stateful()))
    last.otf_load(state)
    assert last.sampler.turns == 2
    assert rest(last) == rest(one)


class Turns(Stream):
    """Counts its readings, at once when one is begun."""

    def __init__(self) -> None:
        self.turns = 0

    def state_dict(self) -> Any:
        return {"turns": self.turns}

    def load_state_dict(self, state: Any) -> None:
        self.turns = state["turns"]

    def __iter__(self) -> Iterator[Any]:
        self.turns += 1
        return iter([torch.tensor([self.turns])] * 6)


@pytest.mark.parametrize("batches", [2, 3])
def test_a_stream_that_was_read_to_its_end_is_not_begun_twice(batches: int) -> None:
    one, last = (tap(loader(Turns())) for _ in range(2))
    iterator = iter(one)
    for _ in range(batches):
        next(iterator, None)
    state, rng = through_a_file(position(one)), get_rng()

    assert gone_on(last, state, rng) == []
    assert rest(last) == rest(one)


class Failing(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 5:
            raise OSError("one bad picture")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_failed_and_was_passed_over_counts_as_drawn(workers: int) -> None:
    def make() -> Any:
        return tap(loader(Failing(), num_workers=workers))

    iterator = iter(one := make())
    next(iterator)
    with pytest.raises(OSError, match="one bad picture"):
        next(iterator)
    state, rng = through_a_file(position(one)), get_rng()
    expected = rest(iterator)

    assert [batch[0][0] for batch in expected] == [8, 12, 16, 20]
    assert gone_on(make(), state, rng) == expected


class Short(Stream):
    def __iter__(self) -> Iterator[Any]:
        return iter([torch.zeros(1)] * 5)


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (lambda: loader(Squares()), lambda: loader(Squares(), sampler=[1, 2, 3, 4, 5])),
        (lambda: loader(Stream()), lambda: loader(Short())),
        (
            lambda: loader(Squares(), num_workers=1),
            lambda: loader(Squares(), num_workers=1, sampler=[1, 2, 3, 4, 5]),
        ),
        (lambda: loader(Stream(), num_workers=1), lambda: loader(Short(), num_workers=1)),
    ],
)
def test_a_position_beyond_the_end_is_refused(long: Any, short: Any) -> None:
    state, rng, _ = halfway(tap(long()), 4)
    with pytest.raises(PositionError, match=r"batch \d of the loader was asked for, found 2"):
        gone_on(tap(short()), state, rng)


def test_a_position_of_other_workers_is_refused_before_anything_is_touched() -> None:
    state, *_ = halfway(tap(loader(Own())))
    other: Any = tap(loader(Own(), num_workers=1))
    before = through_a_file(position(other))
    with pytest.raises(PositionError, match="with 0 workers was asked for, found 1; allowed"):
        other.otf_load(state)
    assert same(position(other), before)


# Which of them torch raises hangs on who notices first that a worker has gone.
GONE = (RuntimeError, OSError, EOFError)


class Dies(Squares):
    def __getitem__(self, i: int) -> Any:
        if i == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.usefixtures("looks_often", "queues_have_ended")
def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    one: Any = tap(loader(Dies(), num_workers=2, persistent_workers=True))
    iterator: Any = iter(one)
    with pytest.raises(GONE):
        rest(iterator)
    position(one)
    one.otf_state(iterating=False)
    iterator._shutdown_workers()


class DiesBesideOneThatIsStuck(Squares):
    """As a worker is whose neighbour was killed while it held the lock of their pipe."""

    def __getitem__(self, i: int) -> Any:
        if i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 2:
            threading.Event().wait()
        return super().__getitem__(i)


@pytest.mark.timeout(30)
@pytest.mark.usefixtures("looks_often", "queues_have_ended")
def test_nobody_waits_for_a_pool_of_which_a_worker_has_died() -> None:
    stuck = DiesBesideOneThatIsStuck()
    one: Any = tap(loader(stuck, num_workers=2, persistent_workers=True, batch_size=1))
    iterator: Any = iter(one)
    with pytest.raises(GONE):
        rest(iterator)
    one.otf_state(iterating=False)
    iterator._shutdown_workers()


@pytest.mark.timeout(30)
@pytest.mark.usefixtures("queues_have_ended")
def test_a_worker_that_has_no_more_lets_go_of_the_pipe_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread has the lock a little longer than the run needs to receive what it sent."""
    read, write = os.pipe()
    begin = worker_stamps.Begin.__call__

    def slow(self: Any, worker_id: int) -> None:
        begin(self, worker_id)
        send = self.results._send_bytes

        def send_and_stay(data: Any) -> None:
            send(data)
            if b"StampedEnd" in bytes(data):
                os.read(read, 1)

        self.results._send_bytes = send_and_stay if worker_id == 0 else send

    monkeypatch.setattr(worker_stamps.Begin, "__call__", slow)
    one: Any = tap(loader(ShortInWorker0(), num_workers=2, batch_size=1))
    iterator: Any = iter(one)

    def let_go() -> None:
        connection.wait([iterator._workers[0].sentinel], 1.0)  # it would have ended by then
        os.write(write, b"x")

    thread = threading.Thread(target=let_go)
    thread.start()
    assert len(rest(iterator)) == 1 + 12
    thread.join()
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("dead", [False, True])
def test_a_worker_takes_its_run_for_dead_when_its_parent_is_another(
    dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent may be a fork server, and not the trainer."""
    ends: list[Any] = []
    monkeypatch.setattr(worker_stamps, "Finalize", lambda _, call, **__: ends.append(call))
    monkeypatch.setattr(worker_stamps.worker, "_IterableDatasetStopIteration", None)
    parent = [4711]
    monkeypatch.setattr(os, "getppid", lambda: parent[0])
    begin = worker_stamps.Begin(Stamp(len, {}, None), None, {})
    begin.results = multiprocessing.get_context("fork").Queue()
    begin(0)
    parent[0] = 1 if dead else 4711
    [end] = ends
    end()
    assert begin.results._joincancelled is dead
    begin.results.close()


class ShortInWorker0(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        return iter(range(1 if info.id == 0 else 12))


def run_that_is_killed(write: int) -> None:
    torch.set_num_threads(1)
    one = tap(loader(Noisy(4000), num_workers=2, prefetch_factor=16))
    iterator = iter(one)
    for _ in range(5):
        next(iterator)
    os.write(write, b"x")
    signal.pause()


@pytest.mark.usefixtures("looks_often")
def test_workers_of_a_run_that_is_killed_end() -> None:
    read, write = os.pipe()  # its last writer to end is the last worker
    child = multiprocessing.get_context("fork").Process(target=run_that_is_killed, args=(write,))
    child.start()
    os.close(write)
    assert os.read(read, 1) == b"x"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    child.close()
    ready, _, _ = select.select([read], [], [], 30)
    assert ready, "a worker has not ended"
    assert os.read(read, 1) == b""
    os.close(read)


def test_only_what_has_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Heavy()
    info = worker.WorkerInfo(id=0, num_workers=1, seed=0, dataset=live)
    monkeypatch.setattr(worker, "_worker_info", info)
    stamp = Stamp(list, around(loader(live))["data"], None)
    first, second = stamp([1]), stamp([2])
    live.count += 1
    live.pixels = live.pixels[:1]  # small enough to be told now
    del live.blob
    third = stamp([3])
    random_number = torch.rand(1)
    fourth = stamp([4])

    assert set(first.news) == {"torch", "numpy", "python", "data", "gone", "ended"}
    nothing = {"data": {}, "gone": {}, "ended": False}
    assert first.news["data"] == {}, "what the training process knows from before the fork"
    assert second.news == nothing
    assert third.news["data"]["dataset"]["count"] == 1
    assert third.news["gone"] == {"dataset": ["blob"]}
    assert set(fourth.news) == {"torch", "data", "gone", "ended"}
    assert len(pickle.dumps(second.news)) < 200
    del random_number

    stand = merged(merged({"data": around(loader(Heavy()))["data"]}, first.news), third.news)
    other = Stamp(list, {}, None)
    other.put_back(stand)
    assert live.count == 1
    assert other.news() == nothing, "what it was told need not be told back"


def test_news_are_laid_over_what_was_known() -> None:
    stand = {"torch": 1, "data": {"a": {"x": 1, "y": 2}, "b": {"z": 3}}}
    news = {"numpy": 2, "data": {"a": {"x": 5}, "c": {}}, "gone": {"a": ["y"], "b": None},
            "ended": True}  # fmt: skip
    assert merged(stand, news) == {
        "torch": 1, "numpy": 2, "data": {"a": {"x": 5}, "c": {}}, "ended": True,
    }  # fmt: skip
    assert stand["data"] == {"a": {"x": 1, "y": 2}, "b": {"z": 3}}


class Pinnable:
    pinned = False

    def pin_memory(self) -> Pinnable:
        other = Pinnable()
        other.pinned = True
        return other


def test_a_stamped_batch_is_pinned_as_a_batch_is() -> None:
    news: Any = {"data": {}}
    stamped = pin_memory.pin_memory(Stamped([Pinnable(), {"a": Pinnable()}], news), "cuda")  # type: ignore[no-untyped-call]
    assert stamped.news is news
    assert stamped.batch[0].pinned
    assert stamped.batch[1]["a"].pinned


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch believes in an accelerator, and has its pinning thread; tensors stay as they are."""

    def pin(data: Any, device: Any = None) -> Any:
        return data.pin_memory() if isinstance(data, Stamped) else data

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(pin_memory, "pin_memory", pin)


@pytest.mark.usefixtures("pins", "queues_have_ended")
@pytest.mark.parametrize("data", [Noisy, Rounds])
@pytest.mark.parametrize("how", [{"num_workers": 0}, {"num_workers": 2}, STAY])
def test_a_loader_whose_batches_are_pinned_goes_on(data: Any, how: Any) -> None:
    def make() -> Any:
        return tap(loader(data(), pin_memory=True, **how))

    def end(one: Any) -> Any:
        if one.num_workers and one._iterator is not None:
            one._iterator._shutdown_workers()
        return get_rng()

    one, last = make(), make()
    state, rng, expected = halfway(one)
    then, after = rest(one), end(one)

    assert gone_on(last, state, rng) == expected
    assert rest(last) == then
    assert end(last) == after


def test_in_order_false_is_no_position_that_can_be_had_and_still_goes_on() -> None:
    one = tap(loader(Noisy(), num_workers=2, in_order=False))
    state, rng, expected = halfway(one)

    assert [r.startswith("in_order=False") for r in reasons(one)] == [True]
    assert len(gone_on(tap(loader(Noisy(), num_workers=2, in_order=False)), state, rng)) == 4
    assert len(expected) == 4
    assert reasons(tap(loader(Noisy(), num_workers=1, in_order=False))) == []
    assert reasons(tap(loader(Noisy(), in_order=False))) == []


@pytest.mark.parametrize(
    ("data", "how", "drew"),
    [
        (Buffer, {}, True),
        (Buffer, {"num_workers": 1}, False),
        (Stream, {}, False),
        (ShuffledStream, {}, False),
        (Rounds, {}, False),
        (Noisy, {}, False),
    ],
)
def test_a_stream_that_draws_while_it_is_read_is_noticed(data: Any, how: Any, drew: bool) -> None:
    one = tap(loader(data(), **how))
    assert not drew_while_read(one)
    for _ in one:
        torch.rand(1)  # the training itself
    assert drew_while_read(one) is drew
    assert [r.startswith("its iterable data set draws") for r in reasons(one)] == [True] * drew
    assert not drew_while_read(loader(data()))


class Late(Stream):
    """Shuffles each shard of 64 batches."""

    def __iter__(self) -> Iterator[Any]:
        for i in range(1040):
            if i % 256 == 0 and i:
                torch.randperm(256)
            yield torch.tensor([i])


def test_a_stream_that_draws_late_is_noticed_late() -> None:
    assert [n for n in range(70) if Watch.due(n)] == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]
    one = tap(loader(Late()))
    iterator = iter(one)
    for _ in range(64):
        next(iterator)
    assert not drew_while_read(one)
    next(iterator)
    assert drew_while_read(one)


class Remembering(Lazy):
    """Draws without replacement, index by index."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.n))
        while left:
            yield left.pop(int(torch.randint(len(left), ())))


def test_a_sampler_that_draws_in_between_is_noticed() -> None:
    quiet, between = (tap(loader(Squares(), sampler=Remembering())) for _ in range(2))
    for _ in quiet:
        np.random.rand()  # another generator
    for _ in between:
        torch.rand(1)
    assert reasons(quiet) == []
    assert [r.startswith("its sampler draws") for r in reasons(between)] == [True]
    for kind in KINDS:
        if kind.name in ("shuffled", "weighted", "eager sampler", "a generator given"):
            one = tap(kind.make())
            for _ in range(2):
                for _ in one:
                    torch.rand(1)
            assert reasons(one) == [], kind.name


class Holding(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.lines = iter(range(10))


def test_an_iterator_that_is_held_is_named() -> None:
    one = tap(loader(Holding()))
    assert reasons(one) == ["Holding.lines holds an iterator, whose place cannot be read"]


def test_a_list_has_no_position_to_lose_and_an_iterable_of_the_users_may() -> None:
    assert reasons([torch.zeros(1)]) == []
    assert [r.startswith("generator is no DataLoader") for r in reasons(i for i in [1])] == [True]


def test_the_parts_are_found() -> None:
    data = Transformed()
    one = loader(data, shuffle=True)
    names = [type(part).__name__ for part in nested(data)]

    assert names == ["Transformed", "Compose", "Jitter", "Jitter"]
    assert [type(s).__name__ for s in samplers(one)] == ["RandomSampler", "BatchSampler"]
    assert replayed(loader(Stream()))
    assert not replayed(loader(Rounds()))
    assert not replayed(one)


class Wrapping(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.dataset: Any = self  # a circle
        self.model = torch.nn.Linear(1, 1)
        self.transform = [Jitter(), len, Jitter, lambda x: x]


def test_models_functions_and_circles_are_no_parts() -> None:
    assert [type(part).__name__ for part in nested(Wrapping())] == ["Wrapping", "Jitter"]


class Opaque(Squares):
    def state_dict(self) -> Any:
        return {"of": object()}

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError("never loaded")


def test_a_state_dict_that_cannot_be_stored_is_left() -> None:
    state, rng, expected = halfway(one := tap(loader(Opaque())))
    assert reasons(one) == ["the state_dict of Opaque holds values that cannot be stored"]
    assert gone_on(tap(loader(Opaque())), state, rng) == expected


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in PRIVATE.items() for name in names]
)
def test_the_private_names_of_torch_are_there(owner: str, name: str) -> None:
    places = {
        "dataloader": torch_loader,
        "_utils.fetch": fetch,
        "_utils.worker": worker,
        "_utils.pin_memory": pin_memory,
    }
    module, _, cls = owner.partition(".") if owner.startswith("dataloader") else (owner, "", "")
    place: Any = places[module]
    assert hasattr(getattr(place, cls) if cls else place, name)


def test_the_private_names_of_an_iterator_with_workers_are_there() -> None:
    iterator = iter(loader(Squares(), num_workers=1))
    assert [name for name in INSTANCE if not hasattr(iterator, name)] == []
    assert get_worker_info() is None


class Passing(DataLoader[Any]):
    """Has an ``__iter__`` of its own."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


def make_passing(workers: int) -> Any:
    return tap(Passing(Squares(), batch_size=4, shuffle=True, num_workers=workers))


@pytest.mark.usefixtures("queues_have_ended")
@pytest.mark.parametrize("workers", [0, 1])
def test_of_two_that_read_a_loader_with_its_own_iter_each_knows_its_place(workers: int) -> None:
    seed_all(1)
    one = make_passing(workers)
    outer = iter(one)
    next(outer)
    inner = iter(one)
    assert position(one, inner)["iterator"] is None, "it draws when it begins"
    next(inner)
    next(inner)
    state, rng = through_a_file(position(one, outer)), get_rng()
    within = through_a_file(position(one, inner))
    expected = rest(outer), rest(inner)

    assert gone_on(make_passing(workers), state, rng) == expected[0]
    assert gone_on(make_passing(workers), within, rng) == expected[1]
