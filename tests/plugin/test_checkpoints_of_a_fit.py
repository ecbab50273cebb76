"""Checkpoints that a person asked for: whole, loadable without us, and no burden to the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val
from tests.plugin.rig import Barrier, fitting, pause_in


def check_file(path: str) -> dict[str, Any]:
    file = Path(path)
    said = json.loads(file.with_suffix(".json").read_text())
    assert said["bytes"] == file.stat().st_size
    assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_files_of_pause_save_and_stop_load_in_a_trainer_without_us(tmp_path: Path) -> None:
    barrier = Barrier(4, 7, 10)
    with fitting(lambda c: _fit(c, Net()), tmp_path, barrier) as fit:
        pause = pause_in(fit, barrier, 4)
        same = fit.dashboard.request("save_ckpt")["data"]
        assert same["path"] == pause["ckpt"]  # nothing has changed since
        fit.dashboard.request("resume")
        barrier.wait_for(7)
        asked = fit.dashboard.send("save_ckpt")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(7)
        save = fit.dashboard.reply_to(asked)["data"]
        barrier.wait_for(10)
        asked = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(10)
        stop = fit.dashboard.reply_to(asked)["data"]
        fit.outcome()
    assert (pause["step"], save["step"], stop["step"]) == (5, 8, 11)
    for path, step in ((pause["ckpt"], 5), (save["path"], 8), (stop["ckpt"], 11)):
        assert check_file(path)["global_step"] == step
        trainer = _trainer([])
        trainer.fit(Net(), _train(), _val(), ckpt_path=path, weights_only=True)
        assert trainer.global_step == 24
    pinned = {
        f.stem: json.loads(f.read_text())["pinned"] for f in tmp_path.glob("*/*/checkpoints/*.json")
    }
    kept = [Path(p).stem for p in (pause["ckpt"], save["path"], stop["ckpt"])]
    assert pinned == dict.fromkeys(["0-auto", *kept], True)


def test_the_ring_keeps_so_many_and_says_which_went(tmp_path: Path) -> None:
    barrier = Barrier(*range(1, 9))
    with fitting(lambda c: _fit(c, Net()), tmp_path, barrier, keep_checkpoints=2) as fit:
        paths = []
        for batch in range(1, 9):
            paths.append(pause_in(fit, barrier, batch)["ckpt"])
            fit.dashboard.request("resume")
        fit.outcome()
    assert [Path(p).exists() for p in paths] == [False] * 6 + [True] * 2
    gone = [e for e in fit.dashboard.events() if e["type"] == "checkpoint_removed"]
    assert [e["path"] for e in gone] == paths[:6]
    assert {e["reason"] for e in gone} == {"ring"}
    left = sorted(p.name for p in tmp_path.glob("*/*/checkpoints/*"))
    kept = ["0-auto", *(Path(p).stem for p in paths[6:]), "24-final"]  # first and last stay
    assert left == sorted(f"{name}{end}" for name in kept for end in (".ckpt", ".json"))


class Raises(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        raise ValueError("my hook does not like this")


class Draws(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["drawn"] = float(torch.rand(()))


def test_a_save_hook_that_raises_refuses_the_command_and_costs_nothing_else(
    tmp_path: Path,
) -> None:
    torch.manual_seed(2)
    expected = digest.of(_fit([], Raises()))
    torch.manual_seed(2)
    barrier = Barrier(3)
    with fitting(lambda c: _fit(c, Raises()), tmp_path, barrier) as fit:
        barrier.wait_for(3)
        save = fit.dashboard.send("save_ckpt")
        stop = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=stop)
        barrier.let_go(3)
        for asked in (save, stop):
            reply = fit.dashboard.reply_to(asked)
            assert not reply["ok"]
            assert reply["code"] == "internal"
            assert "ValueError" in reply["detail"]
        found = digest.of(fit.outcome())
    assert found == expected
    kinds = [e["type"] for e in fit.dashboard.events()]
    assert "stopping" not in kinds
    (end,) = [e for e in fit.dashboard.events() if e["type"] == "trainingFinished"]
    assert end["status"] == "completed"


def test_a_save_hook_that_draws_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(2)
    expected = digest.of(_fit([], Draws()))
    torch.manual_seed(2)
    barrier = Barrier(3)
    with fitting(lambda c: _fit(c, Draws()), tmp_path, barrier) as fit:
        barrier.wait_for(3)
        save = fit.dashboard.send("save_ckpt")
        fit.dashboard.expect("accepted", request_id=save)
        barrier.let_go(3)
        reply = fit.dashboard.reply_to(save)
        assert "drawn" in check_file(reply["data"]["path"])
        found = digest.of(fit.outcome())
    assert found == expected


def test_what_was_saved_does_not_change_while_training_goes_on(tmp_path: Path) -> None:
    """The copy is taken at the step; the weights in it are those of that step."""

    class Weights(L.Callback):
        def __init__(self) -> None:
            self.after: list[dict[str, torch.Tensor]] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            self.after.append({n: t.clone() for n, t in module.state_dict().items()})

    barrier, weights = Barrier(6), Weights()
    with fitting(lambda c: _fit([*c, weights], Net()), tmp_path, barrier) as fit:
        barrier.wait_for(6)
        asked = fit.dashboard.send("save_ckpt")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(6)
        data = fit.dashboard.reply_to(asked)["data"]
        fit.outcome()
    saved = check_file(data["path"])["state_dict"]
    expected = weights.after[data["step"] - 1]
    names = [n for n in expected if n.startswith("net.")]
    assert names
    for name in names:
        assert torch.equal(saved[name], expected[name]), name
