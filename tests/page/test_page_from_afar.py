"""The page by the ways that lead to it from elsewhere: under a prefix, over TLS, to watch only."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from otf_core.rendezvous import read_only_token
from tests.dashboard import proxies, tls
from tests.page.conftest import ROOT

PREFIX = "/user/me/proxy/8000"


@contextmanager
def running(folder: Path, *args: str) -> Iterator[str]:
    """``otf dashboard`` as a process; its link."""
    subprocess.run([sys.executable, str(ROOT / "hatch_build.py")], check=True, capture_output=True)
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@contextmanager
def proxied(port: int, rewrite: proxies.Rewrite) -> Iterator[int]:
    """A proxy in a thread with a loop of its own; its port."""
    ready, found, ended = threading.Event(), list[int](), list[Callable[[], object]]()

    async def serve() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        ended.append(lambda: loop.call_soon_threadsafe(end.set))
        async with proxies.proxy(port, rewrite) as own:
            found.append(own)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="proxy")
    thread.start()
    assert ready.wait(10)
    yield found[0]
    ended[0]()
    thread.join(10)


def looks_right(browser: Browser, link: str, *, watching: bool) -> None:
    """The page comes up, is connected, and complains of nothing."""
    context = browser.new_context(ignore_https_errors=True)
    try:
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        with page.expect_websocket(lambda socket: socket.url.endswith("/api/live")) as opened:
            page.goto(link)
        opened.value.wait_for_event("framereceived")
        expect(page.locator("[data-banner=watching]")).to_have_count(int(watching))
        assert "token" not in page.url
        assert complaints == []
    finally:
        context.close()


@pytest.mark.web
@pytest.mark.parametrize("kind", ["strips", "keeps"])
def test_the_page_works_behind_a_proxy_with_a_prefix(
    browser: Browser, tmp_path: Path, kind: str
) -> None:
    args = () if kind == "strips" else ("--root-path", PREFIX)
    rewrite = proxies.stripping(PREFIX) if kind == "strips" else proxies.keeping
    with running(tmp_path, *args) as link:
        parts = urlsplit(link)
        token = parts.fragment.removeprefix("token=")
        assert parts.port is not None
        with proxied(parts.port, rewrite) as port:
            at = f"http://localhost:{port}{PREFIX}/#token="
            looks_right(browser, at + token, watching=False)
            looks_right(browser, at + read_only_token(token), watching=True)


@pytest.mark.web
def test_the_page_works_over_tls(browser: Browser, tmp_path: Path) -> None:
    cert, key = tls.pair(tmp_path)
    with running(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as link:
        assert link.startswith("https://")
        looks_right(browser, link, watching=False)
