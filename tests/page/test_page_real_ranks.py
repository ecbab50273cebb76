"""A real run of two ranks on the page: one is stopped, hangs, and is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.page.test_page_states import sound
from tests.plugin.test_ranks_lost import started

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
PATIENT_MS = 60_000


@pytest.fixture
def dashboard_of(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The page's address, and where trainers dial."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--force"]
    with subprocess.Popen(
        [*command, "--dir", str(tmp_path / "runs"), "--control-port", str(port)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            yield url, port
        finally:
            process.terminate()
            process.wait(20)


def test_two_ranks_are_shown_as_they_fare_and_as_one_of_them_is_lost(
    browser: Browser, dashboard_of: tuple[str, int], tmp_path: Path
) -> None:
    url, port = dashboard_of
    script = ("-m", "tests.plugin.ranks_lost", str(tmp_path), str(port))
    with (
        started(tmp_path, *script) as process,
        browser.new_context(viewport={"width": 1440, "height": 900}) as context,
    ):
        page = context.new_page()
        page.goto(url)
        band = page.locator(".state")
        expect(band).to_have_attribute("data-state", "paused", timeout=PATIENT_MS)
        expect(page.locator(".facts")).to_contain_text("2 ranks")
        page.get_by_role("button", name=re.compile("^Resume")).first.click()
        expect(band).to_have_attribute("data-state", "running", timeout=PATIENT_MS)
        page.locator("[data-panel=health]").click()
        rows = page.locator(".ranks tbody tr")
        expect(rows).to_have_count(2, timeout=PATIENT_MS)
        expect(rows.nth(1)).to_contain_text("trains", timeout=PATIENT_MS)
        expect(rows.nth(1).locator("td.num").first).to_have_text(re.compile(r"\d"))
        sound(page)

        bed = tmp_path / "sleep"
        bed.touch()
        expect(band).to_have_attribute("data-state", "stalled", timeout=PATIENT_MS)
        expect(page.locator(".sentence")).to_contain_text(
            re.compile(r"rank 1 in ranks_lost\.py:\d+ in training_step, rank 0 in \w+")
        )
        expect(page.locator(".hang .place")).to_have_count(2)
        expect(page.locator(".hang")).to_contain_text("Rank 1 is in no call to other ranks")
        sound(page)
        bed.unlink()
        expect(band).to_have_attribute("data-state", "running", timeout=PATIENT_MS)

        pid = int((tmp_path / "pid.1").read_text())
        os.kill(pid, signal.SIGSTOP)
        expect(page.locator(".sentence")).to_contain_text(
            re.compile(r"rank 1 silent for \d+ s|rank 1 not heard"), timeout=PATIENT_MS
        )
        os.kill(pid, signal.SIGCONT)
        expect(page.locator(".sentence")).not_to_contain_text("rank 1", timeout=PATIENT_MS)
        expect(band).to_have_attribute("data-state", "running", timeout=PATIENT_MS)

        os.kill(pid, signal.SIGKILL)
        expect(band).to_have_attribute("data-state", "failed", timeout=PATIENT_MS)
        expect(page.locator(".sentence")).to_contain_text(
            re.compile(r"rank 1 on .* ended with exit code -9 \(SIGKILL\); the checkpoint at \d+")
        )
        expect(page.locator(".hang code")).to_have_text(re.compile(r"^OTF_RESUME=.*ranks_lost"))
        process.communicate(timeout=PATIENT_MS / 1000)
        expect(band).to_have_attribute("data-state", "failed")
        page.reload()
        expect(band).to_have_attribute("data-state", "failed", timeout=PATIENT_MS)
        expect(page.locator(".sentence")).to_contain_text("rank 1 on ")
