"""What rank 0 tells of lost ranks and of stalls, in which order; and torch's flight recorder."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otf_core.control.agreement import PeerLostError, StepAgreement, ranks_in_words
from otf_core.ranks import flight
from otf_core.ranks.beating import Beats
from otf_core.ranks.judging import Change
from otf_core.ranks.mail import of_the_group
from otf_core.ranks.pace import Pace
from otf_core.ranks.reports import RankReports, grouped, place, stall_in_words
from otf_core.ranks.together import Others
from otf_core.telemetry.stalls import Spot

OWN = Spot("t.py:1 in f", ["a", "f"])
NEWEST = (SimpleNamespace(step=30), "/runs/p/r/checkpoints/30-ring.ckpt")


@pytest.fixture(autouse=True)
def nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks of these tests say no farewell."""
    monkeypatch.setattr("otf_core.control.agreement.LEAVE_S", 0.0)


class Box:
    def __init__(self, boxes: list[queue.Queue[bytes | None]], rank: int, deaf: set[int]) -> None:
        self._boxes, self._rank, self._deaf = boxes, rank, deaf

    def push(self, rank: int, letter: bytes) -> None:
        if rank not in self._deaf:
            self._boxes[rank].put(letter)

    def pop(self) -> bytes:
        letter = self._boxes[self._rank].get()
        if letter is None:
            msg = "closed"
            raise ConnectionError(msg)
        return letter

    def close(self) -> None:
        self._boxes[self._rank].put(None)


class Nowhere:
    def write(self, beat: bytes) -> None:
        pass

    def read(self, ranks: Any) -> dict[int, bytes]:
        return {}


class Told:
    """A session that notes what is asked of it; its three ranks answer letters."""

    run_id = "r"

    def __init__(self, deaf: set[int], newest: Any = NEWEST) -> None:
        boxes: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(3)]
        self.order: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.newest = newest
        self.agreements = [
            StepAgreement(
                Box(boxes, rank, deaf if rank == 0 else set()), rank, 3,
                place=lambda folder, rank=rank: place(OWN, folder, rank),
            )
            for rank in range(3)
        ]  # fmt: skip
        self.beats = Beats(Nowhere(), 0, 3, Pace(), stands=lambda: False)
        self.reports = RankReports(self, self.agreements[0], self.beats)

    def emit_at_once(self, kind: str, /, **fields: Any) -> None:
        assert self.agreements[0].lost is None, "the disk comes first"
        self.order.append("disk")
        self.events.append({"type": kind, **fields})

    def tell_connection(self, kind: str, /, **fields: Any) -> None:
        self.shown.append({"type": kind, **fields})

    def newest_exact(self) -> Any:
        return self.newest

    def steps_done(self) -> int:
        return 41

    def has_failed(self) -> None:
        assert self.agreements[0].lost is None
        self.order.append("run.json")

    def folder_of(self, what: str) -> str | None:
        return None

    def say(self, line: str) -> None:
        self.lines.append(line)

    def wake(self) -> None:
        assert self.agreements[0].lost is not None
        self.order.append("wake")


@pytest.fixture
def told() -> Iterator[Callable[..., Told]]:
    made: list[Told] = []

    def make(*deaf: int, **more: Any) -> Told:
        made.append(Told(set(deaf), **more))
        return made[-1]

    yield make
    for each in made:
        for agreement in each.agreements:
            agreement.close()


def test_a_failure_is_on_the_disk_before_anything_follows(told: Callable[..., Told]) -> None:
    run = told()
    run.reports.changed(Change(2, "failed", 0.4, -9, "rank 2 ended with exit code -9 (SIGKILL)"))
    assert run.order == ["disk", "run.json", "wake"]
    [event] = run.events
    resume = event.pop("resume")
    assert resume.startswith("OTF_RESUME=/runs/p/r/checkpoints/30-ring.ckpt ")
    assert event == {
        "type": "rank_state", "rank": 2, "state": "failed", "seconds": 0.4, "exit_code": -9,
        "why": "rank 2 ended with exit code -9 (SIGKILL)", "step": 41, "checkpoint": NEWEST[1],
    }  # fmt: skip
    assert run.lines == [
        "r: rank 2 ended with exit code -9 (SIGKILL), at step 41; "
        f"from step 30 the run goes on exactly: {resume}"
    ]
    for agreement in run.agreements:  # the others are told, wherever they stand
        while agreement.lost is None:
            threading.Event().wait(0.01)
        with pytest.raises(PeerLostError, match="rank 2 ended"):
            agreement.check()


def test_silence_ends_nothing_and_without_a_checkpoint_none_is_named(
    told: Callable[..., Told],
) -> None:
    run = told(newest=None)
    run.beats.judge.state[1] = "silent"
    run.reports.changed(Change(1, "silent", 5.0, None, "rank 1 has not been heard for 5 s"))
    assert (run.order, run.agreements[0].lost) == (["disk"], None)
    assert run.agreements[0].silent == {1}
    assert (run.events[0]["checkpoint"], run.events[0]["resume"]) == (None, None)
    run.beats.judge.state[1] = "ok"
    run.reports.changed(Change(1, "back", 9.0, None, "rank 1 is heard again after 9 s"))
    assert run.agreements[0].silent == frozenset()


def test_who_waits_for_a_silent_rank_is_said(told: Callable[..., Told]) -> None:
    run = told()
    run.agreements[0].tell("validate", None)
    run.reports.changed(Change(1, "silent", 5.0, None, "rank 1 has not been heard for 5 s"))
    assert run.events[0]["why"] == "rank 1 has not been heard for 5 s; validate waits for it"


def test_when_the_group_breaks_who_does_not_answer_is_lost(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otf_core.ranks.reports.BROKE_S", 0.2)
    run = told(2)
    said = run.reports.broke("RuntimeError: Connection closed by peer")
    assert [(e["rank"], e["state"], e["exit_code"]) for e in run.events] == [(2, "failed", None)]
    why = "what all ranks did together broke, and rank 2 does not answer"
    assert said == f"{why} (RuntimeError: Connection closed by peer)"


def test_when_the_group_breaks_and_all_answer_nobody_is_blamed(told: Callable[..., Told]) -> None:
    run = told()
    assert run.reports.broke("RuntimeError: gloo") == "RuntimeError: gloo"
    assert run.events == []


def test_a_signal_in_between_does_not_keep_it_from_being_said(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = told(2)
    calls: list[float] = []

    def interrupted(timeout_s: float) -> bool:
        calls.append(timeout_s)
        if len(calls) == 1:
            msg = "Connection reset by peer"
            raise RuntimeError(msg)
        return False

    monkeypatch.setattr(run.beats, "found_failed", interrupted)
    monkeypatch.setattr("otf_core.ranks.reports.BROKE_S", 0.2)
    run.reports.broke("RuntimeError: gloo")
    assert [event["rank"] for event in run.events] == [2]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (PeerLostError("rank 1 ended"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("NCCL error: unhandled system error"), True),
        (ConnectionResetError("reset"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("connection closed"), False),
        (MemoryError(), False),
    ],
)
def test_which_errors_say_nothing_of_their_cause(error: BaseException, is_one: bool) -> None:
    assert of_the_group(error) is is_one


@pytest.mark.parametrize("broken", [False, True])
def test_what_this_rank_could_not_do_by_itself_blames_nobody(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    agreement = told(1, 2).agreements[0]
    agreement.meeting, agreement.silent = True, frozenset({1, 2})
    monkeypatch.setattr("otf_core.control.agreement.LOOK_S", 0.01)
    answered = threading.Timer(
        0.3, lambda: [agreement._take(["done", 1, r, True, 0]) for r in (1, 2)]
    )
    answered.start()
    own = RuntimeError("gloo: Connection closed by peer") if broken else RuntimeError("no loader")
    with pytest.raises(PeerLostError if broken else RuntimeError), Others(agreement).do("validate"):
        raise own
    answered.join()
    assert (agreement.lost is not None) is broken


def test_a_stall_has_the_places_of_all_that_answer(
    told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otf_core.ranks.reports.PLACES_S", 0.2)
    run = told(2)
    own = Spot("train.py:9 in main", ["main", "all_reduce"], "all_reduce")
    found, words = run.reports.stalled(own)
    assert found == {
        "ranks": [
            {"ranks": [1], "where": "t.py:1 in f", "call": None, "stack": ["a", "f"]},
            {"ranks": [0], "where": own.where, "call": "all_reduce", "stack": own.stack},
        ],
        "unheard": [2],
        "flight": [],
    }
    assert words == "rank 1 is in t.py:1 in f; rank 0 waits in all_reduce; rank 2 did not answer"


def test_equal_stacks_are_one_entry() -> None:
    def at(call: str | None, *stack: str) -> dict[str, Any]:
        return {"where": "w", "call": call, "stack": list(stack)}

    found = grouped({0: at("barrier", "a"), 1: at(None, "b"), 2: at("barrier", "a")})
    assert [(each["ranks"], each["call"]) for each in found] == [([1], None), ([0, 2], "barrier")]
    words = stall_in_words({"ranks": found, "unheard": []})
    assert words == "rank 1 is in w; ranks 0, 2 wait in barrier"


def test_many_ranks_in_words() -> None:
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words(range(8)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7"
    assert ranks_in_words(range(2000)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 1,992 more"


def test_how_they_fare_is_told_and_kept_in_short(told: Callable[..., Told]) -> None:
    run = told()
    assert run.reports.in_short() is None
    run.beats.judge.state[2] = "failed"
    run.reports.told(run.beats.rows(0.0))
    [shown] = run.shown
    assert (shown["type"], shown["world_size"], shown["slowest"]) == ("ranks", 3, None)
    assert [row["state"] for row in shown["rows"]] == ["ok", "ok", "failed"]
    assert run.reports.in_short() == {
        "silent": [], "failed": [2], "slowest": None, "steps": {"min": 0, "max": 0},
    }  # fmt: skip


# ---------------------------------------------------------------- the flight recorder


def test_what_the_recorder_has_lies_where_the_event_says(tmp_path: Path) -> None:
    dumped = pickle.dumps({"entries": [{"profiling_name": "nccl:all_reduce"}]})
    file = flight.record(str(tmp_path / "stalls/7"), 3, lambda: dumped)
    assert file == str(tmp_path / "stalls/7/nccl_trace_rank_3")
    assert Path(file).read_bytes() == dumped


@pytest.mark.parametrize("dumped", [pickle.dumps({"entries": []}), pickle.dumps([]), b"", b"words"])
def test_nothing_recorded_is_no_file(tmp_path: Path, dumped: bytes) -> None:
    assert flight.record(str(tmp_path / "new"), 0, lambda: dumped) is None
    assert not (tmp_path / "new").exists()


def test_a_recorder_that_fails_or_no_room_is_no_file(tmp_path: Path) -> None:
    def fails() -> bytes:
        msg = "no recorder"
        raise RuntimeError(msg)

    assert flight.record(str(tmp_path), 0, fails) is None
    (tmp_path / "file").touch()
    dumped = pickle.dumps({"entries": [1]})
    assert flight.record(str(tmp_path / "file"), 0, lambda: dumped) is None
    assert flight.record(None, 0, lambda: dumped) is None


def test_the_recorder_of_torch_is_found_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._C import _distributed_c10d as c10d

    monkeypatch.setattr(c10d, "_dump_nccl_trace", lambda: b"nccl", raising=False)
    found = flight._of_torch()
    assert found is not None
    assert found() == b"nccl"
