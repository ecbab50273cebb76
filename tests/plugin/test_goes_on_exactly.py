"""A run goes on from a checkpoint bit for bit, by every way that a user has.

The matrix of configurations is in tests/exact; here are the ways.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.utils.data import DataLoader, Dataset

from otf_core.state import store
from otf_core.state.keeper import ResumeError
from otf_core.state.run_folder import RunIsLiveError, find_checkpoint
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import Net, _fit, _train, _trainer, _val, digits
from tests.plugin.rig import Barrier, Fit, bare, fitting, pause_in, unlogged


def stopped_at(batch: int, save_dir: Path) -> str:
    """A run that ended behind this batch; the path of its checkpoint."""
    torch.manual_seed(3)
    barrier = Barrier(batch)
    with fitting(lambda c: _fit(c, Net()), save_dir, barrier, project="p", run_name="r") as fit:
        barrier.wait_for(batch)
        asked = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(batch)
        path: str = fit.dashboard.reply_to(asked)["data"]["ckpt"]
        fit.outcome()
    torch.manual_seed(99)  # whatever the new process has
    return path


def ours(save_dir: Path, **options: Any) -> OnTheFlyCallback:
    return OnTheFlyCallback("p", "r", save_dir=save_dir, dashboard="off", **options)


def journal_of(callback_dir: Path, place: int) -> list[dict[str, Any]]:
    record = json.loads((callback_dir / "run.json").read_text())
    file = callback_dir / "journal" / f"{record['session_ids'][place]}.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()]


class PlainData(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return _train()


def test_a_data_module_of_which_nobody_asked_hyperparameters_goes_on_exactly(
    tmp_path: Path,
) -> None:
    """Lightning gives it an attribute for them at the first checkpoint, of a class of its own."""

    def fit(**options: Any) -> None:
        trainer = _trainer([ours(tmp_path, checkpoint_every=4, **options)], max_epochs=1)
        trainer.fit(Net(), datamodule=PlainData())

    fit()
    first = next((tmp_path / "p/r/checkpoints").glob("4-ring.ckpt"))
    fit(resume=first)
    told = [e for e in journal_of(tmp_path / "p/r", -1) if e["type"] == "exactness"]
    assert [(e["exact"], e["reasons"]) for e in told] == [(True, [])]


def by_auto(path: str, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> L.Trainer:
    return _fit([ours(save_dir, resume="auto")], Net())


def by_path(path: str, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> L.Trainer:
    return _fit([ours(save_dir, resume=path)], Net())


def by_environment(path: str, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> L.Trainer:
    monkeypatch.setenv("OTF_RESUME", path)
    return _fit([ours(save_dir)], Net())


def by_fit(path: str, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> L.Trainer:
    trainer = _trainer([ours(save_dir)])
    trainer.fit(Net(), _train(), _val(), ckpt_path=path)
    return trainer


@pytest.mark.parametrize("way", [by_auto, by_path, by_environment, by_fit])
@pytest.mark.parametrize("batch", [4, 11])  # in an epoch, and its last
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    way: Callable[..., L.Trainer], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bare()
    path = stopped_at(batch, tmp_path)
    found = digest.of(way(path, tmp_path, monkeypatch))

    assert unlogged(found) == unlogged(expected)
    told = found["logged"]
    assert told == expected["logged"][-len(told) :]
    run = tmp_path / "p" / "r"
    assert [p.name for p in run.parent.iterdir()] == ["r"], "the same run goes on"
    events = journal_of(run, 1)
    kinds = [e["type"] for e in events]
    assert kinds.index("checkpoint_loaded") < kinds.index("trainStep")
    steps = [e["step"] for e in events if e["type"] == "trainStep"]
    assert steps == list(range(batch + 2, 25))
    generations = {e["run_gen"] for e in events if e["type"] == "trainStep"}
    assert generations == {journal_of(run, 0)[-1]["run_gen"] + 1}


def test_a_finished_run_returns_at_once_and_goes_on_where_the_limit_is_higher(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    first = digest.of(_fit([ours(tmp_path)], Net()))
    torch.manual_seed(99)
    again = _fit([ours(tmp_path, resume="auto")], Net())
    assert digest.of(again)["weights"] == first["weights"]
    assert again.global_step == 24
    assert not [e for e in journal_of(tmp_path / "p" / "r", 1) if e["type"] == "trainStep"]

    longer = digest.of(_fit([ours(tmp_path, resume="auto")], Net(), max_epochs=3))
    assert unlogged(longer) == unlogged(bare(max_epochs=3))


def test_auto_without_a_checkpoint_starts_fresh(tmp_path: Path) -> None:
    torch.manual_seed(3)
    found = digest.of(_fit([ours(tmp_path, resume="auto")], Net()))
    assert found == bare()


def test_a_resume_that_cannot_be_is_an_error_of_the_fit(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"nothing\.ckpt, where there is no file"):
        _fit([ours(tmp_path, resume=tmp_path / "nothing.ckpt")], Net())
    path = stopped_at(4, tmp_path)

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = torch.nn.Linear(64, 32)

    with pytest.raises(ResumeError, match=r"another model: .*net\.0\.weight \[24, 64\]"):
        _fit([ours(tmp_path, resume=path)], Wider())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ResumeError, match=r"threads of torch .* OTF_RESUME_FORCE=1"):
            _fit([ours(tmp_path, resume=path)], Net())
    finally:
        torch.set_num_threads(threads)
    damaged = Path(path)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(ResumeError, match=r"resume was asked from"):
        _fit([ours(tmp_path, resume=path)], Net())


def test_a_run_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = stopped_at(4, tmp_path)
    barrier = Barrier(7)
    fit = Fit(lambda: _fit([ours(tmp_path, resume=path), barrier], Net()))
    fit.start()
    barrier.wait_for(7)
    with pytest.raises(RunIsLiveError):
        _fit([ours(tmp_path, resume=path)], Net())
    barrier.open()
    fit.outcome()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Starts a fit with a dashboard; its barrier is at batches 4 and 12 (of 24)."""

    def start(**options: Any) -> Any:
        torch.manual_seed(3)
        barrier = Barrier(4, 12)
        return barrier, fitting(
            lambda c: _fit(c, Net()), tmp_path, barrier, project="p", run_name="r", **options
        )

    return start


def test_a_rollback_replays_what_was_and_undo_takes_it_back(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    expected = bare()
    barrier, attached = run()
    with attached as fit:
        early = pause_in(fit, barrier, 4)
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 12)
        ask = fit.dashboard.request
        back = ask("rollback", {"step": 5})["data"]
        assert (back["step"], back["from_step"], back["applied_step"]) == (5, 13, 5)
        assert back["checkpoint"] == Path(early["ckpt"]).stem
        assert ask("status")["data"]["step"] == 5
        undone = ask("undo")["data"]
        assert undone["undone"]["cmd"] == "rollback"
        assert ask("status")["data"]["step"] == 13
        again = ask("rollback", {"checkpoint": back["checkpoint"]})["data"]
        assert (again["step"], again["from_step"]) == (5, 13)
        ask("resume")
        found = digest.of(fit.outcome())
        events = fit.dashboard.events()
    assert unlogged(found) == unlogged(expected)
    steps = [(e["run_gen"], e["step"]) for e in events if e["type"] == "trainStep"]
    assert steps == [(0, n) for n in range(1, 14)] + [(3, n) for n in range(6, 25)]
    loaded = [(e["step"], e["from_step"]) for e in events if e["type"] == "checkpoint_loaded"]
    assert loaded == [(5, 13), (13, 5), (5, 13)]


@pytest.mark.parametrize("foreign", [False, True])
def test_a_run_that_dies_behind_a_rollback_goes_on_from_what_was_put_in_place(
    foreign: bool, run: Callable[..., Any], tmp_path: Path
) -> None:
    """The newest file is the undo point, which is of what was rolled back."""
    expected = bare()
    barrier, attached = run(keep_checkpoints=1)
    with attached as fit:
        early = Path(pause_in(fit, barrier, 4)["ckpt"])
        other = shutil.copy(early, tmp_path / "other.ckpt")
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 12)
        if foreign:
            went = fit.dashboard.request("load_ckpt", {"path": str(other)})["data"]
        else:
            # keep_checkpoints=1: the pause at 12 has pushed it out
            assert fit.dashboard.request("rollback", {"step": 5})["code"] == "not_found"
            went = fit.dashboard.request("rollback", {"step": 0})["data"]
        asked = fit.dashboard.request("save_ckpt") if foreign else None
        assert asked is None or "data" in asked, asked
        dead = tmp_path / "as it was when it died"
        shutil.copytree(tmp_path / "p", dead / "p")
        barrier.open()
        fit.dashboard.request("resume")
    torch.manual_seed(99)
    trainer = _fit([ours(dead, resume="auto")], Net())
    events = journal_of(dead / "p" / "r", 1)
    assert next(e for e in events if e["type"] == "checkpoint_loaded")["step"] == went["step"]
    assert unlogged(digest.of(trainer)) == unlogged(expected)


def test_what_came_from_elsewhere_is_kept_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk is behind: one checkpoint is on its way, the undo point comes second."""
    may_write, write = threading.Event(), store.write_checkpoint
    may_write.set()

    def slow(*args: Any) -> Any:
        assert may_write.wait(20)
        return write(*args)

    monkeypatch.setattr(store, "write_checkpoint", slow)
    torch.manual_seed(3)
    barrier = Barrier(4, 8, 10, 13)
    with fitting(lambda c: _fit(c, Net()), tmp_path, barrier, project="p", run_name="r") as fit:
        early = Path(pause_in(fit, barrier, 4)["ckpt"])
        other = shutil.copy(early, tmp_path / "other.ckpt")
        fit.dashboard.request("resume")
        barrier.wait_for(8)
        may_write.clear()
        save = fit.dashboard.send("save_ckpt")
        fit.dashboard.expect("accepted", request_id=save)
        barrier.let_go(8)
        barrier.wait_for(10)
        load = fit.dashboard.send("load_ckpt", {"path": str(other)})
        fit.dashboard.expect("accepted", request_id=load)
        barrier.let_go(10)
        later = threading.Timer(0.3, may_write.set)
        later.start()
        assert fit.dashboard.reply_to(load)["data"]["step"] == 5
        found = find_checkpoint(tmp_path, "p", "r")
        assert found is not None
        assert found[1].step == 5
        later.join()


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_rollback_that_fails_half_way_is_put_right_or_ends_the_run(
    refusals: int, tmp_path: Path
) -> None:
    left: list[str] = []

    class Refuses(Net):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if left:
                raise ValueError(left.pop())

    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4, 12)
    with fitting(lambda c: _fit(c, Refuses()), tmp_path, barrier) as fit:
        pause_in(fit, barrier, 4)
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 12)
        # The run is no longer what the pause has saved: there is an undo point to be written.
        fit.dashboard.request("set_param", {"path": "lr", "mul": 1.0})
        left += ["not again", "not this one"][-refusals:]
        refused = fit.dashboard.request("rollback", {"step": 5})
        assert (refused["code"], left) == ("internal", [])
        if refusals == 1:
            assert "ValueError (not this one); the run is as it was" in refused["detail"]
            fit.dashboard.request("resume")
            assert unlogged(digest.of(fit.outcome())) == unlogged(expected)
        else:
            assert "the run ends, half of it is there" in refused["detail"]
            fit.dashboard.request("resume")
            with pytest.raises(ValueError, match="not again"):
                fit.outcome()


class Remembers(Dataset[Any]):
    """What it counts and what it orders by decides its samples; in what types users have it."""

    def __init__(self) -> None:
        self.x, self.y = digits().tensors
        self.mean = np.linspace(0.0, 1.0, 64, dtype=np.float32)
        self.seen = np.zeros(10, np.int64)
        self.order = list(range(len(self.x)))
        self.weights = [1.0] * len(self.x)
        self.names = [f"{n}.png" for n in self.order]
        self.served, self.nothing = 2**3000, b""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x, y = self.x[self.order[i]], self.y[self.order[i]]
        self.seen[int(y)] += 1
        self.served += 1
        self.weights[i] *= 1.1
        self.order[i], self.order[-1] = self.order[-1], self.order[i]
        self.names[i] += "~"
        told = self.seen[int(y)] + self.weights[i] + self.names[i - 1].count("~") + i % self.served
        return x * (self.mean[i % 64] + 1e-3 * told), y


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rollback_brings_back_what_the_data_set_holds(workers: int, tmp_path: Path) -> None:
    def train(callbacks: list[L.Callback]) -> L.Trainer:
        torch.manual_seed(3)
        trainer = _trainer(callbacks)
        loader = DataLoader(Remembers(), 16, shuffle=True, num_workers=workers)
        trainer.fit(Net(), loader, _val())
        return trainer

    expected = digest.of(train([]))
    barrier = Barrier(4, 12)
    with fitting(train, tmp_path, barrier, project="p", run_name="r") as fit:
        pause_in(fit, barrier, 4)
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 12)
        assert fit.dashboard.request("rollback", {"step": 5})["data"]["from_step"] == 13
        fit.dashboard.request("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


def test_a_rollback_to_where_nothing_is_kept_names_the_nearest(run: Callable[..., Any]) -> None:
    barrier, attached = run()
    with attached as fit:
        pause_in(fit, barrier, 4)
        refused = fit.dashboard.request("rollback", {"step": 3})
        assert (refused["code"], refused["allowed"]) == ("not_found", [5, 0])
        both = fit.dashboard.request("rollback", {"step": 5, "checkpoint": "5-pause"})
        assert both["code"] == "bad_payload"
        assert fit.dashboard.request("undo")["code"] == "not_found"
        fit.dashboard.request("resume")
        barrier.open()
        assert digest.of(fit.outcome()) == bare()


def test_a_value_that_was_set_is_taken_back_or_as_if_it_had_never_been(
    run: Callable[..., Any],
) -> None:
    expected = bare()
    barrier, attached = run()
    with attached as fit:
        ask = fit.dashboard.request
        pause_in(fit, barrier, 4)
        old = ask("set_param", {"path": "lr", "mul": 0.5})["data"]["old"]
        undone = ask("undo")["data"]
        assert (undone["undone"]["cmd"], undone["now"]) == ("set_param", {"lr": old})
        by = fit.dashboard.expect("param_changed", by="undo")
        assert (by["new"], by["applied_step"]) == (old, 5)

        ask("set_param", {"path": "lr", "value": 0.3})
        ask("resume")
        pause_in(fit, barrier, 12)
        undone = ask("undo", {"restore": True})["data"]
        assert (undone["undone"]["cmd"], undone["applied_step"]) == ("set_param", 5)
        note = ask("note", {"text": "here"})["data"]
        assert ask("undo")["data"]["undone"]["cmd"] == "note"
        assert fit.dashboard.expect("note", removed=True)["note_id"] == note["note_id"]
        waiting = fit.dashboard.send("set_param", {"path": "lr", "value": 0.2, "at_step": 20})
        ask("status")
        withdrawn = ask("undo", {"request_id": waiting})["data"]
        assert withdrawn["undone"] == {"request_id": waiting, "cmd": "set_param"}
        assert fit.dashboard.reply_to(waiting)["code"] == "not_allowed_now"
        ask("resume")
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


def test_a_reset_is_a_new_session_from_the_beginning(run: Callable[..., Any]) -> None:
    expected = bare()
    barrier, attached = run()
    with attached as fit:
        barrier.wait_for(4)
        asked = fit.dashboard.send("reset_session", {"reason": "manual"})
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(4)
        data = fit.dashboard.reply_to(asked)["data"]
        assert (data["step"], data["paused"], data["run_id"]) == (0, True, "r")
        status = fit.dashboard.request("status")["data"]
        assert (status["state"], status["session_id"]) == ("paused", data["session_id"])
        assert status["run_gen"] == 0
        fit.dashboard.request("resume")
        barrier.open()
        found = digest.of(fit.outcome())
    assert unlogged(found) == unlogged(expected)


def test_a_file_of_another_model_is_refused_and_the_run_is_untouched(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    other = tmp_path / "other.ckpt"
    trainer = _fit([], Net(), max_steps=1)
    trainer.save_checkpoint(other)
    evil = tmp_path / "evil.ckpt"
    torch.save({"otf": Runs(tmp_path / "ran")}, evil)
    barrier, attached = run()
    with attached as fit:
        pause_in(fit, barrier, 4)
        for path in (other, evil, tmp_path / "none.ckpt"):
            refused = fit.dashboard.request("load_ckpt", {"path": str(path)})
            assert refused["code"] in ("bad_payload", "not_found"), refused
        fit.dashboard.request("resume")
        barrier.open()
        assert digest.of(fit.outcome()) == bare()
    assert not (tmp_path / "ran").exists()


class Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_checkpoints_come_by_steps_and_the_run_is_not_changed_by_them(tmp_path: Path) -> None:
    torch.manual_seed(3)
    found = digest.of(_fit([ours(tmp_path, checkpoint_every=5, keep_checkpoints=3)], Net()))
    assert found == bare()
    kept = {p.stem for p in (tmp_path / "p" / "r" / "checkpoints").glob("*.ckpt")}
    assert kept == {"0-auto", "10-ring", "15-ring", "20-ring", "24-final"}


@pytest.mark.parametrize("asked", [0, -3, True, "soon", "0min", "min"])
def test_a_cadence_that_is_none_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every was asked to be"):
        OnTheFlyCallback(checkpoint_every=asked)


def test_a_checkpoint_behind_an_undo_or_an_extension_is_of_the_run_as_it_is_then(
    run: Callable[..., Any],
) -> None:
    barrier, attached = run()
    with attached as fit:
        ask = fit.dashboard.request
        pause_in(fit, barrier, 4)
        old = ask("set_param", {"path": "lr", "value": 0.5})["data"]["old"]
        ask("save_ckpt")
        ask("undo")
        undone = torch.load(ask("save_ckpt")["data"]["path"], weights_only=True)
        ask("extend", {"max_epochs": 3})
        extended = torch.load(ask("save_ckpt")["data"]["path"], weights_only=True)
        ask("resume")
        barrier.open()
    assert undone["optimizer_states"][0]["param_groups"][0]["lr"] == old
    assert extended["otf"]["extended"] == {"max_epochs": 3}


def averaged(callbacks: list[L.Callback], schedule: str | None) -> L.Trainer:
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=2)
    return _fit([swa, *callbacks], Net(schedule=schedule), max_epochs=4)


@pytest.mark.parametrize("schedule", [None, "plateau"])
def test_the_schedule_that_averaging_has_put_in_place_goes_on(
    schedule: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    barrier = Barrier(4, 17)
    with fitting(
        lambda c: averaged(c, schedule), tmp_path, barrier, project="p", run_name="r"
    ) as fit:
        first = pause_in(fit, barrier, 4)["ckpt"]
        fit.dashboard.request("resume")
        pause_in(fit, barrier, 17)
        copied = shutil.copytree(tmp_path / "p", tmp_path / "copied" / "p")
        # The script's own schedule is gone by now.
        back = fit.dashboard.request("rollback", {"checkpoint": Path(first).stem})
        assert (back["ok"], "StochasticWeightAveraging" in back["detail"]) == (False, True)
        fit.dashboard.request("resume")
        expected = unlogged(digest.of(fit.outcome()))
    torch.manual_seed(99)
    found = averaged([ours(copied.parent, resume="auto")], schedule)
    assert unlogged(digest.of(found)) == expected
