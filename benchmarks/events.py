"""How many events a second: encoded, through channel and socket, through the dashboard's hub; and
what a dashboard that reads nothing costs in memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import peers
from benchmarks.figures import Row, middle, percentile
from otf_core import rendezvous
from otf_core.channel import SocketChannel
from otf_core.dialling import Dialler
from otf_core.outbox import MAX_BYTES, Outbox
from otf_core.telemetry.emitter import Emitter
from otf_core.telemetry.journal import Journal

ENCODED_PER_S: Final = 100_000.0
END_TO_END_PER_S: Final = 30_000.0
MIB: Final = 1024 * 1024
PATIENCE_S: Final = 60.0
ACK_EVERY: Final = 500  # of the dashboard

# As a small module with full telemetry sends it.
STEP: Final[dict[str, Any]] = {
    "step": 1234, "epoch": 3, "global_step": 1234, "throughput": 21034.5512,
    "batches_per_s": 1314.6,
    "data_wait_frac": 0.0731, "mem_vram": None, "gpu_util": None, "ram_mb": 612.25,
    "loss": 0.34217846393585205, "val_loss": 0.4019283652305603, "accuracy": 0.890625, "lr": 0.001,
    "lrs": [0.001], "grad_norm": 1.2874531745910645, "weight_norm": 12.098231315612793,
    "activation_zero_frac": 0.4921875,
    "metrics": {"train_loss": 0.34217846393585205, "train_acc": 0.890625},
}  # fmt: skip


class _Desk:
    """Nothing is asked here."""

    def receive(self, request: Any, link: Any) -> None:
        return

    def malformed(self, error: Any, link: Any) -> None:
        return

    def lost(self, link: Any) -> None:
        return


class Line:
    """Emitter, journal and channel as a session wires them, without a model."""

    def __init__(self, tmp: Path, dashboard: str) -> None:
        tmp.mkdir(parents=True, exist_ok=True)
        self.session_id = f"sess-{tmp.name}"
        self.journal = Journal(tmp / "journal.jsonl", on_loss=lambda _why: None)
        finder = rendezvous.Finder(dashboard, {"OTF_LEGACY": "off"})
        self.channel = SocketChannel(
            Dialler(finder), _Desk(), self.journal, identity=self._identity, announce=lambda _: None
        )
        self.emitter = Emitter(
            session_id=self.session_id,
            run_id=tmp.name,
            sinks=(self.journal.append, self.channel.emit),
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "version": "0.2.0", "session_id": self.session_id, "run_id": self.emitter.run_id,
            "project": "bench", "capabilities": ["journal"], "pid": 0, "host": "", "device": "cpu",
            "state": "running",
        }  # fmt: skip

    def emit(self, count: int) -> None:
        """So many steps, as fast as it goes."""
        emit, fields = self.emitter.emit, STEP
        for _ in range(count):
            emit("trainStep", **fields)

    @contextlib.contextmanager
    def open(self) -> Iterator[Line]:
        """Started, and connected, inside the block."""
        self.journal.start()
        self.channel.start()
        try:
            _until(lambda: self.channel.connected, "no dashboard was connected")
            self.emitter.emit("session_started", project="bench", run_name=self.emitter.run_id)
            yield self
        finally:
            self.channel.close(0.1)
            self.journal.close()


def _until(done: Any, otherwise: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not done():
        if time.monotonic() > until_s:
            msg = f"{otherwise} within {PATIENCE_S:g} s"
            raise TimeoutError(msg)
        pause.wait(0.002)


def events_per_s(*, quick: bool, tmp: Path) -> list[Row]:
    """Encoded; to a process that parses every line; to a real dashboard that acknowledges."""
    count, rounds = (3_000, 2) if quick else (40_000, 5)
    rows = [_encoded(count, rounds)]
    to_reader = [_to_reader(tmp / f"reader-{n}", count) for n in range(rounds)]
    with peers.dashboard(tmp):
        to_hub = [_to_hub(tmp / f"hub-{n}", count) for n in range(rounds)]
    for name, rates in (("to a process that parses", to_reader), ("to otf dashboard", to_hub)):
        rows.append(
            Row(
                bench="events_per_s",
                what=f"events end to end, {name}, median",
                unit="1/s",
                ours=middle(rates),
                limit=END_TO_END_PER_S,
                at_least=True,
                spread={"p5": percentile(rates, 5), "max": max(rates)},
            )
        )
    return rows


def _encoded(count: int, rounds: int) -> Row:
    cpu, wall = [], []
    for _ in range(rounds):
        outbox = Outbox()
        outbox.begin(0)

        def sink(seq: int, line: bytes, droppable: bool, outbox: Outbox = outbox) -> None:
            outbox.append(seq, line, droppable=droppable)

        emit = Emitter(session_id="sess-bench", run_id="bench", sinks=(sink,)).emit
        fields = STEP
        began_cpu, began_wall = time.thread_time(), time.perf_counter()
        for _ in range(count):
            emit("trainStep", **fields)
        cpu.append(count / (time.thread_time() - began_cpu))
        wall.append(count / (time.perf_counter() - began_wall))
    return Row(
        bench="events_per_s",
        what="events encoded into the outbox, a second of the emitting thread's CPU, median",
        unit="1/s",
        ours=middle(cpu),
        limit=ENCODED_PER_S,
        at_least=True,
        spread={"p5": percentile(cpu, 5), "wall median": middle(wall)},
        rivals={"us an event": 1e6 / middle(cpu)},
    )


def _to_reader(tmp: Path, count: int) -> float:
    last = count + 1  # session_started is the first
    with peers.peer("read", str(last)) as (address, process), Line(tmp, address).open() as line:
        began = time.monotonic()
        line.emit(count)
        told = peers.answer(process)
    if told["events"] != last:
        msg = f"{last} events were sent, {told['events']} came"
        raise AssertionError(msg)
    return float(count / (told["at_s"] - began))


def _to_hub(tmp: Path, count: int) -> float:
    with Line(tmp, "auto").open() as line:
        began = time.monotonic()
        line.emit(count)
        _until(lambda: line.channel.acked_seq > count - ACK_EVERY, f"not {count} acknowledged")
        return line.channel.acked_seq / (time.monotonic() - began)


def stalled_memory(*, quick: bool, tmp: Path) -> list[Row]:
    """What is kept for a dashboard that reads nothing, however much is emitted."""
    count = 20_000 if quick else 400_000
    process = psutil.Process()
    with peers.peer("stall") as (address, _), Line(tmp / "stalled", address).open() as line:
        before = process.memory_info().rss
        most_held = most_rss = 0
        for _ in range(20):
            line.emit(count // 20)
            # Not faster than the disk takes it: what is asked is what the dashboard costs.
            _until(lambda: not line.journal._pending, "the journal was not written")
            most_held = max(most_held, line.channel._outbox.held_bytes)
            most_rss = max(most_rss, process.memory_info().rss - before)
        dropped = line.channel.dropped
    size = (tmp / "stalled" / "journal.jsonl").stat().st_size
    return [
        Row(
            bench="stalled_memory",
            what="kept in the outbox for a dashboard that reads nothing, most",
            unit="MiB",
            ours=most_held / MIB,
            limit=MAX_BYTES / MIB,
            spread={"memory of the process grew by, MiB": most_rss / MIB},
            rivals={"emitted, MiB": size / MIB, "dropped, with a gap": float(dropped)},
        )
    ]
