"""A run without a framework: fakes around the real actions, bus, router, gate and state.

Everything happens on one thread. What the other threads do while the training thread waits is a
script (``asleep``, ``saving``), so that each test is one exact order of events on the tape.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from otf_core import protocol
from otf_core.control import actions as actions_module
from otf_core.control.actions import ConsoleAction
from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.delegate import Evaluation, OnBatch, Position
from otf_core.control.forgotten import ForgottenPause
from otf_core.control.gate import PauseGate
from otf_core.control.router import CommandRouter
from otf_core.control.run_state import RunState
from otf_core.errors import CommandError
from tests.control.script import Script, ScriptedEvent


class FakeLink:
    """A connection that writes down what it is given."""

    def __init__(self, tape: list[str] | None = None, *, legacy: bool = False) -> None:
        self.legacy = legacy
        self.tape = [] if tape is None else tape
        self.replies: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def reply(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        message = json.loads(line)
        self.replies.append(message)
        said = "ok" if message["ok"] else message["code"]
        self.tape.append(f"{message['id']}: {said}")

    def event(self, message: Mapping[str, Any]) -> None:
        self.events.append(dict(message))
        what = message.get("request_id") or message.get("code")
        self.tape.append(f"{message['type']} {what}")


class FakeSaved:
    """A file that is complete, or has failed, when the test says so."""

    def __init__(self, checkpoint_id: str, step: int) -> None:
        self.id, self.path, self.step = checkpoint_id, f"/run/{checkpoint_id}.ckpt", step
        self.error: CommandError | None = None
        self._done = False
        self._calls: list[Callable[[], None]] = []

    def settle(self, error: CommandError | None = None) -> None:
        self.error, self._done = error, True
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def wait(self, timeout_s: float) -> bool:
        assert self._done or timeout_s == 0, "would wait for ever"
        return self._done

    def then(self, call: Callable[[], None]) -> None:
        if self._done:
            call()
        else:
            self._calls.append(call)


class FakeSaver:
    """Completes each file at once, unless told otherwise."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.refusal: CommandError | None = None  # raised at once
        self.failure: CommandError | None = None  # what the file ends with
        self.slow = False  # the file is left to the test
        self.saved: list[FakeSaved] = []
        self.asked: list[tuple[str, bool]] = []
        self.meanwhile: list[Callable[[], object]] = []

    def save(self, kind: str, *, pinned: bool = False) -> FakeSaved:
        self.asked.append((kind, pinned))
        self._rig.tape.append(f"save {kind}")
        while self.meanwhile:
            self.meanwhile.pop(0)()
        if self.refusal is not None:
            raise self.refusal
        step = self._rig.delegate.step
        saved = FakeSaved(f"{step}-{kind}", step)
        self.saved.append(saved)
        if not self.slow:
            saved.settle(self.failure)
        return saved


class FakeDelegate:
    """A loop that does nothing but count."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.step = 0
        self.meanwhile: list[Callable[[], object]] = []  # during a test or validation
        self.losses: list[float | None] = [2.0, 1.0]
        self.avg_loss: float | None = 1.5
        self.raises: BaseException | None = None
        self.limits: list[int | None] = []

    def position(self) -> Position:
        return Position(step=self.step, global_step=self.step)

    def capture(self, pool: Any = None, *, in_batch: bool = False) -> dict[str, Any]:
        raise AssertionError

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        self.limits.append(limit_batches)
        return self._evaluate(on_batch)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        return self._evaluate(on_batch)

    def _evaluate(self, on_batch: OnBatch) -> Evaluation:
        for done, loss in enumerate(self.losses, 1):
            on_batch(done, len(self.losses), loss)
        while self.meanwhile:
            self.meanwhile.pop(0)()
        if self.raises is not None:
            raise self.raises
        return Evaluation(metrics={"acc": 0.5}, avg_loss=self.avg_loss, seconds=0.25)

    def leaving(self) -> bool:
        return False

    def request_stop(self) -> None:
        self._rig.tape.append("request_stop")


class Rig:
    """One run; ``tape`` has every event and reply in order."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        max_pause_s: float | None = None,
        forgotten: ForgottenPause | None = None,
    ) -> None:
        self.tape: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.delegate = FakeDelegate(self)
        self.saver = FakeSaver(self)
        self.position = Position()
        self.state = RunState(self.emit, lambda: {"step": self.position.step, "epoch": 0})
        self.world = Script()
        self.asleep = self.world.steps
        self.on_announce: Callable[[str], object] = lambda what: None

        self.saving: deque[Callable[[], object]] = deque()
        self.waits_s: list[float] = []
        event = partial(ScriptedEvent, self.saving, self.waits_s)
        monkeypatch.setattr(actions_module, "threading", SimpleNamespace(Event=event))
        self.actions = ConsoleAction(
            emit=self.emit,
            state=self.state,
            delegate=self.delegate,
            saver=self.saver,
            position=lambda: self.position,
            max_pause_s=max_pause_s,
            forgotten=forgotten,
        )
        self.actions.gate = PauseGate(self.announce, clock=self.world.clock, wakeup=self.world)
        self.crashes: list[str] = []
        self.router = CommandRouter(on_crash=lambda _, text: self.crashes.append(text))
        self.bus = ControlBus(self.router, wake=self.actions.wake, step=lambda: self.position.step)
        self.actions.connect(self.router, self.bus)
        self.link = FakeLink(self.tape)
        self.state.move("running")
        self.tape.clear()
        self.events.clear()

    def announce(self, what: str, causes: tuple[str, ...]) -> None:
        self.on_announce(what)
        self.actions._announce(what, causes)

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, **fields})
        said: dict[str, Callable[[], Any]] = {
            "state": lambda: f"{fields['previous']} > {fields['state']}",
            "paused": lambda: f"{fields['step']} {fields['ckpt']}",
            "resumed": lambda: fields["step"],
            "stopping": lambda: fields["step"],
            "log": lambda: fields["text"],
            "testStep": lambda: fields["step"],
            "test_complete": lambda: fields["step"],
        }
        self.tape.append(f"{kind} {said[kind]()}")

    def send(self, cmd: str, name: str | None = None, *, link: Any = None, **payload: Any) -> None:
        """A command as otf-reader hands it over."""
        line = json.dumps({"id": name, "cmd": cmd, "payload": payload}).encode()
        self.bus.receive(protocol.decode_request(line), self.link if link is None else link)

    def sends(self, cmd: str, name: str | None = None, **payload: Any) -> Callable[[], None]:
        """The same, for a script."""
        return lambda: self.send(cmd, name, **payload)

    def settles(self, number: int) -> Callable[[], None]:
        """The file with this number becomes complete, for a script."""

        def settle() -> None:
            self.saver.saved[number].settle()

        return settle

    def step(self, *asleep: Callable[[], object], to: int | None = None) -> bool:
        """One batch and the safe point behind it; ``asleep`` happens while it is held there."""
        self.delegate.step = self.delegate.step + 1 if to is None else to
        self.position = self.delegate.position()
        self.asleep.extend(asleep)
        stop = self.actions.safe_point.tick()
        assert not self.asleep, "some of the script was not played"
        return stop

    def reply(self, name: str, link: Any = None) -> dict[str, Any]:
        """The one reply to this request: its data, or the whole error."""
        found = [r for r in (link or self.link).replies if r["id"] == name]
        assert len(found) == 1, found
        data: dict[str, Any] = found[0]["data"] if found[0]["ok"] else found[0]
        return data

    def finish(self) -> None:
        """As the session ends a run."""
        self.state.move("finished")
        self.bus.close(self.actions.ended_error("A command"))
        self.actions.gate.close()

    def ticket(self, cmd: str, name: str | None = None) -> Ticket:
        """A ticket that is with nobody yet."""
        request = protocol.Request(cmd=cmd, id=name)
        return Ticket(request, self.link, on_answer=lambda _: None)
