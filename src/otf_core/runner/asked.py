"""Validation and test that are asked for in the middle of a fit, and leave no trace in it.

Beside what ``state.parked`` parks: what was logged, the attributes of the data module, and those
of a module that is no nn.Module. Callbacks are not parked in a test: what they gather is meant
to stay; in a validation they take no part.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from otf_core.control.delegate import Evaluation, OnBatch
from otf_core.errors import CommandError, ErrorCode
from otf_core.runner.batches import close_workers
from otf_core.runner.evaluation import EvaluationLoop
from otf_core.runner.logged import Results
from otf_core.runner.module import modules_by_name, not_state
from otf_core.state.parked import parked
from otf_core.state.parts import give_attributes, take_attributes
from otf_core.state.plain_values import Decoder, Encoder
from otf_core.telemetry.canonical import canonicalize_metrics

if TYPE_CHECKING:
    from otf_core.runner.run import Run


def run_validation(run: Run, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
    """Validate at a safe point, by the module's hooks alone; training thread.

    Raises:
        CommandError: ``unsupported``: the module has no validation_step, or nobody has a loader.
    """
    loop = _loop(run, "validate")
    with _limit(run, limit_batches), _alone(run):
        return _evaluation(run, loop, run.validation.loaders, on_batch)


def run_test(run: Run, on_batch: OnBatch) -> Evaluation:
    """Test at a safe point, with the callbacks; training thread.

    Raises:
        CommandError: ``unsupported``: the module has no test_step, or nobody has a loader.
    """
    return _evaluation(run, _loop(run, "test"), None, on_batch)


def _loop(run: Run, stage: str) -> EvaluationLoop:
    loop = EvaluationLoop(run, stage)
    name = type(run.module).__name__
    if loop.step_name not in run.hooks:
        detail = f"{loop.word} was asked, but {name} has no {loop.step_name}."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    if not run.has_loader(loop.loader_name):
        argument = loop.loader_name.replace("dataloader", "loader")
        detail = (
            f"{loop.word} was asked, but there is no loader for it; allowed: {argument}= of fit, "
            f"or {loop.loader_name} of module or data module."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    return loop


def _evaluation(
    run: Run, loop: EvaluationLoop, of_fit: list[Any] | None, on_batch: OnBatch
) -> Evaluation:
    losses: list[float] = []
    done = 0

    def batch(output: Any) -> None:
        nonlocal done
        done += 1
        loss = _loss(output)
        if loss is not None and math.isfinite(loss):
            losses.append(loss)
        total = sum(loop.max_batches)
        on_batch(done, None if total == math.inf else int(total), loss)

    loop.on_batch = batch
    began = time.monotonic()
    with _parked(run, loop.stage):
        if loop.stage == "test" and "setup" in run.data_hooks:
            run.data_hooks["setup"](stage="test")
        try:
            if of_fit is not None:
                loop.use(of_fit)
            outputs = loop.evaluate()
        finally:
            loop.teardown()
            if of_fit is None:
                for loader in loop.loaders or ():
                    close_workers(loader)
    seconds = time.monotonic() - began
    metrics = {name: value for part in outputs for name, value in part.items()}
    if losses:
        return Evaluation(metrics, sum(losses) / len(losses), seconds)
    found = canonicalize_metrics(metrics)
    return Evaluation(metrics, found.get("test_loss", found.get("val_loss")), seconds)


def _loss(output: Any) -> float | None:
    found = output.get("loss") if isinstance(output, dict) else output
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        return float(found)  # nothing trains meanwhile: here a synchronisation costs nobody
    return None


@contextlib.contextmanager
def _parked(run: Run, stage: str) -> Iterator[None]:
    book = run.book
    written = book.callback, book.logged, book.progress
    flags = book.first_iteration, book.last_fx
    results = dict(book.results)
    book.callback, book.logged, book.progress = (dict(values) for values in written)
    book.first_iteration = book.last_fx = None
    book.results[stage] = Results(training=False)
    data = dict(vars(run.datamodule)) if run.datamodule is not None else {}
    plain = {} if isinstance(run.module, nn.Module) else {"": run.module}
    attributes = take_attributes(plain, Encoder(lambda t: t.clone()))
    modules = modules_by_name(run.module, run.parts)
    fit_loaders = [*(run.fit_loop.loaders or ()), *(run.validation.loaders or ())]
    with parked(modules, fit_loaders, skip=not_state(run)):
        try:
            with run.in_stage(stage):
                yield
        finally:
            book.callback, book.logged, book.progress = written
            book.first_iteration, book.last_fx = flags
            book.results.update(results)
            give_attributes(plain, Decoder(), attributes)
            if run.datamodule is not None:
                vars(run.datamodule).clear()
                vars(run.datamodule).update(data)


@contextlib.contextmanager
def _limit(run: Run, limit_batches: int | None) -> Iterator[None]:
    before = run.limit_val_batches
    if limit_batches is not None:
        run.limit_val_batches = limit_batches
    elif before == 0:
        run.limit_val_batches = 1.0  # the fit does without, this was asked for
    try:
        yield
    finally:
        run.limit_val_batches = before


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    listeners, sinks = run.listeners, run.sinks
    run.listeners, run.sinks = {}, []
    try:
        yield
    finally:
        run.listeners, run.sinks = listeners, sinks
