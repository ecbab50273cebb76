"""A value of any kind that is set in a fit is that of a script which sets it at the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core import otf_param
from otf_core.testing.conformance.running import as_if_killed
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import _fit
from tests.plugin.rig import Barrier, fitting, pause_in, unlogged
from tests.plugin.steered import ACCUMULATE, ALL, VALUES, SetsItself, Steered

SET_AT = 8  # batches, and steps
EPOCH = 12
QUICK = ("maximize", ACCUMULATE)


def of_script(*hands: SetsItself) -> dict[str, Any]:
    torch.manual_seed(3)
    return digest.of(_fit([*hands], Steered()))


def named(changes: list[dict[str, Any]]) -> dict[str, Any]:
    return {change["path"]: change["value"] for change in changes}


@pytest.mark.parametrize(
    "path",
    [path if path in QUICK else pytest.param(path, marks=pytest.mark.long) for path in VALUES],
)
def test_it_is_set_at_a_step_to_come(path: str, tmp_path: Path) -> None:
    barrier = Barrier(0)
    torch.manual_seed(3)
    with fitting(lambda c: _fit(c, Steered()), tmp_path, barrier) as fit:
        barrier.wait_for(0)
        change = {"path": path, "value": VALUES[path], "at_step": SET_AT}
        asked = fit.dashboard.send("set_param", change)
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(0)
        data = fit.dashboard.reply_to(asked)["data"]
        assert (data["new"], data["applied_step"]) == (VALUES[path], SET_AT)
        live = digest.of(fit.outcome())
        [told] = [e for e in fit.dashboard.events() if e["type"] == "param_changed"]
    assert (told["path"], told["new"], told["applied_step"]) == (path, VALUES[path], SET_AT)
    assert live == of_script(SetsItself({path: VALUES[path]}, SET_AT))
    assert live["weights"] != of_script()["weights"]


def test_all_are_set_as_one_undone_and_outlive_the_process(tmp_path: Path) -> None:
    def steered(folder: Path, barrier: Barrier, **options: Any) -> Any:
        torch.manual_seed(3)
        names = {"project": "p", "run_name": "r", **options}
        return fitting(lambda c: _fit(c, Steered()), folder, barrier, **names)

    barrier = Barrier(SET_AT - 1)
    with steered(tmp_path / "run", barrier) as fit:
        assert pause_in(fit, barrier, SET_AT - 1)["step"] == SET_AT
        before = fit.dashboard.request("list_params")["data"]["params"]
        assert fit.dashboard.request("set_params", {"changes": ALL})["ok"]
        rows = {r["path"]: r for r in fit.dashboard.request("list_params")["data"]["params"]}
        asked = {**named(ALL), "model.dropout": 0.05}
        assert {path: rows[path]["value"] for path in asked} == asked
        path = fit.dashboard.request("save_ckpt")["data"]["path"]
        path = as_if_killed(path, tmp_path / "run", tmp_path / "disk")
        assert fit.dashboard.request("undo")["ok"]
        assert fit.dashboard.request("list_params")["data"]["params"] == before
        fit.dashboard.request("resume")
        assert digest.of(fit.outcome()) == of_script()

    barrier = Barrier(EPOCH - 1)  # its count is a part of the run
    with steered(tmp_path / "disk", barrier, resume=str(path)) as fit:
        assert pause_in(fit, barrier, EPOCH - 1)["step"] == SET_AT + 1
        rows = {r["path"]: r for r in fit.dashboard.request("list_params")["data"]["params"]}
        assert {path: rows[path]["value"] for path in asked} == asked
        path = fit.dashboard.request("save_ckpt")["data"]["path"]
        path = as_if_killed(path, tmp_path / "disk", tmp_path / "again")
        assert fit.dashboard.request("undo")["ok"]
        assert fit.dashboard.request("list_params")["data"]["params"] == before
        fit.dashboard.request("resume")
        undone = unlogged(digest.of(fit.outcome()))
    assert undone == unlogged(of_script(SetsItself(named(ALL), SET_AT, EPOCH)))

    kept = OnTheFlyCallback("p", "r", save_dir=tmp_path / "again", dashboard="off", resume=path)
    torch.manual_seed(99)
    goes_on = unlogged(digest.of(_fit([kept], Steered())))
    assert goes_on == unlogged(of_script(SetsItself(named(ALL), SET_AT)))


def test_an_accumulation_is_changed_between_two_windows_only(tmp_path: Path) -> None:
    barrier = Barrier(4, 9)
    torch.manual_seed(3)
    with fitting(lambda c: _fit(c, Steered()), tmp_path, barrier) as fit:
        assert pause_in(fit, barrier, 4)["step"] == 5
        both = {ACCUMULATE: 4, "eps": 1e-3}
        changes = [{"path": path, "value": value} for path, value in both.items()]
        asked = fit.dashboard.send("set_params", {"changes": changes})
        fit.dashboard.expect("accepted", request_id=asked)
        rows = {r["path"]: r for r in fit.dashboard.request("list_params")["data"]["params"]}
        assert rows[ACCUMULATE]["value"] == 1
        assert rows[ACCUMULATE]["pending"] == {"value": 4, "at_step": 8}
        fit.dashboard.request("resume")
        data, _ = fit.dashboard.reply_to(asked)["data"]["applied"]
        assert (data["old"], data["new"], data["applied_step"]) == (1, 4, 8)
        assert pause_in(fit, barrier, 9)["step"] == 8  # in the middle of a window
        refused = fit.dashboard.request("undo")
        assert (refused["code"], refused["ok"]) == ("not_allowed_now", False)
        assert "1 step later" in refused["detail"]
        rows = {r["path"]: r for r in fit.dashboard.request("list_params")["data"]["params"]}
        assert {path: rows[path]["value"] for path in both} == both  # all of it, or nothing
        back = [{"path": path, "release": True} for path in both]
        asked = fit.dashboard.send("set_params", {"changes": back})
        fit.dashboard.expect("accepted", request_id=asked)
        fit.dashboard.request("resume")
        data, _ = fit.dashboard.reply_to(asked)["data"]["applied"]
        assert (data["old"], data["new"], data["applied_step"]) == (4, 1, 9)
        live = digest.of(fit.outcome())
    assert live == of_script(SetsItself(both, 8, EPOCH))


def test_what_cannot_be_set_is_refused_by_name(tmp_path: Path) -> None:
    refusals = {
        "precision": "a new run with it",
        "hparams.width": 'otf_param("hparams.width")',
        "hparams.lr": "allowed: lr",
        "fused": "when it is made",
        "attr.nothing": "allowed: lr",
    }
    barrier = Barrier(0)
    torch.manual_seed(3)
    with fitting(lambda c: _fit(c, Steered()), tmp_path, barrier) as fit:
        assert pause_in(fit, barrier, 0)["step"] == 1
        for path, says in refusals.items():
            refused = fit.dashboard.request("set_param", {"path": path, "value": 0.5})
            assert says in refused["detail"]
            expected = "not_found" if path == "attr.nothing" else "unsupported"
            assert (refused["code"], refused["field"]) == (expected, "path")
        fit.dashboard.request("stop")
        fit.outcome()


def test_what_is_declared_and_not_there_is_refused_when_training_begins(tmp_path: Path) -> None:
    ours = OnTheFlyCallback(
        "p", "r", save_dir=tmp_path, dashboard="off", params=[otf_param("mixup_alpha")]
    )
    with pytest.raises(ValueError, match="Steered has no such attribute"):
        _fit([ours], Steered(), max_steps=1)
    with pytest.raises(TypeError, match=r"allowed: a list of otf_param"):
        OnTheFlyCallback(params=["mixup_alpha"])  # type: ignore[list-item]
