"""How long many ranks take to agree where to stand: measured up to what fits here, simulated above.

As a program: ``python -m benchmarks.ranks_scale costs`` prints what one letter costs, ``python -m
benchmarks.ranks_scale ROUNDS SIZE ...`` how long so many ranks took, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from benchmarks import peers
from benchmarks.figures import Row, middle, percentile
from benchmarks.simulated import Costs, Simulation, estimate_s
from otf_core.control.agreement import StepAgreement
from otf_core.ranks.mail import StoreMail

HERE: Final = (2, 4, 8, 16)
ABOVE: Final = (64, 256, 1024, 4096, 8192)
LATENCY_S: Final = 50e-6  # one way, between machines of a cluster; assumed
LIMIT_MS: Final = 2000.0  # of the largest: a second or two beside a pause is no wait
BEATS_PER_S: Final = 1.0
MANY: Final = 2000
LETTER: Final = b'["promise",1,2,345678]'


def ranks_scale(*, quick: bool, tmp: Path) -> list[Row]:
    """From a proposal until every rank knows where to stand."""
    told = [_told("costs") for _ in range(1 if quick else 5)]
    one = Costs(**{name: middle([each[name] for each in told]) for name in told[0]})
    here = dataclasses.replace(one, cores=os.cpu_count() or 1)
    sizes = HERE[:2] if quick else HERE
    rows = []
    for size, times in _told("5" if quick else "200", *map(str, sizes)).items():
        simulated = Simulation(int(size), here)
        rows.append(
            Row(
                bench="ranks_scale",
                what=f"{size} ranks on {here.cores} cores agree where to stand, measured",
                unit="ms",
                ours=middle(times["agreed_ms"]),
                spread={
                    "p5": percentile(times["agreed_ms"], 5),
                    "p95": percentile(times["agreed_ms"], 95),
                    "one word to all and back": middle(times["told_ms"]),
                },
                rivals={
                    "simulated": simulated.seconds() * 1e3,
                    "estimated": estimate_s(int(size), here) * 1e3,
                    "letters and questions": simulated.operations,
                },
            )
        )
    far = dataclasses.replace(one, latency_s=LATENCY_S)
    for size in ABOVE:
        simulated = Simulation(size, far)
        seconds = simulated.seconds()
        rows.append(
            Row(
                bench="ranks_scale",
                what=f"{size:,} ranks on as many cores, {LATENCY_S * 1e6:.0f} us apart, simulated",
                unit="ms",
                ours=seconds * 1e3,
                limit=LIMIT_MS if size == ABOVE[-1] and not quick else None,
                spread={
                    "of that rank 0 writing": 2 * (size - 1) * one.push_s * 1e3,
                    "letters and questions": simulated.operations,
                },
                rivals={
                    "estimated": estimate_s(size, far) * 1e3,
                    "store busy with a beat a second, % of a core": size
                    * BEATS_PER_S * one.serve_s * 100,
                },
            )
        )  # fmt: skip
    first = rows[0]
    letters = {f"{name[:-2]}, us": value * 1e6 for name, value in _seconds_of(one).items()}
    rows[0] = dataclasses.replace(first, rivals={**first.rivals, **letters})
    return rows


def _seconds_of(costs: Costs) -> dict[str, float]:
    names = ("push_s", "serve_s", "read_s", "wake_s")
    return {name: getattr(costs, name) for name in names}


def _told(*args: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.ranks_scale", *args],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=peers.ROOT, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


# The program. Ranks are forked from a process that has imported torch and begun no thread.

_FORK: Final = multiprocessing.get_context("fork")


def _fork(size: int, rank_main: Callable[[int, int, int, Any], None]) -> Any:
    """What rank 0 of so many has found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = _FORK.SimpleQueue()
    ranks = [
        _FORK.Process(target=rank_main, args=(rank, size, port, answers)) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    found = answers.get()
    for rank in ranks:
        rank.join(60)
    return found


class _Timed(StepAgreement):
    """Knows how long its proposals took."""

    took_s: list[float]

    def _propose(self) -> list[int]:
        began = time.perf_counter()
        missing = super()._propose()
        self.took_s.append(time.perf_counter() - began)
        return missing


def _agree(rounds: int) -> Callable[[int, int, int, Any], None]:
    def main(rank: int, size: int, port: int, answers: Any) -> None:
        _join(rank, size, port)
        over = threading.Event()
        agreement = _Timed(StoreMail("scale", rank), rank, size, do=lambda *args: _do(over, *args))
        agreement.took_s = []
        told_s: list[float] = []
        met = threading.Semaphore(0)

        def attend() -> bool:
            began = time.perf_counter()
            agreement.answers(agreement.tell("over" if len(told_s) == rounds else "nothing"))
            told_s.append(time.perf_counter() - began)
            met.release()
            return False

        def person() -> None:
            for _ in range(rounds + 1):
                threading.Event().wait(0.003)
                agreement.ask()
                met.acquire()
            over.set()

        if rank == 0:
            threading.Thread(target=person).start()
        while not over.is_set():
            agreement.boundary(attend)
            threading.Event().wait(0.002)
        agreement.close()
        if rank == 0:
            ms = [each * 1e3 for each in agreement.took_s[1:]]
            answers.put({"agreed_ms": ms, "told_ms": [each * 1e3 for each in told_s[1:]]})
        dist.destroy_process_group()

    return main


def _do(over: threading.Event, name: str, _args: list[Any]) -> None:
    if name == "over":
        over.set()


def _join(rank: int, size: int, port: int) -> Any:
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    return store


def _cost_of_letters(rank: int, size: int, port: int, answers: Any) -> None:
    """Rank 0 has the store and nothing else to do, 1 is who asks, 2 who answers."""
    store = _join(rank, size, port)
    if rank == 0:
        store.get("begin")
        busy_s = time.process_time()
        store.get("read")
        store.set("busy", str(time.process_time() - busy_s))
    elif rank == 1:
        push_s, serve_s = _written_and_read(store)
        wake_s = _answered() - serve_s
        read_s = _heard(push_s) - serve_s
        answers.put(_seconds_of(Costs(push_s, serve_s, read_s, wake_s)))
    else:
        _answers()
    dist.barrier()
    dist.destroy_process_group()


def _written_and_read(store: Any) -> tuple[float, float]:
    """To write a letter, and the store's time for one request."""
    mail = StoreMail("own", 1)
    store.set("begin", b"1")
    began = time.perf_counter()
    for _ in range(MANY):
        mail.push(1, LETTER)
    push_s = (time.perf_counter() - began) / MANY
    for _ in range(MANY):
        mail.pop()
    store.set("read", b"1")
    return push_s, float(store.get("busy")) / (2 * MANY)


def _answered() -> float:
    """A letter to a watch thread that waits, one way: half of there and back."""
    mail, took_s = StoreMail("wake", 0), []
    for n in range(MANY // 4):
        began = time.perf_counter()
        mail.push(1, json.dumps(["propose", n]).encode())
        mail.pop()
        took_s.append(time.perf_counter() - began)
    return middle(took_s) / 2


def _heard(push_s: float) -> float:
    """A promise to rank 0 of as many, when all promise at once."""
    agreement = _Timed(StoreMail("read", 0), 0, MANY + 1)
    agreement.took_s = []
    heard_s = agreement._propose() or agreement.took_s[0]
    agreement.fail("measured")
    agreement.close()
    assert isinstance(heard_s, float), "some have not promised"
    return heard_s / MANY - 2 * push_s


def _answers() -> None:
    """The other side of both."""
    agreement = StepAgreement(StoreMail("wake", 1), 1, 2)
    mail = StoreMail("read", MANY)
    number = json.loads(mail.pop())[1]  # the last of the letters: none is written meanwhile
    for rank in range(1, MANY + 1):
        mail.push(0, json.dumps(["promise", number, rank, 7]).encode())
    agreement.close()


def _main(args: list[str]) -> None:
    if args == ["costs"]:
        found: Any = _fork(3, _cost_of_letters)
    else:
        rounds, *sizes = map(int, args)
        found = {str(size): _fork(size, _agree(rounds)) for size in sizes}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
