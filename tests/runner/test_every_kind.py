"""A value of any kind that is set in a fit of the Runner is that of a script which sets it at the
same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from otf_core import otf_param
from otf_core.runner import Runner, RunnerCallback
from otf_core.testing.conformance.running import as_if_killed
from tests.exact import data, digest
from tests.exact.native import uncontrolled
from tests.plugin.rig import pause_in
from tests.plugin.steered import ACCUMULATE, ALL, Hand, Steered
from tests.runner.rig import BATCHES, Barrier, fitted, fitting

SET_AT = 2
CHANGES = [{**change, "value": 2} if change["path"] == ACCUMULATE else change for change in ALL]
VALUES = {change["path"]: change["value"] for change in CHANGES}


class SetsItself(Hand, RunnerCallback):
    """For the Runner."""


def alone(*hands: Any) -> dict[str, Any]:
    """All that the run is which nobody controls, and whose script sets it itself."""
    with mock.patch("otf_core.runner.runner.controlled", uncontrolled):
        return digest.of_run(steered(*hands))


def steered(*callbacks: Any, **options: Any) -> Any:
    torch.manual_seed(3)
    return fitted(*callbacks, model=Steered(), **options)


def test_all_are_set_as_one_undone_and_outlive_the_process(tmp_path: Path) -> None:
    barrier = Barrier(SET_AT - 1)
    names = {"project": "p", "run_name": "r"}
    with fitting(tmp_path / "run", barrier, run=steered, **names) as fit:
        assert pause_in(fit, barrier, SET_AT - 1)["step"] == SET_AT
        before = fit.dashboard.request("list_params")["data"]["params"]
        assert fit.dashboard.request("set_params", {"changes": CHANGES})["ok"]
        path = fit.dashboard.request("save_ckpt")["data"]["path"]
        path = as_if_killed(path, tmp_path / "run", tmp_path / "disk")
        assert fit.dashboard.request("undo")["ok"]
        assert fit.dashboard.request("list_params")["data"]["params"] == before
        fit.dashboard.request("resume")
        assert digest.of_run(fit.outcome()) == alone()

    script = alone(SetsItself(VALUES, SET_AT))
    assert script != alone()
    goes_on = steered(save_dir=tmp_path / "disk", resume=str(path), dashboard="off", **names)
    assert digest.of_run(goes_on) == script


def test_they_are_set_at_a_step_to_come_and_given_back(tmp_path: Path) -> None:
    barrier = Barrier(0, BATCHES - 1)
    with fitting(tmp_path, barrier, run=steered) as fit:
        barrier.wait_for(0)
        asked = fit.dashboard.send("set_params", {"changes": CHANGES, "at_step": SET_AT})
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(0)
        assert fit.dashboard.reply_to(asked)["data"]["applied_step"] == SET_AT
        assert pause_in(fit, barrier, BATCHES - 1)["step"] == SET_AT + 2
        back = [{"path": path, "release": True} for path in VALUES if path != "model.dropout.net.3"]
        assert fit.dashboard.request("set_params", {"changes": back})["ok"]
        fit.dashboard.request("resume")
        live = digest.of_run(fit.outcome())
    assert live == alone(SetsItself(VALUES, SET_AT, BATCHES))


class Thin(nn.Module):
    """A model without hooks."""

    otf_params = (otf_param("gain", bounds=(0.0, 4.0)),)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.gain = nn.Linear(64, 10), nn.Dropout(0.1), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.layer(self.drop(x))


def test_a_model_of_plain_pieces_declares_its_own(tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        torch.manual_seed(3)
        model = Thin()
        runner = Runner(max_steps=3, device="cpu", progress=False, **options)
        runner.fit(
            model, data.loader(), optimizer=torch.optim.SGD(model.parameters(), 0.1),
            loss_fn=nn.functional.cross_entropy,
        )  # fmt: skip
        return runner.run

    with fitting(tmp_path, run=run, pause_at_start=True) as fit:
        fit.dashboard.expect("paused")
        rows = {r["path"]: r for r in fit.dashboard.request("list_params")["data"]["params"]}
        assert rows["attr.gain"]["takes_effect"] == rows["model.dropout"]["takes_effect"]
        assert (rows["attr.gain"]["min"], rows["attr.gain"]["max"]) == (0.0, 4.0)
        for path, value in (("attr.gain", 2.5), ("model.dropout.drop", 0.75)):
            asked = {"path": path, "value": value}
            assert fit.dashboard.request("set_param", asked)["data"]["new"] == value
        fit.dashboard.request("resume")
        model = fit.outcome().parts[0]
    assert (model.gain, model.drop.p) == (2.5, 0.75)
    with pytest.raises(ValueError, match="Thin has no such attribute"):
        run(save_dir=tmp_path, dashboard="off", params=[otf_param("alpha")])
