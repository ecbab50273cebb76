"""A fit of the Runner as a check of its health sees it; training thread, between two batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.health.data import fresh
from otf_core.health.subject import parked_objects
from otf_core.runner import meanwhile
from otf_core.runner.logged import Results
from otf_core.runner.module import modules_by_name, not_state

if TYPE_CHECKING:
    from otf_core.runner.run import Run


class FitSubject:
    """A Subject; see otf_core.health.subject.

    Args:
        history: step and loss, oldest first.
    """

    loss_scale = 1.0
    world_size, rank = 1, 0

    def __init__(self, run: Run, history: Sequence[tuple[int, float]] = ()) -> None:
        self._run, self.history = run, history
        self.modules = modules_by_name(run.module, run.parts)
        self.device = run.device
        self.not_state = not_state(run)
        self.loaders: Sequence[Any] = run.fit_loop.loaders or ()
        if run.precision.scaler is not None:
            self.loss_scale = float(run.precision.scaler.get_scale())

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By class, and number where there are several."""
        found = self._run.optimizers
        if len(found) == 1:
            return {"optimizer": found[0]}
        return {f"optimizer {i}": each for i, each in enumerate(found)}

    @property
    def others(self) -> dict[str, Any]:
        """Schedules and the data module."""
        found = [config.scheduler for config in self._run.schedulers]
        if self._run.datamodule is not None:
            found.append(self._run.datamodule)
        return {f"{type(each).__name__} {i}": each for i, each in enumerate(found)}

    @property
    def why_no_step(self) -> str | None:
        """A module that steps by hand does so within its training step."""
        if self._run.automatic:
            return None
        name = type(self._run.module).__name__
        return f"{name} steps its optimizers by hand (automatic_optimization=False)"

    def batches(self) -> Iterator[Any]:
        """Those of a pass of its own; none where the fit has no loader."""
        return iter(fresh(self.loaders[0])) if self.loaders else iter(())

    def to_device(self, batch: Any) -> Any:
        """By the user's hooks, where there are any."""
        return self._run.transfer(batch, 0)

    def loss_of(self, batch: Any) -> torch.Tensor | None:
        """In the run's precision; what is logged goes nowhere."""
        if batch is None:
            return None
        run = self._run
        run.book.begin_batch(batch)
        output = run.fit_loop.step.call(batch, run.counters.batches_done)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not None and not isinstance(loss, torch.Tensor):
            detail = f"A loss was asked of training_step, found a {type(loss).__name__}."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return loss

    @contextlib.contextmanager
    def parked(self) -> Iterator[None]:
        """What was logged, a wish to stop, and the object around several modules."""
        run = self._run
        stops = run.should_stop
        around = {} if isinstance(run.module, nn.Module) else {"module": run.module}
        with (
            meanwhile.parked_run(run),
            parked_objects(around, skip=self.not_state),
        ):
            run.book.active = Results(training=True)
            try:
                yield
            finally:
                run.should_stop = stops
