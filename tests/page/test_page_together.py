"""Two browsers on one run, one of them behind a slow line: each sees what the other does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.recorded import living
from tests.page.test_page_forks import opened

SOON_MS = 30_000
SLOW = {"offline": False, "latency": 400, "downloadThroughput": 60_000, "uploadThroughput": 30_000}

web = pytest.mark.web


@pytest.fixture
def alive(family: Path, tmp_path: Path) -> Iterator[str]:
    with living(family, tmp_path / "runs") as url:
        yield url


def sees(page: Page, cmd: str, outcome: str) -> None:
    receipt = page.locator(".rc").first
    expect(receipt).to_contain_text(cmd, timeout=SOON_MS)
    expect(receipt).to_contain_text(outcome, timeout=SOON_MS)


@web
@pytest.mark.timeout(120)
def test_what_one_browser_does_the_other_is_told_with_who_it_was(
    browser: Browser, alive: str
) -> None:
    with opened(browser, alive) as one, opened(browser, alive) as other:
        for page in (one, other):
            expect(page.locator("[data-state=paused]")).to_be_visible(timeout=SOON_MS)
        one.locator("body").press("v")
        for page in (one, other):
            sees(page, "Validate", "at step 240")
        other.locator(".rc").first.click()
        trace = other.get_by_role("dialog")
        expect(trace).to_contain_text("sent from another page, Chrome on Linux")
        other.keyboard.press("Escape")
        other.locator("body").press("c")
        for page in (one, other):
            sees(page, "Save checkpoint", "step 240")
        one.locator(".rc").first.click()
        expect(one.get_by_role("dialog")).to_contain_text("sent from another page")


@web
@pytest.mark.timeout(120)
def test_a_slow_line_shows_the_run_and_holds_up_nobody(browser: Browser, alive: str) -> None:
    with opened(browser, alive) as quick, browser.new_context() as context:
        slow = context.new_page()
        line = context.new_cdp_session(slow)
        line.send("Network.enable")
        line.send("Network.emulateNetworkConditions", SLOW)
        slow.goto(alive, wait_until="commit")
        expect(quick.locator("[data-state=paused]")).to_be_visible(timeout=SOON_MS)
        quick.locator("body").press("v")
        sees(quick, "Validate", "at step 240")
        expect(slow.locator("[data-state=paused]")).to_be_visible(timeout=SOON_MS)
        sees(slow, "Validate", "at step 240")
        expect(slow.locator("[data-metric=loss]").first).not_to_have_text(
            "\N{EN DASH}", timeout=SOON_MS
        )
