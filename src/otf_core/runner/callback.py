"""RunnerCallback: what the Runner calls beside the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

HOOKS: Final = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_test_start",
    "on_test_batch_end",
    "on_test_end",
    "on_metrics",
    "on_exception",
)


class RunnerCallback:
    """Override what is needed; the rest is never called. On the training thread.

    Each is called before the module's hook of that name. ``run`` is the fit, validation or test
    that goes on; it has ``counters``, ``callback_metrics`` and ``should_stop``.
    """

    def on_fit_start(self, run: Any) -> None:
        """Model on its device, optimizers made."""

    def on_train_start(self, run: Any) -> None:
        """Behind the sanity check."""

    def on_train_epoch_start(self, run: Any) -> None:
        """Before the first batch."""

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        """The batch is on its device."""

    def on_before_backward(self, run: Any, loss: Any) -> None:
        """The loss divided for accumulation, and scaled."""

    def on_after_backward(self, run: Any) -> None:
        """Gradients may still be scaled."""

    def on_before_optimizer_step(self, run: Any, optimizer: Any) -> None:
        """Gradients are complete and not clipped yet."""

    def on_before_zero_grad(self, run: Any, optimizer: Any) -> None:
        """The gradients are still those of the last step."""

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The optimizer has stepped, if it was due."""

    def on_train_epoch_end(self, run: Any) -> None:
        """All batches are through."""

    def on_train_end(self, run: Any) -> None:
        """No batch will come."""

    def on_fit_end(self, run: Any) -> None:
        """The last call of a fit."""

    def on_validation_start(self, run: Any) -> None:
        """The sanity check has one too: ``run.sanity_checking``."""

    def on_validation_batch_end(
        self, run: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """After validation_step."""

    def on_validation_end(self, run: Any) -> None:
        """What was logged is in ``run.callback_metrics``."""

    def on_test_start(self, run: Any) -> None:
        """Before the first batch of a test."""

    def on_test_batch_end(
        self, run: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """After test_step."""

    def on_test_end(self, run: Any) -> None:
        """What was logged is in ``run.callback_metrics``."""

    def on_metrics(self, run: Any, metrics: Mapping[str, Any], step: int) -> None:
        """What a logger of Lightning would be given, when it would be given it."""

    def on_exception(self, run: Any, exception: BaseException) -> None:
        """It goes on its way afterwards."""
