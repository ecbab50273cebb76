"""Opening a long run that is over: from the dashboard's database, beside parsing its journal.

Each side is a process of its own, so that its memory is its own; the journal lies in the page cache
for all of them. The first process has no database yet and reads the journal into one.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec

from otf_core.dashboard.columns import pick
from otf_core.dashboard.serve import Dashboard, Options
from otf_core.dashboard.store import Store
from otf_core.protocol import decode_message

if TYPE_CHECKING:
    from benchmarks.figures import Row

METRICS: Final = 20
PATIENCE_S: Final = 600.0


def opening(*, quick: bool, tmp: Path) -> list[Row]:
    """A journal is written, read into a database, opened from it, and parsed as without one."""
    from benchmarks.figures import Row  # with NumPy, which the processes have no need of

    steps = 20_000 if quick else 1_000_000
    path = write_journal(tmp, steps)
    first, again, old = (_in_process(what, tmp) for what in ("read", "open", "old"))
    run = f"{steps:,} steps x {METRICS} metrics, a journal of {path.stat().st_size / 1e6:,.0f} MB"
    parsed = {"parse the journal": old["first_ms"]}
    return [
        Row(
            bench="opening", what=f"first chart of a run that is over: {run}", unit="ms",
            ours=again["first_ms"], limit=1000.0, rivals=parsed,
            spread={"list of runs": again["list_ms"], "next chart": again["next_ms"]},
        ),
        Row(
            bench="opening", what="one chart of 900 buckets, not compressed", unit="kB",
            ours=again["chart_kb"], limit=64.0,
        ),
        Row(
            bench="opening", what="memory at most, three charts open", unit="MiB",
            ours=again["rss_mib"], rivals={"parse the journal": old["rss_mib"]},
        ),
        Row(
            bench="opening", what="the journal into the database, once", unit="s",
            ours=first["all_s"],
            spread={
                "database, MB": (tmp / "dashboard.sqlite").stat().st_size / 1e6,
                "memory at most, MiB": first["rss_mib"],
            },
        ),
    ]  # fmt: skip


def write_journal(folder: Path, steps: int) -> Path:
    """A run of ``steps`` steps in ``folder``; its journal."""
    path = folder / "demo" / "long" / "journal" / "sess-1.jsonl"
    path.parent.mkdir(parents=True)
    names = [f"m{n}" for n in range(METRICS - 3)]
    with path.open("wb") as file:

        def emit(seq: int, kind: str, **fields: Any) -> None:
            stamps = {"run_id": "long", "run_gen": 0, "ts": 1e9 + seq / 50, "session_id": "sess-1"}
            event = {"type": kind, **fields, **stamps, "event_seq": seq}
            file.write(msgspec.json.encode(event) + b"\n")

        emit(1, "session_started", project="demo", run_name="long")
        emit(2, "newRun", parents=[], project="demo", run_name="long", meta={})
        for step in range(1, steps + 1):
            value = 1 / math.sqrt(step) + math.sin(step * 12.9898) * 0.01
            emit(
                step + 2, "trainStep", step=step, loss=value, lr=1e-3,
                val_loss=value if step % 500 == 0 else None,
                metrics={name: value * (at + 1) for at, name in enumerate(names)},
            )  # fmt: skip
    return path


def rss_mib() -> float:
    """Of this process, at its highest."""
    status = Path("/proc/self/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(kib) / 1024


async def serve(folder: Path, what: str) -> dict[str, float]:
    """One start of a dashboard; what it took."""
    began_s = time.perf_counter()
    made = Dashboard(Options(folder=folder), token="t", say=lambda _: None)
    found: dict[str, float] = {}
    async with made.running():
        found["list_ms"] = 1000 * (time.perf_counter() - began_s)
        if what != "open":
            await made.journals.load_all()
            await made.keeper.save_all()
            found["all_s"] = time.perf_counter() - began_s
        async with httpx.AsyncClient(
            base_url=made.url, headers={"Authorization": "Bearer t"}, timeout=100, trust_env=False
        ) as http:
            charts = []
            for name in ("loss", "val_loss", "m3"):
                at_s = time.perf_counter()
                answer = await http.get(f"api/runs/long/metrics?names={name}&buckets=900")
                charts.append(1000 * (time.perf_counter() - at_s))
                found["chart_kb"] = max(found.get("chart_kb", 0), len(answer.content) / 1000)
        found["first_ms"], found["next_ms"] = charts[0], charts[2]
        found["rss_mib"] = rss_mib()
    return found


def old_way(path: Path) -> dict[str, float]:
    """All of the journal into memory, as without a database."""
    began_s = time.perf_counter()
    store = Store()
    session = store.session("sess-1", source="journal")
    with path.open("rb") as file:
        for line in file:
            store.add(session, decode_message(line), line)
    [run] = store.runs.values()
    views = [columns.view(["loss"]) for _, columns in run.in_order()]
    pick(views, ["loss"], low=0, high=None, points=1800)
    return {"first_ms": 1000 * (time.perf_counter() - began_s), "rss_mib": rss_mib()}


def _in_process(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.opening", what, str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _main(what: str, folder: Path) -> None:
    path = folder / "demo" / "long" / "journal" / "sess-1.jsonl"
    found = old_way(path) if what == "old" else asyncio.run(serve(folder, what))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
