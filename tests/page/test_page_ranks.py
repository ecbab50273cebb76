"""Runs of several ranks: how each fares, who is silent or has failed, and where a hang hangs."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Open
from tests.page.fake_dashboard import CAPABILITIES, NOW, FakeDashboard, event, history, run, session
from tests.page.test_page_states import sound

STEPS = 60
RESUME = "OTF_RESUME=/runs/cifar/checkpoints/45-ring.ckpt torchrun --nproc-per-node 4 train.py"
LOOKS = [(theme, width) for theme in ("light", "dark") for width in (1440, 1024, 360)]


def row(rank: int, **changes: Any) -> dict[str, Any]:
    """How a rank fares, by its number alone."""
    slow = 22.0 if rank == 2 else 0.0
    fares = {
        "step": STEPS, "standing": False, "state": "ok", "seen_s": 0.4, "step_ms": 71.0 + rank % 3,
        "step_ms_p95": 80.0, "data_wait_ms": 1.5, "wait_ms": 30.0 + rank % 7 - slow,
        "rss_mb": 3120.0, "device_mem_mb": 14_123.5, "loss": 0.34 + rank / 1000,
    }  # fmt: skip
    return {"rank": rank, "host": f"gpu-box-{rank // 4}", **fares, **changes}


def tell(dashboard: FakeDashboard, rows: list[dict[str, Any]], slowest: int | None = 2) -> None:
    """As the trainer does once a second: no number, and not kept."""
    about = {"step": STEPS, "world_size": len(rows), "slowest": slowest, "ts": NOW}
    ranks = {"type": "ranks", "session_id": "s1", "run_id": "resnet18-baseline", **about}
    one = {**ranks, "rows": rows}
    dashboard.push({"kind": "events", "session_id": "s1", "events": [one]})


def gone(seq: int, rank: int, state: str, why: str, **more: Any) -> dict[str, Any]:
    fields = {"seconds": 5.0, "exit_code": None, "checkpoint": None, "resume": None, **more}
    happened = event(seq, "rank_state", rank=rank, state=state, why=why, step=STEPS, **fields)
    return {**happened, "ts": NOW - 2}


def failed(seq: int) -> dict[str, Any]:
    kept = {"checkpoint": "/runs/cifar/checkpoints/45-ring.ckpt", "resume": RESUME}
    why = "rank 1 on gpu-box-0 ended with exit code -9 (SIGKILL)"
    return gone(seq, 1, "failed", why, exit_code=-9, **kept)


def stall(seq: int) -> dict[str, Any]:
    lines = ["train.py:71 in forward", "torch/nn/parallel/distributed.py:1600 in _sync_buffers"]
    others = [*lines, "torch/distributed/distributed_c10d.py:2800 in broadcast"]
    own = ["train.py:88 in on_train_batch_end", "train.py:91 in agree", "all_reduce"]
    places = [
        {"ranks": [0, 2, 3], "where": lines[0], "call": "broadcast", "stack": others},
        {"ranks": [1], "where": "train.py:91 in agree", "call": "all_reduce", "stack": own},
    ]
    about = {"seconds": 13.0, "limit_s": 30.0, "where": lines[0], "stack": others, "over": False}
    return event(seq, "stall", step=STEPS, **about, ranks=places, unheard=[])


@pytest.fixture
def several(dashboard: FakeDashboard) -> FakeDashboard:
    status = {"steps_per_s": 15.3, "snapshot_age_s": 0.05, "world_size": 4}
    able = [*CAPABILITIES, "dist_health"]
    dashboard.add(session(STEPS, status=status, capabilities=able), history(STEPS), run())
    return dashboard


def ready(page: Page) -> Page:
    page.emulate_media(reduced_motion="reduce")
    expect(page.locator("[data-metric=loss]").first).to_have_attribute("data-step", str(STEPS))
    return page


def test_ranks_are_listed_and_one_that_is_silent_back_or_failed_is_said_in_words(
    open_page: Open, several: FakeDashboard
) -> None:
    page = ready(open_page())
    expect(page.locator(".facts")).to_contain_text("4 ranks")
    page.locator("body").press("5")
    expect(page.locator(".ranks")).to_contain_text("Rank 0 alone has told")
    tell(several, [row(rank) for rank in range(4)])
    rows = page.locator(".ranks tbody tr")
    expect(rows).to_have_count(4)
    expect(page.locator(".ranks canvas")).to_have_count(0)
    expect(page.locator(".ranks")).to_contain_text(
        "Slowest: rank 2, 63.0 ms of its own in a step of 73.0 ms"
    )
    expect(rows.nth(2)).to_contain_text("slowest")

    several.emit("s1", gone(901, 3, "silent", "rank 3 on gpu-box-0 has not been heard for 5 s"))
    tell(several, [*(row(rank) for rank in range(3)), row(3, state="silent", seen_s=5.0)])
    expect(page.locator(".sentence")).to_contain_text(", rank 3 silent for 7 s")
    expect(page.locator(".state")).to_have_attribute("data-tone", "warn")
    expect(rows.first).to_have_attribute("data-rank", "3")
    expect(rows.first).to_contain_text("silent 7 s")
    expect(page.get_by_role("alert")).to_contain_text("rank 3 silent")
    expect(page.locator("[data-panel=health] .badge")).to_have_text("1")
    several.emit("s1", gone(902, 3, "back", "rank 3 is heard again after 9 s"))
    expect(page.locator(".sentence")).not_to_contain_text("silent")

    several.emit("s1", failed(903))
    several.update("s1", connected=False, state="lost")
    expect(page.locator(".state")).to_have_attribute("data-state", "failed")
    said = (
        "Failed resnet18-baseline at step 60 — rank 1 on gpu-box-0 ended with exit code -9 "
        "(SIGKILL); the checkpoint at 45 is intact"
    )
    expect(page.locator(".sentence")).to_contain_text(said)
    expect(page.locator(".hang code")).to_have_text(RESUME)
    expect(page.locator(".receipts code")).to_have_text(RESUME)
    sound(page)
    page.locator("body").press("6")
    expect(page.locator(".log")).to_contain_text("rank 3 on gpu-box-0 has not been heard for 5 s")
    expect(page.locator(".log")).to_contain_text("exit code -9; the checkpoint")
    expect(page.locator(".log")).not_to_contain_text("world_size")


@pytest.mark.web
def test_one_rank_has_no_table(open_page: Open, dashboard: FakeDashboard) -> None:
    dashboard.add(session(STEPS), history(STEPS), run())
    page = ready(open_page())
    page.locator("body").press("5")
    expect(page.locator(".health")).to_be_visible()
    expect(page.locator(".ranks")).to_have_count(0)
    expect(page.locator(".facts")).not_to_contain_text("rank")


@pytest.mark.web
def test_a_hang_shows_which_ranks_wait_where(open_page: Open, several: FakeDashboard) -> None:
    page = ready(open_page())
    several.emit("s1", stall(901))
    expect(page.locator(".sentence")).to_have_text(
        "Stalled 43 s — resnet18-baseline at step 60: rank 1 in all_reduce, "
        "ranks 0, 2, 3 in broadcast"
    )
    expect(page.locator(".drawer")).to_have_attribute("aria-label", "Health")
    expect(page.locator(".hang .place")).to_have_count(2)
    first, second = page.locator(".hang .place").all()
    expect(first.locator("summary")).to_have_text("rank 1 all_reduce")
    expect(page.locator(".hang h3")).to_have_text("Stalled 43 s: rank 1 in all_reduce")
    expect(first.locator(".ln")).to_have_count(3)
    expect(second.locator("pre")).to_be_hidden()
    second.locator("summary").click()
    tell(several, [row(rank) for rank in range(4)])
    expect(second.locator(".ln").last).to_contain_text("broadcast")
    expect(page.locator(".hang")).to_contain_text("The calls differ")
    sound(page)
    unheard = {**stall(902), "unheard": [2, 3], "flight": ["/runs/stalls/60/rank-0"]}
    unheard["ranks"] = [
        {**unheard["ranks"][0], "ranks": [0]},
        {**unheard["ranks"][1], "call": None},
    ]
    several.emit("s1", unheard)
    expect(page.locator(".sentence")).to_contain_text("ranks 2, 3 not heard")
    expect(page.locator(".hang")).to_contain_text("Ranks 2, 3 did not answer")
    expect(page.locator(".hang")).to_contain_text("Rank 1 is in no call to other ranks")
    expect(page.locator(".hang .hint").first).to_contain_text("/runs/stalls/60/rank-0")


@pytest.mark.web
def test_two_thousand_ranks_are_a_field_and_the_worst_rows(
    open_page: Open, several: FakeDashboard
) -> None:
    page = ready(open_page())
    page.locator("body").press("5")
    many = [row(rank) for rank in range(2048)]
    many[7] = row(7, state="failed")
    many[1500] = row(1500, state="silent")
    tell(several, many)
    rows = page.locator(".ranks tbody tr")
    expect(rows).to_have_count(8)
    shown = [one.get_attribute("data-rank") for one in rows.all()]
    assert shown[:3] == ["7", "1500", "2"]
    field = page.locator(".ranks canvas")
    expect(field).to_have_attribute("aria-label", "2,048 ranks, a cell each: ranks 7, 1,500 not")
    assert page.locator(".drawer *").count() < 400
    drawn = field.evaluate("""(one) => {
      const { data } = one.getContext("2d").getImageData(0, 0, one.width, one.height);
      return new Set(data).size;
    }""")
    assert drawn > 20
    page.locator(".look input").fill("1203")
    expect(rows.first).to_have_attribute("data-rank", "1203")
    expect(rows).to_have_count(9)
    field.click(position={"x": 3, "y": 3})
    expect(rows.first).to_have_attribute("data-rank", "0")
    sound(page)


@pytest.mark.web
@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_what_is_said_of_ranks_is_readable_at_any_width(
    theme: str, width: int, open_page: Open, several: FakeDashboard
) -> None:
    page = ready(open_page(theme=theme, width=width))
    page.locator("[data-panel=health]").click()
    tell(several, [row(rank) for rank in range(64)])
    several.emit("s1", gone(901, 3, "silent", "rank 3 on gpu-box-0 has not been heard for 5 s"))
    expect(page.locator(".ranks")).to_contain_text("Rank 3 silent for 7 s")
    sound(page)
    several.emit("s1", stall(902))
    expect(page.locator(".hang")).to_be_visible()
    sound(page)
    several.emit("s1", failed(903))
    expect(page.locator(".hang h3")).to_contain_text("Failed: rank 1 on gpu-box-0")
    sound(page)
