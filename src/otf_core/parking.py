"""The command ``park``: while a run is held, its memory on the accelerator is given back.

Training thread. Rule 1: a checkpoint of the pause is on the disk first, so that whatever becomes of
this process, nothing is lost. Rule 2: the run trains, saves and evaluates only when all of it, on
every rank, is back; what would touch it meanwhile is refused, but for what ends the pause.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from otf_core.control.actions import ConsoleAction
from otf_core.control.bus import Ticket
from otf_core.control.gate import State
from otf_core.control.router import CommandRouter
from otf_core.errors import CommandError, ErrorCode
from otf_core.ranks.together import Others
from otf_core.state.park import Parked, Parking
from otf_core.state.store import Pending

NOT_HERE: Final = (
    "Whoever drives this run has not said what it holds on the device, so it cannot be parked."
)
# What touches nothing of the run that lies on the device. The names of other parts' commands may
# be here before there are any.
AS_IT_IS: Final = frozenset(
    {
        "park", "list_params", "list_checkpoints", "list_changes", "list_guards", "set_guard",
        "results", "note", "samples", "select", "set_counter_seeds", "clean_disk",
        "get_selected_region_indices", "propose_subsets", "export_report", "export_recipe",
        "pause", "resume", "stop", "status", "ping", "cancel",
    }
)  # fmt: skip


class Run(Protocol):
    """What is needed of the session."""

    def save(self, kind: str) -> Pending:
        """See Session.save."""

    def emit(self, kind: str, /, **fields: Any) -> Any:
        """Tell."""


class Park:
    """Of one session; what ``ConsoleAction`` asks before the run goes on.

    Args:
        parking: of this process; None where nobody knows what it holds.
        others: the other ranks of the run.
    """

    def __init__(
        self,
        run: Run,
        parking: Parking | None,
        *,
        actions: ConsoleAction,
        step: Callable[[], int],
        others: Others | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._parking, self._actions, self._step = run, parking, actions, step
        self._others, self._now_s = others, now_s
        self._since_s: float | None = None
        self._told: dict[str, Any] = {}
        actions.park = self

    def register(self, router: CommandRouter) -> None:
        """The command."""
        router.on("park")(self._park)
        router.refuse = self.refuse
        why = NOT_HERE if self._parking is None else self._parking.never()
        if why is not None:
            router.unsupported({"park": why})

    @property
    def parked(self) -> bool:
        """Whether any rank's tensors are away; any thread."""
        return self._since_s is not None

    def status(self) -> dict[str, Any] | None:
        """As ``status`` has it; any thread."""
        since_s = self._since_s
        if since_s is None:
            return None
        return {"since_s": self._now_s() - since_s, "freed_bytes": self._told.get("freed_bytes", 0)}

    def refuse(self, cmd: str) -> None:
        """Refuse what would touch what is away.

        Raises:
            CommandError: ``not_allowed_now``.
        """
        if self.parked and cmd not in AS_IT_IS:
            detail = (
                f"{cmd} was asked, found the run parked; allowed: `resume`, or `park` with back, "
                "after which it stays paused."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)

    def _park(self, ticket: Ticket) -> dict[str, Any]:
        if ticket.payload.back:
            changed = self.parked
            self.back(ticket.id)
            step = self._step()
            return {"parked": False, "changed": changed, "step": step, "applied_step": step}
        if not self.parked:
            if self._actions.gate.state is not State.HELD:
                detail = "park was asked, found the run training; allowed: while it is paused."
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
            self._away(ticket)
            return {**self._told, "changed": True}
        return {**self._told, "changed": False}

    def _away(self, ticket: Ticket) -> None:
        assert self._parking is not None
        with self._all("park_check"):  # before anything is written, on every rank
            self._parking.check()
        saved = self._saved()
        self._since_s = self._now_s()  # where half of the ranks have done it, it is
        try:
            with self._all("park") as heard:
                own = self._parking.park()
        except BaseException:
            with contextlib.suppress(CommandError):
                self.back(ticket.id)
            raise
        every = [own, *(Parked(*each) for each in heard.values())]
        step = self._step()
        self._told = {
            "parked": True,
            "step": step,
            "applied_step": step,
            "moved_bytes": sum(each.moved_bytes for each in every),
            "pinned_bytes": sum(each.pinned_bytes for each in every),
            "freed_bytes": sum(each.freed_bytes for each in every),
            "left_bytes": sum(each.left_bytes for each in every),
            "ranks": len(every),
            "ckpt": saved.path,
            "seconds": max(each.seconds for each in every),
        }
        told = {name: self._told[name] for name in ("moved_bytes", "freed_bytes", "seconds")}
        self._run.emit("parked", parked=True, step=step, request_id=ticket.id, **told)

    def _saved(self) -> Pending:
        """The checkpoint of the pause, whole."""
        saved = self._run.save("pause")
        saved.wait(math.inf)
        if saved.error is not None:
            why = saved.error.detail
            detail = f"park was asked, and there is no checkpoint of the pause: {why}"
            raise CommandError(saved.error.code, detail) from saved.error
        return saved

    def back(self, request_id: str | None = None) -> None:
        """All of it is on the device again, on every rank; nothing where it is already.

        Raises:
            CommandError: it could not be had on one of them; the run stays parked.
        """
        if self._parking is None or not self.parked:
            return
        began_s = self._now_s()
        with self._all("unpark"):
            self._parking.back()
        self._since_s = None
        moved = {name: self._told.get(name, 0) for name in ("moved_bytes", "freed_bytes")}
        seconds = self._now_s() - began_s
        self._run.emit(
            "parked", parked=False, step=self._step(), request_id=request_id,
            seconds=seconds, **moved,
        )  # fmt: skip

    def back_here(self) -> None:
        """That of this process alone, where the run is left and nobody else can be asked."""
        if self._parking is not None:
            with contextlib.suppress(CommandError):
                self._parking.back()
                self._since_s = None

    def _all(self, name: str) -> contextlib.AbstractContextManager[dict[int, Any]]:
        if self._others is None:
            return contextlib.nullcontext({})
        return self._others.do(name)
