"""Many runs on the page, in states that are not worth training for."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Open
from tests.page.fake_dashboard import NOW, FakeDashboard, history, run, session, train_step

pytestmark = pytest.mark.web

STEPS = 120


def fork(dashboard: FakeDashboard, number: int) -> None:
    """A run of a process of its own that left the first one at step 60."""
    name, key = f"fork-{number}", f"f{number}"
    events: list[dict[str, Any]] = [
        train_step(seq, 60 + seq, 40, run_id=name, session_id=key) for seq in range(1, 41)
    ]
    made = {"kind": "fork", "from": "resnet18-baseline", "at_step": 60}
    about = run(
        run_id=name, run_name=name, session_ids=[key], parents=["resnet18-baseline"], made=made,
        created_ts=NOW - 500 + number, checkpoints=[],
    )  # fmt: skip
    at = session(
        100, session_id=key, run_id=name, run_name=name, state="journal", connected=False,
        started_ts=NOW - 500 + number, last_seq=40,
    )  # fmt: skip
    dashboard.add(at, events, about)


def test_where_there_are_many_the_lanes_scroll_and_the_one_in_focus_is_on_top(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    for number in range(1, 9):
        fork(dashboard, number)
    page = open_page()
    lanes = page.locator(".tl .lane")
    expect(lanes).to_have_count(9)
    expect(lanes.first).to_contain_text("resnet18-baseline")
    sizes = page.evaluate(
        "(() => { const one = document.querySelector('.tl-s');"
        " return [one.clientHeight, one.scrollHeight]; })()"
    )
    assert sizes[0] == 6 * 22
    assert sizes[1] >= 9 * 22
    lanes.nth(5).click()
    expect(lanes.first).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".lr.on")).to_contain_text("fork-5")
    # From the sixth run on the colours come again, and the line is dashed.
    assert page.locator(".track.dash").count() == 4
    said = page.locator(".mk[data-kind=fork]").first.get_attribute("aria-label")
    assert said is not None
    assert said.count("forked to") == 8


def test_a_run_of_the_project_that_is_not_kin_is_drawn_when_it_is_asked_for(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    fork(dashboard, 1)
    dashboard.runs["fork-1"]["parents"] = []
    page = open_page()
    expect(page.locator(".tl .lane")).to_have_count(1)
    page.get_by_role("button", name="1 other run").click()
    page.get_by_label("fork-1").check()
    expect(page.locator(".tl .lane")).to_have_count(2)
    expect(page.locator(".lr")).to_have_count(2)


def test_a_tap_on_a_curve_opens_a_sheet_that_fits_the_phone(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page(width=360, height=740)
    over = page.locator(".hero .u-over")
    expect(over).to_be_visible()
    over.scroll_into_view_if_needed()
    over.click(position={"x": 120, "y": 60})
    menu = page.get_by_role("menu")
    expect(menu).to_contain_text("resnet18-baseline, step")
    box = menu.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 740 - 58
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    menu.press("Escape")
    expect(menu).to_have_count(0)


def test_a_drag_zooms_and_opens_nothing_and_a_double_click_goes_back(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    over = page.locator(".hero .u-over")
    expect(over).to_be_visible()
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 40, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="reset zoom")).to_be_visible()
    expect(page.get_by_role("menu")).to_have_count(0)
    page.mouse.dblclick(box["x"] + 300, box["y"] + 40)
    expect(page.get_by_role("button", name="reset zoom")).to_have_count(0)
    expect(page.get_by_role("menu")).to_have_count(0)


def test_the_menu_rolls_back_to_the_checkpoint_below_and_says_why_where_there_is_none(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(400), history(400), run())
    page = open_page()
    plot = page.locator(".hero .plot")
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", "400")
    plot.focus()
    plot.press("Home")
    plot.press("Enter")
    menu = page.get_by_role("menu")
    none = menu.locator("[data-act=rollback]")
    expect(none).to_contain_text("no checkpoint at or below, first at step 100")
    expect(none).to_have_attribute("aria-disabled", "true")
    none.click(force=True)
    expect(menu).to_be_visible()
    menu.press("Escape")
    assert page.evaluate("document.activeElement.className") == "plot"
    plot.press("End")
    plot.press("Enter")
    expect(menu.locator("[data-act=rollback]")).to_contain_text(
        "checkpoint 300 + 100 steps (6 s), approximate"
    )
    menu.press("r")
    page.get_by_role("button", name="Roll back to step 300").click()
    command = dashboard.command()
    assert (command["cmd"], command["payload"]) == ("rollback", {"checkpoint": "300-manual"})


def test_a_note_is_sent_with_the_step_it_is_made_for(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    plot = page.locator(".hero .plot")
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    plot.focus()
    for _ in range(3):
        plot.press("Shift+ArrowLeft")
    page.keyboard.press("n")
    add = page.get_by_role("button", name="Add note")
    expect(add).to_have_attribute("aria-disabled", "true")
    page.get_by_role("textbox", name="Note").fill("  looks odd ")
    add.click()
    command = dashboard.command()
    assert (command["cmd"], command["payload"]) == ("note", {"text": "looks odd", "step": 90})
