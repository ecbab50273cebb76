"""A loop of one's own passes the suite that every delegate must pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import otf_core
from otf_core.opening import RunOptions
from otf_core.steering.preview import NEEDS_CADENCE
from otf_core.testing.conformance import DelegateSuite, Framework, Outcome, Probe
from tests.own_loop.loops import Bare, Net
from tests.state.trainings import Mean, rows


class OwnLoop(Framework):
    """Args: ``width``: of a layer more; ``every``: batches that make a step."""

    cannot = NEEDS_CADENCE

    def __init__(self, width: int = 0, every: int = 1) -> None:
        self._width, self._every = width, every

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        net = Net()
        if self._width:
            net.more = nn.Linear(self._width, 1)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        loader = DataLoader(rows(36), batch_size=4, shuffle=True)
        val_loader = DataLoader(rows(8), batch_size=4)
        mean, logged = Mean(), []

        def loss_of(batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(net(batch[0]), batch[1])

        def validate(limit_batches: int | None = None) -> dict[str, float]:
            net.eval()
            with torch.no_grad():
                found = [float(loss_of(b)) for b in list(val_loader)[:limit_batches]]
            net.train()
            return {"val_loss": sum(found) / len(found)}

        def train(session: Any) -> None:
            for _ in session.epochs(epochs):
                net.train()
                for batch in loader:
                    probe.batch(optimizer)
                    loss = loss_of(batch)
                    loss.backward()
                    running = mean.add(loss)
                    if net.calls % self._every == 0:
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()
                        logged.append((loss.item(), running.item()))
                    if session.tick(loss=loss, mean=mean.total):
                        return
                session.log(**validate())

        if otf is None:
            train(Bare(loader))
        else:
            given = {f.name: getattr(otf, f.name) for f in dataclasses.fields(otf)}
            with otf_core.attach(
                model=net,
                optimizer=optimizer,
                scheduler=scheduler,
                train_loader=loader,
                val_loader=val_loader,
                validate=validate,
                test=lambda: {"test_loss": validate()["val_loss"]},
                state={"mean": mean},
                **given,
            ) as session:
                train(session)
        rest = optimizer.state_dict(), scheduler.state_dict(), mean.state_dict(), net.calls
        return Outcome(net.state_dict(), rest, logged, [net, optimizer, *net.modules()])

    def another(self) -> Framework:
        return OwnLoop(width=2)


class TestOwnLoop(DelegateSuite):
    framework = OwnLoop()


@pytest.mark.long
class TestAccumulating(DelegateSuite):
    framework = OwnLoop(every=3)
