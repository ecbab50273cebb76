"""Parameters are frozen in a real fit, with what clips and steps by hand in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.no_harm import digest
from tests.no_harm.configs import Manual, Net, _fit
from tests.plugin.rig import Barrier, fitting, pause_in

FROZEN_AT, THAWED_AT = 3, 15


class Script(L.Callback):
    """``requires_grad`` as people write it; the first layer."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        trains = not FROZEN_AT <= trainer.global_step < THAWED_AT
        for parameter in module.net[0].parameters():
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None


LIMITS: dict[str, dict[str, Any]] = {
    "clipped": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", LIMITS)
def test_a_frozen_layer_is_one_whose_gradients_the_script_turned_off(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(FROZEN_AT - 1)
    with fitting(lambda c: _fit(c, Net(), **LIMITS[name]), tmp_path, barrier) as running:
        assert pause_in(running, barrier, FROZEN_AT - 1)["step"] == FROZEN_AT
        frozen = {"path": "model.frozen", "value": "net.0.*", "until": THAWED_AT}
        assert running.dashboard.request("set_param", frozen)["ok"]
        running.dashboard.request("resume")
        live = digest.of(running.outcome())
        told = [e for e in running.dashboard.events() if e["type"] == "param_changed"]
    assert [(e["new"], e["by"], e["applied_step"]) for e in told] == [
        ("net.0.*", "user", FROZEN_AT), ("", "until", THAWED_AT),
    ]  # fmt: skip
    torch.manual_seed(3)
    assert live == digest.of(_fit([Script()], Net(), **LIMITS[name]))


@pytest.mark.timeout(120)
def test_one_of_two_optimizers_can_be_frozen_whole_while_the_module_steps_by_hand(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(2)
    model = Manual()
    with fitting(lambda c: _fit(c, model), tmp_path, barrier) as running:
        pause_in(running, barrier, 2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        assert running.dashboard.request(
            "set_param", {"path": "model.frozen", "value": "head.*"}
        )["ok"]  # fmt: skip
        running.dashboard.request("resume")
        running.outcome()
    stay = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert stay == {"head.weight", "head.bias"}
