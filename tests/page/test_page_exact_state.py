"""Rolling back, undoing, extending and holding at the end, from the page; and the curves."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.conftest import Open
from tests.page.fake_dashboard import (
    CAPABILITIES,
    NOW,
    PARAMS,
    FakeDashboard,
    event,
    history,
    run,
    session,
    train_step,
)
from tests.page.test_page_commands import applied, control, nothing_sent

STEPS = 60


def kept(*steps: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"{step}-ring", "path": f"/runs/{step}-ring.ckpt", "step": step, "kind": "ring",
         "bytes": 44_700_000, "ts": NOW - 120, "exact": step != 20, "session_id": "s1", **changes}
        for step in steps
    ]  # fmt: skip


@pytest.fixture
def events() -> list[dict[str, Any]]:
    """Those of a run without checkpoints of its own."""
    return [one for one in history(STEPS) if one["type"] != "checkpoint_saved"]


@pytest.fixture
def page(open_page: Open, dashboard: FakeDashboard, events: list[dict[str, Any]]) -> Page:
    dashboard.add(session(STEPS, max_steps=100), events, run(checkpoints=kept(20, 40)))
    opened = open_page(width=1680)  # undo and extend are behind "⋯" in a narrower window
    expect(opened.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    return opened


def line(page: Page, cmd: str) -> Locator:
    return control(page, cmd).locator(".ctl-n")


def refused(code: str, detail: str, **more: Any) -> dict[str, Any]:
    reply = {"ok": False, "error": code, "code": code, "detail": detail, **more}
    return {"answered_ts": NOW, "reply": reply}


def turned_back(seq: int, to: int, gen: int = 1, **more: Any) -> dict[str, Any]:
    path = f"/runs/{to}-ring.ckpt"
    return event(seq, "checkpoint_loaded", path=path, step=to, run_gen=gen, **more)


def steps_again(seq: int, first: int, last: int, gen: int = 1, **more: Any) -> list[dict[str, Any]]:
    return [
        train_step(seq + at, step, STEPS // 3, ts=NOW, run_gen=gen, loss=0.01 * step, **more)
        for at, step in enumerate(range(first, last + 1))
    ]


# ---------------------------------------------------------------- roll back


def test_a_rollback_shows_what_is_kept_and_what_it_costs(
    page: Page, dashboard: FakeDashboard
) -> None:
    expect(line(page, "rollback")).to_have_text("2 kept")
    page.locator("body").press("r")
    dialog = page.get_by_role("dialog")
    first, second = (dialog.locator(".opt[data-id]").nth(at) for at in range(2))
    expect(first).to_have_text("Step 40kept in turn · 2 min ago · undoes 20 steps (1 s)exact")
    expect(second).to_contain_text("undoes 40 steps (2 s)approximate")
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    expect(first.get_by_role("radio")).to_be_checked()
    second.click()
    command = "otf rollback 20-ring --run resnet18-baseline"
    expect(dialog.locator("code")).to_have_text(command)
    dialog.get_by_role("button", name="Roll back to step 20").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("rollback", {"checkpoint": "20-ring"})
    expect(dialog).to_have_count(0)

    button = control(page, "rollback")
    expect(button).to_have_attribute("data-s", "pending")
    dashboard.receipt(sent, "accepted", accepted_ts=NOW, waits_for="safe_point")
    expect(line(page, "rollback")).to_have_text("waits for step end")
    page.locator("body").press("r")
    expect(dialog).to_have_count(0)
    assert page.locator(".state").get_attribute("data-step") == str(STEPS)

    dashboard.emit("s1", turned_back(900, 20, from_step=STEPS))
    dashboard.update("s1", step=20)
    done = applied(STEPS, checkpoint="20-ring", from_step=STEPS)
    done["reply"]["data"]["step"] = 20
    dashboard.receipt(sent, "applied", **done)
    expect(button).to_have_attribute("data-s", "applied")
    expect(line(page, "rollback")).to_have_text("back at 20")
    expect(page.locator(".state")).to_have_attribute("data-step", "20")
    expect(page.locator(".rc").first).to_contain_text(
        "Roll back to 20-ringapplied, from step 60 to 20"
    )
    page.clock.set_fixed_time(NOW + 7)
    expect(button).to_have_attribute("data-s", "idle")


def test_a_step_that_has_no_checkpoint_is_refused_with_the_nearest(
    page: Page, dashboard: FakeDashboard
) -> None:
    control(page, "rollback").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    go = dialog.get_by_role("button", name="Roll back", exact=True)
    field = dialog.get_by_label("Step", exact=True)
    field.fill("soon")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(go).to_have_attribute("aria-disabled", "true")
    go.dispatch_event("click")
    nothing_sent(dashboard, page)
    field.fill("35")
    dialog.get_by_role("button", name="Roll back to step 35").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("rollback", {"step": 35})
    detail = "No checkpoint at step 35; there are 20 and 40."
    dashboard.receipt(
        sent, "refused", **refused("not_found", detail, field="step", allowed=[20, 40])
    )
    expect(control(page, "rollback")).to_have_attribute("data-s", "refused")
    banner = page.locator(".refusal")
    expect(banner).to_contain_text(f"Roll back to step 35 was refused. {detail} Nothing changed.")
    banner.get_by_role("button", name="Roll back to step 20…").click()
    expect(dialog.locator(".opt[data-id='20-ring']").get_by_role("radio")).to_be_checked()
    dialog.get_by_role("button", name="Roll back to step 20").click()
    assert dashboard.command()["payload"] == {"checkpoint": "20-ring"}


def test_a_checkpoint_that_goes_while_the_dialog_is_open_cannot_be_chosen(
    page: Page, dashboard: FakeDashboard
) -> None:
    page.locator("body").press("r")
    dialog = page.get_by_role("dialog")
    dialog.locator(".opt[data-id='20-ring']").click()
    gone = run(checkpoints=kept(40))
    dashboard.push({"kind": "run", "run": gone})
    expect(dialog.locator(".opt[data-id]")).to_have_count(1)
    go = dialog.get_by_role("button", name="Roll back", exact=True)
    expect(go).to_have_attribute("aria-disabled", "true")
    go.dispatch_event("click")
    nothing_sent(dashboard, page)


def test_the_checkpoints_panel_starts_a_rollback_too(page: Page, dashboard: FakeDashboard) -> None:
    page.locator("body").press("3")
    row = page.locator(".drawer tbody tr").nth(1)
    expect(row).to_contain_text("20kept in turn")
    expect(row).to_contain_text("approx.")
    row.get_by_role("button", name="Roll back to the checkpoint at step 20").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".opt[data-id='20-ring']").get_by_role("radio")).to_be_checked()


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    page: Page, dashboard: FakeDashboard
) -> None:
    dashboard.push({"kind": "run", "run": run(checkpoints=[])})
    expect(line(page, "rollback")).to_have_text("none kept yet")
    page.locator("body").press("r")
    expect(page.get_by_role("dialog")).to_have_count(0)
    able = [one for one in CAPABILITIES if one != "rollback"]
    dashboard.update("s1", capabilities=able)
    expect(line(page, "rollback")).to_have_text("not in this run")
    dashboard.update("s1", capabilities=CAPABILITIES, state="validating")
    dashboard.push({"kind": "run", "run": run(checkpoints=kept(40))})
    expect(line(page, "rollback")).to_have_text("after this")


# ---------------------------------------------------------------- undo


def set_lr(dashboard: FakeDashboard, request_id: str = "q1", ts: float = NOW - 20) -> None:
    asked = {"id": request_id, "cmd": "set_param", "session_id": "s1",
             "payload": {"path": "lr", "value": 0.06}}  # fmt: skip
    done = applied(40, path="lr", old=0.1, new=0.06, owner="scheduler", mode="scale", until=None)
    dashboard.receipt(asked, "applied", **{**done, "sent_ts": ts, "answered_ts": ts})
    told = {"path": "lr", "old": 0.1, "new": 0.06, "applied_step": 40, "request_id": request_id}
    dashboard.emit("s1", event(870, "param_changed", by="user", **told))


def test_undo_says_what_it_takes_back_and_takes_back_that(
    page: Page, dashboard: FakeDashboard
) -> None:
    dashboard.update("s1", params=PARAMS)
    undo = control(page, "undo")
    set_lr(dashboard)
    expect(line(page, "undo")).to_have_text("lr 0.1 → 0.06")
    expect(line(page, "undo")).to_have_attribute("title", "takes back: Learning rate 0.1 → 0.06")
    undo.get_by_role("button").click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("undo", {"request_id": "q1"})
    expect(undo).to_have_attribute("data-s", "pending")
    undone = {"request_id": "q1", "cmd": "set_param"}
    dashboard.receipt(sent, "applied", **applied(STEPS, undone=undone, now={"lr": 0.1}))
    expect(line(page, "undo")).to_have_text(f"applied @ {STEPS}")
    back = {"path": "lr", "old": 0.06, "new": 0.1, "applied_step": STEPS, "request_id": sent["id"]}
    dashboard.emit("s1", event(880, "param_changed", by="undo", **back))
    page.clock.set_fixed_time(NOW + 7)
    # The one before, of which the stream alone tells, comes next.
    expect(line(page, "undo")).to_have_text("lr 0.2 → 0.1")
    expect(page.locator(".rc").first).to_contain_text("Undo setapplied at step 60, lr 0.1 now")
    page.locator(".rc").first.click()
    expect(page.locator("dialog code")).to_have_text("otf undo q1 --run resnet18-baseline")


def test_undo_is_refused_like_any_other(page: Page, dashboard: FakeDashboard) -> None:
    set_lr(dashboard)
    control(page, "undo").get_by_role("button").click()
    detail = "undo was asked; its undo point is gone."
    dashboard.receipt(dashboard.command(), "refused", **refused("not_found", detail))
    expect(control(page, "undo")).to_have_attribute("data-s", "refused")
    expect(page.locator(".refusal")).to_contain_text("its undo point is gone")


def test_a_dashboard_that_was_started_later_knows_from_the_stream_what_to_undo(
    open_page: Open, dashboard: FakeDashboard, events: list[dict[str, Any]]
) -> None:
    dashboard.add(session(STEPS), events, run())
    page = open_page()
    # history() has a learning rate that a user has set, with the id of the command.
    expect(line(page, "undo")).to_have_text("lr 0.2 → 0.1")
    back = {"path": "lr", "old": 0.1, "new": 0.2, "applied_step": 50, "step": 50}
    dashboard.emit("s1", event(700, "param_changed", by="undo", request_id="u1", **back))
    expect(line(page, "undo")).to_have_text("nothing yet")


# ---------------------------------------------------------------- extend


def test_a_run_is_extended_by_steps_or_epochs(page: Page, dashboard: FakeDashboard) -> None:
    expect(line(page, "extend")).to_have_text("100 steps")
    control(page, "extend").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    steps = dialog.get_by_label("Total of steps")
    expect(steps).to_have_value("110")
    expect(dialog.locator("code")).to_have_text("otf extend --steps 110 --run resnet18-baseline")
    steps.fill("60")
    expect(dialog).to_contain_text("now 100; a whole number from 61 on is needed")
    go = dialog.locator(".btn.pri")
    expect(go).to_have_attribute("aria-disabled", "true")
    go.dispatch_event("click")
    nothing_sent(dashboard, page)
    dialog.get_by_label("Total of epochs").fill("9")
    expect(go).to_have_text("Extend to 9 epochs")
    steps.fill("1,500")
    go.click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("extend", {"max_steps": 1500})
    old = {"max_steps": 100, "max_epochs": None}
    dashboard.receipt(sent, "applied", **applied(STEPS, max_steps=1500, max_epochs=None, old=old))
    expect(line(page, "extend")).to_have_text(f"applied @ {STEPS}")
    expect(page.locator(".rc").first).to_contain_text(
        "Extend to 1,500 stepsapplied at step 60, 1,500 steps now"
    )


def test_a_held_end_can_be_extended_and_says_that_it_is_held(
    page: Page, dashboard: FakeDashboard
) -> None:
    dashboard.emit("s1", event(880, "paused", step=STEPS))
    dashboard.update("s1", state="paused", reason="after_fit", max_epochs=20, max_steps=None)
    expect(page.locator(".sentence")).to_contain_text("training is done, the process is held")
    expect(line(page, "extend")).to_have_text("20 epochs")
    control(page, "extend").get_by_role("button").click()
    expect(page.get_by_label("Total of epochs")).to_have_value("21")
    page.get_by_role("button", name="Extend to 21 epochs").click()
    sent = dashboard.command()
    assert sent["payload"] == {"max_epochs": 21}
    detail = "OneCycleLR was made for 1,200 steps and cannot be lengthened."
    dashboard.receipt(sent, "refused", **refused("unsupported", detail, field="max_epochs"))
    expect(control(page, "extend")).to_have_attribute("data-s", "refused")
    expect(page.locator(".refusal")).to_contain_text(detail)


# ---------------------------------------------------------------- hold at the end


def test_hold_at_the_end_is_a_switch_that_shows_what_was_read_back(
    page: Page, dashboard: FakeDashboard
) -> None:
    switch = page.get_by_role("switch", name="Hold at the end")
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(line(page, "after_fit")).to_have_text("off")
    switch.click()
    sent = dashboard.command()
    assert (sent["cmd"], sent["payload"]) == ("set_param", {"path": "after_fit", "value": "hold"})
    expect(control(page, "after_fit")).to_have_attribute("data-s", "pending")
    assert switch.get_attribute("aria-checked") == "false"
    switch.click()
    nothing_sent(dashboard, page)
    held = [{**p, "value": "hold"} if p["path"] == "after_fit" else dict(p) for p in PARAMS]
    data = {"path": "after_fit", "old": "auto", "new": "hold", "owner": "user", "until": None}
    dashboard.receipt(sent, "applied", **applied(STEPS, **data))
    dashboard.update("s1", params=held)
    expect(switch).to_have_attribute("aria-checked", "true")
    expect(line(page, "after_fit")).to_have_text(f"applied @ {STEPS}")
    expect(page.locator(".rc").first).to_contain_text("At the end of fit auto → hold")
    page.clock.set_fixed_time(NOW + 7)
    expect(line(page, "after_fit")).to_have_text("the process stays when training is done")
    switch.click()
    sent = dashboard.command()
    assert sent["payload"]["value"] == "auto"
    dashboard.receipt(sent, "refused", **refused("not_allowed_now", "after_fit is fixed here."))
    expect(control(page, "after_fit")).to_have_attribute("data-s", "refused")
    assert switch.get_attribute("aria-checked") == "true"
    dashboard.update("s1", connected=False, state="lost")
    expect(control(page, "after_fit")).to_have_attribute("data-s", "off")
    expect(line(page, "after_fit")).to_have_text("trainer lost")
    switch.click(force=True)
    nothing_sent(dashboard, page)


def test_the_switch_is_there_only_where_the_run_can_be_held(
    page: Page, dashboard: FakeDashboard
) -> None:
    switch = page.get_by_role("switch")
    expect(switch).to_have_count(1)
    dashboard.update("s1", params=[p for p in PARAMS if p["path"] != "after_fit"])
    expect(switch).to_have_count(0)


def test_a_parameter_with_choices_is_chosen_in_steer(page: Page, dashboard: FakeDashboard) -> None:
    page.locator("body").press("1")
    row = page.locator("[data-path=after_fit]")
    expect(row.locator("label")).to_have_text("At the end of fit")
    select = row.get_by_role("combobox")
    assert select.locator("option").all_text_contents() == ["auto", "return", "test", "hold"]
    select.select_option("test")
    expect(row.locator(".st")).to_have_text("auto → test, not sent")
    page.get_by_role("button", name="Apply 1 change").click()
    sent = dashboard.command()
    assert sent["payload"] == {"path": "after_fit", "value": "test"}
    expect(row.locator("[data-current]")).to_have_text("auto")


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    ("text", "reasons", "said", "tone"),
    [
        ("exact", [], "Resumes bit-exactly", "ok"),
        ("exact except Timer", ["Timer"], "Resumes exactly, 1 exception", "warn"),
        ("exact except Timer", None, "Resumes exactly, with exceptions", "warn"),
        ("not exact because …", ["a", "b"], "Resumes approximately: 2 reasons", "warn"),
    ],
)
def test_what_the_run_promises_stands_beside_its_state(
    page: Page, dashboard: FakeDashboard, text: str, reasons: list[str] | None, said: str, tone: str
) -> None:
    if reasons is not None:
        told = {"exact": text == "exact", "text": text, "reasons": reasons}
        dashboard.emit("s1", event(890, "exactness", **told))
    dashboard.update("s1", exactness=text)
    pill = page.locator(".pill.exact")
    expect(pill).to_have_text(said)
    expect(pill).to_have_attribute("data-tone", tone)
    pill.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".said")).to_have_text(text)
    expect(dialog.locator(".reasons li")).to_have_text(reasons or [])
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert page.evaluate("document.activeElement.className") == "pill exact"


# ---------------------------------------------------------------- curves


def numbers(page: Page) -> tuple[str | None, str | None, str | None]:
    loss = page.locator("[data-metric=loss]")
    return (
        loss.get_attribute("data-step"),
        loss.get_attribute("data-seq"),
        loss.get_attribute("data-value"),
    )


def at_step(page: Page, step: int) -> float:
    """The loss that the page shows for a step."""
    plot = page.get_by_role("slider", name="Cursor on Train loss")
    plot.focus()
    plot.press("Home")
    for _ in range(step - 1):
        plot.press("ArrowRight")
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", str(step))
    value = float(loss.get_attribute("data-value") or "nan")
    plot.blur()
    return value


INK = """(share) => {
  const shown = document.querySelector(".hero canvas");
  const { width, height } = shown;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(shown, 0, 0);
  const left = Math.round(width * share[0]), wide = Math.round(width * (share[1] - share[0]));
  const top = Math.round(height * .2), high = Math.round(height * .5);
  const pixels = copy.getImageData(left, top, wide, high).data;
  let blue = 0, faint = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b, a] = pixels.slice(i, i + 4);
    if (a < 200 || b - r < 40) continue;
    if (r < 60) blue += 1; else faint += 1;
  }
  return [blue, faint];
}"""


def test_steps_after_a_rollback_supersede_those_that_were_undone(
    page: Page, dashboard: FakeDashboard, events: list[dict[str, Any]]
) -> None:
    dashboard.emit("s1", turned_back(900, 40, from_step=STEPS))
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", "40")
    before = next(e["loss"] for e in events if e["type"] == "trainStep" and e["step"] == 40)
    dashboard.emit("s1", *steps_again(901, 41, 50))
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", "50")
    assert numbers(page) == ("50", "910", "0.5")
    assert at_step(page, 40) == before
    assert at_step(page, 45) == pytest.approx(0.45)
    # The undone part is behind the rest, faint; the axis still reaches its end.
    plot = page.get_by_role("slider", name="Cursor on Train loss")
    expect(plot).to_have_attribute("aria-valuemax", "80")
    assert page.locator(".g .undone").count() == 1
    said = page.locator(".mk").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert any("rolled back from step 60 to 40 (40-ring)" in one for one in said)
    # A second one, to before the first.
    dashboard.emit("s1", turned_back(911, 20, gen=2, from_step=50), *steps_again(912, 21, 22, 2))
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", "22")
    assert at_step(page, 21) == pytest.approx(0.21)


def test_the_undone_part_is_drawn_faint_and_only_where_it_was(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = [train_step(at, at, 200, ts=NOW, loss=1.0, val_loss=None) for at in range(1, 101)]
    dashboard.add(session(100, max_steps=100), events, run())
    page = open_page()
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", "100")
    page.get_by_role("button", name="Linear").click()
    blue, faint = page.evaluate(INK, [0.6, 0.85])
    assert blue > 100
    dashboard.emit("s1", turned_back(101, 40, from_step=100))
    expect(loss).to_have_attribute("data-step", "40")
    page.wait_for_function(f"({INK})([.6, .85])[0] === 0")
    blue, faint = page.evaluate(INK, [0.6, 0.85])
    assert faint > 50
    assert page.evaluate(INK, [0.15, 0.35])[0] > 50


def test_generations_alone_say_as_much(
    page: Page, dashboard: FakeDashboard, events: list[dict[str, Any]]
) -> None:
    """The event of the rollback is still on its way, and the first steps come last."""
    dashboard.emit("s1", *steps_again(905, 45, 50))
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", "50")
    dashboard.emit("s1", *steps_again(901, 41, 44), *[e for e in events if e.get("step") == 55])
    assert at_step(page, 42) == pytest.approx(0.42)
    assert at_step(page, 50) == pytest.approx(0.50)
    expect(loss).to_have_attribute("data-seq", "910")


# ---------------------------------------------------------------- several sessions


def three_sessions(dashboard: FakeDashboard) -> None:
    """Killed at 40 and resumed at 31; back from 60 to 45; killed at 55 and resumed at 51."""
    known = ["s1", "s2", "s3"]
    first = [event(1, "session_started"), *steps_of("s1", 2, 1, 40, 1.0)]
    second = [
        event(1, "session_started", session_id="s2"),
        turned_back(2, 30, gen=1, session_id="s2"),
        *steps_of("s2", 3, 31, 60, 2.0, gen=1),
        event(33, "note", session_id="s2", note_id="n2", text="from the second", step=35),
        turned_back(34, 45, gen=2, session_id="s2", from_step=60),
        *steps_of("s2", 35, 46, 55, 3.0, gen=2),
    ]
    third = [
        event(1, "session_started", session_id="s3"),
        turned_back(2, 50, gen=3, session_id="s3"),
        *steps_of("s3", 3, 51, 70, 4.0, gen=3),
    ]
    one = run(session_ids=known, checkpoints=kept(40))
    for at, events in enumerate((third, second, first)):  # the newest journal is read first
        key = known[2 - at]
        last = key == "s3"
        state = {"connected": last, "state": "running" if last else "journal",
                 "started_ts": NOW - 1000 + 100 * (2 - at)}  # fmt: skip
        dashboard.add(session(70, session_id=key, max_steps=100, **state), events, one)


def steps_of(
    session_id: str, seq: int, first: int, last: int, loss: float, gen: int = 0
) -> list[dict[str, Any]]:
    return [
        train_step(
            seq + at, step, 20, ts=NOW - 900 + step, session_id=session_id, run_gen=gen, loss=loss,
            epoch=step // 20,
        )
        for at, step in enumerate(range(first, last + 1))
    ]  # fmt: skip


def test_a_run_of_three_sessions_is_one_run_with_one_curve(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    three_sessions(dashboard)
    page = open_page()
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", "70")
    expect(page.locator(".counts")).to_have_text("1 run, 1 trainer")
    page.locator(".switch").click()
    expect(page.locator(".menu .run")).to_have_count(1)
    page.keyboard.press("Escape")
    for step, value in ((1, 1.0), (30, 1.0), (31, 2.0), (45, 2.0), (46, 3.0), (50, 3.0), (51, 4.0)):
        assert at_step(page, step) == value, step
    page.locator("body").press("6")
    expect(page.locator(".log")).to_contain_text("from the second")
    said = page.locator(".mk").evaluate_all("all => all.map((one) => one.ariaLabel)")
    text = "; ".join(said)
    assert "resumed at step 30 in a new process (30-ring)" in text
    assert "rolled back from step 60 to 45 (45-ring)" in text
    assert "resumed at step 50 in a new process (50-ring)" in text

    page.get_by_role("button", name="Close Log").click()
    page.mouse.move(0, 0)  # where the button was there is a chart now, which would show that step
    dashboard.emit("s3", *steps_of("s3", 23, 71, 72, 5.0, gen=3))
    expect(loss).to_have_attribute("data-step", "72")
    # What is late in an earlier session does not come through.
    dashboard.emit("s1", *steps_of("s1", 42, 41, 41, 9.0))
    assert at_step(page, 41) == 2.0
    assert at_step(page, 71) == 5.0
    # The last one goes back to before its own start.
    dashboard.emit("s3", turned_back(25, 20, gen=4, session_id="s3", from_step=72))
    expect(loss).to_have_attribute("data-step", "20")
    dashboard.emit("s3", *steps_of("s3", 26, 21, 22, 6.0, gen=4))
    expect(loss).to_have_attribute("data-step", "22")
    assert at_step(page, 20) == 1.0


def test_a_run_that_comes_back_goes_on_where_the_page_is(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    gone = session(40, session_id="s1", max_steps=100, state="lost", connected=False)
    dashboard.add(gone, steps_of("s1", 1, 1, 40, 1.0), run(session_ids=["s1"]))
    page = open_page()
    expect(page.locator(".state")).to_have_attribute("data-state", "trainer-lost")
    back = session(30, session_id="s2", max_steps=100, started_ts=NOW)
    dashboard.add(back, [], run(session_ids=["s1", "s2"]))
    dashboard.push(
        {"kind": "session", "session": back}, {"kind": "run", "run": run(session_ids=["s1", "s2"])}
    )
    expect(page.locator(".state")).to_have_attribute("data-state", "running")
    dashboard.emit("s2", turned_back(1, 30, session_id="s2"), *steps_of("s2", 2, 31, 33, 2.0, 1))
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", "33")
    assert at_step(page, 30) == 1.0
    expect(page.locator(".hero .tag")).to_have_text("A")
    page.locator("body").press("c")
    assert dashboard.command()["session_id"] == "s2"


def test_runs_of_one_name_in_two_projects_are_two(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    for at, project in enumerate(("cifar", "digits")):
        key = f"s{at + 1}"
        one = session(10, session_id=key, project=project)
        events = steps_of(key, 1, 1, 10, 1.0 + at)
        dashboard.add(one, events, {**run(session_ids=[key]), "project": project})
        dashboard.runs[project] = dashboard.runs.pop("resnet18-baseline")
    page = open_page()
    expect(page.locator(".counts")).to_have_text("2 runs, 2 trainers")
    page.locator(".switch").click()
    expect(page.locator(".menu .run")).to_have_count(2)
    assert re.search(r"[AB]", page.locator(".hero .tag").inner_text())
