"""Two ranks are forked, merged, put back and killed as one run; and go on as if the script had
trained on what was chosen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from otf_core.runs import merge
from otf_core.runs.merging import Options
from otf_core.state.run_folder import complete_checkpoints
from otf_core.state.weights_file import open_weights
from otf_core.testing import FakeDashboard, LoopbackListener
from tests.no_harm import digest
from tests.plugin.ranks_forked import CHOSEN, ODD, STEPS, Told
from tests.plugin.test_ranks_as_one import PATIENCE_S, RANKS, done, outcome, result
from tests.ranks import rig


def started(
    folder: Path, how: str, port: int = 0, **env: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    module = "tests.plugin.ranks_forked"
    return rig.started(sys.executable, "-m", module, str(folder), how, str(port), env=env)


class Session:
    """The run, held before its first batch, and what its dashboard does with it."""

    def __init__(
        self, folder: Path, process: subprocess.Popen[str], dashboard: FakeDashboard
    ) -> None:
        self.folder, self.process, self.dashboard = folder, process, dashboard

    def done(self, cmd: str, **payload: Any) -> dict[str, Any]:
        return done(self.dashboard, cmd, **payload)

    def refused(self, cmd: str, **payload: Any) -> str:
        reply = self.dashboard.request(cmd, payload)
        assert not reply["ok"], reply
        detail: str = reply["detail"]
        return detail

    def trains_until_held(self) -> int:
        self.done("resume")
        step: int = self.dashboard.expect("paused")["step"]
        return step

    def lines(self, rank: int, name: str) -> list[Any]:
        file = self.folder / f"live.{rank}.{name}"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def validated(self, rank: int) -> list[Any]:
        """The weights of each validation so far."""
        return [what for kind, what in self.lines(rank, "validated") if kind == "weights"]

    def weights(self) -> list[Any]:
        """What each rank's model has."""
        self.done("validate_now", limit_batches=1)
        return [self.validated(rank)[-1] for rank in RANKS]


@contextmanager
def attached(folder: Path) -> Iterator[Session]:
    with (
        LoopbackListener(legacy_allowed=False) as listener,
        started(folder, "live", listener.port) as process,
        FakeDashboard(listener.accept(PATIENCE_S), patience_s=PATIENCE_S) as dashboard,
    ):
        ours = dashboard.expect("hello")["session_id"]
        dashboard.hello(session_id=ours, last_seq=0)
        dashboard.expect("paused", step=0)
        yield Session(folder, process, dashboard)


def indices(ids: list[int]) -> dict[str, Any]:
    return {"kind": "indices", "ids": ids}


@pytest.mark.timeout(400)
def test_forks_and_merges_are_those_of_all_ranks(tmp_path: Path) -> None:
    with attached(tmp_path) as run:
        a_rank_that_cannot_fork_takes_all_back(run)
        each_sample_is_one_ranks(run)
        forked = run.done("fork", selection=indices(CHOSEN), parent_run_id="r", steps=6)["run_id"]
        assert run.trains_until_held() == 6
        a_merge_is_what_was_previewed(run, forked)
        a_validation_is_left_by_all(run)
        run.done("resume")
        run.dashboard.expect("checkpoint_saved", kind="ring", step=8)
        os.killpg(run.process.pid, signal.SIGKILL)
    [*_, (_, kept)] = complete_checkpoints(tmp_path / "runs/p" / forked)
    with (
        started(tmp_path, "resumed", OTF_RESUME=kept) as resumed,
        started(tmp_path, "bare") as bare,
    ):
        assert "resumed from step" in outcome(resumed)
        outcome(bare)
    for rank in RANKS:
        without, with_us = (result(tmp_path, how, rank) for how in ("bare", "resumed"))
        logged = with_us.pop("logged")
        assert logged == without.pop("logged")[-len(logged) :]
        assert with_us == without
        assert with_us["steps"][0] == STEPS
        for name in ("seen", "synced"):
            bare, live, resumed = (
                (tmp_path / f"{how}.{rank}.{name}").read_text().splitlines()
                for how in ("bare", "live", "resumed")
            )
            assert resumed == bare[-len(resumed) :]
            assert live[7:] == bare[: len(live) - 7]  # behind those of the other fork
    # By rank 0's clock, at meetings.
    kinds = Counter(m.kind for m, _ in complete_checkpoints(tmp_path / "runs/p" / forked))
    assert kinds["ring"] >= 2, kinds


@pytest.mark.long
@pytest.mark.timeout(240)
def test_ranks_of_which_one_cannot_be_put_back_end_together(tmp_path: Path) -> None:
    with attached(tmp_path) as run:
        run.done("fork", selection=indices(CHOSEN))
        (tmp_path / "torn").touch()
        said = run.refused("switch_run", run_id="r")
        assert "no room for anything" in said
        run.done("resume")  # it was held
        ended = run.dashboard.expect("trainingFinished")
        assert ended["status"] == "failed"
        _, err = run.process.communicate(timeout=2 * PATIENCE_S)
    assert run.process.returncode not in (0, -signal.SIGABRT)
    assert "rank 0 has left the run, which could not be put back" in err


def a_rank_that_cannot_fork_takes_all_back(run: Session) -> None:
    before = run.weights()
    (run.folder / "fails").touch()
    said = run.refused("fork", selection=indices(CHOSEN), lr=0.5)
    (run.folder / "fails").unlink()
    assert "Rank 1 could not follow in begin_pass: OSError: no room" in said
    assert run.weights() == before
    status = run.done("status")
    assert (status["run_id"], status["data"], status["step"]) == ("r", None, 0)
    assert "Sample 192 was chosen" in run.refused("fork", selection=indices([192]))


def each_sample_is_one_ranks(run: Session) -> None:
    run.done("fork", selection=indices(ODD), steps=7, run_name="odd")
    said = "1 of an epoch's samples are drawn once more, so that each of the 2 ranks draws 31"
    assert any(said in event.get("text", "") for event in run.dashboard.events())
    assert run.trains_until_held() == 7
    seen = [run.lines(rank, "seen") for rank in RANKS]
    assert [len(lines) for lines in seen] == [7, 7]
    first, second = ([ids for lines in seen for e, batch in lines if e == epoch for ids in batch]
                     for epoch in (0, 1))  # fmt: skip
    assert sorted(Counter(first)) == ODD
    assert sorted(Counter(first).values()) == [1] * 60 + [2]
    assert set(second) <= set(ODD)
    assert second != first[: len(second)]  # set_epoch is heard
    assert run.done("status")["data"] == {"chosen": 61, "of": 192, "drawn": 61}


def a_merge_is_what_was_previewed(run: Session, forked: str) -> None:
    before = run.weights()
    parents = [forked, "odd"]
    validated = len(run.validated(0))
    found = run.done(
        "merge_preview", parents=parents, strategies=["fisher", "linear"], limit_batches=1
    )
    fisher, linear = found["candidates"]
    assert fisher["score"] is not None
    each = [run.validated(rank)[validated:] for rank in RANKS]
    assert len(each[0]) == 4  # both parents, and what is merged
    assert each[0] == each[1]
    previewed = each[0][-1]
    assert run.weights() == before
    merged = run.done("merge", parents=parents, strategy="linear", optimizer="fresh", new_name="m")
    assert run.weights() == [previewed, previewed]
    assert linear["score"] is not None
    assert previewed == merged_in_one_process([Path(p) for p in merged["paths"]])
    gathers_anew(run, parents)
    run.done("undo")
    assert run.done("status")["run_id"] == forked
    assert run.weights() == before
    run.done("switch_run", run_id="odd")
    run.done("switch_run", run_id=forked)
    assert run.weights() == before


def gathers_anew(run: Session, parents: list[str]) -> None:
    """Statistics of BatchNorm, on rank 0; unless the step has a collective."""
    before = run.weights()
    again = {"parents": parents, "strategies": ["linear"], "recalibrate": True, "limit_batches": 1}
    found = run.done("merge_preview", **again)
    assert found["candidates"][0]["score"] is not None
    both = [run.validated(rank)[-1] for rank in RANKS]
    assert both[0] == both[1]
    assert both[0]["net.1.running_mean"] != before[0]["net.1.running_mean"]
    assert both[0]["net.0.weight"] == before[0]["net.0.weight"]
    (run.folder / "gathers").touch()
    found = run.done("merge_preview", **again)
    (run.folder / "gathers").unlink()
    assert "The training step runs a collective (allreduce)" in found["candidates"][0]["refused"]
    assert run.weights() == before


def merged_in_one_process(paths: list[Path]) -> Any:
    with ExitStack() as stack:
        weights = [stack.enter_context(open_weights(path)) for path in paths]
        parameters = frozenset(name for name, _ in Told(Path(), "").named_parameters())
        found = merge.run("linear", weights, Options(parameters=parameters))
        tensors = {name: tensor.clone() for name, tensor in found.tensors()}
    return json.loads(json.dumps(digest._exact(tensors)))


def a_validation_is_left_by_all(run: Session) -> None:
    before = run.weights()
    for sync in (True, False):
        (run.folder / "slow").touch()
        if sync:
            (run.folder / "together").touch()
        begun = [len(run.lines(rank, "validated")) for rank in RANKS]
        asked = run.dashboard.send("validate_now", {})
        run.dashboard.expect("progress", cmd="validate_now")
        assert run.done("cancel")["cancelled"] == asked
        reply = run.dashboard.reply_to(asked)
        assert not reply["ok"]
        left = [run.lines(rank, "validated")[begun[rank] :] for rank in RANKS]
        number = len(left[0])
        assert left == [[["batch", n] for n in range(1, number + 1)]] * 2
        assert 0 < number < 12
        assert f"validate_now was cancelled after {number} batches" in reply["detail"]
        for name in ("slow", "together"):
            (run.folder / name).unlink(missing_ok=True)
    assert run.weights() == before
