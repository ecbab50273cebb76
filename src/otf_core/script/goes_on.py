"""A script's checkpoints, and the wait for the place from which it goes on; training thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from otf_core.control.delegate import Applied
from otf_core.errors import CommandError, ErrorCode
from otf_core.script import marks
from otf_core.script.driver import frames_to
from otf_core.script.frames import Spot
from otf_core.script.loaders import is_batches
from otf_core.script.loops import LOOPS
from otf_core.script.ranks import STEP, Ranks
from otf_core.script.reentry import Moment, Reentry
from otf_core.script.register import REGISTERED
from otf_core.script.stop import AGAIN, StopScript
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.exactness import FORCE
from otf_core.state.gather import gather
from otf_core.state.host_pool import HostPool
from otf_core.state.keeper import Origin, ResumeError
from otf_core.state.parts import refuse_another_world

if TYPE_CHECKING:
    from otf_core.script.control import ScriptControl

REFUSED_CODE: Final = 3
# Where ranks meet before anything is trained: they know from where; they are there.
ORIGIN: Final = "origin"
PLACE: Final = "place"
TOGETHER_S: Final = 20.0
MANY: Final = "more than 2 ranks: DDP sums the first gradients after a resume in another order"
_NOTHING: Final = "; nothing was trained"
_PLACE: Final = ("format", "stack", "head", "sources", "refused")


class ScriptReentry:
    """What the delegate asks for, of one script."""

    def __init__(self, control: ScriptControl, folder: Path) -> None:
        self._control = control
        LOOPS.known, LOOPS.compiling = is_batches, torch.compiler.is_compiling
        self.core = Reentry(folder, LOOPS, REGISTERED.values)
        self._reasons: list[str] = []
        self._left_out: list[str] = []
        self.apart = ""  # why the ranks do not count the same steps any more

    def moment(self) -> Moment:
        """That of the safe point."""
        return Moment(self._control.frames(), self._control.driver.asked, self._control.turn)

    def begins(self, frame: FrameType) -> None:
        """Before anything is trained."""
        try:
            self.core.begins(Moment(frames_to(frame, self._control.main)))
        except Exception as error:  # noqa: BLE001 -- border: the script's objects may raise anything
            why = f"what the script holds could not be looked at ({type(error).__name__}: {error})"
            self._reasons = [why[:300]]

    def capture(self, pool: HostPool | None) -> dict[str, Any]:
        """See ControlDelegate.capture.

        Of several ranks all must call it at the same step; rank 0 gets the whole.

        Raises:
            CommandError: on rank 0 also ``unsupported``: the others do not come there.
        """
        ranks = self._control.ranks
        if ranks.size == 1:
            state, self._reasons, self._left_out = self._part(pool)
            return {"otf": {"exact": {"script": state}}}
        if why := ranks.meet(f"{STEP}{self._control.driver.step}", self._apart()):
            ranks.part(why)  # nobody is waited for again
            if ranks.rank:
                return {}
            raise CommandError(ErrorCode.UNSUPPORTED, f"The ranks keep no checkpoint: {why}.")
        parts = gather(lambda: self._part(pool))
        if parts is None:
            return {}
        (state, self._reasons, self._left_out), *others = parts
        for rank, (other, reasons, left_out) in enumerate(others, start=1):
            _share(state["nodes"], other["nodes"])
            self._reasons += [f"rank {rank}: {reason}" for reason in reasons]
            self._left_out += left_out
        return {"otf": {"exact": {"script": state}, "ranks": [other for other, *_ in others]}}

    def _part(self, pool: HostPool | None) -> tuple[dict[str, Any], list[str], list[str]]:
        """What is this rank's: its state, what is not exact in it, what it leaves out."""
        driver = self._control.driver
        also = {"optimizers": list(driver.optimizers), "feeding": driver.feeding}
        taken = self.core.capture(self.moment(), pool.copy if pool is not None else None, also)
        return {**taken.state, "driver": driver.state()}, taken.reasons, taken.left_out

    def _apart(self) -> str:
        gone = not torch.distributed.is_initialized()
        return self.apart or ("the script has ended its process group" if gone else "")

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """See ControlDelegate.sizes; of the models and optimizers."""
        found = self._control.found
        tensors: list[torch.Tensor] = []
        for _, model in found.models():
            tensors += [*model.parameters(), *model.buffers()]
        for _, optimizer in found.optimizers:
            states = optimizer.state.values()
            tensors += [t for s in states for t in s.values() if isinstance(t, torch.Tensor)]
        return [(t.numel() * t.element_size(), t.is_cuda) for t in tensors if t.numel()]

    def check(self, state: Mapping[str, Any]) -> None:
        """See ControlDelegate.check; also that this is the place, and that of this very run.

        What another run's models and variables were shows only when they are put back, which is
        too late where something is trained already.
        """
        saved, session = _script_in(state, self._control.ranks), self._control.session
        run_id = state["otf"].get("run_id")
        if self._control.driver.step and session is not None and run_id != session.run_id:
            detail = (
                f"The checkpoint is of the run {str(run_id)[:120]!r}, this one is "
                f"{session.run_id}; allowed: one of its own, or otf-fit --resume."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
        self.core.check(saved)
        self.core.refuse_another_place(saved, self.moment())

    def apply(self, state: dict[str, Any]) -> Applied:
        """See ControlDelegate.apply.

        Raises:
            CommandError: also ``not_allowed_now``: something has no place here.
        """
        saved, driver = _script_in(state, self._control.ranks), self._control.driver
        given = self.core.apply(saved, self.moment())
        if given.lost and os.environ.get(FORCE) != "1":
            detail = f"It would not go on exactly: {'; '.join(given.lost)}. {FORCE}=1 allows it."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        if why := self._control.ranks.meet(PLACE):
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, why)
        driver.begin_at(saved["driver"], given.also["optimizers"], given.also["feeding"])
        settled = given.settled
        return Applied(
            lost=given.lost,
            left_out=[text for each in settled for text in each.told_text],
            saved=[text for each in settled for text in each.told_numbers],
        )

    def environment(self) -> dict[str, Any]:
        """See ControlDelegate.environment."""
        return {}

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """See ControlDelegate.exactness; of the last capture."""
        many = [MANY] if self._control.ranks.size > 2 else []
        return [*self._reasons, *many], self._left_out


class Waiting:
    """Waits, in a script that has started again, for the place where it was saved.

    Args:
        origin: the checkpoint from which it goes on.
        find: in place of it, where there will be several ranks: they agree when they have come
            together.

    Raises:
        ResumeError: it cannot be read, or is none of a script's.
    """

    def __init__(
        self,
        control: ScriptControl,
        core: Reentry,
        say: Callable[[str], None],
        *,
        origin: Origin | None = None,
        find: Callable[[], Origin | None] | None = None,
    ) -> None:
        self._control, self._core, self._say = control, core, say
        self._find, self.origin = find, origin
        self._sources = 0
        self._refused = 0
        if origin is not None:
            self._read(origin)

    def _read(self, origin: Origin) -> None:
        try:
            state, _ = read_checkpoint(origin.path, field="path")
            saved = _script_in(state, self._control.ranks)
            self._core.check(saved)
        except CommandError as error:
            raise ResumeError(self._sentence(error.detail)) from error
        self._saved = {name: saved[name] for name in _PLACE}
        *_, last = saved["stack"]
        self._at = Spot(*last)

    def agree(self) -> None:
        """The ranks have come together: from here on all know where they go on, or leave."""
        if self._find is None:
            return
        find, self._find = self._find, None
        ranks = self._control.ranks = Ranks.here()
        why = ""
        try:
            self.origin = ranks.origin(find)
            if self.origin is not None:
                self._read(self.origin)
        except ResumeError as error:
            why = str(error)
        if why := ranks.meet(ORIGIN, why):
            self.leave(why, agreed=True)
        if self.origin is None:
            self._control.begins_anew()

    def arrived(self, frame: FrameType) -> bool:
        """See driver.Resume."""
        if self._refused:
            self.leave("")
        self.agree()
        code = frame.f_code
        driver = self._control.driver
        if driver.resume is not self:
            return False
        if driver.asked is None and (code.co_qualname, frame.f_lineno) != (
            self._at.name,
            self._at.at[0],
        ):
            return False
        self._refuse_edited()
        stack = frames_to(frame, self._control.main)
        return self._core.is_here(self._saved, Moment(stack, driver.asked))

    def _refuse_edited(self) -> None:
        if len(marks.SOURCES) != self._sources:
            self._sources = len(marks.SOURCES)
            if (why := self._core.edited(self._saved)) is not None:
                self.leave(why)

    def refuse(self, what: str) -> None:
        """See driver.Resume."""
        self.agree()
        if self._control.driver.resume is not self:
            return
        self._refuse_edited()
        self.leave(f"{what} trains before the script is at {self._at}, where it was saved")

    def never(self) -> str | None:
        """The script is over, and was not there; empty where it was told to end.

        None where there may be nothing to go on from: the ranks have not come together.
        """
        if self._find is not None:
            return None
        if self._refused:
            return ""
        why = f"the script never came to {self._at}, where it was saved"
        return self._sentence(self._control.ranks.meet(PLACE, why))

    def leave(self, why: str, *, agreed: bool = False) -> NoReturn:
        """Say it and leave the script; one that catches everything is ended for good.

        Args:
            agreed: all ranks know of it.
        """
        self._refused += 1
        if self._refused > AGAIN:
            sys.stdout.flush()
            os._exit(REFUSED_CODE)
        if self._refused == 1:
            ranks = self._control.ranks
            if ranks.size > 1:
                why = why if agreed else ranks.meet(PLACE, why)
                _leave_together(ranks, ORIGIN if agreed else PLACE)
            self._say(self._sentence(why))
        raise StopScript(REFUSED_CODE)

    def _sentence(self, why: str) -> str:
        """Said once of it; what is a sentence already, of another rank too, is left as it is."""
        if why.endswith(_NOTHING):
            return why
        asked = f"resume was asked from {self.origin.path}: " if self.origin is not None else ""
        return f"{asked}{why.rstrip('.')}{_NOTHING}"


def _leave_together(ranks: Ranks, place: str) -> None:
    """Whoever started the ranks ends the others when one is over; each has its own code first."""
    ranks.wait(place, TOGETHER_S)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _share(mine: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """What another rank has alike becomes the same tensor, which a file has once."""
    for one, other in zip(mine, others, strict=False):
        a, b = one.get("v"), other.get("v")
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and _alike(a, b):
            other["v"] = a


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _script_in(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """The part that is ours, of this rank.

    Raises:
        CommandError: ``bad_payload``; it is of something else, or of another number of ranks.
    """
    exact = (state.get("otf") or {}).get("exact")
    found = exact.get("script") if isinstance(exact, Mapping) else None
    if not isinstance(found, dict):
        detail = "A checkpoint of a script was asked for, this is none."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    parts: list[dict[str, Any]] = [found, *state["otf"].get("ranks", ())]
    refuse_another_world(len(parts), ranks.size)
    return parts[ranks.rank]
