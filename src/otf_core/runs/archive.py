"""Runs as one file that another machine goes on from: run folders in a zip, stored, not packed.

Rule 1: ``contents.json``, the last member, lists every other one with size and SHA-256. What it
does not list, or lists otherwise, is refused by ``unarchive``.
Rule 2: a run that a process trains is not packed behind its back: its lock is held meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from otf_core import __version__
from otf_core.errors import OtfError
from otf_core.state import run_folder
from otf_core.state.manifest import SHARDS, UnfitError, opened, shards_beside
from otf_core.state.run_folder import RunIsLiveError, RunLock, RunRecord

Which = Literal["newest", "all"]
FORMAT: Final = 1
CONTENTS: Final = "contents.json"
PIECE_BYTES: Final = 4 * 1024 * 1024
TELL_S: Final = 0.25
MAX_JSON_BYTES: Final = 64 * 1024 * 1024
MAXMEMBERS: Final = 100_000
SPARE_BYTES: Final = 16 * 1024 * 1024  # of the disk, left free by an import
STAGED: Final = ".otf-import-"  # a folder in which runs are unpacked; no run has such a name
READY: Final = ".ready"  # verified: only the moves are left
_NAME: Final = r"[A-Za-z0-9_#-][A-Za-z0-9._#-]{0,119}"
MEMBER: Final = re.compile(
    rf"({_NAME})/(run\.json|results\.jsonl|journal/{_NAME}\.jsonl|checkpoints/{_NAME}\.(?:ckpt|json)"
    rf"|checkpoints/{_NAME}\.shards/(?:__\d+_\d+\.distcp|\.metadata))"
)


class ArchiveError(OtfError):
    """What was asked cannot be; says what was found, and that nothing has changed."""


class CancelledError(ArchiveError):
    """It was cancelled; nothing has changed."""


class Member(msgspec.Struct, frozen=True):
    """One file of the archive."""

    name: str
    bytes: int
    sha256: str


class PackedRun(msgspec.Struct, kw_only=True):
    """One run of the archive, for whoever only looks."""

    run_id: str
    run_name: str
    kind: str
    parents: list[str]
    step: int
    status: str | None
    checkpoints: list[str]


class Contents(msgspec.Struct, kw_only=True):
    """``contents.json``."""

    format: int
    version: str
    project: str
    made_ts: float
    host: str
    checkpoints: str
    runs: list[PackedRun]
    bytes: int  # of all members
    members: list[Member]

    @property
    def missing(self) -> list[str]:
        """Parents that are not in it."""
        here = {run.run_id for run in self.runs}
        return sorted({name for run in self.runs for name in run.parents} - here)


# Which runs.


def project_runs(project_dir: Path) -> dict[str, tuple[Path, RunRecord]]:
    """The runs of a project by their id."""
    found = {}
    for path in sorted(project_dir.glob("*/run.json")):
        record = run_folder.record_of(path.parent)
        if (
            record is not None
            and record.run_id == path.parent.name
            and not path.parent.is_symlink()
        ):
            found[record.run_id] = path.parent, record
    return found


def relatives(project_dir: Path, run_id: str) -> list[Path]:
    """The folders of a run and of all that it is related to: parents, forks, merges; oldest first.

    Raises:
        ArchiveError: there is no such run.
    """
    runs = project_runs(project_dir)
    if run_id not in runs:
        names = ", ".join(runs) or "none"
        msg = f"No run named {run_id[:120]!r} in {project_dir}; there are: {names[:400]}."
        raise ArchiveError(msg)
    near: dict[str, set[str]] = {name: set() for name in runs}
    for name, (_, record) in runs.items():
        for other in {*record.parents, record.journal or name} & runs.keys():
            near[name].add(other)
            near[other].add(name)
    found, waiting = {run_id}, [run_id]
    while waiting:
        new = near[waiting.pop()] - found
        found |= new
        waiting += new
    order = sorted(found, key=lambda name: (runs[name][1].started_ts, name))
    return [runs[name][0] for name in order]


# Packing.


class _Source(msgspec.Struct):
    """A file that is about to be packed; ``data`` where it is in memory already."""

    name: str
    path: Path
    size: int
    sha256: str | None = None  # that it must have
    data: bytes | None = None


def pack(
    folders: Sequence[Path],
    file: IO[bytes],
    *,
    checkpoints: Which = "newest",
    held: Collection[Path] = (),
    tell: Callable[[int, int], None] = lambda _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Contents:
    """Write runs of one project into a file that is empty.

    Args:
        checkpoints: of each run the one from which it goes on, or all that are whole.
        held: folders whose lock this process has already.
        tell: bytes done and of all; at most every ``TELL_S``.

    Raises:
        ArchiveError: a run is being trained by another process, or is damaged.
        OSError: the disk.
    """
    with contextlib.ExitStack() as locks:
        ours = {folder.resolve() for folder in held}
        for folder in folders:
            if folder.resolve() not in ours:
                _hold(folder, locks)
        runs, sources = [], []
        for folder in folders:
            run, files = _look(folder, checkpoints)
            runs.append(run)
            sources += files
        projects = {folder.parent.name for folder in folders}
        if len(projects) != 1:
            msg = f"Runs of {len(projects)} projects were asked; allowed: of one."
            raise ArchiveError(msg)
        contents = Contents(
            format=FORMAT,
            version=__version__,
            project=projects.pop(),
            made_ts=time.time(),
            host=os.uname().nodename,
            checkpoints=checkpoints,
            runs=runs,
            bytes=sum(source.size for source in sources),
            members=[],
        )
        told = Telling(tell, cancelled, contents.bytes)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            contents.members = [_write(archive, source, told) for source in sources]
            data = msgspec.json.format(msgspec.json.encode(contents))
            archive.writestr(_entry(CONTENTS), data)
    return contents


def _hold(folder: Path, locks: contextlib.ExitStack) -> None:
    lock = RunLock(folder)
    try:
        lock.acquire()
    except RunIsLiveError as error:
        msg = f"{error} Allowed: the same while nothing trains it, or by the run itself."
        raise ArchiveError(msg) from error
    except OSError as error:  # a disk that is only read, a file system without locks
        record = run_folder.record_of(folder)
        if record is None or run_folder.is_alive(record):
            msg = f"Whether {folder.name} is being trained cannot be told ({error.strerror})."
            raise ArchiveError(msg) from error
    locks.callback(lock.release)


def _look(folder: Path, which: Which) -> tuple[PackedRun, list[_Source]]:
    """What there is of a run."""
    try:
        data = (folder / "run.json").read_bytes()
        record = msgspec.json.decode(data, type=RunRecord)
    except (OSError, ValueError) as error:
        msg = f"{folder.name} is no run that can be read ({error})."
        raise ArchiveError(msg) from error
    name = folder.name
    sources = [_Source(f"{name}/run.json", folder / "run.json", len(data), data=data)]
    for path in (folder / "results.jsonl", *sorted((folder / "journal").glob("*.jsonl"))):
        with contextlib.suppress(UnfitError, FileNotFoundError), opened(path, follow=False) as file:
            size = _whole_lines(file)
            sources.append(_Source(f"{name}/{path.relative_to(folder)}", path, size))
    newest = run_folder.goes_on_from(folder, record)
    found = run_folder.complete_checkpoints(folder)
    if which == "newest":
        found = [newest] if newest is not None else []
    for manifest, name_of_it in found:
        path = Path(name_of_it)
        beside = path.with_suffix(".json")
        data = beside.read_bytes()
        at = f"{name}/checkpoints/{manifest.id}"
        sources.append(_Source(f"{at}.ckpt", path, manifest.bytes, sha256=manifest.sha256))
        sources.append(_Source(f"{at}.json", beside, len(data), data=data))
        for each in manifest.shards:
            place = shards_beside(path) / each.name
            name_in_it = f"{at}{SHARDS}/{each.name}"
            sources.append(_Source(name_in_it, place, each.bytes, sha256=each.sha256))
    strange = [source.name for source in sources if not MEMBER.fullmatch(source.name)]
    if strange:
        msg = f"{strange[0][:200]!r} is no name of a run folder's file."
        raise ArchiveError(msg)
    run = PackedRun(
        run_id=name,
        run_name=record.run_name,
        kind=record.kind,
        parents=record.parents,
        step=record.step,
        status=record.status,
        checkpoints=[manifest.id for manifest, _ in found],
    )
    return run, sources


def _whole_lines(file: IO[bytes]) -> int:
    """Bytes up to the end of the last line that is whole."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - PIECE_BYTES)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


class Telling:
    """Says now and then how far it is, and asks whether to go on."""

    def __init__(
        self, tell: Callable[[int, int], None], cancelled: Callable[[], bool], total: int = 0
    ) -> None:
        self._done, self.total = 0, total
        self._tell, self._cancelled = tell, cancelled
        self._told_s = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if self._cancelled():
            msg = f"It was cancelled after {self._done:,} of {self.total:,} bytes."
            raise CancelledError(msg)
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._tell(self._done, self.total)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def _write(archive: zipfile.ZipFile, source: _Source, told: Telling) -> Member:
    entry = _entry(source.name)
    entry.file_size = source.size  # so that it is known whether it needs zip64
    hashed = hashlib.sha256()
    with archive.open(entry, "w") as into, _reading(source) as file:
        left = source.size
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                msg = f"{source.path} has become shorter while it was read."
                raise ArchiveError(msg)
            hashed.update(piece)
            into.write(piece)
            left -= len(piece)
            told.add(len(piece))
    found = hashed.hexdigest()
    if source.sha256 not in (None, found):
        msg = f"{source.path} is damaged: its SHA-256 is not that of what was saved."
        raise ArchiveError(msg)
    return Member(source.name, source.size, found)


@contextlib.contextmanager
def _reading(source: _Source) -> Iterator[IO[bytes]]:
    if source.data is not None:
        yield io.BytesIO(source.data)
        return
    try:
        with opened(source.path, follow=False) as file:
            yield file
    except (UnfitError, FileNotFoundError) as why:
        msg = f"{source.path} cannot be read ({why})."
        raise ArchiveError(msg) from why
