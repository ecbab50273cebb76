"""However a fit ends, it is said truly, and nothing of ours is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from tqdm.std import tqdm

from otf_core.testing import FakeDashboard, LoopbackListener
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import CASES, Net, Tape, _fit, _train, _trainer, _val
from tests.plugin.rig import Barrier, Fit, fitting


@pytest.fixture(autouse=True)
def _no_thread_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finders' progress bar starts one that outlives it."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def journals(folder: Path) -> list[list[dict[str, Any]]]:
    files = sorted(folder.glob("*/*/journal/*.jsonl"), key=lambda p: p.stat().st_mtime)
    return [[json.loads(line) for line in f.read_text().splitlines()] for f in files]


def ending(events: list[dict[str, Any]]) -> tuple[str, str, str | None]:
    """Last state, status and error; said once."""
    (finished,) = [e for e in events if e["type"] == "trainingFinished"]
    states = [e["state"] for e in events if e["type"] == "state"]
    return states[-1], finished["status"], finished.get("error")


def nothing_on(trainer: L.Trainer) -> None:
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        assert "advance" not in vars(loop)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("otf")]


class Ends(L.Callback):
    """Which of the hooks at an ending were called, and with how many batches behind them."""

    def __init__(self) -> None:
        self.batches = 0
        self.told: list[tuple[str, int]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def on_train_epoch_end(self, *_: Any) -> None:
        self.told.append(("epoch", self.batches))

    def on_train_end(self, *_: Any) -> None:
        self.told.append(("end", self.batches))

    def teardown(self, *_: Any, **__: Any) -> None:
        self.told.append(("teardown", self.batches))


class Closing(Tape):
    status: str | None = None

    def finalize(self, status: str) -> None:
        self.status = status


def stop_at(
    batch: int, tmp: Path, payload: dict[str, Any] | None = None, **kwargs: Any
) -> tuple[dict[str, Any], L.Trainer, Ends, Closing]:
    barrier, ends, logger = Barrier(batch), Ends(), Closing()
    with fitting(lambda c: _fit([*c, ends], Net(), logger=logger, **kwargs), tmp, barrier) as fit:
        barrier.wait_for(batch)
        asked = fit.dashboard.send("stop", payload)
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.open()
        reply = fit.dashboard.reply_to(asked)["data"]
        trainer = fit.outcome()
    return reply, trainer, ends, logger


@pytest.mark.parametrize(
    ("batch", "epochs"),
    [(4, [("epoch", 5)]), (11, [("epoch", 12)]), (12, [("epoch", 12), ("epoch", 1)])],
)
def test_stop_ends_after_the_step_that_is_done(
    batch: int, epochs: list[tuple[str, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In mid-epoch; after an epoch's last batch, so that the next is empty; after a first batch."""
    reply, trainer, ends, logger = stop_at(batch, tmp_path)
    assert reply["step"] == reply["applied_step"] == trainer.global_step == batch + 1
    assert Path(reply["ckpt"]).is_file()
    assert [t for t in ends.told if t[0] == "epoch"] == epochs
    assert [t[0] for t in ends.told if t[0] != "epoch"] == ["end", "teardown"]
    assert logger.status == "success"
    assert trainer.state.status == "finished"
    (events,) = journals(tmp_path)
    assert ending(events) == ("finished", "stopped", None)
    kinds = [e["type"] for e in events]
    assert kinds.index("stopping") < kinds.index("trainingFinished")
    assert [e["step"] for e in events if e["type"] == "trainStep"] == list(range(1, batch + 2))
    nothing_on(trainer)
    *_, said, how = (x for x in capfd.readouterr().err.splitlines() if x.startswith("otf: "))
    assert said.endswith(f": stopped by a command at step {batch + 1}")
    assert f"OTF_RESUME={reply['ckpt']} " in how


@pytest.mark.parametrize("limits", [{"min_epochs": 2}, {"min_steps": 20}])
def test_stop_ends_also_where_the_script_wants_so_many_at_least(
    limits: dict[str, int], tmp_path: Path
) -> None:
    reply, trainer, _, _ = stop_at(3, tmp_path, {"save": False}, **limits)
    assert trainer.global_step == reply["step"] == 4
    assert reply["ckpt"] is None
    assert [p.stem for p in tmp_path.glob("*/*/checkpoints/*.ckpt")] == ["0-auto"]


def test_stop_while_paused_answers_everybody(tmp_path: Path) -> None:
    barrier = Barrier(3)
    with fitting(lambda c: _fit(c, Net()), tmp_path, barrier) as fit:
        barrier.wait_for(3)
        asked = fit.dashboard.send("pause")
        fit.dashboard.expect("state", state="pausing")
        barrier.open()
        paused = fit.dashboard.reply_to(asked)["data"]
        later = fit.dashboard.send("set_param", {"path": "lr", "value": 0.1, "at_step": 20})
        fit.dashboard.expect("accepted", request_id=later)
        stopped = fit.dashboard.request("stop", {"save": False})["data"]
        assert stopped["step"] == paused["step"]
        assert fit.dashboard.reply_to(later)["code"] == "not_allowed_now"
        assert fit.outcome().global_step == paused["step"]
    assert ending(fit.dashboard.events())[1] == "stopped"


def test_after_a_stop_the_trainer_fits_again_as_another_session(tmp_path: Path) -> None:
    barrier = Barrier(3)
    model = Net()
    again: dict[str, Any] = {}

    def main(callbacks: list[L.Callback]) -> L.Trainer:
        trainer = again["trainer"] = _trainer(callbacks)
        trainer.fit(model, _train(), _val())
        return trainer

    with fitting(main, tmp_path, barrier) as fit:
        barrier.wait_for(3)
        asked = fit.dashboard.send("stop")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.open()
        trainer = fit.outcome()
    assert trainer.global_step == 4
    trainer.should_stop = False
    trainer.fit(model, _train(), _val())
    one, two = journals(tmp_path)
    assert one[0]["session_id"] != two[0]["session_id"]
    assert (ending(one)[1], ending(two)[1]) == ("stopped", "completed")
    nothing_on(trainer)


class HookError(Exception):
    pass


class Fails(Net):
    where = ""

    def _maybe(self, place: str) -> None:
        if self.where == place:
            raise HookError(place)

    def setup(self, stage: str) -> None:
        self._maybe("setup")

    def on_fit_start(self) -> None:
        self._maybe("on_fit_start")

    def configure_optimizers(self) -> Any:
        self._maybe("configure_optimizers")
        return super().configure_optimizers()

    def on_train_epoch_end(self) -> None:
        self._maybe("on_train_epoch_end")

    def validation_step(self, *args: Any, **kwargs: Any) -> None:
        self._maybe("sanity" if self.trainer.sanity_checking else "validation_step")
        super().validation_step(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            self._maybe("training_step")
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        self._maybe("on_train_end")

    def teardown(self, stage: str) -> None:
        self._maybe("teardown")


@pytest.mark.parametrize(
    "where",
    [
        "setup", "configure_optimizers", "on_fit_start", "sanity",
        "training_step", "validation_step", "on_train_epoch_end",
    ],
)  # fmt: skip
def test_an_exception_passes_through_and_is_the_end_that_is_told(
    where: str, tmp_path: Path
) -> None:
    model = Fails()
    model.where = where
    callback = OnTheFlyCallback(save_dir=tmp_path, dashboard="off")
    trainer = _trainer([callback], num_sanity_val_steps=1)
    with pytest.raises(HookError) as caught:
        trainer.fit(model, _train(), _val())
    assert caught.value.args == (where,)
    assert callback.session is None
    for events in journals(tmp_path):
        assert ending(events) == ("failed", "failed", f"HookError: {where}")
    assert journals(tmp_path)
    nothing_on(trainer)


@pytest.mark.parametrize("where", ["on_train_end", "teardown"])
def test_an_exception_after_the_last_step_leaves_nothing_behind(where: str, tmp_path: Path) -> None:
    model = Fails()
    model.where = where
    trainer = _trainer([OnTheFlyCallback(save_dir=tmp_path, dashboard="off")])
    with pytest.raises(HookError):
        trainer.fit(model, _train(), _val())
    (events,) = journals(tmp_path)
    assert len([e for e in events if e["type"] == "trainingFinished"]) == 1
    nothing_on(trainer)


@pytest.mark.parametrize("case", ["fast_dev_run", "barebones", "tuner"])
def test_special_runs_end_as_finished(case: str, tmp_path: Path) -> None:
    callback = OnTheFlyCallback(save_dir=tmp_path / "runs", dashboard="off")
    trainer = CASES[case]([callback], tmp_path)
    assert ending(journals(tmp_path / "runs")[-1])[:2] == ("finished", "completed")
    nothing_on(trainer)


def test_evaluations_alone_open_no_session(tmp_path: Path) -> None:
    callback = OnTheFlyCallback(save_dir=tmp_path, dashboard="off")
    trainer, model = _trainer([callback]), Net()
    trainer.validate(model, _val(), verbose=False)
    trainer.test(model, _val(), verbose=False)
    trainer.predict(model, _val())
    assert callback.session is None
    assert list(tmp_path.iterdir()) == []


def test_two_trainers_in_one_process_do_not_meet(tmp_path: Path) -> None:
    def fit(c: list[L.Callback]) -> L.Trainer:
        # Not the global generator: two threads would draw from it in turn.
        return _fit(c, Net(schedule=None))

    one, two = Barrier(3), Barrier(3)
    with fitting(fit, tmp_path, one, run_name="one") as a:
        with fitting(fit, tmp_path, two, run_name="two") as b:
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


SCRIPT = """
    import sys
    import lightning as L, torch
    torch.set_num_threads(1)
    from otf_lightning import OnTheFlyCallback
    from tests.no_harm.configs import Net, _fit, _train, _trainer, _val

    class Waits(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.is_global_zero and batch_idx == 3 and trainer.current_epoch == 0:
                print("inside", flush=True)
                sys.stdin.readline()

    if __name__ == "__main__":
        callback = OnTheFlyCallback(save_dir=sys.argv[1], dashboard=sys.argv[2])
        trainer = _trainer([callback, Waits()])
        trainer.fit(Net(), _train(), _val())
        print("returned", trainer.global_step, flush=True)
"""


class Script:
    """A fit in a process of its own; the test lets its fourth batch go."""

    def __init__(self, tmp: Path, listener: LoopbackListener) -> None:
        file = tmp / "script.py"
        file.write_text(textwrap.dedent(SCRIPT))
        address = f"127.0.0.1:{listener.port}"
        self.process = subprocess.Popen(
            [sys.executable, str(file), str(tmp / "runs"), address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    def wait_inside(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "inside"

    def end(self) -> tuple[str, str]:
        return self.process.communicate(timeout=60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Script, FakeDashboard]]]:
    started: list[tuple[Script, FakeDashboard]] = []
    with LoopbackListener() as listener:

        def begin() -> tuple[Script, FakeDashboard]:
            script = Script(tmp_path, listener)
            dashboard = FakeDashboard(listener.accept(60.0), patience_s=30.0)
            started.append((script, dashboard))
            ours = dashboard.expect("hello")["session_id"]
            dashboard.hello(session_id=ours, last_seq=0)
            return script, dashboard

        yield begin
        for script, dashboard in started:
            if script.process.poll() is None:
                script.process.kill()
            script.process.communicate()
            dashboard.close()


def test_ctrl_c_within_a_batch_ends_as_interrupted(
    start: Callable[..., tuple[Script, FakeDashboard]], tmp_path: Path
) -> None:
    script, dashboard = start()
    script.wait_inside()
    script.process.send_signal(signal.SIGINT)
    out, err = script.end()
    assert "returned" not in out, err
    dashboard.expect_end()
    assert ending(dashboard.events()) == ("interrupted", "stopped", None)
    (events,) = journals(tmp_path / "runs")
    assert ending(events) == ("interrupted", "stopped", None)


def test_what_waits_at_the_end_is_answered(tmp_path: Path) -> None:
    barrier = Barrier(23)  # the last batch
    with fitting(lambda c: _fit(c, Net()), tmp_path, barrier) as fit:
        barrier.wait_for(23)
        asked = [
            fit.dashboard.send("pause"),
            fit.dashboard.send("set_param", {"path": "lr", "value": 0.1, "at_step": 90}),
            fit.dashboard.send("save_ckpt"),
            fit.dashboard.send("validate_now"),
            fit.dashboard.send("stop"),
        ]
        fit.dashboard.expect("accepted", request_id=asked[-1])
        barrier.open()
        for request_id in asked:
            reply = fit.dashboard.reply_to(request_id)
            assert (reply["ok"], reply.get("code")) == (False, "not_allowed_now"), reply
        fit.outcome()
    assert ending(fit.dashboard.events())[0] == "finished"


def test_a_failed_fit_can_be_followed_by_another(tmp_path: Path) -> None:
    model = Fails()
    model.where = "training_step"
    trainer = _trainer([OnTheFlyCallback(save_dir=tmp_path, dashboard="off")])
    with pytest.raises(HookError):
        trainer.fit(model, _train(), _val())
    model.where = ""
    fit = Fit(lambda: trainer.fit(model, _train(), _val()))
    fit.start()
    fit.outcome()
    one, two = journals(tmp_path)
    assert (ending(one)[1], ending(two)[1]) == ("failed", "completed")
    nothing_on(trainer)
