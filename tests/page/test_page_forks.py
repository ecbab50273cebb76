"""Samples, forks, merges and the family of runs, on real ones: what is shown was answered."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.conftest import Open
from tests.page.fake_dashboard import NOW, FakeDashboard, run, session
from tests.page.recorded import living

SOON_MS = 30_000
web = pytest.mark.web


class Rest:
    """The same dashboard without a page."""

    def __init__(self, url: str) -> None:
        self._base, _, self._token = url.partition("#token=")

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(self._base + path, data, headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def asks(self, cmd: str, **payload: Any) -> Any:
        """The data of a reply of the session that trains."""
        sessions = self.get("api/sessions")["sessions"]
        here = next(each for each in sessions if each["connected"])
        body = {"cmd": cmd, "payload": payload}
        return self.get(f"api/sessions/{here['session_id']}/commands", body)["data"]

    def run(self, run_id: str) -> Any:
        runs = self.get("api/runs")["runs"]
        return next(each for each in runs if each["run_id"] == run_id)


@contextlib.contextmanager
def opened(browser: Browser, url: str, width: int = 1440, height: int = 900) -> Iterator[Page]:
    """The page; afterwards nothing may have been complained about in its console."""
    complaints: list[str] = []
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.goto(url)
        yield page
    assert complaints == []


@pytest.fixture
def alive(family: Path, tmp_path: Path) -> Iterator[str]:
    """The family with its trainer; ``both`` is paused at step 240."""
    with living(family, tmp_path / "runs") as url:
        yield url


def is_paused(page: Page, name: str, step: int | None = None) -> None:
    band = page.locator("[data-state]").first
    expect(page.locator(".sentence")).to_contain_text(f"Paused {name} ", timeout=SOON_MS)
    expect(band).to_have_attribute("data-state", "paused")
    if step is not None:
        expect(band).to_have_attribute("data-step", str(step))


def drawn(page: Page) -> None:
    """What was pressed is on the screen."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def receipt(page: Page, text: str) -> None:
    expect(page.locator(".rc").first).to_contain_text(text, timeout=SOON_MS)


@pytest.mark.timeout(120)
def test_hard_samples_are_found_forked_on_and_seen_in_the_family(
    browser: Browser, real_run: tuple[str, Path]
) -> None:
    url, _ = real_run
    rest = Rest(url)
    with opened(browser, url) as page:
        band = page.locator("[data-state]").first
        expect(band).to_have_attribute("data-state", "running", timeout=60_000)
        page.keyboard.press(" ")
        is_paused(page, "shown")
        page.keyboard.press("2")
        expect(page.locator(".drawer .lead")).to_contain_text("Not scanned yet")
        page.get_by_role("button", name="Scan the training set").press("Enter")
        scanned = page.locator("[data-scanned]")
        expect(scanned).to_be_visible(timeout=SOON_MS)
        step = int(str(scanned.get_attribute("data-scanned")))
        assert step == int(str(band.get_attribute("data-step")))
        figures = rest.asks("select")["figures"]
        expect(scanned).to_contain_text(f"{figures['count']:,} samples, scanned at step {step}")

        low = page.locator("[data-handle=from]")
        low.focus()
        page.keyboard.press("PageUp")
        page.keyboard.press("ArrowLeft")
        drawn(page)
        at = float(str(low.get_attribute("aria-valuenow")))
        high = float(str(page.locator("[data-handle=to]").get_attribute("aria-valuenow")))
        assert high == figures["histogram"]["edges"][-1]
        region = {"kind": "region", "minLoss": at, "maxLoss": high}
        told = rest.asks("select", selection=region)
        count = told["count"]
        expect(page.locator(f"[data-selected='{count}']")).to_be_visible()
        rows = page.locator("[data-sample]")
        ids = [int(str(row.get_attribute("data-sample"))) for row in rows.all()]
        assert ids == [each["id"] for each in told["worst"][:10]]
        expect(rows.first.locator("img")).to_have_attribute("src", re.compile("^blob:"))

        page.get_by_role("button", name=f"Fork on these {count:,} samples…").press("Enter")
        dialog = page.get_by_role("dialog")
        expect(
            dialog.locator(".opt", has_text=f"{count:,} samples").locator("input")
        ).to_be_checked()
        dialog.get_by_label("Name").fill("specialist")
        dialog.get_by_role("button", name="steps").click()
        dialog.get_by_label("Steps of its own").fill("20")
        expect(dialog.locator(".cli")).to_contain_text("--steps 20 --name specialist")
        dialog.get_by_role("button", name="Fork", exact=True).press("Enter")
        is_paused(page, "specialist", step)
        receipt(page, f"trains from step {step} on {count:,} samples")

        page.keyboard.press("4")
        node = page.locator(".dag [data-run=specialist]")
        expect(node).to_have_attribute("aria-selected", "true")
        details = page.locator("[data-details=specialist]")
        expect(details).to_contain_text(f"A shown at step {step}")
        expect(details).to_contain_text(f"{count:,} samples: loss ")
        made = rest.run("specialist")["made"]
        assert (made["from"], made["at_step"], made["subset_count"]) == ("shown", step, count)
        assert made["selection"] == region
        node.press("ArrowUp")
        expect(page.locator(".dag [data-run=shown]")).to_be_focused()
        expect(page.locator("[data-details=shown]")).to_contain_text("started new")


@web
@pytest.mark.timeout(200)
def test_a_merge_is_previewed_cancelled_and_made_with_what_is_best(
    browser: Browser, alive: str
) -> None:
    rest = Rest(alive)
    with opened(browser, alive) as page:
        is_paused(page, "both", 240)
        page.locator("body").press("m")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("common ancestor: A @ 120")
        button = dialog.get_by_role("button", name="Evaluate candidates")
        button.press("Enter")
        expect(dialog.locator(".going")).to_contain_text(re.compile("of 7 candidates"))
        # What is told on the way is not to be chosen yet.
        expect(dialog.locator("[data-candidate=linear]")).to_contain_text("≈")
        expect(dialog.locator("[data-candidate=linear] input")).to_be_disabled()
        dialog.get_by_role("button", name="Cancel").first.press("Enter")
        expect(dialog.locator("[role=alert]")).to_contain_text("Cancelled.", timeout=SOON_MS)
        expect(page.locator(".refusal")).to_have_count(0)
        is_paused(page, "both", 240)

        button.press("Enter")
        go = dialog.get_by_role("button", name=re.compile("^Merge with"))
        expect(go).to_be_visible(timeout=SOON_MS)
        rows = dialog.locator("[data-score]")
        shown = {
            str(row.get_attribute("data-candidate")): float(str(row.get_attribute("data-score")))
            for row in rows.all()
        }
        said = rest.asks("merge_preview", parents=["both", "hard"])
        scores = {each["strategy"]: each["score"] for each in said["candidates"]}
        assert shown == {name: score for name, score in scores.items() if score is not None}
        expect(go).to_be_visible(timeout=SOON_MS)  # the same again, from elsewhere
        best = min(shown, key=lambda name: shown[name])
        expect(dialog.locator(f"[data-candidate={best}] input")).to_be_checked()
        expect(dialog.locator("[data-candidate=adapter]")).to_contain_text("not possible")
        expect(dialog.locator("[data-candidate=adapter] input")).to_be_disabled()
        dialog.locator("[data-candidate=ties] input").check()
        expect(dialog.get_by_role("button", name="Merge with TIES")).to_be_visible()
        dialog.locator("[data-candidate=fisher] input").check()
        dialog.get_by_label("New run").fill("soup")
        dialog.get_by_role("button", name="Merge with Fisher").press("Enter")
        is_paused(page, "soup", 240)
        receipt(page, "new run soup")
        made = rest.run("soup")["made"]
        assert (made["kind"], made["strategy"]) == ("merge", "fisher")
        assert [source.split("/")[0] for source in made["sources"]] == ["both", "hard"]
        page.locator("body").press("4")
        expect(page.locator("[data-details=soup]")).to_contain_text("Fisher merge of 2 checkpoints")
        expect(page.locator("[data-details=soup]")).to_contain_text("D both at step 240 and B hard")


@web
@pytest.mark.timeout(200)
def test_runs_are_compared_switched_and_their_results_listed(browser: Browser, alive: str) -> None:
    rest = Rest(alive)
    with opened(browser, alive) as page:
        is_paused(page, "both", 240)
        page.locator("body").press("4")
        page.get_by_role("button", name="Compare", exact=True).click()
        sub = page.locator("[data-sub=compare]")
        for name in ("digits", "gentle"):
            sub.get_by_label(name).uncheck()
        sub.get_by_role("button", name="Compare 2 runs").press("Enter")
        expect(sub.locator("[data-compared]")).to_be_visible(timeout=SOON_MS)
        told = rest.asks("compare", runs=["both", "hard"], on="val")
        expect(sub.locator(f"[data-compared='{told['count']}']")).to_be_visible()
        (pair,) = told["pairs"]
        expect(sub.locator("summary")).to_have_text(
            f"hard does better than both on {pair['better']}, worse on {pair['worse']}"
            + (f", the same on {pair['same']}" if pair["same"] else "")
        )
        apart = sub.locator(".worst tbody tr .mono").all_text_contents()
        assert [int(each) for each in apart] == [each["id"] for each in pair["apart"]]

        page.get_by_role("button", name="Results", exact=True).click()
        rows = page.locator("[data-sub=results] tbody tr")
        expect(rows).to_have_count(len(rest.asks("results")["results"]))
        expect(rows.filter(has_text="the end of hard")).to_contain_text("validate")

        # A run is switched to from its node, and its parent's details say what it left.
        page.locator(".dag [data-run=hard]").click()
        page.get_by_role("button", name="Switch to", exact=True).press("Enter")
        is_paused(page, "hard", 180)
        expect(page.locator(".dag [data-run=both]")).to_contain_text("left")
        expect(page.get_by_role("button", name="Switch to", exact=True)).to_have_attribute(
            "aria-disabled", "true"
        )
        expect(page.locator("#switch-why")).to_have_text("Switch to: it trains now.")
        expect(page.locator("[data-details=hard]")).to_contain_text("251 of 1,257; ")
        page.locator(".dag [data-run=both]").click()
        page.get_by_role("button", name="Switch to", exact=True).press("Enter")
        is_paused(page, "both", 240)


@web
@pytest.mark.timeout(200)
def test_a_refusal_says_why_and_that_nothing_changed(browser: Browser, alive: str) -> None:
    with opened(browser, alive) as page:
        is_paused(page, "both", 240)
        fork = page.locator("[data-cmd=fork] .btn")
        fork.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(fork).to_be_focused()
        page.keyboard.press("Enter")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Batch size").fill("-3")
        go = dialog.get_by_role("button", name="Fork", exact=True)
        expect(go).to_have_attribute("aria-disabled", "true")
        dialog.get_by_label("Batch size").fill("")
        dialog.get_by_label("Name").fill("hard")
        go.click()
        refusal = page.locator(".refusal")
        expect(refusal).to_contain_text("Nothing changed.", timeout=SOON_MS)
        expect(refusal).to_contain_text("hard")
        is_paused(page, "both", 240)
        expect(page.locator("[data-cmd=fork] .ctl-n")).to_have_text("refused: see why")
        # A set that there is none of says so in its own place.
        page.locator("body").press("2")
        page.get_by_role("button", name="Validation", exact=True).click()
        expect(page.locator("[data-set=val] .lead")).to_contain_text("Not scanned yet")


@web
@pytest.mark.timeout(200)
def test_what_is_chosen_is_left_out_drawn_more_often_and_exported(
    browser: Browser, alive: str
) -> None:
    rest = Rest(alive)
    with opened(browser, alive) as page:
        is_paused(page, "both", 240)
        page.locator("body").press("2")
        page.get_by_role("button", name="Scan the training set").click()
        expect(page.locator("[data-selected]")).to_be_visible(timeout=SOON_MS)
        count = int(str(page.locator("[data-selected]").get_attribute("data-selected")))
        page.get_by_role("button", name="Export these").click()
        written = page.locator(".written")
        expect(written).to_contain_text(f"{count:,} rows written", timeout=SOON_MS)
        path = Path(written.locator("code").inner_text())
        assert len(path.read_text().splitlines()) == count + 1

        page.get_by_role("button", name="Clusters").click()
        expect(page.locator(".selbox")).to_contain_text("Cluster 4 of 4 by loss")
        page.get_by_role("button", name="Doubtful labels").click()
        doubtful = rest.asks("select", selection={"kind": "label_noise"})["count"]
        expect(page.locator(f"[data-selected='{doubtful}']")).to_be_visible()
        page.get_by_role("button", name="Range of losses").click()
        region = page.locator("[data-selected]", has_text="Loss")
        expect(region).to_be_visible()
        few = int(str(region.get_attribute("data-selected")))
        page.get_by_role("button", name="Draw these more often…").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("9 times as often")
        dialog.get_by_label("Name").fill("often")
        dialog.get_by_role("button", name="Fork", exact=True).click()
        is_paused(page, "often", 240)
        assert rest.run("often")["made"]["subset_count"] is None

        page.get_by_label("More commands").click()
        page.get_by_role("button", name="Undo").last.click()
        is_paused(page, "both", 240)
        page.get_by_role("button", name="Leave these out…").click()
        dialog.get_by_label("Name").fill("without")
        dialog.get_by_role("button", name="Fork", exact=True).click()
        is_paused(page, "without", 240)
        assert rest.run("without")["made"]["subset_count"] == 1257 - few


@web
@pytest.mark.timeout(200)
def test_a_reload_in_the_middle_of_a_scan_finds_it_and_cancels_it(
    browser: Browser, real_run: tuple[str, Path]
) -> None:
    url, _ = real_run
    with opened(browser, url) as page:
        band = page.locator("[data-state]").first
        expect(band).to_have_attribute("data-state", "running", timeout=60_000)
        page.locator("body").press("2")
        page.get_by_role("button", name="Scan in the background").click()
        going = page.locator(".going")
        expect(going).to_contain_text(re.compile(r"of 1,257 samples"), timeout=SOON_MS)
        page.reload()
        expect(going).to_contain_text("while it trains", timeout=SOON_MS)
        expect(going).to_contain_text(re.compile(r"of 1,257 samples"), timeout=SOON_MS)
        going.get_by_role("button", name="Cancel").click()
        expect(going).to_have_count(0, timeout=SOON_MS)
        receipt(page, "cancelled, the run is as it was")
        expect(band).to_have_attribute("data-state", "running")

        # Scanned while it stands, and then it trains on: that is said.
        page.get_by_role("button", name="Scan the training set", exact=True).click()
        expect(page.locator("[data-scanned]")).to_be_visible(timeout=SOON_MS)
        expect(page.locator(".stale-note")).to_contain_text(
            re.compile(r"That was \d+ steps? ago; weights have moved since\.")
        )


EVIL = "<img src=x onerror=document.title='owned'>"


@web
def test_forty_runs_with_hostile_names_are_a_graph_that_scrolls(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    names = [EVIL, *(f"fork{n}" for n in range(40))]
    dashboard.add(session(60, run_id=EVIL, run_name=EVIL), [], run(run_id=EVIL, run_name=EVIL))
    for place, name in enumerate(names[1:], 1):
        parent = names[max(0, place - 1) // 3]
        made = {"kind": "fork", "at_step": 10 * place, "subset_count": 7}
        row = run(run_id=name, run_name=name, parents=[parent], made=made, created_ts=NOW + place)
        dashboard.runs[name] = row
    for width in (1440, 360):
        page = open_page(width=width, height=800)
        page.locator("[data-panel=lineage]").click()
        expect(page.locator(".dag [data-run]")).to_have_count(41)
        expect(page.locator(".dag [data-run]").first).to_contain_text(EVIL)
        assert page.locator(".drawer img").count() == 0
        assert page.title() != "owned"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        node = page.locator(".dag [data-run][aria-selected=true]")
        node.focus()
        for _ in range(3):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("End")
        last = page.locator(".dag [data-run=fork39]")
        expect(last).to_be_focused()
        expect(last).to_be_in_viewport()
        expect(page.locator("[data-details=fork39]")).to_contain_text("7 samples")
