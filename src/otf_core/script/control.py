"""One script's run: opened when training is first seen, told of each step, closed at its end.

Rule 1: attaching changes nothing; what is asked for is done at the safe point.
Rule 2: the session is closed when the process ends, behind the script's own threads and ``atexit``.
Rule 3: of several ranks only the first has a session; the others have their part saved.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from otf_core.errors import CommandError, OtfError
from otf_core.opening import RunOptions, only_watched, script_name
from otf_core.ranks.other import OtherRank
from otf_core.script import graphs, marks
from otf_core.script.border import Border
from otf_core.script.delegate import UNSUPPORTED, ScriptDelegate
from otf_core.script.driver import ScriptDriver, frames_to
from otf_core.script.found import Found, class_of, find
from otf_core.script.goes_on import REFUSED_CODE, ScriptReentry, Waiting
from otf_core.script.held import Held
from otf_core.script.loaders import tapping
from otf_core.script.ranks import Ranks, expected, joining, refused, together
from otf_core.script.stop import Stop, StopScript
from otf_core.session import Session
from otf_core.state.keeper import Every, Origin, Schedule
from otf_core.state.on_device import Holdings
from otf_core.state.park import Parking
from otf_core.state.parts import params_of
from otf_core.steering.ledger import Slot
from otf_core.steering.params import Steering
from otf_core.steering.recipe import RecipeError
from otf_core.telemetry.batch import batch_size


class ScriptControl:
    """Stands between a script that is being run and its session; training thread.

    Args:
        options: what the person has chosen.
        folder: where the script's own modules are.
        stop_code: the exit code of a script that was stopped.
        say: one sentence for the person; never on stdout, which is the script's.
        origin: from which the run goes on, where it does.
        find: in place of it, where there will be several ranks.
        border: told of faults before there was a control as well.

    Raises:
        ResumeError: there is nothing to go on from at the origin.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        folder: str,
        stop_code: int = 0,
        say: Callable[[str], None],
        origin: Origin | None = None,
        find: Callable[[], Origin | None] | None = None,
        border: Border | None = None,
    ) -> None:
        self._options, self._folder, self._stop_code = options, Path(folder), stop_code
        self._say = say
        self.ranks = Ranks()  # until there is a process group
        self.border = border or Border(say)
        self.border.let_go, self.border.refuses = self._let_go, self._refuses
        self.driver = ScriptDriver(self, say, self.border)
        self.found = Found()
        self.frame: FrameType | None = None  # the innermost one of the script, at a safe point
        self.turn = 0  # see reentry.Moment
        self._held = Held()
        self._reentry = ScriptReentry(self, self._folder)
        self._delegate = ScriptDelegate(self.driver, lambda: self.found, self._reentry)
        self._waiting: Waiting | None = None
        if origin is not None or find is not None:
            self._waiting = Waiting(self, self._reentry.core, say, origin=origin, find=find)
            self.driver.resume = self._waiting
        self._session: Session | None = None
        self._other: OtherRank | None = None  # in place of the session, on another rank
        self._looked_at = -1  # when so many optimizers had stepped
        self._said: str | None = None
        self._stop: Stop | None = None
        self._tells = options.telemetry != "off"
        self._samples: int | None = None
        self._fetched_s = self._fed_s = time.perf_counter()  # of the batch before the session
        self._loss: torch.Tensor | None = None  # of the last backward that was told
        self._own_classes: dict[type, bool] = {}
        self._attached = ExitStack()

    @property
    def session(self) -> Session | None:
        """The session, once training was seen."""
        return self._session

    @property
    def main(self) -> dict[str, Any]:
        """The variables of the script's main module."""
        return vars(sys.modules["__main__"])

    def attach(self) -> None:
        """Put the hooks into torch."""
        if self._waiting is not None:
            self._attached.enter_context(together(self._waiting.agree))
        if self._options.every.steps is not None and expected() > 1:
            self._attached.enter_context(joining(self._part))
        self._attached.enter_context(tapping(self.border))
        self._attached.enter_context(self.driver.attached())

    def begins_anew(self) -> None:
        """There is nothing to go on from."""
        self._waiting = self.driver.resume = None
        marks.put_in(due=False)

    def _part(self) -> None:
        self._reentry.apart = "within join() each has its own number of batches"

    def frames(self) -> list[FrameType]:
        """At a safe point: the script's frames from ``<module>`` to the loop."""
        return frames_to(self.frame, self.main)

    # What the driver tells.

    def begins(self, frame: FrameType) -> None:
        """See driver.Control."""
        self._reentry.begins(frame)
        self._open(frame)

    def before_step(self, optimizer: Optimizer, *, complete: bool) -> None:
        """See driver.Control."""
        if self._session is None:
            return
        if complete and self._tells:
            self._session.recorder.before_optimizer_step(lambda: params_of(optimizer))
        self._held.put_in(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:  # noqa: ARG002 -- the protocol's
        """See driver.Control."""
        self._held.take_out()

    def fetching(self) -> None:
        """See driver.Control."""
        if self._session is None:
            self._fetched_s = time.perf_counter()
            return
        if self._tells:
            if self.driver.loss is not self._loss:
                self._end_batch(self._session)  # one of several before an optimizer steps
            self._session.recorder.fetching()

    def fed(self, batch: Any) -> None:
        """See driver.Control."""
        if not self._tells:
            return
        self._samples = batch_size(batch)
        if self._session is not None:
            self._session.recorder.batch_started(None)
        else:
            self._fed_s = time.perf_counter()

    def evaluates(self) -> None:
        """See driver.Control."""
        if self._session is not None:
            self._session.stalls.passed += 1

    def pass_ended(self) -> None:
        """See driver.Control."""
        if self._session is not None:
            epoch = max(self.driver.passes - 1, 0)
            found = self._session.recorder.latest
            self._session.emit("epoch_end", epoch=epoch, val_loss=found.get("val_loss"))

    def safe_point(self, frame: FrameType) -> None:
        """See driver.Control; raises StopScript where the script is to end."""
        self.frame = frame
        try:
            stop = self._tick(frame)
        except (OtfError, CommandError) as error:
            if self._waiting is None:
                raise
            if self._session is not None:
                self._session.finish("failed", error=str(error))
            self.driver.wait_again(self._waiting)
            self._waiting.leave(str(error))
        finally:
            self.frame = None
        self.turn = graphs.now()
        self._waiting = None  # it goes on
        session = self._session
        if session is None:
            return
        if self.driver.kind == "head":
            session.recorder.batch_started(None)
        if stop or self._stop is not None:
            self._leave(session)

    def _tick(self, frame: FrameType) -> bool:
        """Whether the run is to stop here."""
        if self._session is None and self._other is None:
            self._open(frame)  # the run goes on: nothing was trained yet
        if self._other is not None:
            return self._other.tick()
        session = self._session
        assert session is not None
        goes_on = self.driver.step == 0  # nothing was trained: what feeds it is known behind it
        if self._looked_at != self.driver.optimizers_seen:
            self._look(frame)
        if not goes_on:
            self._tell_found(session)
            self._end_batch(session)
        try:
            stop = session.tick(lrs=self._lrs, epoch=self._epoch_of_step())
        except RecipeError as error:  # it would train on as another run than was asked for
            self._say(str(error))
            raise StopScript(REFUSED_CODE) from error
        if goes_on:
            self._look(frame)
            self._tell_found(session)
        return stop

    def _leave(self, session: Session) -> None:
        self._stop = self._stop or Stop(self._stop_code)
        self._stop.ask()
        refused = self._stop.refusal()
        self._stop = None
        session.actions.not_left(refused)
        self._say(refused)

    # Inside.

    def _open(self, frame: FrameType) -> None:
        self.ranks = ranks = Ranks.here()
        origin = self._waiting.origin if self._waiting is not None else None
        if ranks.rank != 0:
            schedule, saves = Schedule(self._options.every), self._options.every.steps is not None
            self._other = OtherRank(self._delegate, schedule, origin, saves=saves, env=os.environ)
            return
        world_size = ranks.size
        self._look(frame)
        model = self._delegate.model()
        name = class_of(model) if model is not None else script_name()
        device = _device_of(self.found)
        session = Session(
            self._delegate,
            self._options.session_options(name, origin, world_size=world_size),
            steering=Steering(self._delegate, self._held),
            device=str(device),
            gpu=(device.index or 0) if device.type == "cuda" else None,
            world_size=world_size,
            unsupported={**only_watched(world_size), **UNSUPPORTED},
            cannot_save=_cannot_save(self._options.every, world_size),
            guest=True,
            say=self._say,
            parking=Parking(self._holdings, lambda: device),
        )
        session.start(meta={"model": name})
        if not session.saves:
            ranks.part("rank 0 keeps none")
        session.begin()
        session.recorder.fetching(self._fetched_s)
        session.recorder.batch_started(None, self._fed_s)
        self._session = session

    def _holdings(self) -> Holdings:
        """Of modules and optimizers; what else the script has on the device stays there."""
        optimizers = {f"optimizer '{name}'": each for name, each in self.found.optimizers}
        return Holdings({**dict(self.found.modules), **optimizers})

    def _look(self, frame: FrameType) -> None:
        frames = frames_to(frame, self.main)
        self.found = find(frames, self.driver.optimizers, self._is_own)

    def _tell_found(self, session: Session) -> None:
        """On stderr once; in the journal whenever something else is trained."""
        if self._looked_at == self.driver.optimizers_seen:
            return
        self._looked_at = self.driver.optimizers_seen
        it = self.driver.feeding if self.driver.kind == "loader" else None
        loader = _loader_of(it, self.found) if it is not None else None
        said = self.found.sentence(loader, fed=self.driver.kind == "loader")
        if self._said is None:
            self._say(said)
        if said != self._said:
            session.emit("log", level="info", phase="info", text=said)
        self._said = said

    def _is_own(self, cls: type) -> bool:
        known = self._own_classes.get(cls)
        if known is None:
            module = sys.modules.get(getattr(cls, "__module__", None) or "")
            file = getattr(module, "__file__", None)
            known = module is not None and (
                vars(module) is self.main
                or (
                    file is not None
                    and Path(file).is_relative_to(self._folder)
                    and "site-packages" not in file
                )
            )
            self._own_classes[cls] = known
        return known

    def _end_batch(self, session: Session) -> None:
        self._loss = loss = self.driver.loss
        if not self._tells:
            return
        session.recorder.batch_ended(loss, None, self._weights, samples=self._samples or 0)
        self._samples = None

    def _weights(self) -> Iterable[torch.Tensor]:
        models = self.found.models()
        if models:
            return (p for _, model in models for p in model.parameters())
        return (p for _, o in self.found.optimizers for p in params_of(o))

    def _lrs(self) -> list[Any]:
        """What the next step uses, of every group."""
        used = self._held.used if self._held else Slot.raw
        return [
            used(Slot(optimizer, n, "lr"))
            for _, optimizer in self.found.optimizers
            for n, group in enumerate(optimizer.param_groups)
            if "lr" in group
        ]

    def _epoch_of_step(self) -> int:
        return max(self.driver.passes - 1, 0)

    def never_arrived(self) -> str | None:
        """The sentence of a script that is over and was not at the place from which it goes on.

        Empty where it was told why already.
        """
        waits = self._waiting is not None and self.driver.resume is self._waiting
        return self._waiting.never() if waits and self._waiting is not None else None

    # The end.

    def _refuses(self, said: str) -> bool:
        """See Border: what was to go on is not trained from its beginning."""
        if self._waiting is not None:
            self._break_off(said)
            self.driver.wait_again(self._waiting)
            self._waiting.leave(said)
        return False

    def _let_go(self, said: str, text: str) -> None:
        """See Border."""
        marks.put_in(due=False)
        self.border.attempt(self._held.take_all_out)
        if self._session is not None:
            emit = self._session.emit
            self.border.attempt(lambda: emit("log", level="error", phase="info", text=text))
        self._break_off(said)

    def _break_off(self, said: str) -> None:
        session, self._session = self._session, None
        self.border.attempt(lambda: self.ranks.part(f"rank {self.ranks.rank} has had {said}"))
        if session is not None:
            self.border.attempt(lambda: session.break_off(said))

    def close(self, ending: BaseException | None) -> bool:
        """The script is over; what is left is delivered, and torch is as it was.

        Args:
            ending: what it ended with, None where it ran to its end.

        Returns:
            Whether anything was trained.
        """
        self._attached.close()
        if self._other is not None or self._options.every.steps is not None:
            self.ranks.end()
        session = self._session
        if session is None:
            return self._other is not None
        if self.driver.trained:  # there was no safe point behind it any more
            self.driver.count_last()
            self._end_batch(session)
            session.tell_step(lrs=self._lrs, logged=dict, epoch=self._epoch_of_step())
        status, error = _ended(ending)
        session.finish(status, error=error)
        session.close()
        return True


def _ended(ending: BaseException | None) -> tuple[str, str | None]:
    """How the session is to say it, and with which error."""
    if ending is None or isinstance(ending, StopScript):
        return "finished", None
    if isinstance(ending, KeyboardInterrupt):
        return "interrupted", None
    if isinstance(ending, SystemExit):
        if ending.code in (None, 0):
            return "finished", None
        code = ending.code
        said = f"exit code {code}" if isinstance(code, int) else str(code)[:2000]
        return "failed", said
    return "failed", f"{type(ending).__name__}: {ending}"[:2000]


def _cannot_save(every: Every, world_size: int) -> str | None:
    if world_size == 1 or every.steps is not None:
        return None
    return refused(every, world_size) or (
        f"Of a script with {world_size} ranks checkpoints are kept by --checkpoint-every N, at "
        "steps that all of them count."
    )


def _loader_of(it: Any, found: Found) -> DataLoader[Any] | None:
    """The loader on the stack that an iterator belongs to."""
    loaders = [loader for _, loader in found.loaders if loader.dataset is it._dataset]  # noqa: SLF001 -- see driver.PRIVATE
    exact = [each for each in loaders if each._index_sampler is it._index_sampler]  # noqa: SLF001 -- as above
    return next(iter((*exact, *loaders)), None)


def _device_of(found: Found) -> torch.device:
    for _, optimizer in found.optimizers:
        for parameter in params_of(optimizer):
            return torch.device(parameter.device)
    for _, module in found.models():
        for parameter in module.parameters():
            return torch.device(parameter.device)
    return torch.device("cpu")
