"""A script's checkpoints, and the wait for the place from which it goes on; training thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import torch

from otf_core.control.delegate import Applied
from otf_core.errors import CommandError, ErrorCode
from otf_core.script import marks
from otf_core.script.driver import frames_to
from otf_core.script.frames import Spot
from otf_core.script.loaders import is_batches
from otf_core.script.loops import LOOPS
from otf_core.script.reentry import Moment, Reentry
from otf_core.script.register import REGISTERED
from otf_core.script.stop import AGAIN, StopScript
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.exactness import FORCE
from otf_core.state.host_pool import HostPool
from otf_core.state.keeper import Origin, ResumeError

if TYPE_CHECKING:
    from otf_core.script.control import ScriptControl

REFUSED_CODE: Final = 3
_PLACE: Final = ("format", "stack", "head", "sources", "refused")


class ScriptReentry:
    """What the delegate asks for, of one script."""

    def __init__(self, control: ScriptControl, folder: Path) -> None:
        self._control = control
        LOOPS.known, LOOPS.compiling = is_batches, torch.compiler.is_compiling
        self.core = Reentry(folder, LOOPS, REGISTERED.values)
        self._reasons: list[str] = []
        self._left_out: list[str] = []

    def moment(self) -> Moment:
        """That of the safe point."""
        return Moment(self._control.frames(), self._control.driver.asked)

    def begins(self, frame: FrameType) -> None:
        """Before anything is trained."""
        try:
            self.core.begins(Moment(frames_to(frame, self._control.main)))
        except Exception as error:  # noqa: BLE001 -- border: the script's objects may raise anything
            why = f"what the script holds could not be looked at ({type(error).__name__}: {error})"
            self._reasons = [why[:300]]

    def capture(self, pool: HostPool | None) -> dict[str, Any]:
        """See ControlDelegate.capture."""
        driver = self._control.driver
        also = {"optimizers": list(driver.optimizers), "feeding": driver.feeding}
        taken = self.core.capture(self.moment(), pool.copy if pool is not None else None, also)
        self._reasons, self._left_out = taken.reasons, taken.left_out
        return {"otf": {"exact": {"script": {**taken.state, "driver": driver.state()}}}}

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
        """See ControlDelegate.check; also that this is the place."""
        saved = _script_in(state)
        self.core.check(saved)
        self.core.refuse_another_place(saved, self.moment())

    def apply(self, state: dict[str, Any]) -> Applied:
        """See ControlDelegate.apply.

        Raises:
            CommandError: also ``not_allowed_now``: something has no place here.
        """
        saved, driver = _script_in(state), self._control.driver
        given = self.core.apply(saved, self.moment())
        if given.lost and os.environ.get(FORCE) != "1":
            detail = f"It would not go on exactly: {'; '.join(given.lost)}. {FORCE}=1 allows it."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
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
        return self._reasons, self._left_out


class Waiting:
    """Waits, in a script that has started again, for the place where it was saved.

    Args:
        origin: the checkpoint from which it goes on.

    Raises:
        ResumeError: it cannot be read, or is none of a script's.
    """

    def __init__(
        self, control: ScriptControl, core: Reentry, origin: Origin, say: Callable[[str], None]
    ) -> None:
        self._control, self._core, self._say = control, core, say
        self._path = origin.path
        try:
            state, _ = read_checkpoint(origin.path, field="path")
            saved = _script_in(state)
            core.check(saved)
        except CommandError as error:
            raise ResumeError(self._sentence(error.detail)) from error
        self._saved = {name: saved[name] for name in _PLACE}
        *_, last = saved["stack"]
        self._at = Spot(*last)
        self._sources = 0
        self._refused = 0

    def arrived(self, frame: FrameType) -> bool:
        """See driver.Resume."""
        code = frame.f_code
        driver = self._control.driver
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
        self._refuse_edited()
        self.leave(f"{what} trains before the script is at {self._at}, where it was saved")

    def never(self) -> str:
        """The script is over, and was not there."""
        return self._sentence(f"the script never came to {self._at}, where it was saved")

    def leave(self, why: str) -> None:
        """Say it and leave the script; one that catches everything is ended for good."""
        self._refused += 1
        if self._refused > AGAIN:
            sys.stdout.flush()
            os._exit(REFUSED_CODE)
        if self._refused == 1:
            self._say(self._sentence(why))
        raise StopScript(REFUSED_CODE)

    def _sentence(self, why: str) -> str:
        return f"resume was asked from {self._path}: {why.rstrip('.')}; nothing was trained"


def _script_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """The part that is ours.

    Raises:
        CommandError: ``bad_payload``; it is of something else.
    """
    exact = (state.get("otf") or {}).get("exact")
    found = exact.get("script") if isinstance(exact, Mapping) else None
    if not isinstance(found, dict):
        detail = "A checkpoint of a script was asked for, this is none."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    return found
