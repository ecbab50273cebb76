"""One fit of one configuration by Lightning in this process: the adapter to the plugin."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lightning as L
import numpy as np
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from otf_lightning import OnTheFlyCallback, snapshot
from otf_lightning.delegate import LightningFrameworkDelegate
from tests.exact import digest
from tests.exact.configs import Config
from tests.exact.tape import Batches, Hooks, Marks, Tape

SEED, OTHER_SEED = 7, 1007
WITHOUT: tuple[str, ...] = ()  # ways that there are not
STATE = snapshot  # its table PARTS
Gate = Callable[[Any], None]


class Ended(NamedTuple):
    """What a run that came to its end leaves."""

    digest: dict[str, Any]
    events: dict[str, int]


class Held(NamedTuple):
    """A fit that stands at a gate."""

    trainer: L.Trainer
    delegate: LightningFrameworkDelegate
    gates: int  # passed in this process
    tape: Tape

    @property
    def batches(self) -> int:
        """Done in the run so far."""
        total: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return total

    def save(self) -> bytes:
        """The state as a file's content."""
        file = io.BytesIO()
        torch.save(self.delegate.capture(), file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        """Go back, or on, in place."""
        self.delegate.apply(loaded(saved))
        self.tape.write("back", self.batches)


def loaded(saved: bytes) -> dict[str, Any]:
    """As a checkpoint is read: nothing is allow-listed."""
    state: dict[str, Any] = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    return state


def batches_done(state: dict[str, Any]) -> int:
    """In the run that a checkpoint is of; what Lightning itself says there."""
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["total"]["completed"])


class AtGate(L.Callback):
    """The plugin without a session: gate, capture, apply.

    Args:
        act: called at every gate.
    """

    is_otf = True  # its attributes are no part of the run

    def __init__(self, act: Gate, tape: Tape) -> None:
        self._act, self._tape, self._gates = act, tape, 0
        self._delegate: LightningFrameworkDelegate | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._delegate = delegate = LightningFrameworkDelegate(trainer, test_dataloaders=None)
        delegate.attach()

        def tick() -> bool:
            self._act(Held(trainer, delegate, self._gates, self._tape))
            self._gates += 1
            return False

        delegate.install_batch_boundary_hook(tick)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._delegate is not None:
            self._delegate.detach()


def fit(
    config: Config,
    folder: Path,
    tape: Tape,
    ours: L.Callback | None = None,
    *,
    seed: int = SEED,
    ckpt_path: str | None = None,
) -> Ended:
    """The configuration from its script's first line to the end of fit.

    Args:
        folder: of files that the script writes; the same for a run and those that go on from it.
        ours: None for the run without us.
    """
    sow(seed)
    setup = config.build(folder)
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": tape,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    callbacks: list[L.Callback] = [Hooks(tape), *setup.callbacks, Batches(tape)]
    if ours is not None:
        callbacks += [Marks(tape, "go"), ours, Marks(tape, "gate")]
    callbacks.append(Hooks(tape))
    trainer = L.Trainer(callbacks=callbacks, **{**given, **setup.trainer})
    with warnings.catch_warnings(), counted(tape):
        warnings.simplefilter("ignore")
        trainer.fit(
            setup.model, setup.train, setup.val, datamodule=setup.datamodule, ckpt_path=ckpt_path
        )
    return Ended(digest.of(trainer), dict(tape.counts))


def plugin(tape: Tape, **options: Any) -> L.Callback:
    """The callback as a user adds it."""
    return OnTheFlyCallback(dashboard="off", **options)


def sow(seed: int) -> None:
    """The generators of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def counted(tape: Tape) -> Iterator[None]:
    """Optimizer steps and the disk's moments are events as well."""
    told = lambda *_: tape.event("step")  # noqa: E731
    handles = [
        register_optimizer_step_pre_hook(told),
        register_optimizer_step_post_hook(told),
    ]

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            tape.event("disk")
            return call(*args, **kwargs)

        return counted

    with (
        mock.patch.object(os, "fsync", before(os.fsync)),
        mock.patch.object(os, "replace", before(os.replace)),
        mock.patch.object(Path, "replace", before(Path.replace)),
    ):
        yield
    for handle in handles:
        handle.remove()
