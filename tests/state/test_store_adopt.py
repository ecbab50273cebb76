"""What a process before this one saved is known again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.state.store import CheckpointStore, Kind, Manifest, Pending

torch.set_num_threads(1)

STATE = {"otf": {"exact": {}}, "w": torch.ones(3)}


class Process:
    """A store as one process after the other has it."""

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.removed: list[str] = []
        self.store = CheckpointStore(
            folder, keep=keep, on_saved=lambda *_: None, on_removed=self._on_removed
        )
        self.ignored = self.store.adopt()
        self.store.start()

    def _on_removed(self, manifest: Manifest, path: str) -> None:
        assert threading.current_thread().name == "otf-saver"
        assert not Path(path).exists()
        self.removed.append(manifest.id)

    def save(self, step: int, kind: Kind = "ring", *, pinned: bool = False) -> Pending:
        pending = self.store.save(
            lambda _: STATE, run_id="r", step=step, epoch=0, kind=kind, pinned=pinned
        )
        assert pending.wait(10)
        assert pending.error is None
        return pending

    def ids(self) -> list[str]:
        return [m.id for m, _ in self.store.list()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def start(**options: Any) -> Process:
        """The process before it ends first."""
        for process in made:
            process.store.close()
        made.append(Process(tmp_path / "checkpoints", **options))
        return made[-1]

    yield start
    for process in made:
        process.store.close()


def test_the_ring_goes_on_over_processes(start: Callable[..., Process]) -> None:
    first = start()
    first.save(1)
    first.save(2, "manual", pinned=True)
    first.save(3, "pause")

    second = start()
    assert second.ignored == []
    assert second.ids() == ["3-pause", "2-manual", "1-ring"]
    assert second.store.read("1-ring")["otf"] == {"exact": {}}
    second.save(4)
    second.save(5, "auto")
    second.store.close()
    assert second.ids() == ["5-auto", "4-ring", "3-pause", "2-manual"]
    assert second.removed == ["1-ring"]

    third = start(keep=1)
    assert third.ids() == second.ids(), "nothing goes before something is saved"
    third.save(6)
    third.store.close()
    assert third.ids() == ["6-ring", "2-manual"]
    assert third.removed == ["3-pause", "4-ring", "5-auto"]


def test_what_was_pinned_stays_pinned_and_what_is_pinned_now_stays(
    start: Callable[..., Process],
) -> None:
    start().save(1)
    second = start(keep=1)
    second.store.pin("1-ring")
    third = start(keep=1)
    for step in (2, 3):
        third.save(step)
    third.store.close()
    assert third.ids() == ["3-ring", "1-ring"]


def test_ids_are_not_used_twice(start: Callable[..., Process], tmp_path: Path) -> None:
    first = start()
    first.save(1)
    first.save(1)
    (tmp_path / "checkpoints" / "2-ring.ckpt").write_bytes(b"half")
    (tmp_path / "checkpoints" / "3-ring.json").write_bytes(b"half")

    second = start()
    assert [second.save(step).id for step in (1, 2, 3, 4)] == [
        "1-ring-3",
        "2-ring-2",
        "3-ring-2",
        "4-ring",
    ]
    assert (tmp_path / "checkpoints" / "2-ring.ckpt").read_bytes() == b"half"


def test_a_clock_that_went_back_between_two_processes_does_not_change_the_order(
    start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 5000.0)
    first = start()
    for step in (30, 2, 10):
        first.save(step)
    monkeypatch.setattr(time, "time", lambda: 10.0)
    second = start()
    second.save(4)
    second.store.close()
    assert second.ids() == ["4-ring", "10-ring", "2-ring"]
    assert start().ids() == second.ids()


def test_a_run_without_checkpoints_has_none(start: Callable[..., Process], tmp_path: Path) -> None:
    assert (start().ignored, start().ids()) == ([], [])
    (tmp_path / "checkpoints").mkdir()
    assert (start().ignored, start().ids()) == ([], [])


# What is ignored, with a word.


def test_what_is_not_whole_is_ignored_with_a_word(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    first = start(keep=99)
    for step in range(1, 9):
        first.save(step)
    first.store.close()

    (folder / "1-ring.json").unlink()
    with (folder / "2-ring.ckpt").open("ab") as file:
        file.truncate(100)
    size = json.loads((folder / "2-ring.json").read_bytes())["bytes"]
    (folder / "3-ring.json").write_text("{")
    (folder / "4-ring.json").write_text((folder / "5-ring.json").read_text())
    (folder / "5-ring.ckpt").unlink()
    (folder / "6-ring.ckpt").rename(tmp_path / "elsewhere")
    (folder / "6-ring.ckpt").symlink_to(tmp_path / "elsewhere")
    (folder / "7-ring.ckpt").unlink()
    (folder / "7-ring.ckpt").mkdir()
    (folder / "best.ckpt").write_text("a person's")
    (folder / "notes.json").write_text("a person's")
    os.mkfifo(folder / "pipe.ckpt")

    second = start()
    no_json = "has no JSON beside it that fits"
    assert second.ignored == [
        f"1-ring.ckpt is ignored: it {no_json}",
        f"2-ring.ckpt is ignored: it is damaged: it has 100 bytes, its JSON says {size:,}",
        f"3-ring.ckpt is ignored: it {no_json}",
        f"4-ring.ckpt is ignored: it {no_json}",
        "5-ring.json is ignored: its checkpoint is not there",
        "6-ring.ckpt is ignored: it is a link",
        "7-ring.ckpt is ignored: it is no regular file",
        f"best.ckpt is ignored: it {no_json}",
        "pipe.ckpt is ignored: it is no regular file",
    ]
    assert second.ids() == ["8-ring"]
    for step in range(10, 15):
        second.save(step)
    second.store.close()
    assert second.removed == ["8-ring", "10-ring", "11-ring"]
    left = {path.name for path in folder.iterdir()}
    assert {"1-ring.ckpt", "2-ring.ckpt", "6-ring.ckpt", "best.ckpt", "notes.json"} < left
    assert (tmp_path / "elsewhere").exists()


def test_half_written_files_of_ours_are_removed_and_nobody_elses(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    ours = ["1-ring.ckpt.part", "12-manual-3.json.part", "7-final.ckpt.part"]
    theirs = [
        "best.ckpt.part",
        "1-ring.part",
        "1-ring.ckpt.part.bak",
        "1-ring.ckpt.old.part",
        "1-other.ckpt.part",
        "x1-ring.ckpt.part",
        "1-ring.txt.part",
        "-1-ring.ckpt.part",
    ]
    for name in (*ours, *theirs):
        (folder / name).write_bytes(b"half")
    (folder / "2-ring.ckpt.part").mkdir()
    (tmp_path / "mine").write_bytes(b"a person's")
    (folder / "3-ring.ckpt.part").symlink_to(tmp_path / "mine")

    process = start()
    assert process.ignored == [
        "1-ring.ckpt.part was half-written and is removed",
        "12-manual-3.json.part was half-written and is removed",
        "2-ring.ckpt.part is ignored: it is no regular file",
        "3-ring.ckpt.part is ignored: it is no regular file",
        "7-final.ckpt.part was half-written and is removed",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*theirs, "2-ring.ckpt.part", "3-ring.ckpt.part"]
    )
    assert (tmp_path / "mine").read_bytes() == b"a person's"


def test_a_half_written_file_that_stays_is_said(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "1-ring.ckpt.part").write_bytes(b"half")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", denied)
    assert start().ignored == [
        "1-ring.ckpt.part is half-written and cannot be removed: Permission denied"
    ]


def test_a_folder_that_cannot_be_read_is_said_and_the_run_goes_on(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start().save(1)

    def denied(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", denied)
        second = start()
    folder = tmp_path / "checkpoints"
    assert second.ignored == [
        f"{folder} cannot be read (permission denied): no older checkpoint is known"
    ]
    second.save(2)
    assert second.ids() == ["2-ring"]


def test_a_file_in_the_place_of_the_folder_is_said(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("")
    [said] = start().ignored
    assert said.endswith("cannot be read (not a directory): no older checkpoint is known")
