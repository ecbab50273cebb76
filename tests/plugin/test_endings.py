"""However a run ends, it is told as it was, and nothing holds a process that has to go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit
from tests.plugin.rig import Barrier, fitting

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import Net, _fit
_fit([OnTheFlyCallback("p", "r", save_dir=sys.argv[1], dashboard="off", pause_at_start=True)])
"""


def told(folder: Path) -> list[dict[str, Any]]:
    found = sorted(folder.glob("*/*/journal/*.jsonl"))
    if not found:
        return []
    whole = found[-1].read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def wait_for(folder: Path, kind: str) -> None:
    turn = threading.Event()
    for _ in range(600):
        if any(event["type"] == kind for event in told(folder)):
            return
        turn.wait(0.05)
    msg = f"no {kind} in the journal"
    raise TimeoutError(msg)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_is_held(how: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(tmp_path, "paused")
        process.send_signal(how)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    events = told(tmp_path)
    assert events[-1]["type"] == "trainingFinished"
    assert events[-1]["status"] == "stopped"
    assert [e["state"] for e in events if e["type"] == "state"][-1] == "interrupted"


class Fails(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            msg = "out of memory"
            raise RuntimeError(msg)


def test_an_exception_passes_through_and_the_run_has_failed(tmp_path: Path) -> None:
    callback = OnTheFlyCallback(save_dir=tmp_path, dashboard="off")
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        _fit([callback, Fails()])
    last = told(tmp_path)[-1]
    assert (last["type"], last["status"]) == ("trainingFinished", "failed")
    assert last["error"] == "RuntimeError: out of memory"
    assert callback.session is None


class EpochEnds(L.Callback):
    """A user's epoch end that needs what the batches gave."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ends = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(1)

    def on_train_epoch_end(self, *_: Any) -> None:
        assert self.seen, "an epoch end without a batch"
        self.seen.clear()
        self.ends += 1


@pytest.mark.parametrize(("batch", "step"), [(5, 6), (11, 12), (12, 13)])
def test_stop_ends_after_the_step_that_is_done(batch: int, step: int, tmp_path: Path) -> None:
    barrier, ends = Barrier(batch), EpochEnds()
    with fitting(lambda c: _fit([*c, ends], min_epochs=2, max_epochs=4), tmp_path, barrier) as fit:
        barrier.wait_for(batch)
        asked = fit.dashboard.send("stop", {})
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(batch)
        reply = fit.dashboard.reply_to(asked)["data"]
        trainer = fit.outcome()
    assert (reply["status"], reply["step"]) == ("stopping", step)
    assert torch.load(reply["ckpt"], weights_only=True)["global_step"] == step
    assert trainer.global_step == step
    assert ends.ends == (1 if step <= 12 else 2)
    kinds = [e["type"] for e in told(tmp_path)]
    assert kinds.index("stopping") < kinds.index("trainingFinished")
    assert told(tmp_path)[-1]["status"] == "stopped"


def test_what_comes_too_late_is_refused(tmp_path: Path) -> None:
    barrier = Barrier(23)  # the last batch of two epochs
    with fitting(_fit, tmp_path, barrier) as fit:
        barrier.wait_for(23)
        asked = [fit.dashboard.send(cmd) for cmd in ("pause", "save_ckpt", "test_now")]
        fit.dashboard.request("ping")  # by then they are heard
        barrier.let_go(23)
        replies = [fit.dashboard.reply_to(one) for one in asked]
    assert [r["code"] for r in replies] == ["not_allowed_now"] * 3
    assert all("finished" in r["detail"] or "step 24" in r["detail"] for r in replies)


def test_a_checkpoint_goes_on_in_a_trainer_without_us(tmp_path: Path) -> None:
    barrier = Barrier(12)
    with fitting(_fit, tmp_path, barrier) as fit:
        barrier.wait_for(12)
        asked = fit.dashboard.send("save_ckpt")
        fit.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(12)
        data = fit.dashboard.reply_to(asked)["data"]
        fit.outcome()
    assert data["step"] == 13
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EarlyStopping("val_loss")],
    )  # fmt: skip
    from tests.no_harm.configs import _train, _val

    with pytest.warns(UserWarning, match="resuming from a checkpoint|callbacks"):
        trainer.fit(Net(), _train(), _val(), ckpt_path=data["path"])
    assert trainer.global_step >= 24
