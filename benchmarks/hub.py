"""What a dashboard costs that is looked at: one page with twenty charts, and a crowd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import peers
from benchmarks.figures import Row, middle, percentile

HZ: Final = 5
METRICS: Final = 20
MIB: Final = 1024 * 1024


def hub(*, quick: bool, tmp: Path) -> list[Row]:
    """Server CPU and latency, trainers and pages in another process."""
    seconds = 2.0 if quick else 20.0
    crowds = [(1, 1), (2, 4)] if quick else [(1, 1), (50, 200)]
    return [row for trainers, pages in crowds for row in _rows(trainers, pages, seconds, tmp)]


def _rows(trainers: int, pages: int, seconds: float, tmp: Path) -> list[Row]:
    folder = tmp / f"{trainers}-{pages}"
    folder.mkdir()
    asked = {"trainers": trainers, "pages": pages, "hz": HZ, "metrics": METRICS,
             "warm_up_s": seconds / 4, "seconds": seconds}  # fmt: skip
    with peers.dashboard(folder) as process:
        told, cpu_s, rss = _watched(psutil.Process(process.pid), asked)
    delays_ms = [1e3 * delay for delay in told["delays_s"]]
    what = f"{trainers} trainers x {pages} pages, {HZ} Hz, {METRICS} charts"
    beside = {
        "events a page, least": float(told["least_events"]),
        "messages a second": told["frames"] / seconds,
        "MB a second": told["bytes"] / 1e6 / seconds,
        "CPU of trainers and pages, %": 100 * told["own_cpu_s"] / seconds,
    }
    return [
        Row(
            bench="hub",
            what=f"CPU of the dashboard, {what}",
            unit="%",
            ours=100 * cpu_s / seconds,
            spread={"memory, MiB": rss / MIB},
            rivals=beside,
        ),
        Row(
            bench="hub",
            what=f"event told to event on a page's socket, {what}, median",
            unit="ms",
            ours=middle(delays_ms),
            spread={
                "p5": percentile(delays_ms, 5),
                "p95": percentile(delays_ms, 95),
                "p99": percentile(delays_ms, 99),
                "max": max(delays_ms),
            },
        ),
    ]


def _watched(dashboard: psutil.Process, asked: dict[str, Any]) -> tuple[dict[str, Any], float, int]:
    """What the crowd has seen, and the dashboard's CPU seconds meanwhile and memory at the end."""
    command = [sys.executable, "-m", "benchmarks.crowd"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=peers.ROOT
    ) as crowd:
        assert crowd.stdin is not None
        crowd.stdin.write(f"{json.dumps(asked)}\n")
        crowd.stdin.flush()
        assert peers.line(crowd) == "begin"
        before = dashboard.cpu_times()
        told = peers.answer(crowd)
        after = dashboard.cpu_times()
    return (
        told,
        after.user + after.system - before.user - before.system,
        dashboard.memory_info().rss,
    )
