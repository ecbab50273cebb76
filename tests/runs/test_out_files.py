"""A file that a person asks for lies where it may, whole or not at all, and in nobody's place."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.out_files import OutFiles


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "home"
    found.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(found))
    monkeypatch.chdir(work)
    return found


@pytest.fixture
def files(home: Path, tmp_path: Path) -> OutFiles:
    return OutFiles(lambda: run_dir(tmp_path, "run"))


def run_dir(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "runs" / "project" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(files: OutFiles, asked: str | Path | None, text: bytes = b"one") -> Path:
    out = files.file(None if asked is None else str(asked), name="run-step3", ending=".csv")
    with out.write() as file:
        file.write(text)
    assert out.bytes == len(text)
    assert out.path.read_bytes() == text
    return out.path


def refused(files: OutFiles, asked: str | Path, ending: str = ".csv") -> str:
    with pytest.raises(CommandError) as caught:
        files.file(str(asked), name="run", ending=ending)
    assert caught.value.code is ErrorCode.BAD_PAYLOAD
    assert caught.value.field == "out_path"
    return caught.value.detail


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_without_a_name_it_lies_in_the_run_folder_and_takes_nobodys_place(
    files: OutFiles, tmp_path: Path
) -> None:
    exports = run_dir(tmp_path, "run") / "exports"
    assert write(files, None) == exports / "run-step3.csv"
    assert write(files, None, b"two") == exports / "run-step3-2.csv"
    assert everything(exports) == ["run-step3-2.csv", "run-step3.csv", "written.json"]


def test_a_file_below_home_or_the_working_directory_is_written(files: OutFiles, home: Path) -> None:
    assert write(files, home / "a.csv") == home / "a.csv"
    assert write(files, "b.CSV") == home.parent / "work" / "b.CSV"
    assert everything(home) == ["a.csv"]  # nothing of ours beside it


def test_an_earlier_one_of_ours_is_replaced_by_another_session_and_another_run_too(
    files: OutFiles, home: Path, tmp_path: Path
) -> None:
    write(files, home / "a.csv")
    write(files, home / "a.csv", b"second")
    write(OutFiles(lambda: run_dir(tmp_path, "run")), home / "a.csv", b"third")
    write(OutFiles(lambda: run_dir(tmp_path, "fork1")), home / "a.csv", b"fourth")
    assert everything(home) == ["a.csv"]


def test_without_a_run_folder_a_named_one_is_written_and_replaced(home: Path) -> None:
    files = OutFiles(lambda: None)
    write(files, home / "a.csv")
    write(files, home / "a.csv", b"second")
    with pytest.raises(CommandError) as caught:
        write(files, None)
    assert caught.value.code is ErrorCode.NOT_ALLOWED_NOW


@pytest.mark.parametrize("change", ["edited", "replaced", "link"])
def test_what_is_not_as_we_left_it_stays(files: OutFiles, home: Path, change: str) -> None:
    path = write(files, home / "a.csv")
    if change == "edited":
        path.write_bytes(b"mine")
    elif change == "replaced":
        (home / "b").write_bytes(b"one")
        os.replace(home / "b", path)
    else:
        path.rename(home / "b")
        path.symlink_to(home / "b")
    before = path.read_bytes()
    assert "not as an export left it" in refused(files, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("/etc/otf.csv", "a file below"),
        ("../other/a.csv", "a file below"),
        ("linked/a.csv", "a file below"),
        ("a.txt", "ends in '.txt'"),
        (".csv", "ends in ''"),
        ("..csv", "ends in"),
        ("", "ends in ''"),
        ("a.csv/", "is there already"),
        ("a.csv/b.csv", "a folder that is there"),
        ("none/a.csv", "a folder that is there"),
        ("folder.csv", "is there already"),
        ("pipe.csv", "is there already"),
        ("dangling.csv", "is there already"),
        ("a\0.csv", "cannot be looked up"),
        ("/proc/self/fd/1", "a file below"),
        ("a" * 300 + ".csv", "cannot be looked up"),
    ],
)
def test_a_path_that_is_not_allowed_is_refused(
    files: OutFiles, home: Path, asked: str, why: str
) -> None:
    work, other = Path.cwd(), home.parent / "other"
    other.mkdir()
    (work / "linked").symlink_to(other)
    (work / "dangling.csv").symlink_to(work / "nowhere.csv")
    (work / "folder.csv").mkdir()
    (work / "a.csv").write_bytes(b"mine")
    os.mkfifo(work / "pipe.csv")
    before = everything(home.parent)
    assert why in refused(files, asked)
    assert everything(home.parent) == before


def test_where_all_is_below_home_nothing_is_allowed(
    files: OutFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/")
    assert "below" in refused(files, "/etc/otf.csv")


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), ValueError()])
@pytest.mark.parametrize("earlier", [True, False])
def test_what_is_not_finished_is_not_there(
    files: OutFiles, home: Path, stop: Exception, earlier: bool
) -> None:
    if earlier:
        write(files, home / "a.csv")
    before = everything(home)

    def half() -> None:
        with files.file(str(home / "a.csv"), name="run", ending=".csv").write() as file:
            file.write(b"half")
            raise stop

    with pytest.raises(CommandError if isinstance(stop, OSError) else ValueError) as caught:
        half()
    if isinstance(stop, OSError):
        assert "no space left on device" in str(caught.value)
    assert everything(home) == before
    if earlier:
        assert (home / "a.csv").read_bytes() == b"one"
        write(files, home / "a.csv", b"again")


def test_a_list_that_cannot_be_written_refuses_the_file(
    files: OutFiles, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: OutFiles, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(OutFiles, "note", full)
    with pytest.raises(CommandError):
        write(files, home / "a.csv")
    assert everything(home) == []


def test_a_file_that_comes_meanwhile_stays(files: OutFiles, home: Path) -> None:
    def ours() -> None:
        with files.file(str(home / "a.csv"), name="run", ending=".csv").write() as file:
            file.write(b"ours")
            (home / "a.csv").write_bytes(b"theirs")

    with pytest.raises(CommandError) as caught:
        ours()
    assert "meanwhile" in caught.value.detail
    assert (home / "a.csv").read_bytes() == b"theirs"
    assert everything(home) == ["a.csv"]


def test_without_hard_links_it_is_written_too(
    files: OutFiles, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    write(files, home / "a.csv")
    assert everything(home) == ["a.csv"]
