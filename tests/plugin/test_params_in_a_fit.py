"""An edit in a real fit: the value that each later step really used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.no_harm.configs import Net, _fit
from tests.plugin.rig import Barrier, Fit, fitting

HELD = 5  # batches done when the edit is made
BATCHES = 24


class Used(L.Callback):
    """What the optimizers had when they stepped."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        kept = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        self.groups.append([{k: float(v) if k == "lr" else v for k, v in g.items()} for g in kept])

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        # Lightning clips after on_before_optimizer_step; here the step is done.
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0)

    def lrs(self) -> list[float]:
        return [g[0]["lr"] for g in self.groups]


class Scheduled(Net):
    def __init__(self, make: Callable[[Any], Any], *, by: str = "step", **kwargs: Any) -> None:
        super().__init__(schedule=None, **kwargs)
        self.make, self.by = make, by

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plan = self.make(optimizer)
        config = {"scheduler": plan, "interval": self.by, "monitor": "val_loss"}
        return {"optimizer": optimizer, "lr_scheduler": config}


def held(fit: Fit, barrier: Barrier) -> int:
    """Pause after ``HELD`` batches; the step."""
    barrier.wait_for(HELD - 1)
    asked = fit.dashboard.send("pause")
    fit.dashboard.expect("state", state="pausing")
    barrier.let_go(HELD - 1)
    return int(fit.dashboard.reply_to(asked)["data"]["step"])


def edit_in(
    model: Callable[[], L.LightningModule], tmp: Path, *edits: dict[str, Any], **kwargs: Any
) -> tuple[Used, list[dict[str, Any]], Any]:
    """Pause, make the edits, resume; what was used, the replies, the dashboard."""
    torch.manual_seed(3)
    barrier, used = Barrier(HELD - 1), Used()
    with fitting(lambda c: _fit([*c, used], model(), **kwargs), tmp, barrier) as fit:
        assert held(fit, barrier) == HELD
        replies = [fit.dashboard.request("set_param", edit) for edit in edits]
        fit.dashboard.request("resume")
        fit.outcome()
    return used, replies, fit.dashboard


def lrs_of(model: Callable[[], L.LightningModule], **kwargs: Any) -> list[float]:
    """The same run without an edit."""
    torch.manual_seed(3)
    used = Used()
    _fit([used], model(), **kwargs)
    return used.lrs()


SCHED = torch.optim.lr_scheduler
SCHEDULES: dict[str, Callable[[], L.LightningModule]] = {
    "step": lambda: Scheduled(lambda o: SCHED.StepLR(o, 4, gamma=0.5)),
    "step_by_epoch": lambda: Scheduled(lambda o: SCHED.StepLR(o, 1, gamma=0.5), by="epoch"),
    "cosine": lambda: Scheduled(lambda o: SCHED.CosineAnnealingLR(o, 40)),
    "one_cycle": lambda: Scheduled(
        lambda o: SCHED.OneCycleLR(o, 0.02, total_steps=30, cycle_momentum=False)
    ),
    "lambda": lambda: Scheduled(lambda o: SCHED.LambdaLR(o, lambda n: 1 / (1 + n))),
    "warmup_then_cosine": lambda: Scheduled(
        lambda o: SCHED.SequentialLR(
            o, [SCHED.LinearLR(o, 0.1, 1.0, 8), SCHED.CosineAnnealingLR(o, 30)], [8]
        )
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`:UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_edit_under_a_schedule_scales_all_that_remains_of_it(name: str, tmp_path: Path) -> None:
    plain = lrs_of(SCHEDULES[name])
    target = plain[HELD] * 0.25
    used, (reply,), dashboard = edit_in(SCHEDULES[name], tmp_path, {"path": "lr", "value": target})
    data = reply["data"]
    assert (data["old"], data["new"], data["mode"], data["owner"]) == (
        pytest.approx(plain[HELD]), pytest.approx(target), "scale", "scheduler",
    )  # fmt: skip
    assert data["applied_step"] == HELD
    assert used.lrs()[:HELD] == plain[:HELD]
    assert used.lrs()[HELD:] == pytest.approx([lr * 0.25 for lr in plain[HELD:]], rel=1e-6)
    told = [e for e in dashboard.events() if e["type"] == "param_changed"]
    assert [(e["path"], e["applied_step"], e["by"]) for e in told] == [("lr", HELD, "user")]
    steps = [e["step"] for e in dashboard.events() if e["type"] == "trainStep"]
    assert steps == list(range(1, BATCHES + 1))
    assert dashboard.seqs() == list(range(1, len(dashboard.seqs()) + 1))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`:UserWarning")
def test_override_holds_the_value_until_the_end(name: str, tmp_path: Path) -> None:
    plain = lrs_of(SCHEDULES[name])
    used, (reply,), _ = edit_in(
        SCHEDULES[name], tmp_path, {"path": "lr", "value": 0.003, "mode": "override"}
    )
    assert reply["data"]["mode"] == "override"
    assert used.lrs() == plain[:HELD] + [0.003] * (BATCHES - HELD)


def test_a_plateau_goes_on_reducing_what_was_set(tmp_path: Path) -> None:
    def model() -> L.LightningModule:
        return Scheduled(
            lambda o: SCHED.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=10.0),
            by="epoch",
        )

    plain = lrs_of(model)
    used, _, _ = edit_in(model, tmp_path, {"path": "lr", "value": 0.002})
    scale = [lr / plain[HELD] for lr in plain[HELD:]]
    assert used.lrs()[HELD:] == pytest.approx([0.002 * s for s in scale], rel=1e-6)


def test_without_a_schedule_the_value_holds(tmp_path: Path) -> None:
    used, (reply,), _ = edit_in(lambda: Net(schedule=None), tmp_path, {"path": "lr", "mul": 0.5})
    assert reply["data"]["until"] is None
    assert reply["data"]["mode"] == "override"
    assert used.lrs() == [1e-2] * HELD + [5e-3] * (BATCHES - HELD)


def test_decay_and_betas_are_what_the_next_step_uses(tmp_path: Path) -> None:
    used, replies, _ = edit_in(
        lambda: Net(schedule=None),
        tmp_path,
        {"path": "weight_decay", "value": 0.125},
        {"path": "beta1", "value": 0.5},
    )
    assert all(r["ok"] for r in replies), replies
    assert {g[0]["weight_decay"] for g in used.groups[HELD:]} == {0.125}
    assert {g[0]["betas"] for g in used.groups[HELD:]} == {(0.5, 0.999)}
    assert {g[0]["betas"] for g in used.groups[:HELD]} == {(0.9, 0.999)}


def test_clipping_that_was_off_is_on_from_the_next_step(tmp_path: Path) -> None:
    used, (reply,), _ = edit_in(
        lambda: Net(schedule=None), tmp_path, {"path": "gradient_clip_val", "value": 0.01}
    )
    assert reply["ok"], reply
    assert (reply["data"]["old"], reply["data"]["new"]) == (None, 0.01)
    # on_before_zero_grad of a batch sees the gradients of the one before
    assert min(used.norms[1 : HELD + 1]) > 0.05
    assert max(used.norms[HELD + 1 :]) <= 0.0101


class TwoGroups(Net):
    tensor = False

    def configure_optimizers(self) -> Any:
        def lr(value: float) -> Any:
            return torch.tensor(value) if self.tensor else value

        first, *rest = self.net.parameters()
        return torch.optim.Adam(
            [{"params": [first], "lr": lr(0.01)}, {"params": rest, "lr": lr(0.02)}], lr=lr(0.01)
        )


class TwoGroupsOfTensors(TwoGroups):
    tensor = True


@pytest.mark.parametrize("model", [TwoGroups, TwoGroupsOfTensors])
def test_one_group_and_all_groups(model: type[TwoGroups], tmp_path: Path) -> None:
    used, (one, both), _ = edit_in(
        model,
        tmp_path,
        {"path": "optim.0.groups.1.lr", "value": 0.004},
        {"path": "lr", "mul": 0.5},
    )
    assert one["data"]["old"] == pytest.approx(0.02)
    assert both["data"]["old"] == pytest.approx([0.01, 0.004])
    assert both["data"]["new"] == pytest.approx([0.005, 0.002])
    last = [g["lr"] for g in used.groups[-1]]
    assert last == pytest.approx([0.005, 0.002])


def test_at_step_applies_before_exactly_that_next_step(tmp_path: Path) -> None:
    barrier, used = Barrier(2), Used()
    with fitting(lambda c: _fit([*c, used], Net(schedule=None)), tmp_path, barrier) as fit:
        barrier.wait_for(2)
        asked = fit.dashboard.send("set_param", {"path": "lr", "value": 0.5, "at_step": 9})
        assert fit.dashboard.expect("accepted", request_id=asked)["waits_for"] in (
            "step 9", "safe_point",
        )  # fmt: skip
        barrier.let_go(2)
        data = fit.dashboard.reply_to(asked)["data"]
        assert data["applied_step"] == 9
        fit.outcome()
    assert used.lrs() == [1e-2] * 9 + [0.5] * (BATCHES - 9)


def test_what_is_refused_is_refused_at_once_and_changes_nothing(tmp_path: Path) -> None:
    barrier, used = Barrier(4), Used()
    refusals: list[tuple[dict[str, Any], str, str | None]] = [
        ({"path": "lr", "value": -1.0}, "bad_payload", "value"),
        ({"path": "lr", "value": "fast"}, "bad_payload", "value"),
        ({"path": "lr", "value": None}, "bad_payload", None),
        ({"path": "lr"}, "bad_payload", None),
        ({"path": "lr", "value": 1.0, "mul": 2.0}, "bad_payload", None),
        ({"path": "lr", "mul": 0.5, "mode": "odd"}, "bad_payload", "mode"),
        ({"path": "lr", "value": 0.1, "at_step": 1}, "bad_payload", "at_step"),
        ({"path": "beta1", "value": 1.0}, "bad_payload", "value"),
        ({"path": "momentum", "value": 0.5}, "not_found", "path"),
        ({"path": "optim.7.groups.0.lr", "value": 0.5}, "not_found", "path"),
        ({"path": "gradient_clip_val", "value": -2}, "bad_payload", "value"),
    ]
    with fitting(lambda c: _fit([*c, used], Net(schedule=None)), tmp_path, barrier) as fit:
        barrier.wait_for(4)
        asked = [fit.dashboard.send("set_param", p) for p, _, _ in refusals]
        barrier.open()
        for request_id, (payload, code, field) in zip(asked, refusals, strict=True):
            reply = fit.dashboard.reply_to(request_id)
            assert not reply["ok"], payload
            assert reply["code"] == code, reply
            assert field is None or reply["field"] == field, reply
            assert reply["detail"].strip().endswith("."), reply
        fit.outcome()
    assert used.lrs() == [1e-2] * BATCHES
    assert not [e for e in fit.dashboard.events() if e["type"] == "param_changed"]


def test_a_script_that_writes_the_rate_itself_is_said(tmp_path: Path) -> None:
    class Writes(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.03

    barrier, used = Barrier(HELD - 1), Used()
    with fitting(
        lambda c: _fit([*c, Writes(), used], Net(schedule=None)), tmp_path, barrier
    ) as fit:
        held(fit, barrier)
        assert fit.dashboard.request("set_param", {"path": "lr", "value": 0.001})["ok"]
        fit.dashboard.request("resume")
        fit.outcome()
    said = [e["text"] for e in fit.dashboard.events() if e["type"] == "log"]
    assert len([t for t in said if "the training script writes it itself" in t]) == 1, said
    assert used.lrs() == [0.03] * BATCHES
