"""What it costs a step of DDP that all ranks can be held, beside the ways that ask at every step.

As a program, one rank of two: ``python -m benchmarks.ranks ROUNDS``, RANK and the rest in the
environment; rank 0 prints what was found, as JSON.

Rule: arms take turns within one run, a block of steps each, in an order that all ranks draw alike.
Collectives are counted by the process group itself, which numbers them.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

from benchmarks import peers
from benchmarks.figures import Row, middle, percentile
from otf_core.control.agreement import StepAgreement
from otf_core.control.safe_point import SafePoint
from otf_core.ranks.mail import StoreMail

LIMIT_US: Final = 10.0
BLOCK: Final = 20
OURS: Final = "the safe point, agreed"
COLUMNS: Final = ("call_us", "call_cpu_us", "step_us", "step_cpu_us", "collectives")


def ranks(*, quick: bool, tmp: Path) -> list[Row]:
    """Own time of the safe point, and what the step takes longer."""
    found = _run(2, "3" if quick else "60")
    cost = {name: {c: np.array(v) for c, v in each.items()} for name, each in found.items()}
    bare = cost["bare"]
    rivals: dict[str, float] = {}
    for name, each in cost.items():
        if name not in (OURS, "bare"):
            rivals |= {
                f"{name}, median": middle(each["call_us"]),
                f"{name}, p5": percentile(each["call_us"], 5),
                f"{name}, cpu median": middle(each["call_cpu_us"]),
                f"{name}, step longer by": _longer(each, bare, "step_us"),
                f"{name}, collectives more": middle(each["collectives"]) - _collectives(bare),
            }
    ours = cost[OURS]
    return [
        Row(
            bench="ranks",
            what="own time of a safe point at which 2 ranks can be held, in a step of DDP",
            unit="us",
            ours=middle(ours["call_us"]),
            limit=None if quick else LIMIT_US,
            spread={
                "p5": percentile(ours["call_us"], 5),
                "cpu median": middle(ours["call_cpu_us"]),
                "cpu p5": percentile(ours["call_cpu_us"], 5),
                "step longer by": _longer(ours, bare, "step_us"),
                "step's p5 longer by": percentile(ours["step_us"], 5)
                - percentile(bare["step_us"], 5),
                "step's cpu longer by": _longer(ours, bare, "step_cpu_us"),
                "collectives more": middle(ours["collectives"]) - _collectives(bare),
            },
            rivals={
                "an empty call, median": middle(bare["call_us"]),
                "bare step": middle(bare["step_us"]),
                "bare step, p5": percentile(bare["step_us"], 5),
                "collectives of a bare step": _collectives(bare),
                **rivals,
            },
        )
    ]


def _collectives(arm: dict[str, Any]) -> float:
    return middle(arm["collectives"])


def _longer(arm: dict[str, Any], bare: dict[str, Any], column: str) -> float:
    return middle(arm[column]) - middle(bare[column])


def _run(size: int, *args: str) -> dict[str, dict[str, list[float]]]:
    """What rank 0 of so many has found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks", *args],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=peers.ROOT,
            env={**common, "RANK": str(rank)},
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found: dict[str, dict[str, list[float]]] = json.loads(said[0])
    return found


# The program.


def _flag_by_broadcast() -> None:
    """As Lightning asks, before every batch, whether one rank was told to end."""
    flag = torch.zeros(1)
    dist.broadcast(flag, src=0)
    flag.item()


def _flag_by_all_reduce() -> None:
    flag = torch.zeros(1)
    dist.all_reduce(flag)
    flag.item()


def _objects() -> None:
    box = [None]
    dist.broadcast_object_list(box, src=0)


def _main(rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    agreement = StepAgreement(StoreMail("bench", rank), rank, size)
    point = SafePoint(lambda: False, agreement)
    arms: dict[str, Callable[[], Any]] = {
        "bare": lambda: None,
        OURS: point.tick,
        "a flag broadcast at every step": _flag_by_broadcast,
        "a flag reduced at every step": _flag_by_all_reduce,
        "an object broadcast at every step": _objects,
    }
    step = _step_of()
    group = distributed_c10d._get_default_group()
    found: dict[str, dict[str, list[float]]] = {
        name: {column: [] for column in COLUMNS} for name in arms
    }
    draw = random.Random(7)
    names = [*arms] * 2  # a first round that is thrown away
    for _ in range(rounds):
        names += draw.sample([*arms], len(arms))
    for block, name in enumerate(names):
        for n in range(BLOCK):
            before = group._get_sequence_number_for_group()
            t = time.perf_counter(), time.thread_time()
            arms[name]()
            u = time.perf_counter(), time.thread_time()
            step()
            v = time.perf_counter(), time.thread_time()
            if block < len(arms) or n == 0:
                continue
            row = (
                *((u[0] - t[0]) * 1e6, (u[1] - t[1]) * 1e6, (v[0] - t[0]) * 1e6),
                *((v[1] - t[1]) * 1e6, group._get_sequence_number_for_group() - before),
            )
            for column, value in zip(COLUMNS, row, strict=True):
                found[name][column].append(value)
    agreement.close()
    if rank == 0:
        sys.stdout.write(json.dumps(found))
    dist.destroy_process_group()


def _step_of() -> Callable[[], None]:
    """A step of DDP on a tiny model."""
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(16, 64), torch.randint(0, 10, (16,))

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    _main(int(sys.argv[1]))
