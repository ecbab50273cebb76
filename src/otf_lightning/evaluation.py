"""Validation and test inside fit, leaving the training bit for bit as it was.

Parked and put back beside what ``otf_core.state.parked`` does: what was logged, the trainer's own
state, and the data module's attributes. Callbacks are not parked in a test: what their test hooks
gather is meant to stay.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from otf_core.control.delegate import Evaluation, OnBatch
from otf_core.errors import CommandError, ErrorCode
from otf_core.state.parked import parked as parked_state
from otf_core.telemetry.canonical import canonicalize_metrics
from otf_lightning import inside
from otf_lightning.inside import MODULE_OWN


class BatchProbe(L.Callback):
    """Tells how an evaluation goes and gathers the mean loss."""

    def __init__(self, loop: Any, on_batch: OnBatch) -> None:
        self._loop, self._on_batch = loop, on_batch
        self._done = 0
        self._losses: list[float] = []

    @property
    def avg_loss(self) -> float | None:
        """Mean over the batches with a finite loss; None if there was none."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._batch(outputs)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        *_: Any,
    ) -> None:
        self._batch(outputs)

    def _batch(self, outputs: Any) -> None:
        self._done += 1
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        value = None
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            value = float(loss)  # nothing trains meanwhile: here a synchronisation costs nobody
            if math.isfinite(value):
                self._losses.append(value)
        self._on_batch(self._done, inside.batches_in_all(self._loop), value)


def run_test(trainer: L.Trainer, loaders: Any, on_batch: OnBatch) -> Evaluation:
    """Run the test loop inside fit, with the user's callbacks and loggers; training thread.

    Args:
        loaders: for module and data module that have none.

    Raises:
        CommandError: ``unsupported``, the module has no ``test_step`` or nobody has a loader.
    """
    loop = inside.eval_loop(trainer, testing=True)
    _need(trainer, loop, "test", loaders)
    probe = BatchProbe(loop, on_batch)
    with parked_trainer(trainer), _loaders_of(loop, loaders), _stage(trainer, loop, testing=True):
        trainer.callbacks.append(probe)
        try:
            inside.setup_datamodule(trainer, "test")
            return _run(loop, probe)
        finally:
            trainer.callbacks.remove(probe)


def run_validation(trainer: L.Trainer, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
    """Validate inside fit by the module's hooks alone; training thread.

    The user's callbacks and loggers take no part: ModelCheckpoint would delete files and
    EarlyStopping would count.

    Raises:
        CommandError: ``unsupported``, the module has no ``validation_step`` or nobody a loader.
    """
    loop = inside.eval_loop(trainer, testing=False)
    _need(trainer, loop, "validation", None)
    probe = BatchProbe(loop, on_batch)
    with parked_trainer(trainer), _stage(trainer, loop, testing=False), _alone(trainer, probe):
        limit = trainer.limit_val_batches
        if limit_batches is not None:
            trainer.limit_val_batches = limit_batches
        try:
            return _run(loop, probe)
        finally:
            trainer.limit_val_batches = limit


def _need(trainer: L.Trainer, loop: Any, what: str, loaders: Any) -> None:
    name = type(trainer.lightning_module).__name__
    if not inside.has_step(trainer, f"{what}_step"):
        detail = f"{what} was asked, but {name} has no {what}_step."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    if loaders is None and not inside.source_is_defined(loop):
        where = "module or data module" + (", or test_dataloaders=" if what == "test" else "")
        detail = f"{what} was asked, but there is no loader for it; allowed: one in {where}."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _run(loop: Any, probe: BatchProbe) -> Evaluation:
    began = time.monotonic()
    try:
        outputs = loop.run()
    finally:
        loop.teardown()
    metrics = {name: value for part in outputs for name, value in part.items()}
    avg_loss = probe.avg_loss
    if avg_loss is None:
        found = canonicalize_metrics(metrics)
        avg_loss = found.get("test_loss", found.get("val_loss"))
    return Evaluation(metrics, avg_loss, time.monotonic() - began)


@contextlib.contextmanager
def parked_trainer(trainer: L.Trainer) -> Iterator[None]:
    """What happens inside leaves no trace on the fit; callbacks are not parked."""
    modules, datamodule = {"": trainer.lightning_module}, trainer.datamodule
    log = inside.log_state(trainer)
    val_time, syncs = inside.last_val_time(trainer), inside.syncs_buffers(trainer)
    data = dict(vars(datamodule)) if datamodule is not None else {}
    with parked_state(modules, list(inside.fit_loaders(trainer)), skip=MODULE_OWN):
        try:
            yield
        finally:
            inside.set_log_state(trainer, log)
            inside.set_last_val_time(trainer, val_time)
            inside.set_syncs_buffers(trainer, syncs)
            if datamodule is not None:
                vars(datamodule).update(data)


@contextlib.contextmanager
def _stage(trainer: L.Trainer, loop: Any, *, testing: bool) -> Iterator[None]:
    state = trainer.state
    before = state.fn, state.stage, loop.inference_mode, loop.verbose
    state.fn = TrainerFn.TESTING if testing else TrainerFn.VALIDATING
    if testing:
        trainer.testing = True
    else:
        trainer.validating = True
    # Else metrics that training shares would become inference tensors, and training would fail.
    loop.inference_mode = loop.verbose = False
    try:
        yield
    finally:
        state.fn, state.stage, loop.inference_mode, loop.verbose = before


@contextlib.contextmanager
def _alone(trainer: L.Trainer, probe: BatchProbe) -> Iterator[None]:
    callbacks, loggers = trainer.callbacks, trainer.loggers
    bar = trainer.progress_bar_callback
    # RichProgressBar draws on a thread of its own, which looks for it here and ends without it.
    shown = [] if bar is None else [_silent(bar)]
    trainer.callbacks, trainer.loggers = [*shown, probe], []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers


def _silent(bar: ProgressBar) -> ProgressBar:
    """The same bar, for who looks at it; no hook reaches it."""
    hooks = [name for name in dir(L.Callback) if name.startswith("on_")]
    kind = type("Silent", (type(bar),), dict.fromkeys(hooks, _nothing))
    silent: ProgressBar = object.__new__(kind)
    silent.__dict__ = bar.__dict__
    return silent


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextlib.contextmanager
def _loaders_of(loop: Any, loaders: Any) -> Iterator[None]:
    if loaders is None or inside.source_is_defined(loop):
        yield
        return
    before = inside.set_source(loop, loaders)
    try:
        yield
    finally:
        inside.set_source(loop, before)
