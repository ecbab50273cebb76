"""What an import costs beyond torch, and how soon the command line answers; in processes of their
own, alternately."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.figures import Row, middle, percentile

IMPORT_MS: Final = 60.0
CLI_MS: Final = 250.0
_TIMED: Final = """
import gc, time, {before}
gc.collect()  # else what torch left behind is collected at some import of ours
wall, cpu = time.perf_counter(), time.process_time()
import {module}
print((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
"""


def imports(*, quick: bool, tmp: Path) -> list[Row]:
    """``import otf_core.session`` and ``otf status``."""
    rounds = 2 if quick else 12
    return [*_imports(rounds), *_status(rounds, tmp)]


def _imports(rounds: int) -> list[Row]:
    arms = {
        "otf_core.session": _TIMED.format(before="torch", module="otf_core.session"),
        "otf_lightning beyond lightning": _TIMED.format(before="lightning", module="otf_lightning"),
        "tensorboard's SummaryWriter": _TIMED.format(
            before="torch", module="torch.utils.tensorboard"
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(-1, rounds):  # the first writes the bytecode
        for name, code in arms.items():
            ended = subprocess.run(
                [sys.executable, "-c", code],
                env=_as_installed(),
                capture_output=True,
                text=True,
                check=True,
            )
            wall, cpu = ended.stdout.split()[-2:]
            if number >= 0:
                found[name].append((float(wall), float(cpu)))
    ours = found.pop("otf_core.session")
    return [
        Row(
            bench="imports",
            what="import otf_core.session beyond torch, wall median",
            unit="ms",
            ours=middle([wall for wall, _ in ours]),
            limit=IMPORT_MS,
            spread={
                "wall p5": percentile([wall for wall, _ in ours], 5),
                "cpu median": middle([cpu for _, cpu in ours]),
            },
            rivals={name: middle([wall for wall, _ in times]) for name, times in found.items()},
        )
    ]


def _as_installed() -> dict[str, str]:
    """An environment in which bytecode is kept, as where a package was installed."""
    return {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _status(rounds: int, tmp: Path) -> list[Row]:
    """With a dashboard, and with none; ``python -c pass`` is the floor under both."""
    status = [sys.executable, "-m", "otf_core.cli.otf", "status"]
    nothing = [sys.executable, "-c", "pass"]
    alone, served, floor = [], [], []
    empty = {**_as_installed(), "XDG_RUNTIME_DIR": str(tmp / "nobody")}
    (tmp / "nobody").mkdir(mode=0o700)
    with peers.dashboard(tmp):
        _ran(status, empty)
        for _ in range(rounds):
            served.append(_ran(status, _as_installed()))
            alone.append(_ran(status, empty))
            floor.append(_ran(nothing, empty))
    return [
        Row(
            bench="imports",
            what=f"otf status, {name}, wall median",
            unit="ms",
            ours=middle([wall for wall, _ in times]),
            limit=CLI_MS,
            spread={
                "wall p5": percentile([wall for wall, _ in times], 5),
                "cpu median": middle([cpu for _, cpu in times]),
            },
            rivals={"python -c pass": middle([wall for wall, _ in floor])},
        )
        for name, times in (("a dashboard running", served), ("no dashboard", alone))
    ]


def _ran(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU milliseconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    # No run is connected, so its exit code says so (4).
    subprocess.run(command, env=env, capture_output=True, check=False)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * wall, 1e3 * cpu
