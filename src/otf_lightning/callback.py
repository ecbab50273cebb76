"""OnTheFlyCallback: all that a user adds to a Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from otf_core.channel import to_stderr
from otf_core.control.agreement import StepAgreement
from otf_core.control.delegate import ControlDelegate
from otf_core.opening import Guarded, Notify, RunOptions, only_watched, tell_epoch
from otf_core.ranks.mail import StoreMail, of_the_group
from otf_core.ranks.other import OtherRank
from otf_core.ranks.pace import Pace
from otf_core.ranks.reports import placed
from otf_core.ranks.shared import SharedData
from otf_core.ranks.together import AllRanks, Others, SharedSteering
from otf_core.runs.data import TrainingData
from otf_core.runs.data_values import DataValues
from otf_core.session import Session
from otf_core.state.keeper import Every, Origin, ResumeError, Schedule, exact_state_in
from otf_core.state.parts import params_of, rates_of
from otf_core.steering.declared import Declared
from otf_core.steering.params import Steering
from otf_core.steering.recipe import RecipeError
from otf_core.telemetry.recorder import StepRecorder
from otf_lightning import inside, loggers
from otf_lightning.delegate import LightningFrameworkDelegate
from otf_lightning.health import FitSubject
from otf_lightning.mirror import Mirror
from otf_lightning.other_rank import (
    agree_on_origin,
    beats_of,
    cannot_save,
    looks_of_rank,
    mail_of,
    pace_of,
    signals_of,
)
from otf_lightning.park import parking_of
from otf_lightning.samples import subject_of
from otf_lightning.strategies import clocks_of
from otf_lightning.training_data import FitData


class OnTheFlyCallback(L.Callback):
    """See and control a fit while it runs.

    Attaching changes nothing: with no command given, weights, optimizer state, RNG and logged
    values are bit for bit those of the run without it.

    Args:
        project: folder of the run below ``save_dir``; the script's name if None.
        run_name: the module's class name if None; a taken name gets ``-2``, ``-3`` …
        save_dir: where runs are kept.
        dashboard: "auto" (one that runs on this machine, else keep looking, quietly), "spawn"
            (start one and print its URL), "stdio", "off", or "host:port". ``OTF_DASHBOARD`` and
            ``OTF_TOKEN`` say the same from outside.
        resume: "auto" (the newest complete checkpoint of this project and run name; none: start
            fresh), or a path. ``OTF_RESUME`` says the same from outside, and so does
            ``fit(ckpt_path=)`` with a checkpoint of ours.
        test_dataloaders: for a test where module and data module have none.
        keep_checkpoints: how many automatic checkpoints are kept.
        checkpoint_every: an int is steps, ``"10min"`` is time; None for never.
        telemetry: "full", "basic" (nothing that has to be computed), "off" (no values per step).
        after_fit: what is done when training would end. "return"; "test", then return; "hold":
            test, then wait inside fit until resumed, stopped or ``max_hold``, or until 60 s after
            the last dashboard has left; "auto": hold for a VS Code dashboard, else return. With
            nobody connected it always returns.
        max_hold: seconds that the end is held at most.
        pause_at_start: hold before the first batch.
        max_pause: seconds after which a forgotten pause is ended, and said; None for never.
        at_max_pause: "resume" or "park": what becomes of it then; None: it is resumed.
        guards: rules that watch the run's values and act, each as ``"nan:pause"``,
            ``"spike:rollback,z=8"`` or a mapping; see docs/steering.md. None for no rule.
        mirror: tell the Trainer's loggers (TensorBoard, CSV, W&B, MLflow) the run's name and what
            is changed in it, under names of their own.
        params: attributes of module or data module that can be set, each an ``otf_param``; beside
            those that they name in their ``otf_params``.
        recipe: a file of ``otf export recipe``; what was done to that run is done to this one, at
            the same steps. What cannot be replayed is refused before the first batch.
        notify: whom to tell that the run is paused, finished, failed, stalled or guarded:
            "desktop", the URL of a webhook, a mapping with ``url``, ``on``, ``template`` …, or
            several of these. ``OTF_NOTIFY`` adds to it from outside.

    Raises:
        ValueError: a value that is not allowed, or whose capability this version does not have.
    """

    gives_way = False  # to another one of the same fit

    def __init__(
        self,
        project: str | None = None,
        run_name: str | None = None,
        *,
        save_dir: str | Path = "otf_runs",
        dashboard: str = "auto",
        resume: str | Path | None = None,
        test_dataloaders: Any = None,
        keep_checkpoints: int = 5,
        checkpoint_every: int | str | None = None,
        telemetry: Literal["full", "basic", "off"] = "full",
        after_fit: Literal["auto", "return", "test", "hold"] = "auto",
        max_hold: float = 1800,
        pause_at_start: bool = False,
        max_pause: float | None = None,
        at_max_pause: Literal["resume", "park"] | None = None,
        guards: Guarded = None,
        mirror: bool = True,
        params: Sequence[Declared] | None = None,
        recipe: str | Path | None = None,
        notify: Notify = None,
    ) -> None:
        super().__init__()
        self.is_otf = True  # its attributes are no part of the run's state
        self._options = RunOptions(
            project=project,
            run_name=run_name,
            save_dir=save_dir,
            dashboard=dashboard,
            resume=resume,
            keep_checkpoints=keep_checkpoints,
            checkpoint_every=checkpoint_every,
            telemetry=telemetry,
            after_fit=after_fit,
            max_hold=max_hold,
            pause_at_start=pause_at_start,
            max_pause=max_pause,
            at_max_pause=at_max_pause,
            guards=guards,
            params=params,
            recipe=recipe,
            notify=notify,
        )
        self._test_dataloaders = test_dataloaders
        self._mirrors = mirror
        self._mirror: Mirror | None = None
        self._session: Session | None = None
        self._other: OtherRank | None = None
        self._pace: Pace | None = None  # of a rank among several
        self._run_dir: Path | None = None
        self._opened = False
        self._recorder: StepRecorder | None = None  # None also where no step is told
        self._delegate: LightningFrameworkDelegate | None = None
        self._epoch = 0
        self._epoch_ended: int | None = None

    @property
    def session(self) -> Session | None:
        """The session of the fit that is under way; None outside of fit and on other ranks."""
        return self._session

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run of this fit, or of the one before; None where nothing is saved."""
        return self._session.run_dir if self._session is not None else self._run_dir

    # Life of a fit.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Open the session; comes before any loader of a fit is made."""
        if stage != "fit":
            return
        _refuse_another(trainer)
        self._delegate = LightningFrameworkDelegate(
            trainer, test_dataloaders=self._test_dataloaders, params=self._options.params
        )
        self._opened = False
        self._delegate.attach()
        self._delegate.when_opened(lambda given: self._open(trainer, pl_module, given))

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule, given: Any) -> bool:
        """Begin the run on every rank; True where it goes on from what ``fit`` was given."""
        assert self._delegate is not None
        self._opened = True
        ours = given is not None and exact_state_in(given) is not None
        asked = given if ours else self._asked_origin(given)
        _refuse_origin_for_ranks(trainer, asked)
        model = type(pl_module).__name__
        origin = agree_on_origin(trainer, lambda: self._options.origin(model, asked))
        mail = mail_of(trainer)
        _refuse_clock_for_ranks(trainer, self._options.every, agree=mail is not None)
        if self._options.recipe is not None and trainer.world_size > 1 and mail is None:
            msg = "a recipe was asked for ranks whose process group has no store to agree through"
            raise RecipeError(msg)
        self._delegate.make_shard_writer(self._checkpoints)
        if trainer.is_global_zero:
            self._open_session(trainer, pl_module, origin, mail)
            self._open_mirror(trainer, origin)
        if trainer.world_size > 1:
            saves = self._session is not None and self._session.saves
            saves = trainer.strategy.broadcast(saves, src=0)
            if not trainer.is_global_zero:
                self._open_other_rank(trainer, origin, mail, saves=saves)
        return ours

    def _checkpoints(self) -> Path | None:
        folder = self.run_dir
        return folder / "checkpoints" if folder is not None else None

    def _open_other_rank(
        self, trainer: L.Trainer, origin: Origin | None, mail: StoreMail | None, *, saves: bool
    ) -> None:
        assert self._delegate is not None
        data = TrainingData(FitData(trainer))
        self._delegate.data.values = DataValues(data)
        self._other = other = OtherRank(
            self._delegate,
            Schedule(self._options.every),
            origin,
            steering=Steering(self._delegate),
            data=data,
            modules=lambda: {"": trainer.lightning_module},
            saves=saves,
            env=os.environ,
            signals=signals_of(trainer) if mail is not None else None,
            recipe=self._options.read_recipe(),
        )
        self._delegate.of_rank = other.of_rank  # fmt: skip
        if mail is not None:
            other.looks = looks_of_rank(trainer, self._test_dataloaders, lambda: other.ceased)
            other.parking = parking_of(trainer)
            other.agreement = StepAgreement(
                mail, trainer.global_rank, trainer.world_size,
                do=other.do, leave=other.wishes, place=placed(trainer.global_rank),
            )  # fmt: skip
            self._pace = pace_of(trainer)
            other.watch(beats_of(trainer, mail, other.agreement, self._pace), to_stderr)

        # As on rank 0: a learning-rate finder runs the same loop for itself.
        def tick() -> bool:
            return self in trainer.callbacks and self._paced(trainer, other.tick)

        def at_end() -> None:
            if self in trainer.callbacks:
                other.at_end()

        self._delegate.install_batch_boundary_hook(tick, at_end)

    def _open_session(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        origin: Origin | None,
        mail: StoreMail | None = None,
    ) -> None:
        assert self._delegate is not None
        if origin is not None and (found := exact_state_in(origin.path)) is not None:
            loggers.go_on(trainer, found.get("loggers", []), found["step"])
        device, model = trainer.strategy.root_device, type(pl_module).__name__
        delegate: ControlDelegate = self._delegate
        steering, agreement, beats = Steering(self._delegate), None, None
        data = TrainingData(FitData(trainer))
        if mail is not None:
            agreement = StepAgreement(mail, 0, trainer.world_size)
            self._pace = pace_of(trainer)
            beats = beats_of(trainer, mail, agreement, self._pace)
            others = Others(agreement)
            delegate, steering = AllRanks(delegate, others), SharedSteering(self._delegate, others)
            data = SharedData(FitData(trainer), others)
        self._delegate.data.values = values = DataValues(data)
        together = agreement is not None
        self._session = Session(
            delegate,
            self._options.session_options(
                model, origin, world_size=trainer.world_size, together=together
            ),
            steering=steering,
            agreement=agreement,
            beats=beats,
            signals=signals_of(trainer) if together else None,
            device=str(device),
            gpu=(device.index or 0) if device.type == "cuda" else None,
            world_size=trainer.world_size,
            unsupported=only_watched(trainer.world_size, together=together),
            cannot_save=cannot_save(trainer),
            data=data,
            samples=lambda on: subject_of(trainer, on, loaders=self._test_dataloaders),
            health=lambda losses: FitSubject(trainer, losses),
            modules=lambda: {"": trainer.lightning_module},
            parking=parking_of(trainer),
        )
        self._epoch, self._epoch_ended = trainer.current_epoch, None
        if self._options.telemetry != "off":
            self._recorder = self._session.recorder
            if (clocks := clocks_of(trainer)) is not None:
                self._recorder.time_phases(clocks.totals)
        self._session.start(meta={"model": model})
        if trainer.barebones:
            text = "barebones: Lightning logs nothing, so only the returned loss is seen"
            self._session.emit("log", level="info", phase="info", text=text)
        session = self._session
        values.tell = lambda text: session.emit("log", level="info", phase="info", text=text)
        self._delegate.spare_files(session.began_from_another, values.tell)
        self._delegate.install_batch_boundary_hook(
            lambda: self._between_batches(trainer),
            lambda: self._at_end(trainer),
            self._session.leave,
        )

    def _open_mirror(self, trainer: L.Trainer, origin: Origin | None) -> None:
        session = self._session
        assert session is not None
        if not self._mirrors:
            return

        def warn(text: str) -> None:
            session.emit("log", level="warning", phase="info", text=text)

        names = {
            "run_id": session.run_id,
            "project": session.options.project,
            "run_dir": str(session.run_dir),
        }
        found = exact_state_in(origin.path) if origin is not None else None
        step = found["step"] if found is not None else 0
        self._mirror = Mirror(trainer.loggers, names, step, warn)
        session.emitter.listen(self._mirror.hear)

    def _asked_origin(self, given: Any) -> str | Path | None:
        """What ``resume=`` or the environment says; not beside a checkpoint of somebody else's."""
        asked = self._options.asked_origin()
        if asked is not None and given is not None:
            msg = (
                f"resume was asked from {asked}, and fit(ckpt_path={str(given)!r}) with another "
                "checkpoint; allowed: one of them"
            )
            raise ResumeError(msg)
        return asked

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training begins; sanity check and tuners are over."""
        if self._delegate is not None:
            self._delegate.attributes.check()  # on every rank
        if self._session is not None:
            self._session.begin()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step, its validation and its epoch are told."""
        if self._other is not None:
            self._other.over()
        if self._session is not None:
            self._tell_step(trainer, self._session)
            self._session.finish("finished")

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        exception: BaseException,
    ) -> None:
        """The run has ended another way; Lightning calls no teardown then."""
        if trainer.is_global_zero and self._delegate is not None and not self._opened:
            self._open_session(trainer, pl_module, None)  # a failing setup is told as well
        said = f"{type(exception).__name__}: {exception}"[:2000]
        ended = isinstance(exception, KeyboardInterrupt | SystemExit)
        if self._session is None:
            if self._other is not None and (said_last := self._other.last_word()) is not None:
                to_stderr(said_last)
            news = not (ended or of_the_group(exception))
            # Another rank: a second fit must not find the wraps of the first.
            self._close(said if news else None)
            return
        try:
            if self._session.ranks is not None and of_the_group(exception):
                said = self._session.ranks.broke(said)
        finally:
            self._tell_step(trainer, self._session)
            if ended:
                self._session.finish("interrupted")
            else:
                self._session.finish("failed", error=said, left_by=type(exception).__name__)
            self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Deliver what is left; nothing of ours stays behind."""
        if stage == "fit":
            self._close()

    def _close(self, error: str | None = None) -> None:
        delegate, self._delegate = self._delegate, None
        if delegate is not None:
            delegate.detach()
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None
        if self._session is not None:
            self._run_dir = self._session.run_dir
            self._session.close()
            self._session = self._recorder = None
        if self._other is not None:
            self._other.close(error)
            self._other = None
        self._pace = None
        if delegate is not None:
            delegate.close_shards()

    # Steps.

    def _between_batches(self, trainer: L.Trainer) -> bool:
        session = self._session
        # A learning-rate finder runs the same loop for itself, with other callbacks.
        if session is None or self not in trainer.callbacks:
            return False

        def tick() -> bool:
            logged = lambda: inside.logged(trainer)  # noqa: E731 -- as everywhere here
            return session.tick(lrs=self._lrs, logged=logged, epoch=self._epoch)

        stop = self._paced(trainer, tick)
        if self._epoch_ended is not None:
            self._tell_epoch(session)
        return stop

    def _paced(self, trainer: L.Trainer, tick: Callable[[], bool]) -> bool:
        pace = self._pace
        if pace is None:
            return tick()
        pace.arrives(inside.steps_done(trainer))
        stop = tick()
        pace.leaves()
        return stop

    def _at_end(self, trainer: L.Trainer) -> None:
        session = self._session
        if session is None or self not in trainer.callbacks:
            return
        session.at_end(lrs=self._lrs, logged=lambda: inside.logged(trainer), epoch=self._epoch)
        if self._epoch_ended is not None:
            self._tell_epoch(session)

    def _tell_step(self, trainer: L.Trainer, session: Session) -> None:
        session.tell_step(lrs=self._lrs, logged=lambda: inside.logged(trainer), epoch=self._epoch)
        self._tell_epoch(session)

    def _tell_epoch(self, session: Session) -> None:
        if self._epoch_ended is None:
            return
        epoch, self._epoch_ended = self._epoch_ended, None
        tell_epoch(session, epoch)

    def _lrs(self) -> list[Any]:
        assert self._delegate is not None
        return rates_of(self._delegate.optimizers())

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The batch is there."""
        if self._pace is not None:
            self._pace.batch_started()
        if self._recorder is not None:
            self._epoch = trainer.current_epoch
            self._recorder.batch_started(pl_module)

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Gradients are complete and not clipped yet."""
        if self._delegate is not None:
            self._delegate.frozen.before_step(optimizer)
        if self._recorder is not None:
            self._recorder.before_optimizer_step(lambda: params_of(optimizer))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The batch is through."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._pace is not None:
            self._pace.batch_ended(loss)
        if self._recorder is not None:
            self._recorder.batch_ended(loss, batch, pl_module.parameters)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """The fit's own validation goes on."""
        if self._session is not None:
            self._session.stalls.passed += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Told at the next safe point, after the epoch's own values."""
        self._epoch_ended = trainer.current_epoch


def attach_lightning(
    *,
    trainer: L.Trainer,
    model: L.LightningModule | None = None,  # noqa: ARG001 -- part of the public signature
    datamodule: L.LightningDataModule | None = None,
    test_dataloaders: Any = None,
    **options: Any,
) -> OnTheFlyCallback:
    """Add OnTheFlyCallback to a trainer that exists already, and return it.

    Args:
        trainer: not in fit yet.
        model: as it will be given to ``fit``.
        datamodule: its test loader is used where ``fit`` is called with plain loaders.
        test_dataloaders: as for OnTheFlyCallback.
        options: as for OnTheFlyCallback.

    Raises:
        ValueError: the trainer has one already.
    """
    if any(isinstance(c, OnTheFlyCallback) and not c.gives_way for c in trainer.callbacks):
        msg = "attach_lightning was asked for a trainer that has an OnTheFlyCallback; allowed: one"
        raise ValueError(msg)
    if test_dataloaders is None and datamodule is not None:
        test_dataloaders = datamodule
    callback = OnTheFlyCallback(test_dataloaders=test_dataloaders, **options)
    # Before the checkpoint callbacks, which Lightning keeps last.
    place = next(
        (
            i
            for i, c in enumerate(trainer.callbacks)
            if isinstance(c, L.pytorch.callbacks.Checkpoint)
        ),
        len(trainer.callbacks),
    )
    trainer.callbacks.insert(place, callback)
    return callback


def _refuse_another(trainer: L.Trainer) -> None:
    found = [c for c in trainer.callbacks if isinstance(c, OnTheFlyCallback) and not c.gives_way]
    if len(found) > 1:
        msg = f"a Trainer was given {len(found)} callbacks of otf; allowed: one OnTheFlyCallback"
        raise ValueError(msg)


def _refuse_origin_for_ranks(trainer: L.Trainer, origin: Any) -> None:
    """What cannot be resumed, before anything has begun; the same on each rank."""
    if origin is not None and (why := cannot_save(trainer)) is not None:
        msg = f"resume was asked from {origin}. {why}"
        raise ResumeError(msg)


def _refuse_clock_for_ranks(trainer: L.Trainer, every: Every, *, agree: bool) -> None:
    """As ``_refuse_origin_for_ranks``, of checkpoints by rank 0's clock."""
    if trainer.world_size > 1 and every.seconds is not None and not agree:
        msg = (
            f"checkpoint_every was asked every {every.seconds:g} s for {trainer.world_size} ranks, "
            "whose process group has no store to agree through; allowed: a number of steps"
        )
        raise ValueError(msg)
