"""Checkpoints on the disk: written whole or not there.

A checkpoint is one file ``<id>.ckpt`` with ``<id>.json`` beside it. The file is written under
another name, fsynced and renamed; the JSON, with size and SHA-256, comes last, and a checkpoint
without a fitting one does not exist.

Rule 1: the training thread copies, the thread ``otf-saver`` writes.
Rule 2: nothing is deleted that no manifest of ours lists.
Rule 3: a disk that fails refuses the command; what was saved before stays whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import msgspec
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.host_pool import HostPool

Kind = Literal["ring", "pause", "manual", "auto", "final"]
MAX_WAITING: Final = 2  # copies in host memory that wait for the disk


class Manifest(msgspec.Struct, kw_only=True):
    """What ``<id>.json`` says of ``<id>.ckpt``; ``bytes`` and ``sha256`` are those of the file."""

    id: str
    run_id: str
    step: int
    epoch: int
    ts: float
    kind: str
    pinned: bool = False
    exact: bool = False
    bytes: int = 0
    sha256: str = ""


@dataclasses.dataclass
class Pending:
    """A checkpoint on its way to the disk; any thread."""

    manifest: Manifest
    path: str
    error: CommandError | None = None
    _done: threading.Event = dataclasses.field(default_factory=threading.Event)
    _calls: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """The checkpoint's id: its file name without the ending."""
        return self.manifest.id

    @property
    def step(self) -> int:
        """Steps done when it was taken."""
        return self.manifest.step

    def wait(self, timeout_s: float) -> bool:
        """Whether it is complete, or has failed, by then."""
        return self._done.wait(None if math.isinf(timeout_s) else timeout_s)

    def then(self, call: Callable[[], None]) -> None:
        """Run ``call`` once when it is done; at once if it is already."""
        with self._lock:
            if not self._done.is_set():
                self._calls.append(call)
                return
        call()

    def settle(self, error: CommandError | None) -> None:
        """Tell everybody who waits; otf-saver."""
        with self._lock:
            self.error = error
            self._done.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved. None: nothing can be saved.
        keep: how many of kind ``ring``, ``pause`` and ``auto`` are kept; the oldest go.
        on_saved, on_removed: told on otf-saver, with manifest and path.
        on_error: told the traceback-free sentence when a file could not be written.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        keep: int,
        on_saved: Callable[[Manifest, str], None],
        on_removed: Callable[[Manifest, str], None],
    ) -> None:
        self._folder, self._keep = folder, keep
        self._on_saved, self._on_removed = on_saved, on_removed
        self._lock = threading.Lock()
        self._known: dict[str, Manifest] = {}  # complete ones, oldest first
        self._ids: set[str] = set()
        self._jobs: queue.Queue[tuple[Pending, Any] | None] = queue.Queue()
        self._room = threading.Semaphore(MAX_WAITING)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start otf-saver."""
        self._thread = threading.Thread(target=self._run, name="otf-saver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, join; may be called twice."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def save(
        self,
        copy: Callable[[HostPool], Any],
        *,
        run_id: str,
        step: int,
        epoch: int,
        kind: Kind,
        pinned: bool,
    ) -> Pending:
        """Copy now, write in the background; training thread.

        Args:
            copy: makes the host copy.

        Raises:
            CommandError: there is no run folder to write to.
        """
        if self._folder is None:
            detail = "Saving was asked, but the run folder cannot be written; training goes on."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        # A third copy would be more host memory than anybody planned for, and the training thread
        # must not wait for the disk.
        if not self._room.acquire(blocking=False):
            detail = f"Saving was asked while {MAX_WAITING} checkpoints are being written."
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0)
        try:
            state = copy(HostPool())
        except BaseException:
            self._room.release()
            raise
        manifest = Manifest(
            id=self._new_id(step, kind),
            run_id=run_id,
            step=step,
            epoch=epoch,
            ts=time.time(),
            kind=kind,
            pinned=pinned,
        )
        pending = Pending(manifest, str(self._folder / f"{manifest.id}.ckpt"))
        self._jobs.put((pending, state))
        return pending

    def pin(self, checkpoint_id: str) -> None:
        """Never let it fall out of the ring; any thread. OSError if that cannot be written down."""
        with self._lock:
            manifest = self._known.get(checkpoint_id)
            if manifest is None or manifest.pinned or self._folder is None:
                return
            manifest.pinned = True
        # Outside the lock: who asks for the list must not wait for the disk.
        _write_json(self._folder, manifest)

    def list(self) -> list[tuple[Manifest, str]]:
        """The complete ones with their paths, newest first; any thread."""
        with self._lock:
            known = list(reversed(self._known.values()))
        return [(m, str(self._path(m))) for m in known]

    def last(self) -> tuple[Manifest, str] | None:
        """The newest complete one; any thread."""
        found = self.list()
        return found[0] if found else None

    def _path(self, manifest: Manifest) -> Path:
        assert self._folder is not None
        return self._folder / f"{manifest.id}.ckpt"

    def _new_id(self, step: int, kind: str) -> str:
        name, n = f"{step}-{kind}", 2
        while name in self._ids:
            name, n = f"{step}-{kind}-{n}", n + 1
        self._ids.add(name)
        return name

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            pending, state = job
            del job
            error = self._write(pending, state)
            del state
            self._room.release()
            pending.settle(error)
            if error is None:
                self._drop_oldest()

    def _write(self, pending: Pending, state: Any) -> CommandError | None:
        manifest = pending.manifest
        assert self._folder is not None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            manifest.bytes, manifest.sha256 = write_checkpoint(state, self._path(manifest))
            try:
                _write_json(self._folder, manifest)
            except OSError:
                self._path(manifest).unlink(missing_ok=True)  # nobody would ever list it
                raise
        except Exception as error:  # noqa: BLE001 -- main function of a thread of ours: what cannot be pickled may raise anything
            return _failed(error)
        with self._lock:
            self._known[manifest.id] = manifest
        self._on_saved(manifest, pending.path)
        return None

    def _drop_oldest(self) -> None:
        with self._lock:
            ring = [m for m in self._known.values() if not m.pinned]
            gone = ring[: max(0, len(ring) - self._keep)]
            for manifest in gone:
                del self._known[manifest.id]
        for manifest in gone:
            path = self._path(manifest)
            # The JSON first: without it the checkpoint does not exist.
            for file in (path.with_suffix(".json"), path):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            self._on_removed(manifest, str(path))


def _failed(error: Exception) -> CommandError:
    said = f"{type(error).__name__} ({error})"
    if isinstance(error, OSError) and error.strerror:
        said = f"OSError ({error.strerror.lower()})"
    detail = f"Saving failed with {said[:300]}; the older checkpoints are whole, training goes on."
    return CommandError(ErrorCode.INTERNAL, detail)


class _Hashing:
    """A file that hashes what goes through it, so that the check needs no second reading."""

    def __init__(self, file: Any) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(state: Any, path: Path) -> tuple[int, str]:
    """Write one regular file, whole or not at all; any thread.

    Returns:
        Its size in bytes and its SHA-256 in hex.

    Raises:
        OSError: the disk; what was there before is left.
    """
    with _whole_file(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, cast("IO[bytes]", hashing))
        except RuntimeError as error:
            # torch closes its archive first, and says that this failed instead of why.
            raise hashing.error or error from None
    return hashing.bytes, hashing.sha256.hexdigest()


def _write_json(folder: Path, manifest: Manifest) -> None:
    with _whole_file(folder / f"{manifest.id}.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole, fsynced and renamed, when the block ends; else not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
