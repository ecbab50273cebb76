"""The page in a real browser, before a real dashboard that a trainer's double feeds.

CPU of browser and dashboard, the way from an event to the screen, the opening of a long run, and
what the page's memory is after hours. Chromium draws with the CPU here, as it does without a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from benchmarks.figures import Row, middle, percentile
from otf_core.client import Client
from tests.dashboard.trainer_double import TrainerDouble

HZ: Final = 5.0
HOUR: Final = 3_600
METRICS: Final = (
    *("loss", "accuracy", "lr", "grad_norm", "weight_norm", "activation_zero_frac", "throughput"),
    *("batches_per_s", "data_wait_frac", "mem_vram", "gpu_util", "ram_mb"),
)
LOGGED: Final = 8  # with the twelve above: twenty charts
QUIET: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]
PATIENCE_MS: Final = 120_000.0

# The moment at which a value is on the screen: the frame after the one that put it into the DOM.
WATCH: Final = """
window.seen = [];
addEventListener('DOMContentLoaded', () => {
  let last = 0;
  new MutationObserver(() => {
    const seq = Number(document.querySelector('[data-metric=loss]')?.dataset.seq ?? 0);
    if (seq === last || seq === 0) return;
    last = seq;
    requestAnimationFrame(() => seen.push([seq, Date.now() / 1000]));
  }).observe(document.body, {
    subtree: true, childList: true, attributes: true, attributeFilter: ['data-seq'],
  });
});
"""


# When the large chart, and all of them, have been drawn: the frame after the one that made them.
OPENED: Final = """
window.opened = {};
addEventListener('DOMContentLoaded', () => {
  const wanted = {large: ['.hero canvas', 1], all: ['.charts canvas', 20]};
  new MutationObserver(() => {
    for (const [name, [where, count]] of Object.entries(wanted)) {
      if (document.querySelectorAll(where).length < count) continue;
      delete wanted[name];
      const drawn = () => { opened[name] = Date.now() / 1000; };
      requestAnimationFrame(() => requestAnimationFrame(drawn));
    }
  }).observe(document.body, {subtree: true, childList: true});
});
"""


def page(*, quick: bool, tmp: Path) -> list[Row]:
    """Rows for CPU, latency, opening and memory."""
    chromium = shutil.which("chromium")
    if chromium is None:
        msg = "there is no chromium on the PATH, and the page is measured in a real browser"
        raise RuntimeError(msg)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        try:
            rows = _live(browser, tmp / "live", seconds=4 if quick else 60)
            rows += _memory(browser, tmp / "hours", steps=600 if quick else int(HZ * HOUR))
            rows += _opening(browser, tmp / "long", steps=12_000 if quick else 1_000_000)
        finally:
            browser.close()
    return rows


def _values(step: int) -> dict[str, Any]:
    """What a step tells: noisy curves, the same in every run of this."""
    noise = math.sin(step * 12.9898) * 43758.5453
    noise -= math.floor(noise)
    level = 0.3 + 2.0 * math.exp(-step / 5_000) + 0.1 * noise
    return {
        **dict.fromkeys(METRICS, level),
        "val_loss": level if step % 500 == 0 else None,
        "metrics": {f"own_{i}": level * (i + 1) for i in range(LOGGED)},
    }


class Trainer:
    """A double that lives in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.double = TrainerDouble("sess-1", run_id="long", project="bench")
        self.double.begin()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="trainer")
        self._thread.start()
        self._do(self.double.dial(port))

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_MS / 1000)

    def train(self, steps: int) -> float:
        """Tell of some steps at once; when, in seconds since 1970."""

        async def tell() -> float:
            for _ in range(steps):
                self.double.step += 1
                step = self.double.step
                self.double.emit("trainStep", step=step, epoch=step // 5_000, **_values(step))
            await self.double.drain()
            return time.time()

        return float(self._do(tell()))

    @property
    def seq(self) -> int:
        return len(self.double.events)

    def close(self) -> None:
        self._do(self.double.hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def _dashboard(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """`otf dashboard`: its process, its URL and the port for trainers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder)]
    with subprocess.Popen(
        [*command, "--control-port", str(port)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip(), port
        finally:
            process.terminate()
            process.wait(30)


def _cpu_s(process: psutil.Process) -> float:
    """CPU time of a process and all below it."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _chromium() -> psutil.Process:
    """The browser's first process, which is below Playwright's."""
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in one.name() and "--type=" not in " ".join(one.cmdline()):
                return one
    msg = "the browser has no process"
    raise RuntimeError(msg)


@contextlib.contextmanager
def _opened(browser: Browser, url: str) -> Iterator[Page]:
    # All twenty charts in view, none of them spared.
    context = browser.new_context(viewport={"width": 1920, "height": 1400})
    context.set_default_timeout(PATIENCE_MS)
    try:
        shown = context.new_page()
        shown.add_init_script(WATCH)
        shown.goto(url)
        yield shown
    finally:
        context.close()


def _until(shown: Page, seq: int) -> None:
    shown.locator(f"[data-metric=loss][data-seq='{seq}']").first.wait_for(state="attached")


def _live(browser: Browser, folder: Path, *, seconds: float) -> list[Row]:
    told: dict[int, float] = {}
    with _dashboard(folder) as (process, url, port):
        trainer = Trainer(port)
        try:
            trainer.train(5_000)
            with _opened(browser, url) as shown:
                _until(shown, trainer.seq)
                shown.locator("canvas").nth(19).wait_for()
                ours, server = _chromium(), psutil.Process(process.pid)
                before = _cpu_s(ours), _cpu_s(server), time.perf_counter()
                turn = threading.Event()
                for _ in range(int(seconds * HZ)):
                    began = time.perf_counter()
                    at = trainer.train(1)
                    told[trainer.seq] = at
                    # Handed to Playwright, whose own loop has to turn: it is of this process.
                    turn.wait(max(0.0, 1 / HZ - (time.perf_counter() - began)))
                _until(shown, trainer.seq)
                after = _cpu_s(ours), _cpu_s(server), time.perf_counter()
                seen = dict(shown.evaluate("window.seen"))
                charts = shown.locator(".charts canvas").count()
        finally:
            trainer.close()
    wall = after[2] - before[2]
    delays = [1000 * (seen[seq] - at) for seq, at in told.items() if seq in seen]
    return [
        Row(
            bench="page",
            what=f"browser, {charts} charts at {HZ:g} Hz, all in view",
            unit="% of a core",
            ours=100 * (after[0] - before[0]) / wall,
            limit=45.0,
            spread={"dashboard": 100 * (after[1] - before[1]) / wall},
        ),
        Row(
            bench="page",
            what="from an event to the screen",
            unit="ms",
            ours=middle(delays),
            spread={"p95": percentile(delays, 95), "seen, of 1": len(delays) / len(told)},
        ),
    ]


def _heap_mb(shown: Page) -> float:
    client: CDPSession = shown.context.new_cdp_session(shown)
    client.send("HeapProfiler.collectGarbage")
    told = client.send("Runtime.getHeapUsage")
    client.detach()
    # Typed arrays lie outside of what V8 calls its heap.
    return float(told["usedSize"] + told.get("backingStorageSize", 0)) / 1e6


def _memory(browser: Browser, folder: Path, *, steps: int) -> list[Row]:
    """An hour of events at 5 Hz, and another, told as fast as the page takes them."""
    heaps: list[float] = []
    with _dashboard(folder) as (_, url, port):
        trainer = Trainer(port)
        try:
            trainer.train(100)
            with _opened(browser, url) as shown:
                _until(shown, trainer.seq)
                heaps.append(_heap_mb(shown))
                for _ in range(3):
                    for _ in range(max(1, steps // 500)):
                        trainer.train(500)
                        _until(shown, trainer.seq)
                    heaps.append(_heap_mb(shown))
        finally:
            trainer.close()
    return [
        Row(
            bench="page",
            what=f"heap of the page after {steps:,} more steps of {len(METRICS) + LOGGED} metrics",
            unit="MB",
            ours=heaps[1],
            spread={"after as many again": heaps[2], "and again": heaps[3]},
            rivals={"at the start": heaps[0]},
        )
    ]


def _opening(browser: Browser, folder: Path, *, steps: int) -> list[Row]:
    """A run that is over, from the address to the first large chart that is complete."""
    write_journal(folder, steps)
    with _dashboard(folder) as (process, url, _):
        _when_read(url, steps)
        sizes: list[int] = []
        with _opened(browser, "about:blank") as shown:
            client = shown.context.new_cdp_session(shown)
            client.send("Network.enable")
            client.on(
                "Network.loadingFinished", lambda e: sizes.append(int(e["encodedDataLength"]))
            )
            client.on(
                "Network.webSocketFrameReceived",
                lambda e: sizes.append(len(e["response"]["payloadData"])),
            )
            shown.add_init_script(OPENED)
            began = time.time()
            shown.goto(url)
            _until(shown, steps + 2)
            shown.locator(".charts canvas").nth(19).wait_for()
            shown.evaluate("new Promise((done) => setTimeout(done, 100))")
            drawn = shown.evaluate("window.opened")
            first_ms, all_ms = (1000 * (drawn[name] - began) for name in ("large", "all"))
            heap = _heap_mb(shown)
        rss = psutil.Process(process.pid).memory_info().rss / 1e6
    return [
        Row(
            bench="page",
            what=f"{steps:,} steps of {len(METRICS) + LOGGED} metrics, from the address to the "
            "large chart",
            unit="ms",
            ours=first_ms,
            limit=1000.0,
            spread={
                "all charts": all_ms,
                "kB over the wire": sum(sizes) / 1000,
                "heap, MB": heap,
                "dashboard's memory, MB": rss,
            },
        )
    ]


def write_journal(folder: Path, steps: int) -> None:
    """The journal of a run as a trainer writes it."""
    home = folder / "bench" / "long"
    (home / "journal").mkdir(parents=True)
    stamps = {"run_id": "long", "run_gen": 0, "session_id": "sess-1"}
    begun = 1_767_225_600.0

    def line(seq: int, kind: str, **fields: Any) -> str:
        event = {"type": kind, **fields, **stamps, "ts": begun + seq / 5, "event_seq": seq}
        return json.dumps(event, separators=(",", ":")) + "\n"

    with (home / "journal" / "sess-1.jsonl").open("w") as file:
        file.write(line(1, "session_started", project="bench", run_name="long"))
        file.write(line(2, "newRun", parents=[], project="bench", run_name="long", meta={}))
        for step in range(1, steps + 1):
            file.write(line(step + 2, "trainStep", step=step, epoch=step // 5_000, **_values(step)))
        file.write(line(steps + 3, "trainingFinished", status="completed", step=steps))
    told = {"run_id": "long", "run_name": "long", "project": "bench", "session_ids": ["sess-1"]}
    (home / "run.json").write_text(json.dumps({**told, "parents": [], "status": "completed"}))


def _when_read(url: str, steps: int) -> None:
    """Until the dashboard has all of the journal."""
    client, turn = Client.from_url(url, timeout_s=60), threading.Event()
    while not any((run["summary"]["step"] or 0) >= steps for run in client.runs()):
        turn.wait(0.25)
