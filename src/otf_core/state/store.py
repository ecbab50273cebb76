"""The checkpoints of one run: kept, listed, dropped, and known again by the next process.

Rule 1: the training thread copies, the thread ``otf-saver`` writes.
Rule 2: nothing is deleted that no manifest of ours lists.
Rule 3: a disk that fails refuses the command; what was saved before stays whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.checkpoint_file import (
    Manifest,
    UnfitError,
    complete,
    newest,
    read_checkpoint,
    write_checkpoint,
    write_manifest,
)
from otf_core.state.host_pool import HostPool, available_bytes
from otf_core.state.manifest import SHARDS, SHARDS_PART, ShardFile, shards_beside
from otf_core.state.shards import Writing, remove_shards

__all__ = [
    "CheckpointStore",
    "Kind",
    "Manifest",
    "Pending",
    "read_checkpoint",
    "write_checkpoint",
]

Kind = Literal["ring", "pause", "manual", "auto", "final"]
RING: Final = frozenset({"ring", "pause", "auto"})  # kinds of which the oldest go
MAX_WAITING: Final = 2  # copies in host memory that wait for the disk
OUR_FILES: Final = re.compile(r"(\d+-(?:ring|pause|manual|auto|final)(?:-\d+)?)\.(?:ckpt|json)")
OUR_SHARDS: Final = re.compile(
    rf"[0-9a-f]{{12}}{re.escape(SHARDS_PART)}"
    rf"|\d+-(?:ring|pause|manual|auto|final)(?:-\d+)?{re.escape(SHARDS)}"
)


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


@dataclasses.dataclass
class _Save:
    pending: Pending
    state: Any
    pool: HostPool


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved. None: nothing can be saved.
        keep: how many of kind ``ring``, ``pause`` and ``auto`` are kept; the oldest go.
        on_saved, on_removed: told on otf-saver, with manifest and path.
        before: called on otf-saver before a checkpoint begins to exist.
        refused: why nothing can be saved, where that is no matter of the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        keep: int,
        on_saved: Callable[[Manifest, str], None],
        on_removed: Callable[[Manifest, str], None],
        before: Callable[[], None] = lambda: None,
        refused: str | None = None,
    ) -> None:
        self._folder, self._keep = folder, keep
        self.refused = refused
        self._on_saved, self._on_removed, self._before = on_saved, on_removed, before
        self._lock = threading.Lock()
        self._known: dict[str, Manifest] = {}  # complete ones, oldest first
        self._ids: set[str] = set()
        self._last_ts = 0.0
        self._branch = 0
        self._base: str | None = None
        self._jobs: queue.SimpleQueue[_Save | Sequence[tuple[int, bool]] | threading.Event | None]
        self._jobs = queue.SimpleQueue()
        self._pools = [HostPool() for _ in range(MAX_WAITING)]
        self._idle: queue.SimpleQueue[HostPool] = queue.SimpleQueue()
        for pool in self._pools:
            self._idle.put(pool)
        self._prepared = self._closing = False
        self._may_write = threading.Event()
        self._may_write.set()
        self._keep_memory = True
        self._thread: threading.Thread | None = None

    def adopt(self) -> list[str]:
        """Know the checkpoints again that lie in the folder; before ``start``.

        For who holds the run's lock: the half-written files of others are removed.

        Returns:
            One sentence for each file that is ignored.
        """
        try:
            names = sorted(os.listdir(self._folder)) if self._folder is not None else []
        except FileNotFoundError:
            return []
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            return [f"{self._folder} cannot be read ({why}): no older checkpoint is known"]
        ignored: list[str] = []
        found: list[Manifest] = []
        for name in names:
            assert self._folder is not None
            path = self._folder / name
            self._ids.add(path.stem)
            if name.endswith(".part") and OUR_FILES.fullmatch(path.stem):
                ignored.append(_removed(path))
            elif path.suffix == ".ckpt":
                try:
                    found.append(complete(path))
                except (UnfitError, OSError) as why:
                    ignored.append(f"{name} is ignored: it {why}")
            elif OUR_SHARDS.fullmatch(name):
                if not path.with_suffix(".ckpt").exists():
                    ignored.append(_without_file(path))
            elif OUR_FILES.fullmatch(name) and not path.with_suffix(".ckpt").exists():
                ignored.append(f"{name} is ignored: its checkpoint is not there")
        found.sort(key=lambda manifest: manifest.ts)
        self._last_ts = max((manifest.ts for manifest in found), default=0.0)
        with self._lock:
            self._known = {manifest.id: manifest for manifest in found}
        return ignored

    def move_to(self, folder: Path | None) -> list[str]:
        """Keep another run's checkpoints from here on; training thread.

        What was asked to be saved before is on the disk by then, or has failed.

        Args:
            folder: of a run whose lock this process holds.

        Returns:
            As ``adopt``.
        """
        self.settle()
        with self._lock:
            self._folder, self._known, self._ids = folder, {}, set()
            self._branch, self._base = 0, None
        return self.adopt()

    def settle(self) -> None:
        """Return when all that was asked so far is done; training thread."""
        if self._thread is not None:
            done = threading.Event()
            self._jobs.put(done)
            done.wait()

    def start(self) -> None:
        """Start otf-saver."""
        self._thread = threading.Thread(target=self._run, name="otf-saver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, join; may be called twice."""
        self._closing = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def prepare(self, sizes: Sequence[tuple[int, bool]]) -> str | None:
        """Have otf-saver make the memory of the copies, so that the first does not pay for it.

        Once, when everything is there that a checkpoint holds (Adam has no moments before its
        first step); the training thread only asks.

        Args:
            sizes: bytes, and whether pinned, of each piece; see ``sizes_of``.

        Returns:
            A sentence where that would take too much: memory is then made for each copy, and
            given back.
        """
        if self._prepared:
            return None
        self._prepared = True
        needed, available = MAX_WAITING * sum(nbytes for nbytes, _ in sizes), available_bytes()
        if needed > available // 4:
            self._keep_memory = False
            return (
                f"{needed:,} bytes of host memory were wanted for checkpoints, {available:,} are "
                "available; allowed: a quarter of that. Each checkpoint makes its own and takes "
                "longer."
            )
        self._jobs.put(list(sizes))
        return None

    def save(
        self,
        copy: Callable[[HostPool], Any],
        *,
        run_id: str,
        step: int,
        epoch: int,
        kind: Kind,
        pinned: bool,
        exact: Callable[[], bool] = lambda: False,
        left_by: str = "",
        wait_s: float = 0.0,
    ) -> Pending:
        """Copy now, write in the background; training thread.

        Args:
            copy: makes the host copy, in the memory that it is given; the copy is this store's.
            exact: whether the copy can be resumed from exactly; asked when it is made.
            left_by: the exception that ends the run in the middle of a batch.
            wait_s: for the disk, where two are being written; after that it is refused.

        Raises:
            CommandError: there is no run folder to write to; ``busy``.
        """
        if self.refused is not None:
            raise CommandError(ErrorCode.UNSUPPORTED, f"Saving was asked. {self.refused}")
        if self._folder is None:
            detail = "Saving was asked, but the run folder cannot be written; training goes on."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        # A third copy would be more host memory than anybody planned for.
        try:
            pool = self._idle.get(wait_s > 0, None if math.isinf(wait_s) else wait_s)
        except queue.Empty:
            detail = f"Saving was asked while {MAX_WAITING} checkpoints are being written."
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0) from None
        try:
            state = copy(pool)
        except BaseException:
            self._give_back(pool)
            raise
        # The order of checkpoints is that in which they were made, whatever the clock does.
        self._last_ts = max(time.time(), self._last_ts + 1e-6)
        manifest = Manifest(
            id=self._new_id(step, kind),
            run_id=run_id,
            step=step,
            epoch=epoch,
            ts=self._last_ts,
            kind=kind,
            pinned=pinned,
            exact=exact(),
            left_by=left_by,
            branch=self._branch,
        )
        pending = Pending(manifest, str(self._folder / f"{manifest.id}.ckpt"))
        self._jobs.put(_Save(pending, state, pool))
        return pending

    @contextlib.contextmanager
    def writing_later(self) -> Iterator[None]:
        """What is saved inside is written behind it; training thread, which may not wait for it.

        Else otf-saver, which begins at once, takes the interpreter for 5 ms at a time from a
        thread that has 5 ms of work.
        """
        self._may_write.clear()
        try:
            yield
        finally:
            self._may_write.set()

    def read(self, checkpoint_id: str) -> dict[str, Any]:
        """Load one that is complete, verified; any thread.

        Raises:
            CommandError: ``not_found``; ``bad_payload`` where the file was damaged.
        """
        found = self.get(checkpoint_id)
        if found is None:
            newest = [manifest.id for manifest, _ in self.list()[:20]]
            detail = f"No checkpoint {checkpoint_id[:120]!r}; the newest are in allowed."
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="checkpoint", allowed=newest)
        state, _ = read_checkpoint(Path(found[1]), expected=found[0], field="checkpoint")
        return state

    def get(self, checkpoint_id: str) -> tuple[Manifest, str] | None:
        """A complete one by its id; any thread."""
        return next((found for found in self.list() if found[0].id == checkpoint_id), None)

    def at_step(self, step: int) -> tuple[Manifest, str] | None:
        """The newest complete one of exactly this step; any thread."""
        return next((found for found in self.list() if found[0].step == step), None)

    def before(self, step: int) -> tuple[Manifest, str] | None:
        """The nearest complete one at or before a step, of several the newest; any thread."""
        earlier = [found for found in self.list() if found[0].step <= step]
        return max(earlier, key=lambda found: found[0].step, default=None)

    def pin(self, checkpoint_id: str) -> None:
        """Never let it fall out of the ring; any thread. OSError if that cannot be written down."""
        with self._lock:
            manifest = self._known.get(checkpoint_id)
            if manifest is None or manifest.pinned or self._folder is None:
                return
            manifest.pinned = True
        # Outside the lock: who asks for the list must not wait for the disk.
        write_manifest(self._folder, manifest)

    def list(self) -> list[tuple[Manifest, str]]:
        """The complete ones with their paths, newest first; any thread."""
        with self._lock:
            known = list(reversed(self._known.values()))
        return [(m, str(self._path(m))) for m in known]

    def begin_branch(self, branch: int, base: str | None) -> None:
        """Another state was put in place; what is made from here on is of its branch.

        Args:
            base: the checkpoint it was, if it is one of these; it stays while none is newer.
        """
        with self._lock:
            self._branch, self._base = branch, base

    def last(self) -> tuple[Manifest, str] | None:
        """The one from which the run goes on; see ``newest``; any thread."""
        return newest(self.list(), self._branch, self._base)

    def last_exact(self) -> tuple[Manifest, str] | None:
        """The newest of those from which the run goes on exactly; any thread."""
        exact = [each for each in self.list() if each[0].exact]
        return newest(exact, self._branch, self._base)

    def _path(self, manifest: Manifest) -> Path:
        assert self._folder is not None
        return self._folder / f"{manifest.id}.ckpt"

    def _new_id(self, step: int, kind: str) -> str:
        name, n = f"{step}-{kind}", 2
        while name in self._ids:
            name, n = f"{step}-{kind}-{n}", n + 1
        self._ids.add(name)
        return name

    def _give_back(self, pool: HostPool) -> None:
        if self._keep_memory:
            pool.rewind()
        else:
            pool.clear()
        self._idle.put(pool)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            if not isinstance(job, _Save):
                self._make_memory(job)
                continue
            pending, pool = job.pending, job.pool
            self._may_write.wait()
            error = self._write(pending, job.state)
            del job  # what it holds lies in the pool
            self._give_back(pool)
            pending.settle(error)
            if error is None:
                self._drop_oldest()

    def _make_memory(self, sizes: Sequence[tuple[int, bool]]) -> None:
        # Without it the copies make what they need, so that nothing has to be said of it.
        with contextlib.suppress(RuntimeError, MemoryError):
            for pool in self._pools:
                pool.reserve(sizes, wanted=lambda: not self._closing)

    def _write(self, pending: Pending, state: Any) -> CommandError | None:
        manifest = pending.manifest
        assert self._folder is not None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._path(manifest)
            try:
                manifest.shards = _settle_shards(state, path)
                manifest.bytes, manifest.sha256 = write_checkpoint(state, path)
                self._before()
                write_manifest(self._folder, manifest)
            except (OSError, CommandError):
                path.unlink(missing_ok=True)  # nobody would ever list it
                remove_shards(shards_beside(path), [each.name for each in manifest.shards])
                raise
        except CommandError as error:
            return error
        except Exception as error:  # noqa: BLE001 -- main function of a thread of ours: what cannot be pickled may raise anything
            return _failed(error)
        with self._lock:
            self._known[manifest.id] = manifest
        self._on_saved(manifest, pending.path)
        return None

    def _drop_oldest(self) -> None:
        with self._lock:
            ring = [m for m in self._known.values() if m.kind in RING and not m.pinned]
            # What an exception has left is none to go on from: it takes no other's place.
            left = [m for m in ring if m.left_by]
            whole = [m for m in ring if not m.left_by]
            if not any(m.branch == self._branch and not m.left_by for m in self._known.values()):
                whole = [m for m in whole if m.id != self._base]
            gone = [m for each in (whole, left) for m in each[: max(0, len(each) - self._keep)]]
            for manifest in gone:
                del self._known[manifest.id]
        for manifest in gone:
            path = self._path(manifest)
            # The JSON first: without it the checkpoint does not exist.
            for file in (path.with_suffix(".json"), path):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            if manifest.shards:
                remove_shards(shards_beside(path), [each.name for each in manifest.shards])
            self._on_removed(manifest, str(path))


def _settle_shards(state: Any, path: Path) -> list[ShardFile]:
    """Wait for the shards of a checkpoint; its file, which is written next, says what they are."""
    ours = state.get("otf") if isinstance(state, dict) else None
    if not isinstance(ours, dict) or not isinstance(writing := ours.get("shards"), Writing):
        return []
    files = writing.settle(shards_beside(path))
    ours["shards"] = {"files": [msgspec.to_builtins(each) for each in files]}
    return files


def _failed(error: Exception) -> CommandError:
    said = f"{type(error).__name__} ({error})"
    if isinstance(error, OSError) and error.strerror:
        said = f"OSError ({error.strerror.lower()})"
    detail = f"Saving failed with {said[:300]}; the older checkpoints are whole, training goes on."
    return CommandError(ErrorCode.INTERNAL, detail)


def _without_file(folder: Path) -> str:
    """A folder of shards that is no checkpoint's: its writing was ended in the middle."""
    remove_shards(folder)
    if folder.exists():
        return f"{folder.name} is half-written and cannot be removed"
    return f"{folder.name} was half-written and is removed"


def _removed(part: Path) -> str:
    try:
        if part.is_file() and not part.is_symlink():
            part.unlink()
            return f"{part.name} was half-written and is removed"
    except OSError as error:
        return f"{part.name} is half-written and cannot be removed: {error.strerror}"
    return f"{part.name} is ignored: it is no regular file"
