"""A fit of the Runner under control, face to face with a dashboard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.runner import Runner, RunnerCallback
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.keeper import ResumeError
from tests.exact import data, digest, models
from tests.exact.models import Net
from tests.plugin.rig import pause_in
from tests.runner.rig import BATCHES, Barrier, Logged, bare, fitted, fitting
from tests.runner.shapes import SHAPES
from tests.runner.sides import trained


@pytest.fixture(autouse=True)
def _any_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTF_DASHBOARD")


def journals(folder: Path) -> list[list[dict[str, Any]]]:
    files = sorted(folder.glob("*/*/journal/*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    return [[json.loads(line) for line in f.read_text().splitlines()] for f in files]


def ending(events: list[dict[str, Any]]) -> tuple[str, str, str | None]:
    """Last state, status and error; said once."""
    (finished,) = [e for e in events if e["type"] == "trainingFinished"]
    states = [e["state"] for e in events if e["type"] == "state"]
    return states[-1], finished["status"], finished.get("error")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*/checkpoints/*.ckpt"))


# ------------------------------------------------------------------------------ do no harm


@pytest.mark.parametrize("name", ["plain", "metrics, tested", "gan", "logs everywhere"])
@pytest.mark.parametrize("otf", [{}, {"telemetry": "off"}, {"checkpoint_every": 2}])
def test_a_fit_that_nobody_looks_at_is_lightnings(
    name: str, otf: dict[str, Any], tmp_path: Path
) -> None:
    shape = SHAPES[name]
    told, expected = trained(shape, "lightning", hooks=False)
    given = {**shape.options, "dashboard": "off", "save_dir": tmp_path, **otf}
    found_told, found = trained(dataclasses.replace(shape, options=given), "runner", hooks=False)
    assert digest.differences(expected, found) == []
    assert told == found_told
    assert ending(journals(tmp_path)[0]) == ("finished", "completed", None)


@pytest.mark.parametrize("options", [{}, {"telemetry": "off"}])
def test_a_connected_dashboard_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    alone, watched = Logged(), Logged()
    expected = digest.of_run(fitted(alone, dashboard="off", save_dir=tmp_path / "a"))
    assert expected == bare()
    with fitting(tmp_path / "b", watched, **options) as fit:
        assert digest.of_run(fit.outcome()) == expected
    assert watched.lines == alone.lines
    steps = [e["step"] for e in fit.dashboard.events() if e["type"] == "trainStep"]
    assert steps == ([] if options else list(range(1, 2 * BATCHES + 1)))


# ------------------------------------------------------------------------- held and changed


class Steps(RunnerCallback):
    """Counts what the optimizer really did."""

    is_otf = True

    def __init__(self) -> None:
        self.done = 0

    def on_before_zero_grad(self, *_: Any) -> None:
        self.done += 1


def test_pausing_at_once_and_paused_only_on_arrival(tmp_path: Path) -> None:
    barrier, steps = Barrier(5), Steps()
    with fitting(tmp_path, barrier, steps) as fit:
        dashboard = fit.dashboard
        barrier.wait_for(5)
        asked = dashboard.send("pause")
        assert dashboard.expect("state", state="pausing")["step"] == 5
        assert not any(m.get("type") == "paused" for m in dashboard.messages)
        barrier.let_go(5)
        reply = dashboard.reply_to(asked)["data"]
        assert reply["step"] == dashboard.expect("paused")["step"] == 6
        state, manifest = read_checkpoint(Path(reply["ckpt"]))
        assert manifest is not None
        assert manifest.exact
        [optimizer] = state["optimizer_states"]
        assert {float(v["step"]) for v in optimizer["state"].values()} == {6.0}
        assert state["otf"]["exact"]["counters"]["global_step"] == 6
        assert steps.done == 6
        status = dashboard.request("status")["data"]
        assert (status["state"], status["epoch"], status["max_epochs"]) == ("paused", 1, 2)
        assert dashboard.request("resume")["data"]["changed"]
    kinds = [e["type"] for e in fit.dashboard.events()]
    between = kinds[kinds.index("paused") : kinds.index("resumed")]
    assert "trainStep" not in between


class SetsRate(RunnerCallback):
    """What a person would have written into the script."""

    is_otf = True

    def __init__(self, at_batch: int, rate: float) -> None:
        self._at, self._rate, self._seen = at_batch, rate, 0

    def on_train_batch_start(self, run: Any, *_: Any) -> None:
        if self._seen == self._at:
            for group in run.optimizers[0].param_groups:
                group["lr"] = self._rate
        self._seen += 1


def pieces(model: nn.Module) -> dict[str, Any]:
    return {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "loss_fn": nn.CrossEntropyLoss(),
        "test_loader": data.val_loader(data.digits(48, first=800)),
    }


def plain_model() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


RUNS: dict[str, Any] = {
    "a module": dict,
    "accumulating": lambda: {"accumulate_grad_batches": 4},
    "in bf16": lambda: {"precision": "bf16-mixed"},
    "plain pieces": lambda: {"model": plain_model(), "pieces": pieces},
    "workers": lambda: {
        "pieces": {
            "train_loader": data.loader(data.Augmented(), num_workers=1, persistent_workers=True)
        }
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_pause_validate_set_resume_is_the_run_with_that_rate(name: str, tmp_path: Path) -> None:
    expected = digest.of_run(
        fitted(SetsRate(5, 0.004), dashboard="off", save_dir=tmp_path / "a", **RUNS[name]())
    )
    barrier = Barrier(4)
    with fitting(tmp_path / "b", barrier, **RUNS[name]()) as fit:
        step = pause_in(fit, barrier, 4)["step"]
        assert fit.dashboard.request("validate_now")["data"]["metrics"]["val_loss"] > 0
        tested = fit.dashboard.request("test_now", {"label": "now"})
        if name == "plain pieces":
            assert tested["data"]["metrics"]["test_loss"] > 0
        else:
            assert tested["code"] == "unsupported"
        edited = fit.dashboard.request("set_param", {"path": "lr", "value": 0.004})["data"]
        assert (edited["new"], edited["applied_step"]) == (0.004, step)
        assert fit.dashboard.request("resume")["ok"]
        found = digest.of_run(fit.outcome())
    assert digest.differences(expected, found) == []


def test_a_saved_run_is_rolled_back_and_the_rollback_is_undone(tmp_path: Path) -> None:
    expected, barrier, logged = bare(), Barrier(3, 8), Logged()
    with fitting(tmp_path, barrier, logged) as fit:
        pause_in(fit, barrier, 3)
        assert fit.dashboard.request("save_ckpt")["data"]["step"] == 4
        fit.dashboard.request("resume")
        assert pause_in(fit, barrier, 8)["step"] == 9
        back = fit.dashboard.request("rollback", {"step": 4})["data"]
        assert back["step"] == 4
        again = fit.dashboard.request("undo")
        assert again["ok"], again
        assert fit.dashboard.request("status")["data"]["step"] == 9
        assert fit.dashboard.request("rollback", {"step": 4})["data"]["step"] == 4
        fit.dashboard.request("resume")
        assert digest.differences(expected, digest.of_run(fit.outcome())) == []
    steps = [e["step"] for e in fit.dashboard.events() if e["type"] == "trainStep"]
    assert steps == [*range(1, 10), *range(5, 13)]


@pytest.mark.parametrize("batch", [4, 5, 6])
def test_stop_ends_after_the_step_that_is_done(batch: int, tmp_path: Path) -> None:
    barrier = Barrier(batch)
    with fitting(tmp_path, barrier) as fit:
        barrier.wait_for(batch)
        asked = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.open()
        reply = fit.dashboard.reply_to(asked)["data"]
        run = fit.outcome()
    assert reply["step"] == run.counters.global_step == batch + 1
    assert Path(reply["ckpt"]).is_file()
    (events,) = journals(tmp_path)
    assert ending(events) == ("finished", "stopped", None)
    assert [e["step"] for e in events if e["type"] == "trainStep"] == list(range(1, batch + 2))


# ---------------------------------------------------------------------------------- its end


@pytest.mark.parametrize(
    ("limits", "asked", "longer"),
    [
        ({"max_epochs": 2}, {"max_epochs": 3}, {"max_epochs": 3}),
        (
            {"max_steps": 12, "max_epochs": -1},
            {"max_steps": 15},
            {"max_steps": 15, "max_epochs": -1},
        ),
        (
            {"max_steps": 8, "max_epochs": -1},
            {"max_steps": 14},
            {"max_steps": 14, "max_epochs": -1},
        ),
        (
            {"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 4},
            {"max_steps": 5},
            {"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 4},
        ),
    ],
)
def test_held_at_its_end_and_extended_it_had_always_been_longer(
    limits: dict[str, Any], asked: dict[str, int], longer: dict[str, Any], tmp_path: Path
) -> None:
    expected = bare(model=plain_model(), pieces=pieces, **longer)
    options = {"model": plain_model(), "pieces": pieces, **limits}
    with fitting(tmp_path, after_fit="hold", **options) as fit:
        tested = fit.dashboard.expect("auto_test_complete")
        assert (tested["status"], tested["source"]) == ("ok", "auto")
        assert tested["metrics"]["test_loss"] > 0
        fit.dashboard.expect("state", state="paused", reason="after_fit")
        [(name, value)] = asked.items()
        data_ = fit.dashboard.request("extend", asked)["data"]
        assert (data_[name], data_["old"][name]) == (value, limits[name])
        fit.dashboard.request("resume")
        fit.dashboard.expect("state", state="paused", reason="after_fit")
        fit.dashboard.request("resume")
        found = digest.of_run(fit.outcome())
    assert digest.differences(expected, found) == []


def test_an_extension_is_kept_by_the_process_that_goes_on(tmp_path: Path) -> None:
    barrier = Barrier(14)
    with fitting(tmp_path, barrier, after_fit="hold") as fit:
        fit.dashboard.expect("state", state="paused", reason="after_fit")
        assert fit.dashboard.request("extend", {"max_epochs": 4})["data"]["max_epochs"] == 4
        fit.dashboard.request("resume")
        barrier.wait_for(14)
        asked = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.open()
        assert fit.outcome().counters.global_step == 15
    again = fitted(dashboard="off", save_dir=tmp_path, resume="auto", max_epochs=2)
    assert digest.differences(bare(max_epochs=4), digest.of_run(again)) == []


def test_a_schedule_of_fixed_length_refuses_to_be_extended(tmp_path: Path) -> None:
    expected = bare(model=OneCycle())
    with fitting(tmp_path, after_fit="hold", model=OneCycle()) as fit:
        fit.dashboard.expect("state", state="paused", reason="after_fit")
        refused = fit.dashboard.request("extend", {"max_epochs": 3})
        assert (refused["code"], "OneCycleLR" in refused["detail"]) == ("unsupported", True)
        fit.dashboard.request("resume")
        assert digest.differences(expected, digest.of_run(fit.outcome())) == []


class OneCycle(models.OneCycle):
    def __init__(self) -> None:
        torch.manual_seed(9)
        super().__init__()


def test_rolled_back_at_its_end_it_replays(tmp_path: Path) -> None:
    expected = bare()
    with fitting(tmp_path, after_fit="hold", checkpoint_every=8) as fit:
        fit.dashboard.expect("paused", step=12)
        assert fit.dashboard.request("rollback", {"step": 8})["data"]["step"] == 8
        fit.dashboard.request("resume")
        fit.dashboard.expect("paused", step=12)
        fit.dashboard.request("resume")
        assert digest.differences(expected, digest.of_run(fit.outcome())) == []


class PlannedError(Exception):
    pass


class Fails(Net):
    def __init__(self, where: str) -> None:
        torch.manual_seed(9)
        super().__init__()
        self.where = where

    def _maybe(self, place: str) -> None:
        if self.where == place:
            raise PlannedError(place)

    def setup(self, stage: str) -> None:
        self._maybe("setup")

    def configure_optimizers(self) -> Any:
        self._maybe("configure_optimizers")
        return super().configure_optimizers()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._maybe("sanity" if self.trainer.sanity_checking else "validation_step")
        super().validation_step(batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            self._maybe("training_step")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self._maybe("on_train_epoch_end")


@pytest.mark.parametrize(
    "where",
    [
        "setup",
        "configure_optimizers",
        "sanity",
        "training_step",
        "validation_step",
        "on_train_epoch_end",
    ],
)
def test_an_exception_passes_through_and_is_the_end_that_is_told(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PlannedError) as caught:
        fitted(model=Fails(where), dashboard="off", save_dir=tmp_path)
    assert caught.value.args == (where,)
    for events in journals(tmp_path):
        assert ending(events) == ("failed", "failed", f"PlannedError: {where}")
    said = capfd.readouterr().err
    if where == "training_step":
        assert checkpoints(tmp_path) == ["0-auto.ckpt", "3-auto.ckpt"]
        assert "PlannedError: step 3 is kept as it was left, in the middle of a batch" in said
        assert "OTF_RESUME=" in said


def test_what_a_failed_fit_has_left_is_gone_on_with_and_called_inexact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = bare(model=Fails(""))
    with pytest.raises(PlannedError):
        fitted(model=Fails("training_step"), dashboard="off", save_dir=tmp_path)
    left = next(tmp_path.glob("*/*/checkpoints/3-auto.ckpt"))
    assert read_checkpoint(left)[0]["otf"]["exact"]["counters"]["batches_done"] == 4
    capfd.readouterr()
    whole = fitted(model=Fails(""), dashboard="off", save_dir=tmp_path, resume="auto")
    assert "resumed from step 0" in capfd.readouterr().err
    assert digest.differences(expected, digest.of_run(whole)) == []
    run = fitted(model=Fails(""), dashboard="off", save_dir=tmp_path, resume=left)
    said = capfd.readouterr().err
    assert "resumed from step 3" in said
    assert "resumed from what PlannedError had left in the middle of a batch" in said
    assert run.counters.global_step == 11  # of twelve batches; the one that failed was begun


def test_after_a_failed_fit_another_runner_fits_the_same_module(tmp_path: Path) -> None:
    model = Fails("training_step")
    with pytest.raises(PlannedError):
        fitted(model=model, dashboard="off", save_dir=tmp_path)
    assert "log" not in vars(model)
    model.where = ""
    assert fitted(model=model, dashboard="off", save_dir=tmp_path).counters.global_step == 12
    assert [ending(events)[1] for events in journals(tmp_path)] == ["failed", "completed"]


# ------------------------------------------------------------------------------ going on


def test_a_finished_run_that_is_to_go_on_ends_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = digest.of_run(fitted(dashboard="off", save_dir=tmp_path))
    steps = Steps()
    again = fitted(steps, dashboard="off", save_dir=tmp_path, resume="auto")
    assert "resumed from step 12" in capfd.readouterr().err
    assert steps.done == 0
    assert digest.differences(expected, digest.of_run(again)) == []
    assert [ending(events)[1] for events in journals(tmp_path)] == ["completed", "completed"]
    assert (
        fitted(dashboard="off", save_dir=tmp_path, resume="auto", max_epochs=3).counters.epoch == 3
    )


def test_a_finished_run_goes_on_to_a_higher_limit_as_if_it_had_always_been(tmp_path: Path) -> None:
    for limits, longer in (
        ({"max_epochs": 2}, {"max_epochs": 3}),
        ({"max_epochs": -1, "max_steps": 8}, {"max_epochs": -1, "max_steps": 14}),
    ):
        folder = tmp_path / f"{limits}"
        fitted(dashboard="off", save_dir=folder, **limits)
        found = fitted(dashboard="off", save_dir=folder, resume="auto", **longer)
        assert digest.differences(bare(**longer), digest.of_run(found)) == []


def test_with_nothing_there_auto_begins(tmp_path: Path) -> None:
    run = fitted(dashboard="off", save_dir=tmp_path, resume="auto")
    assert digest.of_run(run) == bare()


def test_checkpoints_of_others_are_refused_by_name(tmp_path: Path) -> None:
    import lightning as L

    from otf_lightning import OnTheFlyCallback

    def by_lightning(resume: Path | None) -> None:
        torch.manual_seed(3)
        ours = OnTheFlyCallback(save_dir=tmp_path / "theirs", dashboard="off", resume=resume)
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[ours],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(), data.loader(), data.val_loader())

    by_lightning(None)
    theirs = next((tmp_path / "theirs").glob("*/*/checkpoints/6-final.ckpt"))
    with pytest.raises(ResumeError, match="is of Lightning, this run is of the Runner"):
        fitted(dashboard="off", save_dir=tmp_path / "a", resume=theirs)
    fitted(dashboard="off", save_dir=tmp_path / "ours")
    ours = next((tmp_path / "ours").glob("*/*/checkpoints/12-final.ckpt"))
    with pytest.raises(ResumeError, match="is of the Runner, this run is of Lightning"):
        by_lightning(ours)
    with pytest.raises(ResumeError, match="of another model"):
        fitted(
            model=plain_model(),
            pieces=pieces,
            dashboard="off",
            save_dir=tmp_path / "b",
            resume=ours,
        )
    with pytest.raises(ResumeError, match="where there is no file"):
        fitted(dashboard="off", save_dir=tmp_path / "c", resume=tmp_path / "none.ckpt")


def test_two_runners_in_one_process_do_not_meet(tmp_path: Path) -> None:
    one, two = Barrier(3), Barrier(3)
    with fitting(tmp_path, one, run_name="one") as a:
        with fitting(tmp_path, two, run_name="two") as b:
            one.wait_for(3)
            two.wait_for(3)
            asked = a.dashboard.send("pause")
            a.dashboard.expect("state", state="pausing")
            one.let_go(3)
            assert a.dashboard.reply_to(asked)["ok"]
            assert b.dashboard.request("status")["data"]["state"] == "running"
            assert a.dashboard.request("set_param", {"path": "lr", "value": 0.5})["ok"]
            two.open()
            assert b.outcome().optimizers[0].param_groups[0]["lr"] == 1e-2
        a.dashboard.request("resume")
        assert a.outcome().optimizers[0].param_groups[0]["lr"] == 0.5
    assert {e["run_id"] for e in a.dashboard.events()} == {"one"}
    assert {e["run_id"] for e in b.dashboard.events()} == {"two"}


def test_the_session_is_there_during_the_fit_and_gone_behind_it(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(RunnerCallback):
        def on_train_batch_start(self, run: Any, *_: Any) -> None:
            seen.append(runner.session)

    runner = Runner(
        callbacks=Looks(), device="cpu", max_steps=2, dashboard="off", save_dir=tmp_path
    )
    runner.fit(Net(), train_loader=data.loader())
    assert seen[0] is not None
    assert seen[0] is seen[1]
    assert seen[0].run_id == "Net"
    assert runner.session is None
