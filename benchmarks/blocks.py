"""Arms that take turns within one fit, a block of steps each.

Two fits of the same model differ by a few percent of a step in where their memory lies, which is
more than some limits. Within one fit that is the same for all arms.

Rule 1: an arm is put on and taken off between two batches, by a callback that is the last of all.
Rule 2: a step counts if it began and ended in the same block; the first step of a block does not.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, Final, Protocol

import lightning as L

from benchmarks import fits
from benchmarks.fits import Steps, Workload
from otf_lightning import OnTheFlyCallback

BLOCK: Final = 20


class Arm(Protocol):
    """Something that can be put on a trainer during a fit."""

    name: str

    def on(self, trainer: L.Trainer) -> None: ...
    def off(self, trainer: L.Trainer) -> None: ...


@dataclasses.dataclass
class Bare:
    """Nothing."""

    name: str = "bare"

    def on(self, trainer: L.Trainer) -> None: ...
    def off(self, trainer: L.Trainer) -> None: ...


@dataclasses.dataclass
class Logging:
    """A logger of Lightning's."""

    name: str
    logger: Any

    def on(self, trainer: L.Trainer) -> None:
        trainer.loggers = [self.logger]

    def off(self, trainer: L.Trainer) -> None:
        trainer.loggers = []


@dataclasses.dataclass
class Ours:
    """Our callback and its gate. Its session lives on while it is off, and is told nothing."""

    callback: OnTheFlyCallback
    name: str = "otf"

    def on(self, trainer: L.Trainer) -> None:
        trainer.callbacks.insert(1, self.callback)  # type: ignore[attr-defined]  # Lightning leaves it untyped
        delegate = self.callback._delegate
        assert delegate is not None
        delegate.install_batch_boundary_hook(lambda: self.callback._between_batches(trainer))

    def off(self, trainer: L.Trainer) -> None:
        trainer.callbacks.remove(self.callback)  # type: ignore[attr-defined]  # as above
        assert self.callback._delegate is not None
        self.callback._delegate.detach()


class _Turns(L.Callback):
    """Changes the arm; ours is on before the first block and after the last."""

    def __init__(self, ours: Ours, order: Sequence[Arm], warm_up: int) -> None:
        self._ours, self._order, self._warm_up = ours, order, warm_up
        self._now: Arm = ours

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1 - self._warm_up
        if done < 0 or done % BLOCK:
            return
        block = done // BLOCK
        self._now.off(trainer)
        self._now = self._order[block] if block < len(self._order) else self._ours
        self._now.on(trainer)


def alternate(
    callback: OnTheFlyCallback,
    rivals: Sequence[Arm],
    work: Workload,
    *,
    rounds: int,
    connected: bool = True,
) -> dict[str, list[Steps]]:
    """One fit in which ours, the rivals and nothing at all have one block a round.

    Returns the steps of each block, by the name of the arm. ``work.steps`` is not looked at;
    ``connected`` is as for an arm of several fits.
    """
    ours = Ours(callback)
    arms: list[Arm] = [Bare(), ours, *rivals]
    draw = random.Random(7)
    order = [arm for _ in range(rounds) for arm in draw.sample(arms, len(arms))]
    work = dataclasses.replace(work, steps=BLOCK * len(order))
    total = work.warm_up + work.steps + 1
    probe = fits.Probe(fits.Arm("blocks", connected=connected), total)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=total,
        callbacks=[probe, callback, _Turns(ours, order, work.warm_up)],
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(work.module(), work.loader())
    found: dict[str, list[Steps]] = {arm.name: [] for arm in arms}
    for block, arm in enumerate(order):
        begin = work.warm_up + block * BLOCK + 1
        found[arm.name].append(probe.steps(begin, begin + BLOCK - 2))
    return found
