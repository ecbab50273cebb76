"""One fit of one configuration by the Runner in this process: the same adapter as ``runs``.

A Runner always has a session; ``controlled``, which opens it, is what is exchanged here.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from otf_core.runner import Runner, RunnerCallback, runner
from otf_core.runner.callback import HOOKS
from otf_core.runner.control import controlled
from otf_core.runner.delegate import RunnerDelegate
from otf_core.state import training
from tests.exact import digest
from tests.exact.configs import Config
from tests.exact.runs import SEED, Ended, Gate, counted, loaded, sow
from tests.exact.tape import Tape, sum_of

WITHOUT = ("ckpt_path",)  # ways that there are not
STATE = training  # its table PARTS
# Whoever has one of these makes the loop do more than without him.
UNHEARD = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_metrics")


class Held(NamedTuple):
    """A fit that stands at a gate."""

    run: Any
    delegate: RunnerDelegate
    gates: int  # passed in this process
    tape: Tape

    @property
    def batches(self) -> int:
        """Done in the run so far."""
        total: int = self.run.counters.total_batches
        return total

    def save(self) -> bytes:
        """The state as a file's content."""
        file = io.BytesIO()
        torch.save(self.delegate.capture(), file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        """Go back, or on, in place."""
        self.delegate.apply(loaded(saved))
        self.tape.write("back", self.batches)


def batches_done(state: dict[str, Any]) -> int:
    """In the run that a checkpoint is of."""
    return int(state["otf"]["exact"]["counters"]["total_batches"])


class Ours(NamedTuple):
    """What is at the safe points of a fit.

    Attributes:
        controlled: takes the place of the Runner's own; see there.
        options: of the Runner.
    """

    controlled: Callable[..., contextlib.AbstractContextManager[Any]]
    options: dict[str, Any]


class Nobody(RunnerCallback):
    """In place of the session."""

    is_otf = True
    session = None


@contextlib.contextmanager
def uncontrolled(run: Any, options: Any) -> Iterator[Nobody]:
    """The run without us."""
    yield Nobody()


def AtGate(act: Gate, tape: Tape) -> Ours:  # noqa: N802 -- a class in ``runs``
    """Gate, capture, apply, and no session.

    Args:
        act: called at every gate.
    """

    @contextlib.contextmanager
    def at_gate(run: Any, options: Any) -> Iterator[Nobody]:
        delegate, gates = RunnerDelegate(run), 0

        def tick() -> bool:
            nonlocal gates
            delegate.ready()
            act(Held(run, delegate, gates, tape))
            gates += 1
            return False

        run.between_batches = tick
        yield Nobody()

    return Ours(at_gate, {})


def plugin(tape: Tape, **options: Any) -> Ours:
    """All of it, as a user has it."""
    return Ours(controlled, options)


class Told(RunnerCallback):
    """Counts the calls of the hooks that callbacks have, and tells of what is logged."""

    is_otf = True  # the book-keeping is no part of the run

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def on_metrics(self, run: Any, metrics: Any, step: int) -> None:
        self._tape.log_metrics(metrics, step)


class Batches(RunnerCallback):
    """Tells of each batch: where it stood, the loss, and a sum over the data."""

    is_otf = True

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        said = None if loss is None else float(loss).hex()
        counters = run.counters
        self._tape.write(
            "batch", counters.epoch, batch_idx, counters.global_step, said, sum_of(batch)
        )


def _counting(name: str) -> Any:
    kind = "val" if name.startswith("on_validation_batch") else "hook"

    def hook(self: Told, *_: Any, **__: Any) -> None:
        self._tape.event(kind)

    hook.__name__ = name
    return hook


for _name in set(HOOKS) - set(UNHEARD):
    setattr(Told, _name, _counting(_name))


def fit(
    config: Config,
    folder: Path,
    tape: Tape,
    ours: Ours | None = None,
    *,
    seed: int = SEED,
    ckpt_path: str | None = None,
) -> Ended:
    """The configuration from its script's first line to the end of fit; see ``runs.fit``."""
    assert ckpt_path is None, "the Runner has no ckpt_path"
    sow(seed)
    setup = config.build(folder)
    given: dict[str, Any] = {
        "device": "cpu",
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "progress": False,
        "dashboard": "off",
    }
    callbacks = [Told(tape), *setup.callbacks, Batches(tape)]
    more = ours.options if ours is not None else {}
    fitter = Runner(callbacks=callbacks, **{**given, **setup.trainer, **more})
    opened = _marked(ours.controlled, tape) if ours is not None else uncontrolled
    with (
        warnings.catch_warnings(),
        counted(tape),
        mock.patch.object(runner, "controlled", opened),
    ):
        warnings.simplefilter("ignore")
        fitter.fit(
            setup.model,
            train_loader=setup.train,
            val_loader=setup.val,
            datamodule=setup.datamodule,
            **setup.fit,
        )
    return Ended(digest.of_run(fitter.run), dict(tape.counts))


def _marked(inner: Any, tape: Tape) -> Any:
    """Tells of each gate, before and behind what is done there."""

    @contextlib.contextmanager
    def opened(run: Any, options: Any) -> Iterator[Any]:
        with inner(run, options) as control:
            tick = run.between_batches

            def between() -> bool:
                tape.write("gate", run.counters.total_batches)
                stop: bool = tick()
                tape.write("go", run.counters.total_batches)
                return stop

            run.between_batches = between
            yield control

    return opened
