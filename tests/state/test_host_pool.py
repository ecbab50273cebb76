"""Host memory that one snapshot after another is copied into."""

from __future__ import annotations

import functools
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from otf_core.state import host_pool
from otf_core.state.host_copy import host_copy, sizes_of
from otf_core.state.host_pool import HostPool

torch.set_num_threads(1)


def round_of(pool: HostPool, *sizes: int) -> list[int]:
    """The addresses of one snapshot's memory."""
    addresses = [pool.take(nbytes).data_ptr() for nbytes in sizes]
    pool.rewind()
    return addresses


def test_the_second_snapshot_lies_where_the_first_lay() -> None:
    pool = HostPool()
    first = round_of(pool, 64, 64, 128)
    second = round_of(pool, 128, 64, 64)

    assert sorted(first) == sorted(second)
    assert pool.nbytes == 256


def test_within_one_snapshot_nothing_is_given_out_twice() -> None:
    pool = HostPool()
    round_of(pool, 64, 64)
    again = [pool.take(64).data_ptr() for _ in range(3)]

    assert len(set(again)) == 3
    assert pool.nbytes == 192


def test_pinned_memory_is_kept_apart_from_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return torch.zeros(*args, **options)

    pool = HostPool()
    monkeypatch.setattr(torch, "empty", empty)
    pinned = pool.take(64, pinned=True).data_ptr()
    pool.rewind()

    assert pool.take(64).data_ptr() != pinned
    assert pool.take(64, pinned=True).data_ptr() == pinned
    assert asked == [True]


def test_where_no_memory_can_be_pinned_other_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("cannot pin")

    monkeypatch.setattr(torch, "empty", empty)
    assert HostPool().take(64, pinned=True).nbytes() == 64


def test_memory_does_not_grow_while_the_shapes_take_turns() -> None:
    """Gradients are in every second snapshot: their memory stays, and none is made again."""
    pool = HostPool()
    round_of(pool, 100, 100, 50)
    both = set(round_of(pool, 100, 100, 50))
    for _ in range(2):
        assert set(round_of(pool, 100, 50)) < both
        assert set(round_of(pool, 100, 100, 50)) == both
    assert pool.nbytes == 250


def test_other_shapes_push_out_what_they_have_no_use_for() -> None:
    pool = HostPool()
    for n in range(8):
        round_of(pool, *((100, 60) if n % 2 else (70, 70)))
        assert pool.nbytes <= 160


def test_no_more_is_let_go_than_is_too_much() -> None:
    pool = HostPool()
    round_of(pool, *[10] * 10)
    round_of(pool, 35)
    assert pool.nbytes == 95


def test_memory_that_was_needed_once_is_given_back_after_some_snapshots() -> None:
    pool = HostPool()
    round_of(pool, 1000, 10)
    held = []
    for _ in range(host_pool.ROUNDS + 1):
        round_of(pool, 10)
        held.append(pool.nbytes)

    assert held == [1010, 1010, 1010, 10, 10]


def test_clear_gives_all_memory_back() -> None:
    pool = HostPool()
    pool.take(64)
    round_of(pool, 32)
    pool.clear()
    assert pool.nbytes == 0
    pool.rewind()
    assert round_of(pool, 64)


def test_nothing_is_no_memory() -> None:
    assert HostPool().copy(torch.zeros(0, 3)).shape == (0, 3)
    assert HostPool().take(0).nbytes() == 0


# Memory that is made before it is wanted.


def reserve(pool: HostPool, *sizes: int) -> None:
    pool.reserve([(nbytes, False) for nbytes in sizes])


def test_the_first_snapshot_finds_the_memory_that_was_made_for_it() -> None:
    pool = HostPool()
    reserve(pool, 64, 64, 128)
    pool.rewind()
    assert pool.nbytes == 256
    round_of(pool, 64, 128, 64)
    assert pool.nbytes == 256


def test_what_an_earlier_snapshot_left_is_counted_and_the_rest_is_made() -> None:
    """The checkpoint of the beginning has no moments of Adam yet."""
    pool = HostPool()
    first = round_of(pool, 64, 32)
    pool.take(32)
    reserve(pool, 64, 64, 64, 32)
    assert pool.nbytes == 64 * 3 + 32
    pool.rewind()
    assert pool.nbytes == 64 * 3 + 32, "a small snapshot does not push it out"
    assert set(first) < set(round_of(pool, 64, 64, 64, 32))
    assert pool.nbytes == 64 * 3 + 32


def test_memory_that_is_no_longer_wanted_is_not_made() -> None:
    pool = HostPool()
    answers = iter([True, True, False])
    pool.reserve([(64, False)] * 5, wanted=lambda: next(answers))
    assert pool.nbytes == 128


def test_the_pages_of_memory_that_is_made_are_touched() -> None:
    pool = HostPool()
    nbytes = 64 * 1024 * 1024

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    reserve(pool, nbytes)
    assert resident() - before > nbytes * 0.9


GIB = 1024**3


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 8 * GIB),
        ({"max": "max", "current": f"{GIB}", "stat": ""}, 8 * GIB),
        ({"max": f"{4 * GIB}", "current": f"{GIB}", "stat": "anon 5\n"}, 3 * GIB),
        (
            {"max": f"{4 * GIB}", "current": f"{3 * GIB}", "stat": f"a 1\ninactive_file {GIB}\n"},
            2 * GIB,
        ),
        ({"max": f"{99 * GIB}", "current": "0", "stat": ""}, 8 * GIB),
        ({"max": "5", "current": "9", "stat": ""}, 0),
        ({"max": f"{4 * GIB}"}, 8 * GIB),
    ],
)
def test_a_container_may_have_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], available: int
) -> None:
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(host_pool, "CGROUP", tmp_path)
    machine = types.SimpleNamespace(available=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert host_pool.available_bytes() == available


# Copies.


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(3.0).expand(2, 3),
        torch.arange(20)[::3],
        torch.tensor(5, dtype=torch.int8),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(3).to(torch.float8_e4m3fn),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.stride())}",
)
def test_a_copy_is_what_clone_would_be(tensor: torch.Tensor) -> None:
    copy, clone = HostPool().copy(tensor), tensor.detach().clone().resolve_conj().resolve_neg()

    assert type(copy) is torch.Tensor
    assert torch.equal(copy, clone)
    assert (copy.stride(), copy.dtype) == (clone.stride(), clone.dtype)
    assert not copy.requires_grad
    assert copy.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_is_more_than_one_piece_of_memory_is_copied_as_torch_does() -> None:
    pool = HostPool()
    sparse = torch.eye(2).to_sparse()
    quantized = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 0, torch.qint8)
    meta = torch.ones(2, 3, device="meta")

    assert torch.equal(pool.copy(sparse).to_dense(), torch.eye(2))
    assert pool.copy(quantized).dequantize().tolist() == [1.0, 2.0]
    assert (pool.copy(meta).device.type, pool.copy(meta).shape) == ("meta", (2, 3))
    assert pool.nbytes == 0


@pytest.mark.parametrize("count", [4, 1024 * 1024])
def test_small_and_large_storages_are_copied_alike(count: int) -> None:
    source = torch.arange(float(count)).untyped_storage()
    host = HostPool().take(source.nbytes())
    host_pool.copy_storage(source, host)
    assert torch.equal(
        torch.empty(0, dtype=torch.uint8).set_(host), torch.empty(0, dtype=torch.uint8).set_(source)
    )


def test_a_whole_snapshot_comes_out_right_over_the_one_before() -> None:
    pool = HostPool()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model.append(torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    held = []
    for _ in range(4):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        live = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        copy, fresh = host_copy(live, pool), host_copy(live)
        assert all(torch.equal(copy["model"][k], v) for k, v in fresh["model"].items())
        for key, state in fresh["optimizer"]["state"].items():
            assert all(torch.equal(copy["optimizer"]["state"][key][k], v) for k, v in state.items())
        assert copy["model"]["0.weight"].data_ptr() == copy["model"]["2.weight"].data_ptr()
        pool.rewind()
        held.append(pool.nbytes)
    assert len(set(held)) == 1


def test_the_sizes_that_are_foretold_are_those_that_are_taken() -> None:
    base = torch.arange(100.0)
    model = torch.nn.Linear(3, 3)
    value = [
        model.state_dict(),
        {"tied": model.weight, "views": (base[:60], base[50:]), "small": base[3:5]},
        torch.eye(2).to_sparse(),
        torch.tensor([1j]).conj(),
        torch.zeros(0),
        torch.ones(2, device="meta"),
    ]
    foretold = sizes_of(value)
    pool = HostPool()
    pool.reserve(foretold)
    made = pool.nbytes
    assert made == sum(nbytes for nbytes, _ in foretold) == 36 + 12 + 400 + 8 + 8
    host_copy(value, pool)
    assert pool.nbytes == made


@pytest.mark.parametrize("what", ["copy", "touch"])
def test_other_threads_run_while_much_is_copied_or_touched(
    what: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(60)  # whoever has the interpreter keeps it until he lets go
    source = torch.ones(200 * 1024 * 1024, dtype=torch.uint8).untyped_storage()
    host = HostPool().take(source.nbytes())
    running, stop = threading.Event(), threading.Event()
    count = 0

    def go_on_counting() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            running.set()
            os.sched_yield()  # lets go of the interpreter

    thread = threading.Thread(target=go_on_counting, name="counter")
    thread.start()
    running.wait(10)
    before = count
    if what == "copy":
        host_pool.copy_storage(source, host)
    else:
        reserve(HostPool(), source.nbytes())
    counted = count - before
    stop.set()
    thread.join()
    assert counted > 50
