"""What the proof stands on sees what it is there to see."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import torch

from tests.exact import digest, tape
from tests.exact.tape import Line
from tests.exact.verdict import Report, Verdict, fault

ROOT = Path(__file__).parents[2]
SAID = {"exact": False, "text": "not exact because"}


def test_one_changed_bit_is_another_value() -> None:
    weights = torch.zeros(3)
    before = digest.exact({"weights": weights})
    weights[1] = torch.finfo(torch.float32).tiny

    assert digest.exact({"weights": weights}) != before


def test_a_negative_zero_is_another_value() -> None:
    assert digest.exact(torch.tensor(-0.0)) != digest.exact(torch.tensor(0.0))
    assert digest.exact(-0.0) != digest.exact(0.0)


def test_a_generator_that_has_drawn_is_another_value() -> None:
    for generator, draw in (
        (torch.Generator(), lambda g: torch.rand(1, generator=g)),
        (np.random.default_rng(1), lambda g: g.random()),
        (np.random.RandomState(1), lambda g: g.rand()),
        (random.Random(1), lambda g: g.random()),
    ):
        before = digest.exact(generator)
        assert digest.exact(generator) == before
        draw(generator)
        assert digest.exact(generator) != before


def test_a_deque_is_no_list() -> None:
    assert digest.exact(deque([1])) != digest.exact([1])


def test_differences_are_named_by_their_place() -> None:
    one, other = {"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "c": 1}

    assert digest.differences(one, other) == ["a.b.1: 2 became 3"]
    assert digest.differences(one, one) == []
    assert digest.differences({"a": [1]}, {"a": [1, 2]}) == ["a: [1] became [1, 2]"]


def test_the_lines_of_a_killed_run_are_cut_where_the_next_process_went_on() -> None:
    before: list[Line] = [["gate", 0], ["go", 0], ["batch", "a"]]
    behind: list[Line] = [["gate", 1], ["go", 1], ["batch", "b"]]
    second: list[Line] = [["log", "sanity"], ["gate", 0], ["go", 1], ["batch", "again"]]

    told = tape.stitched([(before + behind, None), (second, 1)])

    assert told == [["batch", "a"], ["batch", "again"]]


def test_lines_that_were_rolled_back_do_not_count() -> None:
    before: list[Line] = [["gate", 0], ["batch", "a"], ["gate", 1], ["batch", "b"]]
    lines = [*before, ["back", 1], ["batch", "c"]]

    assert tape.stitched([(lines, None)]) == [["batch", "a"], ["batch", "c"]]


def test_a_run_that_began_anew_has_no_lines_of_the_one_before() -> None:
    assert tape.stitched([([["batch", "a"]], None), ([["batch", "b"]], None)]) == [["batch", "b"]]


def test_what_is_promised_and_inexact_is_a_fault() -> None:
    assert fault("shuffle", "kill", Verdict("inexact", "weights")) == "weights"
    assert fault("shuffle", "kill", Verdict("exact")) is None
    assert fault("shuffle", "session", Verdict("exact", said=SAID)) is not None


def test_what_is_inexact_must_have_been_said_before_the_kill() -> None:
    assert fault("opaque_stream", "kill", Verdict("inexact", said=SAID)) is None
    assert fault("opaque_stream", "kill", Verdict("inexact")) is not None
    assert fault("opaque_stream", "rollback", Verdict("inexact")) is None
    assert fault("opaque_stream", "session", Verdict("exact")) is not None


def test_the_whole_fails_with_too_few_that_are_exact() -> None:
    report = Report(whole=True)
    report.add("shuffle", {"kill": Verdict("exact", kills=1)})

    assert "1 configurations exact in every way; 1 processes killed" in report.end(1.0, 0)
    assert report.failures == ["1 configurations are exact, not 40"]


# In an interpreter of its own: this one may have threads by now.
FORKS = """
import os, pathlib, signal, sys, time
from tests.exact import forked
folder = pathlib.Path(sys.argv[1])
def orphan():
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    forked.kill_myself()
forked.adopt_orphans()
print(forked.run(lambda: 1 + 1, folder, "a").result)
print(forked.run(lambda: 1 / 0, folder, "b").told().split(" (")[0])
print(forked.run(signal.pause, folder, "c", timeout_s=0.2).how)
forked.WORKERS_NOTICE_S = 0.1
print(forked.run(orphan, folder, "d").how, len(forked.leftovers()), len(forked.leftovers()))
"""


def test_a_fork_ends_somehow_and_what_it_leaves_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)

    assert run.stdout.splitlines() == [
        "2",
        "ZeroDivisionError: division by zero",
        "hangs",
        "killed 1 0",
    ], run.stderr
