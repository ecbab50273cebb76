"""A fit of Lightning as a check of its health sees it; training thread, at the gate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy

from otf_core.errors import CommandError, ErrorCode
from otf_core.health.data import fresh
from otf_core.runs.subject import silenced
from otf_core.state.parts import Modules
from otf_lightning import evaluation, inside
from otf_lightning.inside import MODULE_OWN
from otf_lightning.positions import DATA_OWN


class FitSubject:
    """A Subject; see otf_core.health.subject.

    Args:
        trainer: in fit; its loaders are made.
        history: step and loss, oldest first.
    """

    not_state = frozenset(MODULE_OWN) | DATA_OWN

    def __init__(self, trainer: L.Trainer, history: Sequence[tuple[int, float]] = ()) -> None:
        self._trainer, self.history = trainer, history
        self.modules: Modules = {"": trainer.lightning_module}
        self.device: torch.device = trainer.strategy.root_device
        self.world_size, self.rank = trainer.world_size, trainer.global_rank
        self.loaders = inside.loaders_in_fit(trainer, validation=False)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.loss_scale = 1.0 if scaler is None else float(scaler.get_scale())

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By number, where there are several."""
        found = self._trainer.optimizers
        if len(found) == 1:
            return {"optimizer": found[0]}
        return {f"optimizer {i}": each for i, each in enumerate(found)}

    @property
    def others(self) -> dict[str, Any]:
        """Schedules and the data module."""
        found: list[Any] = [config.scheduler for config in self._trainer.lr_scheduler_configs]
        if self._trainer.datamodule is not None:
            found.append(self._trainer.datamodule)
        return {f"{type(each).__name__} {i}": each for i, each in enumerate(found)}

    @property
    def why_no_step(self) -> str | None:
        """A module that steps by hand does so within its training step."""
        module = self._trainer.lightning_module
        name = type(module).__name__
        if not module.automatic_optimization:
            return f"{name} steps its optimizers by hand (automatic_optimization=False)"
        if self.world_size > 1 and not isinstance(self._trainer.strategy, DDPStrategy):
            kind = type(self._trainer.strategy).__name__
            return f"{name} lies in parts on {self.world_size} ranks under {kind}"
        if inside.hands_over_the_iterator(self._trainer):
            return f"training_step of {name} fetches its batches itself (dataloader_iter)"
        return None

    def batches(self) -> Iterator[Any]:
        """Those of a pass of its own, of several loaders as the fit combines them."""
        return inside.combined(self._trainer, fresh)

    def to_device(self, batch: Any) -> Any:
        """By the user's hooks, where there are any."""
        return inside.to_device(self._trainer, batch, 0)

    def loss_of(self, batch: Any) -> torch.Tensor | None:
        """In the trainer's precision; what is logged goes nowhere."""
        if batch is None:
            return None
        output = inside.training_step(self._trainer, batch)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not None and not isinstance(loss, torch.Tensor):
            detail = f"A loss was asked of training_step, found a {type(loss).__name__}."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return loss

    @contextlib.contextmanager
    def parked(self) -> Iterator[None]:
        """What was logged, loggers, profiler, and whether somebody wants to stop."""
        trainer: Any = self._trainer
        stops, loggers, profiler = trainer.should_stop, trainer.loggers, trainer.profiler
        apart = contextlib.ExitStack()
        if self.world_size > 1:  # what it logs may be brought together over the ranks
            apart.enter_context(silenced(trainer.lightning_module))
        with evaluation.parked_trainer(trainer), inside.logged_apart(trainer), apart:
            # The user's code may call them: what it tells them now must not stay.
            trainer.loggers = [DummyLogger() for _ in loggers]
            trainer.profiler = PassThroughProfiler()
            try:
                yield
            finally:
                trainer.should_stop = stops
                trainer.loggers, trainer.profiler = loggers, profiler
