"""Values of every kind on modules, callbacks, data modules and data sets; saved, and put back."""

from __future__ import annotations

import collections
import enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val
from tests.plugin.rig import Barrier, bare, fitting, pause_in, unlogged


class Phase(enum.Enum):
    WARM = 0.5
    MAIN = 0.1


class Odd(Net):
    """Trains by what a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase.WARM
        self.losses: Any = {Phase.WARM: collections.defaultdict(list)}
        self.rngs = [np.random.default_rng(1)]
        self.loop: list[Any] = []
        self.loop.append(self.loop)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        seen = self.losses.setdefault(self.phase, collections.defaultdict(list))
        seen["all"].append(batch_idx)
        if len(seen["all"]) == 7:
            self.phase = Phase.MAIN
        return loss * self.phase.value * float(self.rngs[0].random()) * len(seen["all"])


def test_a_rollback_puts_back_members_of_enums_and_what_lies_in_containers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = digest.of(_fit([], Odd()))
    torch.manual_seed(3)
    barrier = Barrier(4, 12)
    with fitting(lambda c: _fit(c, Odd()), tmp_path, barrier) as fit:
        early = pause_in(fit, barrier, 4)
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 12)
        fit.dashboard.request("load_ckpt", {"path": early["ckpt"]})
        fit.dashboard.request("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


def test_a_run_whose_data_set_holds_an_array_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    train = _train()
    train.dataset.weights = np.ones(5)
    ours = OnTheFlyCallback("p", "r", save_dir=tmp_path, dashboard="off", checkpoint_every=10)
    trainer = _trainer([ours])
    trainer.fit(Net(), train, _val())

    kept = {p.stem for p in (tmp_path / "p" / "r" / "checkpoints").glob("*.ckpt")}
    assert kept == {"0-auto", "10-ring", "20-ring", "24-final"}
    assert digest.of(trainer) == bare()
