"""A browser and a fake dashboard for the tests of the page."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.page.fake_dashboard import NOW, TOKEN, FakeDashboard
from tests.page.recorded import family

__all__ = ["family"]

ROOT = Path(__file__).parents[2]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Open = Callable[..., Page]

# A run that takes its time.
RUN = """
import sys, threading, torch
import lightning as L
from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits

torch.set_num_threads(1)
L.seed_everything(3, verbose=False)


class Steady(L.Callback):
    def on_train_batch_end(self, *_):
        threading.Event().wait(0.02)


trainer = L.Trainer(
    max_epochs=50, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[OnTheFlyCallback("browser", "shown", save_dir=sys.argv[1]), Steady()],
)
trainer.fit(LitDigits(), datamodule=Digits())
"""


def retry(page: Page) -> None:
    """Press "Retry now", unless the page has come back by itself meanwhile."""
    page.evaluate("document.querySelector('.conn button')?.click()")


@pytest.fixture(scope="module")
def dashboard() -> Iterator[FakeDashboard]:
    """The page as it is in the sources, served by a fake dashboard."""
    built = subprocess.run(
        [sys.executable, str(ROOT / "hatch_build.py")], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    fake = FakeDashboard()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a module: Playwright keeps an event loop in this thread while it is up."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, dashboard: FakeDashboard) -> Iterator[Open]:
    """Opens the page; afterwards nothing may have been complained about in its console."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def opened(
        width: int = 1440,
        height: int = 900,
        theme: str = "light",
        prefix: str = "",
        fragment: str = f"#token={TOKEN}",
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(10_000)
        context.clock.set_fixed_time(NOW)  # ages stand still, timers go on
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(dashboard.url(prefix) + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    dashboard.reset()
    assert complaints == []


@pytest.fixture
def real_run(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A dashboard and a training run, each its own process; the URL and the runs' folder."""
    with training(tmp_path, RUN) as url:
        yield url, tmp_path


@contextlib.contextmanager
def training(tmp_path: Path, script: str) -> Iterator[str]:
    """A dashboard and a run of this script, which is told the runs' folder; the page's URL."""
    env = {**os.environ, "OTF_LEGACY": "off"}
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(tmp_path)]
    dashboard = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert dashboard.stdout is not None
    url = dashboard.stdout.readline().strip()
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=env, stderr=subprocess.DEVNULL
    )
    try:
        yield url
    finally:
        for process in (run, dashboard):
            process.terminate()
            process.wait(60)
        dashboard.stdout.close()
