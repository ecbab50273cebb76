"""LightningFrameworkDelegate: what the core asks of Lightning, on the training thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden

from otf_core.control.delegate import Evaluation, OnBatch, Position
from otf_core.state.host_copy import host_copy
from otf_core.state.rng import parked_rng
from otf_core.steering.params import Knob, clip_knob
from otf_lightning import evaluation, inside


class LightningFrameworkDelegate:
    """One fit of one trainer.

    Args:
        trainer: in fit, past ``setup``.
        test_dataloaders: for a test where module and data module have none.
    """

    def __init__(self, trainer: L.Trainer, *, test_dataloaders: Any = None) -> None:
        self._trainer, self._test_dataloaders = trainer, test_dataloaders
        self._wraps = inside.Wraps()
        self._stop_in_epoch = False

    def attach(self) -> None:
        """Nothing to do before the first batch: the gate is installed in ``setup``."""

    def install_batch_boundary_hook(self, tick: Callable[[], bool]) -> None:
        """Call ``tick`` at the entry of ``epoch_loop.advance``.

        There batch k has finished with everything that belongs to it (optimizer, schedulers,
        callbacks, loggers, a validation if one was due) and batch k+1 has not been fetched; the
        public hooks come too early or too late. True from ``tick`` ends the fit there, with
        Lightning's own ending.
        """
        trainer = self._trainer
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        advance, run_epoch = loop.advance, fit.advance

        def gated(data_fetcher: Any) -> None:
            if tick():
                # An epoch without a batch has nothing that the user's epoch end could work with.
                self._stop_in_epoch = inside.batches_done(trainer) == 0
                raise StopIteration
            advance(data_fetcher)

        def epoch() -> None:
            run_epoch()
            if self._stop_in_epoch:
                raise StopIteration

        self._wraps.put(loop, "advance", gated)
        self._wraps.put(fit, "advance", epoch)

    def detach(self) -> None:
        """Take the gate off."""
        self._wraps.off()

    def position(self) -> Position:
        """Where the fit stands; at the gate, between two batches."""
        fit = self._trainer.fit_loop  # directly: this runs at every step
        loop, max_epochs = fit.epoch_loop, fit.max_epochs
        return Position(
            step=inside.steps_done(self._trainer),
            global_step=loop.global_step,
            epoch=fit.epoch_progress.current.completed,
            batch_idx=loop.batch_progress.current.completed,
            max_steps=loop.max_steps if loop.max_steps != -1 else None,
            max_epochs=max_epochs if max_epochs is not None and max_epochs >= 0 else None,
        )

    def capture(self) -> dict[str, Any]:
        """A full Lightning checkpoint, copied to the host; the user's save hooks are called."""
        with parked_rng():
            checkpoint = inside.dump_checkpoint(self._trainer)
        copy: dict[str, Any] = host_copy(checkpoint)
        return copy

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        """See evaluation.run_validation."""
        return evaluation.run_validation(self._trainer, limit_batches, on_batch)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        """See evaluation.run_test."""
        return evaluation.run_test(self._trainer, self._test_dataloaders, on_batch)

    def leaving(self) -> bool:
        """Lightning's handler notes SIGTERM; it acts on it after the next batch."""
        return bool(self._trainer.received_sigterm)

    def request_stop(self) -> None:
        """End here, also where the script asked for more epochs or steps at least."""
        fit = self._trainer.fit_loop
        fit.min_epochs, fit.epoch_loop.min_steps = None, None
        self._trainer.should_stop = True

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers in the trainer's order; none before the fit has set them up."""
        return self._trainer.optimizers

    def schedulers(self) -> Sequence[tuple[Any, torch.optim.Optimizer]]:
        """Each scheduler with its optimizer."""
        configs = self._trainer.lr_scheduler_configs
        return [(c.scheduler, c.scheduler.optimizer) for c in configs]

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """The gradient clip, where Lightning applies it."""
        trainer = self._trainer
        module = trainer.lightning_module
        if not module.automatic_optimization or is_overridden(
            "configure_gradient_clipping", module
        ):
            return {}
        # A fused optimizer unscales inside its step; Lightning refuses to clip before that.
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and (
            getattr(trainer.precision_plugin, "scaler", None) is not None
        )
        if scaled and any(
            getattr(o, "_step_supports_amp_scaling", False) for o in self.optimizers()
        ):
            return {}

        def write(value: Any) -> None:
            trainer.gradient_clip_val = value

        return {"gradient_clip_val": clip_knob(lambda: trainer.gradient_clip_val, write)}
