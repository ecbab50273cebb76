"""A fit's own train, val or test set, to be scanned; training thread, at the gate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy

from otf_core.errors import CommandError, ErrorCode
from otf_core.ranks.shares import NoCollectives
from otf_core.runner.hooks import as_step
from otf_core.runs.subject import (
    Subject,
    batch_size_of,
    hook_of,
    loader_of,
    refuse_another_set,
    refuse_no_loader,
    silenced,
)
from otf_core.state.parked import attributes_parked
from otf_lightning import inside
from otf_lightning.evaluation import parked_trainer


def subject_of(trainer: L.Trainer, name: str, *, loader: int = 0, loaders: Any = None) -> Subject:
    """What ``runs.samples.Scan`` takes, of a set of this fit.

    Args:
        name: "train", "val" or "test".
        loader: which one, where a set has several.
        loaders: of a test, for module and data module that have none.

    Raises:
        CommandError: ``bad_payload`` there is no such set or loader, ``unsupported`` it has no
            samples by index, nobody has a loader for it, or the model lies in parts on the ranks.
    """
    refuse_another_set(name)
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        detail = (
            f"Samples of the {name} set were asked; under {type(trainer.strategy).__name__} the "
            f"model lies in parts on {trainer.world_size} ranks, and none finds a loss by itself; "
            "allowed: under DDP."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    # Asked for on this rank alone, perhaps.
    apart = NoCollectives(f"What gives the loader of the {name} set")
    with apart if trainer.world_size > 1 else contextlib.nullcontext():
        found = loader_of(_loaders(trainer, name, loaders), name, loader)
    module = trainer.lightning_module
    step_name = "training_step"
    if not module.automatic_optimization and inside.has_step(trainer, "validation_step"):
        step_name = "validation_step"
    by_hand = step_name == "training_step" and not module.automatic_optimization
    refused = by_hand or inside.hands_over_the_iterator(trainer)
    return Subject(
        name=name,
        dataset=found.dataset,
        collate=found.collate_fn,
        batch_size=batch_size_of(found),
        modules={"": module},
        step=None if refused else as_step(getattr(module, step_name), loader),
        step_name=f"{step_name} of {type(module).__name__}",
        around=lambda: _around(trainer),
        hook=hook_of("per_sample_loss", module),
        render=hook_of("render_sample", module),
        transfer=lambda batch: inside.to_device(trainer, batch, loader),
        context=trainer.precision_plugin.train_step_context,
    )


def _loaders(trainer: L.Trainer, name: str, given: Any) -> list[Any]:
    if name == "train":
        found = inside.loaders_in_fit(trainer, validation=False)
        if len(found) != 1:
            detail = (
                f"Samples of the train set were asked; the run trains with {len(found)} loaders at "
                "a time."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return found
    if name == "val" and (found := inside.loaders_in_fit(trainer, validation=True)):
        return found
    if name == "test" and given is not None:
        return list(given) if isinstance(given, list | tuple) else [given]
    loop = inside.eval_loop(trainer, testing=name == "test")
    if not inside.source_is_defined(loop):
        refuse_no_loader(name)
    # The fit will ask for those of its own when it would have; no loop is told of these.
    data: Any = contextlib.nullcontext()
    if trainer.datamodule is not None:
        data = attributes_parked(trainer.datamodule, small=True)
    with parked_trainer(trainer), data:
        if name == "test":
            inside.setup_datamodule(trainer, "test")
        return inside.ask_for_loaders(loop)


@contextlib.contextmanager
def _around(trainer: L.Trainer) -> Iterator[None]:
    loggers, should_stop = trainer.loggers, trainer.should_stop
    with parked_trainer(trainer), silenced(trainer.lightning_module):
        trainer.loggers = [DummyLogger() for _ in loggers]
        try:
            yield
        finally:
            trainer.loggers, trainer.should_stop = loggers, should_stop
