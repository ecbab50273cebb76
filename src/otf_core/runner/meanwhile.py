"""A validation or a test in the middle of a fit, which leaves the fit bit for bit as it was.

Beside what ``state.parked`` parks: what was logged, and the data module's attributes. Callbacks
are called in a test, and what they gather there is meant to stay; a validation is between the
module and us alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from otf_core.control.delegate import Evaluation, OnBatch
from otf_core.errors import CommandError, ErrorCode
from otf_core.runner.batches import limited
from otf_core.runner.evaluation import EvaluationLoop
from otf_core.runner.module import modules_by_name, not_state
from otf_core.state.parked import parked as parked_state
from otf_core.telemetry.canonical import canonicalize_metrics

if TYPE_CHECKING:
    from otf_core.runner.run import Run


def run_validation(run: Run, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
    """By the module's hooks alone; training thread.

    Raises:
        CommandError: ``unsupported``, there is no ``validation_step`` or no loader.
    """
    loop = run.validation
    _need(run, loop)
    with run.in_stage("validate"), parked_run(run), _alone(run), _limited(loop, limit_batches):
        return _evaluated(loop, on_batch)


def run_test(run: Run, on_batch: OnBatch) -> Evaluation:
    """With the user's callbacks; training thread.

    Raises:
        CommandError: ``unsupported``, there is no ``test_step`` or no loader.
    """
    loop = run.testing
    _need(run, loop)
    with run.in_stage("test"), parked_run(run):
        if "setup" in run.data_hooks:
            run.data_hooks["setup"](stage="test")
        return _evaluated(loop, on_batch)


def _need(run: Run, loop: EvaluationLoop) -> None:
    name = type(getattr(run.module, "model", run.module)).__name__
    if loop.step_name not in run.hooks:
        detail = f"{loop.word} was asked, but {name} has no {loop.step_name}."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    if not run.has_loader(loop.loader_name):
        word = loop.loader_name.partition("_")[0]
        detail = (
            f"{loop.word} was asked, but there is no loader for it; allowed: {word}_loader=, or "
            f"{loop.loader_name} of module or data module."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _evaluated(loop: EvaluationLoop, on_batch: OnBatch) -> Evaluation:
    probe = _Probe(loop, on_batch)
    began_s = time.monotonic()
    loop.on_batch = probe.batch
    try:
        outputs = loop.evaluate()
    finally:
        loop.restore_modes()
        loop.teardown()
        loop.on_batch = None
    metrics = {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for part in outputs
        for name, value in part.items()
    }
    avg_loss = probe.avg_loss
    if avg_loss is None:
        found = canonicalize_metrics(metrics)
        avg_loss = found.get("test_loss", found.get("val_loss"))
    return Evaluation(metrics, avg_loss, time.monotonic() - began_s)


class _Probe:
    """Tells how an evaluation goes and gathers the mean loss."""

    def __init__(self, loop: EvaluationLoop, on_batch: OnBatch) -> None:
        self._loop, self._on_batch = loop, on_batch
        self._done = 0
        self._losses: list[float] = []

    @property
    def avg_loss(self) -> float | None:
        """Mean over the batches with a finite loss; None if there was none."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def batch(self, output: Any) -> None:
        self._done += 1
        loss = output.get("loss") if isinstance(output, Mapping) else output
        value = None
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            value = float(loss)  # nothing trains meanwhile: here a synchronisation costs nobody
            if math.isfinite(value):
                self._losses.append(value)
        in_all = sum(self._loop.limits())
        self._on_batch(self._done, int(in_all) if math.isfinite(in_all) else None, value)


@contextlib.contextmanager
def parked_run(run: Run) -> Iterator[None]:
    """What happens inside leaves no trace on the fit; callbacks are not parked."""
    book, datamodule = run.book, run.datamodule
    logged = dict(vars(book))
    logged |= {name: dict(logged[name]) for name in ("callback", "logged", "progress")}
    results = {name: _copy_of(found) for name, found in book.results.items()}
    data = dict(vars(datamodule)) if datamodule is not None else {}
    loaders = [*(run.fit_loop.loaders or ()), *(run.validation.loaders or ())]
    modules = modules_by_name(run.module, run.parts)
    with parked_state(modules, loaders, skip=not_state(run)):
        try:
            yield
        finally:
            vars(book).update(logged)
            for name, found in results.items():
                book.results[name].clear()
                book.results[name].update(found)
            if datamodule is not None:
                vars(datamodule).update(data)


def _copy_of(results: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: copy.copy(entry) for key, entry in results.items()}


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    listeners, sinks = run.listeners, run.sinks
    run.listeners, run.sinks = {}, []
    try:
        yield
    finally:
        run.listeners, run.sinks = listeners, sinks


@contextlib.contextmanager
def _limited(loop: EvaluationLoop, limit_batches: int | None) -> Iterator[None]:
    run, loaders = loop.run, loop.loaders
    limit = run.limit_val_batches
    if limit == 0:
        run.limit_val_batches = 1.0  # the fit does without, this one was asked for
    loop.setup_data()
    before = loop.max_batches
    if limit_batches is not None:
        loop.max_batches = [limited(n, limit_batches, "limit_batches") for n in before]
    try:
        yield
    finally:
        run.limit_val_batches = limit
        # Loaders that the fit has not asked for yet it will ask for when it would have.
        loop.max_batches, loop.loaders = before, loaders
