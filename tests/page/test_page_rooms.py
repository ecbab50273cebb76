"""Health, the log, checkpoints, notices, banners and the page without a run."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.axe import findings
from tests.page.conftest import Open
from tests.page.fake_dashboard import (
    CAPABILITIES,
    NOW,
    FakeDashboard,
    event,
    history,
    run,
    session,
)
from tests.page.test_page_commands import applied, nothing_sent

STEPS = 60
CHECKS = ["dist", "throughput", "activations", "numerics", "determinism"]


@pytest.fixture
def page(open_page: Open, dashboard: FakeDashboard) -> Page:
    able = [*CAPABILITIES, "cancel", "fork", *(f"{check}_health" for check in CHECKS)]
    dashboard.add(session(STEPS, max_steps=100, capabilities=able), history(STEPS), run())
    opened = open_page()
    expect(opened.locator("[data-metric=loss]").first).to_have_attribute("data-step", str(STEPS))
    return opened


def test_a_check_is_run_shows_how_far_it_is_and_can_be_cancelled(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("5")
    row = page.locator("[data-check=numerics_health]")
    expect(page.locator(".check")).to_have_count(5)
    row.get_by_role("button", name="Run Numerics").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("numerics_health", {})
    expect(row.locator(".ck-2")).to_contain_text("waits for step end")
    dashboard.update("s1", state="validating")
    numbers = {"request_id": sent["id"], "cmd": "numerics_health", "done": 3, "total": 8}
    dashboard.emit(
        "s1",
        event(901, "state", state="validating", previous="running"),
        event(902, "progress", **numbers, eta_s=90.0),
    )
    expect(row.locator(".ck-2")).to_contain_text("3 of 8, 1 min left")
    expect(page.locator(".sentence")).to_contain_text("3 of 8, training continues in 1 min")
    other = page.locator("[data-check=determinism_health]")
    expect(other.locator(".ck-2")).to_have_text("not possible: after this")
    row.get_by_role("button", name="Cancel Numerics").click()
    cancel = dashboard.command()
    assert (cancel["cmd"], cancel["payload"]) == ("cancel", {"request_id": sent["id"]})

    dashboard.update("s1", state="running")
    dashboard.emit("s1", event(903, "state", state="running", previous="validating"))
    layers = [{"layer": "body.0", "ratio": 0.25}]
    found = {"ok": False, "text": "A step is large.\nbody.0  0.25", "layers": layers, "loss": 0.5}
    dashboard.receipt(sent, "applied", **applied(STEPS, **found))
    expect(row).to_contain_text("something found at step 60")
    expect(row.locator("pre")).to_have_text("A step is large.\nbody.0  0.25")
    row.get_by_text("Figures").click()
    expect(row.locator("table td").first).to_have_text("body.0")
    # What another has asked and is large is left out of its receipt, and is asked for.
    large = {"id": "c9", "ok": True, "data": {"ok": True, "text": "All the same.", "step": STEPS}}
    dashboard.answers["c9"] = large
    elsewhere = {"id": "c9", "cmd": "determinism_health", "payload": {}, "session_id": "s1"}
    left_out = {"reply": {**large, "data": None}, "answered_ts": NOW, "left_out_bytes": 70_000}
    dashboard.receipt(elsewhere, "applied", **left_out)
    expect(other.locator("pre")).to_have_text("All the same.")
    assert "\n".join(findings(page)) == ""


def test_a_stall_opens_health_with_where_the_thread_is(
    page: Page, dashboard: FakeDashboard
) -> None:
    expect(page.locator(".drawer")).to_have_count(0)
    place = {
        "where": "train.py:91 in collate",
        "stack": ["train.py:88 in step", "train.py:91 in collate"],
    }
    dashboard.emit("s1", event(901, "stall", step=STEPS, seconds=13.0, over=False, **place))
    expect(page.locator(".drawer")).to_have_attribute("aria-label", "Health")
    expect(page.locator(".hang h3")).to_have_text("Stalled 43 s at step 60")
    expect(page.locator(".hang .stack .ln")).to_have_count(2)
    expect(page.locator(".hang")).to_contain_text("Newest checkpoint: step 300, approximate")
    expect(page.get_by_role("alert")).to_contain_text("Stalled 43 s")
    assert page.title().startswith("STALLED")
    expect(page.get_by_role("button", name="Notifications, 1 new")).to_be_visible()
    for check in page.locator(".check").all():
        assert check.get_by_role("button").get_attribute("aria-disabled") == "true"
    assert "\n".join(findings(page)) == ""


@pytest.mark.web
def test_exactness_is_said_with_its_reasons(page: Page, dashboard: FakeDashboard) -> None:
    page.locator("body").press("5")
    reasons = ["Timer has no state", "cuDNN may choose another algorithm"]
    text = "not exact because of 2 things"
    dashboard.emit("s1", event(901, "exactness", exact=False, text=text, reasons=reasons))
    expect(page.locator(".health .blk").first).to_contain_text("goes on approximately, for 2")
    assert page.locator(".health .reasons li").all_text_contents() == reasons


def test_fifty_thousand_lines_cost_a_screenful_and_one_puts_the_cursor_on_its_step(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("6")
    lines = [
        event(1000 + i, "log", level="info", text=f"line {i}", step=1 + i % STEPS)
        for i in range(50_000)
    ]
    for at in range(0, len(lines), 10_000):
        dashboard.emit("s1", *lines[at : at + 10_000])
    expect(page.locator(".log-n")).to_contain_text("50,000 lines")
    assert page.locator(".log li").count() < 120
    page.get_by_role("searchbox", name="Filter the log").fill("line 41233")
    expect(page.locator(".log-n")).to_contain_text("1 line of 50,000")
    page.locator(".log li").click()
    expect(page.locator(".log-w")).to_contain_text("line 41233")
    expect(page.locator(".hero .at")).to_have_text(f"at step {1 + 41_233 % STEPS}")
    page.get_by_role("searchbox", name="Filter the log").fill("no such line")
    expect(page.locator(".log-n")).to_have_text("No line matches.")
    page.get_by_role("searchbox", name="Filter the log").fill("")
    page.locator(".log").press("End")
    expect(page.locator(".log li[aria-selected=true]")).to_be_in_viewport()
    expect(page.locator(".log-w")).to_be_visible()


@pytest.mark.web
def test_a_checkpoint_has_its_file_its_command_and_its_fork(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("3")
    row = page.locator(".kept tr[data-id='300-manual']")
    expect(row).to_contain_text("300asked for1 min ago")
    expect(row).to_contain_text("44.7 MBapprox.")
    row.get_by_role("button", name="More of the checkpoint at step 300").click()
    expect(page.locator(".kept .line code")).to_have_text(
        "OTF_RESUME=/runs/cifar/resnet18-baseline/checkpoints/300-manual.ckpt"
    )
    with page.expect_download() as download:
        row.get_by_role("button", name="Download the checkpoint at step 300").click()
    assert download.value.suggested_filename == "300-manual.ckpt"
    row.get_by_role("button", name="Roll back to the checkpoint at step 300").click()
    expect(page.get_by_role("dialog", name="Roll back")).to_be_visible()
    page.keyboard.press("Escape")
    dashboard.emit("s1", event(950, "checkpoint_saved", id="60-ring", step=60, kind="ring"))
    expect(page.locator(".kept tr[data-id='60-ring']")).to_be_visible()
    dashboard.emit("s1", event(951, "checkpoint_removed", id="60-ring", step=60, kind="ring"))
    expect(page.locator(".kept tr[data-id='60-ring']")).to_have_count(0)


def test_a_change_waits_for_its_step_and_can_be_withdrawn(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("1")
    page.locator("[id=param-lr]").fill("0.06")
    expect(page.locator(".plan")).to_have_count(0)  # this trainer tells nothing of what comes
    page.get_by_label("apply at").select_option("step")
    step = page.get_by_role("textbox", name="Step to apply at")
    step.fill("12")
    expect(page.get_by_role("button", name="Apply 1 change")).to_have_attribute(
        "aria-disabled", "true"
    )
    step.fill("80")
    page.get_by_role("button", name="Apply 1 change").click()
    sent = dashboard.command()
    assert sent["payload"] == {"path": "lr", "value": 0.06, "at_step": 80}
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="step 80")
    expect(page.locator("[data-path=lr] .st")).to_contain_text("waiting for step 80")
    page.get_by_role("button", name="Withdraw").click()
    withdrawn = dashboard.command()
    assert (withdrawn["cmd"], withdrawn["payload"]) == ("undo", {"request_id": sent["id"]})


def test_the_bell_counts_what_happened_and_shows_nothing_by_itself(
    page: Page, dashboard: FakeDashboard
) -> None:
    bell = page.locator("[data-menu=notices]")
    expect(bell).to_have_attribute("aria-label", "Notifications")
    dashboard.update("s1", state="paused", reason="user")
    command = {"id": "x1", "cmd": "test_now", "payload": {}, "session_id": "s1"}
    reply = {"ok": False, "code": "unsupported", "detail": "there is no test loader"}
    dashboard.receipt(command, "refused", answered_ts=NOW, reply=reply, by="cli")
    expect(bell).to_have_attribute("aria-label", "Notifications, 2 new")
    expect(page.locator(".refusal")).to_have_count(0)  # of another: no banner here
    bell.click()
    notes = page.locator(".bell .note")
    expect(notes.first).to_contain_text("Test refused")
    expect(notes.nth(1)).to_contain_text("is paused")
    expect(page.get_by_role("checkbox", name="Tell this browser")).not_to_be_checked()
    assert "\n".join(findings(page)) == ""
    page.keyboard.press("Escape")
    expect(notes).to_have_count(0)
    expect(bell).to_be_focused()
    expect(bell).to_have_attribute("aria-label", "Notifications")


def test_a_link_that_only_watches_presses_nothing(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    dashboard.welcome = {"read_only": True}
    page = open_page()
    expect(page.locator("[data-banner=watching]")).to_contain_text("Watching only.")
    assert set(page.locator(".ctl-n").all_text_contents()) == {"watching only"}
    page.locator("body").press("c")
    page.locator("[data-cmd=pause] button").dispatch_event("click")
    page.locator("body").press("1")
    expect(page.locator("[id=param-lr]")).to_be_disabled()
    page.locator("body").press("3")
    expect(page.locator(".kept tr[data-id]").first).to_be_visible()
    rows = page.locator(".kept tr[data-id]").count()
    assert page.locator(".kept .acts .icb[aria-disabled=true]").count() == 3 * rows
    nothing_sent(dashboard, page)
    assert "\n".join(findings(page)) == ""


@pytest.mark.parametrize(
    ("welcome", "banner", "text"),
    [
        ({"build": "another"}, "old", "has been updated since this page was loaded"),
        pytest.param(
            {"store": {"mode": "reader", "text": None}},
            "store",
            "read-only copy",
            marks=pytest.mark.web,
        ),
    ],
)
def test_what_holds_for_the_whole_page_is_said_above_it(
    welcome: dict[str, Any], banner: str, text: str, open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    dashboard.welcome = welcome
    page = open_page(width=360, height=740)
    expect(page.locator(f"[data-banner={banner}]")).to_contain_text(text)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if banner == "old":
        dashboard.welcome = {}
        page.get_by_role("button", name="Reload").click()
        expect(page.locator("[data-banner]")).to_have_count(0)


@pytest.mark.web
def test_three_ways_to_start_a_run_by_the_keyboard(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    page = open_page()
    page.get_by_role("tab", name="Lightning").focus()
    expect(page.get_by_role("tabpanel")).to_contain_text("OnTheFlyCallback()")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel")).to_contain_text("otf_core.attach(")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tabpanel")).to_contain_text("otf-fit train.py")
    expect(page.get_by_role("tab", name="otf-fit")).to_be_focused()
    expect(page.locator(".listen")).to_contain_text("Listening since")
    assert "\n".join(findings(page)) == ""


def test_a_run_that_failed_has_the_command_that_lets_it_go_on(
    page: Page, dashboard: FakeDashboard
) -> None:
    failed = {"status": "failed", "step": STEPS, "error": "RuntimeError: out of memory"}
    dashboard.update("s1", state="failed", connected=False, finished=failed)
    line = "OTF_RESUME=/runs/cifar/resnet18-baseline/checkpoints/300-manual.ckpt"
    expect(page.locator(".receipts .line code")).to_have_text(line)
    expect(page.locator(".receipts .line")).to_contain_text("goes on from step 300")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".receipts .copy").click()
    expect(page.locator(".receipts .copy")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == line


@pytest.mark.web
def test_the_page_holds_without_motion_in_forced_colours_at_200_percent_and_by_touch(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.emulate_media(reduced_motion="reduce", forced_colors="active")
    page.locator("[data-cmd=save_ckpt] button").click()
    sent = dashboard.command()
    spinner = page.locator("[data-cmd=save_ckpt] .spin")
    expect(spinner).to_be_visible()
    assert spinner.evaluate("one => getComputedStyle(one).animationName") == "none"
    dashboard.receipt(sent, "applied", **applied(STEPS))
    # 200 % of a window of 1440 by 900 is one of 720 by 450.
    page.set_viewport_size({"width": 720, "height": 450})
    for panel in ("steer", "health", "log"):
        page.locator(f"[data-panel={panel}]").click()
        expect(page.locator(".drawer")).to_have_attribute("aria-label", panel.capitalize())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(forced_colors="none")
    assert "\n".join(findings(page)) == ""


@pytest.mark.web
@pytest.mark.parametrize("panel", ["steer", "checkpoints", "health", "log"])
def test_a_panel_is_walked_through_by_tab_alone(
    panel: str, page: Page, dashboard: FakeDashboard
) -> None:
    """Every control of the drawer is a stop of Tab, and Esc leads back."""
    opener = page.locator(f"[data-panel={panel}]")
    opener.focus()
    page.keyboard.press("Enter")
    kinds = ("button", "input", "select", "summary", "[tabindex='0']")
    stops = ", ".join(f".drawer {one}" for one in kinds)
    expect(page.get_by_role("button", name="Close").first).to_be_visible()
    page.locator(stops).first.focus()
    wanted = page.locator(stops).evaluate_all(
        "all => all.filter((one) => !one.disabled && one.tabIndex === 0).length"
    )
    seen = 1
    while seen < wanted:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('.drawer') !== null")
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        seen += 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.drawer') === null")
    page.locator(".drawer button").first.focus()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()


@pytest.mark.web
def test_buttons_and_receipts_fit_beside_or_below_each_other_at_any_width(
    page: Page, dashboard: FakeDashboard
) -> None:
    able = [*CAPABILITIES, "fork", "merge"]
    dashboard.update("s1", capabilities=able)
    for width in (641, 700, 780, 800, 901, 1024, 1101, 1281, 1361, 1401, 1600, 1601):
        page.set_viewport_size({"width": width, "height": 900})
        buttons = page.locator(".ctls").bounding_box()
        receipts = page.locator(".receipts").bounding_box()
        assert buttons is not None
        assert receipts is not None
        assert buttons["x"] + buttons["width"] <= width, width
        assert receipts["width"] >= 200, width
