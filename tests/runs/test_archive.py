"""Runs become one file, and come back whole from it or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from otf_core.runs import archive, unarchive
from otf_core.runs.archive import ArchiveError, CancelledError, pack, relatives
from otf_core.runs.unarchive import unpack
from otf_core.state.run_folder import RunLock, find_checkpoint, is_alive
from otf_core.state.run_folder import record_of as read_record
from tests.runs.folders import files, record_of, run_folder

EVENTS = [{"type": "newRun", "event_seq": 1}, {"type": "trainStep", "event_seq": 2}]


def project(save_dir: Path) -> Path:
    """A run that was killed, its fork, a merge of both, and a run that is none of theirs."""
    at = save_dir / "demo"
    run_folder(
        at, "base", events=EVENTS, checkpoints={"0-auto": b"a" * 100, "5-pause": b"b" * 90},
        pid=1, host="another", step=5,
    )  # fmt: skip
    run_folder(
        at, "fork1", parents=["base"], kind="fork", journal="base", started_ts=60.0,
        checkpoints={"9-final": b"c" * 50}, status="completed", ended_ts=99.0,
    )  # fmt: skip
    run_folder(at, "merge1", parents=["base", "fork1"], kind="merge", started_ts=70.0)
    run_folder(at, "stranger", checkpoints={"1-ring": b"d"})
    return at


def packed(path: Path, folders: list[Path], **options: Any) -> archive.Contents:
    with path.open("xb") as file:
        return pack(folders, file, **options)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An archive of the family."""
    at = project(tmp_path / "there")
    packed(tmp_path / "a.zip", relatives(at, "merge1"), checkpoints="all")
    return tmp_path / "a.zip"


def test_the_relatives_are_all_of_the_family_and_no_others(tmp_path: Path) -> None:
    at = project(tmp_path)
    for name in ("base", "fork1", "merge1"):
        assert [path.name for path in relatives(at, name)] == ["base", "fork1", "merge1"]
    assert [path.name for path in relatives(at, "stranger")] == ["stranger"]
    with pytest.raises(ArchiveError, match=r"No run named 'none'.*base, fork1"):
        relatives(at, "none")


def test_what_was_packed_comes_back_byte_for_byte(made: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    found = unpack(made, here)
    assert found.folders == [str(here / "demo" / name) for name in ("base", "fork1", "merge1")]
    assert found.missing == []
    for name in ("base", "fork1", "merge1"):
        there, back = files(tmp_path / "there/demo" / name), files(here / "demo" / name)
        assert there.pop("run.json")
        assert back.pop("run.json")
        assert there == back
    assert sorted(os.listdir(here / "demo")) == ["base", "fork1", "merge1"]


def test_a_run_that_was_packed_while_it_lived_does_not_look_alive(
    made: Path, tmp_path: Path
) -> None:
    there, here = tmp_path / "there/demo/base", tmp_path / "here/demo/base"
    unpack(made, tmp_path / "here")
    record = read_record(here)
    assert record is not None
    assert (is_alive(read_record(there)), is_alive(record)) == (True, False)  # type: ignore[arg-type]
    changed = {key for key, value in record_of(there).items() if record_of(here)[key] != value}
    assert changed == {"pid", "ended_ts"}
    found = find_checkpoint(tmp_path / "here", "demo", "digits")
    assert found is not None
    assert found[1].id == "5-pause"


def test_it_goes_beside_as_another_project(made: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    before = files(there)
    with pytest.raises(ArchiveError, match="has base, fork1, merge1 already; nothing was imported"):
        unpack(made, there)
    assert unpack(made, there, project="other").project == "other"
    assert record_of(there / "other/fork1")["project"] == "other"
    after = files(there)
    assert {name: after[name] for name in before} == before
    with pytest.raises(ArchiveError, match="no run name"):
        unpack(made, there, project="../up")


def test_the_newest_checkpoint_alone_is_packed_unless_all_are_asked(tmp_path: Path) -> None:
    at = project(tmp_path)
    found = packed(tmp_path / "a.zip", [at / "base"])
    assert [run.checkpoints for run in found.runs] == [["5-pause"]]
    found = packed(tmp_path / "b.zip", [at / "fork1"], checkpoints="all")
    assert found.missing == ["base"]
    assert unarchive.read_contents(tmp_path / "b.zip").missing == ["base"]


def test_half_a_line_and_half_a_checkpoint_are_left_out(tmp_path: Path) -> None:
    at = project(tmp_path)
    journal = at / "base/journal/sess-base.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"type": "trai')
    (at / "base/checkpoints/5-pause.ckpt").write_bytes(b"b" * 89)
    (at / "base/checkpoints/7-ring.ckpt.part").write_bytes(b"half")
    (at / "base/journal/sess-x.jsonl").symlink_to("/etc/passwd")
    packed(tmp_path / "a.zip", [at / "base"], checkpoints="all")
    unpack(tmp_path / "a.zip", tmp_path / "here")
    back = files(tmp_path / "here/demo/base")
    assert back["journal/sess-base.jsonl"] == whole
    assert sorted(back) == [
        "checkpoints/0-auto.ckpt", "checkpoints/0-auto.json", "journal/sess-base.jsonl", "run.json",
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_not_packed(tmp_path: Path) -> None:
    at = project(tmp_path)
    (at / "base/checkpoints/5-pause.ckpt").write_bytes(b"x" * 90)
    with pytest.raises(ArchiveError, match=r"5-pause\.ckpt is damaged"):
        packed(tmp_path / "a.zip", [at / "base"])


def test_a_run_that_is_being_trained_is_packed_by_its_own_process_alone(tmp_path: Path) -> None:
    at = project(tmp_path)
    lock = RunLock(at / "base")
    lock.acquire()
    try:
        with pytest.raises(ArchiveError, match="base is written by process"):
            packed(tmp_path / "a.zip", relatives(at, "base"))
        assert packed(tmp_path / "b.zip", [at / "base"], held=[at / "base"]).runs
    finally:
        lock.release()


def test_it_says_how_far_it_is_and_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = project(tmp_path)
    monkeypatch.setattr(archive, "TELL_S", 0.0)
    told: list[tuple[int, int]] = []
    total = packed(tmp_path / "a.zip", [at / "base"], tell=lambda *n: told.append(n)).bytes
    assert told[-1] == (total, total)
    assert [n for n, _ in told] == sorted({n for n, _ in told})
    with pytest.raises(CancelledError, match="was cancelled after"):
        packed(tmp_path / "b.zip", [at / "base"], cancelled=lambda: True)
    told.clear()
    unpack(tmp_path / "a.zip", tmp_path / "here", tell=lambda *n: told.append(n))
    assert told[-1] == (total, total)


# What is hostile.


def rebuilt(
    made: Path,
    change: Callable[[dict[str, bytes], dict[str, Any]], None],
    *,
    relist: bool = True,
) -> Path:
    """The archive with other members; the list says what they are by then, if it is to."""
    with zipfile.ZipFile(made) as old:
        members = {name: old.read(name) for name in old.namelist()}
    contents = json.loads(members.pop("contents.json"))
    change(members, contents)
    if relist:
        contents["members"] = [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items()
        ]
        contents["bytes"] = sum(map(len, members.values()))
    path = made.with_name("hostile.zip")
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
        new.writestr("contents.json", json.dumps(contents))
    return path


def _add(name: str) -> Any:
    return lambda members, _: members.update({name: b"evil"})


def _edit(name: str, old: bytes, new: bytes) -> Any:
    def change(members: dict[str, bytes], _: Any) -> None:
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *((_add(name), "no file of a run") for name in (
            "/etc/cron.d/x", "../../x", "base/../../x", "base/checkpoints/../../../x", "C:\\x",
            "base\\run.json", "base/journal/../x.jsonl", "base/lock", "base/x.py", ".ssh/run.json",
            "base/checkpoints/x.ckpt/y.ckpt", "base//run.json", "base/run.json\n",
        )),
        (_add("base/RUN.JSON"), "there twice"),
        (_add("BASE/run.json"), "there twice"),
        (_add("more/run.json"), "other runs than it has files of"),
        (_add("base/checkpoints/3-ring.ckpt"), "half of a checkpoint"),
        (lambda members, _: members.pop("base/run.json"), "base/run.json is not in it"),
        (_edit("base/run.json", b'"run_id": "base"', b'"run_id": "other"'), "of another run"),
        (_edit("fork1/run.json", b'"journal": "base"', b'"journal": "../x"'), "of another run"),
        (_edit("base/run.json", b"{", b"[", ), "cannot be read"),
        (_edit("base/checkpoints/5-pause.ckpt", b"b", b"x"), "other half"),
        (lambda _, contents: contents.update(format=2), "of format '2'; this version reads 1"),
        (lambda _, contents: contents.update(project="../.."), "no run name"),
        (lambda _, contents: contents["runs"].append(contents["runs"][0]), "other runs"),
    ],
)  # fmt: skip
def test_what_is_no_run_folder_is_refused(
    change: Any, why: str, made: Path, tmp_path: Path
) -> None:
    before = files(tmp_path)
    hostile = rebuilt(made, change)
    with pytest.raises(ArchiveError, match=why):
        unpack(hostile, tmp_path / "here/deep")
    hostile.unlink()
    assert files(tmp_path) == before
    assert not list((tmp_path / "here/deep").glob("*/*"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_edit("base/journal/sess-base.jsonl", b"trainStep", b"trainStop"), "is damaged"),
        (_add("base/journal/s.jsonl"), "not both in it and on its list"),
        (lambda members, _: members.pop("fork1/run.json"), "not both in it and on its list"),
        (_edit("base/journal/sess-base.jsonl", b"trainStep", b"t"), "another size"),
        (lambda _, contents: contents.update(bytes=1), "another size than it says"),
        (lambda _, contents: contents["members"].append(contents["members"][0]), "a file twice"),
    ],
)
def test_what_is_not_as_the_list_says_is_refused(
    change: Any, why: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match=why):
        unpack(rebuilt(made, change, relist=False), tmp_path / "here")
    assert not (tmp_path / "here/demo").exists()


def _zip(path: Path, **how: Any) -> Path:
    entry = zipfile.ZipInfo(how.pop("name", "base/run.json"))
    for key, value in how.items():
        setattr(entry, key, value)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(entry, b"0" * 100_000)
        file.writestr("contents.json", b"{}")
    return path


def test_links_devices_and_what_swells_are_refused(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    for how in (
        {"external_attr": 0o120777 << 16},
        {"external_attr": 0o020666 << 16},
        {"external_attr": 0o040755 << 16, "name": "base/"},
        {"compress_type": zipfile.ZIP_DEFLATED},
    ):
        with pytest.raises(ArchiveError, match="no plain file that was stored"):
            unpack(_zip(path, **how), tmp_path / "here")
        path.unlink()
    raw = _zip(path).read_bytes()
    # One local file that the list has many times over: bytes that the archive does not have.
    begin = raw.index(b"PK\x01\x02")
    row = raw[begin : raw.index(b"PK\x01\x02", begin + 4)]
    rows = b"".join(row.replace(b"base/run.json", b"ba%02d/run.json" % n) for n in range(50))
    end = bytearray(raw[raw.index(b"PK\x05\x06") :])
    end[8:12] = (50).to_bytes(2, "little") * 2
    end[12:16] = len(rows).to_bytes(4, "little")
    path.write_bytes(raw[:begin] + rows + end)
    with pytest.raises(ArchiveError, match="more bytes than it has"):
        unpack(path, tmp_path / "here")


def test_what_is_no_archive_is_refused(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    path = tmp_path / "x.zip"
    for data in (b"", b"PK", whole[:-30], whole[: len(whole) // 2], b"x" * 5000):
        path.write_bytes(data)
        with pytest.raises(ArchiveError, match="no whole archive of otf"):
            unpack(path, tmp_path / "here")
    with pytest.raises(ArchiveError, match="There is no file"):
        unpack(tmp_path / "none.zip", tmp_path / "here")
    with pytest.raises(ArchiveError, match="is no regular file"):
        unpack(tmp_path, tmp_path / "here")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train.py", b"")
    with pytest.raises(ArchiveError, match=r"contents\.json is not in it"):
        unpack(path, tmp_path / "here")
    assert not (tmp_path / "here").exists() or not os.listdir(tmp_path / "here")


def test_any_byte_that_has_changed_is_found_or_does_not_matter(tmp_path: Path) -> None:
    packed(tmp_path / "a.zip", [project(tmp_path / "there") / "base"])
    whole = (tmp_path / "a.zip").read_bytes()
    good = {
        name: data
        for name, data in files(tmp_path / "there/demo").items()
        if "run.json" not in name
    }
    path, here = tmp_path / "x.zip", tmp_path / "here"
    listed = whole.index(b"PK\x01\x02")
    for at in (*range(0, listed, 13), *range(listed, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x60]) + whole[at + 1 :])
        try:
            unpack(path, here / str(at))
        except ArchiveError:
            assert not list(here.glob(f"{at}/*/*"))
        else:
            back = files(here / str(at) / "demo")
            assert back
            assert all(good[n] == data for n, data in back.items() if "run.json" not in n)


# What fails half way.


def test_a_disk_that_is_too_small_is_not_begun_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(unarchive.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ArchiveError, match="and 1 are free on the disk"):
        unpack(made, tmp_path / "here")
    assert not (tmp_path / "here/demo").exists()


def test_a_disk_that_fails_leaves_nothing(made: Path, tmp_path: Path) -> None:
    for n in range(8):
        calls = iter(range(100))

        def fails(_: int, n: int = n, calls: Any = calls) -> None:
            if next(calls) == n:
                raise OSError(28, "No space left on device")

        with mock.patch.object(unarchive.os, "fsync", fails), pytest.raises(OSError, match="space"):
            unpack(made, tmp_path / "here")
        assert not (tmp_path / "here/demo").exists()


class Full(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() > 300:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_ends_the_packing(tmp_path: Path) -> None:
    at = project(tmp_path)
    before = files(at)
    with pytest.raises(OSError, match="No space left"):
        pack([at / "base"], Full(), checkpoints="all")
    assert files(at) == before
    assert packed(tmp_path / "a.zip", [at / "base"]).runs  # its lock was let go


KILLED = """
import os, sys
from pathlib import Path
from otf_core.runs import unarchive
left = int(sys.argv[3])
def counting(real):
    def call(*args, **more):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args, **more)
    return call
os.fsync, Path.rename, os.open = counting(os.fsync), counting(Path.rename), counting(os.open)
unarchive.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
print(10**6 - left)
"""


def test_a_process_that_is_killed_anywhere_leaves_whole_runs_or_none(
    made: Path, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (here / "demo").mkdir(parents=True)
    wanted = {n: d for n, d in files(there / "demo").items() if not n.startswith("stranger")}

    def run(left: int) -> subprocess.CompletedProcess[str]:
        args = [sys.executable, "-c", KILLED, str(made), str(here), str(left)]
        return subprocess.run(args, check=False, capture_output=True, text=True)

    def clear() -> None:
        assert sorted(files(here / "demo")) == sorted(wanted)
        shutil.rmtree(here)
        (here / "demo").mkdir(parents=True)

    calls = int(run(10**6).stdout)
    clear()
    for left in (0, 5, 12, *range(calls - 8, calls)):
        assert run(left).returncode == 9
        for there_now in (here / "demo").glob("[!.]*"):
            prefix = f"{there_now.name}/"
            own = [name.removeprefix(prefix) for name in wanted if name.startswith(prefix)]
            assert sorted(files(there_now)) == sorted(own)
        assert unpack(made, here).project == "demo"
        clear()
