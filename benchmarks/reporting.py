"""The losses of a million samples, from the command to the last page that a dashboard has."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import Row
from otf_core import protocol
from otf_core.runner import Runner
from otf_core.testing import FakeDashboard, LoopbackListener

MIB: Final = 1024 * 1024
BATCH: Final = 256
PATIENCE_S: Final = 300.0


def reporting(*, quick: bool, tmp: Path) -> list[Row]:
    """A fit of the Runner that is held, over a real socket; beside it plain evaluation."""
    number = 20_000 if quick else 1_000_000
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(number, 64), torch.randint(0, 10, (number,)))
    loader: DataLoader[Any] = DataLoader(data, BATCH)
    model = nn.Linear(64, 10)
    plain_s = _evaluated(model, loader)
    with LoopbackListener(legacy_allowed=False) as listener:
        runner = Runner(
            max_steps=1,
            device="cpu",
            progress=False,
            pause_at_start=True,
            save_dir=tmp,
            dashboard=f"127.0.0.1:{listener.port}",
        )
        pieces = {
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "loss_fn": nn.functional.cross_entropy,
            "train_loader": loader,
        }
        fit = threading.Thread(target=lambda: runner.fit(model, **pieces), name="fit")
        fit.start()
        with FakeDashboard.on(listener, patience_s=PATIENCE_S) as dashboard:
            dashboard.hello(session_id=dashboard.expect("hello")["session_id"], last_seq=0)
            dashboard.expect("paused")
            found = _asked(dashboard, number)
            dashboard.request("stop", {"save": False})
            fit.join(PATIENCE_S)
    beside = {"plain evaluation, s": plain_s}
    return [
        Row(
            bench="report",
            what=f"losses of {number:,} samples of 64 numbers, batch {BATCH}, a command to its "
            "answer",
            unit="s",
            ours=found["scan s"],
            spread={"MiB at most beside the data": found["scan MiB"]},
            rivals=beside,
        ),
        Row(
            bench="report",
            what=f"the same {number:,}, all pages to a dashboard",
            unit="s",
            ours=found["pages s"],
            spread={"pages": found["pages"], "MB of JSON": found["pages MB"]},
        ),
    ]


def _evaluated(model: nn.Module, loader: DataLoader[Any]) -> float:
    began_s = time.perf_counter()
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).item()
    model.train()
    return time.perf_counter() - began_s


def _asked(dashboard: FakeDashboard, number: int) -> dict[str, float]:
    found = {}
    before = _resident()
    began_s = time.perf_counter()
    assert dashboard.request("scan")["data"]["count"] == number
    found["scan s"] = time.perf_counter() - began_s
    found["scan MiB"] = max(_peak() - before, 0.0)
    began_s = time.perf_counter()
    there = pages = size = 0
    while there < number:
        reply = dashboard.request("samples", {"start": there})
        there += len(reply["data"]["losses"])
        pages += 1
        size += len(protocol.encode(reply))
    found["pages s"] = time.perf_counter() - began_s
    return {**found, "pages": float(pages), "pages MB": size / 1e6}


def _resident() -> float:
    """MiB in memory; the peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss / MIB


def _peak() -> float:
    """MiB at most since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [found] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found) / 1024
