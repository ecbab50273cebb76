"""How long a checkpoint holds the training thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch

from benchmarks import fits
from benchmarks.figures import Row, middle, percentile
from otf_core.errors import CommandError
from otf_core.state.host_copy import sizes_of
from otf_core.state.host_pool import available_bytes
from otf_lightning import OnTheFlyCallback

MIB: Final = 1024 * 1024
TIMES_MEMCPY: Final = 1.2
SMALL: Final[tuple[int, ...]] = (256, 512, 512, 10)
# 100 M parameters, with Adam's moments 1.2 GB
LARGE: Final[tuple[int, ...]] = (256, 7000, 7000, 7000, 10)
SMALLER: Final[tuple[int, ...]] = (256, 2048, 2048, 2048, 10)  # where memory is short
NEEDED_BYTES: Final = 9 * 1024 * MIB  # the state, its gradients, our two copies, a rival's two
WAIT_S: Final = 300.0


class _Saves:
    """Between two batches: a save of ours, a bare copy of the same bytes, Lightning's own save.

    They take turns; the disk is idle when each begins. What they copy into was made before. No
    callback, whose attributes would be part of the state that is saved.
    """

    def __init__(self, ours: OnTheFlyCallback, tmp: Path, warm_up: int) -> None:
        self._ours, self._tmp, self._warm_up = ours, tmp, warm_up
        self._room: list[torch.Tensor] = []
        self.ours: list[float] = []
        self.memcpy: list[float] = []
        self.lightning: list[float] = []
        self.written: list[float] = []
        self.state_bytes = 0

    def between(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._ours.session is None or batch_idx < self._warm_up:
            return
        tensors = _state(trainer)
        if not self._room:
            self._prepare(tensors)
        arms = [self._save, self._copy, lambda: self._save_checkpoint(trainer)]
        turn = batch_idx % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            arm()  # type: ignore[no-untyped-call]

    def _prepare(self, tensors: list[torch.Tensor]) -> None:
        """As a session prepares itself, and the rival likewise."""
        assert self._ours.session is not None
        store = self._ours.session.store
        if (refused := store.prepare(sizes_of(tensors))) is not None:
            raise SystemExit(refused)
        self._await_saver()
        self._tensors = tensors
        self._room = [torch.empty_like(t).fill_(0) for t in tensors]
        self.state_bytes = sum(t.numel() * t.element_size() for t in tensors)

    def _await_saver(self) -> None:
        """otf-saver does one thing after the other: a save that is done, all before it are."""
        assert self._ours.session is not None
        pending = self._ours.session.store.save(
            lambda _: {"otf": {}}, run_id="bench", step=0, epoch=0, kind="ring", pinned=False
        )
        pending.wait(WAIT_S)

    def _save(self) -> None:
        session = self._ours.session
        assert session is not None
        session.changed()
        began = time.perf_counter()
        pending = session.save("ring")
        self.ours.append(time.perf_counter() - began)
        pending.wait(WAIT_S)
        self.written.append(time.perf_counter() - began)
        if pending.error is not None:
            raise CommandError(pending.error.code, pending.error.detail)

    def _copy(self) -> None:
        began = time.perf_counter()
        for room, tensor in zip(self._room, self._tensors, strict=True):
            room.copy_(tensor)
        self.memcpy.append(time.perf_counter() - began)

    def _save_checkpoint(self, trainer: L.Trainer) -> None:
        began = time.perf_counter()
        trainer.save_checkpoint(self._tmp / "rival.ckpt")
        self.lightning.append(time.perf_counter() - began)


def _state(trainer: L.Trainer) -> list[torch.Tensor]:
    """What a checkpoint of this fit mostly consists of."""
    tensors = [p.detach() for p in trainer.lightning_module.parameters()]
    moments = [t for s in trainer.optimizers[0].state.values() for t in s.values()]
    return tensors + [t for t in moments if isinstance(t, torch.Tensor)]


def checkpoint_block(*, quick: bool, tmp: Path) -> list[Row]:
    """The first save and the later ones, each held against a bare copy of the same bytes."""
    widths = LARGE if available_bytes() >= NEEDED_BYTES else SMALLER
    if quick:
        widths = SMALL
    count = 2 if quick else 9
    ours = OnTheFlyCallback(project="bench", save_dir=tmp, keep_checkpoints=1)
    saves = _Saves(ours, tmp, warm_up=2)
    callback = L.Callback()
    callback.on_train_batch_start = saves.between  # type: ignore[method-assign]
    work = fits.Workload(widths, 16, steps=count, warm_up=2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=count + 2,
        callbacks=[ours, callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(work.module(), work.loader())
    ms, size = 1e3, f"{saves.state_bytes / MIB:,.0f} MiB"
    limit_ms = ms * TIMES_MEMCPY * middle(saves.memcpy)
    beside = {
        "memcpy of the state": ms * middle(saves.memcpy),
        "memcpy p5": ms * percentile(saves.memcpy, 5),
        "memcpy p95": ms * percentile(saves.memcpy, 95),
        "trainer.save_checkpoint": ms * middle(saves.lightning),
        "trainer.save_checkpoint p5": ms * percentile(saves.lightning, 5),
    }

    def row(what: str, found: list[float]) -> Row:
        return Row(
            bench="checkpoint_block",
            what=f"training thread held by {what} of {size}, wall",
            unit="ms",
            ours=ms * middle(found),
            limit=None if quick else limit_ms,
            spread={
                "p5": ms * percentile(found, 5),
                "p95": ms * percentile(found, 95),
                "x memcpy": middle(found) / middle(saves.memcpy),
                "until it is on the disk": ms * middle(saves.written),
            },
            rivals=beside,
        )

    return [row("later saves, median,", saves.ours[1:]), row("the first save", saves.ours[:1])]
