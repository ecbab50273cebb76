"""Rules that watch a fit of the Runner: what happened, as its journal tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from otf_core import protocol
from otf_core.runner import RunnerCallback
from tests.exact import digest
from tests.exact.native import uncontrolled
from tests.runner.rig import fitted, fitting


class Spoils(RunnerCallback):
    """Batches that go wrong: at a step, as often as is said.

    Args:
        factor: on the inputs.
    """

    is_otf = True  # no part of the run: it does not go back with it

    def __init__(self, step: int, factor: float, times: int = 1) -> None:
        self.step, self.factor, self.times = step, factor, times

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        if run.counters.batches_that_stepped + 1 == self.step and self.times:
            self.times -= 1
            batch[0].mul_(self.factor)


class ScalesItself(RunnerCallback):
    """What a script does that has a smaller rate from a step on."""

    is_otf = True

    def __init__(self, step: int, factor: float) -> None:
        self.step, self.factor = step, factor

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        if run.counters.batches_that_stepped == self.step:
            for group in run.optimizers[0].param_groups:
                group["lr"] *= self.factor


class Settles(RunnerCallback):
    """The disk is never behind: every checkpoint that is due is there."""

    is_otf = True

    def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
        run.between_batches.__self__.session.store.settle()


def told(save_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    """All events of these kinds, of every session, in order."""
    journals = sorted(save_dir.glob("*/*/journal/*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in journals for line in path.read_bytes().splitlines()]
    events = [protocol.decode_message(line) for line in lines]
    return [event for event in events if event["type"] in kinds]


def guarded(save_dir: Path, *callbacks: Any, **options: Any) -> Any:
    given = {"max_epochs": 4, "checkpoint_every": 2, "dashboard": "off", "keep_checkpoints": 50}
    return fitted(Settles(), *callbacks, save_dir=save_dir, **{**given, **options})


def digest_of_a_script(*callbacks: Any) -> Any:
    with mock.patch("otf_core.runner.runner.controlled", uncontrolled):
        return digest.of_run(fitted(*callbacks, max_epochs=4))


def test_a_spike_is_gone_back_from_and_the_run_is_a_scripts_with_the_smaller_rate(
    tmp_path: Path,
) -> None:
    run = guarded(tmp_path, Spoils(17, 50.0), guards="spike:rollback,lr=0.25,window=12")
    [event] = told(tmp_path, "guard")
    [loaded] = told(tmp_path, "checkpoint_loaded")
    assert (event["step"], event["did"], event["at_step"]) == (17, "rollback", 14)
    assert (loaded["step"], loaded["id"]) == (14, "14-ring")
    assert event["value"] > event["bound"] > 0
    assert event["text"] == (
        f"loss is {event['value']:.4g}, above {event['bound']:.4g} by the 12 before it; "
        "back from step 17 to 14 (14-ring), the learning rate times 0.25; 2 of 3 left"
    )
    assert digest.of_run(run) == digest_of_a_script(ScalesItself(14, 0.25))
    spoilt = [e for e in told(tmp_path, "trainStep") if e["step"] == 17]
    assert [e["run_gen"] for e in spoilt] == [0, 1]


def test_what_stays_wrong_is_gone_back_from_as_often_as_is_allowed_and_then_held(
    tmp_path: Path,
) -> None:
    rule = "nan:rollback,budget=2"
    guarded(tmp_path, Spoils(9, torch.nan, times=9), guards=rule, max_pause=0.01)
    first, second, third = told(tmp_path, "guard")[:3]
    assert [e["did"] for e in (first, second, third)] == ["rollback", "rollback", "pause"]
    assert [e["budget_left"] for e in (first, second, third)] == [1, 0, 0]
    assert third["text"] == "loss is nan; its budget of 2 is used up; the run is held"
    # Back to the same checkpoint, where the first change had not been made.
    rates = [e for e in told(tmp_path, "param_changed") if e["by"] == "guard"]
    assert [e["new"] / e["old"] for e in rates] == pytest.approx([0.5, 0.25])
    states = [(e["state"], e["reason"]) for e in told(tmp_path, "state")]
    assert states.count(("paused", "guard")) == 1
    [ended] = told(tmp_path, "guard")[3:]
    assert (ended["rule"], ended["did"]) == ("forgotten_pause", "resume")


def test_what_stays_wrong_is_told_where_that_is_what_is_wanted_then(tmp_path: Path) -> None:
    rule = {"watch": "nan", "action": "rollback", "budget": 0, "then": "notify"}
    guarded(tmp_path, Spoils(9, torch.nan), guards=rule)
    [event] = told(tmp_path, "guard")
    assert (event["did"], event["request_id"], event["requests"]) == ("notify", None, [])
    assert event["text"] == "loss is nan; its budget of 0 is used up, it goes on"
    assert not told(tmp_path, "paused", "checkpoint_loaded")


def test_of_several_rules_one_goes_back_and_all_say_so(tmp_path: Path) -> None:
    rules = ["nan:pause,rule=hold", "nan:rollback", "nan:rollback,rule=too", "nan:notify,rule=say"]
    guarded(tmp_path, Spoils(9, torch.nan), guards=rules, max_pause=0.01)
    events = [e for e in told(tmp_path, "guard") if e["rule"] != "forgotten_pause"]
    assert [(e["rule"], e["did"]) for e in events] == [
        ("say", "notify"),  # at once
        ("nan", "rollback"),
        ("too", "notify"),
        ("hold", "pause"),
    ]
    assert events[2]["text"] == "loss is nan; nan has gone back already"
    [loaded] = told(tmp_path, "checkpoint_loaded")
    [paused] = told(tmp_path, "paused")
    assert paused["step"] == loaded["step"]


def test_what_a_guard_did_is_undone(tmp_path: Path) -> None:
    rules = "nan:rollback;nan:pause,rule=hold"
    spoils = Spoils(9, torch.nan)
    options = {"guards": rules, "checkpoint_every": 2, "max_epochs": 4}
    with fitting(tmp_path, spoils, **options) as fit:
        dashboard = fit.dashboard
        dashboard.expect("paused")
        lr = dashboard.request("list_params")["data"]["params"][0]["value"]
        event = next(e for e in dashboard.events() if e["type"] == "guard")
        gone, scaled = event["requests"]
        back = dashboard.request("undo", {"request_id": scaled})["data"]
        assert (back["undone"]["cmd"], back["now"]) == ("set_param", {"lr": 2 * lr})
        path = dashboard.request("save_ckpt")["data"]["path"]
        # The next rollback does not make up for a change that was taken back.
        assert torch.load(path, weights_only=True)["otf"]["guards"]["factor"] == 1.0
        back = dashboard.request("undo", {"request_id": gone})["data"]
        assert back["now"]["step"] == 9
        dashboard.request("stop", {"save": False})
        fit.wait()
        listed = [e for e in dashboard.events() if e["type"] == "param_changed"]
    assert {e["cause"] for e in listed if e["by"] == "guard"} == {"nan"}


def test_a_run_that_goes_on_has_what_its_rules_had_found_and_used(tmp_path: Path) -> None:
    options = {"guards": ["nan:rollback", "spike:notify,window=12"], "run_name": "r"}
    whole = guarded(
        tmp_path / "whole", Spoils(9, torch.nan), Spoils(20, 50.0), max_epochs=4, **options
    )
    expected = told(tmp_path / "whole", "guard")
    assert [e["rule"] for e in expected] == ["nan", "spike"]

    class Leaves(RunnerCallback):
        is_otf = True

        def on_train_batch_start(self, run: Any, batch: Any, batch_idx: int) -> None:
            if run.counters.batches_that_stepped == 14 and not spoils.times:
                raise RuntimeError

    spoils = Spoils(9, torch.nan)
    with pytest.raises(RuntimeError):
        guarded(tmp_path / "cut", spoils, Leaves(), **options)
    [kept] = (tmp_path / "cut").glob("*/r/checkpoints/12-ring*.ckpt")
    again = guarded(tmp_path / "cut", Spoils(20, 50.0), resume=str(kept), **options)
    assert digest.of_run(again) == digest.of_run(whole)
    events = told(tmp_path / "cut", "guard")
    assert [_found(e) for e in events] == [_found(e) for e in expected]
    used = torch.load(kept, weights_only=True)["otf"]["guards"]
    assert used["rules"]["nan"]["spent"] == 1
    assert used["factor"] == 0.5


def _found(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(event[name] for name in ("rule", "step", "value", "bound", "did", "budget_left"))
