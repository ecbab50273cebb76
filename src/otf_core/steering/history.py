"""What was done to the run, and how it is taken back: rollback, extend, undo.

Rule 1: whatever is about to replace weights or optimizer state saves an undo point first; what
only changes a value remembers the old one. Both are rows of the ledger (``changes.py``), so that
they can be taken back in another process as well.
Rule 2: a snapshot of another model is refused before anything is touched.
Rule 3: an apply that fails half way is put right from the undo point. Where that fails too, the
run must not train on: ``torn`` says so, and the session raises it.

All of it runs on the training thread, at the gate.
"""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.delegate import ControlDelegate, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.store import CheckpointStore, Pending
from otf_core.steering.changes import Change, Changes
from otf_core.steering.params import AppliedParam, Ended, Steering
from otf_core.steering.plain import of_plain, to_plain

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


# A change and who takes it back -> what holds now.
Way: TypeAlias = Callable[[Change, Ticket], dict[str, Any]]


class History:
    """The commands that go back, and the ledger of what can be taken back.

    Attributes:
        changes: the ledger.
        ways: how a change is taken back, by the ``kind`` of its ``back``.
        restored: told of a request that was taken back as if it had never been.
    """

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
        self.changes = Changes()
        self._points: dict[str, Pending] = {}  # undo points that may still be on their way
        self.ways: dict[str, Way] = {
            "param": self._param_back,
            "limit": self._limit_back,
            "note": self._note_back,
            "state": self._state_back,
        }
        self.restored: Callable[[str], None] = lambda _: None
        self.torn: BaseException | None = None

    # What was done.

    def add(self, ticket: Ticket, **given: Any) -> Change:
        """A row of what a command has done; see ``Change`` for what is given."""
        return self._row(
            **{
                "who": ticket.who, "by": ticket.by, "cause": ticket.cause,
                "cmd": ticket.request.cmd, "request_id": ticket.id, **given,
            }
        )  # fmt: skip

    def set_params(self, ticket: Ticket, applied: Sequence[AppliedParam]) -> None:
        """Tell and remember values that were set as one."""
        before = self._before(applied[0].applied_step)
        asked: dict[str, Any] | None = spoken(ticket.payload)
        rows: list[Change] = []
        for each in applied:
            back = {"kind": "param", **to_plain(self._steering, each)}
            row = self.add(
                ticket, path=each.path, old=each.old, new=each.new, mode=each.mode,
                until=each.until, asked=asked, back=back, before=before,
                group=rows[0].id if rows else 0,
            )  # fmt: skip
            asked = None
            rows.append(row)
        for row in rows:
            self._run.emit("param_changed", **row.told())

    def set_by_fork(self, ticket: Ticket, applied: AppliedParam) -> None:
        """Tell and remember a value that a fork begins with; it goes when the fork is undone."""
        row = self.add(
            ticket, by="fork", path=applied.path, old=applied.old, new=applied.new,
            mode=applied.mode,
        )  # fmt: skip
        self._run.emit("param_changed", **row.told())

    def ended(self, found: Ended) -> None:
        """Tell and remember a value that is the script's again."""
        by = [row.id for row in self.changes if row.until == found.step and row.path]
        cause = f"change {by[-1]}" if by else None
        row = self._row(by="until", cause=cause, path=found.path, old=found.old, new=found.new)
        self._run.emit("param_changed", **row.told())

    def made_run(self, ticket: Ticket, left: str, *, new: bool) -> None:
        """Remember a fork, a merge or a switch, in the ledger of the run that was entered.

        Args:
            new: it was made by it; checkpoints from before are those of another run then.
        """
        for row in self.changes if new else ():
            row.before = None
        self.add(
            ticket,
            old={"run_id": left},
            new={"run_id": self._run.run_id},
            back={"kind": "run", "run_id": left},
            unlike=f"{ticket.request.cmd} of {left}" if new else None,
        )

    def note(self, ticket: Ticket, note: Mapping[str, Any]) -> None:
        """Remember a note."""
        self.add(ticket, new=note["text"], back={"kind": "note", **note}, before=self._before(None))

    def forget(self) -> None:
        """A new session has nothing to undo."""
        self.changes.clear()

    def load(self, state: Mapping[str, Any] | None, *, own: bool) -> None:
        """The ledger of a state that was put in place.

        Args:
            own: it is a checkpoint of the run that trains, so that those before it are there.
        """
        self.changes.load(state, self._step(), run_id=self._run.run_id)
        if not own:
            for row in self.changes:
                row.before = None

    def _row(self, **given: Any) -> Change:
        now = self._run.position()
        return self.changes.add(
            run_id=self._run.run_id,
            step=now.step,
            epoch=now.epoch,
            batch_idx=now.batch_idx,
            **given,
        )

    def _before(self, step: int | None) -> str | None:
        found = self._store.before(self._step() if step is None else step)
        return found[0].id if found is not None else None

    # Commands.

    def list_changes(self, ticket: Ticket) -> dict[str, Any]:
        """The ledger, the oldest row first."""
        limit = ticket.payload.limit
        if limit is not None and limit < 1:
            detail = f"list_changes was asked for {limit} rows; allowed: 1 or more."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="limit", allowed={"min": 1})
        rows = [row.to_wire() for row in self.changes.newest(limit)]
        return {"changes": rows, "total": len(self.changes)}

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

        self.add(
            ticket, old={name: old[name]}, new=given, asked=spoken(asked),
            back={"kind": "limit", "name": name, "value": old[name]},
            before=self._before(now.step),
        )  # fmt: skip
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
        change = self._find(asked.request_id, asked.change)
        undone = {"request_id": change.request_id, "cmd": change.cmd}
        now = self._restore(ticket, change) if asked.restore else self._take_back(ticket, change)
        return {
            "undone": {**undone, "change": change.id},
            "applied_step": self._step(),
            "now": now,
        }

    def _restore(self, ticket: Ticket, change: Change) -> dict[str, Any]:
        found = self._store.get(change.before) if change.before is not None else None
        if found is None:
            detail = (
                f"undo was asked to roll back to before {change.cmd} at step {change.step}, "
                "but no checkpoint from before it is kept; allowed: undo without restore."
            )
            kept = [manifest.id for manifest, _ in self._store.list()[:NEAREST]]
            raise CommandError(ErrorCode.NOT_FOUND, detail, field="restore", allowed=kept)
        self.go_to_kept(ticket, found[0].id, cause=f"change {change.id}")
        if change.request_id is not None:
            *_, row = self.changes
            row.skips = change.request_id
            self.restored(change.request_id)
        return {"step": self._step()}

    def _take_back(self, ticket: Ticket, change: Change) -> dict[str, Any]:
        """All that was made as one with it, the last first."""
        now: dict[str, Any] = {}
        rows = [*reversed(self.changes.together(change))]
        for row in rows:  # all of it, or nothing
            if row.open and row.back is not None and row.back["kind"] == "param":
                self._steering.refuse_undo(of_plain(self._steering, row.back), self._step())
        for row in rows:
            if row.open and row.back is not None:
                now |= self.ways[row.back["kind"]](row, ticket)
        return now

    def taken_back(self, row: Change, ticket: Ticket, **given: Any) -> Change:
        """Remember that a row was taken back; the row that says so."""
        given = {"path": row.path, "old": row.new, "new": row.old, **given}
        back = self.add(ticket, by="undo", cause=f"change {row.id}", undoes=row.id, **given)
        row.undone_by = back.id
        return back

    def _param_back(self, row: Change, ticket: Ticket) -> dict[str, Any]:
        assert row.back is not None
        undone = self._steering.undo(of_plain(self._steering, row.back), self._step())
        self._run.changed()
        told = self.taken_back(
            row, ticket, path=undone.path, old=undone.old, new=undone.new, mode=undone.mode
        )
        for later in self.changes:  # what was set there since holds no more
            if later.id > row.id and later.path == row.path and later.open:
                later.undone_by = told.id
        self._run.emit("param_changed", **told.told())
        return {undone.path: undone.new}

    def _limit_back(self, row: Change, ticket: Ticket) -> dict[str, Any]:
        assert row.back is not None
        name, limit = row.back["name"], row.back["value"]
        position = self._run.position()
        reached = position.global_step if name == "max_steps" else position.epochs_done
        if limit is not None and limit < reached:
            detail = f"{name} was {limit} before, {reached} are done; it cannot be put back."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        self._delegate.extend({name: -1 if limit is None else limit})
        self._run.changed()
        self.taken_back(row, ticket)
        return {name: limit}

    def _note_back(self, row: Change, ticket: Ticket) -> dict[str, Any]:
        assert row.back is not None
        note = {name: row.back[name] for name in ("note_id", "step", "text")}
        self._run.emit("note", **note, removed=True)
        self.taken_back(row, ticket)
        return {}

    def _state_back(self, row: Change, ticket: Ticket) -> dict[str, Any]:
        assert row.back is not None
        name = row.back["checkpoint"]
        if name is None:
            detail = f"{row.cmd} had no undo point; nothing to go back to."
            raise CommandError(ErrorCode.NOT_FOUND, detail)
        if (point := self._points.get(name)) is not None:
            point.wait(math.inf)
            if point.error is not None:
                raise point.error
        self.go_to_kept(ticket, name, cause=f"change {row.id}")
        return {"step": self._step()}

    def go_to_kept(self, ticket: Ticket, name: str, *, cause: str | None = None) -> dict[str, Any]:
        """Put a checkpoint of this run in place, by its id."""
        state = self._store.read(name)
        found = self._store.get(name)
        path = found[1] if found is not None else name
        return self.go_to(ticket, state, name, path, cause=cause)

    def go_to(
        self,
        ticket: Ticket,
        state: dict[str, Any],
        name: str,
        path: str,
        *,
        cause: str | None = None,
    ) -> dict[str, Any]:
        """Put a snapshot in place; it is used up by it.

        Args:
            cause: what is taken back by it.
        """
        self._delegate.check(state)
        before_step, before = self._step(), self._values()
        kept = self._store.get(name)
        own = kept is not None and os.path.realpath(kept[1]) == os.path.realpath(path)
        with self._store.writing_later() if own else contextlib.nullcontext():
            point = self._keep_now("undo point", wait_s=0.0 if own else WAIT_S)
            failed = self._put(state, name if own else None)
            if isinstance(failed, bool):
                unlike = None if own and failed else f"{ticket.request.cmd} brought {name}"
                row = self._went_to(ticket, name, before_step, point, unlike, cause)
                if not own:
                    self._adopt()
                return self._gone_to(row, name, path, before_step, before)
        raise self._put_right(point, failed, name) from failed

    def _went_to(
        self,
        ticket: Ticket,
        name: str,
        from_step: int,
        point: Pending | None,
        unlike: str | None,
        cause: str | None,
    ) -> Change:
        """Remember it, in the ledger that came with it."""
        if point is not None:
            self._points = {point.id: point}  # older ones are on the disk by now
        return self.add(
            ticket,
            by="undo" if cause is not None else ticket.by,
            cause=cause if cause is not None else ticket.cause,
            old={"step": from_step},
            new={"step": self._step(), "checkpoint": name},
            back={"kind": "state", "checkpoint": point.id if point is not None else None},
            before=point.id if point is not None else None,
            unlike=unlike,
        )

    def _gone_to(
        self,
        row: Change,
        name: str,
        path: str,
        before_step: int,
        before: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Tell it."""
        step = self._step()
        self._run.emit("checkpoint_loaded", path=path, step=step, id=name, from_step=before_step)
        for param, new in self._values().items():
            if param in before and before[param] != new:
                told = {"path": param, "old": before[param], "new": new, "by": "rollback"}
                self._run.emit("param_changed", **(row.told() | told))
        return {
            "run_id": self._run.run_id,
            "checkpoint": name,
            "step": step,
            "from_step": before_step,
            "applied_step": step,
        }

    def _put(self, state: dict[str, Any], base: str | None) -> Exception | bool:
        """Whether it is there as it was."""
        try:
            return self._run.put(state, base)
        except Exception as error:  # noqa: BLE001 -- border: the user's load hooks may raise anything
            return error

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

    def _find(self, request_id: str | None, number: int | None) -> Change:
        """What is to be taken back: the last that can be, or the one that is named."""
        rows = [row for row in self.changes if row.open]
        known = [
            row for row in rows
            if request_id in (None, row.request_id) and number in (None, row.id)
        ]  # fmt: skip
        if known:
            return known[-1]
        asked = "the last command" if request_id is None else f"command {request_id[:64]!r}"
        if number is not None:
            asked = f"change {number}"
        names = [row.request_id for row in rows if row.request_id][-NEAREST:]
        ids = [row.id for row in rows][-NEAREST:]
        field = "request_id" if number is None else "change"
        detail = f"undo of {asked} was asked; {len(rows)} can be undone."
        allowed: list[Any] = names if number is None else ids
        raise CommandError(ErrorCode.NOT_FOUND, detail, field=field, allowed=allowed)

    def _values(self) -> dict[str, Any]:
        return {row["path"]: row["value"] for row in self._steering.list({}, may_wait=True)}

    def _step(self) -> int:
        return self._run.position().step


def spoken(payload: Any) -> dict[str, Any]:
    """A payload as somebody would give it: without what is as it is by default."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(payload):
        value = getattr(payload, field.name)
        if value is msgspec.UNSET or value == field.default:
            continue
        several = isinstance(value, list)
        found[field.name] = (
            [spoken(v) if isinstance(v, msgspec.Struct) else v for v in value]
            if (several)
            else value
        )
    return found
