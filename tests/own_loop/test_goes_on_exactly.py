"""Attaching changes nothing, and what was saved at any batch goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from otf_core.state.keeper import ResumeError
from tests.own_loop.loops import KINDS, Loop, made

pytestmark = pytest.mark.usefixtures("queues_have_ended")
BATCHES = 12


def keeping(loop: Loop, save_dir: Path) -> dict[int, str]:
    """Run it, and keep a checkpoint of every batch."""
    paths: dict[int, str] = {}
    with loop.attached(save_dir=save_dir, keep_checkpoints=50) as session:

        def keep(n: int) -> None:
            saved = session._session.save("manual", pinned=True)
            assert saved.wait(30)
            assert saved.error is None, saved.error
            paths[n] = saved.path

        keep(0)
        loop.at = keep
        loop.train(session)
    return paths


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", KINDS)
def test_attaching_changes_nothing_and_every_batch_can_be_gone_on_from(
    kind: str, tmp_path: Path
) -> None:
    with made(kind) as bare:
        bare.bare()
        told, digest = bare.told, bare.digest()
    with made(kind) as idle:
        idle.run(save_dir=tmp_path / "idle")
        assert idle.told == told
        assert idle.digest() == digest
    with made(kind) as whole:
        paths = keeping(whole, tmp_path / "whole")
        assert whole.told == told
        assert whole.digest() == digest
    assert max(paths) == BATCHES
    for n in (0, 1, 4, 6, 7, 11, 12) if kind != "Workers" else (4, 6, 9):
        with made(kind, seed=99) as again:
            again.run(save_dir=tmp_path / f"{n}", resume=paths[n])
            assert again.told == told[len(told) - len(again.told) :], n
            assert len(again.told) >= BATCHES - n
            assert again.digest() == digest, n
        assert exactness_of(tmp_path / "whole")["text"] == "exact"


def exactness_of(save_dir: Path) -> Any:
    [record] = save_dir.glob("*/*/run.json")
    return msgspec.json.decode(record.read_bytes())["exactness"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "Workers"])
def test_the_report_says_that_it_is_exact(kind: str, tmp_path: Path) -> None:
    with made(kind) as loop:
        loop.run(save_dir=tmp_path)
    assert exactness_of(tmp_path)["text"] == "exact"


def test_the_loops_own_variables_are_named_where_nobody_has_spoken_of_them(tmp_path: Path) -> None:
    with made("Loop") as loop:
        loop.run(save_dir=tmp_path, state=None)
    assert exactness_of(tmp_path)["text"] == (
        "exact except the loop's own variables (state= takes them, state={} says there are none)"
    )


def test_a_loader_that_is_read_past_the_session_is_a_reason(tmp_path: Path) -> None:
    with made("Loop") as loop:
        loop.loader = [tuple(batch) for batch in loop.loader]
        loop.run(save_dir=tmp_path)
    assert exactness_of(tmp_path)["text"].endswith(
        "the loop reads its list directly, and where it stands is not known "
        "(for batch in session.batches())"
    )


def test_auto_goes_on_with_the_newest_and_a_finished_run_is_not_trained_again(
    tmp_path: Path,
) -> None:
    with made("Loop") as first:
        first.run(save_dir=tmp_path)
    with made("Loop", seed=5) as again:
        again.run(save_dir=tmp_path, resume="auto")
        assert again.told == []
        assert again.digest()["weights"] == first.digest()["weights"]
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    with made("Loop") as first:
        first.run(save_dir=tmp_path)
    with made("Loop", seed=5) as again, again.attached(save_dir=tmp_path, resume="auto") as session:
        assert (session.epoch, session.step) == (2, 12)
        assert next(iter(session.epochs(3))) == 2


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    with made("Loop") as first:
        paths = keeping(first, tmp_path / "a")
    with made("TwoModels") as other:
        before = other.digest()
        with (
            pytest.raises(ResumeError, match="The checkpoint is of another model"),
            other.attached(save_dir=tmp_path / "b", resume=paths[3]),
        ):
            pytest.fail("it was entered")
        assert other.digest() == before


def test_the_environment_names_the_checkpoint_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made("Loop") as first:
        paths = keeping(first, tmp_path / "a")
    monkeypatch.setenv("OTF_RESUME", paths[7])
    with made("Loop", seed=3) as again, again.attached(save_dir=tmp_path / "b") as session:
        assert (session.epoch, session.step, session.batch_idx) == (1, 7, 1)


SCRIPT = """
import os, signal, sys
import torch
from tests.own_loop.loops import Loop
torch.set_num_threads(1)
loop = Loop(seed=int(sys.argv[2]))
kill_at = int(sys.argv[3])
options = {"save_dir": sys.argv[1], "resume": "auto", "keep_checkpoints": 50}
with loop.attached(**options, checkpoint_every=1) as session:
    def at(n):
        if n == kill_at:
            # A slow disk has none before, and two on their way.
            assert session._session.save("manual", wait_s=30).wait(30)
            os.kill(os.getpid(), signal.SIGKILL)
    loop.at = at
    loop.train(session)
print(loop.digest())
print(loop.told[-1])
"""


@pytest.mark.timeout(120)
def test_a_process_that_is_killed_goes_on_in_another(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}

    def process(seed: int, kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / "runs"), str(seed), str(kill_at)]
        return subprocess.run(
            command, env=env, text=True, capture_output=True, timeout=60, check=False
        )

    with made("Loop") as bare:
        bare.bare()
        wanted = f"{bare.digest()}\n{bare.told[-1]}\n"
    assert process(0, 4).returncode == -signal.SIGKILL
    assert process(7, 5).returncode == -signal.SIGKILL
    ended = process(8, -1)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == wanted


def test_the_name_is_found_without_a_draw_from_what_the_script_has_seeded() -> None:
    code = """
import random, torch, otf_core
random.seed(0); torch.manual_seed(0)
before = random.getstate(), torch.get_rng_state()
otf_core.attach
assert random.getstate() == before[0]
assert torch.equal(torch.get_rng_state(), before[1])
"""
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root / "src")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
