"""Facts become numbered lines, the same bytes for everybody, in one order."""

from __future__ import annotations

import json
import threading

import pytest

from otf_core.errors import LocalProtocolError
from otf_core.telemetry.emitter import Emitter


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[int, bytes, bool]] = []

    def __call__(self, seq: int, line: bytes, droppable: bool) -> None:
        self.got.append((seq, line, droppable))


def test_an_event_is_stamped_and_every_sink_gets_the_same_bytes() -> None:
    first, second = Sink(), Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(first, second), clock=lambda: 12.5)

    assert emitter.last_seq == 0
    assert emitter.emit("trainStep", step=1, loss=float("nan"), run_id="other", ts=0) == 1
    assert emitter.emit("paused", step=1, where={1}) == 2

    assert first.got == second.got
    assert [(seq, droppable) for seq, _, droppable in first.got] == [(1, True), (2, False)]
    stamps = {"run_id": "r", "run_gen": 0, "session_id": "s", "ts": 12.5}
    assert [json.loads(line) for _, line, _ in first.got] == [
        {"type": "trainStep", "step": 1, "loss": None, **stamps, "event_seq": 1},
        {"type": "paused", "step": 1, "where": [1], **stamps, "event_seq": 2},
    ]
    assert emitter.last_seq == 2


@pytest.mark.parametrize("kind", ["hello", "accepted", "gap", "error"])
def test_an_event_of_a_connection_gets_no_number(kind: str) -> None:
    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))

    with pytest.raises(LocalProtocolError, match=f"'{kind}' .* belongs to a connection"):
        emitter.emit(kind)
    with pytest.raises(KeyError):
        emitter.emit("nonsense")
    assert (sink.got, emitter.last_seq) == ([], 0)


def test_many_threads_make_one_order() -> None:
    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))

    def emit() -> None:
        for _ in range(500):
            emitter.emit("log", text="x")

    threads = [threading.Thread(target=emit, name=f"t{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [seq for seq, _, _ in sink.got] == list(range(1, 2001))
    assert [json.loads(line)["event_seq"] for _, line, _ in sink.got] == list(range(1, 2001))
