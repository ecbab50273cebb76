"""The commands on values: one, several as one, and what would become of them.

All run on the training thread, at the safe point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

from otf_core.control.actions import refuse_past
from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.delegate import Position
from otf_core.control.router import LATER, CommandRouter, Later
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import UNSET, SetParam
from otf_core.steering.history import History
from otf_core.steering.params import AppliedParam, Steering
from otf_core.steering.preview import MAX_STEPS, preview

MAX_CHANGES: Final = 100
MAX_POINTS: Final = 6000
USUAL_STEPS: Final = 1000


class ParamCommands:
    """Of one session.

    Args:
        position: where the run stands.
        changed: told that the run is no longer what the last checkpoint holds.
    """

    def __init__(
        self,
        steering: Steering,
        history: History,
        bus: ControlBus,
        *,
        position: Callable[[], Position],
        changed: Callable[[], None],
    ) -> None:
        self._steering, self._history, self._bus = steering, history, bus
        self._position, self._changed = position, changed

    def register(self, router: CommandRouter) -> None:
        """Give the router its handlers."""

        def past(ticket: Ticket) -> None:
            refuse_past(ticket, self._step())

        router.on("list_params")(lambda _: {"params": self.rows(may_wait=True)})
        router.on("set_param", check=past)(self._set_param)
        router.on("set_params", check=past)(self._set_params)
        router.on("preview_params")(self._preview)

    def _step(self) -> int:
        return self._position().step

    def rows(self, *, may_wait: bool) -> list[dict[str, Any]]:
        """The rows of ``list_params``, with what waits for its step."""
        waiting = {
            change.path: {"value": _asked(change), "at_step": at_step}
            for cmd in ("set_param", "set_params")
            for at_step, ticket in self._bus.scheduled(cmd)
            for change in (ticket.payload.changes if cmd == "set_params" else [ticket.payload])
        }
        return self._steering.list(waiting, may_wait=may_wait)

    def _set_param(self, ticket: Ticket) -> dict[str, Any] | Later:
        step = self._step()
        self._steering.check(ticket.payload, step)
        if self._waits(ticket, step, [ticket.payload]):
            return LATER
        applied = self._steering.apply(ticket.payload, step)
        self._changed()
        self._history.set_params(ticket, [applied])
        return applied.to_wire()

    def _set_params(self, ticket: Ticket) -> dict[str, Any] | Later:
        """All of them, or none."""
        step, asked = self._step(), ticket.payload
        changes = self._changes(asked.changes)
        begins = step if asked.at_step is None else asked.at_step
        for change in changes:
            if not change.release:
                self._steering.check(change, begins)
        if self._waits(ticket, step, changes):
            return LATER
        applied: list[AppliedParam] = []
        try:
            applied.extend(self._steering.apply(change, step) for change in changes)
        except CommandError:
            for done in reversed(applied):
                self._steering.undo(done, step)
            raise
        self._changed()
        self._history.set_params(ticket, applied)
        return {"applied": [each.to_wire() for each in applied], "applied_step": step}

    def _waits(self, ticket: Ticket, step: int, changes: Sequence[SetParam]) -> bool:
        """Whether it is to be done later: then it was asked, or then it can be."""
        at_step: int = step if ticket.payload.at_step is None else ticket.payload.at_step
        if at_step <= step:
            at_step = max(self._steering.earliest(change, step) for change in changes)
        if at_step <= step:
            return False
        ticket.waits_for = f"step {at_step}"
        self._bus.schedule(ticket, at_step)
        return True

    def _preview(self, ticket: Ticket) -> dict[str, Any]:
        asked = ticket.payload
        steps = self._steps_left() if asked.steps is None else asked.steps
        if steps < 1 or not 1 <= asked.points <= MAX_POINTS:
            detail = (
                f"A preview of {steps} steps in {asked.points} points was asked; "
                f"allowed: 1 to {MAX_STEPS:,} steps, 1 to {MAX_POINTS:,} points."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="steps")
        changes = self._changes(asked.changes, at_steps=True)
        for change in changes:
            if not change.release:  # it may be of what is set before it
                self._steering.check(change, self._step())
        found = preview(
            self._steering.tunable,
            self._steering.state(),
            [change for change in changes if not self._steering.is_knob(change.path)],
            steps=steps,
            points=asked.points,
        )
        return {**dataclasses.asdict(found), "cut": steps > MAX_STEPS, "from_step": self._step()}

    def _steps_left(self) -> int:
        """To the run's end, as far as it is known."""
        position, cadence = self._position(), self._steering.tunable.cadence()
        if position.max_steps is not None:
            return max(1, position.max_steps - position.global_step)
        if position.max_epochs is None or cadence is None or cadence.batches is None:
            return USUAL_STEPS
        of_epoch = -(-cadence.batches // cadence.accumulate)
        done = -(-position.batch_idx // cadence.accumulate)
        return max(1, (position.max_epochs - position.epochs_done) * of_epoch - done)

    def _changes(self, changes: list[SetParam], *, at_steps: bool = False) -> list[SetParam]:
        """Raises CommandError: too many, or one has a step of its own where all have one."""
        if len(changes) > MAX_CHANGES or (not changes and not at_steps):
            detail = f"{len(changes)} changes were asked; allowed: 1 to {MAX_CHANGES}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="changes")
        if not at_steps and any(change.at_step is not None for change in changes):
            detail = (
                "A change of several had an at_step of its own; allowed: one at_step for all, "
                "beside changes."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="changes")
        return changes


def _asked(change: SetParam) -> Any:
    """What a row shows of a change that waits."""
    if change.to is not None:
        return change.to
    return change.mul if change.value is UNSET else change.value
