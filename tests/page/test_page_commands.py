"""The life of a command on the page: applied means applied, and nothing is sent twice."""

from __future__ import annotations

import json
import queue
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.conftest import Open, retry
from tests.page.fake_dashboard import NOW, PARAMS, FakeDashboard, event, history, run, session

STEPS = 60


@pytest.fixture
def page(open_page: Open, dashboard: FakeDashboard) -> Page:
    dashboard.add(session(STEPS, max_steps=100), history(STEPS), run())
    opened = open_page()
    expect(opened.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    return opened


def control(page: Page, cmd: str) -> Locator:
    return page.locator(f"[data-cmd={cmd}]")


def nothing_sent(dashboard: FakeDashboard, page: Page) -> None:
    """All that the page sent is there once it has had an answer to a message of its own."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    with pytest.raises(queue.Empty):
        dashboard.commands.get_nowait()


def applied(step: int, **data: Any) -> dict[str, Any]:
    return {
        "answered_ts": NOW,
        "accepted_ts": NOW,
        "reply": {"ok": True, "data": {"applied_step": step, "step": step, **data}},
    }


def test_pause_is_pending_until_the_trainer_holds(page: Page, dashboard: FakeDashboard) -> None:
    pause = control(page, "pause")
    pause.get_by_role("button").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"], sent["session_id"]) == ("pause", {}, "s1")
    assert page.locator(".state").get_attribute("data-state") == "running"
    expect(pause).to_have_attribute("data-s", "pending")

    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(pause.locator(".ctl-n")).to_have_text("waits for step end")
    pause.get_by_role("button").click()
    page.keyboard.press("Space")
    nothing_sent(dashboard, page)

    dashboard.emit("s1", event(901, "paused", step=STEPS))
    dashboard.update("s1", state="paused", reason="user")
    dashboard.receipt(sent, "applied", **applied(STEPS, status="paused", ckpt="/runs/p.ckpt"))
    expect(control(page, "resume").get_by_role("button")).to_have_text("ResumeSpace")
    expect(page.locator(".rc").first).to_contain_text(
        f"Pauseapplied at step {STEPS}, checkpoint saved"
    )


def test_a_command_shows_at_which_step_it_was_applied(page: Page, dashboard: FakeDashboard) -> None:
    save = control(page, "save_ckpt")
    page.locator("body").press("c")
    sent = dashboard.command()
    assert sent["cmd"] == "save_ckpt"
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(save).to_have_attribute("data-s", "pending")
    dashboard.receipt(sent, "applied", **applied(STEPS, path="/runs/c.ckpt", id="60-manual"))
    expect(save).to_have_attribute("data-s", "applied")
    expect(save.locator(".ctl-n")).to_have_text(f"applied @ {STEPS}")
    # Six seconds later it is a fact like any other.
    page.clock.set_fixed_time(NOW + 7)
    expect(save).to_have_attribute("data-s", "idle")


def test_a_refusal_says_why_and_that_nothing_changed(page: Page, dashboard: FakeDashboard) -> None:
    test = control(page, "test_now")
    test.get_by_role("button").click()
    sent = dashboard.command()
    reply = {
        "ok": False,
        "error": "unsupported",
        "code": "unsupported",
        "detail": "test_now asked, but the Trainer has no test loader",
    }
    dashboard.receipt(sent, "refused", answered_ts=NOW, reply=reply)
    expect(test).to_have_attribute("data-s", "refused")
    expect(test.locator(".ctl-n")).to_have_text("refused: see why")
    banner = page.locator(".refusal")
    expect(banner).to_contain_text(
        "Test was refused. test_now asked, but the Trainer has no test loader. Nothing changed."
    )
    expect(page.get_by_role("alert")).to_contain_text("no test loader")
    banner.get_by_role("button", name="Dismiss").click()
    expect(banner).to_have_count(0)
    # The next try is free.
    test.get_by_role("button").click()
    assert dashboard.command()["cmd"] == "test_now"


def test_the_learning_rate_shows_what_was_read_back_and_nothing_else(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("1")
    row = page.locator("[data-path=lr]")
    current = row.locator("[data-current]")
    expect(row.locator(".pr-1 label")).to_have_text("Learning rate")
    field = row.locator("[id=param-lr]")
    field.fill("0.06")
    expect(row.locator(".st")).to_have_text("0.1 → 0.06, not sent")
    nothing_sent(dashboard, page)
    page.get_by_role("button", name="Apply 1 change").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("set_param", {"path": "lr", "value": 0.06})
    assert current.get_attribute("data-current") == "0.1"
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(row.locator(".st")).to_have_text("0.1 → 0.06, sent, waiting for step end")
    assert current.get_attribute("data-current") == "0.1"
    expect(field).to_be_disabled()

    read_back = 0.05999999865889549
    params = [dict(param) for param in PARAMS]
    params[0]["value"] = read_back
    data = {
        "path": "lr",
        "old": 0.1,
        "new": read_back,
        "owner": "scheduler",
        "mode": "scale",
        "until": None,
    }
    dashboard.receipt(sent, "applied", **applied(61, **data))
    dashboard.update("s1", params=params)
    expect(row.locator(".st")).to_have_text(f"applied at step 61, read back {read_back}")
    expect(current).to_have_attribute("data-current", json.dumps(read_back))
    page.locator(".rc").first.click()
    expect(page.locator("dialog")).to_contain_text(f"read back: lr = {read_back}")
    expect(page.locator("dialog code")).to_have_text("otf set lr 0.06 --run resnet18-baseline")


def test_a_value_that_was_set_is_given_back_to_the_script(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("1")
    row = page.locator("[data-path=lr]")
    back = row.get_by_role("button", name="Give back to the script")
    expect(back).to_have_count(0)
    params = [dict(param) for param in PARAMS]
    params[0].update(value=0.06, script=0.1)
    dashboard.update("s1", params=params)
    expect(row.locator(".cur")).to_have_text("0.06 set, 0.1 by the script")
    back.click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("set_param", {"path": "lr", "release": True})
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(row.locator(".st")).to_have_text("0.06 → the script's own, sent, waiting for step end")
    expect(back).to_have_count(0)
    expect(page.locator(".rc").first).to_contain_text("Learning rate back to the script")
    data = {"path": "lr", "old": 0.06, "new": 0.1, "owner": "scheduler"}
    dashboard.receipt(sent, "applied", **applied(62, **data))
    dashboard.update("s1", params=[dict(param) for param in PARAMS])
    expect(row.locator(".st")).to_have_text("applied at step 62, read back 0.1")
    expect(back).to_have_count(0)
    page.locator(".rc").first.click()
    expect(page.locator("dialog code")).to_have_text("otf resume lr --run resnet18-baseline")


def test_a_refused_value_keeps_the_old_one_and_offers_the_nearest(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("1")
    row = page.locator("[data-path=lr]")
    field = row.locator("[id=param-lr]")
    field.fill("twenty")
    expect(row.locator(".st")).to_contain_text("not possible: not a number")
    field.fill("11")
    expect(row.locator(".st")).to_contain_text("not possible: at most 10")
    field.press("Enter")
    nothing_sent(dashboard, page)
    field.fill("9")
    field.press("Control+Enter")
    sent = dashboard.command()
    reply = {
        "ok": False,
        "error": "bad_payload",
        "code": "bad_payload",
        "field": "value",
        "detail": "lr 9 asked; it is 0.1 now and may be 0 to 2.",
        "allowed": {"min": 0, "max": 2},
    }
    dashboard.receipt(sent, "refused", answered_ts=NOW, reply=reply)
    expect(page.locator(".refusal")).to_contain_text("Nothing changed: learning rate is still 0.1.")
    assert row.locator("[data-current]").get_attribute("data-current") == "0.1"
    page.get_by_role("button", name="Set learning rate 2…").click()
    expect(row.locator(".st")).to_have_text("0.1 → 2, not sent")
    nothing_sent(dashboard, page)


def test_stop_asks_first_and_the_safe_button_has_the_focus(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("x")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Stop resnet18-baseline?")
    assert page.evaluate("document.activeElement.textContent") == "Keep training"
    page.keyboard.press("c")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    nothing_sent(dashboard, page)
    control(page, "stop").get_by_role("button").click()
    dialog.get_by_text("Stop without saving").first.click()
    expect(dialog.locator("code")).to_have_text("otf stop --no-save --run resnet18-baseline")
    dialog.get_by_role("button", name="Stop without saving").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("stop", {"save": False})


def test_a_command_of_somebody_else_is_shown_as_pending_too(
    page: Page, dashboard: FakeDashboard
) -> None:
    pending = [{"request_id": "x1", "cmd": "save_ckpt", "since_ts": NOW, "waits_for": "step 500"}]
    dashboard.update("s1", pending=pending)
    expect(control(page, "save_ckpt")).to_have_attribute("data-s", "pending")
    expect(control(page, "save_ckpt").locator(".ctl-n")).to_have_text("waits for step 500")
    page.locator("body").press("c")
    nothing_sent(dashboard, page)
    page.reload()
    expect(control(page, "save_ckpt")).to_have_attribute("data-s", "pending")
    expect(page.locator(".rc")).to_contain_text("Save checkpoint")


def test_keys_do_nothing_while_somebody_types_or_when_switched_off(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("6")
    search = page.get_by_role("searchbox")
    search.fill("")
    search.press("c")
    nothing_sent(dashboard, page)
    expect(page.locator(".log li")).not_to_have_count(0)
    search.press("Escape")
    page.locator("body").press("?")
    page.get_by_label("Single keys act").uncheck()
    page.keyboard.press("Escape")
    page.locator("body").press("c")
    nothing_sent(dashboard, page)


def test_a_lost_connection_leaves_the_command_unknown_until_it_is_settled_by_its_id(
    page: Page, dashboard: FakeDashboard
) -> None:
    save = control(page, "save_ckpt")
    save.get_by_role("button").click()
    sent = dashboard.command()
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(save).to_have_attribute("data-s", "pending")
    dashboard.refusing = True
    dashboard.drop()
    expect(page.locator(".state")).to_have_attribute("data-state", "connection-lost")
    expect(page.locator(".rc").first).to_contain_text("sent, no answer — unknown until reconnected")
    for cmd in ("pause", "save_ckpt", "validate_now", "test_now", "stop"):
        expect(control(page, cmd)).to_have_attribute("data-s", "off")
        control(page, cmd).get_by_role("button").dispatch_event("click")
    page.locator("body").press("v")
    dashboard.answers[sent["id"]] = {
        "id": sent["id"],
        "ok": True,
        "data": {"step": 61, "applied_step": 61, "path": "/c"},
    }
    dashboard.refusing = False
    retry(page)
    expect(page.locator(".state")).to_have_attribute("data-state", "running")
    expect(page.locator(".rc").first).to_contain_text("written at step 61")
    nothing_sent(dashboard, page)


def test_a_command_that_never_arrived_is_said_to_be_without_record(
    page: Page, dashboard: FakeDashboard
) -> None:
    control(page, "validate_now").get_by_role("button").click()
    dashboard.command()
    dashboard.drop()
    expect(page.locator(".rc").first).to_contain_text("the dashboard has no record of it")
    expect(control(page, "validate_now")).to_have_attribute("data-s", "idle")


def test_a_trainer_that_cannot_do_it_has_the_reason_under_the_button(
    page: Page, dashboard: FakeDashboard
) -> None:
    able = [one for one in session(1)["capabilities"] if one != "test_now"]
    dashboard.update("s1", capabilities=able)
    expect(control(page, "test_now").locator(".ctl-n")).to_have_text("not in this run")
    expect(control(page, "test_now").get_by_role("button")).to_have_attribute(
        "aria-disabled", "true"
    )


def test_the_palette_finds_by_label_first_and_then_by_the_start_of_the_verb(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("[data-panel=log]").focus()
    page.keyboard.press("Control+k")
    box = page.get_by_role("combobox", name="Command, run or step")
    expect(box).to_be_focused()
    options = page.get_by_role("option")
    expect(options.first).to_contain_text("Pause")
    box.fill("val")
    expect(options.first).to_contain_text("Validate")
    expect(page.locator(".pal .eq")).to_contain_text("otf validate --run resnet18-baseline")
    box.fill("rollb")  # only the command line writes it in one word
    expect(options.first).to_contain_text("Roll back")
    box.fill("resnet")  # in every line, and in one label
    expect(options).to_have_count(1)
    box.fill("zzz")
    expect(page.locator(".pal")).to_contain_text("Nothing matches.")
    box.press("Escape")
    expect(box).to_have_count(0)
    assert page.evaluate("document.activeElement.dataset.panel") == "log"

    expect(box).to_have_count(0)  # the one that closes would take the keys
    page.keyboard.press("Control+k")
    box.fill("save")
    box.press("Enter")
    expect(box).to_have_count(0)
    assert dashboard.command()["cmd"] == "save_ckpt"


def test_the_palette_goes_to_steps_settings_and_charts_and_says_what_is_not_possible(
    page: Page, dashboard: FakeDashboard
) -> None:
    box = page.get_by_role("combobox", name="Command, run or step")
    chosen = page.locator(".pal [aria-selected=true]")

    def ask(query: str) -> None:
        expect(page.locator("dialog")).to_have_count(0)  # the key closes one that is open
        page.keyboard.press("Control+k")
        box.fill(query)

    ask("step 42")
    expect(chosen).to_contain_text("Step 42")
    box.press("Enter")
    expect(page.locator(".hero .at")).to_have_text("at step 42")
    assert page.evaluate("document.activeElement.className.includes('plot')")
    ask("9,999")
    expect(chosen).to_contain_text("not possible: steps go to 60")
    box.press("Enter")
    expect(box).to_be_visible()
    box.press("Escape")
    ask("lr")
    expect(chosen).to_contain_text("Set learning rate…0.1 now")
    box.press("Enter")
    expect(page.locator("[id=param-lr]")).to_be_focused()
    ask("gradient norm")
    box.press("Enter")
    expect(page.locator("figure[aria-label='Gradient norm'] .plot")).to_be_focused()
    dashboard.update("s1", state="finished", connected=False)
    ask("save")
    expect(chosen).to_contain_text("not possible: finished")
    box.press("Enter")
    nothing_sent(dashboard, page)


def test_the_list_of_keys_is_the_table_that_acts(page: Page, dashboard: FakeDashboard) -> None:
    expect(page.locator("[data-state]").first).to_be_visible()  # before, no key is heard
    page.locator("body").press("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    expect(dialog).to_be_visible()  # reading texts does not wait
    shown = dialog.locator("kbd").all_text_contents()
    assert {"Ctrl K", "Space", "C", "V", "T", "R", "X", "1 … 6", "Esc", "Z", "?"} <= set(shown)
    page.keyboard.press("Escape")
    for number, panel in enumerate(("steer", "samples", "checkpoints", "lineage", "health", "log")):
        page.locator("body").press(str(number + 1))
        expect(page.locator(f"[data-panel={panel}]")).to_have_attribute("aria-expanded", "true")
