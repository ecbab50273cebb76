"""A scan that is shared: every sample once, the same bits as in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from otf_core.errors import CommandError
from otf_core.ranks import shares
from otf_core.ranks.shares import NoCollectives, ScanOfOther, SharedScan, share_of
from otf_core.runs.samples import Scan
from otf_core.runs.subject import Subject
from otf_core.runs.table import SampleTable
from otf_core.state.rng import get_rng
from tests.exact.digest import exact
from tests.ranks.sharing import FakeOthers, among
from tests.runs.scans import Net, Rows, cross_entropy, subject

Make = Callable[[], Subject]


@pytest.mark.parametrize("samples", [1, 2, 4, 5, 6, 23, 24, 25, 26, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_shares_have_every_place_once_and_are_whole_batches(
    samples: int, world_size: int, batch_size: int
) -> None:
    found = [share_of(rank, world_size, samples, batch_size) for rank in range(world_size)]
    assert [place for share in found for place in share] == list(range(samples))
    assert 0 in found[0]  # who decides by which rule
    assert all(share.start % batch_size == 0 or not share for share in found)
    batches = [-(-len(share) // batch_size) for share in found]
    assert max(batches) - min(batches) <= 1


class Shared:
    """A scan on ranks of this process.

    Args:
        of: the subject of a rank.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, of: Callable[[int], Subject], world_size: int
    ) -> None:
        self.subjects = [of(rank) for rank in range(world_size)]
        self.sides = [
            ScanOfOther(lambda on, rank=rank: self.subjects[rank], rank)  # type: ignore[misc]
            for rank in range(1, world_size)
        ]
        self.others = FakeOthers([side.rows() for side in self.sides])
        among(monkeypatch, shares, self.others)

    def scan(self, ids: Any = None, **more: Any) -> SharedScan:
        return SharedScan(self.others, self.subjects[0], ids, **more)  # type: ignore[arg-type]


def all_of(scan: Any, slice_s: float = 0.0) -> SampleTable:
    for _ in scan.slices(slice_s):
        pass
    assert scan.progress().finished
    table: SampleTable = scan.table()
    return table


def bits(table: SampleTable) -> dict[str, Any]:
    columns = {n: c.tobytes() for n, c in vars(table).items() if isinstance(c, np.ndarray)}
    return {**columns, **{n: rows.tobytes() for n, rows in table.features.items()}}


def drawing(net: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(net(x) * (1 + torch.rand(())), y)


@pytest.mark.parametrize("size", [1, 3, 5, 6, 23])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_it_finds_bit_for_bit_what_one_process_finds(
    monkeypatch: pytest.MonkeyPatch, size: int, world_size: int
) -> None:
    def of(_: int) -> Subject:
        made = subject(dataset=Rows(size))
        net = made.modules[""]

        def step(batch: Any, batch_idx: int) -> torch.Tensor:
            return drawing(net, (batch[0] * (1 + batch_idx), batch[1]))

        return dataclasses.replace(made, step=step)

    table = all_of(Shared(monkeypatch, of, world_size).scan(layer="body.1"))
    alone = all_of(Scan(of(0), layer="body.1"))
    assert table.ids.tolist() == list(range(size))
    assert bits(table) == bits(alone)
    assert table.data == alone.data
    assert {"losses", "labels", "rivals", "confidence", "body.1"} <= bits(table).keys()


def test_of_some_samples_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array([22, 3, 3, 8, 0, 21, 9, 10])
    table = all_of(Shared(monkeypatch, lambda _: subject(), 2).scan(ids))
    assert table.ids.tolist() == [0, 3, 8, 9, 10, 21, 22]
    assert bits(table) == bits(all_of(Scan(subject(), ids)))


def test_what_all_have_found_is_fetched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "PIECE_BYTES", 2 * 3 * 100)
    made = Shared(monkeypatch, lambda _: subject(), 2)
    table = all_of(made.scan())
    assert made.others.told.count("scan_piece") > 2
    assert bits(table) == bits(all_of(Scan(subject())))


@pytest.mark.parametrize("odd", [0, 5, 10, 15, 20])
@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("slice_s", [0.0, 60.0])
def test_where_a_step_tells_nothing_of_a_sample_all_behind_are_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, odd: int, world_size: int, slice_s: float
) -> None:
    """As in one process, in which that is found first."""

    def of(_: int) -> Subject:
        data = Rows()
        data.y[:] = 0
        data.y[odd] = 1

        def step(net: nn.Module, batch: Any) -> torch.Tensor:
            x, y = batch
            loss = F.cross_entropy(net(x), y)
            return 2 * loss if int(y[0]) == 1 and len(y) > 1 else loss

        return subject(step, dataset=data)

    scan = Shared(monkeypatch, of, world_size).scan()
    table, one = all_of(scan, slice_s), Scan(of(0))
    assert bits(table) == bits(all_of(one))
    assert scan.told == f"{one.told}, on {world_size} ranks"
    assert "one sample at a time" in scan.told


def test_the_statistics_are_those_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(rank: int) -> Subject:
        net = Net()
        net.body[1].running_mean += rank  # type: ignore[operator]
        return subject(net=net)

    made = Shared(monkeypatch, of, 2)
    assert bits(all_of(made.scan())) == bits(all_of(Scan(of(0))))
    mine = made.subjects[1].modules[""].get_buffer("body.1.running_mean")
    assert torch.equal(mine, torch.ones(8))


def test_no_rank_has_a_trace_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Shared(monkeypatch, lambda _: subject(drawing), 3)

    def state() -> Any:
        nets = [each.modules[""] for each in made.subjects]
        tensors = [{n: exact(t) for n, t in net.state_dict().items()} for net in nets]
        return tensors, [[m.training for m in net.modules()] for net in nets], exact(get_rng())

    before = state()
    all_of(made.scan())
    assert state() == before
    assert not any(side._scans for side in made.sides)  # nothing of it is kept


def test_who_cancels_reaches_all_behind_the_same_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Shared(monkeypatch, lambda _: subject(dataset=Rows(53)), 2)
    scan, asked = made.scan(), iter([False, False, True])
    done = [progress.done for progress in scan.slices(0.0, lambda: next(asked))]
    assert done == [15, 25]  # one batch of the first rank before the others know the rule
    assert made.others.told == ["scan_begin", "scan_slice", "scan_slice", "scan_end"]
    assert not made.sides[0]._scans
    assert len(scan.table()) == 0


def test_two_scans_do_not_meet_and_one_that_was_left_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Shared(monkeypatch, lambda _: subject(), 2)
    background = made.scan()
    background.work(0.0)
    assert bits(all_of(made.scan())) == bits(all_of(Scan(subject())))
    while not background.work(0.0).finished:
        pass
    assert bits(background.table()) == bits(all_of(Scan(subject())))
    for _ in range(4):
        made.scan().work(0.0)
    assert len(made.sides[0]._scans) == shares.MOST


class Broken(Rows):
    def __getitem__(self, index: int) -> Any:
        if index == 17:
            msg = "a file is gone"
            raise OSError(msg)
        return super().__getitem__(index)


def test_what_another_rank_could_not_do_is_told_with_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Shared(monkeypatch, lambda _: subject(dataset=Broken()), 2)
    with pytest.raises(CommandError, match=r"Rank 1 .*a file is gone"):
        all_of(made.scan())
    assert made.others.told[-1] == "scan_end"


def test_ranks_with_different_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Shared(monkeypatch, lambda rank: subject(dataset=Rows(23 + rank)), 2)
    with pytest.raises(CommandError, match=r"Rank 1: Its train set is another than rank 0's"):
        all_of(made.scan())
    assert [side._scans for side in made.sides] == [{}]


def test_a_batch_is_as_large_as_on_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Shared(monkeypatch, lambda rank: subject(batch_size=5 + rank), 2)
    assert bits(all_of(made.scan())) == bits(all_of(Scan(subject(batch_size=5))))


def test_what_is_refused_by_one_process_is_refused_before_others_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Shared(monkeypatch, lambda _: subject(), 2)
    with pytest.raises(CommandError, match="allowed: 0 to 22"):
        made.scan(np.array([23]))
    with pytest.raises(CommandError, match="there are body"):
        made.scan(layer="nothing")
    assert made.others.told == []


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


COLLECTIVES: dict[str, Callable[[], Any]] = {
    "allreduce": lambda: dist.all_reduce(torch.ones(1)),
    "barrier": dist.barrier,
    "allgather": lambda: dist.all_gather_object([None], 1),
    "broadcast": lambda: dist.broadcast(torch.ones(1), src=0),
}


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.usefixtures("group")
def test_a_step_that_runs_a_collective_is_refused_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def step(net: nn.Module, batch: Any) -> torch.Tensor:
        COLLECTIVES[name]()
        return cross_entropy(net, batch)

    made = Shared(monkeypatch, lambda _: subject(step), 2)
    with pytest.raises(CommandError, match=rf"training_step of Net runs a collective \({name}\)"):
        all_of(made.scan())
    assert made.others.told == ["scan_begin", "scan_end"]
    assert COLLECTIVES[name]() is None  # and it is allowed again


def test_what_is_tried_first_changes_nothing() -> None:
    """Each share begins with a batch that is thrown away."""

    class Counts(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            found: torch.Tensor = super().forward(x) + self.calls
            return found

    def of() -> Subject:
        made = subject(net=Counts())
        return dataclasses.replace(made, batch_size=len(made.dataset))

    rehearsed = Scan(of(), rehearsed=lambda: NoCollectives("a step"))
    assert bits(all_of(rehearsed)) == bits(all_of(Scan(of())))
