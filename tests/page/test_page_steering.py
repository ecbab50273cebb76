"""A real run is steered from the page: what will be is seen before it is, and is what then is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from otf_core.client import Client
from tests.page.conftest import RUN, training
from tests.page.test_page_states import sound

pytestmark = pytest.mark.timeout(180)
PATIENT_MS = 60_000


RULE = "limit:rollback,above=50,lr=0.5,budget=2"
GUARDED = (
    RUN.replace(
        "class Steady",
        """
from pathlib import Path


class Spiky(torch.nn.CrossEntropyLoss):
    def forward(self, *given):
        bad = Path(sys.argv[1], "spike")
        if torch.is_grad_enabled() and bad.exists():
            bad.unlink()
            return super().forward(*given) * 1000
        return super().forward(*given)


class Steady""",
    )
    .replace("LitDigits()", "module").replace("trainer = L.", "module = LitDigits()\ntrainer = L.")
    .replace("trainer.fit", "module.loss = Spiky()\ntrainer.fit")
    .replace("save_dir=", f"checkpoint_every=20, guards={RULE!r}, save_dir=")
)  # fmt: skip
# The host's memory counts as a device's, and what is parked is really gone.
PARKED = (
    """
from otf_core.state import park
from otf_core.testing import FakeAccelerator
park.accelerator_of = lambda _: FakeAccelerator()
"""
    + RUN
)


class Steered:
    """A run on a page, and the client that knows it without the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.client = page, Client.from_url(url)
        self.band = page.locator(".state")
        page.goto(url)
        self.stands("running")
        self.session_id: str = self.client.live_sessions()[0]["session_id"]

    def stands(self, state: str) -> None:
        expect(self.band).to_have_attribute("data-state", state, timeout=PATIENT_MS)

    def pause(self) -> None:
        self.page.locator("[data-cmd=pause] button").click()
        self.stands("paused")
        expect(self.page.locator(".rc").first).to_contain_text(
            "applied at step", timeout=PATIENT_MS
        )

    def steer(self) -> None:
        self.page.locator("[data-panel=steer]").click()

    def row(self, path: str) -> Locator:
        return self.page.locator(f"[data-path='{path}']")

    def ask(self, cmd: str, **payload: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.client.send(self.session_id, cmd, payload)
        return found

    def values(self) -> dict[str, Any]:
        return {row["path"]: row["value"] for row in self.ask("list_params")["params"]}


@contextlib.contextmanager
def shown(browser: Browser, folder: Path, script: str) -> Iterator[Steered]:
    with (
        training(folder, script) as url,
        browser.new_context(viewport={"width": 1440, "height": 900}) as context,
    ):
        yield Steered(context.new_page(), url)


@pytest.fixture
def steered(browser: Browser, tmp_path: Path) -> Iterator[Steered]:
    with shown(browser, tmp_path, RUN) as found:
        yield found


def test_what_a_change_will_do_is_seen_before_it_is_made_and_is_what_then_comes(
    steered: Steered,
) -> None:
    page = steered.page
    steered.pause()
    step = int(str(steered.band.get_attribute("data-step")))
    steered.steer()
    plan = page.get_by_role("figure", name="Plan of learning rate")
    expect(plan).to_contain_text("It goes from", timeout=PATIENT_MS)
    expect(plan.locator(".asked")).to_have_count(0)
    page.locator("[id=param-lr]").fill("0.001")
    expect(plan.locator(".asked")).to_have_count(1, timeout=PATIENT_MS)
    change = {"path": "lr", "value": 0.001}
    coming = steered.ask("preview_params", changes=[change], points=192)
    (then,) = [values for path, values in coming["then"].items() if path.endswith(".lr")]
    expect(plan).to_contain_text(
        re.compile(rf"At the next step it goes from [\d.e-]+ to {then[0]:.4g};")
    )
    assert steered.values()["lr"] != 0.001  # seen is not done

    page.get_by_label("Steps over which lr goes there").fill("40")
    page.get_by_label("Step until which lr holds").fill(str(step))
    expect(steered.row("lr").locator(".st")).to_contain_text(
        f"not possible: until a step after {step}"
    )
    page.get_by_label("Step until which lr holds").fill(str(step + 80))
    expect(steered.row("lr").locator(".st")).to_contain_text(
        f"→ 0.001 over 40 steps, until step {step + 80}, not sent"
    )
    page.locator("[id=param-weight_decay]").fill("0.01")
    expect(page.get_by_role("figure", name="Plan of weight decay")).to_be_visible(
        timeout=PATIENT_MS
    )
    page.get_by_role("button", name="Apply 2 changes").click()
    expect(steered.row("lr").locator(".st")).to_contain_text(
        f"applied at step {step}, read back", timeout=PATIENT_MS
    )
    expect(steered.row("weight_decay").locator(".st")).to_contain_text(
        f"applied at step {step}, read back 0.01"
    )
    expect(page.locator(".rc").first).to_contain_text("Set Learning rate and Weight decay")
    expect(steered.row("weight_decay").locator("[data-current]")).to_have_attribute(
        "data-current", "0.01"
    )
    sound(page)

    page.get_by_role("button", name="Changes", exact=True).click()
    rows = page.locator(".changes li")
    expect(rows).to_have_count(2, timeout=PATIENT_MS)
    expect(rows.first).to_contain_text("Weight decay 0 → 0.01")
    expect(rows.first).to_contain_text(" on Linux")  # who: what the page calls itself
    expect(rows.last).to_contain_text(f", until step {step + 80}")
    sound(page)
    steered.ask("set_param", path="beta1", value=0.5)  # by somebody else, while it is looked at
    expect(rows.first).to_contain_text("Beta 1 0.9 → 0.5", timeout=PATIENT_MS)
    rows.first.get_by_role("button", name="Undo").click()
    expect(page.locator(".rc").first).to_contain_text("beta1 0.9 now", timeout=PATIENT_MS)
    expect(rows.nth(1)).to_contain_text("taken back by change 4", timeout=PATIENT_MS)
    expect(rows.first).to_contain_text("Beta 1 0.5 → 0.9")
    listed = steered.ask("list_changes")["changes"]
    assert [row["id"] for row in listed] == [1, 2, 3, 4]
    assert steered.values()["beta1"] == 0.9
    page.get_by_role("button", name="Values", exact=True).click()

    page.locator("[data-cmd=resume] button").click()
    steered.stands("running")
    row = steered.row("lr").locator(".cur")
    expect(row).to_contain_text("by the script", timeout=PATIENT_MS)
    expect(row).not_to_contain_text("by the script", timeout=PATIENT_MS)  # until its step
    assert steered.values()["weight_decay"] == 0.01


@pytest.mark.web
def test_a_value_of_each_kind_is_set_and_given_back(steered: Steered) -> None:
    page = steered.page
    steered.pause()
    steered.steer()
    for path, typed in (
        ("beta1", "0.5"),  # of an optimizer
        ("model.dropout", "0.1"),
        ("model.frozen", "net.0.*"),
        ("data.batch_size", "16"),
    ):
        page.locator(f"[id='param-{path}']").fill(typed)
    page.locator("[id=param-amsgrad]").select_option("on")
    refusal = page.locator(".dr-f .coming")
    expect(refusal).to_contain_text("would refuse this: amsgrad was asked", timeout=PATIENT_MS)
    page.locator("[id=param-amsgrad]").select_option("off")
    expect(refusal).to_have_count(0, timeout=PATIENT_MS)
    page.locator("[id=param-maximize]").select_option("on")
    page.locator("[id='param-data.takes_effect']").select_option("now")
    page.get_by_role("button", name="Apply 6 changes").click()
    receipt = page.locator(".rc").first
    expect(receipt).to_contain_text("Set Beta 1 and 5 moreapplied at step", timeout=PATIENT_MS)
    for path, read_back in (
        ("beta1", 0.5), ("model.dropout", 0.1),
        ("model.frozen", "net.0.*"), ("data.batch_size", 16), ("maximize", True),
        ("data.takes_effect", "now"),
    ):  # fmt: skip
        current = steered.row(path).locator("[data-current]")
        told = json.dumps(read_back)
        expect(current).to_have_attribute("data-current", told, timeout=PATIENT_MS)
        assert steered.values()[path] == read_back
    expect(steered.row("model.dropout").locator(".st")).to_contain_text("read back 0.1")
    sound(page)
    page.get_by_label("Filter the values").fill("batch")
    expect(page.locator(".pr")).to_have_count(2)
    page.get_by_label("Filter the values").fill("")
    steered.row("beta1").get_by_role("button", name="Give back to the script").click()
    expect(steered.row("beta1").locator(".st")).to_contain_text("read back 0.9", timeout=PATIENT_MS)


@pytest.fixture
def guarded(browser: Browser, tmp_path: Path) -> Iterator[Steered]:
    with shown(browser, tmp_path, GUARDED) as found:
        yield found


@pytest.fixture
def parkable(browser: Browser, tmp_path: Path) -> Iterator[Steered]:
    with shown(browser, tmp_path, PARKED) as found:
        yield found


def test_what_a_guard_does_is_told_and_can_be_taken_back(guarded: Steered, tmp_path: Path) -> None:
    page = guarded.page
    page.locator("[data-panel=health]").click()
    rule = page.locator("[data-rule=limit]")
    expect(rule).to_contain_text("limit on loss", timeout=PATIENT_MS)
    expect(rule).to_contain_text("rolls back and lowers the rate, above 50")
    expect(rule).to_contain_text("2 times left, has seen nothing")
    past_two_checkpoints = re.compile(r"^([5-9]\d|\d{3,})$")
    expect(guarded.band).to_have_attribute("data-step", past_two_checkpoints, timeout=PATIENT_MS)
    (tmp_path / "spike").touch()
    bell = page.locator("[data-menu=notices]")
    expect(bell).to_have_attribute("aria-label", "Notifications, 1 new", timeout=PATIENT_MS)
    expect(rule).to_contain_text("1 time left, last at step", timeout=PATIENT_MS)
    bell.click()
    expect(page.locator(".bell .note")).to_contain_text("shown: guard limit")
    expect(page.locator(".bell .note")).to_contain_text("above 50; back from step")
    page.keyboard.press("Escape")
    mark = page.locator(".mk[data-kind=health]")
    expect(mark).to_have_attribute("aria-label", re.compile(r"guard at step \d+, limit: loss is"))
    expect(page.locator(".fchip", has_text="Health").locator(".c")).to_have_text("1")
    sound(page)

    rule.get_by_role("checkbox").click()
    expect(rule.get_by_role("checkbox")).not_to_be_checked(timeout=PATIENT_MS)
    (row,) = guarded.ask("list_guards")["guards"]
    assert row["enabled"] is False

    guarded.steer()
    page.get_by_role("button", name="Changes", exact=True).click()
    scaled = page.locator(".changes li[data-by=guard]", has_text="Learning rate")
    expect(scaled).to_contain_text("by the guard limit", timeout=PATIENT_MS)
    expect(page.locator(".changes li[data-by=guard]", has_text="Roll back")).to_be_visible()
    scaled.get_by_role("button", name="Undo").click()
    expect(scaled).to_contain_text("taken back by change", timeout=PATIENT_MS)
    sound(page)


@pytest.mark.web
def test_a_held_run_gives_the_device_back_and_goes_on(parkable: Steered) -> None:
    page = parkable.page
    expect(page.locator("[data-cmd=park]")).to_have_count(0)  # while it trains
    parkable.pause()
    park = page.locator("[data-cmd=park]")
    park.get_by_role("button", name="Park").click()
    sentence = page.locator(".sentence")
    expect(sentence).to_contain_text("— GPU memory parked, ", timeout=PATIENT_MS)
    expect(page.locator(".facts")).to_contain_text(re.compile(r"\d kB of the GPU given back"))
    expect(page.locator(".rc").first).to_contain_text(re.compile(r"Park.*given back at step"))
    expect(page.locator("[data-cmd=validate_now] .ctl-n")).to_have_text("parked")
    expect(page.locator("[data-cmd=resume] .ctl-n")).to_have_text("brings back first")
    parkable.steer()
    expect(page.locator(".dr-b .lead.warn")).to_contain_text("The run is parked")
    expect(page.locator("[id=param-lr]")).to_be_disabled()
    sound(page)
    park.get_by_role("button", name="Bring back").click()
    expect(sentence).not_to_contain_text("parked", timeout=PATIENT_MS)
    parkable.stands("paused")
    park.get_by_role("button", name="Park").click()
    expect(sentence).to_contain_text("parked", timeout=PATIENT_MS)
    page.locator("[data-cmd=resume] button").click()
    parkable.stands("running")
    expect(park).to_have_count(0)
