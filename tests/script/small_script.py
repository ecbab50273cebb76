"""A script under ``otf-fit`` as a framework of the kit: in a process whose main thread trains.

The processes are forks of one that is itself forked before any test has a thread. The probe is in
the test's process; its other end tells it of every batch and step, and waits for its answer.
"""

from __future__ import annotations

import builtins
import ctypes
import dataclasses
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from otf_core.cli.otf_fit import Asked, Host
from otf_core.opening import RunOptions
from otf_core.script.imported import when_imported
from otf_core.script.run import Target, run
from otf_core.script.stop import StopScript
from otf_core.state.rng import get_rng, set_rng
from otf_core.steering.preview import NEEDS_CADENCE
from otf_core.testing.conformance import Framework, Outcome, Probe
from otf_core.testing.conformance.small_run import exact
from tests.testing.own import Net

SMALL: Final = Path(__file__).with_name("small")
NOT_BACK: Final = "begins anew by starting again"
PR_SET_PDEATHSIG: Final = 1
STARTED_AT: Final[list[str]] = []  # each module with the fixture has one


class Script(Framework):
    """tests/script/small/train.py. The test's module needs the fixture ``forks``."""

    def __init__(self, *, width: int = 12) -> None:
        self._width = width
        self.cannot = {
            **NEEDS_CADENCE,
            "reset_session": NOT_BACK,
            "load_ckpt": "loads no file while it runs",
            "export_weights": "all its variables",
            **dict.fromkeys(("test_now", "test"), "no test"),
            "validate_now": "validation cannot be called",
            "extend": "limit",
            **dict.fromkeys(("fork", "switch_run", "merge", "merge_preview"), "is one run"),
            "pause_at_start": "it is seen when its first batch is trained",
            "after_fit": "its end is not known before it is over",
            "metrics": "nobody knows what it logs",
        }

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        with _dial() as there:
            there.send((otf, self._width, epochs, probe.does, get_rng()))
            raised, result = _serve(there, probe, self.patience_s)
        if raised is not None:
            raise raised
        *outcome, numbers = result
        set_rng(numbers)  # as if it had been trained here
        return Outcome(*outcome)

    def another(self) -> Framework:
        return Script(width=self._width + 1)


def _serve(there: Connection, probe: Probe, patience_s: float) -> tuple[BaseException | None, Any]:
    """Answer the script until it is over; what the probe has raised in it, and the outcome."""
    raised: BaseException | None = None
    while True:
        assert there.poll(2 * patience_s), "the script says nothing"
        what, said = there.recv()
        answer = None
        if what == "batch":
            try:
                probe.batch()
            except (RuntimeError, TimeoutError) as error:
                raised = answer = error
        elif what == "step":
            probe.steps, probe.lrs = said
        else:
            assert what == "done" or raised is not None, said
            return raised, said
        there.send(answer)


class Eye:
    """What the script has of the probe; in the script's process."""

    def __init__(
        self,
        there: Connection,
        width: int,
        epochs: int,
        does: tuple[Any, ...],
    ) -> None:
        rate, freeze, scale, poison = does
        self.width, self.epochs = width, epochs
        self._there = there
        self._probe = Probe(rate=rate, freeze=freeze, scale=scale, poison=poison)
        self.parts: tuple[Any, Any, Any, list[float]]

    def watch(self, model: Any, optimizer: Any, schedule: Any, losses: list[float]) -> None:
        """Called by the script, once."""
        self.parts = model, optimizer, schedule, losses
        # Within the step: what is of otf opens when the first is made.
        optimizer.register_step_pre_hook(lambda *_: self._batch())
        self._probe.watch(optimizer)
        optimizer.register_step_post_hook(lambda *_: self._stepped())

    def _batch(self) -> None:
        self._probe.batch()
        self._ask("batch")

    def _stepped(self) -> None:
        self._ask("step", (self._probe.steps, self._probe.lrs))

    def _ask(self, what: str, said: Any = None) -> None:
        self._there.send((what, said))
        if (error := self._there.recv()) is not None:
            raise error

    def outcome(self) -> tuple[Any, ...]:
        """What the script has come to."""
        model, optimizer, schedule, losses = self.parts
        states = optimizer.state_dict(), schedule.state_dict(), model.training
        return exact(model.state_dict()), exact(states), losses, (), get_rng()


def _dial() -> Connection:
    """To a script that is about to be started."""
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(STARTED_AT[-1])
    return Connection(ours.detach())


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """The process that the scripts are forks of."""
    with socket.socket(socket.AF_UNIX) as listener:
        folder = tempfile.mkdtemp(prefix="scripts-")
        listener.bind(f"{folder}/socket")
        listener.listen()
        pid = os.fork()
        if pid == 0:
            _start_scripts(listener)
    STARTED_AT.append(f"{folder}/socket")
    yield
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    shutil.rmtree(folder)


def _start_scripts(listener: socket.socket) -> None:
    """A fork for each that asks; never returns."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        torch.set_num_threads(1)
        _import_everything()
        while True:
            ours, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _script(Connection(ours.detach()))
            ours.close()
    finally:
        os._exit(1)


def _import_everything() -> None:
    """Once, and not in each fork: torch imports much at the first step."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()


def _script(there: Connection) -> None:
    """One script, from its start to its end."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        otf, width, epochs, has, numbers = there.recv()
        set_rng(numbers)
        there.send(("done", _run(otf, Eye(there, width, epochs, has))))
    except BaseException:  # noqa: BLE001 -- the end of a process: told to the test
        there.send(("failed", traceback.format_exc()))
    finally:
        os._exit(0)


def _run(otf: RunOptions | None, eye: Eye) -> tuple[Any, ...]:
    """As ``otf-fit`` does."""
    vars(builtins)["__eye__"] = eye
    sys.excepthook = lambda *_: None
    target = Target(str(SMALL / "train.py"), [])
    if otf is None:
        run(target)
        return eye.outcome()
    options = {field.name: getattr(otf, field.name) for field in dataclasses.fields(otf)}
    host = Host(Asked({k: v for k, v in options.items() if v is not None}, 0, target))
    try:
        # torch is here already; what comes first of the script's is ``seen``.
        with when_imported("seen", host.attach):
            run(target)
        host.ended = True
        host.refuse_if_not_there(None)
    except StopScript as error:
        host.ending = error
    except BaseException as error:
        host.ending = error
        raise
    finally:
        found = eye.outcome()
        host.close()
    return found
