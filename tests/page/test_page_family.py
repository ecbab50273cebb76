"""A family of real runs on one page: every run can be looked at, and says what its journal says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.page import write_journal
from tests.page import recorded
from tests.page.fake_dashboard import FakeDashboard

pytestmark = [pytest.mark.web, pytest.mark.timeout(150)]

RUNS = ["digits", "hard", "gentle", "both"]


@pytest.fixture(scope="module")
def url(
    family: Path, tmp_path_factory: pytest.TempPathFactory, dashboard: FakeDashboard
) -> Iterator[str]:
    """Of a dashboard on the family; `dashboard` has built the page."""
    with recorded.served(family, tmp_path_factory.mktemp("served") / "runs") as served:
        yield served


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        shown = context.new_page()
        complaints: list[str] = []
        shown.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto(url)
        expect(shown.locator(".lr")).to_have_count(4)
        expect(shown.locator(".hero .u-over")).to_be_visible()
        yield shown
        assert complaints == []


def steps_of(events: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """(run, step) -> its trainStep, as it was done last."""
    return {(e["run_id"], e["step"]): e for e in events if e["type"] == "trainStep"}


def focus(page: Page, name: str) -> None:
    page.locator(".lr", has_text=name).click()
    expect(page.locator(".lr.on")).to_contain_text(name)


def put_cursor(page: Page, step: int) -> None:
    """By the keyboard, as the pointer has no such aim."""
    plot = page.locator(".hero .plot")
    plot.focus()
    plot.press("End")
    at = int(plot.get_attribute("aria-valuenow") or 0)
    for _ in range((at - step) // 10):
        plot.press("Shift+ArrowLeft")
    for _ in range((at - step) % 10):
        plot.press("ArrowLeft")
    expect(plot).to_have_attribute("aria-valuenow", str(step))


def beside(page: Page) -> dict[str, tuple[int, float]]:
    """Run -> event and loss, of the runs that are drawn beside the one in focus."""
    found: list[list[Any]] = page.evaluate(
        "[...document.querySelectorAll('[data-run-metric=loss]')].map((one) =>"
        " [one.dataset.run, Number(one.dataset.runSeq), Number(one.dataset.runValue)])"
    )
    return {run: (seq, value) for run, seq, value in found}


def test_every_run_is_shown_and_its_numbers_are_those_of_its_journal(
    page: Page, family: Path
) -> None:
    events = recorded.journal(family)
    steps = steps_of(events)
    last = {run: max(step for name, step in steps if name == run) for run in RUNS}
    assert page.locator(".lr").all_inner_texts() != []
    for run in RUNS:
        focus(page, run)
        expect(page.locator(".sentence")).to_contain_text(run)
        own = page.locator(".hero [data-metric=loss]")
        event = steps[run, last[run]]
        expect(own).to_have_attribute("data-seq", str(event["event_seq"]))
        assert float(own.get_attribute("data-value") or 0) == event["loss"]
        others = {
            f"family/{name}": (
                steps[name, last[name]]["event_seq"],
                steps[name, last[name]]["loss"],
            )
            for name in RUNS
            if name != run
        }
        assert beside(page) == others


def test_at_the_cursor_each_run_says_its_value_or_that_it_has_none(
    page: Page, family: Path
) -> None:
    steps = steps_of(recorded.journal(family))
    focus(page, "digits")
    put_cursor(page, 150)
    own = page.locator(".hero [data-metric=loss]")
    expect(own).to_have_attribute("data-seq", str(steps["digits", 150]["event_seq"]))
    hard = steps["hard", 150]
    assert beside(page) == {"family/hard": (hard["event_seq"], hard["loss"])}
    expect(page.locator(".lr", has_text="both")).to_contain_text("—")


def test_a_run_that_was_left_says_so_and_cannot_be_steered(page: Page) -> None:
    focus(page, "digits")
    expect(page.locator(".state")).to_have_attribute("data-state", "left")
    expect(page.locator(".sentence")).to_contain_text("Left digits at step 200")
    expect(page.get_by_role("button", name=re.compile("^Pause")).first).to_have_attribute(
        "aria-disabled", "true"
    )
    page.locator(".switch").click()
    names = page.locator(".menu .item.run b").all_inner_texts()
    assert sorted(names) == sorted(RUNS)
    page.locator(".menu .item.run", has_text="hard").click()
    expect(page.locator(".sentence")).to_contain_text("hard")


def test_forks_leave_and_merges_join_their_lanes_at_the_true_step(page: Page) -> None:
    found = page.evaluate(
        """() => {
          const axis = document.querySelector('.g .axis');
          const [left, right] = [axis.x1.baseVal.value, axis.x2.baseVal.value];
          const end = Number(document.querySelector('.hero .plot').ariaValueMax);
          const step = (x) => (x - left) / (right - left) * end;
          const names = [...document.querySelectorAll('.tl .lane .clip')];
          const lanes = names.map((one) => one.textContent);
          return [...document.querySelectorAll('.track')].flatMap((track) =>
            [...track.querySelectorAll('.join')].map((path) => {
              const start = path.getPointAtLength(0);
              const lane = lanes[Math.round((start.y - 11) / 22)];
              return [track.dataset.run, lane, Math.round(step(start.x))];
            }));
        }"""
    )
    assert sorted(found) == [
        ["family/both", "digits", 200],
        ["family/both", "gentle", 260],
        ["family/gentle", "digits", 200],
        ["family/hard", "digits", 120],
    ]


def test_stacked_plots_and_the_timeline_share_their_edges(page: Page) -> None:
    page.locator("body").press("g")
    expect(page.locator(".charts.stack")).to_be_visible()
    expect(page.locator(".stack .u-over").nth(4)).to_be_attached()
    page.wait_for_function(
        """() => {
          const all = [...document.querySelectorAll('.u-over, .g .axis')];
          const edges = all.map((one) => one.getBoundingClientRect());
          const spread = (of) => Math.max(...edges.map(of)) - Math.min(...edges.map(of));
          return edges.length > 5 && spread((e) => e.left) <= 1 && spread((e) => e.right) <= 1;
        }"""
    )
    page.reload()  # the layout is remembered
    expect(page.locator(".charts.stack")).to_be_visible()
    page.locator("body").press("g")
    expect(page.locator(".charts.stack")).to_have_count(0)


def test_a_run_is_hidden_with_alt_and_a_small_chart_becomes_the_large_one(page: Page) -> None:
    focus(page, "digits")
    page.locator(".lr", has_text="hard").click(modifiers=["Alt"])
    expect(page.locator(".lr", has_text="hard")).to_contain_text("hidden")
    assert "family/hard" not in beside(page)
    page.locator(".lr", has_text="hard").click(modifiers=["Alt"])
    expect(page.locator(".lr", has_text="hard")).not_to_contain_text("hidden")
    page.get_by_role("figure", name="Accuracy").get_by_role("button", name="Accuracy").click()
    expect(page.locator(".hero .ch-t")).to_have_text("Accuracy")
    expect(page.get_by_role("figure", name="Train loss")).to_be_visible()


def test_the_menu_at_a_step_says_what_it_would_cost_and_its_link_leads_back(
    page: Page, url: str
) -> None:
    focus(page, "gentle")
    put_cursor(page, 250)
    page.locator(".hero .plot").press("Enter")
    menu = page.get_by_role("menu")
    expect(menu).to_contain_text("gentle, step 250")
    expect(menu.locator("[data-act=rollback]")).to_contain_text("not possible: not training")
    menu.press("l")
    expect(menu).to_have_count(0)
    assert page.evaluate("document.activeElement.className") == "plot"
    address = page.evaluate("location.href")
    assert "token" not in address
    assert address.endswith("#run=family%2Fgentle&step=250")
    page.goto("about:blank")
    page.goto(address + "&" + url.partition("#")[2])
    expect(page.locator(".lr.on")).to_contain_text("gentle")
    expect(page.locator(".hero .at")).to_have_text("at step 250")


def test_marks_are_walked_along_and_a_mark_tells_what_happened(page: Page) -> None:
    focus(page, "digits")
    page.locator("body").press("]")
    page.keyboard.press("Home")
    marks = page.locator(".mk")
    marks.first.focus()
    page.keyboard.press("ArrowRight")
    assert "warm-up is over" in page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("Enter")
    menu = page.get_by_role("menu")
    expect(menu).to_contain_text("step 30")
    expect(menu).to_contain_text("note at step 30: warm-up is over")
    page.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    assert "warm-up is over" in page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("[")
    assert "step 0" in page.evaluate("document.activeElement.ariaLabel")


def test_a_trainer_does_what_the_menu_at_a_step_asks_for(
    browser: Browser, family: Path, tmp_path: Path, dashboard: FakeDashboard
) -> None:
    with (
        recorded.living(family, tmp_path / "runs") as url,
        browser.new_context(viewport={"width": 1440, "height": 900}) as context,
    ):
        page = context.new_page()
        page.goto(url)
        expect(page.locator(".state")).to_have_attribute("data-state", "paused", timeout=60_000)
        put_cursor(page, 220)
        page.locator(".hero .plot").press("Enter")
        menu = page.get_by_role("menu")
        rollback = menu.locator("[data-act=rollback]")
        expect(rollback).to_contain_text("checkpoint 200 + 20 steps")
        menu.press("n")
        page.get_by_role("textbox", name="Note").fill("here it turns")
        page.get_by_role("button", name="Add note").click()
        mark = page.get_by_role("button", name=re.compile("note at step 220: here it turns"))
        expect(mark).to_be_visible(timeout=20_000)
        put_cursor(page, 220)
        page.locator(".hero .plot").press("Enter")
        rollback.click()
        expect(page.get_by_role("button", name="Roll back to step 200")).to_be_visible()
        page.get_by_role("button", name="Roll back to step 200").click()
        expect(page.locator(".state")).to_have_attribute("data-step", "200", timeout=20_000)


def test_a_long_run_is_shown_from_buckets_and_finer_where_one_looks(
    browser: Browser, tmp_path: Path, dashboard: FakeDashboard
) -> None:
    steps = 9_000
    write_journal(tmp_path, steps)
    with (
        recorded.dashboard(tmp_path) as url,
        browser.new_context(viewport={"width": 1440, "height": 900}) as context,
    ):
        page = context.new_page()
        page.goto(url)
        own = page.locator(".hero [data-metric=loss]")
        expect(own).to_have_attribute("data-step", str(steps), timeout=30_000)
        expect(own).to_have_attribute("data-seq", str(steps + 2))  # two events came before
        over = page.locator(".hero .u-over").bounding_box()
        assert over is not None
        with page.expect_response(re.compile("metrics.*from=")) as finer:
            page.mouse.move(over["x"] + over["width"] * 0.5, over["y"] + 20)
            page.mouse.down()
            page.mouse.move(over["x"] + over["width"] * 0.55, over["y"] + 20, steps=3)
            page.mouse.up()
        assert finer.value.json()["bucket_steps"] == 1
        page.mouse.move(over["x"] + over["width"] * 0.5, over["y"] + 20)
        at = int(page.locator(".hero .plot").get_attribute("aria-valuenow") or 0)
        # In the zoom every step is there, not only those of the coarse buckets.
        expect(own).to_have_attribute("data-step", str(at))
        page.locator("body").press("z")
        expect(page.get_by_role("button", name="reset zoom")).to_have_count(0)
