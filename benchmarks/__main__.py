"""``python -m benchmarks [NAME ...] [--quick] [--json FILE]``; what ``make bench`` runs.

Exit 0 unless a figure is over twice its limit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import lightning
import torch

from benchmarks import (
    events,
    going_back,
    hub,
    merging,
    native,
    opening,
    page,
    pausing,
    ranks,
    ranks_scale,
    reporting,
    saving,
    scanning,
    specialists,
    start_up,
    step_cost,
    tapping,
    watching,
)
from benchmarks.figures import Row


class Bench(Protocol):
    """Measures in a folder of its own."""

    def __call__(self, *, quick: bool, tmp: Path) -> list[Row]:
        """The rows."""


BENCHES: Final[dict[str, Bench]] = {
    "step_idle": step_cost.step_idle,
    "step_full": step_cost.step_full,
    "pause_latency": pausing.pause_latency,
    "events_per_s": events.events_per_s,
    "stalled_dashboard": step_cost.stalled_dashboard,
    "stalled_memory": events.stalled_memory,
    "hub": hub.hub,
    "imports": start_up.imports,
    "checkpoint_block": saving.checkpoint_block,
    "rollback": going_back.rollback,
    "merging": merging.merging,
    "tap": tapping.loader_tap,
    "guards": watching.guards,
    "scan": scanning.per_sample,
    "report": reporting.reporting,
    "page": page.page,
    "opening": opening.opening,
    "specialists": specialists.specialists,
    "runner": native.runner,
    "script": native.script,
    "ranks": ranks.ranks,
    "ranks_scale": ranks_scale.ranks_scale,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="short: shows that it runs, no more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows, as JSON")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.names if name not in BENCHES]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    _quieten()
    machine = _machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    rows: list[Row] = []
    for name in asked.names or BENCHES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="otf-bench-") as folder:
            found = _alone(name, Path(folder), quick=asked.quick)
        print(f"\n{name} ({time.monotonic() - began:.0f} s)")
        print("\n".join(f"  {line}" for row in found for line in row.lines()), flush=True)
        rows += found
    if asked.json is not None:
        told = {"machine": machine, "quick": asked.quick, "rows": [row.to_json() for row in rows]}
        asked.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    over = [row.what for row in rows if row.held == "over twice"]
    for what in over:
        print(f"over twice its limit: {what}", file=sys.stderr)
    return 1 if over else 0


def _alone(name: str, tmp: Path, *, quick: bool) -> list[Row]:
    """With a runtime folder of its own, so that no dashboard of the person here is met."""
    runtime = tmp / "runtime"
    runtime.mkdir(mode=0o700)
    asked = {"XDG_RUNTIME_DIR": str(runtime), "OTF_LEGACY": "off"}
    removed = ("OTF_DASHBOARD", "OTF_TOKEN", "ONTHEFLY_DASHBOARD_PORT")
    before = {key: os.environ.get(key) for key in (*asked, *removed)}
    threads = torch.get_num_threads()
    for key in removed:
        os.environ.pop(key, None)
    os.environ.update(asked)
    torch.set_num_threads(1)  # what other threads compute, the training thread's clock cannot see
    try:
        return BENCHES[name](quick=quick, tmp=tmp)
    finally:
        torch.set_num_threads(threads)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _quieten() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


if __name__ == "__main__":
    sys.exit(main())
