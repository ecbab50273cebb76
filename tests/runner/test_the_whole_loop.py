"""What a held run is for, in one go: look, fork a specialist, try every merge, keep the best, test
it, take it elsewhere; and its parent is what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from otf_core.runs.unarchive import unpack
from otf_core.state.checkpoint_file import read_checkpoint
from tests.exact import data, digest
from tests.exact.digest import differences
from tests.plugin.rig import Fit, pause_in
from tests.plugin.test_fork import asks
from tests.runner.rig import Barrier, bare, fitted, fitting
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


def go_through_it(run: Fit, barrier: Barrier, module: Judged) -> None:
    """The best merge of the run "r" with a specialist is held, as the run "both"."""
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
    state, _ = read_checkpoint(Path(asks(run, "save_ckpt")["path"]))
    assert abs(tested["avg_loss"] - loss_of(state["state_dict"])) < 1e-6


def test_its_parent_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    expected = bare(**options(Judged()))
    module, barrier = Judged(), Barrier(2)
    with fitting(tmp_path, barrier, run_name="r", **options(module)) as run:
        go_through_it(run, barrier, module)
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def test_what_comes_of_it_is_taken_out_and_goes_on_elsewhere(tmp_path: Path) -> None:
    module, barrier, named = Judged(), Barrier(2), {"project": "p", "run_name": "r"}
    with fitting(tmp_path / "runs", barrier, **named, **options(module)) as run:
        go_through_it(run, barrier, module)
        table = asks(run, "export_subset", {"selection": WORST, "format": "json"})
        assert len(json.loads(Path(table["out_path"]).read_text())) == 9
        weights = asks(run, "export_weights")
        avg_loss = asks(run, "test_now")["avg_loss"]
        assert abs(avg_loss - loss_of(load_file(weights["out_path"]))) < 1e-6
        packed = asks(run, "export_session")
        assert packed["runs"] == ["r", "hard", "both"]
        asks(run, "resume")
        expected = digest.of_run(run.outcome())
    unpack(Path(packed["out_path"]), tmp_path / "elsewhere")
    torch.manual_seed(99)
    where = {"save_dir": tmp_path / "elsewhere", "dashboard": "off", "resume": "auto"}
    found = digest.of_run(fitted(**where, **named, **options(Judged())))
    assert differences(expected, found) == []


def loss_of(weights: dict[str, torch.Tensor]) -> float:
    """On the test set, without any of us."""
    with torch.random.fork_rng():  # the fit's own are the same
        net = Judged().net.eval()
    x, y = data.digits(32, first=700).tensors
    net.load_state_dict({name.removeprefix("net."): t for name, t in weights.items()})
    with torch.no_grad():
        return float(cross_entropy(net(x), y))
