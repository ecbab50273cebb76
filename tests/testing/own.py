"""The framework of examples/own_framework.py, with parts that a test may break."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from otf_core.opening import RunOptions
from otf_core.testing.conformance import Framework, Outcome, Probe

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_framework.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("own_framework", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _load()


class Net(nn.Sequential):
    """Draws in every step."""

    def __init__(self, width: int = 12) -> None:
        super().__init__(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(width, 4),
        )  # fmt: skip


def data(n: int, number: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(number)
    inputs = torch.randn(n, 8, generator=draw)
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


class Own(Framework):
    """Args: the trainer, the delegate and the ``fit`` to be used in place of the example's."""

    def __init__(
        self, trainer: Any = None, delegate: Any = None, fit: Any = None, *, width: int = 12
    ) -> None:
        self._trainer = trainer or example.Trainer
        self._delegate = delegate or example.Delegate
        self._fit = fit or example.fit
        self._width = width
        self.cannot = dict.fromkeys(("test_now", "test"), "no test loop")

    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        train = DataLoader(data(48, 1), batch_size=8, shuffle=True)
        val = DataLoader(data(16, 2), batch_size=8)
        trainer = probed(self._trainer, probe)(Net(self._width), train, val, epochs=epochs)
        if otf is None:
            trainer.fit()
        else:
            self._fit(trainer, otf, self._delegate(trainer))
        rest = (
            trainer.optimizer.state_dict(),
            trainer.schedule.state_dict(),
            (trainer.step, trainer.epoch, trainer.batch_idx, trainer.epochs),
        )
        objects = [trainer, trainer.optimizer, *trainer.model.modules()]
        return Outcome(trainer.model.state_dict(), rest, trainer.tape, objects)

    def another(self) -> Framework:
        return Own(self._trainer, self._delegate, self._fit, width=self._width + 1)


def probed(trainer: Any, probe: Probe) -> Any:
    """The trainer with the probe in its batches, and a tape of what it logs."""

    class Probed(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.tape: list[float] = []

        def loss(self, batch: Any) -> torch.Tensor:
            if self.model.training:
                probe.batch(self.optimizer)
            loss: torch.Tensor = super().loss(batch)
            if self.model.training:
                self.tape.append(float(loss.detach()))
            return loss

    return Probed
