"""A value that is set in a loop of the user's is that of a loop which sets it itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otf_core import otf_param
from otf_core.testing.conformance.running import as_if_killed
from tests.own_loop.loops import Loop, Net
from tests.own_loop.rig import Barrier, running

SET_AT = 3  # batches that are done
VALUES = {
    "eps": 1e-3, "maximize": True, "model.dropout": 0.75, "attr.gain": 2.5, "attr.scale": 3.0,
}  # fmt: skip


class Dropping(Net):
    """With a rate of a layer, and an attribute that is declared."""

    otf_params = (otf_param("gain", bounds=(0, 4)),)

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.gain = nn.Dropout(0.1), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * super().forward(self.drop(x))


class Steered(Loop):
    """Reads a dict of its own beside the model.

    Attributes:
        hand: batches done -> what it sets itself then.
    """

    def build(self) -> None:
        self.net = Dropping()
        self.optimizer: Any = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 7)
        self.config = {"scale": 1.0}
        self.hand: dict[int, dict[str, Any]] = {}

    def more(self) -> dict[str, Any]:
        return {"state": {}, "params": [otf_param("scale", bounds=(0.5, 8.0), of=self.config)]}

    def loss(self, batch: Any) -> torch.Tensor:
        return self.config["scale"] * super().loss(batch)

    def step(self, batch: Any) -> Any:
        for path, value in self.hand.get(self.n, {}).items():
            if path == "model.dropout":
                self.net.drop.p = value
            elif path == "attr.scale":
                self.config["scale"] = value
            elif path == "attr.gain":
                self.net.gain = value
            else:
                self.optimizer.param_groups[0][path] = value
        return super().step(batch)


def by_hand(*hands: tuple[int, dict[str, Any]]) -> Any:
    loop = Steered()
    loop.hand = dict(hands)
    return loop.bare().digest()


def test_all_are_set_undone_and_outlive_the_process(tmp_path: Path) -> None:
    loop, barrier = Steered(), Barrier(SET_AT)
    before = {
        "eps": 1e-8, "maximize": False, "model.dropout": 0.1, "attr.gain": 1.0, "attr.scale": 1.0,
    }  # fmt: skip
    changes = [{"path": path, "value": value} for path, value in VALUES.items()]
    with running(loop, tmp_path / "run", barrier) as thread:
        barrier.wait_for(SET_AT)
        asked = thread.dashboard.send("pause")
        thread.dashboard.expect("state", state="pausing")
        barrier.let_go(SET_AT)
        assert thread.dashboard.reply_to(asked)["data"]["step"] == SET_AT
        rows = {r["path"]: r for r in thread.dashboard.request("list_params")["data"]["params"]}
        assert {path: rows[path]["value"] for path in before} == before
        assert "trainer.accumulate_grad_batches" not in rows
        assert thread.dashboard.request("set_params", {"changes": changes})["ok"]
        path = thread.dashboard.request("save_ckpt")["data"]["path"]
        path = as_if_killed(path, tmp_path / "run", tmp_path / "disk")
        # In this run they hold for two batches more.
        for name, value in before.items():
            back = {"path": name, "value": value, "at_step": SET_AT + 2}
            thread.dashboard.send("set_param", back)
        thread.dashboard.request("resume")
        thread.wait()
    assert loop.digest() == by_hand((SET_AT, VALUES), (SET_AT + 2, before))

    script = by_hand((SET_AT, VALUES))
    assert script["weights"] != by_hand()["weights"]
    again = Steered(seed=5)
    again.run(save_dir=tmp_path / "disk", resume=str(path))
    assert again.digest() == script


def test_a_rollback_to_before_puts_an_object_of_the_scripts_own_back(tmp_path: Path) -> None:
    loop, barrier = Steered(), Barrier(2)
    with running(loop, tmp_path, barrier) as thread:
        barrier.wait_for(2)
        asked = thread.dashboard.send("pause")
        thread.dashboard.expect("state", state="pausing")
        barrier.let_go(2)
        thread.dashboard.reply_to(asked)
        kept = thread.dashboard.request("save_ckpt")["data"]["id"]
        thread.dashboard.request("set_param", {"path": "attr.scale", "value": 4.0})
        thread.dashboard.request("set_param", {"path": "attr.gain", "value": 4.0})
        assert thread.dashboard.request("rollback", {"checkpoint": kept})["ok"]
        assert (loop.config["scale"], loop.net.gain) == (1.0, 1.0)
        thread.dashboard.request("resume")
        thread.wait()
    assert loop.digest() == by_hand()


def test_what_is_declared_and_not_there_is_refused_before_the_loop_begins(tmp_path: Path) -> None:
    params = [otf_param("alpha", of={"beta": 1.0})]
    with pytest.raises(ValueError, match="dict has no such attribute"):
        Steered().run(save_dir=tmp_path, params=params)
