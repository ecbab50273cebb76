"""A real fit in a thread of its own, with a dashboard that the test drives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from otf_core.testing import FakeDashboard, LoopbackListener
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit

PATIENCE_S = 30.0


class Turnstile:
    """Holds the training at the start of chosen batches until the test lets it go.

    Args:
        at: batches, counted from 0 over the whole fit.
    """

    def __init__(self, *at: int) -> None:
        self._at = {n: (threading.Event(), threading.Event()) for n in at}
        self.batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        reached, go = self._at.get(self.batches, (None, None))
        self.batches += 1
        if reached is not None and go is not None:
            reached.set()
            assert go.wait(PATIENCE_S), "the test never let the batch go"

    def wait_for(self, batch: int) -> None:
        """Until the training is inside this batch."""
        assert self._at[batch][0].wait(PATIENCE_S), f"batch {batch} was never reached"

    def let_go(self, batch: int) -> None:
        """Let this batch run."""
        self._at[batch][1].set()

    def open(self) -> None:
        """Let everything run."""
        for _, go in self._at.values():
            go.set()


class Barrier(Turnstile, L.Callback):
    """For Lightning."""


class Stop(Exception):  # noqa: N818 -- it ends the run
    pass


class StopAt(L.Callback):
    """Ends the run as a fault of the script does, within a batch."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            raise Stop


class Fit(threading.Thread):
    """A fit under way, in the thread "fit"."""

    dashboard: FakeDashboard

    def __init__(self, main: Callable[[], Any]) -> None:
        super().__init__(name="fit")
        self._main = main
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._main()
        except BaseException as error:  # noqa: BLE001 -- handed to the test by ``outcome``
            self._error = error

    def wait(self) -> None:
        """Until it is over."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the fit did not end"

    def outcome(self) -> Any:
        """What it returned, when it is over. Raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def fitting(
    run: Callable[[list[L.Callback]], Any],
    save_dir: Path,
    *barriers: Barrier,
    first: tuple[L.Callback, ...] = (),
    **options: Any,
) -> Iterator[Fit]:
    """``run(callbacks)`` in a thread named "fit", attached to a dashboard that has said hello."""
    with LoopbackListener(legacy_allowed=False) as listener:
        callback = OnTheFlyCallback(
            save_dir=save_dir, dashboard=f"127.0.0.1:{listener.port}", **options
        )
        fit = Fit(lambda: run([*first, callback, *barriers]))
        fit.start()
        with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
            fit.dashboard = dashboard
            # Asked for in the hello itself: what comes between it and a resume_from comes twice.
            ours = dashboard.expect("hello")["session_id"]
            dashboard.hello(session_id=ours, last_seq=0)
            try:
                yield fit
            except BaseException:
                dashboard.send("stop", {"save": False})  # else a held fit would never end
                raise
            finally:
                for barrier in barriers:
                    barrier.open()
                fit.wait()


def pause_in(fit: Fit, barrier: Turnstile, batch: int) -> dict[str, Any]:
    """Ask for a pause within this batch; the reply's data, when the run stands behind it."""
    barrier.wait_for(batch)
    asked = fit.dashboard.send("pause")
    fit.dashboard.expect("state", state="pausing")
    barrier.let_go(batch)
    data: dict[str, Any] = fit.dashboard.reply_to(asked)["data"]
    return data


def bare(**limits: Any) -> dict[str, Any]:
    """All that decides the run that nobody touched."""
    torch.manual_seed(3)
    return digest.of(_fit([], Net(), **limits))


def unlogged(found: dict[str, Any]) -> dict[str, Any]:
    """Without what was logged: that of undone steps and of a test is meant to stay."""
    return {name: value for name, value in found.items() if name != "logged"}
