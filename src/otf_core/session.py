"""A session wires one run together; the only place that knows every part.

Two sessions in one process do not meet. The training thread calls ``tick`` between two batches;
everything else of ours runs beside it (otf-reader, otf-writer, otf-journal, otf-saver,
otf-sampler).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from otf_core import __version__, protocol, rendezvous
from otf_core.channel import SocketChannel, to_stderr
from otf_core.control.actions import NOT_IN_THIS_VERSION, ConsoleAction
from otf_core.control.agreement import StepAgreement
from otf_core.control.bus import ControlBus, Ticket, Within
from otf_core.control.delegate import ControlDelegate, Position
from otf_core.control.forgotten import OF as FORGOTTEN
from otf_core.control.forgotten import AtMaxPause, ForgottenPause
from otf_core.control.interrupt import Interrupt
from otf_core.control.router import LATER, CommandRouter, Later, crashed
from otf_core.control.run_state import RunState
from otf_core.dialling import Dialler
from otf_core.errors import CommandError, ErrorCode
from otf_core.health.subject import Subject as HealthSubject
from otf_core.parking import Park
from otf_core.ranks.beating import Beats
from otf_core.ranks.other import TORN
from otf_core.ranks.reports import RankReports
from otf_core.ranks.shared import schedule_of
from otf_core.ranks.signals import RankSignals
from otf_core.ranks.together import Others
from otf_core.run_commands import Held, RunCommands, no_run
from otf_core.runs.budget import Budget
from otf_core.runs.data import TrainingData
from otf_core.runs.results import Results
from otf_core.runs.subject import Subject as SampleSubject
from otf_core.runs.tree import Here, RunTree
from otf_core.state import run_folder
from otf_core.state.exactness import Exactness, environment, refuse_elsewhere
from otf_core.state.host_pool import HostPool
from otf_core.state.keeper import Every, Keeper, Origin
from otf_core.state.park import Parking
from otf_core.state.parts import Modules
from otf_core.state.store import CheckpointStore, Manifest, Pending
from otf_core.steering.commands import ParamCommands
from otf_core.steering.guard_rules import GuardRule
from otf_core.steering.guards import Guards
from otf_core.steering.history import History
from otf_core.steering.knobs import Knob
from otf_core.steering.params import Ended, Steering
from otf_core.steering.recipe import Recipe, Replay, Step
from otf_core.telemetry.emitter import Emitter, Sink
from otf_core.telemetry.journal import Journal
from otf_core.telemetry.notices import Target
from otf_core.telemetry.notifier import Notifier
from otf_core.telemetry.recorder import Level, Seen, StepRecorder
from otf_core.telemetry.stalls import StallWatch
from otf_core.telemetry.system import DeviceStatsMonitor
from otf_core.transport import StdioTransport, Transport, at_fork

AFTER_FIT: Final = ("auto", "return", "test", "hold")
DESERTED_S: Final = 60.0  # so long the held end waits for a dashboard to come back
FLUSH_S: Final = 5.0
deserted_clock = time.monotonic
PARAMS_EVERY_S: Final = 0.5  # how old the parameters in ``status`` may be while training


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a user may choose; every value works untouched.

    Attributes:
        project, run_name: folder names below ``save_dir``.
        dashboard: "auto", "spawn", "stdio", "off" or "host:port".
        keep_checkpoints: size of the ring.
        max_pause_s: a forgotten pause ends after so long; None for never.
        origin: the checkpoint from which the run goes on; None: it begins.
        every: how often a checkpoint is made.
        after_fit: "auto", "return", "test" or "hold".
        max_hold_s: the end is held so long at most.
        guards: what is watched, and what is done about it.
        at_max_pause: what becomes of a forgotten pause.
        recipe: what is done to the run, at which steps.
        notify: who is told of what becomes of the run.
    """

    project: str
    run_name: str
    save_dir: Path
    dashboard: str = "auto"
    keep_checkpoints: int = 5
    max_pause_s: float | None = None
    pause_at_start: bool = False
    origin: Origin | None = None
    every: Every = dataclasses.field(default_factory=Every)
    after_fit: str = "auto"
    max_hold_s: float = 1800.0
    recipe: Recipe | None = None
    notify: Sequence[Target] = dataclasses.field(default=(), repr=False)
    telemetry: Level = "full"
    guards: tuple[GuardRule, ...] = ()
    at_max_pause: AtMaxPause = "resume"
    env: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(os.environ))


class Dial(NamedTuple):
    """How a session comes to a connection; see SocketChannel."""

    call: Callable[[], Transport | None]
    put_off: Callable[[str, float], None] | None = None


class Session:
    """One run under control.

    Args:
        delegate: drives the batches; also supplies what ``Steering`` needs.
        device: as in ``cuda:0``; its index says which GPU is sampled.
        unsupported: commands that this run cannot carry out, each with its reason.
        cannot_save: why no checkpoint can be made of this run; None where they can.
        guest: the loop is somebody's script: SIGINT is its own, it may catch a stop and go on, and
            its end is not known before it is over.
        stop_may_fail: the loop is somebody's who is told of a stop, and may go on.
        say: one line for a person, on stderr.
        data: the training data, where it can be changed.
        samples: a set of the run by its name, where it can be looked at.
        health: the run as a check of its health sees it, with its losses so far.
        modules: those that are trained, where other weights may be tried in them.
        agreement: of a run of several ranks that can be controlled; closed with the session.
        beats: of all its ranks; likewise.
        signals: of this rank of such a run.
        parking: of what this process holds on its device, where that is known.
    """

    def __init__(
        self,
        delegate: ControlDelegate,
        options: SessionOptions,
        *,
        steering: Steering,
        device: str = "cpu",
        gpu: int | None = None,
        world_size: int = 1,
        unsupported: Mapping[str, str] | None = None,
        cannot_save: str | None = None,
        guest: bool = False,
        stop_may_fail: bool = False,
        say: Callable[[str], None] | None = None,
        dial: Dial | None = None,
        data: TrainingData | None = None,
        samples: Callable[[str], SampleSubject] | None = None,
        health: Callable[[Sequence[tuple[int, float]]], HealthSubject] | None = None,
        modules: Callable[[], Modules] | None = None,
        agreement: StepAgreement | None = None,
        beats: Beats | None = None,
        signals: RankSignals | None = None,
        parking: Parking | None = None,
    ) -> None:
        self._delegate, self.options, self.steering = delegate, options, steering
        self._device, self._world_size = device, world_size
        self._alone, self._guest, self._agreement = world_size == 1, guest, agreement
        self._beats, self._record_lock = beats, threading.Lock()
        self._others = others = Others(agreement) if agreement is not None else None
        self._signals = signals
        self._left: str | None = None  # by which signal all ranks have left
        self._stuck = False  # the fork has had its patience, and only rank 0 knows
        self._say = say or to_stderr
        self.session_id = f"sess-{secrets.token_hex(6)}"
        self._lock: run_folder.RunLock | None = None
        self.run_dir, self.run_id = self._make_folder()
        self._position = Position()
        self._position_at_s = time.monotonic()
        self._params: list[dict[str, Any]] = []
        self._params_at_s, self._params_every_s = 0.0, PARAMS_EVERY_S
        self._step_s: float | None = None
        self._between_s, self._left_at_s = 0.0, time.monotonic()
        self._notes = 0
        self._after_fit = options.after_fit
        self._rewound = False  # another state was put in place at this safe point
        self._began_training = False
        self._deserted_at_s: float | None = None
        self._meta: dict[str, Any] = {}
        self.exactness = Exactness()
        self._told_exactness: Exactness | None = None
        self._changes = 0  # of the run, so that a checkpoint of the same state is recognised
        self._last_save: tuple[tuple[int, int, int], Pending] | None = None
        self._closed = self._told_to_end = False

        self.journal = Journal(self._journal_path(), on_loss=self._journal_lost)
        dial = dial or self._make_dial()
        self.channel = SocketChannel(
            dial.call,
            self,
            self.journal,
            identity=self._identity,
            put_off=dial.put_off,
            announce=self._say,
        )
        about = {"project": options.project, "host": os.uname().nodename, "pid": os.getpid()}
        self.notifier = Notifier(options.notify, about=about, say=self._warn)
        self.emitter = Emitter(session_id=self.session_id, run_id=self.run_id, sinks=self._sinks())
        self.emit = self.emitter.emit
        self._record = self._open_record()
        self.emitter.begin_generation(self._record.run_gen)
        self.state = RunState(self.emit, self._where)
        self.store = CheckpointStore(
            self.run_dir / "checkpoints" if self.run_dir is not None else None,
            keep=options.keep_checkpoints,
            on_saved=self._checkpoint_saved,
            on_removed=self._checkpoint_removed,
            before=self._told_before,
            refused=cannot_save,
        )
        full = options.telemetry != "off"
        self.monitor = DeviceStatsMonitor() if full else None
        self.recorder = StepRecorder(
            self.emitter, level=options.telemetry, monitor=self.monitor, gpu=gpu
        )
        self.ranks: RankReports | None = None
        if agreement is not None and beats is not None:
            self.ranks = RankReports(self, agreement, beats)
            agreement.say = self._warn
        self.stalls = StallWatch(
            self.emit,
            trains=lambda: self._began_training and self.state.state in ("running", "pausing"),
            step=lambda: self._position.step,
            step_s=lambda: self._step_s,
            say=lambda text: self._say(f"{self.run_id}: {text}"),
            others=self.ranks.stalled if self.ranks is not None else None,
        )
        tree = RunTree(options.save_dir, options.project, Here(self._record, self.run_dir))
        self.results = Results(tree, lambda: (self.run_id, self.run_dir), self.emit)
        self.actions = ConsoleAction(
            emit=self.emit,
            state=self.state,
            delegate=delegate,
            saver=self,
            position=lambda: self._position,
            max_pause_s=options.max_pause_s,
            leaving=lambda: (
                delegate.leaving() or self._interrupt.asked or self._told_to_leave() is not None
            ),
            deserted=self._deserted,
            test_label=options.env.get("ONTHEFLY_TEST_LABEL"),
            stop_may_fail=guest or stop_may_fail,
            keep=self.results.keep,
            names=lambda: {"run_id": self.run_id, "session_id": self.session_id},
            agreement=agreement,
            due=self._due_while_all_stand,
            leaves=self._leave_together,
            forgotten=ForgottenPause(
                self.emit,
                step=lambda: self._position.step,
                max_pause_s=math.inf if options.max_pause_s is None else options.max_pause_s,
                at_max=options.at_max_pause,
                park=lambda: self.guards.ask("park", {}, "forgotten_pause"),
                release=self._release,
            ),
        )
        self._replay = Replay(options.recipe, self._replay_step) if options.recipe else None
        self._interrupt = Interrupt(self._interrupted)
        self.router = CommandRouter(self._crashed, agreement)
        self.bus = ControlBus(self.router, wake=self.actions.wake, step=lambda: self._position.step)
        self.actions.connect(self.router, self.bus)
        self.park = Park(
            self, parking, actions=self.actions, step=lambda: self._position.step, others=others
        )
        self.history = History(
            self, store=self.store, delegate=delegate, steering=steering, bus=self.bus
        )
        self.history.restored = self._restored
        self._param_commands = ParamCommands(
            steering, self.history, self.bus,
            position=lambda: self._position, changed=self._param_set,
        )  # fmt: skip
        self._runs = RunCommands(
            self,
            tree,
            delegate=delegate,
            actions=self.actions,
            history=self.history,
            store=self.store,
            losses=lambda: self.recorder.losses,
            changes=lambda: self._changes,
            check_value=lambda asked: steering.check(asked, self._position.step),
            apart=steering.is_apart,
            data=data,
            samples=samples,
            health=health,
            modules=modules,
            others=others,
        )
        self.forks, self.looking = self._runs.forks, self._runs.looking
        self.guards = Guards(
            self, options.guards, router=self.router, store=self.store, history=self.history,
            branch=lambda: (self._record.branch, self._record.base),
        )  # fmt: skip
        self.keeper = Keeper(
            self,
            store=self.store,
            delegate=delegate,
            schedule=schedule_of(options.every, others),
            origin=options.origin,
            allow=self._allow,
            meet=self.actions.safe_point.wake if agreement is not None else None,
        )
        choice = Knob(
            lambda: self._after_fit,
            self._set_after_fit,
            kind="enum",
            choices=AFTER_FIT,
            owner="user",
            takes_effect="at the end",
        )
        if not guest:
            steering.add_knob("after_fit", choice)
        self._register()
        self.router.unsupported(NOT_IN_THIS_VERSION)
        self.router.unsupported(unsupported or {})
        if missing := self.router.missing():
            msg = f"a session was asked without handlers for {', '.join(missing)}"
            raise AssertionError(msg)

    # Life of the session; training thread.

    def start(self, meta: Mapping[str, Any] | None = None) -> None:
        """Start the threads and tell who we are; returns when they are up."""
        options = self.options
        self._write_record(status=None)
        ignored = self.store.adopt()
        self.store.begin_branch(self._record.branch, self._record.base)
        self._announce(meta)
        if self.run_dir is None:
            self.emit("log", level="warning", phase="info", text="no run folder: nothing is saved")
        for text in ignored:
            self.emit("log", level="warning", phase="info", text=text)
        self.journal.start()
        self.emitter.start()
        self.notifier.start()
        self.store.start()
        if self.monitor is not None:
            self.monitor.start()
        self.channel.start()
        self.stalls.start()
        if self._beats is not None:
            self._beats.start()
        if options.pause_at_start:
            self.actions.hold(None)
        at_fork(self._abandon_in_child)

    def _announce(self, meta: Mapping[str, Any] | None = None) -> None:
        self._meta = dict(meta) if meta is not None else self._meta
        run_dir = str(self.run_dir) if self.run_dir is not None else None
        names = {"project": self.options.project, "run_name": self.run_id}
        record = self._record
        self.emit("session_started", **names, version=__version__, run_dir=run_dir)
        self.emit(
            "newRun",
            parents=record.parents,
            **names,
            meta={"display_name": self.run_id, "kind": record.kind, "run_dir": run_dir}
            | {**record.made, **self._meta},
        )
        text = f"{self.run_id}: {self._device}, process {os.getpid()}"
        self.emit("log", level="info", phase="info", text=text)

    def begin(self) -> None:
        """Training begins."""
        self.look()
        if self.state.state == "starting":
            self.state.move("running")
        self._params_at_s = 0.0
        self._left_at_s = time.monotonic()

    def tick(
        self,
        *,
        lrs: Callable[[], Sequence[Any]] = tuple,
        logged: Callable[[], Mapping[str, Any]] = dict,
        epoch: int = 0,
    ) -> bool:
        """Between two batches; True when the run is to stop here.

        Args:
            lrs: learning rate of every parameter group.
            logged: all that was logged so far; values that are other objects than before are new.
            epoch: the epoch of the batch that is done.
        """
        self.stalls.passed += 1
        if not self._began_training:
            self._begin_training(logged)
        self.tell_step(lrs=lrs, logged=logged, epoch=epoch)
        self.keeper.step(self._position.step)
        if self._replay is not None:
            self._replay.at(self._position)
        here = bool(self.forks.budget) and self._hold_if_over(logged())
        if self._told_to_leave() is not None:
            self.actions.safe_point.wake()
        if self.actions.safe_point.attention:
            # What is on its way belongs before ``paused``.
            self.recorder.flush()
        stop = self.actions.safe_point.tick(here=here)
        self._after_safe_point(logged)
        self._scan_in_background()
        self.recorder.fetching()
        self._left_at_s = time.monotonic()
        return stop

    def _scan_in_background(self) -> None:
        if (scan := self.looking.background) is not None:
            self.router.carry_out(scan.ticket, self.looking.go_on)

    def _hold_if_over(self, logged: Mapping[str, Any]) -> bool:
        """A fork that has had its budget waits for what becomes of it.

        Returns:
            Whether every rank finds so here.
        """
        budget = self.forks.budget
        why = budget.over(self._position, logged)
        if why is None:
            return False
        counted = budget.counted(self._position) is not None
        if counted or self._alone:
            self.forks.budget = Budget()
        else:
            budget.patience, self._stuck = None, True  # the others count on until all stand
        self.emit("log", level="info", phase="info", text=f"{self.run_id} is held: {why}")
        self.actions.hold(None, cause="guard")
        return counted

    def _due_while_all_stand(self) -> None:
        if self._stuck:
            self._stuck, self.forks.budget = False, Budget()
        self.keeper.stand()
        self.guards.act()
        if self._agreement is not None:  # one process does it when it goes on
            self._scan_in_background()

    def tell_step(
        self,
        *,
        lrs: Callable[[], Sequence[Any]],
        logged: Callable[[], Mapping[str, Any]],
        epoch: int,
    ) -> None:
        """Note where the run stands and tell of the step that is done, if one is."""
        before = self._position.step
        self.look()
        self._time_step(self._position.step - before)
        self.recorder.boundary(
            step=self._position.step,
            global_step=self._position.global_step,
            epoch=epoch,
            lrs=lrs,
            logged=logged(),
        )

    def at_end(
        self,
        *,
        lrs: Callable[[], Sequence[Any]] = tuple,
        logged: Callable[[], Mapping[str, Any]] = dict,
        epoch: int = 0,
    ) -> None:
        """A limit is reached, inside fit: keep the end, test and hold it where that is asked."""
        if self.actions.stopping:
            return
        self.tell_step(lrs=lrs, logged=logged, epoch=epoch)
        self.recorder.flush()
        self.keeper.end()
        if self._replay is not None:
            self._replay.at(self._position)
        if self._agreement is not None:
            self._agreement.meet_here(lambda: self._hold_the_end(logged))
        elif self._alone:  # a test on one rank would leave the others waiting
            self._hold_the_end(logged)

    def _hold_the_end(self, logged: Callable[[], Mapping[str, Any]]) -> bool:
        """Test and hold it where that is asked; whether the run is to stop."""
        asked, connected = self._after_fit, self.channel.mode
        # The end of a fork is where somebody decides what becomes of it.
        waited_for = connected == "legacy" or bool(self.forks.budget)
        held = asked == "hold" or (asked == "auto" and waited_for)
        if asked == "return" or (asked == "auto" and not held) or connected == "none":
            return False
        self.actions.auto_test()
        if held:
            self._deserted_at_s = None
            self.actions.hold(None, cause="after_fit", hold_s=self.options.max_hold_s)
            self.actions.safe_point.attend()
        self._after_safe_point(logged)
        return self.actions.stopping

    def leave(self, why: str) -> None:
        """The process is about to end: keep the run as it is between two batches."""
        self._told_to_end = True
        if not self._alone:
            self.keeper.tell_newest()  # where the other ranks stand is not known
            return
        self.look()
        self.recorder.flush()
        self.keeper.leave(why)

    def finish(self, status: str, *, error: str | None = None, left_by: str = "") -> None:
        """The run is over: ``finished``, ``interrupted`` or ``failed``; said once.

        Args:
            error: for a person, what a failed run has failed with.
            left_by: the class of the exception that ended it within a batch; what it has left is
                kept.
        """
        if self.state.ended:
            return
        if self._beats is not None:
            self._beats.over()
        self.look()
        self.recorder.abort()
        self.recorder.flush()
        self.actions.left()
        self.guards.over()
        said = {"finished": "completed", "interrupted": "stopped", "failed": "failed"}[status]
        if status == "finished" and self.actions.stopping:
            said = "stopped"
        self.keeper.ended()
        if self._replay is not None and self._replay.left and said != "failed":
            text = f"{self._replay.left} steps of the recipe were not reached"
            self.emit("log", level="warning", phase="info", text=text)
            self._say(f"{self.run_id}: {text}")
        if said == "stopped" and status == "finished":  # the person here may not be who asked
            self._say(f"{self.run_id}: stopped by a command at step {self._position.step:,}")
            self.keeper.tell_newest()
        if status == "failed":
            self._tell_how_it_goes_on(left_by)
        elif status == "interrupted" and (self._guest or not (self._alone or self._told_to_end)):
            self.keeper.tell_newest()  # Ctrl-C is nobody's to wait with there
        with self.state.lock:
            self.state.move(status)
            step = self._position.step
            extra = {"error": error} if error is not None else {}
            self.emit("trainingFinished", status=said, step=step, **extra)
        self._write_record(status=said)
        self.looking.end_background(f"the run is over at step {step:,}")
        self.bus.close(self.actions.ended_error("A command"))
        self.actions.gate.close()

    def break_off(self, error: str) -> None:
        """A fault of our own: the run is left alone, nothing of it is looked at any more."""
        if not self.state.ended:
            with self.state.lock:
                self.state.move("failed")
                step = self._position.step
                self.emit("trainingFinished", status="failed", step=step, error=error)
            self._write_record(status="failed")
            self.bus.close(CommandError(ErrorCode.INTERNAL, f"{error}; the run is no longer ours."))
            self.actions.gate.close()
        self.close()

    def close(self) -> None:
        """Deliver what is left and end every thread; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if not self.state.ended:
            self.finish("interrupted")
        self.stalls.stop()
        if self._beats is not None:
            self._beats.close()
        if self._agreement is not None:
            self._agreement.close()
        self.steering.close()
        self.forks.off()
        if self.monitor is not None:
            self.monitor.stop()
        self.store.close()
        self.emitter.close()
        self.notifier.close()
        self.journal.sync()
        self.channel.close()
        self.journal.close()
        self._interrupt.off()
        if self._signals is not None:
            self._signals.off()
        self.forks.tree.close()
        if self._lock is not None:
            self._lock.release()

    # What channel and actions ask of the session.

    def receive(self, request: protocol.Request, link: Any) -> None:
        """A request that is not the connection's own business; otf-reader."""
        self.bus.receive(request, link)

    def malformed(self, error: Any, link: Any) -> None:
        """A line that is no request; otf-reader."""
        self.bus.malformed(error, link)

    def lost(self, link: Any) -> None:
        """A connection is gone; whoever asks again over the next one gets his answer."""

    def save(
        self, kind: str, *, pinned: bool = False, left_by: str = "", wait_s: float = 0.0
    ) -> Pending:
        """Copy the state now, write it in the background; training thread.

        Where nothing has changed since the last checkpoint, that one is it.

        Args:
            left_by: the exception that ends the run, in the middle of a batch.
            wait_s: for the disk, where it is behind; after that it is refused.

        Raises:
            CommandError: it cannot be saved.
        """
        now = self._here()
        # Other ranks cannot know what has become of the last one: there each is made anew.
        if self._alone and self._last_save is not None and self._last_save[0] == now:
            same = self._last_save[1]
            if same.error is None:
                if pinned:
                    same.then(lambda: self._pin(same.id))
                return same
        self.recorder.flush()
        pending = self.store.save(
            lambda pool: self._capture(pool, left_by),
            run_id=self.run_id,
            step=self._position.step,
            epoch=self._position.epoch,
            kind=kind,  # type: ignore[arg-type]
            pinned=pinned,
            exact=lambda: self.exactness.exact and not left_by,
            left_by=left_by,
            wait_s=wait_s if self._alone else math.inf,
        )
        self._last_save = now, pending
        return pending

    def is_kept(self, checkpoint_id: str) -> None:
        """The run is what this checkpoint of it holds; training thread."""
        if (found := self.store.get(checkpoint_id)) is not None:
            kept = Pending(*found)
            kept.settle(None)
            self._last_save = self._here(), kept

    def _here(self) -> tuple[int, int, int]:
        """What is other once the run is; where it stands is asked, since it may just have moved."""
        now = self._delegate.position()
        return now.step, now.batch_idx, self._changes

    def changed(self) -> None:
        """The run is no longer what the last checkpoint holds; training thread."""
        self._changes += 1

    def position(self) -> Position:
        """Where the run stands now; training thread."""
        return self._delegate.position()

    def say(self, line: str) -> None:
        """One line for the person at the terminal; any thread."""
        self._say(line)

    # What of several ranks is told beside the training; any thread.

    def emit_at_once(self, kind: str, /, **fields: Any) -> None:
        """Tell, and have it on the disk when this returns, unless the disk is very slow."""
        self.emit(kind, **fields)
        self.journal.flush(FLUSH_S)

    def tell_connection(self, kind: str, /, **fields: Any) -> None:
        """Tell who is connected, and nobody else."""
        stamps = {"run_id": self.run_id, "session_id": self.session_id, "ts": time.time()}
        self.channel.send_connection_event({"type": kind, **fields, **stamps})

    def newest_exact(self) -> tuple[Manifest, str] | None:
        """The checkpoint from which the run goes on exactly."""
        return self.store.last_exact()

    def steps_done(self) -> int:
        """As of the last safe point."""
        return self._position.step

    def has_failed(self) -> None:
        """Have ``run.json`` say so, whatever becomes of this process."""
        self._write_record(status="failed")

    def folder_of(self, what: str) -> str | None:
        """One in the run's folder, for what belongs to the present step; it need not be there."""
        if self.run_dir is None:
            return None
        return str((self.run_dir / what / str(self._position.step)).absolute())

    def hold_for_guard(self) -> None:
        """Hold the run until somebody looks; CommandError where it cannot be held."""
        self.router.allow("pause")
        self.actions.hold(None, cause="guard")

    def watch(self, seen: Seen | None) -> None:
        """Have this told of every value; CommandError where none is read."""
        if seen is not None and self.options.telemetry == "off":
            detail = "A guard was asked, and telemetry is off: no value is read."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        self.recorder.watch = seen

    def attend(self) -> None:
        """The next safe point is to look; training thread."""
        self.actions.safe_point.wake()

    def _release(self) -> None:
        for cause in FORGOTTEN:
            self.actions.gate.resume(cause)

    def wake(self) -> None:
        """Have the training thread look, where it stands."""
        self.actions.gate.nudge()

    def _warn(self, text: str) -> None:
        self.emit("log", level="warning", phase="info", text=text)
        self._say(f"{self.run_id}: {text}")

    def put(self, state: dict[str, Any], base: str | None) -> bool:
        """Put another state in place: what comes now supersedes what was told; training thread.

        Args:
            state: it is used up by it.
            base: the checkpoint it is, if it is one of the run's; else it becomes one.

        Returns:
            Whether it is there as it was saved.
        """
        self.looking.end_background("the run was put to another state")
        for text in self.forks.use(state["otf"]):
            self.emit("log", level="info", phase="info", text=text)
        applied = self._delegate.apply(state)
        if applied.lost or applied.left_out:
            self._tell_exactness(self.exactness.worse(applied.lost, applied.left_out))
        if applied.left_out and self.exactness.exact:
            self._say(f"{self.run_id}: {self.exactness.text}")
        for line in dict.fromkeys(applied.saved):
            self.emit("log", level="info", phase="info", text=line)
            self._say(line)
        if (steering := state["otf"].get("steering")) is not None:
            self.steering.load(steering)
        self.history.load(state["otf"].get("changes"), own=base is not None)
        if self._replay is not None:
            self._replay.load(self.history.changes.requests())
        self.recorder.flush()
        self.guards.load(state["otf"].get("guards"))
        self._rewound = True
        self.changed()
        self._position = self._delegate.position()
        kept = self.store.get(base) if base is not None else None
        self.actions.stands_elsewhere(self._position.step, kept[1] if kept is not None else None)
        self._record.run_gen = max(self._record.run_gen, self.emitter.run_gen) + 1
        self.emitter.begin_generation(self._record.run_gen)
        self._record.branch, self._record.base = self._record.branch + 1, base
        self.store.begin_branch(self._record.branch, base)
        self._write_record(status=None)
        self._refresh_params()
        return not (applied.lost or applied.left_out)

    def enter(self, here: Here) -> None:
        """From here on what is told and saved is this run's; training thread."""
        self.looking.end_background(f"{here.run_id} trains in place of {self.run_id}")
        self._write_record(status=None)
        self.run_dir, self.run_id, self._record = here.folder, here.run_id, here.record
        if self.session_id not in here.record.session_ids:
            here.record.session_ids.append(self.session_id)
        gen = max(here.record.run_gen, self.emitter.run_gen) + 1
        here.record.run_gen = gen
        self.emitter.begin_run(here.run_id, gen)
        for text in self.store.move_to(here.folder and here.folder / "checkpoints"):
            self.emit("log", level="warning", phase="info", text=text)
        self.store.begin_branch(here.record.branch, here.record.base)
        self._last_save = None
        self.keeper.moved()
        self._write_record(status=None)

    def _replay_step(self, step: Step) -> None:
        """As if somebody had asked for it here. RecipeError."""
        answer: dict[str, Any] = {}
        raw = msgspec.Raw(msgspec.json.encode(step.payload))
        request = protocol.Request(cmd=step.cmd, id=step.id, payload=raw)
        of = self.options.recipe.of if self.options.recipe is not None else None
        ticket = Ticket(
            request, Within(answer.update), on_answer=lambda _: None, by="recipe", cause=of
        )
        ticket.payload = step.payload
        self.router.run(ticket)
        if not answer:
            why = "it would wait for a later step"
            raise step.refused(why)
        if not answer["ok"]:
            raise step.refused(answer["detail"])

    def _restored(self, request_id: str) -> None:
        """It was taken back as if it had never been; a recipe does not bring it again."""
        if self._replay is None:
            return
        self._replay.skip(request_id)
        if self._others is not None:
            with self._others.do("skip", request_id):
                pass

    def began_from_another(self) -> float | None:
        """When the run that trains began, Unix seconds; None where it has no parents."""
        return self._record.started_ts if self._record.parents else None

    def tear(self, error: Exception) -> None:
        """Half of another state is there, and the run must not train on."""
        self.history.torn = error

    def set_value(self, asked: protocol.SetParam, ticket: Ticket) -> None:
        """Set a parameter of a fork, and tell of it."""
        applied = self.steering.apply(asked, self._position.step)
        self._refresh_params()
        self.history.set_by_fork(ticket, applied)

    def made_run(self, ticket: Ticket, left: str) -> None:
        """Remember that a new run has been entered, before it is kept."""
        self.history.made_run(ticket, left, new=True)

    def ask(
        self,
        cmd: str,
        payload: Mapping[str, Any],
        *,
        by: str,
        cause: str | None = None,
        then: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> str:
        """Ask from within for what a person could ask as well; any thread.

        Args:
            by, cause: who asks and why, as the ledger has it: "guard" and its rule.
            then: called with the reply, on the thread that answers.

        Returns:
            The request's id.
        """
        request_id = f"{by}-{secrets.token_hex(6)}"
        raw = msgspec.Raw(msgspec.json.encode(payload))
        request = protocol.Request(cmd=cmd, id=request_id, payload=raw)
        self.bus.receive(request, Within(then), by=by, cause=cause)
        return request_id

    def _param_set(self) -> None:
        self.changed()
        self._refresh_params()

    @property
    def saves(self) -> bool:
        """Whether checkpoints can be made."""
        return self.store.refused is None and self.run_dir is not None

    @property
    def connected(self) -> bool:
        """Whether a dashboard is connected."""
        return self.channel.connected

    def status(self) -> dict[str, Any]:
        """The whole state as of the last safe point; any thread."""
        position, age_s = self._position, time.monotonic() - self._position_at_s
        last = self.store.last()
        step_s = self._step_s
        return {
            "protocol": protocol.PROTOCOL,
            "version": __version__,
            "session_id": self.session_id,
            "project": self.options.project,
            "run_id": self.run_id,
            "run_gen": self.emitter.run_gen,
            "state": self.state.state,
            "reason": self.state.reason,
            "step": position.step,
            "epoch": position.epoch,
            "batch_idx": position.batch_idx,
            "max_steps": position.max_steps,
            "max_epochs": position.max_epochs,
            "steps_per_s": 1.0 / step_s if step_s else None,
            "pending": self.bus.pending(),
            "last_checkpoint": _brief(*last) if last is not None else None,
            "params": self._params,
            "device": self._device_status(),
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "world_size": self._world_size,
            "ranks": self.ranks.in_short() if self.ranks is not None else None,
            "last_seq": self.emitter.last_seq,
            "acked_seq": self.channel.acked_seq,
            "dropped": self.channel.dropped,
            "queue_len": self.bus.queue_len,
            "exactness": self.exactness.text,
            "snapshot_age_s": age_s,
            "cadence": self.recorder.cadence(),
            "telemetry": self.options.telemetry,
            "data": self.forks.data_status(),
            "paused_s": self.actions.paused_s,
            "parked": self.park.status(),
            "journal": {"complete": self.journal.complete, "path": str(self.journal.path)},
        }

    # Commands that need more than one part.

    def _register(self) -> None:
        on = self.router.on
        on("status")(lambda _: self.status())
        on("ping")(self._ping)
        self._param_commands.register(self.router)
        self.park.register(self.router)
        on("list_checkpoints")(self._list_checkpoints)
        on("note", check=self._check_note)(self._note)
        on("results")(self.results.results)
        on("rollback")(self.history.rollback)
        on("load_ckpt")(self.history.load_ckpt)
        on("undo")(self._undo)
        on("list_changes")(self.history.list_changes)
        on("extend")(self.history.extend)
        on("reset_session")(self._reset_session)
        on("clean_disk")(self._clean_disk)
        self._runs.register(self.router)
        self.guards.register(self.router)

    def _undo(self, ticket: Ticket) -> dict[str, Any]:
        said = self.history.undo(ticket)
        self.guards.undone(said["undone"]["request_id"])
        return said

    def _ping(self, ticket: Ticket) -> dict[str, Any]:
        return {"t": ticket.payload.t, "ts": time.time(), "step": self._position.step}

    def _list_checkpoints(self, ticket: Ticket) -> dict[str, Any]:
        run_id = ticket.payload.run_id
        if run_id is not None and run_id != self.run_id:
            raise no_run(run_id, self.run_id)
        return {"checkpoints": [_described(m, path) for m, path in self.store.list()]}

    def _check_note(self, ticket: Ticket) -> None:
        text = ticket.payload.text
        if not 0 < len(text) <= protocol.MAX_NOTE_CHARS:
            detail = (
                f"A note of {len(text):,} characters was asked; "
                f"allowed: 1 to {protocol.MAX_NOTE_CHARS:,}."
            )
            raise CommandError(
                ErrorCode.BAD_PAYLOAD,
                detail,
                field="text",
                allowed={"min": 1, "max": protocol.MAX_NOTE_CHARS},
            )

    def _note(self, ticket: Ticket) -> dict[str, Any]:
        now = self._position.step
        step = now if ticket.payload.step is None else ticket.payload.step
        if not 0 <= step <= now:
            detail = f"A note at step {step} was asked; allowed: 0 to {now}, the steps done."
            allowed = {"min": 0, "max": now}
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="step", allowed=allowed)
        self._notes += 1
        note = {"note_id": f"n{self._notes}", "step": step}
        self.emit("note", **note, text=ticket.payload.text)
        self.history.note(ticket, {**note, "text": ticket.payload.text})
        return {**note, "ts": time.time(), "applied_step": now}

    def _reset_session(self, ticket: Ticket) -> Later:
        """Back to the beginning as a new session; held there."""
        first = self.keeper.beginning()
        if first is None:
            detail = "reset_session was asked, but no checkpoint of the beginning was kept."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        self.history.go_to_kept(ticket, first[0].id)
        self.history.forget()
        self._open_session()
        names = {"project": self.options.project, "display_name": self.run_id}
        said = {"ok": True, "run_id": self.run_id, "session_id": self.session_id, **names}
        self.actions.hold(Held(ticket, said))
        return LATER

    def _sinks(self) -> tuple[Sink, ...]:
        return self.journal.append, self.channel.emit, self.notifier.hear

    def _open_session(self) -> None:
        """A new one on the same connection and in the same run."""
        old = self.journal
        self.session_id = f"sess-{secrets.token_hex(6)}"
        self.journal = Journal(self._journal_path(), on_loss=self._journal_lost)
        self.journal.start()
        self.channel.begin_session(self.journal)
        self.emitter.begin_session(self.session_id, self._sinks())
        old.close()
        self._record.session_ids.append(self.session_id)
        self._record.run_gen = 0
        self._write_record(status=None)
        self._announce()

    def _clean_disk(self, ticket: Ticket) -> dict[str, Any]:
        if ticket.payload.scope != "all":
            detail = f"clean_disk was asked with scope {ticket.payload.scope!r}; allowed: all."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="scope", allowed=["all"])
        root = self.options.save_dir
        removed, failed = run_folder.clean(root, keep=self.run_dir)
        return {
            "ok": not failed,
            "removed": removed,
            "failed": failed,
            "root": str(root),
            "applied_step": self._position.step,
        }

    # Inside.

    def _begin_training(self, logged: Callable[[], Mapping[str, Any]]) -> None:
        """The first safe point: the loaders are made, no batch was fetched."""
        self._began_training = True
        self.stalls.thread_id = threading.get_ident()
        self.look()  # a script is met behind its first step
        if self._alone and not self._guest:  # else the other ranks would go on
            self._interrupt.on()
        elif self._signals is not None:
            self._signals.on()
        self.keeper.begin()
        if self._replay is not None:
            model = self._runs.model()
            self._replay.begins(self._position, self.steering, model, self.router.capabilities())
        self._look_for_what_is_not_exact()
        if self._rewound:
            self._settle(logged)

    def _settle(self, logged: Callable[[], Mapping[str, Any]]) -> None:
        """The telemetry goes on from the state that was put in place."""
        self._rewound = False
        self.look()
        self._between_s, self._left_at_s = 0.0, time.monotonic()
        self.recorder.rewind(self._position.step, logged())

    def _after_safe_point(self, logged: Callable[[], Mapping[str, Any]]) -> None:
        """What was done there is seen to; a run that must not go on ends here."""
        if self._rewound:
            self._settle(logged)
        if self.park.parked:
            msg = f"{self.run_id} was parked, and could not come back to its device"
            raise RuntimeError(msg)
        if self.history.torn is not None:
            raise self.history.torn
        if self._interrupt.asked:
            self.leave("Ctrl-C")
            raise KeyboardInterrupt
        if self._left is not None and self._signals is not None:
            raise self._signals.ends_by(self._left)

    def _told_to_leave(self) -> str | None:
        """By which signal this rank or another is to end; of several ranks."""
        if self._signals is None or self._agreement is None:
            return None
        return self._signals.asked or self._agreement.wished

    def _leave_together(self) -> bool:
        """Where all ranks stand: if one is to end, the run is kept, and all leave it here."""
        why = self._told_to_leave()
        if self._others is None or not self._others.stand:
            return False
        if self.history.torn is not None:
            with contextlib.suppress(CommandError), self._others.do("leave", TORN):
                pass
            return True  # this rank raises it
        if why is None:
            return False
        self._told_to_end, self._left = True, why
        self.look()
        self.recorder.flush()
        self.keeper.leave(why)
        with self._others.do("leave", why):
            pass
        return True

    def _tell_how_it_goes_on(self, left_by: str) -> None:
        whole = self._began_training and self._alone and self.history.torn is None
        if left_by and whole:
            self.keeper.failed(left_by)
        else:
            self.keeper.tell_newest()

    def _deserted(self) -> bool:
        """Whether nobody has looked at the held end for so long that it need not be held."""
        if self.channel.connected:
            self._deserted_at_s = None
            return False
        now_s = deserted_clock()
        self._deserted_at_s = now_s if self._deserted_at_s is None else self._deserted_at_s
        return now_s - self._deserted_at_s >= DESERTED_S

    def _interrupted(self) -> None:
        # In a signal's handler: no lock may be taken, and no buffered stream written to.
        with contextlib.suppress(OSError):
            os.write(
                2, b"\notf: Ctrl-C: finishing the batch, then saving; once more ends at once\n"
            )
        self.actions.safe_point.wake()

    def _set_after_fit(self, value: str) -> None:
        self._after_fit = value

    def _allow(self, state: Mapping[str, Any]) -> None:
        """Refuse a snapshot from elsewhere, from which the run could not go on exactly."""
        here = self._delegate.environment()
        if found := refuse_elsewhere(state, here, self.options.env):
            self.exactness = self.exactness.worse([f"resumed with {'; '.join(found)}"], [])
        self.exactness = self.exactness.worse(state["otf"].get("reasons", ()), [])
        if left_by := state["otf"].get("left_by"):
            why = f"resumed from what {left_by} had left in the middle of a batch"
            self.exactness = self.exactness.worse([why], [])

    def _look_for_what_is_not_exact(self) -> None:
        self._tell_exactness(self.exactness.worse(*self._delegate.exactness()))

    def tell_exactness_anew(self) -> None:
        """Another run trains; whoever looks at it is told as well."""
        self._told_exactness = None
        self._tell_exactness(self.exactness)

    def _tell_exactness(self, found: Exactness) -> None:
        self.exactness = found
        if found == self._told_exactness:
            return
        self._told_exactness = found
        self.emit("exactness", **found.to_wire())
        if not found.exact:
            self._say(f"{self.run_id}: {found.text}")
        self._record.exactness = found.to_wire()
        self._write_record(status=None)

    def _journal_path(self) -> Path | None:
        if self.run_dir is None:
            return None
        return self.run_dir / "journal" / f"{self.session_id}.jsonl"

    def _make_folder(self) -> tuple[Path | None, str]:
        options = self.options
        if options.origin is not None and options.origin.run_dir is not None:
            folder = options.origin.run_dir
            self._lock = run_folder.RunLock(folder)
            self._lock.acquire()  # two processes must not write one run
            return folder, folder.name
        try:
            folder = run_folder.make_run_folder(
                options.save_dir.absolute(), options.project, options.run_name
            )
        except OSError as error:
            where = error.filename or options.save_dir
            self._say(f"no run folder ({where}: {error.strerror}); the run trains on unsaved")
            return None, options.run_name
        self._lock = run_folder.RunLock(folder)
        with contextlib.suppress(OSError):  # a file system without locks
            self._lock.acquire()
        return folder, folder.name

    def _make_dial(self) -> Dial:
        options = self.options
        dashboard = rendezvous.chosen(options.dashboard, options.env)
        if dashboard == "stdio":
            stdio: list[Transport] = [StdioTransport()]
            return Dial(lambda: stdio.pop() if stdio else None)
        dialler = Dialler(rendezvous.Finder(options.dashboard, options.env))
        return Dial(dialler, dialler.put_off)

    def _identity(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "session_id": self.session_id,
            "capabilities": [*self.router.capabilities(), "journal", "token"],
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "device": self._device,
            "state": self.state.state,
            "run_id": self.run_id,
            "project": self.options.project,
        }

    def _where(self) -> dict[str, int]:
        return {"step": self._position.step, "epoch": self._position.epoch}

    def look(self) -> None:
        """Note where the run stands, for those who ask from other threads."""
        self._position = self._delegate.position()
        now_s = self._position_at_s = time.monotonic()
        if now_s - self._params_at_s >= self._params_every_s:
            self._refresh_params()
        for found in self.steering.watch(self._position.step):
            if isinstance(found, Ended):
                self.history.ended(found)
                self._param_set()
                continue
            text = (
                f"{found.path} was set to {found.set_to} and is {found.found} now: "
                "the training script writes it itself"
            )
            self.emit("log", level="warning", phase="info", text=text)

    def _time_step(self, done: int) -> None:
        """Mean time of a step without what the run stood still.

        A validation counts as one slow step, so that it does not spoil the time that is left.
        """
        self._between_s += self._position_at_s - self._left_at_s
        if done > 0:
            step_s, mean_s = self._between_s / done, self._step_s
            self._between_s = 0.0
            self._step_s = (
                step_s if mean_s is None else mean_s + 0.1 * (min(step_s, 4 * mean_s) - mean_s)
            )

    def _refresh_params(self) -> None:
        self._params_at_s = began_s = time.monotonic()
        self._params = self._param_commands.rows(may_wait=False)
        # A model of many groups has many rows: 1 % of the time is for them.
        self._params_every_s = max(PARAMS_EVERY_S, 100 * (time.monotonic() - began_s))

    def _capture(self, pool: HostPool, left_by: str) -> dict[str, Any]:
        self.park.refuse("save")
        try:
            state = self._delegate.capture(pool, in_batch=bool(left_by))
        except CommandError:
            raise
        except Exception as error:  # border: the user's save hooks may raise anything
            self._crashed(None, traceback.format_exc())
            raise crashed("save", error) from error  # noqa: EM101 -- the command's name
        self.forks.hear(state["otf"].get("ranks", ()))
        self._look_for_what_is_not_exact()  # the capture has told the delegate what it left out
        state["otf"] = {
            "version": __version__,
            "session_id": self.session_id,
            "run_id": self.run_id,
            "step": self._position.step,
            "left_by": left_by,
            "reasons": list(self.exactness.reasons),
            "steering": self.steering.state(),
            "changes": self.history.changes.state(),
            **({"guards": guards} if (guards := self.guards.state()) is not None else {}),
            **self.forks.state(),
            "environment": {
                **environment(),
                **self._delegate.environment(),
                **self.forks.environment(),
            },
            **state["otf"],
        }
        return state

    def _pin(self, checkpoint_id: str) -> None:
        try:
            self.store.pin(checkpoint_id)
        except OSError as error:
            text = f"checkpoint {checkpoint_id} could not be pinned: {error.strerror}"
            self.emit("log", level="error", phase="info", text=text)

    def settle(self) -> None:
        """What was told so far, and ``run.json``, are on the disk; training thread, standing."""
        self._write_record(status=None)
        self._told_before()

    def _told_before(self) -> None:
        """What was told up to a checkpoint is on the disk before the checkpoint exists.

        A run that goes on from it would have a hole in its curve otherwise; otf-saver.
        """
        self.emitter.drain()
        self.journal.flush(FLUSH_S)

    def _checkpoint_saved(self, manifest: Manifest, path: str) -> None:
        self.emit(
            "checkpoint_saved",
            path=path,
            step=manifest.step,
            id=manifest.id,
            kind=manifest.kind,
            bytes=manifest.total_bytes,
            exact=manifest.exact,
        )
        self.journal.sync()

    def _checkpoint_removed(self, manifest: Manifest, path: str) -> None:
        self.emit(
            "checkpoint_removed",
            id=manifest.id,
            path=path,
            step=manifest.step,
            kind=manifest.kind,
            reason="ring",
        )

    def _journal_lost(self, why: str) -> None:
        self._say(f"{why}; the run trains on, its newest events are kept in memory")
        text = f"{why}; events are kept in memory from here on"
        # Its own thread may hold nothing here: the emitter only appends.
        self.emit("log", level="error", phase="info", text=text)

    def _crashed(self, ticket: Ticket | None, text: str) -> None:
        name = ticket.request.cmd if ticket is not None else "saving"
        self.emit("log", level="error", phase="info", text=f"{name} failed:\n{text}"[-8000:])

    def _device_status(self) -> dict[str, Any]:
        kind = self._device.partition(":")[0]
        sample = self.monitor.latest() if self.monitor is not None else None
        gpu = sample.gpu(self.recorder.gpu) if sample and self.recorder.gpu is not None else None
        if gpu is None:
            ram_mb = sample.rss_mib if sample is not None else None
            nothing = {"mem_total_mb": None, "util_pct": None, "temp_c": None}
            return {"name": self._device, "kind": kind, "mem_mb": ram_mb, **nothing}
        return {
            "name": gpu.name or self._device,
            "kind": kind,
            "mem_mb": gpu.mem_used_mib,
            "mem_total_mb": gpu.mem_total_mib,
            "util_pct": gpu.util_pct,
            "temp_c": gpu.temp_c,
        }

    def _open_record(self) -> run_folder.RunRecord:
        """That of the run which goes on, or a new one."""
        known = run_folder.record_of(self.run_dir) if self.run_dir is not None else None
        here = run_folder.this_process()
        if known is not None and self.options.origin is not None:
            known.session_ids.append(self.session_id)
            known.ended_ts = known.status = None
            known.versions = run_folder.versions()
            return msgspec.structs.replace(known, **here)
        return run_folder.RunRecord(
            run_id=self.run_id,
            run_name=self.options.run_name,
            project=self.options.project,
            session_ids=[self.session_id],
            versions=run_folder.versions(),
            **here,
        )

    def _write_record(self, *, status: str | None) -> None:
        if self.run_dir is None:
            return
        try:
            with self._record_lock:  # otf-beat may have the last word
                if status is not None:
                    self._record.status, self._record.ended_ts = status, time.time()
                self._record.step = self._position.step
                run_folder.write_record(self.run_dir, self._record)
        except OSError as error:
            text = f"run.json could not be written: {error.strerror}"
            self.emit("log", level="error", phase="info", text=text)

    def _abandon_in_child(self) -> None:
        """A forked child is no trainer: it takes no lock, sends and writes nothing."""
        self._closed = True
        self.journal.abandon_in_child()
        if self.monitor is not None:
            self.monitor.abandon_in_child()


def _brief(manifest: Manifest, path: str) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "run_id": manifest.run_id,
        "path": path,
        "step": manifest.step,
        "ts": manifest.ts,
    }


def _described(manifest: Manifest, path: str) -> dict[str, Any]:
    return {
        **_brief(manifest, path),
        "epoch": manifest.epoch,
        "bytes": manifest.total_bytes,
        "kind": manifest.kind,
        "pinned": manifest.pinned,
        "exact": manifest.exact,
    }
