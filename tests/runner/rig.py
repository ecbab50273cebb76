"""A real fit of the Runner in a thread of its own, with a dashboard that the test drives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from otf_core.runner import Runner, RunnerCallback
from otf_core.testing import FakeDashboard, LoopbackListener
from tests.exact import data, digest
from tests.exact.models import Net
from tests.exact.native import uncontrolled
from tests.plugin.rig import PATIENCE_S, Fit, Turnstile

BATCHES = 6  # of an epoch


class Barrier(Turnstile, RunnerCallback):
    """Holds the training inside chosen batches."""

    is_otf = True  # no part of the run


class Logged(RunnerCallback):
    """Every value that is logged, as hex."""

    is_otf = True

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def on_metrics(self, run: Any, metrics: Any, step: int) -> None:
        self.lines.append((step, {k: float(v).hex() for k, v in sorted(metrics.items())}))


def fitted(
    *callbacks: Any, model: Any = None, pieces: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A seeded fit of two epochs of six batches; its run when it is over."""
    torch.manual_seed(3)
    model = Net() if model is None else model
    more = pieces(model) if callable(pieces) else (pieces or {})
    given = {"device": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "progress": False}
    runner = Runner(callbacks=list(callbacks), **{**given, **options})
    loaders = {"train_loader": data.loader(), "val_loader": data.val_loader()}
    runner.fit(model, **{**loaders, **more})
    return runner.run


def bare(**options: Any) -> dict[str, Any]:
    """All that the run is which nobody controls."""
    with mock.patch("otf_core.runner.runner.controlled", uncontrolled):
        return digest.of_run(fitted(**options))


@contextlib.contextmanager
def fitting(save_dir: Path, *callbacks: Any, run: Any = fitted, **options: Any) -> Iterator[Fit]:
    """A fit in a thread named "fit", attached to a dashboard that has said hello."""
    with LoopbackListener(legacy_allowed=False) as listener:
        where = f"127.0.0.1:{listener.port}"
        fit = Fit(lambda: run(*callbacks, save_dir=save_dir, dashboard=where, **options))
        fit.start()
        with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
            fit.dashboard = dashboard
            ours = dashboard.expect("hello")["session_id"]
            dashboard.hello(session_id=ours, last_seq=0)
            try:
                yield fit
            except BaseException:
                dashboard.send("stop", {"save": False})  # else a held fit would never end
                raise
            finally:
                for callback in callbacks:
                    if isinstance(callback, Barrier):
                        callback.open()
                fit.wait()
