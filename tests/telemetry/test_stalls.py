"""A stall is said once, with the place, and so is its end; what is held does not stall."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from otf_core.telemetry import stalls
from otf_core.telemetry.stalls import StallWatch, spot_of


class Watched:
    """A run that the test moves on, and a clock."""

    def __init__(self, step_s: float | None = 0.1) -> None:
        self.now_s, self.trains, self.step_s = 1000.0, True, step_s
        self.told: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.watch = StallWatch(
            lambda kind, **fields: self.told.append({"type": kind, **fields}),
            trains=lambda: self.trains, step=lambda: 7, step_s=lambda: self.step_s,
            say=self.said.append, clock=lambda: self.now_s,
        )  # fmt: skip
        self.watch.look()

    def after(self, seconds: float) -> list[bool]:
        """What has been told of, a second after the other: whether each was the end of one."""
        for _ in range(round(seconds)):
            self.now_s += 1.0
            self.watch.look()
        return [event["over"] for event in self.told]


def test_a_stall_is_said_once_and_its_end_once() -> None:
    run = Watched()
    assert run.after(29) == []
    assert run.after(60) == [False]
    assert run.told[0]["step"] == 7
    assert (run.told[0]["seconds"], run.told[0]["limit_s"]) == (30.0, 30.0)
    assert run.said == ["no batch has ended for 30 s, at step 7"]
    run.watch.passed += 1
    assert run.after(1) == [False, True]
    assert (run.told[1]["seconds"], run.told[1]["where"]) == (90.0, None)
    assert run.after(29) == [False, True]


def test_whoever_goes_on_or_is_held_does_not_stall() -> None:
    run = Watched()
    for _ in range(50):
        run.watch.passed += 1
        assert run.after(29) == []
    run.trains = False
    assert run.after(1000) == []
    run.trains = True
    assert run.after(29) == []


def test_a_pause_of_a_run_that_stalls_ends_the_stall_when_it_stands() -> None:
    run = Watched()
    run.after(40)
    run.trains = False
    assert run.after(1) == [False, True]


@pytest.mark.parametrize(("step_s", "limit_s"), [(None, 300.0), (0.01, 30.0), (40.0, 800.0)])
def test_how_long_is_too_long_goes_by_the_usual_step(step_s: float | None, limit_s: float) -> None:
    run = Watched(step_s)
    assert run.after(limit_s - 1) == []
    assert run.after(1) == [False]


def test_the_place_is_the_innermost_line_of_the_users_own_code() -> None:
    held, go = threading.Event(), threading.Event()

    def training_step() -> None:
        held.set()
        go.wait(20)

    thread = threading.Thread(target=training_step)
    thread.start()
    assert held.wait(20)
    where, stack, call = spot_of(thread.ident)
    go.set()
    thread.join()
    assert where is not None
    file, _, rest = where.partition(":")
    assert file == Path(__file__).name
    assert rest.endswith(" in training_step")
    assert where in stack
    assert stack[-1].startswith("threading.py:")  # where it waits
    assert call is None  # the user's own line is further in than any collective
    assert spot_of(None) == (None, [], None)
    assert spot_of(thread.ident) == (None, [], None)


@pytest.mark.parametrize(
    ("path", "function", "call"),
    [
        ("/x/torch/distributed/distributed_c10d.py", "all_reduce", "all_reduce"),
        ("/x/torch/distributed/distributed_c10d.py", "_object_to_tensor", None),
        (
            "/x/torch/distributed/_functional_collectives.py",
            "all_gather_tensor",
            "all_gather_tensor",
        ),
        ("/x/torch/nn/parallel/distributed.py", "_distributed_broadcast_coalesced", "broadcast"),
        ("/x/torch/nn/parallel/distributed.py", "forward", None),
        ("/x/torch/autograd/graph.py", "_engine_run_backward", "backward"),
        ("/x/threading.py", "wait", None),
    ],
)
def test_where_torch_waits_for_other_ranks_is_known(
    path: str, function: str, call: str | None
) -> None:
    assert stalls._call(path, function) == call


def test_of_several_ranks_a_stall_has_what_all_are_at() -> None:
    run = Watched()
    run.watch._others = lambda spot: ({"ranks": [spot.where], "unheard": [3]}, "rank 3 is away")
    run.after(30)
    assert (run.told[0]["ranks"], run.told[0]["unheard"]) == ([None], [3])
    assert run.said == ["no batch has ended for 30 s, at step 7: rank 3 is away"]
    run.watch.passed += 1
    run.after(1)
    assert (run.told[1]["over"], run.told[1]["ranks"], run.told[1]["unheard"]) == (True, [], [])


def test_the_thread_looks_by_itself_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "LOOK_S", 0.01)
    run = Watched()
    told = threading.Event()
    run.watch._emit = lambda *_, **__: told.set()
    run.now_s += 31
    run.watch.start()
    assert told.wait(20)
    run.watch.stop()
    run.watch.stop()
