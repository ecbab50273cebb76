"""Opening a long run that is over: from the dashboard's database, beside parsing its journal.

The journal has ``STEPS`` steps of ``METRICS`` metrics. Each side is a process of its own, so that
its memory is its own; the journal lies in the page cache for both.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 1_000_000
METRICS = 20
GOAL_MS, GOAL_KB = 1000, 64


def write_journal(folder: Path, steps: int) -> Path:
    """A run of ``steps`` steps in ``folder``; its journal."""
    path = folder / "demo" / "long" / "journal" / "sess-1.jsonl"
    path.parent.mkdir(parents=True)
    names = [f"m{n}" for n in range(METRICS - 3)]
    with path.open("w") as file:

        def emit(seq: int, kind: str, **fields: Any) -> None:
            stamps = {"run_id": "long", "run_gen": 0, "ts": 1e9 + seq / 50, "session_id": "sess-1"}
            file.write(json.dumps({"type": kind, **fields, **stamps, "event_seq": seq}) + "\n")

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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def serve(folder: Path, what: str) -> dict[str, float]:
    """One start of a dashboard; what it took."""
    import httpx

    from otf_core.dashboard.serve import Dashboard, Options

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
                found[f"{name}_kb"] = len(answer.content) / 1000
                assert answer.json()["total"] == STEPS
        found["first_ms"], found["next_ms"] = charts[0], charts[2]
        found["rss_mib"] = rss_mib()
    return found


def old_way(path: Path) -> dict[str, float]:
    """All of the journal into memory, as without a database."""
    from otf_core.dashboard.columns import pick
    from otf_core.dashboard.store import Store
    from otf_core.protocol import decode_message

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


async def _in_process(what: str, folder: Path) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.opening",
        what,
        str(folder),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    found: dict[str, float] = json.loads(out)
    return found


def main() -> None:
    """Three processes, one after the other."""
    if len(sys.argv) == 3:
        folder = Path(sys.argv[2])
        path = folder / "demo" / "long" / "journal" / "sess-1.jsonl"
        found = old_way(path) if sys.argv[1] == "old" else asyncio.run(serve(folder, sys.argv[1]))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        journal_mb = write_journal(folder, STEPS).stat().st_size / 1e6
        print(f"opening: {STEPS:,} steps x {METRICS} metrics, a journal of {journal_mb:,.0f} MB")
        old = asyncio.run(_in_process("old", folder))
        first = asyncio.run(_in_process("read", folder))
        again = asyncio.run(_in_process("open", folder))
        size_mb = (folder / "dashboard.sqlite").stat().st_size / 1e6
        print(f"  journal to database, once: {first['all_s']:.1f} s, {size_mb:,.0f} MB,"
              f" at most {first['rss_mib']:.0f} MiB")  # fmt: skip
        print(f"  a start after that: list after {again['list_ms']:.0f} ms")
        print(f"  first chart {again['first_ms']:.0f} ms (goal {GOAL_MS}), the next of the run"
              f" {again['next_ms']:.0f} ms, {again['loss_kb']:.0f} kB (goal {GOAL_KB}),"
              f" at most {again['rss_mib']:.0f} MiB")  # fmt: skip
        print(f"  the old way, parsing the journal: first chart {old['first_ms']:,.0f} ms,"
              f" {old['rss_mib']:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
