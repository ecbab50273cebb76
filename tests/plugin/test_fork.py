"""A fork trains on what was chosen, its parent is what it was, and one without changes is its
parent going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _trainer, _val, digits
from tests.plugin.rig import Barrier, Fit, fitting, pause_in, unlogged

pytestmark = pytest.mark.usefixtures("queues_have_ended")


class Numbered(Dataset[Any]):
    """Each sample with its id."""

    def __init__(self) -> None:
        self.data = digits()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return *self.data[index], index


class Seeing(Net):
    """Notes what it was trained on, batch by batch, and at which learning rate.

    Not in an attribute of its own, which would be state, and go back with it.
    """

    def __init__(self) -> None:
        super().__init__()
        trained: list[tuple[list[int], float]] = []
        self.note, self.notes = trained.append, lambda: trained

    @property
    def trained(self) -> list[tuple[list[int], float]]:
        return self.notes()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, ids = batch
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.training:  # and not looked at
            self.note((ids.tolist(), lr))
        return super().training_step((x, y), batch_idx)


def train(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Numbered(), batch_size=16, shuffle=True, num_workers=workers)


def fit(callbacks: list[L.Callback], module: Net, *, workers: int = 0, **limits: Any) -> L.Trainer:
    trainer = _trainer(callbacks, **limits)
    trainer.fit(module, train(workers), _val())
    return trainer


def bare(**limits: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    return unlogged(digest.of(fit([], Seeing(), **limits)))


def asks(fit: Fit, cmd: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = fit.dashboard.request(cmd, payload or {})
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


def refused(fit: Fit, cmd: str, payload: dict[str, Any]) -> tuple[str, str]:
    reply = fit.dashboard.request(cmd, payload)
    assert not reply["ok"], reply
    return reply["code"], reply["detail"]


CHOSEN = [*range(7, 90, 3)]


@pytest.mark.parametrize("batch", [4, 11])  # in an epoch, and its last
def test_a_fork_in_which_nothing_is_other_is_its_parent_going_on(
    batch: int, tmp_path: Path
) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(batch)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, batch)
        said = asks(run, "fork")
        assert said["new_run"] == "fork1"
        assert (said["parent"], said["at_step"], said["subset_indices"]) == ("r", batch + 1, [])
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_it_trains_on_the_chosen_and_its_parent_goes_on_as_if_it_had_not_been(
    workers: int, tmp_path: Path
) -> None:
    expected = bare(workers=workers)
    torch.manual_seed(3)
    module = Seeing()
    barrier = Barrier(4, 11)
    with fitting(lambda c: fit(c, module, workers=workers), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        before = asks(run, "status")
        said = asks(
            run,
            "fork",
            {
                "selection": {"kind": "indices", "ids": CHOSEN},
                "hparams": {"lr": 0.003, "batch_size": 8},
                "run_name": "hard",
            },
        )
        assert said["subset_indices"] == CHOSEN
        now = asks(run, "status")
        assert (now["run_id"], now["state"], now["step"]) == ("hard", "paused", 5)
        assert now["run_gen"] > before["run_gen"]
        asks(run, "resume")
        pause_in(run, barrier, 11)
        ids = [each for batch, _ in module.trained[5:12] for each in batch]
        assert set(ids) <= set(CHOSEN)
        assert sorted(ids[: len(CHOSEN)]) == CHOSEN  # the first pass: each once
        assert [len(batch) for batch, _ in module.trained[5:9]] == [8, 8, 8, 4]
        assert module.trained[5][1] == 0.003
        back = asks(run, "switch_run", {"run_id": "r"})
        assert (back["step"], back["paused"], back["run_id"]) == (5, True, "r")
        asks(run, "resume")
        trainer = run.outcome()
        seen = run.dashboard.events()
    assert unlogged(digest.of(trainer)) == expected
    told = [(e["type"], e["run_id"]) for e in seen if e["type"] in MOVES]
    assert told == [
        ("newRun", "r"),
        ("runTransition", "r"), ("finalizeRun", "r"), ("newRun", "hard"),
        ("runTransition", "hard"), ("finalizeRun", "hard"),
    ]  # fmt: skip
    steps = {
        name: [e["step"] for e in seen if e["type"] == "trainStep" and e["run_id"] == name]
        for name in ("r", "hard")
    }
    assert steps == {"r": list(range(1, 25)), "hard": list(range(6, 13))}
    [made] = [e for e in seen if e["type"] == "newRun" and e["run_id"] == "hard"]
    assert made["parents"] == ["r"]
    assert made["meta"]["subset_count"] == len(CHOSEN)
    assert (made["meta"]["kind"], made["meta"]["at_step"]) == ("fork", 5)
    record = json.loads(next(tmp_path.glob("*/hard/run.json")).read_text())
    assert (record["parents"], record["kind"]) == (["r"], "fork")


MOVES = ("newRun", "runTransition", "finalizeRun")


def test_a_fork_of_a_run_that_trains_trains_at_once_from_the_checkpoint_that_is_named(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    module = Seeing()
    barrier = Barrier(3, 8)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        kept = Path(pause_in(run, barrier, 3)["ckpt"])
        asks(run, "resume")
        barrier.wait_for(8)
        asked = run.dashboard.send("fork", {"checkpoint": kept.stem, "run_name": "again"})
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(8)
        said = run.dashboard.reply_to(asked)["data"]
        assert (said["at_step"], said["applied_step"], said["parent"]) == (4, 4, "r")
        trainer = run.outcome()
        seen = run.dashboard.events()
    assert trainer.global_step == 24
    steps = [e["step"] for e in seen if e["type"] == "trainStep" and e["run_id"] == "again"]
    assert steps == list(range(5, 25))
    assert not [e for e in seen if e["type"] == "paused"][1:]
    # What the parent had trained from there, the fork has trained as well.
    assert module.trained[9:14] == module.trained[4:9]


def test_undo_of_a_fork_is_its_parent_again(tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4, 7)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}})
        asks(run, "resume")
        pause_in(run, barrier, 7)
        said = asks(run, "undo")
        assert said["undone"]["cmd"] == "fork"
        assert said["now"] == {"run_id": "r", "step": 5}
        assert asks(run, "status")["run_id"] == "r"
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


def test_a_fork_of_a_fork_has_its_data_and_both_are_gone_back_to(tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    module = Seeing()
    barrier = Barrier(4, 6, 8)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}})
        asks(run, "resume")
        pause_in(run, barrier, 6)
        inner = asks(run, "fork", {"batch_size": 5})
        assert (inner["new_run"], inner["parent"]) == ("fork2", "fork1")
        assert inner["subset_indices"] == CHOSEN
        asks(run, "resume")
        pause_in(run, barrier, 8)
        assert [len(batch) for batch, _ in module.trained[7:]] == [5, 5]
        assert {each for batch, _ in module.trained[5:] for each in batch} <= set(CHOSEN)
        asks(run, "switch_run", {"run_id": "fork1"})
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


class Worse(Seeing):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", float(self.trainer.global_step))


@pytest.mark.parametrize(
    ("asked", "steps", "why"),
    [
        ({"steps": 3}, 8, "its 8 steps are done"),
        # 2 batches are an epoch: the 3 epochs of the fit would end it 6 steps on.
        ({"steps": 8, "selection": {"kind": "indices", "ids": CHOSEN}}, 13, "its 13 steps are"),
        ({"epochs": 2, "selection": {"kind": "indices", "ids": CHOSEN}}, 9, "its 2 epochs are"),
        ({"hparams": {"patience": 1}}, 24, "val_loss was not below 12"),
    ],
)
def test_a_fork_that_has_had_its_time_is_held(
    asked: dict[str, Any], steps: int, why: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Worse(), max_epochs=3), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", asked)
        asks(run, "resume")
        held = run.dashboard.expect("paused", run_id="fork1")
        state = asks(run, "status")
        asks(run, "resume")
        trainer = run.outcome()
        texts = [e["text"] for e in run.dashboard.events() if e["type"] == "log"]
    assert (held["step"], state["reason"]) == (steps, "guard")
    assert any(text.startswith(f"fork1 is held: {why}") for text in texts), texts
    assert trainer.global_step > steps


class OneCycle(Seeing):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=24)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def test_more_steps_than_a_schedule_has_are_refused_and_not_an_end_of_the_fit(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, OneCycle()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        code, detail = refused(run, "fork", {"batch_size": 8})
        assert (code, "48 steps" in detail, "19 left" in detail) == ("unsupported", True, True)
        asks(run, "fork", {"batch_size": 8, "steps": 19})
        asks(run, "resume")
        assert run.dashboard.expect("paused", run_id="fork1")["step"] == 24
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "run_name": "few"})
        asks(run, "resume")
        assert run.outcome().global_step == 9


class Two(Seeing):
    """Two optimizers, each of which Lightning counts as a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for each in self.optimizers():
            each.step()
            each.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        first, second = self.net[0], self.net[-1]
        return [torch.optim.SGD(each.parameters(), 0.01) for each in (first, second)]


@pytest.mark.parametrize(("module", "max_steps"), [(Seeing, 9), (Two, 18)])
def test_a_fork_with_a_number_of_steps_has_them_where_the_fit_is_limited_by_steps(
    module: type[Seeing], max_steps: int, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(4)
    limits = {"max_epochs": -1, "max_steps": max_steps}
    with fitting(lambda c: fit(c, module(), **limits), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", {"steps": 8})
        asks(run, "resume")
        held = run.dashboard.expect("paused", run_id="fork1")
        assert (held["step"], asks(run, "status")["reason"]) == (13, "guard")
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        assert run.outcome().global_step == max_steps


REFUSED = [
    ({"selection": {"kind": "indices", "ids": []}}, "bad_payload", "means none of 192 samples"),
    ({"selection": {"kind": "indices", "ids": [192]}}, "bad_payload", "a data set with 192"),
    ({"selection": {"kind": "indices", "ids": ["7"]}}, "bad_payload", "Expected `int`"),
    ({"selection": {"kind": "quantile", "from": 0.9}}, "bad_payload", "field `to`"),
    ({"region": {"minLoss": 99.0}}, "bad_payload", "means none of 192 samples"),
    ({"weights": [1.0, 2.0]}, "bad_payload", "2 weights were given for 192 samples"),
    ({"run_name": "../x"}, "bad_payload", "no run name"),
    ({"run_name": "r"}, "bad_payload", "a run named r already"),
    ({"parent_run_id": "nobody"}, "not_found", "No run named 'nobody'"),
    ({"checkpoint": "12-ring"}, "not_found", "no checkpoint '12-ring'"),
    ({"params": {"no.such": 1.0}}, "not_found", "no.such"),
    ({"hparams": {"lr": "fast"}}, "bad_payload", "allowed: a number"),
    ({"batch_size": 0}, "bad_payload", "allowed: 1 or more"),
    ({"steps": -1}, "bad_payload", "allowed: 1 or more"),
]


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        for payload, code, said in REFUSED:
            found, detail = refused(run, "fork", payload)
            assert (found, said in detail) == (code, True), (payload, detail)
        assert refused(run, "switch_run", {"run_id": "nobody"})[0] == "not_found"
        asks(run, "resume")
        trainer = run.outcome()
        kinds = {e["type"] for e in run.dashboard.events()}
    assert not kinds & {"runTransition", "finalizeRun"}
    assert [path.name for path in tmp_path.glob("*/*") if path.is_dir()] == ["r"]
    assert unlogged(digest.of(trainer)) == expected


class Failing(Seeing):
    """Its hook raises when a checkpoint is loaded a second time."""

    loads = 0

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loads += 1
        if self.loads == 1:
            msg = "no luck"
            raise RuntimeError(msg)


def test_a_fork_that_fails_half_way_is_its_parent_going_on(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = unlogged(digest.of(fit([], Failing())))
    torch.manual_seed(3)
    barrier = Barrier(2, 5)
    with fitting(lambda c: fit(c, Failing()), tmp_path, barrier, run_name="r") as run:
        kept = Path(pause_in(run, barrier, 2)["ckpt"])
        asks(run, "resume")
        pause_in(run, barrier, 5)
        code, detail = refused(run, "fork", {"checkpoint": kept.stem, "run_name": "lost"})
        assert (code, "no luck" in detail) == ("internal", True)
        assert asks(run, "status")["run_id"] == "r"
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected
    assert [path.name for path in tmp_path.glob("*/*") if path.is_dir()] == ["r"]


def test_at_the_held_end_a_fork_trains_as_long_again_and_its_parent_is_at_its_end(
    tmp_path: Path,
) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(0)
    with fitting(
        lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r", after_fit="hold"
    ) as run:
        barrier.open()
        run.dashboard.expect("paused", step=24)
        said = asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}})
        assert said["at_step"] == 24
        asks(run, "resume")
        run.dashboard.expect("paused", step=28)
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        trainer = run.outcome()
    found = unlogged(digest.of(trainer))
    assert {name: v for name, v in found.items() if expected[name] != v} == {}


def test_a_fork_that_was_killed_goes_on_with_its_own_data(tmp_path: Path) -> None:
    """A new process that is started as before goes on with the fork, exactly."""

    def trained(callbacks: list[L.Callback], module: Seeing) -> L.Trainer:
        return fit(callbacks, module, max_epochs=3)

    torch.manual_seed(3)
    barrier, module = Barrier(4, 6), Seeing()
    with fitting(lambda c: trained(c, module), tmp_path, barrier, project="p", run_name="r") as run:
        pause_in(run, barrier, 4)
        asks(run, "fork", {"selection": {"kind": "indices", "ids": CHOSEN}, "batch_size": 8})
        asks(run, "resume")
        saved = pause_in(run, barrier, 6)["ckpt"]
        copied = shutil.copytree(tmp_path, tmp_path.parent / "copied")
        asks(run, "resume")
        expected = unlogged(digest.of(run.outcome()))
    torch.manual_seed(99)
    ours = OnTheFlyCallback("p", "r", save_dir=copied, dashboard="off", resume="auto")
    again = Seeing()
    assert unlogged(digest.of(trained([ours], again))) == expected
    assert again.trained == module.trained[7:]
    assert Path(saved).parts[-3] == "fork1"


def test_what_model_checkpoint_keeps_of_the_parent_stays_where_a_fork_is_better(
    tmp_path: Path,
) -> None:
    def kept(callbacks: list[L.Callback], module: Net) -> L.Trainer:
        trainer = _trainer([*callbacks, best], enable_checkpointing=True, max_epochs=4)
        trainer.fit(module, train(), _val())
        return trainer

    torch.manual_seed(3)
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=1)
    barrier = Barrier(12, 36)
    with fitting(lambda c: kept(c, Seeing()), tmp_path / "runs", barrier, run_name="r") as run:
        pause_in(run, barrier, 12)
        of_parent = Path(best.best_model_path)
        asks(run, "fork", {"run_name": "f"})
        asks(run, "resume")
        pause_in(run, barrier, 36)
        of_fork = Path(best.best_model_path)
        assert of_fork != of_parent
        assert of_parent.is_file()
        assert of_fork.is_file()
        asks(run, "switch_run", {"run_id": "r"})
        assert Path(best.best_model_path) == of_parent
        asks(run, "resume")
        run.outcome()
        told = [e["text"] for e in run.dashboard.events() if e["type"] == "log"]
    assert any("is a parent's: it stays" in text for text in told)
    assert not of_parent.exists()  # its own run may drop it
