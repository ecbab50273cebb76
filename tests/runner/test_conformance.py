"""The Runner passes the suite that every delegate must pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from torch import nn
from torch.utils.data import DataLoader

from otf_core.opening import RunOptions
from otf_core.runner import Runner, RunnerCallback
from otf_core.testing.conformance import (
    DelegateSuite,
    Framework,
    GoingBack,
    Holding,
    Outcome,
    Probe,
)
from tests.no_harm.configs import Net, _train, _val, digits


class InBatch(RunnerCallback):
    """The probe in every training batch, and a tape of what is logged in training."""

    def __init__(self, probe: Probe) -> None:
        self.is_otf = True  # no part of the run
        self._probe = probe
        self.tape: list[Any] = []

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        self._probe.batch(*run.optimizers)

    def on_metrics(self, run: Any, metrics: Any, step: int) -> None:
        trained = {name: float(v) for name, v in metrics.items() if "test" not in name}
        if trained:
            self.tape.append((step, sorted(trained.items())))


@contextlib.contextmanager
def without_a_session(*_: Any) -> Iterator[Any]:
    """In place of ``controlled``: the Runner alone."""

    class Nobody(RunnerCallback):
        session = None

    yield Nobody()


class Native(Framework):
    """A fit over digits.

    Args:
        options: for the Runner.
    """

    def __init__(self, net: Any = Net, **options: Any) -> None:
        self._net, self._options = net, options

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        watches, module = InBatch(probe), self._net()
        given = (
            {} if otf is None else {f.name: getattr(otf, f.name) for f in dataclasses.fields(otf)}
        )
        options = {
            "max_epochs": epochs,
            "progress": False,
            "log_every_n_steps": 1,
            **self._options,
            **given,
        }
        runner = Runner(callbacks=[watches], **options)
        alone = mock.patch("otf_core.runner.runner.controlled", without_a_session)
        with alone if otf is None else contextlib.nullcontext():
            tests = DataLoader(digits(64), batch_size=32)
            runner.fit(module, train_loader=_train(96), val_loader=_val(), test_loader=tests)
        run = runner.run
        assert run is not None
        schedules = [config.scheduler.state_dict() for config in run.schedulers]
        optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
        rest = optimizers, schedules, run.counters.state(), module.training
        return Outcome(
            module.state_dict(), rest, watches.tape, [module, *run.optimizers, *module.modules()]
        )

    def another(self) -> Framework:
        return Native(Wide)


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


class TestRunner(DelegateSuite):
    framework = Native()


@pytest.mark.long
class TestAccumulating(Holding, GoingBack):
    framework = Native(accumulate_grad_batches=2, gradient_clip_val=0.5)
