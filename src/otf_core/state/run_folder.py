"""The folder of a run, ``<save_dir>/<project>/<run_id>/``, and the cleaning of old ones.

``run.json`` lists what is ours. Nothing else is ever removed: not a file that we did not write,
not a run that lives, not a run with a checkpoint that a person asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from otf_core.errors import OtfError
from otf_core.protocol import automatic_names
from otf_core.state.manifest import Manifest, UnfitError, complete, newest, shards_beside
from otf_core.transport import at_fork

LOCK: Final = "lock"
RESULTS: Final = "results.jsonl"
DECISIVE: Final = ("otf-lightning", "torch", "lightning", "numpy", "torchmetrics")


class RunRecord(msgspec.Struct, kw_only=True):
    """``run.json``: who, when, with what."""

    run_id: str
    run_name: str
    project: str
    session_ids: list[str]
    parents: list[str] = []
    kind: str = "base"  # or "fork", "merge"
    made: dict[str, Any] = {}  # of a run that was made from another: from what, and with which data
    journal: str | None = None  # the run in whose folder its events are written; None: its own
    pid: int = 0
    pid_started: float = 0.0  # tells a process from a later one with the same number
    host: str = ""
    started_ts: float = 0.0
    ended_ts: float | None = None
    status: str | None = None
    step: int = 0
    run_gen: int = 0  # of the newest event
    branch: int = 0  # how often another state was put in place
    base: str | None = None  # the checkpoint that this was, the last time
    exactness: dict[str, Any] = {}
    versions: dict[str, str] = {}


class RunIsLiveError(OtfError):
    """Another session writes to this run; says which process has it."""


class RunLock:
    """Who writes to a run: one session at a time, on all machines that share the disk.

    The kernel lets go of it when the process dies, however it dies.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it; training thread.

        Raises:
            RunIsLiveError: somebody else has it.
            OSError: the file cannot be made, or this file system has no locks.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while self._descriptor is None:
            descriptor = os.open(self._path, flags, 0o644)
            try:
                self._lock(descriptor)
                # Whoever cleans up may have taken the file away before it was locked.
                if _is_same_file(descriptor, self._path):
                    self._descriptor = descriptor
                    at_fork(self._leave_to_parent)
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            msg = f"{self._path.parent.name} is written by {holder or 'another process'}."
            raise RunIsLiveError(msg) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def release(self) -> None:
        """Let go; may be called twice. The file stays: another may be about to lock it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def held(self) -> bool:
        """Whether this object has it."""
        return self._descriptor is not None

    # A forked child, a worker of a DataLoader, would keep the run locked after its parent's death.
    _leave_to_parent = release


def named_folder(save_dir: Path, project: str, run_id: str) -> Path:
    """A new folder for a run of exactly this name.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be made.
    """
    folder = save_dir / project / run_id
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    return folder


def remove_new(folder: Path) -> None:
    """Take away a run's folder that has just been made; what is not ours in it stays."""
    record = record_of(folder)
    if record is not None:
        _remove(folder, record, [], [])
        return
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()


def run_name_of(text: str) -> str:
    """Any text as a run name: letters, digits, ``._#-``; at least one."""
    name = re.sub(r"[^A-Za-z0-9._#-]+", "-", text).strip("-.")[:100]
    return name or "run"


def make_run_folder(save_dir: Path, project: str, run_name: str) -> Path:
    """A new folder for a run: the name, or with ``-2``, ``-3`` … where it is taken.

    Raises:
        OSError: it cannot be made.
    """
    parent = save_dir / project
    parent.mkdir(parents=True, exist_ok=True)
    for name in automatic_names(run_name):
        try:
            (parent / name).mkdir()
        except FileExistsError:
            continue
        return parent / name
    raise AssertionError  # the names do not end


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``run.json`` whole or not at all. OSError as the disk has it."""
    part = folder / "run.json.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    part.replace(folder / "run.json")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, of those that are installed."""
    found = {name: _version(name) for name in DECISIVE}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache  # reading it takes a millisecond each, and every checkpoint has them
def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415, RUF100

    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def find_checkpoint(
    save_dir: Path, project: str, run_name: str | None
) -> tuple[Path, Manifest, Path] | None:
    """Where the newest of the runs with this name goes on, for ``resume="auto"``; see ``newest``.

    Args:
        run_name: None for any run of the project.

    Returns:
        The run's folder, what is known of the checkpoint, and its file; None where there is none.
    """
    best: tuple[float, Path, Manifest, Path] | None = None
    for folder, record in _runs(save_dir, glob.escape(project)):
        if record.project != project or run_name not in (None, record.run_name):
            continue
        found = list(_complete(folder))
        chosen = newest(found, record.branch, record.base)
        # Which run is the newest is told by all that it has, from which it goes on is not.
        at = max((manifest.ts for manifest, _ in found), default=0.0)
        if chosen is not None and (best is None or at > best[0]):
            best = at, folder, chosen[0], Path(chosen[1])
    return best[1:] if best is not None else None


def records(save_dir: Path, project: str | None) -> list[tuple[Path, RunRecord]]:
    """The runs of a project, or of all, that can be read, with their folders, oldest first."""
    found = _runs(save_dir, glob.escape(project)) if project is not None else _runs(save_dir)
    return sorted(found, key=lambda each: each[1].started_ts)


def complete_checkpoints(folder: Path | None) -> list[tuple[Manifest, str]]:
    """Those of a run that are whole, with their paths, oldest first."""
    found = list(_complete(folder)) if folder is not None else []
    return sorted(found, key=lambda each: each[0].ts)


def goes_on_from(folder: Path | None, record: RunRecord) -> tuple[Manifest, str] | None:
    """The checkpoint from which a run goes on; see ``newest``. None where there is none."""
    return newest(complete_checkpoints(folder), record.branch, record.base)


def run_of(path: Path) -> Path | None:
    """The run folder that a checkpoint's file lies in; None where it lies somewhere else."""
    try:
        path = Path(os.path.realpath(path))
    except ValueError:  # a zero byte in the name
        return None
    folder = path.parent.parent
    return folder if path.parent.name == "checkpoints" and record_of(folder) is not None else None


def clean(save_dir: Path, keep: Path | None) -> tuple[list[str], list[dict[str, str]]]:
    """Remove ended runs of ours below ``save_dir``.

    A run is left whole when it lives, when it is ``keep``, when a checkpoint of it is pinned, or
    when its ``run.json`` cannot be read. What it holds beside our files stays, folder included.

    Returns:
        The paths that went, and ``{path, error}`` for those that could not.
    """
    removed: list[str] = []
    failed: list[dict[str, str]] = []
    for folder, record in _runs(save_dir):
        if keep is not None and folder == keep.resolve():
            continue
        if is_alive(record) or any(m.pinned for m in _manifests(folder)):
            continue
        lock = RunLock(folder)
        try:
            lock.acquire()  # nobody resumes it while it goes
            _remove(folder, record, removed, failed)
        except RunIsLiveError:
            continue
        except OSError as error:
            failed.append({"path": str(folder / LOCK), "error": error.strerror or str(error)})
        finally:
            lock.release()
    return removed, failed


def _runs(save_dir: Path, project: str = "*") -> Iterator[tuple[Path, RunRecord]]:
    for path in sorted(save_dir.resolve().glob(f"{project}/*/run.json")):
        # A link, also one further up, may point at somebody else's folder.
        if path.resolve() != path:
            continue
        if (record := record_of(path.parent)) is not None:
            yield path.parent, record


def record_of(folder: Path) -> RunRecord | None:
    """What ``run.json`` says; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return msgspec.json.decode((folder / "run.json").read_bytes(), type=RunRecord)
    return None


def _complete(folder: Path) -> Iterator[tuple[Manifest, str]]:
    with contextlib.suppress(OSError):
        for path in sorted((folder / "checkpoints").glob("*.ckpt")):
            with contextlib.suppress(UnfitError, OSError):
                yield complete(path), str(path)


def _manifests(folder: Path) -> Iterator[Manifest]:
    for path in sorted((folder / "checkpoints").glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            if manifest.id == path.stem:
                yield manifest


def is_alive(record: RunRecord) -> bool:
    """Whether its process may live still; where that cannot be seen, it may."""
    if record.ended_ts is not None:
        return False
    if record.host != os.uname().nodename:
        return (
            True  # on another machine that shares the disk; whether it lives is not seen from here
        )
    try:
        return abs(psutil.Process(record.pid).create_time() - record.pid_started) < 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # there is one, and more is not said


def _remove(
    folder: Path, record: RunRecord, removed: list[str], failed: list[dict[str, str]]
) -> None:
    checkpoints = folder / "checkpoints"
    ours = [checkpoints / f"{m.id}{end}" for m in _manifests(folder) for end in (".ckpt", ".json")]
    shards = [
        (shards_beside(checkpoints / f"{m.id}.ckpt"), each.name)
        for m in _manifests(folder)
        for each in m.shards
    ]
    ours += [place / name for place, name in shards]
    ours += [folder / "journal" / f"{run_name_of(s)}.jsonl" for s in record.session_ids]
    ours += [folder / RESULTS, folder / "run.json"]
    for path in ours:
        # A link, also of a folder, leads out of what is ours.
        if not path.is_file() or path.resolve() != path:
            continue
        try:
            path.unlink()
        except OSError as error:
            failed.append({"path": str(path), "error": error.strerror or str(error)})
        else:
            removed.append(str(path))
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
    for empty in (*dict(shards), checkpoints, folder / "journal", folder):
        with contextlib.suppress(OSError):
            empty.rmdir()


def this_process() -> dict[str, Any]:
    """Process id and start, host name, as ``RunRecord`` has them."""
    return {
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "host": os.uname().nodename,
        "started_ts": time.time(),
    }


def _is_same_file(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
