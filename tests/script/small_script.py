"""A script under ``otf-fit`` as a framework of the kit: in a fork, whose main thread trains.

The probe is in the test's process. Its other end in the fork tells it of every batch and step, and
waits for its answer.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import functools
import multiprocessing
import random
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from otf_core.cli.otf_fit import Asked, Host
from otf_core.opening import RunOptions
from otf_core.script.imported import when_imported
from otf_core.script.run import Target, run
from otf_core.script.stop import StopScript
from otf_core.state.rng import get_rng, parked_rng, set_rng
from otf_core.testing.conformance import Framework, Outcome, Probe
from otf_core.testing.conformance.small_run import Rate, exact
from tests.exact import forked
from tests.testing.own import Net

SMALL: Final = Path(__file__).with_name("small")
NOT_BACK: Final = "goes on from a checkpoint by starting again"


class Script(Framework):
    """tests/script/small/train.py."""

    def __init__(self, *, width: int = 12) -> None:
        self._width = width
        self.cannot = {
            **dict.fromkeys(("rollback", "load_ckpt", "reset_session"), NOT_BACK),
            **dict.fromkeys(("test_now", "test"), "no test"),
            "validate_now": "validation cannot be called",
            "extend": "limit",
            "pause_at_start": "it is seen when its first batch is trained",
            "after_fit": "its end is not known before it is over",
            "metrics": "nobody knows what it logs",
        }

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        _import_everything()
        here, there = multiprocessing.Pipe()
        numbers = random.getstate()  # a fork seeds this one anew
        eye = Eye(there, self._width, epochs, probe.rate)
        with tempfile.TemporaryDirectory() as folder, here:
            fork = forked.Fork(lambda: _run(otf, eye, numbers), Path(folder), "script")
            there.close()
            raised = _serve(here, probe)
            how = fork.wait(self.patience_s)
        if raised is not None:
            raise raised
        assert how.how == "done", how.told()
        *outcome, numbers = how.result
        set_rng(numbers)  # as if it had been trained here
        return Outcome(*outcome)

    def another(self) -> Framework:
        return Script(width=self._width + 1)


@functools.cache
def _import_everything() -> None:
    """Once, and not in each fork: torch imports much at the first step."""
    with parked_rng():
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()


def _serve(here: Connection, probe: Probe) -> BaseException | None:
    """Answer the script until it is over; what the probe has raised in it."""
    raised: BaseException | None = None
    with contextlib.suppress(EOFError):
        while True:
            answer = None
            what = here.recv()
            if what == "batch":
                try:
                    probe.batch()
                except (RuntimeError, TimeoutError) as error:
                    raised = answer = error
            else:
                probe.steps, probe.lrs = what
            here.send(answer)
    return raised


class Eye:
    """What the script has of the probe; in the fork."""

    def __init__(self, there: Connection, width: int, epochs: int, rate: Rate | None) -> None:
        self.width, self.epochs = width, epochs
        self._there, self._probe = there, Probe(rate=rate)
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
        self._ask((self._probe.steps, self._probe.lrs))

    def _ask(self, what: Any) -> None:
        self._there.send(what)
        if (error := self._there.recv()) is not None:
            raise error

    def outcome(self) -> tuple[Any, ...]:
        """What the script has come to."""
        model, optimizer, schedule, losses = self.parts
        states = optimizer.state_dict(), schedule.state_dict(), model.training
        return exact(model.state_dict()), exact(states), losses, (), get_rng()


def _run(otf: RunOptions | None, eye: Eye, numbers: Any) -> tuple[Any, ...]:
    """As ``otf-fit`` does, in the fork."""
    random.setstate(numbers)
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
