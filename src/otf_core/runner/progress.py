"""The progress bar: on stderr, and only where a person looks at it."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from otf_core.runner.callback import RunnerCallback

EVERY_S: Final = 0.1  # drawn no more often; it waits for the device to read what is logged


class ProgressBar(RunnerCallback):
    """One line per epoch, drawn by the training thread; no thread of its own."""

    is_otf = True  # its attributes are no part of the run's state

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[logged]}"),
            console=Console(stderr=True),
            auto_refresh=False,
            # The user's own lines are his.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None
        self._drawn_s = 0.0

    def on_train_start(self, run: Any) -> None:
        self._bar.start()

    def on_train_epoch_start(self, run: Any) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        number = run.fit_loop.max_batches
        total = None if number == float("inf") else int(number)
        epoch = run.counters.epoch
        self._task = self._bar.add_task("", total=total, epoch=epoch, logged="")

    def on_train_batch_end(self, run: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._task is None or now - self._drawn_s < EVERY_S:
            return
        self._drawn_s = now
        self._draw(run, batch_idx + 1)

    def on_train_epoch_end(self, run: Any) -> None:
        if self._task is not None:
            self._draw(run, run.counters.batches_begun)

    def on_train_end(self, run: Any) -> None:
        self._bar.stop()

    def on_exception(self, run: Any, exception: BaseException) -> None:
        self._bar.stop()

    def _draw(self, run: Any, done: int) -> None:
        values = run.progress_bar_metrics
        logged = " ".join(f"{name}={value:.4g}" for name, value in values.items())
        self._bar.update(self._task, completed=done, logged=logged, refresh=True)


def wanted(asked: bool | None) -> bool:  # noqa: FBT001 -- the argument of the Runner
    """Whether to show one; where not said, if stderr is a terminal."""
    return sys.stderr.isatty() if asked is None else asked
