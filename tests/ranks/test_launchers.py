"""Who launches the ranks makes no difference: torchrun, SLURM, two machines, a restart."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from otf_core.testing import LoopbackListener
from tests.ranks.rig import TORCHRUN, done, ended, free_port, held, noted, started

# With processes of its own as well: they all end with the first.
APART = (
    *("unshare", "--map-root-user", "--net"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)
FIT = "tests.ranks.fitted"
GROUP_S = 3.0
pytestmark = pytest.mark.timeout(180)


def only_rank_0_is_connected(found: list[dict[str, Any]], port: int) -> None:
    first, *others = (each["connected"] for each in found)
    assert str(("127.0.0.1", port)) in first
    assert others == [[]] * len(others)


def stopped_at(found: list[dict[str, Any]], step: int) -> None:
    assert [each["step"] for each in found] == [step] * 2
    assert found[0]["weights"]["net.0.weight"] == found[1]["weights"]["net.0.weight"]


@pytest.mark.long
def test_ranks_of_torchrun_are_held_four_times_longer_than_their_group_would_wait(
    tmp_path: Path,
) -> None:
    with (
        LoopbackListener(legacy_allowed=False) as listener,
        started(
            *(*TORCHRUN, "-m", FIT, str(tmp_path), str(listener.port)),
            env={"GROUP_S": f"{GROUP_S}"},
        ) as agent,
        held(listener) as dashboard,
    ):
        done(dashboard, "resume")
        stands = done(dashboard, "pause")["step"]
        threading.Event().wait(4 * GROUP_S)
        assert done(dashboard, "save_ckpt")["step"] == stands
        done(dashboard, "resume")
        step = done(dashboard, "stop")["step"]
        ended(agent)
    found = noted(tmp_path)
    assert step > stands
    stopped_at(found, step)
    assert found[0]["launched by"] == "TorchElasticEnvironment"
    only_rank_0_is_connected(found, listener.port)


def of_slurm(rank: int) -> dict[str, str]:
    """What srun gives a task."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "digits",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


@pytest.mark.long
def test_tasks_of_slurm_are_held_and_stopped_as_one(tmp_path: Path) -> None:
    port = str(free_port())
    with LoopbackListener(legacy_allowed=False) as listener, contextlib.ExitStack() as stack:
        command = (sys.executable, "-m", FIT, str(tmp_path), str(listener.port))
        tasks = [
            stack.enter_context(started(*command, env={**of_slurm(rank), "MASTER_PORT": port}))
            for rank in range(2)
        ]
        with held(listener) as dashboard:
            done(dashboard, "set_param", path="lr", value=0.01)
            done(dashboard, "resume")
            step = done(dashboard, "stop")["step"]
            for task in tasks:
                ended(task)
    found = noted(tmp_path)
    stopped_at(found, step)
    assert found[0]["launched by"] == "SLURMEnvironment"
    only_rank_0_is_connected(found, listener.port)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ranks_that_torchrun_starts_again_go_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    bare, again = tmp_path / "bare", tmp_path / "again"
    for folder in (bare, again):
        folder.mkdir()
    with started(*TORCHRUN, "-m", FIT, str(bare)) as agent:
        ended(agent)
    with started(*TORCHRUN, "-m", FIT, str(again), "0", env={"DIES": "25"}) as agent:
        said = ended(agent, 240)
    assert "resumed from step" in said
    assert [path.name for path in (again / "runs/p").iterdir() if path.is_dir()] == ["r"]
    ours = ("connected", "logged")
    for bare_rank, rank in zip(noted(bare), noted(again), strict=True):
        assert rank | dict.fromkeys(ours) == bare_rank | dict.fromkeys(ours)
        assert rank["collectives"] > 0  # and as many as without us


def why_not_two_nodes() -> str:
    """In a word; empty where there can be two networks on this machine."""
    if missing := [each for each in ("unshare", "nsenter", "ip") if shutil.which(each) is None]:
        return f"no {', '.join(missing)} here"
    probe = "ip link add cable0 type veth peer name cable1"
    tried = subprocess.run(
        [*APART, "sh", "-c", probe], capture_output=True, text=True, check=False, timeout=20
    )
    return f"no networks of one's own here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.mark.long
@pytest.mark.timeout(240)
def test_two_machines_are_held_and_stopped_as_one(tmp_path: Path) -> None:
    if why := why_not_two_nodes():
        pytest.skip(why)
    command = (*APART, sys.executable, "-m", "tests.ranks.two_nodes", str(tmp_path))
    with started(*command) as process:
        ended(process, 170)
    found = noted(tmp_path)
    port, step = (int(each) for each in (tmp_path / "told").read_text().split())
    stopped_at(found, step)
    only_rank_0_is_connected(found, port)
