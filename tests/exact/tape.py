"""What a run tells while it goes: one line for every logged value and every batch, at once on disk.

A killed run leaves its lines up to the kill. ``stitched`` joins those of a run and of the runs
that went on from its checkpoints into what one uninterrupted run would have told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger

Line = list[Any]
KINDS = ("hook", "val", "log", "step", "disk")


class Tape(Logger):
    """A logger that keeps every value as hex, counts events, and can end the process at one.

    Args:
        path: of the lines.
        kill_at: kind and number of the event at which ``on_kill`` is called.
    """

    def __init__(
        self,
        path: Path,
        *,
        kill_at: tuple[str, int] | None = None,
        on_kill: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()
        self._kill_at, self._on_kill = kill_at, on_kill
        self.counts = dict.fromkeys(KINDS, 0)

    @property
    def name(self) -> str:
        return "tape"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        return

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.event("log")
        self.write("log", step, {k: float(v).hex() for k, v in sorted(metrics.items())})

    def write(self, *line: Any) -> None:
        """Add a line; whole or not there, since it is one short write."""
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def event(self, kind: str) -> None:
        """Something of this kind happens; may be the last thing that does. Any thread."""
        if os.getpid() != self._pid:  # a worker of a loader
            return
        self.counts[kind] += 1
        if self._kill_at == (kind, self.counts[kind]):
            self._on_kill()

    def close(self) -> None:
        os.close(self._file)


class Batches(L.Callback):
    """Tells of each batch: where it stood, the loss, and a sum over the data."""

    is_otf = True  # the book-keeping is no part of the run

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        said = None if loss is None else float(loss).hex()
        epoch = trainer.current_epoch
        self._tape.write("batch", epoch, batch_idx, trainer.global_step, said, sum_of(batch))


class Marks(L.Callback):
    """Tells of each gate, before or behind what is done there.

    Put behind the callback under test to tell of ``gate``, before it to tell of ``go``: of two
    wraps around one method the later is the outer.
    """

    is_otf = True

    def __init__(self, tape: Tape, mark: str) -> None:
        self._tape, self._mark = tape, mark

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        loop = trainer.fit_loop.epoch_loop
        advance, tape, mark = loop.advance, self._tape, self._mark

        def marked(fetcher: Any) -> None:
            tape.write(mark, loop.batch_progress.total.completed)
            advance(fetcher)

        loop.advance = marked  # type: ignore[method-assign, assignment]


class Hooks(L.Callback):
    """Counts the calls of every hook that callbacks have."""

    is_otf = True

    def __init__(self, tape: Tape) -> None:
        self._tape = tape


def _counting(name: str) -> Any:
    kind = "val" if name.startswith("on_validation_batch") else "hook"

    def hook(self: Hooks, *_: Any, **__: Any) -> None:
        self._tape.event(kind)

    hook.__name__ = name
    return hook


for _name in vars(L.Callback):
    if _name.startswith("on_"):
        setattr(Hooks, _name, _counting(_name))


def sum_of(batch: Any) -> str:
    """A sum over the data, of every part of the batch."""
    if isinstance(batch, torch.Tensor):
        return float(batch.double().sum()).hex()
    values = batch.values() if isinstance(batch, dict) else batch
    return "none" if batch is None else "+".join(sum_of(v) for v in values)


def read(path: Path) -> list[Line]:
    """The lines of one process; the last may have been cut off by the kill."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def stitched(processes: Iterable[tuple[list[Line], int | None]]) -> list[Line]:
    """What an uninterrupted run would have told.

    Args:
        processes: the lines of each process, and how many batches were done in the snapshot that
            it went on from; None where it started anew.
    """
    whole: list[Line] = []
    for lines, resumed_at in processes:
        if resumed_at is None:
            whole.clear()
        else:
            _back_to(whole, resumed_at)
            # Before that it was a fit that begins anew; all of it was overwritten.
            began = (i for i, line in enumerate(lines) if line[0] == "go")
            lines = lines[next(began, len(lines)) :]
        for line in lines:
            if line[0] == "back":
                _back_to(whole, line[1])
            else:
                whole.append(line)
    return [line for line in whole if line[0] not in ("gate", "go")]


def _back_to(lines: list[Line], gate: int) -> None:
    mark = ["gate", gate]
    while mark in lines and lines[-1] != mark:  # behind the last batch there is no gate
        lines.pop()
