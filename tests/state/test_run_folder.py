"""The folder of a run, and that cleaning takes nothing that is not ours."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from otf_core.state import run_folder
from otf_core.state.run_folder import (
    RunIsLiveError,
    RunLock,
    RunRecord,
    clean,
    find_checkpoint,
    make_run_folder,
    run_name_of,
    run_of,
    write_record,
)
from otf_core.state.store import Manifest


def make(
    save_dir: Path,
    name: str = "run",
    *,
    project: str = "project",
    ended: bool = True,
    pinned: bool = False,
    **more: Any,
) -> Path:
    """A run as one leaves it: a record, a journal, a checkpoint."""
    folder = make_run_folder(save_dir, project, name)
    fields = {"host": os.uname().nodename, "pid": 0, "ended_ts": 1.0 if ended else None, **more}
    write_record(
        folder,
        RunRecord(
            run_id=folder.name,
            run_name=name,
            project=project,
            session_ids=["sess-1"],
            **fields,
        ),
    )
    (folder / "journal").mkdir()
    (folder / "journal" / "sess-1.jsonl").write_text("{}\n")
    checkpoint(folder, "1-ring", pinned=pinned)
    return folder


def checkpoint(folder: Path, name: str, *, pinned: bool = False) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    manifest = Manifest(id=name, run_id="r", step=1, epoch=0, ts=1.0, kind="ring", pinned=pinned)
    (folder / "checkpoints" / f"{name}.json").write_bytes(msgspec.json.encode(manifest))
    (folder / "checkpoints" / f"{name}.ckpt").write_bytes(b"weights")


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_an_ended_run_goes_whole(tmp_path: Path) -> None:
    folder = make(tmp_path)

    removed, failed = clean(tmp_path, keep=None)

    assert [str(Path(p).relative_to(folder)) for p in removed] == [
        "checkpoints/1-ring.ckpt",
        "checkpoints/1-ring.json",
        "journal/sess-1.jsonl",
        "run.json",
    ]
    assert failed == []
    assert everything(tmp_path) == ["project"]


def test_a_file_that_we_did_not_write_stays_where_it_is(tmp_path: Path) -> None:
    folder = make(tmp_path)
    foreign = [
        tmp_path / "train.py",
        tmp_path / "project" / "notes.txt",
        folder / "mine.ckpt",
        folder / "checkpoints" / "best.ckpt",
        folder / "checkpoints" / "2-ring.ckpt",  # none of ours without its JSON
        folder / "checkpoints" / "other.json",
        folder / "journal" / "other.jsonl",
    ]
    for path in foreign:
        path.write_text("{}")
    (tmp_path / "other" / "thing").mkdir(parents=True)
    (tmp_path / "other" / "thing" / "run.json").write_text('{"name":"another tool"}')

    removed, _ = clean(tmp_path, keep=None)

    assert len(removed) == 4
    assert all(path.exists() for path in foreign)
    assert (tmp_path / "other" / "thing" / "run.json").exists()


def test_a_manifest_under_another_name_lists_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "checkpoints" / "1-ring.json").rename(folder / "checkpoints" / "fake.json")
    outside = Manifest(id="../../../train", run_id="r", step=1, epoch=0, ts=1, kind="ring")
    (folder / "checkpoints" / "train.json").write_bytes(msgspec.json.encode(outside))
    (tmp_path / "train.ckpt").write_text("mine")

    clean(tmp_path, keep=None)

    assert (tmp_path / "train.ckpt").exists()
    assert (folder / "checkpoints" / "1-ring.ckpt").exists()


def test_a_session_id_cannot_lead_out(tmp_path: Path) -> None:
    folder = make(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    record["session_ids"] = ["../../../train", "/etc/passwd"]
    (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "train.jsonl").write_text("mine")

    clean(tmp_path, keep=None)

    assert (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize("why", ["kept", "pinned", "this process", "other process", "other host"])
def test_a_run_that_is_wanted_stays_whole(tmp_path: Path, why: str) -> None:
    here = run_folder.this_process()
    alive = {"pid": here["pid"], "pid_started": here["pid_started"]}
    if why == "kept":
        folder = make(tmp_path)
    elif why == "pinned":
        folder = make(tmp_path, pinned=True)
    elif why == "this process":
        folder = make(tmp_path, ended=False, **alive)
    elif why == "other process":
        parent = psutil.Process(os.getppid())
        folder = make(tmp_path, ended=False, pid=parent.pid, pid_started=parent.create_time())
    else:
        folder = make(tmp_path, ended=False, host="another-node", pid=2**22 - 1)
    before = everything(tmp_path)

    assert clean(tmp_path, keep=folder if why == "kept" else None) == ([], [])
    assert everything(tmp_path) == before


@pytest.mark.parametrize("why", ["killed", "number taken by another"])
def test_a_run_whose_process_is_gone_goes(tmp_path: Path, why: str) -> None:
    if why == "killed":
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        started = psutil.Process(child.pid).create_time()
        child.kill()
        child.communicate()
        make(tmp_path, ended=False, pid=child.pid, pid_started=started)
    else:
        make(tmp_path, ended=False, pid=os.getpid(), pid_started=5.0)

    removed, failed = clean(tmp_path, keep=None)
    assert (len(removed), failed) == (4, [])


def test_a_process_that_may_not_be_looked_at_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    make(tmp_path, ended=False, pid=1)
    monkeypatch.setattr(psutil, "Process", denied)

    assert clean(tmp_path, keep=None) == ([], [])


@pytest.mark.parametrize("where", ["project", "run", "checkpoints", "journal", "file", "record"])
def test_a_link_is_not_followed_and_not_removed(tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "runs"
    theirs = make(outside)
    inside.mkdir()
    if where == "project":
        (inside / "project").symlink_to(outside / "project")
    elif where == "run":
        (inside / "project").mkdir()
        (inside / "project" / "run").symlink_to(theirs)
    else:
        ours = make(inside)
        target = {
            "checkpoints": "checkpoints",
            "journal": "journal",
            "file": "checkpoints/1-ring.ckpt",
            "record": "run.json",
        }[where]
        path = ours / target
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
        path.symlink_to(theirs / target)
    before = everything(outside)

    removed, _ = clean(inside, keep=None)

    assert everything(outside) == before
    assert all(str(outside) not in path for path in removed)


def test_a_save_dir_that_is_a_link_itself_is_the_users_own_choice(tmp_path: Path) -> None:
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert len(clean(tmp_path / "link", keep=None)[0]) == 4


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"run_id":1}', "\xff"])
def test_a_record_that_cannot_be_read_is_nobodys(tmp_path: Path, record: str) -> None:
    folder = make(tmp_path)
    (folder / "run.json").write_text(record)

    assert clean(tmp_path, keep=None) == ([], [])
    assert clean(tmp_path / "nowhere", keep=None) == ([], [])


def test_what_cannot_be_removed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path)
    unlink = Path.unlink

    def stuck(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".ckpt":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stuck)
    removed, failed = clean(tmp_path, keep=None)

    path = str(folder / "checkpoints" / "1-ring.ckpt")
    assert failed == [{"path": path, "error": "Permission denied"}]
    assert len(removed) == 3


# Making one.


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    names = [make_run_folder(tmp_path, "p", "run").name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my run", "my-run"),
        ("../../etc", "etc"),
        ("...", "run"),
        ("", "run"),
        ("a/b\\c", "a-b-c"),
        ("é", "run"),
        ("x" * 300, "x" * 100),
        ("v1.0_#2-", "v1.0_#2"),
    ],
)
def test_any_text_becomes_a_name(text: str, name: str) -> None:
    assert run_name_of(text) == name


def test_the_record_is_written_whole_and_comes_back(tmp_path: Path) -> None:
    record = RunRecord(
        run_id="r",
        run_name="n",
        project="p",
        session_ids=["s"],
        versions=run_folder.versions(),
        **run_folder.this_process(),
    )
    write_record(tmp_path, record)

    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=RunRecord) == record
    assert record.pid == os.getpid()
    assert "torch" in record.versions


# Who writes to it.


def test_a_run_is_written_by_one_session_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1234567 on a-machine-with-a-long-name-of-long-ago" * 3)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    first.acquire()
    host = os.uname().nodename
    said = f"{tmp_path.name} is written by process {os.getpid()} on {host}."
    for _ in range(2):
        with pytest.raises(RunIsLiveError, match=re.escape(said)):
            second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()
    assert (tmp_path / "lock").exists()


HOLD = """
import sys
from pathlib import Path
from otf_core.state.run_folder import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
input()
"""


def test_another_process_has_it_until_it_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    lock = RunLock(tmp_path)
    with pytest.raises(RunIsLiveError, match=f"process {child.pid} on "):
        lock.acquire()
    child.kill()
    child.communicate()
    lock.acquire()
    lock.release()


def test_a_forked_child_does_not_keep_it_and_does_not_free_it(tmp_path: Path) -> None:
    """As the workers of a DataLoader are forked, which may outlive a killed run."""
    lock, other = RunLock(tmp_path), RunLock(tmp_path)
    lock.acquire()
    up, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(up[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    try:
        assert os.read(up[0], 1) == b"x"
        with pytest.raises(RunIsLiveError):
            other.acquire()
        lock.release()
        other.acquire()
        other.release()
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for descriptor in (*up, *go):
            os.close(descriptor)


def test_a_lock_that_was_taken_away_while_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock, other = RunLock(tmp_path), RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(RunIsLiveError):
        other.acquire()
    lock.release()


def test_a_lock_that_cannot_be_made_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / "nowhere").acquire()
    (tmp_path / "mine").write_text("a person's")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        RunLock(tmp_path).acquire()
    (tmp_path / "lock").unlink()

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match="No locks available"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "mine").read_text() == "a person's"


def test_a_run_that_somebody_has_locked_is_not_cleaned_and_its_lock_goes_with_it(
    tmp_path: Path,
) -> None:
    folder = make(tmp_path)
    lock = RunLock(folder)
    lock.acquire()
    before = everything(tmp_path)
    assert clean(tmp_path, keep=None) == ([], [])
    assert everything(tmp_path) == before
    lock.release()
    removed, failed = clean(tmp_path, keep=None)
    assert (len(removed), failed) == (4, [])
    assert everything(tmp_path) == ["project"]


def test_a_run_that_cannot_be_locked_is_not_cleaned_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path)
    before = everything(folder)

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    failed = [{"path": str(folder / "lock"), "error": "No locks available"}]
    assert clean(tmp_path, keep=None) == ([], failed)
    assert everything(folder) == [*before[:-1], "lock", before[-1]]


# Which checkpoint a run is resumed from.


def whole(folder: Path, name: str, *, ts: float) -> Path:
    data = name.encode()
    manifest = Manifest(id=name, run_id="r", step=1, epoch=0, ts=ts, kind="ring", bytes=len(data))
    (folder / "checkpoints" / f"{name}.json").write_bytes(msgspec.json.encode(manifest))
    (folder / "checkpoints" / f"{name}.ckpt").write_bytes(data)
    return folder / "checkpoints" / f"{name}.ckpt"


def test_the_newest_whole_checkpoint_of_the_runs_with_this_name_is_found(tmp_path: Path) -> None:
    first, second, other = make(tmp_path), make(tmp_path), make(tmp_path, "other")
    assert find_checkpoint(tmp_path, "project", "run") is None, "those of make are not whole"
    whole(first, "9-ring", ts=50.0)
    path = whole(second, "3-ring", ts=70.0)
    whole(second, "4-ring", ts=60.0)
    whole(other, "5-ring", ts=99.0)

    found = find_checkpoint(tmp_path, "project", "run")
    assert found is not None
    assert (found[0], found[1].id, found[2]) == (second, "3-ring", path)
    path.write_bytes(b"cut")
    found = find_checkpoint(tmp_path, "project", "run")
    assert found is not None
    assert found[1].id == "4-ring"
    for project, name in (("project", "run-2"), ("projec*", "run"), ("*", "run"), ("x", "run")):
        assert find_checkpoint(tmp_path, project, name) is None
    assert find_checkpoint(tmp_path / "nowhere", "project", "run") is None


def test_a_project_may_be_called_anything(tmp_path: Path) -> None:
    folder = make(tmp_path, project="a[1]*")
    whole(folder, "9-ring", ts=50.0)
    found = find_checkpoint(tmp_path, "a[1]*", "run")
    assert found is not None
    assert found[0] == folder


@pytest.mark.parametrize("record", ["", "{}", "\xff"])
def test_a_run_whose_record_cannot_be_read_is_not_resumed(tmp_path: Path, record: str) -> None:
    folder = make(tmp_path)
    whole(folder, "9-ring", ts=50.0)
    (folder / "run.json").write_text(record)
    assert find_checkpoint(tmp_path, "project", "run") is None


def test_a_folder_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = make(tmp_path), make(tmp_path)
    for folder in (bad, good):
        whole(folder, "9-ring", ts=50.0)
    opened = os.open

    def denied(path: Any, *rest: Any) -> int:
        if f"{bad}/" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", denied)
    found = find_checkpoint(tmp_path, "project", "run")
    assert found is not None
    assert found[0] == good


def test_the_run_that_a_file_lies_in(tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = whole(folder, "9-ring", ts=50.0)
    (tmp_path / "last.ckpt").symlink_to(path)

    assert run_of(path) == folder
    assert run_of(tmp_path / "last.ckpt") == folder
    assert run_of(folder / "checkpoints" / "not-there.ckpt") == folder
    for elsewhere in (
        folder / "9-ring.ckpt",
        folder / "exports" / "9-ring.ckpt",
        tmp_path / "a.ckpt",
        folder / "checkpoints" / "deeper" / "a.ckpt",
        Path("/"),
        Path("a\0b"),
    ):
        assert run_of(elsewhere) is None
    (folder / "run.json").unlink()
    assert run_of(path) is None
