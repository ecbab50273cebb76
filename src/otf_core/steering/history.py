"""What was done to the run, and how it is taken back: rollback, extend, undo.

Rule 1: whatever is about to replace weights or optimizer state saves an undo point first; what
only changes a value remembers the old one.
Rule 2: a snapshot of another model is refused before anything is touched.
Rule 3: an apply that fails half way is put right from the undo point. Where that fails too, the
run must not train on: ``torn`` says so, and the session raises it.

All of it runs on the training thread, at the gate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.delegate import ControlDelegate, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.store import CheckpointStore, Pending
from otf_core.steering.params import AppliedParam, Steering

MAX_DONE: Final = 1000
WAIT_S: Final = 20.0  # for the disk, where something comes from elsewhere
NEAREST: Final = 6  # checkpoints named where the asked one is not there


class Run(Protocol):
    """What the history needs of the session."""

    run_id: str

    def position(self) -> Position:
        """Where the run stands."""

    def save(self, kind: str, *, wait_s: float = 0.0) -> Pending:
        """Copy the state now, write it in the background; CommandError where it cannot be."""

    def changed(self) -> None:
        """The run is no longer what the last checkpoint holds."""

    def put(self, state: dict[str, Any], base: str | None) -> bool:
        """Put another state in place; whether it is there as it was."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""


@dataclasses.dataclass(frozen=True)
class Done:
    """One command that was carried out.

    Attributes:
        step: steps done when it took effect.
        take_back: puts the old values back from now on; returns what holds now.
        before: the checkpoint to which ``undo`` with ``restore`` rolls back, if there is one.
    """

    request_id: str | None
    cmd: str
    step: int
    take_back: Callable[[Ticket], dict[str, Any]]
    before: str | None


class History:
    """The commands that go back, and the list of what can be taken back."""

    def __init__(
        self,
        run: Run,
        *,
        store: CheckpointStore,
        delegate: ControlDelegate,
        steering: Steering,
        bus: ControlBus,
    ) -> None:
        self._run, self._store, self._delegate = run, store, delegate
        self._steering, self._bus = steering, bus
        self._done: list[Done] = []
        self.torn: BaseException | None = None

    # What was done.

    def set_params(self, ticket: Ticket, applied: Sequence[AppliedParam]) -> None:
        """Tell and remember values that were set as one."""

        def take_back(by: Ticket) -> dict[str, Any]:
            now: dict[str, Any] = {}
            for each in reversed(applied):
                undone = self._steering.undo(each, self._step())
                self._run.changed()
                self.tell_param(undone.path, undone.old, undone.new, by="undo", request=by)
                now[undone.path] = undone.new
            return now

        self._remember(ticket, applied[0].applied_step, take_back)
        for each in applied:
            self.tell_param(each.path, each.old, each.new, by="user", request=ticket)

    def tell_param(self, path: str, old: Any, new: Any, *, by: str, request: Ticket) -> None:
        """Say that a parameter has another value."""
        self._run.emit(
            "param_changed",
            path=path,
            old=old,
            new=new,
            applied_step=self._step(),
            by=by,
            request_id=request.id,
        )

    def made_run(
        self, ticket: Ticket, step: int, take_back: Callable[[Ticket], dict[str, Any]]
    ) -> None:
        """Remember a fork."""
        self._done.append(Done(ticket.id, ticket.request.cmd, step, take_back, None))

    def note(self, ticket: Ticket, note: Mapping[str, Any]) -> None:
        """Remember a note."""

        def take_back(_: Ticket) -> dict[str, Any]:
            self._run.emit("note", **note, removed=True)
            return {}

        self._remember(ticket, self._step(), take_back)

    def _remember(
        self, ticket: Ticket, step: int, take_back: Callable[[Ticket], dict[str, Any]]
    ) -> None:
        found = self._store.before(step)
        before = found[0].id if found is not None else None
        self._done.append(Done(ticket.id, ticket.request.cmd, step, take_back, before))
        del self._done[:-MAX_DONE]

    def forget(self) -> None:
        """A new session has nothing to undo."""
        self._done.clear()

    # Commands.

    def rollback(self, ticket: Ticket) -> dict[str, Any]:
        """Back to a checkpoint that is kept, in place."""
        asked = ticket.payload
        if (asked.checkpoint is None) == (asked.step is None):
            detail = "rollback was asked; allowed: one of checkpoint and step."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, allowed=["checkpoint", "step"])
        name = self._at_step(asked.step) if asked.checkpoint is None else asked.checkpoint
        return self.go_to_kept(ticket, name)

    def load_ckpt(self, ticket: Ticket) -> dict[str, Any]:
        """A rollback by path."""
        path = Path(ticket.payload.path)
        state, manifest = read_checkpoint(path, field="path")
        name = manifest.id if manifest is not None else path.name
        found = self.go_to(ticket, state, name, str(path))
        return {**found, "path": str(path), "epoch": self._run.position().epoch}

    def extend(self, ticket: Ticket) -> dict[str, Any]:
        """New totals of steps or epochs."""
        asked, now = ticket.payload, self._run.position()
        given = {
            name: value
            for name in ("max_steps", "max_epochs")
            if (value := getattr(asked, name)) is not None
        }
        if len(given) != 1:
            detail = "extend was asked; allowed: one of max_steps and max_epochs."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, allowed=["max_steps", "max_epochs"])
        [(name, value)] = given.items()
        done = now.global_step if name == "max_steps" else now.epochs_done
        if value <= done:
            detail = f"extend was asked with {name} {value}, {done} are done; allowed: more."
            least = {"min": done + 1}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=name, allowed=least)
        old = {"max_steps": now.max_steps, "max_epochs": now.max_epochs}
        self._delegate.extend(given)
        self._run.changed()

        def take_back(_: Ticket) -> dict[str, Any]:
            position = self._run.position()
            reached = position.global_step if name == "max_steps" else position.epochs_done
            limit = old[name]
            if limit is not None and limit < reached:
                detail = f"{name} was {limit} before, {reached} are done; it cannot be put back."
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
            self._delegate.extend({name: -1 if limit is None else limit})
            self._run.changed()
            return {name: limit}

        self._remember(ticket, now.step, take_back)
        new = self._run.position()
        return {
            "max_steps": new.max_steps,
            "max_epochs": new.max_epochs,
            "old": old,
            "applied_step": new.step,
        }

    def undo(self, ticket: Ticket) -> dict[str, Any]:
        """Take back what was done last, or the command that is named."""
        asked = ticket.payload
        if asked.request_id is not None and (gone := self._bus.withdraw_one(asked.request_id)):
            said = f"The {gone.request.cmd} was withdrawn by undo at step {self._step()}."
            gone.fail(CommandError(ErrorCode.NOT_ALLOWED_NOW, said))
            undone = {"request_id": gone.id, "cmd": gone.request.cmd}
            return {"undone": undone, "applied_step": self._step(), "now": {}}
        done = self._find(asked.request_id)
        if asked.restore:
            found = self._store.get(done.before) if done.before is not None else None
            if found is None:
                detail = (
                    f"undo was asked to roll back to before {done.cmd} at step {done.step}, "
                    "but no checkpoint from before it is kept; allowed: undo without restore."
                )
                kept = [manifest.id for manifest, _ in self._store.list()[:NEAREST]]
                raise CommandError(ErrorCode.NOT_FOUND, detail, field="restore", allowed=kept)
            self.go_to_kept(ticket, found[0].id)
            now: dict[str, Any] = {"step": self._step()}
        else:
            now = done.take_back(ticket)
        if done in self._done:
            self._done.remove(done)
        undone = {"request_id": done.request_id, "cmd": done.cmd}
        return {"undone": undone, "applied_step": self._step(), "now": now}

    def go_to_kept(self, ticket: Ticket, name: str) -> dict[str, Any]:
        """Put a checkpoint of this run in place, by its id."""
        state = self._store.read(name)
        found = self._store.get(name)
        return self.go_to(ticket, state, name, found[1] if found is not None else name)

    def go_to(self, ticket: Ticket, state: dict[str, Any], name: str, path: str) -> dict[str, Any]:
        """Put a snapshot in place; it is used up by it."""
        self._delegate.check(state)
        before_step, before = self._step(), self._values()
        kept = self._store.get(name)
        own = kept is not None and os.path.realpath(kept[1]) == os.path.realpath(path)
        with self._store.writing_later() if own else contextlib.nullcontext():
            point = self._keep_now("undo point", wait_s=0.0 if own else WAIT_S)
            failed = self._put(state, name if own else None)
            if failed is None:
                if not own:
                    self._adopt()
                return self._gone_to(ticket, name, path, before_step, before, point)
        raise self._put_right(point, failed, name) from failed

    def _gone_to(
        self,
        ticket: Ticket,
        name: str,
        path: str,
        before_step: int,
        before: Mapping[str, Any],
        point: Pending | None,
    ) -> dict[str, Any]:
        """Tell and remember it."""
        step = self._step()
        self._run.emit("checkpoint_loaded", path=path, step=step, id=name, from_step=before_step)
        for param, new in self._values().items():
            if param in before and before[param] != new:
                self.tell_param(param, before[param], new, by="rollback", request=ticket)
        # What was done after that step is undone with it.
        self._done = [done for done in self._done if done.step <= step]

        def take_back(by: Ticket) -> dict[str, Any]:
            if point is None:
                detail = f"{ticket.request.cmd} had no undo point; nothing to go back to."
                raise CommandError(ErrorCode.NOT_FOUND, detail)
            point.wait(math.inf)
            if point.error is not None:
                raise point.error
            self.go_to_kept(by, point.id)
            return {"step": self._step()}

        self._done.append(
            Done(ticket.id, ticket.request.cmd, step, take_back, point.id if point else None)
        )
        return {
            "run_id": self._run.run_id,
            "checkpoint": name,
            "step": step,
            "from_step": before_step,
            "applied_step": step,
        }

    def _put(self, state: dict[str, Any], base: str | None) -> Exception | None:
        try:
            self._run.put(state, base)
        except Exception as error:  # noqa: BLE001 -- border: the user's load hooks may raise anything
            return error
        return None

    def _adopt(self) -> None:
        """Make what came from elsewhere the run's past: on the disk before the answer."""
        kept = self._keep_now("what was loaded", wait_s=WAIT_S)
        if kept is not None and not (kept.wait(WAIT_S) and kept.error is None):
            why = kept.error.detail if kept.error is not None else "the disk has not written it yet"
            text = f"what was loaded is not kept: {why}"
            self._run.emit("log", level="warning", phase="info", text=text)

    def _keep_now(self, what: str, *, wait_s: float = 0.0) -> Pending | None:
        """How the run is now; None where it cannot be kept, which is said."""
        try:
            return self._run.save("ring", wait_s=wait_s)
        except CommandError as error:
            text = f"{what} is not kept: {error.detail}"
            self._run.emit("log", level="warning", phase="info", text=text)
            return None

    def _put_right(self, point: Pending | None, error: Exception, name: str) -> CommandError:
        """Back from half a rollback; what is answered."""
        text = "".join(traceback.format_exception(error))
        self._run.emit("log", level="error", phase="info", text=f"rollback failed:\n{text}"[-8000:])
        try:
            if point is None:
                raise error
            point.wait(math.inf)
            self._run.put(self._store.read(point.id), point.id)
        except Exception as again:  # noqa: BLE001 -- border, as above
            self.torn = again
        said = f"{type(error).__name__} ({error})"[:300]
        outcome = (
            "the run is as it was" if self.torn is None else "the run ends, half of it is there"
        )
        detail = f"Going to {name} failed with {said}; {outcome}."
        return CommandError(ErrorCode.INTERNAL, detail)

    def _at_step(self, step: int) -> str:
        found = self._store.at_step(step)
        if found is not None:
            return found[0].id
        kept = {manifest.step for manifest, _ in self._store.list()}
        nearest = sorted(kept, key=lambda there: (abs(there - step), there))[:NEAREST]
        detail = f"rollback to step {step} was asked; no checkpoint of that step is kept."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="step", allowed=nearest)

    def _find(self, request_id: str | None) -> Done:
        known = [d for d in self._done if request_id is None or d.request_id == request_id]
        if known:
            return known[-1]
        asked = "the last command" if request_id is None else f"command {request_id[:64]!r}"
        names = [done.request_id for done in self._done if done.request_id][-NEAREST:]
        detail = f"undo of {asked} was asked; {len(self._done)} can be undone."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="request_id", allowed=names)

    def _values(self) -> dict[str, Any]:
        return {row["path"]: row["value"] for row in self._steering.list({}, may_wait=True)}

    def _step(self) -> int:
        return self._run.position().step
