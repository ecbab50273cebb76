"""Every state of the page, light and dark, wide and narrow: words, controls, contrast."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.axe import findings
from tests.page.conftest import Open, retry
from tests.page.fake_dashboard import (
    NOW,
    WAIT_S,
    FakeDashboard,
    event,
    history,
    run,
    session,
    train_step,
)

STEPS = 400

# state -> changes of the session, events, start of the sentence, line under the first control,
# line under Validate
STATES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str, str, str]] = {
    "running": (
        {},
        [],
        "Training resnet18-baseline — step 400 of 50,000, epoch 3, val loss 0.395 ↓, 54 min left",
        "at step end",
        "last: 0.395",
    ),
    "pausing": (
        {
            "state": "pausing",
            "pending": [
                {"request_id": "p1", "cmd": "pause", "since_ts": NOW, "waits_for": "safe_point"}
            ],
        },
        [],
        "Pausing resnet18-baseline — finishing step 401, then it holds there",
        "waits for step end",
        "pausing",
    ),
    "paused": (
        {"state": "paused", "reason": "user", "pending": []},
        [event(1001, "paused", step=400)],
        "Paused resnet18-baseline at step 400 for 30 s — 54 min of training left",
        "from 401",
        "last: 0.395",
    ),
    "validating": (
        {"state": "validating"},
        [event(1002, "resumed", step=400)],
        "Validating resnet18-baseline at step 400 — training goes on when it is done",
        "at step end",
        "running",
    ),
    "testing": (
        {"state": "testing"},
        [],
        "Testing resnet18-baseline at step 400 — training goes on when it is done",
        "at step end",
        "after this",
    ),
    "stalled": (
        {"state": "running"},
        [
            event(
                1003,
                "stall",
                step=400,
                seconds=13.0,
                limit_s=10.0,
                where="train.py:91 in collate",
                over=False,
            )
        ],
        "Stalled 43 s — resnet18-baseline at step 400: train.py:91 in collate",
        "no step end",
        "no step end",
    ),
    "trainer-lost": (
        {"connected": False, "last_ts": NOW - 12},
        [event(1004, "stall", step=400, seconds=20.0, limit_s=10.0, over=True)],
        "Trainer lost 12 s ago — resnet18-baseline was last seen at step 400",
        "trainer lost",
        "trainer lost",
    ),
    "starting": (
        {"connected": True, "state": "starting"},
        [],
        "Starting resnet18-baseline — attached, the first step has not begun",
        "not begun",
        "last: 0.395",
    ),
    "finished": (
        {
            "state": "finished",
            "connected": False,
            "finished": {"status": "completed", "step": 400, "error": None},
        },
        [],
        "Finished resnet18-baseline — 400 steps in 23 s, best val loss 0.287 at step 380",
        "finished",
        "finished",
    ),
    "failed": (
        {
            "state": "failed",
            "finished": {"status": "failed", "step": 400, "error": "RuntimeError: out of memory"},
        },
        [],
        "Failed resnet18-baseline at step 400 — RuntimeError: out of memory; "
        "the checkpoint at 300 is intact",
        "ended",
        "ended",
    ),
    "interrupted": (
        {"state": "interrupted", "finished": {"status": "stopped", "step": 400, "error": None}},
        [],
        "Interrupted resnet18-baseline at step 400 — stopped before its end, "
        "the checkpoint at 300 is intact",
        "ended",
        "ended",
    ),
    "journal": (
        {"state": "journal", "finished": None, "last_ts": NOW - 3 * 3600},
        [],
        "Journal of resnet18-baseline — read from disk, last written 3 h ago at step 400; "
        "no trainer attached",
        "no trainer",
        "no trainer",
    ),
}

NAMES = """() => [...document.querySelectorAll(
    "button, input, select, a, [role=slider], [role=img]")]
  .filter((one) => one.getClientRects().length > 0)
  .filter((one) => {
    const said = one.getAttribute("aria-label") || one.textContent.trim()
      || [...(one.labels || [])].map((label) => label.textContent.trim()).join("");
    return !said;
  }).map((one) => one.outerHTML)"""

CONTRAST = """() => {
  const rgb = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color(") ? parts.slice(-3).map((part) => 255 * part) : parts;
  };
  const lum = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => {
      const s = c / 255;
      return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const one = node.parentElement;
    const exempt = "svg, .sr, .skip, noscript, [aria-disabled=true], .uplot";
    if (!node.textContent.trim() || one.closest(exempt)) continue;
    if (one.getClientRects().length === 0) continue;
    const style = getComputedStyle(one);
    const [a, b] = [lum(rgb(style.color)), lum(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${one.className} ${node.textContent}`);
  }
  return bad;
}"""


def sound(page: Page) -> None:
    """No sideways scroll, every control named, text readable, nothing serious that axe finds."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(NAMES) == []
    assert page.evaluate(CONTRAST) == []
    assert "\n".join(findings(page)) == ""


# Each width and each theme once in `make test`, all of them in `make test-web`.
LOOKS = [
    pytest.param("light", 1440),
    pytest.param("dark", 360),
    *(
        pytest.param(theme, width, marks=pytest.mark.web)
        for theme, width in [("dark", 1440), ("light", 1024), ("dark", 1024), ("light", 360)]
    ),
]


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_every_state_has_its_sentence_its_controls_and_readable_text(
    theme: str, width: int, open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page(width=width, theme=theme)
    band = page.locator(".state")
    seen = dict(session(STEPS))
    # The transitions would blur the colours that are measured.
    page.emulate_media(reduced_motion="reduce")
    for state, (changes, events, sentence, pause, validate) in STATES.items():
        if events:
            dashboard.emit("s1", *events)
        seen.update(changes)
        dashboard.update("s1", **seen)
        expect(band).to_have_attribute("data-state", state)
        expect(page.locator(".sentence")).to_contain_text(sentence)
        assert page.locator(".state").get_attribute("data-step") == "400"
        assert page.locator(".ctl").first.locator(".ctl-n").inner_text() == pause
        assert page.locator("[data-cmd=validate_now] .ctl-n").text_content() == validate
        sound(page)

    dashboard.refusing = True
    dashboard.drop()
    expect(band).to_have_attribute("data-state", "connection-lost")
    expect(page.locator(".conn")).to_contain_text("reconnecting")
    assert page.locator(".ctl-n").all_text_contents() == ["offline"] * 11
    sound(page)
    dashboard.refusing = False
    retry(page)
    expect(band).to_have_attribute("data-state", "journal")


PANELS = ("steer", "samples", "checkpoints", "lineage", "health", "log")


@pytest.mark.parametrize(
    ("theme", "panel"),
    [
        pytest.param(
            theme,
            panel,
            marks=[] if f"{theme} {panel}" in ("light steer", "dark health") else [pytest.mark.web],
        )
        for theme in ("light", "dark")
        for panel in PANELS
    ],
)
def test_every_drawer_and_dialog_is_named_and_readable(
    theme: str, panel: str, open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = open_page(theme=theme, width=1024, height=768)
    page.emulate_media(reduced_motion="reduce")
    page.locator(f"[data-panel={panel}]").click()
    expect(page.locator(".drawer")).to_be_visible()
    sound(page)
    page.set_viewport_size({"width": 360, "height": 740})
    sound(page)
    page.keyboard.press("Escape")
    expect(page.locator(".drawer")).to_have_count(0)
    assert page.evaluate("document.activeElement.dataset.panel") == panel
    for key in ("x", "?"):
        page.locator("body").press(key)
        expect(page.locator("dialog")).to_be_visible()
        sound(page)
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)


def test_without_a_run_the_page_listens_and_shows_the_first_one_by_itself(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    page = open_page()
    expect(page.locator(".state")).to_have_attribute("data-state", "empty")
    expect(page.locator(".sentence")).to_contain_text("No run yet")
    expect(page.locator(".ctl")).to_have_count(0)
    expect(page.locator(".code")).to_contain_text("OnTheFlyCallback()")
    sound(page)
    dashboard.add(session(20), history(20), run())
    dashboard.update("s1")
    dashboard.push({"kind": "run", "run": run()})
    expect(page.locator(".state")).to_have_attribute("data-state", "running")
    expect(page.locator("[data-metric=loss]")).to_have_attribute("data-step", "20")
    dashboard.update(
        "s1", state="finished", finished={"status": "completed", "step": 20, "error": None}
    )
    expect(page.locator(".sentence")).to_contain_text("Finished resnet18-baseline — 20 steps")


def test_a_wrong_token_is_said_and_not_tried_again(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    page = open_page(fragment="#token=guessed")
    expect(page.locator(".state")).to_have_attribute("data-state", "refused")
    expect(page.locator(".sentence")).to_contain_text("no valid token")
    assert [path for path in dashboard.requests if "live" in path] == ["/api/live"]


def test_two_runs_are_told_apart_and_chosen_between(
    open_page: Open, dashboard: FakeDashboard
) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    other = session(40, session_id="s2", run_id="lr-half", started_ts=NOW - 100, connected=False)
    dashboard.add(
        other,
        [{**one, "session_id": "s2", "run_id": "lr-half"} for one in history(40)],
        run(run_id="lr-half", created_ts=NOW - 100, session_ids=["s2"]),
    )
    page = open_page()
    expect(page.locator(".counts")).to_have_text("2 runs, 1 trainer")
    page.get_by_role("button", name="choose another run").click()
    page.get_by_role("button", name="lr-half").click()
    expect(page.locator(".state")).to_have_attribute("data-state", "trainer-lost")
    expect(page.locator(".hero .tag")).to_have_text("B")
    loss = page.locator("[data-metric=loss]")
    expect(loss).to_have_attribute("data-step", "40")

    # What is not looked at is followed no more, and is whole again when it is.
    assert dashboard.left.get(timeout=WAIT_S) == "s1"
    seq = len(history(STEPS))
    missed = [train_step(seq + at, STEPS + at, 130, ts=NOW) for at in range(1, 31)]
    dashboard.events["s1"] += missed
    last = dashboard.events["s1"][-1]["event_seq"]
    dashboard.emit("s1", event(last + 1, "note", note_id="n", text="still here", step=STEPS))
    page.get_by_role("button", name="choose another run").click()
    page.get_by_role("button", name="resnet18-baseline").last.click()
    expect(page.locator(".hero .tag").first).to_have_text("A")
    assert dashboard.left.get(timeout=WAIT_S) == "s2"
    expect(loss).to_have_attribute("data-step", str(STEPS + 30))
    dashboard.emit("s1", train_step(last + 2, STEPS + 31, 130, ts=NOW))
    expect(loss).to_have_attribute("data-step", str(STEPS + 31))
