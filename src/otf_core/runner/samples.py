"""A fit's own train, val or test set, to be scanned; training thread, between two batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from otf_core.runner.hooks import as_step
from otf_core.runner.meanwhile import parked_run
from otf_core.runner.module import modules_by_name, not_state
from otf_core.runs.subject import (
    SETS,
    Subject,
    batch_size_of,
    hook_of,
    loader_of,
    refuse_another_set,
    refuse_no_loader,
    silenced,
)
from otf_core.state.parked import attributes_parked

if TYPE_CHECKING:
    from otf_core.runner.run import Run


def subject_of(run: Run, name: str, *, loader: int = 0) -> Subject:
    """What ``runs.samples.Scan`` takes, of a set of this fit.

    Args:
        name: "train", "val" or "test".
        loader: which one, where a set has several.

    Raises:
        CommandError: ``bad_payload`` there is no such set or loader, ``unsupported`` it has no
            samples by index, or nobody has a loader for it.
    """
    refuse_another_set(name)
    found = loader_of(_loaders(run, name), name, loader)
    owners = (run.module, *(() if isinstance(run.module, nn.Module) else run.parts))
    kind = type(getattr(run.module, "model", run.module)).__name__
    step_name = "training_step"
    if not run.automatic and "validation_step" in run.hooks:
        step_name = "validation_step"
    function = run.hooks.get(step_name)
    by_hand = step_name == "training_step" and not run.automatic
    step = None if by_hand or function is None else as_step(function, loader)
    return Subject(
        name=name,
        dataset=found.dataset,
        collate=found.collate_fn,
        batch_size=batch_size_of(found),
        modules=modules_by_name(run.module, run.parts),
        step=step,
        step_name=f"{step_name} of {kind}",
        around=lambda: _around(run),
        hook=hook_of("per_sample_loss", *owners),
        render=hook_of("render_sample", *owners),
        transfer=lambda batch: run.transfer(batch, loader),
        context=run.precision.forward,
    )


def _loaders(run: Run, name: str) -> list[Any]:
    loops: dict[str, Any] = {"train": run.fit_loop, "val": run.validation, "test": run.testing}
    if loops[name].loaders is not None:
        return list(loops[name].loaders)
    if not run.has_loader(SETS[name]):
        refuse_no_loader(name)
    # The fit will ask for those of its own when it would have; nobody is told of these.
    process, run.process_loader = run.process_loader, lambda loader: loader
    try:
        data: Any = contextlib.nullcontext()
        if run.datamodule is not None:
            data = attributes_parked(run.datamodule, small=True)
        with parked_run(run), data:
            if name == "test" and "setup" in run.data_hooks:
                run.data_hooks["setup"](stage="test")
            return run.request(SETS[name])
    finally:
        run.process_loader = process


@contextlib.contextmanager
def _around(run: Run) -> Iterator[None]:
    should_stop = run.should_stop
    owner: Any = contextlib.nullcontext()
    if not isinstance(run.module, nn.Module):  # an object that has modules
        owner = attributes_parked(run.module, skip=not_state(run))
    with parked_run(run), owner, silenced(run.module):
        try:
            yield
        finally:
            run.should_stop = should_stop
