"""Facts become numbered lines, the same bytes for everybody, in one order."""

from __future__ import annotations

import json
import threading

import pytest

from otf_core.errors import LocalProtocolError
from otf_core.telemetry.emitter import MAX_WAITING, Emitter


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


def test_what_is_told_later_stands_where_it_was_told_with_its_time() -> None:
    sink = Sink()
    now = iter([1.0, 2.0, 3.0])
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,), clock=lambda: next(now))
    makers: list[str] = []

    def make(step: int) -> dict[str, int]:
        makers.append(threading.current_thread().name)
        return {"step": step}

    emitter.emit_later("trainStep", lambda: make(1))
    emitter.emit_later("trainStep", lambda: make(2))
    assert sink.got == []
    assert emitter.emit("paused", step=2) == 3

    events = [json.loads(line) for _, line, _ in sink.got]
    assert [(e["type"], e["step"], e["ts"], e["event_seq"]) for e in events] == [
        ("trainStep", 1, 1.0, 1),
        ("trainStep", 2, 2.0, 2),
        ("paused", 2, 3.0, 3),
    ]
    assert [droppable for _, _, droppable in sink.got] == [True, True, False]
    assert makers == [threading.current_thread().name] * 2


def test_the_number_of_the_last_event_counts_what_was_told() -> None:
    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))
    emitter.emit_later("trainStep", dict)
    assert emitter.last_seq == len(sink.got) == 1
    with pytest.raises(LocalProtocolError, match="'hello'"):
        emitter.emit("hello")


def test_the_thread_makes_what_was_told_with_nobody_else_emitting() -> None:
    made = threading.Event()
    names: list[str] = []

    def make() -> dict[str, int]:
        names.append(threading.current_thread().name)
        made.set()
        return {"step": 1}

    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))
    emitter.start()
    try:
        for _ in range(2):  # woken again after it has slept
            made.clear()
            emitter.emit_later("trainStep", make)
            assert made.wait(10)
    finally:
        emitter.close()
    emitter.close()

    assert names == ["otf-emitter"] * 2
    assert len(sink.got) == 2


def test_closing_makes_what_is_left_and_a_thread_that_is_not_there_fills_no_memory() -> None:
    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))
    for step in range(MAX_WAITING + 1):
        emitter.emit_later("trainStep", lambda step=step: {"step": step})  # type: ignore[misc]
    assert len(sink.got) == MAX_WAITING
    emitter.close()

    assert [json.loads(line)["step"] for _, line, _ in sink.got] == list(range(MAX_WAITING + 1))


def test_told_and_emitted_by_two_threads_each_keeps_its_order() -> None:
    sink = Sink()
    emitter = Emitter(session_id="s", run_id="r", sinks=(sink,))
    emitter.start()
    other = threading.Thread(
        target=lambda: [emitter.emit("log", text=str(n)) for n in range(500)], name="other"
    )
    other.start()
    for step in range(500):
        emitter.emit_later("trainStep", lambda step=step: {"step": step})  # type: ignore[misc]
    other.join()
    emitter.close()

    events = [json.loads(line) for _, line, _ in sink.got]
    assert [e["event_seq"] for e in events] == list(range(1, 1001))
    assert [e["step"] for e in events if e["type"] == "trainStep"] == list(range(500))
    assert [int(e["text"]) for e in events if e["type"] == "log"] == list(range(500))
