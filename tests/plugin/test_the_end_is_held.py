"""The end of a fit, held inside it: tested, extended, rolled back, and let go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from otf_core.session import DESERTED_S, Session
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val, digits
from tests.plugin.rig import Fit, bare, fitting, unlogged

STEPS_24 = {"max_steps": 24, "max_epochs": -1}  # at the end of an epoch
STEPS_20 = {"max_steps": 20, "max_epochs": -1}


def held(save_dir: Path, *, after_fit: Any = "hold", **limits: Any) -> Any:
    torch.manual_seed(3)
    loader = DataLoader(digits(64), batch_size=16)
    return fitting(
        lambda c: _fit(c, Net(), **limits),
        save_dir,
        after_fit=after_fit,
        test_dataloaders=loader,
    )


def wait_until_held(fit: Fit, step: int) -> dict[str, Any]:
    tested = fit.dashboard.expect("auto_test_complete", step=step)
    fit.dashboard.expect("state", state="paused", reason="after_fit", step=step)
    assert fit.dashboard.expect("paused", step=step)["ckpt"].endswith(f"{step}-final.ckpt")
    return tested


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 24}, {"max_steps": 20}])
def test_the_end_is_tested_and_held_until_it_is_let_go(
    limits: dict[str, int], tmp_path: Path
) -> None:
    expected = bare(**limits)
    last = limits.get("max_steps", 24)
    with held(tmp_path, **limits) as fit:
        tested = wait_until_held(fit, last)
        assert {"test_loss", "test_acc"} <= tested["metrics"].keys()
        assert (tested["status"], tested["source"]) == ("ok", "auto")
        again = fit.dashboard.request("test_now", {"label": "again"})["data"]
        assert again["avg_loss"] == tested["avg_loss"]
        assert fit.is_alive()
        fit.dashboard.request("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


@pytest.mark.parametrize(
    ("limits", "asked", "longer"),
    [
        ({"max_epochs": 2}, {"max_epochs": 3}, {"max_epochs": 3}),
        (STEPS_24, {"max_steps": 31}, {"max_steps": 31, "max_epochs": -1}),
        (STEPS_20, {"max_steps": 30}, {"max_steps": 30, "max_epochs": -1}),
    ],
)
def test_extended_at_its_end_it_is_the_run_that_had_always_been_longer(
    limits: dict[str, int], asked: dict[str, int], longer: dict[str, int], tmp_path: Path
) -> None:
    expected = bare(**longer)
    with held(tmp_path, **limits) as fit:
        wait_until_held(fit, limits.get("max_steps", 24))
        [(name, value)] = asked.items()
        data = fit.dashboard.request("extend", asked)["data"]
        assert (data[name], data["old"][name]) == (value, limits[name])
        fit.dashboard.request("resume")
        wait_until_held(fit, longer.get("max_steps", 36))
        fit.dashboard.request("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 20}])
@pytest.mark.parametrize("step", [0, 12, 17])
def test_rolled_back_at_its_end_it_replays(
    limits: dict[str, int], step: int, tmp_path: Path
) -> None:
    expected = bare(**limits)
    torch.manual_seed(3)
    options = {"after_fit": "hold", "checkpoint_every": step or 12}
    with fitting(lambda c: _fit(c, Net(), **limits), tmp_path, **options) as fit:
        last = limits.get("max_steps", 24)
        fit.dashboard.expect("paused", step=last)
        back = fit.dashboard.request("rollback", {"step": step})
        assert back["data"]["step"] == step, back
        fit.dashboard.request("resume")
        fit.dashboard.expect("state", state="running", step=step)
        fit.dashboard.expect("paused", step=last)
        fit.dashboard.request("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


def test_a_schedule_of_fixed_length_refuses_and_nothing_has_happened(tmp_path: Path) -> None:
    class OneCycle(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=24)
            return [optimizer], [{"scheduler": plan, "interval": "step"}]

    torch.manual_seed(3)
    expected = digest.of(_fit([], OneCycle()))
    torch.manual_seed(3)
    with fitting(lambda c: _fit(c, OneCycle()), tmp_path, after_fit="hold") as fit:
        fit.dashboard.expect("paused", step=24)
        refused = fit.dashboard.request("extend", {"max_epochs": 3})
        assert (refused["code"], "OneCycleLR" in refused["detail"]) == ("unsupported", True)
        less = fit.dashboard.request("extend", {"max_epochs": 2})
        assert (less["code"], less["allowed"]) == ("bad_payload", {"min": 3})
        fit.dashboard.request("resume")
        assert unlogged(digest.of(fit.outcome())) == unlogged(expected)


def test_with_nobody_there_it_is_not_held(tmp_path: Path) -> None:
    torch.manual_seed(3)
    callback = OnTheFlyCallback(save_dir=tmp_path, dashboard="off", after_fit="hold")
    assert digest.of(_fit([callback], Net())) == bare()


def test_auto_does_not_hold_for_ours_until_somebody_says_so(tmp_path: Path) -> None:
    with held(tmp_path, after_fit="auto") as fit:
        assert digest.of(fit.outcome())["steps"] == (24, 2)
        assert not [e for e in fit.dashboard.events() if e["type"] == "paused"]
    with held(tmp_path, after_fit="auto", max_epochs=60) as fit:
        changed = fit.dashboard.request("set_param", {"path": "after_fit", "value": "hold"})
        assert (changed["data"]["old"], changed["data"]["new"]) == ("auto", "hold")
        fit.dashboard.request("extend", {"max_steps": 100})
        wait_until_held(fit, 100)
        fit.dashboard.request("resume")
        fit.outcome()


def test_test_tests_and_returns(tmp_path: Path) -> None:
    with held(tmp_path, after_fit="test") as fit:
        fit.outcome()
        kinds = [e["type"] for e in fit.dashboard.events()]
    assert kinds.count("auto_test_complete") == 1
    assert "paused" not in kinds


def test_held_for_so_long_at_most(tmp_path: Path) -> None:
    torch.manual_seed(3)
    options = {"after_fit": "hold", "max_hold": 0.2}
    with fitting(lambda c: _fit(c, Net()), tmp_path, **options) as fit:
        fit.outcome()
        texts = [e["text"] for e in fit.dashboard.events() if e["type"] == "log"]
    assert any("max_hold" in text for text in texts)


def test_a_minute_after_the_last_dashboard_has_left_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    asked = Session._deserted

    def later(session: Session) -> bool:
        now_s[0] += DESERTED_S / 4
        return asked(session)

    monkeypatch.setattr("otf_core.session.deserted_clock", lambda: now_s[0])
    monkeypatch.setattr(Session, "_deserted", later)
    with held(tmp_path) as fit:
        wait_until_held(fit, 24)
        assert fit.is_alive()
        fit.dashboard.close()
        fit.outcome()


def test_what_the_script_does_after_fit_is_done_once_and_after_the_hold(tmp_path: Path) -> None:
    order: list[str] = []

    def script(callbacks: list[L.Callback]) -> L.Trainer:
        trainer = _trainer(callbacks)
        trainer.fit(Net(), _train(), _val())
        order.append("after fit")
        return trainer

    torch.manual_seed(3)
    with fitting(script, tmp_path, after_fit="hold") as fit:
        fit.dashboard.expect("paused", step=24)
        assert order == []
        fit.dashboard.request("extend", {"max_epochs": 3})
        fit.dashboard.request("resume")
        fit.dashboard.expect("paused", step=36)
        fit.dashboard.request("resume")
        fit.outcome()
    assert order == ["after fit"]
