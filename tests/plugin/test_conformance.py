"""Lightning passes the suite that every delegate must pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
import pytest
from torch import nn
from torch.utils.data import DataLoader

from otf_core.opening import RunOptions
from otf_core.testing.conformance import (
    DelegateSuite,
    Framework,
    GoingBack,
    Holding,
    Outcome,
    Probe,
)
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _train, _trainer, _val, digits


class InBatch(L.Callback):
    """The probe in every training batch."""

    def __init__(self, probe: Probe) -> None:
        self.is_otf = True  # no part of the run
        self._probe = probe

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._probe.batch(*trainer.optimizers)


class Lightning(Framework):
    """A fit over digits.

    Args:
        limits: for the Trainer.
    """

    def __init__(self, net: Any = Net, **limits: Any) -> None:
        self._net, self._limits = net, limits

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        ours: list[L.Callback] = []
        if otf is not None:
            tests = DataLoader(digits(64), batch_size=32)
            given = {f.name: getattr(otf, f.name) for f in dataclasses.fields(otf)}
            ours = [OnTheFlyCallback(**given, test_dataloaders=tests)]
        limits = {"max_epochs": epochs, **self._limits}
        trainer = _trainer([*ours, InBatch(probe)], **limits)
        module = self._net()
        trainer.fit(module, _train(96), _val())
        trained = digest.of(trainer)
        weights, logged = trained.pop("weights"), trained.pop("logged")
        fit = trainer.fit_loop
        objects = [fit, fit.epoch_loop, fit.epoch_loop.val_loop, trainer.strategy, module]
        # A test's values are the user's logger's as well.
        kept = [line for line in logged if not any("test" in name for name, _ in line[1])]
        return Outcome(weights, trained, kept, [*objects, *trainer.optimizers, *module.modules()])

    def another(self) -> Framework:
        return Lightning(Wide)


class Wide(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


class TestLightning(DelegateSuite):
    framework = Lightning()


@pytest.mark.long
class TestAccumulating(Holding, GoingBack):
    framework = Lightning(accumulate_grad_batches=2, gradient_clip_val=0.5)
