"""The page shows the run, not a picture of one: what is on the screen is in the journal."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect


def journal_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("browser/shown/journal/*.jsonl")
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def journal_with(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The journal once it holds such an event: it is written ten times a second."""
    turn = threading.Event()
    for _ in range(200):
        events = journal_of(folder)
        if any(event["type"] == kind for event in events):
            return events
        turn.wait(0.05)
    msg = f"no {kind} in the journal"
    raise TimeoutError(msg)


def shown(page: Page) -> dict[str, tuple[int, float]]:
    """Metric -> the event it says it comes from, and the value."""
    cells = page.locator("[data-metric][data-seq]").all()
    read = [(c.get_attribute("data-metric"), c.get_attribute("data-seq"), c) for c in cells]
    return {
        str(name): (int(str(seq)), float(str(cell.get_attribute("data-value"))))
        for name, seq, cell in read
    }


@pytest.mark.timeout(120)
def test_what_the_screen_says_is_what_the_journal_says(
    browser: Browser, real_run: tuple[str, Path]
) -> None:
    url, folder = real_run
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        page.goto(url)
        band = page.locator("[data-state]").first
        expect(band).to_have_attribute("data-state", "running", timeout=60_000)
        # Past a validation, so that every chart that can be has a value.
        expect(page.locator("[data-metric=val_loss][data-seq]").first).to_be_attached(
            timeout=60_000
        )
        page.get_by_role("button", name=re.compile("^Pause")).first.click()
        expect(band).to_have_attribute("data-state", "paused", timeout=20_000)
        # "paused" itself is told when the file of the pause is complete, and the reply after it.
        expect(page.locator(".rc").first).to_contain_text("applied at step", timeout=20_000)
        events = {e["event_seq"]: e for e in journal_with(folder, "paused")}
        paused = next(e for e in events.values() if e["type"] == "paused")
        expect(band).to_have_attribute("data-step", str(paused["step"]))

        last = max(s for s, e in events.items() if e["type"] == "trainStep")
        expect(page.locator(f"[data-metric=loss][data-seq='{last}']").first).to_be_attached()
        values = shown(page)
        assert {"loss", "val_loss", "accuracy", "lr", "grad_norm", "weight_norm"} <= values.keys()
        for name, (seq, value) in values.items():
            event = events[seq]
            assert event["type"] == "trainStep"
            told = event[name] if name in event else event["metrics"][name]
            assert value == told, name
        assert values["loss"][0] == last
        assert events[last]["step"] == paused["step"]

        page.get_by_role("button", name=re.compile("^Resume")).first.click()
        expect(band).to_have_attribute("data-state", "running", timeout=20_000)
        expect(page.locator(f"[data-metric=loss][data-seq='{last}']")).to_have_count(0)
