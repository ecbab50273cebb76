"""What ``show()`` puts into a notebook, in a real browser: the live page, else a picture."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Frame, Page, expect

from otf_core.client import Client
from otf_lightning import show
from tests.page.conftest import QUIET, ROOT
from tests.runs.folders import run_folder

HOSTILE = "<img src=x onerror=document.title='hit'>"
Open = Callable[[str, str], Page]


def a_run(folder: Path, run_id: str = "digits") -> None:
    """One that is over."""
    events = [
        {"type": "trainStep", "run_id": run_id, "event_seq": n, "ts": 100.0 + n, "step": n,
         "epoch": 0, "loss": 2 * math.exp(-n / 40), "lr": 0.001,
         "val_loss": 0.5 if n % 40 == 0 else None}
        for n in range(1, 121)
    ]  # fmt: skip
    run_folder(folder / "p", run_id, events=events, status="completed", step=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of runs, with one in it."""
    a_run(tmp_path / "otf_runs")
    return tmp_path / "otf_runs"


@pytest.fixture
def notebook(browser: Browser) -> Iterator[Open]:
    """Opens HTML as a notebook's server would serve it, at a name of this machine or another."""
    served = {"": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<!doctype html><meta charset=utf-8>{served['']}".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="notebook-server")
    thread.start()
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    context.set_default_timeout(10_000)

    def opened(html: str, host: str) -> Page:
        served[""] = html
        page = context.new_page()
        page.goto(f"http://{host}:{server.server_address[1]}/")
        return page

    yield opened
    context.close()
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def live(folder: Path) -> Iterator[Client]:
    """A dashboard in a process of its own, that has read the run."""
    built = subprocess.run([sys.executable, str(ROOT / "hatch_build.py")], check=False)
    assert built.returncode == 0
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        yield Client.from_url(url)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def _html(folder: Path, run: str | None = None) -> str:
    return show(run, folder=folder)._repr_mimebundle_()["text/html"]


def _framed(page: Page) -> Frame:
    page.wait_for_function("frames.length === 1")
    [frame] = page.frames[1:]
    return frame


def test_without_a_dashboard_the_picture_is_there(notebook: Open, tmp_path: Path) -> None:
    a_run(tmp_path, HOSTILE)
    page = notebook(_html(tmp_path), "localhost")
    picture = page.get_by_role("img")
    expect(picture).to_be_visible()
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] > 700
    assert box["height"] > 200
    expect(page.get_by_text("validation 0.")).to_be_visible()
    assert page.locator("script, style, img, object").count() == 0
    assert page.title() == ""


@pytest.mark.web
def test_the_live_page_is_in_the_frame_and_stays_in_its_tab(
    notebook: Open, folder: Path, live: Client
) -> None:
    html = _html(folder)
    assert live.token not in html
    page = notebook(html, "localhost")
    frame = _framed(page)
    expect(frame.get_by_text("Journal of").first).to_be_visible()
    assert "token" not in frame.url
    # The still picture is for where the page cannot be.
    expect(page.locator("svg").first).not_to_be_visible()
    # The tab is loaded anew: the ticket is used, the tab has kept the token.
    page.reload()
    expect(_framed(page).get_by_text("Journal of").first).to_be_visible()


@pytest.mark.web
def test_of_another_site_the_page_lives_until_the_tab_is_loaded_anew(
    notebook: Open, folder: Path, live: Client
) -> None:
    page = notebook(_html(folder), "127.0.0.1")
    expect(_framed(page).get_by_text("Journal of").first).to_be_visible()
    page.reload()
    expect(_framed(page).get_by_text("Not let in").first).to_be_visible()


@pytest.mark.web
def test_a_kept_ticket_opens_nothing_in_another_browser(
    notebook: Open, browser: Browser, folder: Path, live: Client
) -> None:
    page = notebook(_html(folder), "localhost")
    expect(_framed(page).get_by_text("Journal of").first).to_be_visible()
    other = browser.new_context()
    stranger = other.new_page()
    stranger.goto(page.url)
    expect(_framed(stranger).get_by_text("Not let in").first).to_be_visible()
    other.close()


@pytest.mark.web
def test_when_the_dashboard_is_gone_the_picture_takes_its_place(
    notebook: Open, folder: Path, live: Client
) -> None:
    html = _html(folder)
    address = live.url.replace("127.0.0.1", "localhost")
    assert f'data="{address}open/' in html
    page = notebook(html.replace(address, "http://localhost:9/"), "localhost")
    expect(page.locator("svg").first).to_be_visible()
    # Another dashboard by now, which knows nothing of the ticket.
    page = notebook(html.replace("/open/", "/open/x"), "localhost")
    expect(page.locator("svg").first).to_be_visible()


@pytest.mark.web
def test_a_page_from_elsewhere_cannot_frame_it(
    notebook: Open, browser: Browser, folder: Path, live: Client
) -> None:
    port = notebook("", "localhost").url.rsplit(":", 1)[1]
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    chromium = shutil.which("chromium")
    elsewhere = browser.browser_type.launch(executable_path=chromium, args=[*QUIET, rules])
    try:
        said: list[str] = []
        page = elsewhere.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://evil.example:{port}")
        page.set_content(_html(folder))
        expect(page.locator("svg").first).to_be_visible()  # not the page: what takes its place
        assert any("frame-ancestors" in line for line in said), said
    finally:
        elsewhere.close()
