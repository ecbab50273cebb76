"""What the page shows is what was sent, by event_seq; and how it keeps its secrets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.fake_dashboard import (
    NOW,
    PREFIX,
    TOKEN,
    FakeDashboard,
    event,
    history,
    run,
    session,
    train_step,
)

STEPS = 120
UNEASY = "<img src=x onerror=window.broken=1><script>window.broken=1</script>"


def shown(page: Page) -> dict[str, tuple[int, float]]:
    """metric -> (event_seq, value) of every number on screen."""
    found: list[list[Any]] = page.evaluate(
        "[...document.querySelectorAll('[data-metric][data-seq]')]"
        ".map((one) => [one.dataset.metric, Number(one.dataset.seq), Number(one.dataset.value)])"
    )
    return {name: (seq, value) for name, seq, value in found}


def latest(events: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """The same from the events themselves."""
    out: dict[str, tuple[int, float]] = {}
    for one in events:
        if one["type"] != "trainStep":
            continue
        flat = {**one, **{f"metrics.{name}": value for name, value in one["metrics"].items()}}
        for name, value in flat.items():
            if isinstance(value, int | float):
                out[name] = (one["event_seq"], value)
    return out


def test_every_number_on_screen_is_the_one_of_its_event(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = history(STEPS)
    dashboard.add(session(STEPS), events, run())
    page = open_page()
    for number in range(STEPS + 1, STEPS + 9):
        seq = len(events) + 1
        dashboard.emit("s1", train_step(seq, number, STEPS // 3, ts=NOW))
        expect(page.locator("[data-metric=loss]")).to_have_attribute("data-seq", str(seq))
    numbers = shown(page)
    wanted = latest(events)
    assert set(numbers) >= {
        "loss",
        "val_loss",
        "accuracy",
        "lr",
        "grad_norm",
        "weight_norm",
        "activation_zero_frac",
        "throughput",
        "batches_per_s",
        "data_wait_frac",
        "mem_vram",
        "gpu_util",
        "ram_mb",
        "metrics.aux_loss",
        "metrics.val_f1",
        "lrs.1",
    }
    numbers.pop("lrs.1")
    assert {name: wanted[name] for name in numbers} == numbers
    assert page.locator(".state").get_attribute("data-step") == str(STEPS + 8)


def test_events_that_come_twice_or_late_are_put_where_they_belong(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = [train_step(seq, seq, 20, ts=NOW) for seq in range(1, 41)]
    dashboard.add(session(40), [*events[:10], *events[20:]], run())
    page = open_page()
    page.locator("body").press("6")
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-seq", "40")
    again = [*events[8:22], events[39], event(7, "log", level="info", text="late line")]
    dashboard.push(
        {
            "kind": "events",
            "session_id": "s1",
            "events": [{**one, "replay": True} for one in again],
        }
    )
    expect(page.locator(".log")).to_contain_text("late line")
    expect(loss).to_have_attribute("data-seq", "40")
    plot = page.get_by_role("slider", name="Cursor on Train loss")
    plot.focus()
    for _ in range(25):
        plot.press("ArrowLeft")
    expect(loss).to_have_attribute("data-step", "15")
    assert shown(page)["loss"] == (15, events[14]["loss"])


def test_one_cursor_for_all_charts_and_the_timeline(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = history(STEPS)
    dashboard.add(session(STEPS), events, run())
    page = open_page()
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    over = page.locator(".hero .u-over")
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    expect(page.locator("[data-metric=loss]")).not_to_have_attribute("data-step", str(STEPS))
    step = int(page.locator("[data-metric=loss]").get_attribute("data-step") or 0)
    axis_end = page.locator(".hero .plot").get_attribute("aria-valuemax")
    assert abs(step - int(axis_end or 0) / 2) <= 1
    by_step = {one["step"]: one for one in events if one["type"] == "trainStep"}
    for name in ("loss", "lr", "throughput"):
        assert shown(page)[name] == (by_step[step]["event_seq"], by_step[step][name])
    edges = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter((one) => one.querySelector('.u-cursor-x'))"
        ".map((one) => { const line = one.querySelector('.u-cursor-x');"
        " const over = one.querySelector('.u-over').getBoundingClientRect();"
        " return (line.getBoundingClientRect().right - over.left) / over.width; })"
    )
    assert len(edges) > 8
    assert max(edges) - min(edges) < 0.02
    line = page.locator(".g .cursor").bounding_box()
    axis = page.locator(".g .axis").bounding_box()
    assert line is not None
    assert axis is not None
    assert abs(axis["x"] - box["x"]) <= 1
    assert abs(axis["width"] - box["width"]) <= 1
    assert abs(line["x"] - (box["x"] + box["width"] / 2)) < 12


@pytest.mark.web
def test_charts_have_their_cadence_and_those_without_a_value_are_only_listed(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = [
        {**one, "gpu_util": None, "mem_vram": None} if one["type"] == "trainStep" else one
        for one in history(STEPS)
    ]
    dashboard.add(session(STEPS), events, run())
    page = open_page()
    expect(page.get_by_role("figure", name="Gradient norm")).to_contain_text("every 8 steps")
    expect(page.get_by_role("figure", name="Train loss")).not_to_contain_text("every")
    expect(page.get_by_role("figure", name="GPU utilisation")).to_have_count(0)
    expect(page.get_by_role("figure", name="train_loss")).to_have_count(0)
    page.get_by_role("button", name="Add a chart").click()
    expect(page.locator(".menu")).to_contain_text("GPU utilisationno value yet")
    page.get_by_label("train_loss").check()
    expect(page.get_by_role("figure", name="train_loss", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("figure", name="train_loss", exact=True)).to_be_visible()


def test_ranges_zoom_and_scale_change_what_is_drawn(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    steps = 1_400
    dashboard.add(session(steps), history(steps), run())
    page = open_page()
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(steps))
    slider = page.get_by_role("slider", name="Cursor on Train loss")
    expect(slider).to_have_attribute("aria-valuemin", "0")
    expect(slider).to_have_attribute("aria-valuemax", "1500")
    page.get_by_role("button", name="Last 1k").click()
    expect(slider).to_have_attribute("aria-valuemin", "500")
    box = page.locator(".hero .u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30, steps=4)
    page.mouse.up()
    expect(page.get_by_role("button", name="reset zoom")).to_be_visible()
    low = int(slider.get_attribute("aria-valuemin") or 0)
    assert abs(low - 750) < 10
    page.get_by_role("button", name="reset zoom").click()
    expect(slider).to_have_attribute("aria-valuemin", "500")
    page.get_by_role("button", name="Linear").click()
    expect(page.get_by_role("button", name="Linear")).to_have_attribute("aria-pressed", "true")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot canvas')].every((one) => one.width > 0)"
    )
    assert drawn


def test_the_timeline_marks_what_happened(open_page: Open, dashboard: FakeDashboard) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    expect(page.locator(".mk")).to_have_count(5)
    said = page.locator(".mk").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert said == [
        "ring checkpoint at step 30",
        "note at step 40: warm-up is over",
        "paused 1 min 6 s at step 60",
        "Learning rate 0.2 → 0.1, applied at step 80",
        "manual checkpoint at step 90",
    ]
    page.locator(".mk").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("note")
    page.get_by_role("button", name="Checkpoints").first.click()
    expect(page.locator(".mk")).to_have_count(3)
    dashboard.emit("s1", event(990, "note", note_id="n1", text="", step=40, removed=True))
    expect(page.locator(".mk")).to_have_count(2)


@pytest.mark.web
def test_the_log_is_newest_first_and_can_be_filtered(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    page.locator("body").press("6")
    dashboard.emit("s1", event(991, "log", level="warning", text="loader is slow", step=120))
    lines = page.locator(".log li")
    expect(lines.first).to_contain_text("loader is slow")
    page.get_by_label("Level").select_option("warn")
    expect(lines).to_have_count(1)
    page.get_by_role("searchbox").fill("nothing like this")
    expect(page.locator(".drawer")).to_contain_text("No line matches.")


@pytest.mark.web
def test_a_checkpoint_is_downloaded_with_the_token_in_the_header(
    open_page: Open, dashboard: FakeDashboard, tmp_path: Path
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    page.locator("body").press("3")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download the checkpoint at step 300").click()
    assert coming.value.suggested_filename == "300-manual.ckpt"
    coming.value.save_as(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"weights"
    assert "/api/checkpoints/s1/300-manual/file" in dashboard.requests


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_the_token_is_gone_from_the_address_and_in_no_request(
    prefix: str, open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page(prefix=prefix)
    expect(page.locator(".state")).to_have_attribute("data-state", "running")
    assert page.evaluate("location.href") == dashboard.url(prefix)
    assert TOKEN not in page.content()
    page.reload()
    expect(page.locator(".state")).to_have_attribute("data-state", "running")
    assert f"{prefix}/api/live" in dashboard.requests
    assert all(path.startswith(f"{prefix}/") for path in dashboard.requests)
    assert not [path for path in dashboard.requests if TOKEN in path or "?" in path]


def test_script_in_names_and_lines_stays_text(open_page: Open, dashboard: FakeDashboard) -> None:
    events = [
        event(1, "log", level="info", text=UNEASY),
        event(2, "note", note_id="n", text=UNEASY, step=1),
        train_step(3, 1, 20, metrics={UNEASY: 1.5}),
    ]
    changes = {"run_name": UNEASY, "host": UNEASY, "device": UNEASY, "project": UNEASY}
    params = [{"path": UNEASY, "kind": "float", "value": 1.0, "min": 0.0, "max": 2.0}]
    dashboard.add(session(1, params=params, **changes), events, run(run_name=UNEASY))
    page = open_page()
    expect(page.locator(".sentence b").first).to_have_text(UNEASY)
    for key in ("1", "6"):
        page.locator("body").press(key)
        expect(page.locator(".drawer")).to_contain_text(UNEASY)
    page.locator(".switch").click()
    expect(page.locator(".menu")).to_contain_text(UNEASY)
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('img, #page script').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.web
def test_values_that_are_not_numbers_leave_a_gap_and_no_error(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = [
        train_step(seq, seq, 20, loss=None if seq % 2 else -float(seq)) for seq in range(1, 30)
    ]
    dashboard.add(session(29), events, run())
    page = open_page()
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-value", "-28")
    assert math.isclose(shown(page)["loss"][1], -28.0)
    page.get_by_role("button", name="Linear").click()
    expect(page.locator(".hero canvas")).to_be_visible()


def test_nothing_is_drawn_while_the_page_is_hidden(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page()
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    # A hidden tab gets no animation frames; here they are held back in the same way.
    page.evaluate(
        "window.held = []; window.real = requestAnimationFrame;"
        " window.requestAnimationFrame = (draw) => held.push(draw); null"
    )
    page.evaluate("new Promise((done) => real(() => real(done)))")  # what was asked for before
    for number in range(STEPS + 1, STEPS + 30):
        dashboard.emit("s1", train_step(900 + number, number, 40, ts=NOW))
    page.wait_for_function("held.length > 0", polling=20)
    assert page.evaluate("held.length") < 5
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS))
    page.evaluate(
        "window.requestAnimationFrame = real; held.splice(0).forEach((draw) => draw(0)); null"
    )
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", str(STEPS + 29))


def test_each_run_of_a_session_has_its_own_numbers(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    events = history(STEPS)
    dashboard.add(session(STEPS), events, run())
    page = open_page()
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", str(STEPS))
    own = loss.get_attribute("data-seq")
    dashboard.emit("s1", event(len(events) + 1, "finalizeRun", next_run="hard", last_step=STEPS))
    dashboard.update("s1", run_id="hard", run_name="hard")
    seq = len(events) + 2
    dashboard.emit("s1", train_step(seq, 31, STEPS // 3, ts=NOW, run_id="hard", run_gen=1))
    expect(page.locator(".sentence")).to_contain_text("hard")
    expect(loss).to_have_attribute("data-seq", str(seq))
    expect(loss).to_have_attribute("data-step", "31")
    dashboard.update("s1", run_id="resnet18-baseline", run_name="resnet18-baseline")
    expect(page.locator(".sentence")).to_contain_text("resnet18-baseline")
    expect(loss).to_have_attribute("data-seq", own)
    expect(loss).to_have_attribute("data-step", str(STEPS))
