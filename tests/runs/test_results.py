"""What tests and validations find is kept with the run, and costs it nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from otf_core.control.delegate import Evaluation
from otf_core.errors import CommandError
from otf_core.runs.results import Results
from otf_core.runs.tree import Here, RunTree
from otf_core.state import run_folder
from otf_core.state.run_folder import RESULTS, RunRecord
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runs.fits import SIDES, Side, fresh

FOUND = Evaluation({"val_loss": 0.5}, 0.25, 1.5)


class Asked(msgspec.Struct):
    payload: Any


class Payload(msgspec.Struct):
    run_id: str | None = None


def folder_of(save_dir: Path, name: str, **more: Any) -> Path:
    folder = run_folder.named_folder(save_dir, "p", name)
    run_folder.write_record(folder, record_of(name, **more))
    return folder


def record_of(name: str, **more: Any) -> RunRecord:
    return RunRecord(run_id=name, run_name=name, project="p", session_ids=[], **more)


def results_of(save_dir: Path, folder: Path | None, told: list[str] | None = None) -> Results:
    def emit(_kind: str, **fields: Any) -> None:
        if told is not None:
            told.append(fields["text"])

    tree = RunTree(save_dir, "p", Here(record_of("r"), folder))
    return Results(tree, lambda: ("r", folder), emit)


def rows(results: Results, run_id: str | None = None) -> list[dict[str, Any]]:
    ticket: Any = Asked(Payload(run_id))
    found: list[dict[str, Any]] = results.results(ticket)["results"]
    return found


def labels(results: Results, run_id: str | None = None) -> list[Any]:
    return [row["label"] for row in rows(results, run_id)]


def test_a_result_is_there_for_whoever_comes_later(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "r")
    one = results_of(tmp_path, folder)
    one.keep("test", "final", 7, FOUND)
    one.keep("validate", None, 9, Evaluation({"loss": float("nan")}, None, 0.5), 3)
    first, second = rows(results_of(tmp_path, folder))
    assert first.pop("ts") <= second.pop("ts")
    assert first == {
        "kind": "test", "label": "final", "step": 7, "run_id": "r", "metrics": {"val_loss": 0.5},
        "avg_loss": 0.25, "limit_batches": None, "seconds": 1.5,
    }  # fmt: skip
    assert second == {
        "kind": "validate", "label": None, "step": 9, "run_id": "r", "metrics": {"loss": None},
        "avg_loss": None, "limit_batches": 3, "seconds": 0.5,
    }  # fmt: skip


def test_of_its_kin_all_is_listed_and_of_others_nothing(tmp_path: Path) -> None:
    for name, parents in {
        "r": ["mother"], "mother": [], "sister": ["mother"], "child": ["r"], "stranger": [],
    }.items():  # fmt: skip
        folder = folder_of(tmp_path, name, parents=parents)
        line = {"kind": "test", "label": name, "step": 1, "run_id": name, "metrics": {}}
        (folder / RESULTS).write_text(json.dumps({**line, "seconds": 1, "ts": 1}) + "\n")
    home = Here(record_of("r", parents=["mother"]), tmp_path / "p" / "r")
    tree = RunTree(tmp_path, "p", home)
    results = Results(tree, lambda: ("r", home.folder), lambda *_, **__: None)
    assert set(labels(results)) == {"r", "mother", "sister", "child"}
    assert labels(results, "stranger") == ["stranger"]
    for name in ("nobody", "../p/r", ""):
        with pytest.raises(CommandError, match="No run named"):
            rows(results, name)


def test_half_a_line_costs_that_line_and_no_other(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "r")
    results = results_of(tmp_path, folder)
    results.keep("test", "one", 1, FOUND)
    with (folder / RESULTS).open("ab") as file:
        file.write(b'{"kind": "te\xff')
    results.keep("test", "two", 2, FOUND)
    with (folder / RESULTS).open("ab") as file:
        file.write(b"[[\n" + b"[" * 100_000 + b"\n{}\n")
    results.keep("test", "three", 3, FOUND)
    assert labels(results) == ["one", "two", "three"]


def a_link(path: Path) -> None:
    other = path.parent.parent / "other.txt"
    other.write_text("mine")
    path.symlink_to(other)


@pytest.mark.parametrize("place", [a_link, os.mkfifo, Path.mkdir])
def test_what_is_no_file_of_ours_is_left_alone(
    place: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, "r")
    place(folder / RESULTS)
    told: list[str] = []
    results = results_of(tmp_path, folder, told)
    results.keep("test", "final", 7, FOUND)
    assert labels(results) == ["final"]  # for as long as the session lasts
    assert len(told) == 1
    assert "is in memory only" in told[0]
    if place is a_link:
        assert (tmp_path / "p" / "other.txt").read_text() == "mine"


def test_a_full_disk_is_said_and_leaves_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, "r")
    told: list[str] = []
    results = results_of(tmp_path, folder, told)
    results.keep("test", "one", 1, FOUND)
    before = (folder / RESULTS).read_bytes()
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        results.keep("test", "two", 2, FOUND)
    assert (folder / RESULTS).read_bytes() == before
    assert told == [f"the result of a test at step 2 of r is in memory only: {os.strerror(28)}"]
    assert errno.ENOSPC == 28
    assert labels(results) == ["one", "two"]


def test_a_run_without_a_folder_keeps_them_as_long_as_it_lasts(tmp_path: Path) -> None:
    results = results_of(tmp_path, None)
    results.keep("test", "final", 7, FOUND)
    assert labels(results) == ["final"]


def test_cleaning_takes_them_with_the_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "old", ended_ts=1.0)
    (folder / RESULTS).write_text("{}\n")
    removed, failed = run_folder.clean(tmp_path, keep=None)
    assert (str(folder / RESULTS) in removed, failed) == (True, [])
    assert not folder.exists()


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def test_parents_and_forks_can_be_compared(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(), 2, project="p") as (run, barrier):
        pause_in(run, barrier, 2)
        assert asks(run, "results") == {"results": []}
        tested = asks(run, "test_now", {"label": "before"})
        validated = asks(run, "validate_now", {"label": "short", "limit_batches": 1})
        chosen = {"selection": {"kind": "indices", "ids": [*range(40)]}, "run_name": "hard"}
        asks(run, "fork", {**chosen, "steps": 2})
        asks(run, "resume")
        run.dashboard.expect("paused", step=5)
        asks(run, "test_now", {"label": "after"})
        asks(run, "validate_now")
        found = asks(run, "results")["results"]
        assert [row["label"] for row in asks(run, "results", {"run_id": "r"})["results"]] == [
            "before", "short",
        ]  # fmt: skip
        assert refused(run, "results", {"run_id": "nobody"})[0] == "not_found"
        for label in ("", "x" * 201):
            assert refused(run, "validate_now", {"label": label})[0] == "bad_payload"
            assert refused(run, "test_now", {"label": label})[0] == "bad_payload"
        asks(run, "stop", {"save": False})
    assert [(r["run_id"], r["step"], r["kind"], r["label"]) for r in found] == [
        ("r", 3, "test", "before"),
        ("r", 3, "validate", "short"),
        ("hard", 5, "test", "after"),
        ("hard", 5, "validate", None),
    ]
    assert found[0]["metrics"] == tested["metrics"]
    assert found[0]["avg_loss"] == tested.get("avg_loss")
    assert (found[1]["metrics"], found[1]["limit_batches"]) == (validated["metrics"], 1)
    kept = (tmp_path / "p" / "hard" / RESULTS).read_text().splitlines()
    assert [json.loads(line) for line in kept] == found[2:]


def test_the_test_at_the_end_is_one_of_them(side: Side, tmp_path: Path) -> None:
    with side.fitting(tmp_path, fresh(), 2, project="p", after_fit="hold") as (run, barrier):
        barrier.open()
        run.dashboard.expect("state", reason="after_fit")
        [found] = asks(run, "results")["results"]
        assert (found["kind"], found["label"], found["step"]) == ("test", "final", 24)
        asks(run, "resume")
