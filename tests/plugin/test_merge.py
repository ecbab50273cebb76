"""Merges in a Lightning fit: what is previewed is what is committed, and parents stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from otf_core.state.checkpoint_file import read_checkpoint
from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, _val
from tests.plugin.rig import Barrier, Fit, fitting, pause_in, unlogged
from tests.plugin.test_fork import asks, refused, train

pytestmark = pytest.mark.usefixtures("queues_have_ended")


class Low(nn.Module):
    """What is trained is a LoRA pair beside a layer that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 10)
        self.base.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(64, 2, bias=False), nn.Linear(2, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.lora_B(self.lora_A(x))
        return out


class Adapted(Net):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.net = Low()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        return super().training_step((x, y), batch_idx)


def fit(callbacks: list[L.Callback], module: L.LightningModule) -> L.Trainer:
    trainer = _trainer(callbacks)
    trainer.fit(module, train(), _val())
    return trainer


def bare() -> dict[str, Any]:
    torch.manual_seed(3)
    return unlogged(digest.of(fit([], Adapted())))


def held_with_two(run: Fit, barrier: Barrier) -> None:
    pause_in(run, barrier, 4)
    asks(run, "fork", {"run_name": "f", "params": {"lr": 0.1}})
    asks(run, "resume")
    pause_in(run, barrier, 7)


@pytest.mark.parametrize("strategy", ["adapter", "linear", "fisher", "ties", "soup"])
def test_what_is_committed_is_what_was_previewed_and_parents_stay(
    strategy: str, tmp_path: Path
) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4, 7)

    with fitting(lambda c: fit(c, Adapted()), tmp_path, barrier, run_name="r") as run:
        held_with_two(run, barrier)
        asked = {"parents": ["f", "r"], "strategy": strategy}
        [promised] = asks(run, "merge_preview", asked)["candidates"]
        assert "refused" not in promised, promised
        said = asks(run, "merge", {**asked, "new_name": "m"})
        assert said["at_step"] == 8
        assert asks(run, "validate_now")["metrics"] == promised["metrics"]
        kept = asks(run, "save_ckpt")["path"]
        state, _ = read_checkpoint(Path(kept))
        assert any(float(s["step"]) for s in state["optimizer_states"][0]["state"].values())
        assert asks(run, "undo")["now"]["run_id"] == "f"
        assert refused(run, "merge", {"parents": ["f"]})[0] == "bad_payload"
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        found = unlogged(digest.of(run.outcome()))
    assert found == expected


class LoadsItsOwn(L.Callback):
    """Has a copy of the weights in each checkpoint, and loads that one."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = {n: t.clone() for n, t in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        pl_module.load_state_dict(checkpoint["own"])


@pytest.mark.parametrize(
    ("callback", "previews"), [(EMAWeightAveraging(decay=0.9), False), (LoadsItsOwn(), True)]
)
def test_weights_that_a_callback_would_take_out_again_are_not_merged(
    callback: L.Callback, previews: bool, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    barrier, module = Barrier(4, 7), Adapted()
    with fitting(
        lambda c: fit([callback, *c], module), tmp_path, barrier, run_name="r"
    ) as run:  # fmt: skip
        held_with_two(run, barrier)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        asked = {"parents": ["f", "r"], "strategy": "linear"}
        assert run.dashboard.request("merge_preview", asked)["ok"] == previews
        assert (
            run.dashboard.request("compare", {"runs": ["f", "r"], "on": "train"})["ok"] == previews
        )
        code, detail = refused(run, "merge", {**asked, "new_name": "m"})
        assert (code, "keeps others there" in detail) == ("unsupported", True)
        assert asks(run, "status")["run_id"] == "f"
        assert all(torch.equal(before[n], value) for n, value in module.state_dict().items())
        asks(run, "resume")
        run.outcome()
    assert [path.name for path in sorted(tmp_path.glob("*/*")) if path.is_dir()] == ["f", "r"]


class Counting(Net):
    """A buffer that no checkpoint has, and one that each training step moves."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(schedule=None)
        self.register_buffer("ones", torch.ones(64), persistent=False)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        self.batches += 1
        return super().training_step((x * self.ones, y), batch_idx)


def test_recalibrated_are_the_statistics_of_batch_norm_and_no_other_buffer(tmp_path: Path) -> None:
    torch.manual_seed(3)
    barrier, module = Barrier(4, 7), Counting()
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        held_with_two(run, barrier)
        asked = {"parents": ["f", "r"], "strategy": "linear", "recalibrate": True}
        [promised] = asks(run, "merge_preview", asked)["candidates"]
        told = asks(run, "merge", asked)["told"]
        assert "BatchNorm of 1 layers was gathered anew over 12 batches" in told
        assert asks(run, "validate_now")["metrics"] == promised["metrics"]
        assert int(module.batches) == 8
        asks(run, "resume")
        run.outcome()
