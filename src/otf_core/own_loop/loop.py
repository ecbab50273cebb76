"""OwnLoop: what ``otf_core.attach`` returns, and a loop of the user's calls.

Rule 1: ``tick`` is the safe point: the last thing that is done for a batch, once for each.
Rule 2: nothing of the loop is changed but the iterator that its ``for`` reads; the loop decides
when it ends, and whether it has ended is said only then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import nn

from otf_core.control.delegate import Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.opening import RunOptions, only_watched, tell_epoch
from otf_core.own_loop.arguments import epochs_of, numbers_of
from otf_core.own_loop.batches import Batches, Handed
from otf_core.own_loop.delegate import Evaluate, OwnLoopDelegate
from otf_core.session import Session
from otf_core.state.keeper import ResumeError
from otf_core.state.on_device import holdings_of
from otf_core.state.park import Parking
from otf_core.state.parts import params_of, rates_of
from otf_core.state.training import Pieces
from otf_core.steering.params import Steering
from otf_core.steering.preview import NEEDS_CADENCE
from otf_core.steering.recipe import RecipeError
from otf_core.telemetry.canonical import canonicalize_metrics

KIND: Final = "a loop with otf_core.attach"
PATIENCE: Final = 2  # batches that a loop may go on after a stop before that is refused
OWN_VARIABLES: Final = "the loop's own variables (state= takes them, state={} says there are none)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What ``attach`` was given, looked at."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    scaler: Any
    train_loader: Any
    val_loaders: Mapping[str, Any]
    objects: Mapping[str, Any]
    plain: Mapping[str, Any]
    says_all: bool
    validate: Evaluate | None
    test: Evaluate | None
    max_epochs: int | None

    @property
    def name(self) -> str:
        """The class of the first model."""
        return type(next(iter(self.modules.values()))).__name__


class OwnLoop:
    """The session of a training loop that the user owns; a context manager, entered once.

    Everything here is for the thread that trains.
    """

    def __init__(self, given: Given, options: RunOptions) -> None:
        self._given, self._options = given, options
        self._session: Session | None = None  # None on other ranks
        self._entered = self._closed = self._leaving = False
        self._batches: Batches | None = None
        if given.train_loader is not None:
            self._batches = Batches(given.train_loader, self._before_first, self._fetched)
        parameter = next((p for m in given.modules.values() for p in m.parameters()), None)
        self._device = parameter.device if parameter is not None else torch.device("cpu")
        self._delegate = OwnLoopDelegate(
            self,
            self._pieces(),
            self._batches,
            validate=given.validate,
            test=given.test,
            left_out=[] if given.says_all else [OWN_VARIABLES],
            params=options.params,
        )
        self._hooks: list[Any] = []
        # Where the loop stands.
        self._step = self._global_step = self._epoch = self._ticks = 0
        self._max_epochs = given.max_epochs
        self._extended: int | None = None
        self._counts = False  # by ``epochs``
        self._yielded: int | None = None  # the epoch that the loop was given last
        self._of_last_tick: Handed | None = None  # whose batch the last tick was of
        self.ticked = False  # in this process
        self._within = False  # the loop is in its ``for``, at a tick
        self._ended_at: int | None = None  # the step at which the end was kept
        # Of the batch that is under way.
        self._stepped = 0
        self._batch: Any = None
        self._logged: dict[str, Any] = {}
        self._found: dict[str, Any] = {}  # logged behind the epoch's last step
        self._kept: dict[str, Any] | None = None  # to be put back before the first batch
        self._stop = False
        self._goes_on = 0  # batches since then

    # For the user.

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0; ``range(session.epoch, 3)`` goes on with it."""
        return self._epoch

    @property
    def step(self) -> int:
        """Steps done: batches behind which an optimizer has stepped."""
        return self._step

    @property
    def batch_idx(self) -> int:
        """Batches of this epoch that are done; for a loop without a loader."""
        current = self._batches.current if self._batches is not None else None
        return current.n if current is not None else self._ticks

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked for the end."""
        return self._stop

    @property
    def run_id(self) -> str | None:
        """Name of the run's folder; None on ranks that have no session."""
        return self._session.run_id if self._session is not None else None

    def epochs(self, max_epochs: int | None = None) -> Iterator[int]:
        """The epochs that are still to be trained, each its number from 0.

        Args:
            max_epochs: how many in all; by default that of ``attach``.

        Raises:
            TypeError: neither says how many, or it is no number of epochs.
        """
        asked = epochs_of(max_epochs)
        limit = self._given.max_epochs if asked is None else asked
        if limit is None:
            msg = "epochs was asked without a number; allowed: epochs(3), or attach(max_epochs=3)"
            raise TypeError(msg)
        self._refuse_outside("epochs")
        self._counts, self._max_epochs = True, limit
        if self._extended is not None:
            self._max_epochs = max(limit, self._extended)
        return self._turns()

    def batches(self) -> Iterator[Any]:
        """The batches of an epoch, also of a loader that is no DataLoader of torch.

        Raises:
            TypeError: there is no train_loader.
        """
        if self._batches is None:
            msg = "batches was asked without a loader; allowed: attach(train_loader=…)"
            raise TypeError(msg)
        return self._batches.hand()

    def tick(self, loss: Any = None, *, step: bool | None = None, **logged: Any) -> bool:
        """A batch is completely finished, its optimizer step too if there was one.

        Here the run is paused, saved, changed. ``if session.tick(loss=loss): break`` ends it where
        somebody asks for that.

        Args:
            loss: a number, or a tensor with one.
            step: whether this was a step; by default, whether an optimizer has stepped since the
                last tick.
            logged: numbers by name.

        Returns:
            Whether the loop is to end. One that goes on for two batches more trains on, and the
            ``stop`` is refused.

        Raises:
            TypeError: what is logged is no number.
            RuntimeError: outside of the ``with``.
        """
        self._refuse_outside("tick")
        found = numbers_of(logged)
        self._count(step=step)
        if self._session is None:
            return False
        self._logged.update(found)
        if self._options.telemetry != "off":
            loss = loss.detach() if isinstance(loss, torch.Tensor) else loss
            self._session.recorder.batch_ended(loss, self._batch, self._parameters)
        self._batch = None
        self._within = True
        self._between_batches(self._session)
        self._within = False
        return self._asks_for_the_end(self._session)

    def log(self, **logged: Any) -> None:
        """Numbers by name that belong to no batch, as those of a validation at an epoch's end.

        Told with the next step; the loss of a validation also with the end of the epoch.

        Raises:
            TypeError: one is no number.
        """
        found = numbers_of(logged)
        self._logged.update(found)
        self._found.update(found)

    # Its life.

    def __enter__(self) -> Self:
        if self._entered:
            msg = "attach was asked to be entered twice; allowed: once, attach again"
            raise RuntimeError(msg)
        self._entered = True
        rank, world_size = _ranks()
        asked = self._options.asked_origin()
        if world_size > 1 and asked is not None:  # on every rank
            msg = f"resume was asked from {asked} for {world_size} ranks; allowed: one process"
            raise ResumeError(msg)
        if world_size > 1 and self._options.recipe is not None:
            msg = f"a recipe was asked for {world_size} ranks; allowed: one process"
            raise RecipeError(msg)
        if rank == 0:
            try:
                self._open(world_size)
            except BaseException as error:
                self._close(error)
                raise
        return self

    def _open(self, world_size: int) -> None:
        self._delegate.attributes.check()
        origin = self._options.origin(self._given.name)
        self._put_hooks()
        if self._batches is not None:
            self._batches.attach()
        device, name = self._device, self._given.name
        self._session = session = Session(
            self._delegate,
            self._options.session_options(name, origin, world_size=world_size),
            steering=Steering(self._delegate),
            device=str(device),
            gpu=(device.index or 0) if device.type == "cuda" else None,
            world_size=world_size,
            unsupported={**only_watched(world_size), **NEEDS_CADENCE},
            cannot_save=_cannot_save(world_size),
            stop_may_fail=True,
            parking=Parking(lambda: holdings_of(self._pieces(), fence=[self]), lambda: device),
        )
        session.start(meta={"model": name})
        session.begin()
        self._between_batches(session)
        self._keep_for_first()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        if error is None and self._session is not None:
            try:
                self._end(self._session)
            except BaseException as raised:
                self._close(raised)
                raise
        self._close(error)

    def _end(self, session: Session) -> None:
        """The loop has been left as it should."""
        self._leaving = True
        current = self._batches.current if self._batches is not None else None
        if current is not None and current.over and not self._counts:
            self._end_epoch()
        if self._ended_at != self._step:
            self._at_end(session)
        self._tell_step(session)
        session.finish("finished")

    def _close(self, error: BaseException | None) -> None:
        self._closed = True
        try:
            if self._session is not None:
                self._finish(self._session, error)
        finally:
            for hook in self._hooks:
                hook.remove()
            if self._batches is not None:
                self._batches.detach()

    def _finish(self, session: Session, error: BaseException | None) -> None:
        try:
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                self._tell_step(session)
                session.finish("interrupted")
            elif error is not None:
                self._tell_step(session)
                said = f"{type(error).__name__}: {error}"[:2000]
                session.finish("failed", error=said, left_by=type(error).__name__)
        finally:
            session.close()

    def _refuse_outside(self, what: str) -> None:
        if not self._entered or self._closed:
            found = "after it" if self._closed else "before it"
            msg = f"{what} was asked {found}; allowed: inside of `with attach(…) as session`"
            raise RuntimeError(msg)

    # Epochs.

    def _turns(self) -> Iterator[int]:
        while True:
            while self._has_more():
                self._yielded = self._epoch
                yield self._epoch
                if not self._stop:
                    self._end_epoch()
            if self._session is None or not self._at_end(self._session):
                return

    def _has_more(self) -> bool:
        return not self._stop and self._epoch < (self._max_epochs or 0)

    def _end_epoch(self) -> None:
        ended, self._epoch = self._epoch, self._epoch + 1
        self._ticks, self._of_last_tick = 0, None
        if self._batches is not None:
            self._batches.end_epoch()
        if self._session is not None:
            self._tell_epoch(self._session, ended)

    def _tell_epoch(self, session: Session, epoch: int) -> None:
        val_loss = canonicalize_metrics(self._found).get("val_loss")
        self._found = {}
        since = {} if val_loss is None else {"val_loss": val_loss}
        tell_epoch(session, epoch, step=self._step, **since)

    def _at_end(self, session: Session) -> bool:
        """All epochs are trained: keep the end, test and hold it where that is asked.

        Returns:
            Whether there are more by now.
        """
        if self._stop:
            return False
        self._ended_at = self._step
        session.at_end(lrs=self._lrs, logged=lambda: self._logged, epoch=self._epoch)
        self._stop = session.actions.stopping
        self._keep_for_first()
        return self._has_more()

    # Batches.

    def _count(self, *, step: bool | None) -> None:
        """What the batch that is done was: of which epoch, and whether it was a step."""
        self._ticks += 1
        self.ticked = True
        current = self._batches.current if self._batches is not None else None
        if not self._counts and current is not None:
            if self._of_last_tick is not None and current is not self._of_last_tick:
                ended, self._epoch, self._ticks = self._epoch, self._epoch + 1, 1
                if self._session is not None:
                    self._tell_epoch(self._session, ended)
            self._of_last_tick = current
        stepped, self._stepped = self._stepped, 0
        if bool(stepped) if step is None else step:
            self._step += 1
            self._global_step += max(stepped, 1)

    def _between_batches(self, session: Session) -> None:
        stop = session.tick(lrs=self._lrs, logged=lambda: self._logged, epoch=self._epoch)
        self._stop = self._stop or stop
        if self._batches is None or not self._batches.hands:
            session.recorder.batch_started(None)  # nobody sees it come

    def _tell_step(self, session: Session) -> None:
        session.tell_step(lrs=self._lrs, logged=lambda: self._logged, epoch=self._epoch)

    def _asks_for_the_end(self, session: Session) -> bool:
        if not self._stop:
            return False
        self._goes_on += 1
        if self._goes_on <= PATIENCE:
            return True
        session.actions.not_left(
            f"stop refused: the loop has trained on for {PATIENCE} batches after tick returned "
            "True; allowed: if session.tick(…): break"
        )
        self._stop, self._goes_on = False, 0
        return False

    def _fetched(self, batch: Any) -> None:
        """A batch is there."""
        if self._session is not None and self._options.telemetry != "off":
            self._batch = batch
            self._session.recorder.batch_started(self._watched)

    def _keep_for_first(self) -> None:
        """The loop's head comes: what it does to what was put back is taken back by the first
        batch."""
        if self._batches is not None and self._batches.waits:
            self._kept = self._delegate.capture()

    def _before_first(self) -> None:
        kept, self._kept = self._kept, None
        if kept is None or self._session is None:
            return
        if self._stepped:
            text = "the loop has trained before its first batch: it does not go on exactly"
            self._session.emit("log", level="warning", phase="info", text=text)
            return
        self._delegate.training.apply(kept, again=True)

    # What the delegate asks.

    def position(self) -> Position:
        """Where the loop stands."""
        return Position(
            step=self._step,
            global_step=self._global_step,
            epoch=self._epoch,
            batch_idx=self.batch_idx,
            max_epochs=self._max_epochs,
            epochs_done=self._epoch,
        )

    def refuse_to_go(self, epoch: int) -> None:
        """Refuse a place to which a loop that is under way cannot be brought.

        Raises:
            CommandError: ``not_allowed_now``.
        """
        if not self.ticked and not self._leaving:
            return  # it has not begun
        batches, now = self._batches, self._epoch
        if batches is None or not (batches.hands or batches.current is not None):
            why = "it reads its batches itself, which cannot be put back"
        elif self._leaving:
            why = "it has been left"
        elif epoch != now and not self._counts:
            why = f"it stands in epoch {now} of a range of its own, not in epoch {epoch}"
        else:
            return
        detail = (
            f"Another state was asked for the loop, but {why}; allowed: resume= when it begins."
        )
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)

    def went(self) -> list[str]:
        """Another state was put in place: read on from there."""
        if self._batches is not None:
            self._batches.go_on(within=self._within)
            self._of_last_tick = self._batches.current
        self._stepped, self._kept = 0, None
        if self._within and self._yielded not in (None, self._epoch):
            return [
                f"the loop goes on in epoch {self._epoch}, its own variable has {self._yielded} "
                "until that ends"
            ]
        return []

    def extend(self, max_epochs: int | None) -> None:
        """A new limit, where ``epochs`` counts."""
        if not self._counts or max_epochs is None:
            detail = "extend was asked, but the loop has no limit of session.epochs(…) to raise."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        self._max_epochs = self._extended = max_epochs

    def _counters(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "global_step": self._global_step,
            "epoch": self._epoch,
            "ticks": self._ticks,
            "extended": self._extended,
        }

    def _set_counters(self, saved: Mapping[str, Any]) -> None:
        self._step, self._global_step = saved["step"], saved["global_step"]
        self._epoch, self._ticks = saved["epoch"], saved["ticks"]
        if (extended := saved["extended"]) is not None:
            self._extended = extended
            self._max_epochs = max(self._max_epochs or 0, extended)

    def _pieces(self) -> Pieces:
        given, batches = self._given, self._batches
        return Pieces(
            kind=KIND,
            modules=given.modules,
            optimizers=given.optimizers,
            schedulers=given.schedulers,
            scaler=given.scaler,
            objects=given.objects,
            plain=given.plain,
            readings={"": batches.reading} if batches is not None else {},
            loaders=given.val_loaders,
            counters=self._counters,
            set_counters=self._set_counters,
            device=self._device,
        )

    # Telemetry.

    def _put_hooks(self) -> None:
        recording = self._options.telemetry != "off"

        def before(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            if recording and self._session is not None:
                self._session.recorder.before_optimizer_step(lambda: params_of(optimizer))

        def after(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
            self._stepped += 1

        for optimizer in self._given.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(before))
            self._hooks.append(optimizer.register_step_post_hook(after))
        modules = list(self._given.modules.values())
        self._watched = modules[0] if len(modules) == 1 else nn.ModuleList(modules)

    def _parameters(self) -> Iterator[torch.Tensor]:
        for module in self._given.modules.values():
            yield from module.parameters()

    def _lrs(self) -> list[Any]:
        return rates_of(self._given.optimizers)


def _ranks() -> tuple[int, int]:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _cannot_save(world_size: int) -> str | None:
    if world_size == 1:
        return None
    return f"This version (0.2.0) keeps no checkpoints of a loop with {world_size} ranks."
