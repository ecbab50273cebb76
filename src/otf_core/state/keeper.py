"""Which checkpoints a run makes of its own accord, and from which one it goes on.

Rule 1: a run has a checkpoint of its beginning, of its end, and whatever ``checkpoint_every`` asks;
training never waits for the disk for one of them.
Rule 2: a process that is told to end saves at the next safe point, waits for the file, and says by
which command the run goes on.
Rule 3: a resume that cannot be is an error of the fit. It never trains from the start instead.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from otf_core.control.delegate import ControlDelegate, Position
from otf_core.errors import CommandError, ErrorCode, OtfError
from otf_core.state import run_folder
from otf_core.state.checkpoint_file import Manifest, read_checkpoint
from otf_core.state.store import CheckpointStore, Pending

LEAVING_S: Final = 20.0  # of the grace period that clusters give, 30 s and more


class ResumeError(OtfError):
    """The run that was to go on cannot; says what was asked and found."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run goes on.

    Attributes:
        run_dir: its folder; None where the file lies outside of one, and a new run begins.
    """

    path: Path
    run_dir: Path | None


@dataclasses.dataclass(frozen=True)
class Every:
    """How often a checkpoint is made: one of the two, or never."""

    steps: int | None = None
    seconds: float | None = None


def every(asked: int | str | None) -> Every:
    """``checkpoint_every`` as a user gives it: an int is steps, ``"10min"`` is time.

    Raises:
        ValueError: it is neither.
    """
    if asked is None:
        return Every()
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return Every(steps=asked)
    if isinstance(asked, str):
        text = asked.strip().lower()
        for unit, seconds in (("min", 60.0), ("h", 3600.0), ("s", 1.0)):
            number = text.removesuffix(unit).strip()
            if text.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
                return Every(seconds=float(number) * seconds)
    msg = f'checkpoint_every was asked to be {asked!r}; allowed: steps > 0, or a time as in "10min"'
    raise ValueError(msg)


def find_origin(
    asked: str | Path | None, *, save_dir: Path, project: str, run_name: str | None
) -> Origin | None:
    """The checkpoint that ``resume=`` means; None: start fresh.

    Raises:
        ResumeError: there is no such file.
    """
    if asked is None:
        return None
    if str(asked) == "auto":
        found = run_folder.find_checkpoint(save_dir, project, run_name)
        return Origin(found[2], found[0]) if found is not None else None
    path = Path(asked).absolute()
    if not path.is_file():
        msg = f"resume was asked from {path}, where there is no file; allowed: a checkpoint, auto"
        raise ResumeError(msg)
    return Origin(path, run_folder.run_of(path))


class Schedule:
    """Which checkpoints are due: by counting, as every rank of a run finds it, or by the clock."""

    def __init__(self, every: Every, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self._clock = every, clock
        self._last_step, self._last_s = 0, clock()

    def begins(self, step: int, origin: Origin | None) -> bool:
        """Before the first batch: whether a run begins here, which is to be kept."""
        self._last_step, self._last_s = step, self._clock()
        return origin is None or origin.run_dir is None

    def due(self, step: int) -> bool:
        """A step is done: whether it is to be kept."""
        steps = self.every.steps
        if steps is not None and step % steps == 0 and step != self._last_step:
            self._last_step = step
            return True
        return False

    def overdue(self) -> bool:
        """Whether its time has come; by this process's clock."""
        due_s = self.every.seconds
        return due_s is not None and self._clock() - self._last_s >= due_s

    def kept(self) -> None:
        """It was; the time begins anew."""
        self._last_s = self._clock()


def read_fitting(
    path: Path, delegate: ControlDelegate, allow: Callable[[Mapping[str, Any]], None]
) -> tuple[dict[str, Any], Manifest | None]:
    """The snapshot from which a run is to go on; nothing of the run is touched.

    Raises:
        ResumeError: it is damaged, of another model, or not allowed here.
    """
    try:
        state, manifest = read_checkpoint(path, field="path")
        delegate.check(state)
        allow(state)
    except CommandError as error:
        raise _refused(path, error) from error
    return state, manifest


def _refused(path: Path, error: CommandError) -> ResumeError:
    return ResumeError(f"resume was asked from {path}: {error.detail}")


class Run(Protocol):
    """What the keeper needs of the session."""

    def save(
        self, kind: str, *, pinned: bool = False, left_by: str = "", wait_s: float = 0.0
    ) -> Pending:
        """Copy the state now, write it in the background."""

    def put(self, state: dict[str, Any], base: str | None) -> bool:
        """Put another state in place; whether it is there as it was."""

    def position(self) -> Position:
        """Where the run stands."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""

    def say(self, line: str) -> None:
        """Tell the person at the terminal."""


class Keeper:
    """Makes them; training thread, at the safe point.

    Args:
        allow: raises CommandError where a snapshot is not of this machine or this data.
        meet: of several ranks: has all of them stand, and then ``stand`` is called.
    """

    def __init__(
        self,
        run: Run,
        *,
        store: CheckpointStore,
        delegate: ControlDelegate,
        schedule: Schedule,
        origin: Origin | None,
        allow: Callable[[Mapping[str, Any]], None],
        meet: Callable[[], None] | None = None,
    ) -> None:
        self._run, self._store, self._delegate, self._schedule = run, store, delegate, schedule
        self._origin, self._allow, self._meet = origin, allow, meet
        self._asked = False  # for a meeting
        self._said_busy = self._prepared = False
        self._going_on = False  # a resume is under way; where it is refused it stays so
        self._final: Pending | None = None
        self._first: Pending | None = None
        self._newest: Pending | None = None

    def begin(self) -> None:
        """Before the first batch, once: go on from the origin, or keep the beginning.

        Raises:
            ResumeError: the origin does not fit.
        """
        if self._origin is not None:
            self._go_on(self._origin)
        if self._schedule.begins(self._run.position().step, self._origin):
            self._first = self._quietly("auto", pinned=True)

    def moved(self) -> None:
        """Another run of the session trains from here on."""
        self._first = self._newest = self._final = None
        self._schedule.begins(self._run.position().step, None)

    def beginning(self) -> tuple[Manifest, str] | None:
        """The checkpoint of the beginning; waits for its file. None where there is none."""
        if self._first is not None:
            self._first.wait(LEAVING_S)
        found = reversed(self._store.list())
        return next((f for f in found if f[0].kind == "auto" and f[0].pinned), None)

    def step(self, step: int) -> None:
        """A step is done; keep it if it is due."""
        if not self._prepared and step > 0:
            self._prepared = True  # the optimizers have their state by now
            self._prepare()
        if self._schedule.due(step):
            self._keep_one()
        elif self._schedule.overdue() and not self._asked:
            if self._meet is None:
                self._keep_one()
            else:
                self._asked = True
                self._meet()

    def stand(self) -> None:
        """All ranks stand: what only waits for that."""
        if self._asked:
            self._asked = False
            self._keep_one()

    def _keep_one(self) -> None:
        if self._quietly("ring") is not None:
            self._schedule.kept()

    def _prepare(self) -> None:
        """Have the host memory made beside the training, not by the first checkpoint."""
        short = self._store.prepare(self._delegate.sizes())
        if short is not None:
            self._run.emit("log", level="info", phase="info", text=short)

    def end(self) -> None:
        """The run is about to end; the file that ``resume="auto"`` of a finished run loads."""
        self._final = self._quietly("final", wait_s=LEAVING_S)

    def ended(self) -> None:
        """Before the end is told: who is told of it finds the file."""
        if self._final is not None:
            self._final.wait(LEAVING_S)

    def leave(self, why: str) -> None:
        """The process was told to end: save, wait for the file, say how the run goes on."""
        saved = self._on_disk("auto")
        if saved is not None:
            self._run.say(f"{why}: saved step {saved.step:,}; {resume_command(saved.path)}")
            return
        self._run.say(f"{why}: step {self._run.position().step:,} could not be saved in time")
        self.tell_newest()

    def failed(self, left_by: str) -> None:
        """An exception ends the run: keep what it leaves as well, and say how the run goes on.

        Args:
            left_by: the name of its class.
        """
        step = self._run.position().step
        whole = self._last()
        if whole is None or whole[0].step < step:
            saved = self._on_disk("auto", left_by=left_by)
            if saved is not None:
                self._run.say(
                    f"{left_by}: step {step:,} is kept as it was left, in the middle of a batch; "
                    f"it goes on from there, not exactly: {resume_command(saved.path)}"
                )
        self.tell_newest()

    def tell_newest(self) -> None:
        """By which command the run goes on from the newest checkpoint there is.

        Not where a resume was refused: it is likely the very one that this would advise.
        """
        if self._going_on:
            return
        if (found := self._last()) is not None:
            manifest, path = found
            how = "goes on exactly" if manifest.exact else "goes on"
            self._run.say(f"from step {manifest.step:,} the run {how}: {resume_command(path)}")

    def _last(self) -> tuple[Manifest, str] | None:
        if self._newest is not None:
            self._newest.wait(LEAVING_S)  # the disk may be a step behind
        return self._store.last()

    def _go_on(self, origin: Origin) -> None:
        path = origin.path
        self._going_on = True
        state, manifest = read_fitting(path, self._delegate, self._allow)
        ours = manifest if origin.run_dir is not None else None
        try:
            self._run.put(state, ours.id if ours is not None else None)
        except CommandError as error:
            raise _refused(path, error) from error
        self._going_on = False
        step = self._run.position().step
        name = manifest.id if manifest is not None else path.name
        self._run.emit("checkpoint_loaded", path=str(path), step=step, id=name)
        text = f"resumed from step {step:,} ({name})"
        self._run.emit("log", level="info", phase="info", text=text)
        self._run.say(text)

    def _on_disk(self, kind: str, **how: Any) -> Pending | None:
        """Save, and wait for the file; None where it is not there in time."""
        saved = self._quietly(kind, wait_s=LEAVING_S, **how)
        complete = saved is not None and saved.wait(LEAVING_S) and saved.error is None
        return saved if complete else None

    def _quietly(self, kind: str, **how: Any) -> Pending | None:
        """Save; where that cannot be, training goes on and it is said, a busy disk once."""
        try:
            saved = self._run.save(kind, **how)
        except CommandError as error:
            busy = error.code is ErrorCode.BUSY
            if not (busy and self._said_busy):
                text = f"no {kind} checkpoint at step {self._run.position().step}: {error.detail}"
                self._run.emit("log", level="warning", phase="info", text=text)
            self._said_busy = self._said_busy or busy
            return None
        self._newest = saved
        saved.then(lambda: self._tell_failure(saved))
        return saved

    def _tell_failure(self, saved: Pending) -> None:
        if saved.error is not None:
            text = f"checkpoint {saved.id}: {saved.error.detail}"
            self._run.emit("log", level="error", phase="info", text=text)
            self._run.say(text)


def resume_command(path: str) -> str:
    """How the very command of this process goes on from a checkpoint, for a shell.

    Under torchrun and srun a process does not know the command that started all of them.
    """
    variable = f"OTF_RESUME={shlex.quote(path)}"
    if "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1":
        return f"{variable} before the command that started the ranks"
    return f"{variable} {shlex.join(sys.orig_argv)}"


def exact_state_in(path: Any) -> dict[str, Any] | None:
    """What a file of ours has under ``otf``; None for every other file. Any thread."""
    local = Path(str(path))
    if not local.is_file():
        return None
    try:
        # Mapped: only what is looked at is read.
        found = torch.load(local, weights_only=True, map_location="cpu", mmap=True)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError):
        return None  # another's, whose owner will say what is wrong with it
    ours = found.get("otf") if isinstance(found, dict) else None
    return ours if isinstance(ours, dict) and "exact" in ours else None
