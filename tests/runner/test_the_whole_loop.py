"""What a held run is for, in one go: look, fork a specialist, try every merge, keep the best and
test it; and its parent is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from otf_core.state.checkpoint_file import read_checkpoint
from tests.exact import data, digest
from tests.exact.digest import differences
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks
from tests.runner.rig import Barrier, bare, fitting
from tests.runner.test_fork import Seeing, loader
from tests.runner.test_merge import STRATEGIES, Normed

WORST = {"kind": "quantile", "from": 0.9, "to": 1.0}
STEPS = 3


class Judged(Seeing, Normed):
    """Notes what it trains on; with BatchNorm, and a test."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", cross_entropy(self.net(x), y))


def options(module: Judged) -> dict[str, Any]:
    test = data.val_loader(data.digits(32, first=700))
    return {"model": module, "pieces": {"train_loader": loader(), "test_loader": test}}


def test_a_specialist_is_forked_merged_and_tested_and_its_parent_is_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    expected = bare(**options(Judged()))
    module, barrier = Judged(), Barrier(2)
    with fitting(tmp_path, barrier, run_name="r", **options(module)) as run:
        pause_in(run, barrier, 2)

        scanned = asks(run, "scan")
        page = asks(run, "samples")
        worst = sorted(np.argsort(page["losses"], kind="stable")[-9:].tolist())
        assert sorted(each["id"] for each in scanned["figures"]["worst"][:9]) == worst

        fork = asks(run, "fork", {"selection": WORST, "steps": STEPS, "run_name": "hard"})
        assert fork["subset_indices"] == worst
        before = len(module.notes())
        asks(run, "resume")
        assert run.dashboard.expect("state", state="paused", reason="guard")["step"] == 3 + STEPS
        # A batch holds them all, so each step is a pass.
        assert [sorted(ids) for ids in module.notes()[before:]] == [worst] * STEPS

        parents = {"parents": ["hard", "r"]}
        preview = asks(run, "merge_preview", parents)
        tried = {each["strategy"]: each["metrics"] for each in preview["candidates"][:-1]}
        assert [*tried] == STRATEGIES
        best = min(tried, key=lambda name: tried[name]["val_loss"])
        asks(run, "merge", {**parents, "strategy": best, "new_name": "both"})
        assert asks(run, "validate_now")["metrics"] == tried[best]

        tested = asks(run, "test_now")
        assert tested["metrics"]["test_loss"] == tested["avg_loss"]
        assert abs(tested["avg_loss"] - loss_of(asks(run, "save_ckpt")["path"])) < 1e-6

        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def loss_of(checkpoint: str) -> float:
    """Of its weights on the test set, without any of us."""
    net, (x, y) = Judged().net.eval(), data.digits(32, first=700).tensors
    state, _ = read_checkpoint(Path(checkpoint))
    net.load_state_dict({k.removeprefix("net."): t for k, t in state["state_dict"].items()})
    with torch.no_grad():
        return float(cross_entropy(net(x), y))
