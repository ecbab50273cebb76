"""Plain pieces: a model, an optimizer and a loss, made into an object with hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from otf_core.runner.refusals import RunnerError

TrainingStep = Callable[[nn.Module, Any, int], Any]


class PlainModule:
    """The hooks of a model that has none; the Runner gives it ``log``.

    Args:
        loss_fn: ``loss_fn(model(inputs), targets)`` of batches ``(inputs, targets)``.
        training_step: ``(model, batch, batch_idx)`` to the loss, or a dict with it; instead of
            ``loss_fn``, also to validate and to test.
        scheduler: stepped by epoch, or a dict as ``lr_scheduler`` of configure_optimizers.

    Raises:
        RunnerError: neither loss_fn nor training_step is there, or both are.
    """

    log: Callable[..., None]

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        loss_fn: Callable[..., Any] | None,
        training_step: TrainingStep | None,
        scheduler: Any,
    ) -> None:
        if (loss_fn is None) == (training_step is None):
            found = "neither" if loss_fn is None else "both"
            msg = f"loss_fn= or training_step= was asked for, found {found}; allowed: one of them"
            raise RunnerError(msg)
        self.model = model
        self._optimizer, self._scheduler = optimizer, scheduler
        self._loss_fn, self._training_step = loss_fn, training_step

    def configure_optimizers(self) -> Any:
        """What was given, in Lightning's form."""
        if self._optimizer is None or self._scheduler is None:
            return self._optimizer
        scheduler = self._scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler = {"scheduler": scheduler, "monitor": "val_loss"}
        return {"optimizer": self._optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, batch_idx, "train_loss")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._step(batch, batch_idx, "val_loss")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self._step(batch, batch_idx, "test_loss")

    def _step(self, batch: Any, batch_idx: int, name: str) -> Any:
        if self._training_step is not None:
            output = self._training_step(self.model, batch, batch_idx)
        else:
            output = self._loss(batch)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not None:
            self.log(name, loss, prog_bar=True)
        return output

    def _loss(self, batch: Any) -> Any:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            msg = (
                f"loss_fn= takes batches (inputs, targets), found a {type(batch).__name__}; "
                "allowed: training_step=(model, batch, batch_idx) -> loss for others"
            )
            raise RunnerError(msg)
        inputs, targets = batch
        assert self._loss_fn is not None
        return self._loss_fn(self.model(inputs), targets)
