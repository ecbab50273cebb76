"""An archive of runs is read and verified, and its runs put where they go on.

Rule 1: nothing that it says is believed: each name is one of a run folder's, each file has the size
and the SHA-256 of the list, and the list is that of the zip.
Rule 2: nothing that is there is overwritten. Runs are unpacked in a folder of their own, verified,
and moved to their places at the end; a process that is killed in between leaves whole runs or none,
and what it had verified is put in place by the next import.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import msgspec

from otf_core.protocol import run_name_problem
from otf_core.runs.archive import (
    CONTENTS,
    FORMAT,
    MEMBER,
    PIECE_BYTES,
    ArchiveError,
    Contents,
    Member,
    Telling,
)
from otf_core.state import run_folder
from otf_core.state.manifest import SHARDS, Manifest, UnfitError, opened
from otf_core.state.run_folder import RunIsLiveError, RunLock, RunRecord

MAX_JSON_BYTES: Final = 64 * 1024 * 1024
MAX_MEMBERS: Final = 100_000
SPARE_BYTES: Final = 16 * 1024 * 1024  # of the disk, left free by an import
STAGED: Final = ".otf-import-"  # a folder in which runs are unpacked; no run has such a name
READY: Final = ".ready"  # verified: only the moves are left
PLAIN_FLAGS: Final = 0x808  # sums behind the data, names in UTF-8
T = TypeVar("T")


class Unpacked(msgspec.Struct, kw_only=True):
    """What an import has put in place."""

    project: str
    folders: list[str]
    bytes: int
    missing: list[str]  # parents that are not in it


def unpack(
    path: Path,
    save_dir: Path,
    *,
    project: str | None = None,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Unpacked:
    """Put the runs of an archive below ``save_dir``, so that they go on there.

    Args:
        project: in place of the archive's own.

    Raises:
        ArchiveError: it is damaged, hostile or of a later version; a run is there already; the
            disk is too small. Nothing has changed.
        OSError: the disk.
    """
    try:
        with opened(path, follow=True) as file, _archive(file) as archive:
            contents, digest = _contents(archive)
            to = project or contents.project
            if (why := run_name_problem(to)) is not None:
                msg = f"A project named so cannot be: {why}."
                raise ArchiveError(msg)
            return _unpack(archive, contents, digest, save_dir.absolute() / to, tell)
    except FileNotFoundError as error:
        if error.filename not in (None, str(path)):
            raise
        msg = f"There is no file {path}."
        raise ArchiveError(msg) from None
    except UnfitError as why:
        msg = f"{path} {why}."
        raise ArchiveError(msg) from why
    except (zipfile.BadZipFile, EOFError) as error:
        msg = f"{path} is no whole archive of otf ({error})."
        raise ArchiveError(msg) from error


@contextlib.contextmanager
def _archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """The zip, of which nothing but the list was looked at."""
    try:
        archive = zipfile.ZipFile(file)
    except (ValueError, NotImplementedError, RuntimeError, OverflowError, OSError) as error:
        raise zipfile.BadZipFile(str(error)) from error
    with archive:
        yield archive


def _unpack(
    archive: zipfile.ZipFile,
    contents: Contents,
    digest: str,
    project_dir: Path,
    tell: Callable[[int, int], None],
) -> Unpacked:
    made = not project_dir.exists()
    run_ids = [run.run_id for run in contents.runs]
    done = Unpacked(
        project=project_dir.name,
        folders=[str(project_dir / run_id) for run_id in run_ids],
        bytes=contents.bytes,
        missing=contents.missing,
    )
    project_dir.mkdir(parents=True, exist_ok=True)
    try:
        there = digest in finish(project_dir)
        if there and all(Path(folder, "run.json").is_file() for folder in done.folders):
            return done
        _refuse_taken(project_dir, run_ids)
        free = shutil.disk_usage(project_dir).free
        if contents.bytes + SPARE_BYTES > free:
            msg = (
                f"It has {contents.bytes:,} bytes, and {free:,} are free on the disk of "
                f"{project_dir}; nothing was written."
            )
            raise ArchiveError(msg)
        stage = project_dir / f"{STAGED}{digest}"
        stage.mkdir(exist_ok=True)
        lock = RunLock(stage)
        try:
            lock.acquire()
            runs = stage / "runs"
            told = Telling(tell, lambda: False, contents.bytes)
            for member in contents.members:
                _extract(archive, member, runs / member.name, told)
            for run in contents.runs:
                _settle(runs / run.run_id, project_dir.name)
            _sync(runs)
            ready = stage.with_name(f"{stage.name}{READY}")
            stage.rename(ready)
            stage = ready
            _move(ready, project_dir, run_ids)
        except RunIsLiveError as error:
            msg = f"It is being imported already: {error}"
            raise ArchiveError(msg) from error
        finally:
            if lock.held:
                shutil.rmtree(stage, ignore_errors=True)
            lock.release()
    finally:
        if made:
            with contextlib.suppress(OSError):
                project_dir.rmdir()
    return done


def finish(project_dir: Path) -> list[str]:
    """Put in place what an import that was killed had verified; take away what it had not.

    Returns:
        Which archives are in place by that, by their digests.
    """
    done = []
    for stage in sorted(project_dir.glob(f"{STAGED}*")):
        lock = RunLock(stage)
        try:
            lock.acquire()
        except (RunIsLiveError, OSError):
            continue
        try:
            if stage.name.endswith(READY):
                run_ids = sorted(path.name for path in stage.glob("runs/*"))
                with contextlib.suppress(ArchiveError):  # somebody has made such a run meanwhile
                    _move(stage, project_dir, run_ids)
                done.append(stage.name.removeprefix(STAGED).removesuffix(READY))
            shutil.rmtree(stage, ignore_errors=True)
        finally:
            lock.release()
    return done


def _move(stage: Path, project_dir: Path, run_ids: Sequence[str]) -> None:
    moved: list[str] = []
    try:
        for run_id in run_ids:
            _refuse_taken(project_dir, [run_id])
            (stage / "runs" / run_id).rename(project_dir / run_id)
            moved.append(run_id)
    except BaseException:
        for run_id in moved:
            (project_dir / run_id).rename(stage / "runs" / run_id)
        raise
    _sync_folder(project_dir)


def _refuse_taken(project_dir: Path, run_ids: Sequence[str]) -> None:
    # Without regard to case: some disks have none.
    there = {name.casefold() for name in os.listdir(project_dir)}
    taken = [run_id for run_id in run_ids if run_id.casefold() in there]
    if taken:
        msg = (
            f"{project_dir} has {', '.join(taken)[:400]} already; nothing was imported. Allowed: "
            "another project (--as), another folder (--dir)."
        )
        raise ArchiveError(msg)


def _settle(folder: Path, project: str) -> None:
    """Of this project, and of no process that might live."""
    record = run_folder.record_of(folder)
    assert record is not None  # was decoded before
    newest = max((m.ts for m, _ in run_folder.complete_checkpoints(folder)), default=0.0)
    ended_ts = record.ended_ts or newest or record.started_ts
    here = {"pid": 0, "pid_started": 0.0, "ended_ts": ended_ts, "project": project}
    run_folder.write_record(folder, msgspec.structs.replace(record, **here))


def _extract(archive: zipfile.ZipFile, member: Member, path: Path, told: Telling) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed, left = hashlib.sha256(), member.bytes
    with archive.open(member.name) as file, path.open("xb") as into:
        while piece := file.read(min(PIECE_BYTES, left + 1)):
            left -= len(piece)
            if left < 0:
                break
            hashed.update(piece)
            into.write(piece)
            told.add(len(piece))
        into.flush()
        os.fsync(into.fileno())
    if left != 0 or hashed.hexdigest() != member.sha256:
        msg = f"It is damaged: the SHA-256 of {member.name} is not that of what was packed."
        raise ArchiveError(msg)


# What an archive says of itself, which nobody has to believe.


def read_contents(path: Path) -> Contents:
    """What is in an archive; its files are not verified.

    Raises:
        ArchiveError: it is none.
    """
    try:
        with opened(path, follow=True) as file, _archive(file) as archive:
            return _contents(archive)[0]
    except (FileNotFoundError, UnfitError, zipfile.BadZipFile, EOFError) as error:
        msg = f"{path} is no whole archive of otf ({error})."
        raise ArchiveError(msg) from error


def _contents(archive: zipfile.ZipFile) -> tuple[Contents, str]:
    """The list, checked against the zip and against itself; and its digest."""
    entries = _entries(archive)
    data = _small(archive, entries, CONTENTS)
    said = _decoded(data, dict[str, Any], CONTENTS)
    if said.get("format") != FORMAT:
        msg = f"It is of format {str(said.get('format'))[:20]!r}; this version reads {FORMAT}."
        raise ArchiveError(msg)
    contents = _decoded(data, Contents, CONTENTS)
    listed = {member.name: member for member in contents.members}
    if len(listed) != len(contents.members):
        msg = "It lists a file twice."
        raise ArchiveError(msg)
    if odd := (listed.keys() ^ entries.keys()) - {CONTENTS}:
        msg = f"{min(odd)[:120]!r} is not both in it and on its list."
        raise ArchiveError(msg)
    for name, member in listed.items():
        if not MEMBER.fullmatch(name) or entries[name].file_size != member.bytes:
            msg = f"{name[:120]!r} is no file of a run, or has another size than its list says."
            raise ArchiveError(msg)
    if contents.bytes != sum(member.bytes for member in contents.members):
        msg = "Its files have another size than it says."
        raise ArchiveError(msg)
    _check_runs(archive, entries, contents, listed)
    return contents, hashlib.sha256(data).hexdigest()[:16]


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What the zip itself lists: regular files, stored, each name once, no more bytes than it."""
    found: dict[str, zipfile.ZipInfo] = {}
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS:
        msg = f"It lists {len(entries):,} files; at most {MAX_MEMBERS:,} are read."
        raise ArchiveError(msg)
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & ~PLAIN_FLAGS
        if kind not in (0, stat.S_IFREG) or not plain or entry.file_size != entry.compress_size:
            msg = f"{entry.orig_filename[:120]!r} in it is no plain file that was stored."
            raise ArchiveError(msg)
        if entry.orig_filename != entry.filename or entry.filename.casefold() in found:
            msg = f"{entry.orig_filename[:120]!r} in it is there twice, or is no name."
            raise ArchiveError(msg)
        found[entry.filename.casefold()] = entry
    assert archive.fp is not None
    size = archive.fp.seek(0, os.SEEK_END)
    inside = all(0 <= entry.header_offset < size for entry in entries)
    if not inside or sum(entry.file_size for entry in entries) > size:
        msg = "Its files have more bytes than it has."
        raise ArchiveError(msg)
    return {entry.filename: entry for entry in entries}


def _check_runs(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    contents: Contents,
    listed: dict[str, Member],
) -> None:
    """Each run has its ``run.json``, and each checkpoint the JSON that it fits."""
    names = [name.partition("/") for name in listed]
    run_ids = {run.run_id for run in contents.runs}
    if {run_id for run_id, _, _ in names} != run_ids or len(run_ids) != len(contents.runs):
        msg = "It lists other runs than it has files of."
        raise ArchiveError(msg)
    for run_id in sorted(run_ids):
        name = f"{run_id}/run.json"
        record = _decoded(_small(archive, entries, name), RunRecord, name)
        others = [*record.parents, *([record.journal] if record.journal is not None else [])]
        if record.run_id != run_id or any(run_name_problem(other) for other in others):
            msg = f"{name} in it is of another run."
            raise ArchiveError(msg)
    shards: dict[str, set[tuple[str, int, str]]] = {}
    for name in listed:
        stem, _, ending = name.rpartition(".")
        if ending not in ("ckpt", "json") or name.endswith("/run.json"):
            continue
        file, beside = listed.get(f"{stem}.ckpt"), listed.get(f"{stem}.json")
        if file is None or beside is None:
            msg = f"{name} in it is half of a checkpoint."
            raise ArchiveError(msg)
        manifest = _decoded(_small(archive, entries, beside.name), Manifest, beside.name)
        wanted = manifest.id, manifest.bytes, manifest.sha256
        if wanted != (stem.rpartition("/")[2], file.bytes, file.sha256):
            msg = f"{name} in it does not fit the other half of its checkpoint."
            raise ArchiveError(msg)
        shards[f"{stem}{SHARDS}/"] = {(s.name, s.bytes, s.sha256) for s in manifest.shards}
    for name in listed:
        at, found, _ = name.partition(f"{SHARDS}/")
        if found and f"{at}{SHARDS}/" not in shards:
            msg = f"{name} in it is of no checkpoint."
            raise ArchiveError(msg)
    for at, wanted_shards in shards.items():
        there = [member for name, member in listed.items() if name.startswith(at)]
        if {(m.name.removeprefix(at), m.bytes, m.sha256) for m in there} != wanted_shards:
            msg = f"{at} in it does not fit its checkpoint."
            raise ArchiveError(msg)


def _small(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    entry = entries.get(name)
    if entry is None or entry.file_size > MAX_JSON_BYTES:
        msg = f"{name} is not in it, or is larger than any is."
        raise ArchiveError(msg)
    return archive.read(entry)


def _decoded(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        msg = f"{name} in it cannot be read ({str(error)[:200]})."
        raise ArchiveError(msg) from error


def _sync(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
