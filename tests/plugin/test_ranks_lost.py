"""What a person sees when one of two ranks is killed, stopped, or sleeps in its own code.

Seconds are those of a person: they are asked for by ``OTF_TIMES``, a file that gets them; no test
fails for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from otf_core.state.run_folder import RunRecord
from otf_core.testing import FakeDashboard, LoopbackListener
from tests.ranks import rig

PATIENCE_S = 60.0


class Live:
    """The run, held before its first batch, and the dashboard that holds it."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], board: FakeDashboard) -> None:
        self.folder, self.process, self.board = folder, process, board

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid.{rank}").read_text())

    def send(self, signum: int, rank: int) -> float:
        """When it was sent."""
        os.kill(self.pid(rank), signum)
        return time.monotonic()

    def trains(self, to_step: int) -> None:
        self.done("resume")
        while self.board.expect("trainStep")["step"] < to_step:
            pass

    def done(self, cmd: str, **payload: Any) -> dict[str, Any]:
        reply = self.board.request(cmd, payload)
        assert reply["ok"], reply
        data: dict[str, Any] = reply["data"]
        return data

    def ended(self) -> str:
        """How it left, once no process of it is there any more; what it said."""
        _, err = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode != 0
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid(1)).wait(PATIENCE_S)
        assert "terminate called" not in err, err
        return err

    @property
    def journal(self) -> list[dict[str, Any]]:
        [file] = (self.folder / "runs/p/r/journal").glob("*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    @property
    def record(self) -> RunRecord:
        return msgspec.json.decode((self.folder / "runs/p/r/run.json").read_bytes(), type=RunRecord)


@contextmanager
def started(folder: Path, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    with rig.started(sys.executable, *arguments, env=env) as process:
        try:
            yield process
        finally:
            for rank in (0, 1):
                with contextlib.suppress(OSError):
                    os.kill(int((folder / f"pid.{rank}").read_text()), signal.SIGCONT)


@contextmanager
def live(folder: Path, *launcher: str) -> Iterator[Live]:
    with LoopbackListener(legacy_allowed=False) as listener:
        script = ("-m", "tests.plugin.ranks_lost", str(folder), str(listener.port))
        with (
            started(folder, *launcher, *script) as process,
            FakeDashboard(listener.accept(PATIENCE_S), patience_s=PATIENCE_S) as board,
        ):
            board.hello(session_id=board.expect("hello")["session_id"], last_seq=0)
            board.expect("paused", step=0)
            yield Live(folder, process, board)


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    def note(what: str, since_s: float) -> None:
        if (file := os.environ.get("OTF_TIMES")) is not None:
            with Path(file).open("a") as out:
                out.write(f"{request.node.name}: {what}: {time.monotonic() - since_s:.2f} s\n")

    return note


@pytest.mark.timeout(240)
def test_killed_in_training_it_is_named_on_disk_with_the_command_that_goes_on(
    tmp_path: Path, seen: Callable[[str, float], None]
) -> None:
    with live(tmp_path) as run:
        run.trains(12)
        sent_s = run.send(signal.SIGKILL, 1)
        lost = run.board.expect("rank_state")
        seen("named", sent_s)
        err = run.ended()
        seen("all have left", sent_s)
    assert (lost["rank"], lost["state"], lost["exit_code"]) == (1, "failed", -signal.SIGKILL)
    told = next(event for event in run.journal if event["type"] == "rank_state")
    assert told == lost
    assert (run.record.status, run.record.ended_ts is None) == ("failed", False)
    assert Path(told["checkpoint"]).name == "10-ring.ckpt"
    assert f"ended with exit code -9 (SIGKILL), at step {told['step']}; from step 10" in err
    assert told["resume"] in err
    variable, *command = shlex.split(told["resume"])
    resumed = dict([variable.split("=", 1)])
    with started(tmp_path, *command[1:-1], "0", **resumed) as process:
        _, err = process.communicate(timeout=2 * PATIENCE_S)
    assert "resumed from step 10" in err
    assert process.returncode == 0, err
    assert [(tmp_path / f"done.{rank}").read_text() for rank in (0, 1)] == ["13", "13"]


@pytest.mark.timeout(180)
def test_killed_in_a_pause_it_is_named_and_the_run_ends(
    tmp_path: Path, seen: Callable[[str, float], None]
) -> None:
    with live(tmp_path) as run:
        sent_s = run.send(signal.SIGKILL, 1)
        lost = run.board.expect("rank_state", rank=1, state="failed")
        seen("named", sent_s)
        ended = run.board.expect("trainingFinished")
        seen("the run has ended", sent_s)
        run.ended()
        seen("all have left", sent_s)
    assert lost["exit_code"] == -signal.SIGKILL
    assert ended["status"] == "failed"
    assert "rank 1" in ended["error"]
    assert not [event for event in run.journal if event["type"] == "resumed"]
    assert run.record.status == "failed"


@pytest.mark.long
@pytest.mark.timeout(180)
def test_when_rank_0_is_killed_in_a_pause_the_others_leave(
    tmp_path: Path, seen: Callable[[str, float], None]
) -> None:
    with live(tmp_path) as run:
        other = psutil.Process(run.pid(1))
        for _ in range(2):  # by then the other has heard which checkpoint is the newest
            run.board.expect("ranks")
        sent_s = run.send(signal.SIGKILL, 0)
        other.wait(PATIENCE_S)
        seen("the other has left", sent_s)
        err = run.ended()
    assert "PeerLostError" in err
    assert "rank 1: the ranks cannot hear each other any more" in err
    assert "the run goes on exactly: OTF_RESUME=" in err
    assert "0-pause.ckpt" in err


@pytest.mark.timeout(240)
def test_stopped_it_is_silent_and_back_and_asleep_it_is_shown_where(
    tmp_path: Path, seen: Callable[[str, float], None]
) -> None:
    with live(tmp_path) as run:
        run.trains(12)
        rows = run.board.expect("ranks")["rows"]
        assert [(row["rank"], row["state"]) for row in rows] == [(0, "ok"), (1, "ok")]
        sent_s = run.send(signal.SIGSTOP, 1)
        asked = run.board.send("validate_now", {"limit_batches": 1})
        silent = run.board.expect("rank_state", state="silent")
        seen("silent", sent_s)
        assert silent["rank"] == 1
        assert silent["exit_code"] is None
        assert "; what was asked waits for it" in silent["why"]
        assert silent["resume"].startswith("OTF_RESUME=")
        assert run.board.expect("ranks")["rows"][1]["state"] == "silent"
        assert run.board.request("status")["data"]["ranks"]["silent"] == [1]
        sent_s = run.send(signal.SIGCONT, 1)
        back = run.board.expect("rank_state")
        seen("back", sent_s)
        assert (back["rank"], back["state"], back["resume"]) == (1, "back", None)
        assert run.board.reply_to(asked)["ok"] is False  # nothing to validate on; it is answered
        run.board.expect("trainStep")
        stalls = [event for event in run.board.events() if event["type"] == "stall"]
        if stalls and not stalls[-1]["over"]:
            run.board.expect("stall", over=True)

        (tmp_path / "sleep").touch()
        slept_s = time.monotonic()
        stall = run.board.expect("stall", over=False)
        while len(stall["ranks"]) < 2:  # one that a slow machine has told before
            stall = run.board.expect("stall", over=False)
        seen("stalled", slept_s)
        held = run.board.send("pause")
        run.board.expect("accepted", cmd="pause")
        (tmp_path / "sleep").unlink()
        assert run.board.reply_to(held)["ok"]
        rows = run.board.expect("ranks")["rows"]
        run.done("stop")
        _, err = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 0, err
    sleeps, waits = stall["ranks"]
    assert (sleeps["ranks"], waits["ranks"], stall["unheard"]) == ([1], [0], [])
    assert sleeps["where"].endswith(" in training_step")
    assert sleeps["call"] is None
    assert waits["call"] is not None
    assert stall["stack"] == waits["stack"] != sleeps["stack"]
    assert [Path(file).name for file in stall["flight"]] == [
        "nccl_trace_rank_0", "nccl_trace_rank_1",
    ]  # fmt: skip
    assert all(Path(file).is_file() for file in stall["flight"])
    assert f"rank 1 is in {sleeps['where']}; rank 0 waits in {waits['call']}" in err
    assert {row["step"] for row in rows if row["step"]}
    assert rows[1]["loss"] is not None
    assert rows[1]["step_ms"] > 0
    assert "rank 1" in err
    assert run.record.status == "stopped"


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("held", [False, True])
def test_under_torchrun_the_last_word_is_there_as_well(
    tmp_path: Path,
    held: bool,
    seen: Callable[[str, float], None],
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with live(tmp_path, *launcher) as run:
        if not held:
            run.trains(12)
        sent_s = run.send(signal.SIGKILL, 1)
        lost = run.board.expect("rank_state", rank=1, state="failed")
        seen("named", sent_s)
        run.ended()
    assert lost["exit_code"] is None
    assert "rank 1 does not answer" in lost["why"]
    assert lost["resume"].endswith("before the command that started the ranks")
    assert run.record.status == "failed"
    assert any(event["type"] == "rank_state" for event in run.journal)
