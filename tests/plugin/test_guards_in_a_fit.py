"""Rules that watch a fit of Lightning, of one rank and of two: what happened, what it came to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit
from tests.plugin.ranks_guarded import BACK, SPOILT
from tests.plugin.rig import unlogged
from tests.plugin.test_ranks_as_one import outcome, result
from tests.ranks import rig
from tests.runner.test_guards import told


class Spoils(L.Callback):
    """Makes a batch a spike, once; the disk is never behind."""

    def __init__(self, step: int, factor: float, ours: OnTheFlyCallback) -> None:
        self.is_otf = True  # no part of the run
        self.left: dict[int, float] = {step: factor}
        self.ours = ours

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self.ours.session is not None
        self.ours.session.store.settle()
        batch[0].mul_(self.left.pop(trainer.global_step + 1, 1.0))


class ScalesItself(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 14:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 0.5


def test_a_spike_is_gone_back_from_and_the_fit_is_a_scripts_with_the_smaller_rate(
    tmp_path: Path,
) -> None:
    ours = OnTheFlyCallback(
        "p", "r", save_dir=tmp_path, dashboard="off", checkpoint_every=2,
        guards=["spike:rollback,window=15,z=4", "plateau:notify,metric=train_acc,patience=1000"],
    )  # fmt: skip
    torch.manual_seed(3)
    found = digest.of(_fit([Spoils(17, -1.0, ours), ours], Net(schedule=None)))
    [event] = told(tmp_path, "guard")
    assert (event["step"], event["did"], event["at_step"]) == (17, "rollback", 14)
    torch.manual_seed(3)
    script = digest.of(_fit([ScalesItself()], Net(schedule=None)))
    del found["callbacks"], script["callbacks"]
    assert unlogged(found) == unlogged(script)


@pytest.mark.parametrize("guards", [None, "nan:rollback;spike:rollback;plateau;overfit"])
def test_rules_that_find_nothing_change_nothing(guards: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    bare = digest.of(_fit([], Net()))
    torch.manual_seed(3)
    ours = OnTheFlyCallback(
        "p", "r", save_dir=tmp_path, dashboard="off", checkpoint_every=8, guards=guards
    )
    found = digest.of(_fit([ours], Net()))
    found["callbacks"].pop("OnTheFlyCallback", None)
    assert found == bare
    assert not told(tmp_path, "guard")
    [kept] = tmp_path.glob("p/r/checkpoints/*-final.ckpt")
    otf = torch.load(kept, weights_only=True)["otf"]
    assert ("guards" in otf) == (guards is not None)


@pytest.mark.timeout(240)
def test_the_nan_of_another_rank_is_gone_back_from_on_both(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.plugin.ranks_guarded", str(tmp_path))
    with rig.started(*command) as process:
        err = outcome(process)
    [event] = told(tmp_path / "runs", "guard")
    # Rank 1 has given its NaN to all by the gradient: rank 0 sees it one step later.
    assert (event["step"], event["did"], event["at_step"]) == (SPOILT + 1, "rollback", BACK)
    said = [line for line in err.splitlines() if "guard nan" in line]
    assert len(said) == 1
    [changed] = told(tmp_path / "runs", "param_changed")
    assert (changed["by"], changed["cause"], changed["applied_step"]) == ("guard", "nan", BACK)
    for rank in (0, 1):
        bare, live = (result(tmp_path, name, rank) for name in ("bare", "guarded"))
        assert json.dumps(live.pop("logged")[-3:]) == json.dumps(bare.pop("logged")[-3:])
        assert live == bare
