"""One checkpoint of a run with several ranks (DDP), whole in one file, written by rank 0.

Rule 1: what all ranks have alike (weights, optimizer states) is rank 0's; of the others the file
has what is theirs alone: RNG, position in the data, buffers, gradients, what their modules keep.
Rule 2: every rank captures at the same safe point, found by counting steps, so that gathering the
parts, and collectives in a user's own save hooks, meet on all ranks. Nothing is asked per step.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from otf_core.control.agreement import StepAgreement
from otf_core.errors import OtfError
from otf_core.ranks.beating import MIB, Beats
from otf_core.ranks.health import ChecksOfOther
from otf_core.ranks.mail import NoStoreError, StoreBeats, StoreMail
from otf_core.ranks.pace import Pace
from otf_core.ranks.shares import ScanOfOther
from otf_core.ranks.signals import RankSignals
from otf_core.state.keeper import Origin, ResumeError
from otf_lightning import inside
from otf_lightning.health import FitSubject
from otf_lightning.samples import subject_of


def cannot_save(trainer: L.Trainer) -> str | None:
    """Why this version keeps no checkpoints of such a run; the same on every rank."""
    if trainer.world_size == 1 or isinstance(trainer.strategy, DDPStrategy | ModelParallelStrategy):
        return None
    return (
        "This version (0.2.0) keeps checkpoints of one process, of DDP and of FSDP2; this run has "
        f"{trainer.world_size} ranks under {type(trainer.strategy).__name__}."
    )


def mail_of(trainer: L.Trainer) -> StoreMail | None:
    """How the ranks of a fit reach each other; called on all at once. None: they cannot, or one."""
    if trainer.world_size == 1:
        return None
    name = trainer.strategy.broadcast(secrets.token_hex(6), src=0)
    try:
        return StoreMail(name, trainer.global_rank)
    except NoStoreError:
        return None  # of all ranks alike: the run is only watched


def pace_of(trainer: L.Trainer) -> Pace:
    """How fast this rank trains, and waits for others where its strategy has clocks for that."""
    clocks: Any = getattr(trainer.strategy, "clocks", None)

    def waited_s() -> float | None:
        if clocks is None or not clocks.on:
            return None
        spent: dict[str, float] = clocks.totals()
        return spent["backward"] + spent["barrier"]

    return Pace(waited_s=waited_s)


def beats_of(trainer: L.Trainer, mail: StoreMail, agreement: StepAgreement, pace: Pace) -> Beats:
    """How this rank says that it is there."""
    device = trainer.strategy.root_device

    def device_mb() -> float | None:
        # Counters of the allocator, on the host.
        return torch.cuda.memory_reserved(device) / MIB if device.type == "cuda" else None

    return Beats(
        StoreBeats(mail.name, trainer.global_rank),
        trainer.global_rank,
        trainer.world_size,
        pace,
        stands=lambda: agreement.stands,
        exits=lambda: inside.exit_codes(trainer),
        device_mb=device_mb,
    )


def signals_of(trainer: L.Trainer) -> RankSignals:
    """SIGTERM and Ctrl-C on this rank of several; what ends it is what Lightning would raise."""

    def ends_by(why: str) -> BaseException:
        if why != "SIGTERM":
            return KeyboardInterrupt()
        inside.was_told_to_end(trainer)
        return SIGTERMException()

    return RankSignals(
        pass_on=functools.partial(inside.pass_on_sigterm, trainer),
        ends_by=ends_by,
        speaks=trainer.is_global_zero,
    )


def looks_of_rank(
    trainer: L.Trainer, test_dataloaders: Any, ceased: Callable[[], bool]
) -> dict[str, Callable[..., Any]]:
    """How another rank looks at its samples and its health, by what rank 0 tells."""
    scans = ScanOfOther(
        lambda on: subject_of(trainer, on, loaders=test_dataloaders), trainer.global_rank
    )
    return {**scans.rows(), **ChecksOfOther(lambda: FitSubject(trainer), ceased).rows()}


def agree_on_origin(trainer: L.Trainer, find: Callable[[], Origin | None]) -> Origin | None:
    """Where the run goes on, as rank 0 has found it; called on all ranks at once.

    Raises:
        OtfError, OSError: what ``find`` raised on rank 0; a ResumeError on the others.
    """
    if trainer.world_size == 1:
        return find()
    told: dict[str, str | None] = {}
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            if (origin := find()) is not None:
                run_dir = str(origin.run_dir) if origin.run_dir is not None else None
                told = {"path": str(origin.path), "run_dir": run_dir}
        except (OtfError, OSError) as caught:
            error, told = caught, {"error": str(caught)}
    told = trainer.strategy.broadcast(told, src=0)
    if said := told.get("error"):
        raise error or ResumeError(said)
    if (path := told.get("path")) is None:
        return None
    folder = told.get("run_dir")
    return Origin(Path(path), Path(folder) if folder is not None else None)
