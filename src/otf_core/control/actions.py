"""ConsoleAction: what a person does to a run, carried out so that the reply is true.

Rule 1: a reply says what has happened. ``pause`` is answered when the thread stands and the file
is complete, ``resume`` when training goes on, ``stop`` when the last step is done.
Rule 2: an exclusive action leaves also when it raises, back in the state that it found.
Rule 3: the reader thread asks, the training thread does.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from otf_core.control.agreement import StepAgreement
from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.delegate import ControlDelegate, Evaluation, OnBatch, Position
from otf_core.control.forgotten import ForgottenPause
from otf_core.control.gate import PauseGate, State
from otf_core.control.router import LATER, CommandRouter, Later
from otf_core.control.run_state import RunState
from otf_core.control.safe_point import SafePoint
from otf_core.errors import CommandError, ErrorCode

MAX_LABEL_CHARS: Final = 200
PROGRESS_S: Final = 0.25  # an evaluation says how far it is no oftener
SAVE_PATIENCE_S: Final = 10.0  # a pause whose file takes longer is answered without it

# What no run carries out, each with the reason.
NOT_IN_THIS_VERSION: Final = {
    "propose_subsets": (
        "Nothing proposes clusters of samples; otf scan finds the loss of each, and a selection "
        "chooses by loss, k-means or doubtful label."
    ),
}


class Saved(Protocol):
    """A checkpoint on its way to the disk."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def path(self) -> str:
        """The file that it is or will be."""

    @property
    def step(self) -> int:
        """Steps done when it was taken."""

    def wait(self, timeout_s: float) -> bool:
        """Whether the file is complete by then."""

    def then(self, call: Callable[[], None]) -> None:
        """Have ``call`` run once when it is complete or has failed; at once if it is already."""

    @property
    def error(self) -> CommandError | None:
        """Why it failed, once it has."""


class Saver(Protocol):
    """Writes checkpoints; training thread."""

    def save(self, kind: str, *, pinned: bool = False) -> Saved:
        """Copy the state now, write it in the background.

        Raises:
            CommandError: it cannot be saved at all.
        """


class Waiter(Protocol):
    """Whoever is to be told that the thread stands; a ticket is one."""

    @property
    def id(self) -> str | None:
        """The request behind it."""

    def reply(self, data: Any) -> None:
        """It stands: ``{status, step, ckpt, applied_step}``."""

    def fail(self, error: CommandError) -> None:
        """It will not."""


class Park(Protocol):
    """Whether the run's memory is away; see ``otf_core.parking``."""

    @property
    def parked(self) -> bool:
        """Any thread."""

    def back(self, request_id: str | None = None) -> None:
        """Bring it back; raises CommandError, and then it stays away."""

    def back_here(self) -> None:
        """As far as that is possible; the run is left."""


class NeverAway:
    """Of a run that cannot be parked."""

    parked = False

    def back(self, request_id: str | None = None) -> None:
        """It is there."""

    def back_here(self) -> None:
        """It is there."""


class Keep(Protocol):
    """Keeps what was found; training thread."""

    def __call__(
        self,
        kind: str,
        label: str | None,
        step: int,
        found: Evaluation,
        limit_batches: int | None = None,
        /,
    ) -> None:
        """Of a "test" or a "validate" at this step."""


class ConsoleAction:
    """Pause, resume, stop, save, test, validate.

    Args:
        emit: ``emit(type, **fields)``; any thread.
        position: where the run stood at the last safe point; any thread.
        max_pause_s: a forgotten user's pause ends after so long.
        leaving: whether the process is about to end, so that no pause may hold it.
        deserted: whether nobody is there for whom the end would be held.
        stop_may_fail: the loop is somebody's who may not leave it: ``stop`` is answered when it has
            been left (``left``), or refused when it has not (``not_left``).
        keep: told what each test and validation has found.
        names: run and session, as a test answers them.
        agreement: of several ranks.
        due: done first, wherever the run stands.
        leaves: done last; whether all ranks leave the run here.
        forgotten: sees to a pause that nobody remembers.
    """

    def __init__(
        self,
        *,
        emit: Callable[..., Any],
        state: RunState,
        delegate: ControlDelegate,
        saver: Saver,
        position: Callable[[], Position],
        max_pause_s: float | None = None,
        test_label: str | None = None,
        leaving: Callable[[], bool] | None = None,
        deserted: Callable[[], bool] = lambda: False,
        stop_may_fail: bool = False,
        keep: Keep = lambda *_: None,
        names: Callable[[], Mapping[str, str]] = dict,
        agreement: StepAgreement | None = None,
        due: Callable[[], None] = lambda: None,
        leaves: Callable[[], bool] = lambda: False,
        forgotten: ForgottenPause | None = None,
    ) -> None:
        self._forgotten = forgotten
        self._keep, self._names, self._due, self._leaves = keep, names, due, leaves
        self._agreement = agreement
        self._emit, self._state, self._delegate, self._saver = emit, state, delegate, saver
        self._position = position
        self._max_pause_s = math.inf if max_pause_s is None else max_pause_s
        if forgotten is not None:
            self._max_pause_s = forgotten.longest_s
        self._test_label = test_label
        self._longest_s: dict[str, float] = {}  # cause -> how long it may hold
        self.safe_point = SafePoint(self._attend, agreement)
        self._leaving, self._deserted = leaving or delegate.leaving, deserted
        self.gate = PauseGate(self._announce, leave=self._lets_go)
        self.bus: ControlBus
        self._router: CommandRouter
        self._pauses: list[Waiter] = []  # to be answered on arrival
        self._resumes: list[Ticket] = []  # to be answered when the thread is away
        self._paused_reply: dict[str, Any] | None = None
        self._arrival_over = threading.Event()  # this pause has its file, a resume or a stop
        self._action: str | None = None  # the exclusive action that is running
        self._stop: Ticket | None = None
        self._stop_may_fail = stop_may_fail
        self._stopped: dict[str, Any] | None = None  # the answer that waits until it is true
        self._stopping = False
        self._tests = 0
        # ``cancel`` reaches what runs inside; it gives whether that was asked.
        self.cancellable: Callable[
            [Ticket], contextlib.AbstractContextManager[Callable[[], bool]]
        ] = _never
        self._paused_s = 0.0
        self.park: Park = NeverAway()
        self._returns: list[Ticket] = []  # resumes that wait until the run is back

    def connect(self, router: CommandRouter, bus: ControlBus) -> None:
        """Register the commands; before the session starts."""
        self.bus, self._router = bus, router
        router.on("pause", check=self._may_hold)(self.pause)
        router.on("resume", check=self._may_hold)(self.resume)
        router.on("stop", check=self._may_hold)(self.stop)
        router.on("save_ckpt")(self.save_ckpt)
        for name in ("test_now", "test"):
            router.on(name, check=self._may_test)(self.test_now)
        router.on("validate_now", check=self._may_validate)(self.validate_now)

    def wake(self) -> None:
        """Something waits for the training thread; any thread."""
        self.safe_point.wake()
        self.gate.nudge()

    @property
    def paused_s(self) -> float:
        """Seconds that the run has been held, over all pauses; training thread."""
        return self._paused_s

    # The asking side; otf-reader.

    def pause(self, ticket: Ticket) -> Later:
        """Ask for the pause; answered on arrival."""
        at_step = ticket.payload.at_step
        if at_step is not None and at_step > self._position().step:
            self.bus.schedule(ticket, at_step)
            return LATER
        self.hold(ticket)
        return LATER

    def hold(
        self, waiter: Waiter | None, *, cause: str = "user", hold_s: float | None = None
    ) -> None:
        """Ask for a pause from now on; any thread.

        Args:
            hold_s: how long at most; None: as for any pause.

        Raises:
            CommandError: the run is over, or about to be.
        """
        with self._state.lock:
            if self._state.ended:
                too_late = self.ended_error("pause")
                raise too_late
            if self._stopping:
                too_late = _overtaken("pause", "stop", self._position().step)
                raise too_late
            # Looked at once: the training thread may arrive while we are here.
            longest_s = self._max_pause_s if hold_s is None else hold_s
            self._longest_s[cause] = longest_s
            found = self.gate.request(cause, hold_s=longest_s)
            if waiter is not None:
                if self._paused_reply is not None and found is State.HELD:
                    waiter.reply(dict(self._paused_reply))
                    return
                self._pauses.append(waiter)
            # With a reply still there the thread is on its way out of the last pause, and says
            # ``resumed`` first.
            if found is State.REQUESTED and self._paused_reply is None:
                request_id = waiter.id if waiter is not None else None
                self._state.move("pausing", reason=cause, request_id=request_id)
        self.wake()

    def stands_elsewhere(self, step: int, ckpt: str | None) -> None:
        """Another state was put in place: whoever asks for a pause now is told of that one.

        Args:
            ckpt: the file that it was; None where it is none of the run's.
        """
        with self._state.lock:
            if self._paused_reply is not None:
                moved = {"step": step, "applied_step": step, "ckpt": ckpt}
                self._paused_reply = {**self._paused_reply, **moved}

    def _lets_go(self) -> bool:
        if self._agreement is not None:
            self._agreement.check()  # what it raises ends the pause, and the run
        return self._leaving() or (self.gate.causes == ("after_fit",) and self._deserted())

    def resume(self, ticket: Ticket) -> Later:
        """Let the thread go; answered when it is away."""
        with self._state.lock:
            if self._state.ended:
                raise self.ended_error(ticket.request.cmd)
            if self.park.parked:
                self._returns.append(ticket)
                self.wake()
                return LATER
            step = self._position().step
            overtaken = _overtaken("pause", "resume", step)
            withdrawn = self.bus.withdraw("pause", overtaken)
            before = self.gate.state
            held = [self.gate.resume(cause) for cause in ("user", "after_fit", "guard")]
            asked = any(held)
            if self.gate.state is State.RELEASED:
                # The thread stands, or is on its way out: it answers when it is away.
                if before is State.RELEASED:
                    self._refuse_pauses(overtaken)
                self._resumes.append(ticket)
                self._arrival_over.set()
                return LATER
            if asked:
                self._refuse_pauses(overtaken)
                if self._state.state == "pausing":
                    reason = "action" if self._action is not None else None
                    to = self._action or "running"
                    self._state.move(to, reason=reason, request_id=ticket.id)
            ticket.reply(_resumed(step, changed=asked or withdrawn > 0))
        return LATER

    def stop(self, ticket: Ticket) -> Later:
        """Ask for the end; answered at the safe point where it takes effect."""
        with self._state.lock:
            if self._stop is not None:
                detail = "stop was asked while a stop is being carried out already."
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
            self._stop = ticket
            self._arrival_over.set()
        self.wake()
        return LATER

    def _refuse_pauses(self, error: CommandError) -> None:
        waiting, self._pauses = self._pauses, []
        for pause in waiting:
            pause.fail(error)

    def _may_hold(self, ticket: Ticket) -> None:
        if self._state.ended:
            raise self.ended_error(ticket.request.cmd)
        refuse_past(ticket, self._position().step)

    def _not_twice(self, ticket: Ticket) -> None:
        action = self._action  # not the state: a pause that is asked for meanwhile is ``pausing``
        if action is None:
            return
        if ticket.link.legacy and action == "testing":
            ticket.kept = False
            ticket.reply({"status": "busy"})  # its own way of saying so; the error is not sent
        detail = (
            f"{ticket.request.cmd} was asked, found the run {action}; "
            "allowed: one such action at a time."
        )
        raise CommandError(ErrorCode.BUSY, detail, retry_after_s=1.0)

    def _may_test(self, ticket: Ticket) -> None:
        self._not_twice(ticket)
        _refuse_label(ticket)

    def _may_validate(self, ticket: Ticket) -> None:
        self._may_test(ticket)
        limit = ticket.payload.limit_batches
        if limit is not None and limit < 1:
            detail = f"validate_now was asked for {limit} batches; allowed: 1 or more."
            raise CommandError(
                ErrorCode.BAD_PAYLOAD, detail, field="limit_batches", allowed={"min": 1}
            )

    def ended_error(self, cmd: str) -> CommandError:
        """The refusal of what comes too late."""
        step = self._position().step
        detail = f"{cmd} was asked, found the run {self._state.state} at step {step}."
        return CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)

    # The doing side; training thread, at the safe point.

    def _attend(self) -> bool:
        """Everything that is due; True when the run is to stop."""
        self._due()
        self._work()
        while not self._stopping and self.gate.should_block():
            try:
                self._paused_s += self.gate.wait_until_resumed(self._stand)
            except BaseException:
                self.park.back_here()
                raise
            self._work()
        if self.bus.waiting:
            self.safe_point.wake()
        return self._stopping or self._leaves()

    def _stand(self) -> None:
        self._work()
        if self._forgotten is not None:
            self._forgotten.stands(self.gate.held_s, self.gate.causes)

    def _work(self) -> None:
        while not self._stopping:
            if self._stop is not None:
                # Before what is queued; where it fails the queue goes on.
                self._do_stop(self._stop)
            elif self._returns:
                self._router.carry_out(self._returns.pop(0), self._resume_parked)
            elif (ticket := self.bus.take()) is None:
                return
            elif ticket.request.cmd == "pause":
                self.hold(ticket)  # one that had waited for its step
            else:
                self._router.run(ticket)

    def _resume_parked(self, ticket: Ticket) -> Later:
        self.park.back(ticket.id)
        return self.resume(ticket)

    def _come_back(self) -> None:
        """Nobody waits for the answer: where there is no room the run is held on."""
        try:
            self.park.back()
        except CommandError as error:
            self._emit("log", level="error", phase="info", text=error.detail)
            if not (self._leaving() or self._stopping or self._state.ended):
                self.gate.request("user")

    def _announce(self, what: str, causes: tuple[str, ...]) -> None:
        if what == "paused":
            self._arrived(causes)
        else:
            self._left(overdue=causes)

    def _arrived(self, causes: tuple[str, ...]) -> None:
        step = self._delegate.position().step
        with self._state.lock:
            # A new one: the file of an earlier pause may still be on its way, and sets its own.
            self._arrival_over = threading.Event()
            if self._resumes or self._stop is not None:
                self._arrival_over.set()
            self._state.move("paused", reason="user" if "user" in causes else causes[0])
        mark = self._mark()
        saved, why = self._save_for_pause(self._arrival_over)
        ranks = self._followed(mark)
        ckpt = saved.path if saved is not None else None
        self._emit("paused", step=step, request={"action": "pause"}, ckpt=ckpt)
        if why is not None:
            self._emit("log", level="warning", phase="info", text=f"paused without a file: {why}")
        with self._state.lock:
            self._paused_reply = {
                "status": "paused",
                "step": step,
                "ckpt": ckpt,
                "applied_step": step,
                **ranks,
            }
            waiting, self._pauses = self._pauses, []
        for waiter in waiting:
            waiter.reply(dict(self._paused_reply))

    def _mark(self) -> int:
        return self._agreement.mark if self._agreement is not None else 0

    def _followed(self, mark: int) -> dict[str, Any]:
        """Of several ranks: how many have done what was told since."""
        return self._agreement.followed(mark) if self._agreement is not None else {}

    def _save_for_pause(self, over: threading.Event) -> tuple[Saved | None, str | None]:
        """The file of a pause once it is complete, or why there is none yet."""
        try:
            saved = self._saver.save("pause")
        except CommandError as error:
            return None, error.detail
        saved.then(over.set)
        over.wait(SAVE_PATIENCE_S)
        if not saved.wait(0):
            return None, "it is still being written; checkpoint_saved will say when it is complete"
        if saved.error is not None:
            return None, saved.error.detail
        return saved, None

    def _left(self, *, overdue: tuple[str, ...]) -> None:
        self._come_back()
        step = self._delegate.position().step
        with self._state.lock:
            waiting, self._resumes = self._resumes, []
            self._paused_reply = None
            if self._stopping or self._state.ended:
                for ticket in waiting:
                    ticket.fail(_overtaken("resume", "stop", step))
                return
            if overdue:
                cause = overdue[0]
                limit = "max_hold" if cause == "after_fit" else "max_pause"
                text = f"the pause was ended after {self._longest_s[cause]:g} s ({limit})"
                self._emit("log", level="warning", phase="info", text=text)
                if self._forgotten is not None and cause != "after_fit":
                    self._forgotten.ended(self._longest_s[cause])
            again = self.gate.should_block()
            self._state.move("running", request_id=waiting[0].id if waiting else None)
            self._emit("resumed", step=step)
            if again:
                request_id = self._pauses[0].id if self._pauses else None
                self._state.move("pausing", reason="user", request_id=request_id)
        for ticket in waiting:
            ticket.reply(_resumed(step, changed=True))

    def _do_stop(self, ticket: Ticket) -> None:
        """End the run here; where the file cannot be had the run stays as it is."""
        step = self._delegate.position().step
        saved = None
        try:
            self.park.back(ticket.id)
        except CommandError as error:
            self._stop = None
            ticket.fail(error)
            return
        if ticket.payload.save:
            saved = self._save_whole("manual", pinned=True, ticket=ticket)
            if saved is None:
                self._stop = None
                return
        with self._state.lock:
            self._stopping = True
            overtaken = _overtaken("pause", "stop", step)
            self.bus.withdraw("pause", overtaken)
            self._refuse_pauses(overtaken)
            self._emit("stopping", step=step)
            self.gate.open()
        mark = self._mark()
        self._delegate.request_stop()
        ckpt = saved.path if saved is not None else None
        said = {"status": "stopping", "step": step, "ckpt": ckpt, "applied_step": step}
        said |= self._followed(mark)
        if self._stop_may_fail:
            self._stopped = said
        else:
            ticket.reply(said)

    def left(self) -> None:
        """The loop has been left; a ``stop`` that waited for it has its answer."""
        if self._stop is not None and self._stopped is not None:
            self._stop.reply(self._stopped)
            self._stopped = None

    def not_left(self, detail: str) -> None:
        """The loop goes on in spite of a ``stop``, which is refused with this sentence."""
        with self._state.lock:
            ticket, self._stop, self._stopped = self._stop, None, None
            self._stopping = False
            if self._state.state in ("pausing", "paused"):
                self._state.move("running")
        if ticket is not None:
            ticket.fail(CommandError(ErrorCode.NOT_ALLOWED_NOW, detail))
        self._emit("log", level="warning", phase="info", text=detail)

    @property
    def stopping(self) -> bool:
        """Whether a person has ended the run."""
        return self._stopping

    def save_ckpt(self, ticket: Ticket) -> Later:
        """Answered when the file is complete; training does not wait for it."""
        mark = self._mark()
        saved = self._saver.save("manual", pinned=True)
        ranks = self._followed(mark)

        def answer() -> None:
            if saved.error is not None:
                ticket.fail(saved.error)
            else:
                data = {"id": saved.id, "path": saved.path, "step": saved.step}
                ticket.reply({**data, "applied_step": saved.step, **ranks})

        saved.then(answer)
        return LATER

    def test_now(self, ticket: Ticket) -> dict[str, Any]:
        """Run the test loop and leave the training as it was."""
        label, source = ticket.payload.label, ticket.payload.source or "user"
        return self._test("test_complete", label, source, ticket)

    def auto_test(self) -> None:
        """Test at the end of the fit, where there is something to test with."""
        try:
            self._test("auto_test_complete", "final", "auto", None)
        except CommandError as error:
            text = f"no test at the end: {error.detail}"
            self._emit("log", level="info", phase="info", text=text)

    def _test(self, event: str, label: str, source: str, ticket: Ticket | None) -> dict[str, Any]:
        step = self._delegate.position().step
        self._tests += 1
        env_label = self._test_label or f"test_{self._tests}"
        request_id = ticket.id if ticket is not None else None
        with self.exclusive("testing", request_id), self._evaluating(ticket) as on_batch:
            saved = self._save_whole("ring", pinned=False, ticket=None)

            def tested(done: int, total: int | None, loss: float | None) -> None:
                self._emit("testStep", step=done, **_known("loss", loss))
                on_batch(done, total, loss)

            found = self._delegate.run_test(tested)
        self._keep("test", label, step, found)
        path = saved.path if saved is not None else None
        loss = _known("avg_loss", found.avg_loss)
        common = {**loss, "step": step, "label": label, "ckpt_path": path}
        self._emit(
            event,
            status="ok",
            **common,
            env_test_label=env_label,
            source=source,
            metrics=dict(found.metrics),
            seconds=found.seconds,
        )
        return {
            "status": "ok",
            **self._names(),
            **common,
            "env_test_label": env_label,
            "metrics": dict(found.metrics),
            "applied_step": step,
        }

    def validate_now(self, ticket: Ticket) -> dict[str, Any]:
        """Validate by the module's hooks alone and leave the training as it was."""
        step = self._delegate.position().step
        with self.exclusive("validating", ticket.id), self._evaluating(ticket) as on_batch:
            found: Evaluation = self._delegate.run_validation(
                ticket.payload.limit_batches, on_batch
            )
        self._keep("validate", ticket.payload.label, step, found, ticket.payload.limit_batches)
        return {
            "metrics": dict(found.metrics),
            "step": step,
            "seconds": found.seconds,
            "applied_step": step,
        }

    @contextlib.contextmanager
    def _evaluating(self, ticket: Ticket | None) -> Iterator[OnBatch]:
        """To be called behind each batch: says how far it is, and raises where it is cancelled."""
        if ticket is None:
            yield lambda _done, _total, _loss: None
            return
        cmd, began_s = ticket.request.cmd, time.monotonic()
        told_s = began_s
        with self.cancellable(ticket) as cancelled:

            def on_batch(done: int, total: int | None, _loss: float | None) -> None:
                nonlocal told_s
                if cancelled():
                    detail = f"{cmd} was cancelled after {done:,} batches; the run is as it was."
                    raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
                now_s = time.monotonic()
                if total and now_s - told_s >= PROGRESS_S:
                    told_s = now_s
                    eta_s = (now_s - began_s) / done * (total - done)
                    numbers = {"done": done, "total": total, "eta_s": eta_s}
                    self._emit("progress", request_id=ticket.id, cmd=cmd, **numbers)

            yield on_batch

    @contextlib.contextmanager
    def exclusive(self, state: str, request_id: str | None) -> Iterator[None]:
        """An action in which the run stands; it is said, and left also where it raises."""
        with self._state.lock:
            before, reason = self._state.state, self._state.reason
            self._action = state
            self._state.move(state, reason="action", request_id=request_id)
        try:
            yield
        finally:
            with self._state.lock:
                self._action = None
                # A pause that was asked for meanwhile has its own state already.
                if self._state.state == state:
                    if before == "pausing" and not self.gate.should_block():
                        before, reason = "running", None  # and was taken back meanwhile
                    self._state.move(before, reason=reason)

    def _save_whole(self, kind: str, *, pinned: bool, ticket: Ticket | None) -> Saved | None:
        """Save and wait for the file; None when it failed, and then the ticket has been told."""
        try:
            saved = self._saver.save(kind, pinned=pinned)
            saved.wait(math.inf)
            if saved.error is not None:
                raise saved.error
        except CommandError as error:
            if ticket is not None:
                ticket.fail(error)
            return None
        return saved


def _refuse_label(ticket: Ticket) -> None:
    label = ticket.payload.label
    if label is not None and not 0 < len(label) <= MAX_LABEL_CHARS:
        cmd, most = ticket.request.cmd, MAX_LABEL_CHARS
        detail = f"{cmd} was asked with a label of {len(label):,} characters; allowed: 1 to {most}."
        allowed = {"min": 1, "max": most}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="label", allowed=allowed)


@contextlib.contextmanager
def _never(_: Ticket) -> Iterator[Callable[[], bool]]:
    yield lambda: False


def _resumed(step: int, *, changed: bool) -> dict[str, Any]:
    return {"status": "resumed", "step": step, "applied_step": step, "changed": changed}


def _known(name: str, loss: float | None) -> dict[str, float]:
    """Left out where there is none: the extension's host would store a null as 0."""
    return {name: loss} if loss is not None and math.isfinite(loss) else {}


def _overtaken(what: str, by: str, step: int) -> CommandError:
    detail = f"The {what} that was asked for was overtaken by {by} at step {step}."
    return CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)


def refuse_past(ticket: Ticket, step: int) -> None:
    """Refuse an ``at_step`` that is done already; any thread. Raises CommandError."""
    at_step = getattr(ticket.payload, "at_step", None)
    if at_step is not None and at_step < step:
        cmd = ticket.request.cmd
        detail = f"{cmd} was asked for step {at_step}, {step} are done; allowed: {step} or later."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="at_step", allowed={"min": step})
