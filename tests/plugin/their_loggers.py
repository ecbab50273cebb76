"""W&B and MLflow as far as Lightning's loggers and otf call them; signatures are the real ones'."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger, mlflow, wandb


class WandbRun:
    """``wandb.Run``: rows of a history, of which one is open until it is committed."""

    id, name = "w1", "w"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.config, self.summary = WandbConfig(), WandbSummary()
        self._open: dict[str, Any] = {}

    def log(
        self, data: dict[str, Any], step: int | None = None, commit: bool | None = None
    ) -> None:
        self._open.update(data)
        if commit is not False:
            self.rows.append(self._open)
            self._open = {}


class WandbConfig(dict[str, Any]):
    def update(self, d: Any, allow_val_change: bool | None = None) -> None:  # type: ignore[override]
        super().update(d)


class WandbSummary(dict[str, Any]):
    def update(self, d: dict[str, Any]) -> None:  # type: ignore[override]
        super().update(d)


class MlflowClient:
    """``mlflow.tracking.MlflowClient``.

    Attributes:
        go: cleared, every call of ``set_tag`` waits for it, as for a server that does not answer.
        fails: raised by ``set_tag``.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.tags: dict[str, Any] = {}
        self.batches: list[tuple[str, float, int]] = []
        self.metrics: list[tuple[str, float, int | None]] = []
        self.told_by: set[str] = set()
        self.asked = 0
        self.go = threading.Event()
        self.fails: Exception | None = None
        self.go.set()

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(experiment_id="0", run_id=run_id))

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        self.told_by.add(threading.current_thread().name)
        self.asked += 1
        assert self.go.wait(60)
        if self.fails is not None:
            raise self.fails
        self.tags[key] = value

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: float,
        timestamp: int | None = None,
        step: int | None = None,
    ) -> None:
        self.metrics.append((key, value, step))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.batches += [(m.key, m.value, m.step) for m in metrics]

    def set_terminated(self, run_id: str, status: str | None = None) -> None:
        self.tags["status"] = status


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def wandb_logger(monkeypatch: pytest.MonkeyPatch) -> tuple[WandbLogger, WandbRun]:
    """Lightning's logger, and the run that it tells."""
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", True)
    _module(monkeypatch, "wandb", run=None)
    _module(monkeypatch, "wandb.sdk")
    _module(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    _module(monkeypatch, "wandb.wandb_run", Run=WandbRun)
    run: Any = WandbRun()
    return WandbLogger(experiment=run), run


def mlflow_logger(monkeypatch: pytest.MonkeyPatch) -> tuple[MLFlowLogger, MlflowClient]:
    """Lightning's logger, and the client by which it tells."""
    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", True)
    _module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None)
    _module(monkeypatch, "mlflow.tracking", MlflowClient=MlflowClient)
    _module(monkeypatch, "mlflow.entities", Metric=SimpleNamespace, Param=SimpleNamespace)
    logger = MLFlowLogger(tracking_uri="http://nowhere", run_id="m1")
    client: Any = logger.experiment
    return logger, client
