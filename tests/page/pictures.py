"""Pictures of every state of the page, made of real runs: `python -m tests.page.pictures OUT`.

One picture for each state, theme and width: `OUT/<state>-<theme>-<width>.png`. The runs are digits
that train here and now; what is on a picture is what their trainers told. A run has to hang for
half a minute before it says that it stalls, so there is no picture of that.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from otf_core.client import Client
from otf_core.client.client import NoAnswerError
from tests.page.conftest import QUIET

WIDTHS = {1440: 900, 1024: 768, 360: 740}
THEMES = ("light", "dark")
PROJECT = "digits"
PATIENCE_S = 60.0

TRAIN = """
import os, sys, threading, torch
import lightning as L
from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits

name, save_dir, steps, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
L.seed_everything(3, verbose=False)


class Steady(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        threading.Event().wait(0.02)
        if trainer.global_step == dies_at:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.10 GiB")


class Slow(LitDigits):
    def validation_step(self, *args):
        if os.path.exists(os.path.join(save_dir, "slow")):
            threading.Event().wait(8.0)
        return super().validation_step(*args)


trainer = L.Trainer(
    max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, check_val_every_n_epoch=4,
    callbacks=[OnTheFlyCallback("digits", name, save_dir=save_dir, checkpoint_every=40), Steady()],
)
trainer.fit((Slow if name == "baseline" else LitDigits)(), datamodule=Digits())
"""


def main(out: Path) -> None:
    """Train, look, and write what is seen below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="otf-pictures-"))
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=path, args=QUIET)
            _states(browser, folder, out)
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _states(browser: Browser, folder: Path, out: Path) -> None:
    with _dashboard(folder) as (dashboard, url):
        client = Client.from_url(url)
        _shoot(browser, url, out, "empty", "empty")
        with _trainer("baseline", folder, 4000) as trainer:
            session = _wait(lambda: _at(client, "baseline", 130))["session_id"]
            address = _address(url, "baseline")
            _shoot(browser, address, out, "running", "running")
            client.send(session, "set_param", {"path": "lr", "mul": 0.5})
            client.send(session, "save_ckpt", {})
            client.send(session, "pause", {})
            _shoot(browser, address, out, "paused", "paused")
            client.send(session, "numerics_health", {})
            for panel in ("steer", "checkpoints", "health", "log"):
                _shoot(browser, address, out, f"panel-{panel}", "paused", _panel(panel))
            _shoot(browser, address, out, "palette", "paused", _palette)
            (folder / "slow").touch()
            with contextlib.suppress(NoAnswerError):
                client.send(session, "validate_now", {}, 0)
            _shoot(browser, address, out, "validating", "validating")
            (folder / "slow").unlink()
            _wait(lambda: _state(client, "baseline") == "paused")
            trainer.send_signal(signal.SIGKILL)
            _shoot(browser, address, out, "trainer-lost", "trainer-lost")
        with _trainer("short", folder, 120) as trainer:
            trainer.wait(PATIENCE_S)
        _shoot(browser, _address(url, "short"), out, "finished", "finished")
        with _trainer("broken", folder, 400, 90) as trainer:
            trainer.wait(PATIENCE_S)
        _shoot(browser, _address(url, "broken"), out, "failed", "failed")
        with _trainer("ended", folder, 400) as trainer:
            _wait(lambda: _at(client, "ended", 60))
            trainer.send_signal(signal.SIGINT)
            trainer.wait(PATIENCE_S)
        _shoot(browser, _address(url, "ended"), out, "interrupted", "interrupted")
        with _trainer("other", folder, 4000):
            _wait(lambda: _at(client, "other", 60))
            _shoot(
                browser, _address(url, "other"), out, "connection-lost", "connection-lost",
                begin=dashboard.kill,
            )  # fmt: skip
    with _dashboard(folder) as (_, url):
        _shoot(browser, _address(url, "baseline"), out, "journal", "journal")


def _shoot(
    browser: Browser,
    url: str,
    out: Path,
    name: str,
    state: str,
    then: Callable[[Page], None] = lambda page: None,
    begin: Callable[[], None] = lambda: None,
) -> None:
    pages = {}
    for theme in THEMES:
        context = browser.new_context(color_scheme="dark" if theme == "dark" else "light")
        pages[theme] = context.new_page()
        pages[theme].set_viewport_size({"width": 1440, "height": 900})
        pages[theme].goto(url)
        expect(pages[theme].locator(".sentence")).to_be_visible()
    if begin.__name__ != "<lambda>":
        for page in pages.values():
            expect(page.locator(".state")).not_to_have_attribute("data-state", "connecting")
    begin()
    for theme, page in pages.items():
        expect(page.locator(".state")).to_have_attribute("data-state", state, timeout=30_000)
        then(page)
        for width, height in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate("new Promise((done) => setTimeout(done, 250))")
            page.screenshot(path=out / f"{name}-{theme}-{width}.png")
        page.context.close()
    sys.stderr.write(f"{name}\n")


def _panel(panel: str) -> Callable[[Page], None]:
    def opened(page: Page) -> None:
        page.locator(f"[data-panel={panel}]").click()
        if panel == "steer":
            page.locator("[id=param-lr]").fill("0.0002")
        if panel == "checkpoints":
            page.get_by_role("button", name="More of").first.click()
        if panel == "log":
            page.locator(".log li").nth(2).click()

    return opened


def _palette(page: Page) -> None:
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox")).to_be_focused()


@contextlib.contextmanager
def _dashboard(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@contextlib.contextmanager
def _trainer(
    name: str, folder: Path, steps: int, dies_at: int = -1
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", TRAIN, name, str(folder), str(steps), str(dies_at)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _address(url: str, run: str) -> str:
    return f"{url}&run={PROJECT}/{run}"


def _of(client: Client, run: str) -> dict[str, Any] | None:
    return next((one for one in client.sessions() if one["run_id"] == run), None)


def _state(client: Client, run: str) -> str | None:
    session = _of(client, run)
    return None if session is None else session["state"]


def _at(client: Client, run: str, step: int) -> dict[str, Any] | None:
    session = _of(client, run)
    return session if session is not None and (session["step"] or 0) >= step else None


def _wait(ready: Callable[[], Any]) -> Any:
    turn = threading.Event()
    for _ in range(int(PATIENCE_S / 0.1)):
        found = ready()
        if found:
            return found
        turn.wait(0.1)
    msg = f"not within {PATIENCE_S:.0f} s"
    raise TimeoutError(msg)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
