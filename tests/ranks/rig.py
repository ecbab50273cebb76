"""Programs of several ranks, started by hand or by a launcher, and ended however a test ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import distributed_c10d

from otf_core.testing import FakeDashboard, LoopbackListener

PATIENCE_S = 60.0
ROOT = str(Path(__file__).parents[2])
# On a loaded machine gloo is now and then refused its first connection: torchrun tries again.
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", "2"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def by_hand(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment of one rank that nothing has launched."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextlib.contextmanager
def started(*command: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process, and whatever it has started, in a group of its own."""
    ours = {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=ROOT, env={**os.environ, **ours, **(env or {})},
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str], within_s: float = 2 * PATIENCE_S) -> str:
    """What it said on stderr; it has to end well."""
    _, said = process.communicate(timeout=within_s)
    assert process.returncode == 0, said
    return said


def run_by_hand(module: str, folder: Path, size: int, *args: str) -> list[dict[str, Any]]:
    """What each rank of a program has noted."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                started(
                    *(sys.executable, "-m", module, str(folder), *args),
                    env=by_hand(rank, size, port),
                )
            )
            for rank in range(size)
        ]
        for rank in ranks:
            ended(rank)
    return noted(folder, size)


def be_impatient(group_s: float) -> None:
    """The process group's time-out from here on: ranks may take longer to find each other."""
    patience = timedelta(seconds=group_s)
    distributed_c10d._set_pg_timeout(patience, distributed_c10d._get_default_group())
    distributed_c10d._get_default_store().set_timeout(patience)


def note(folder: Path, rank: int, found: Mapping[str, Any]) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(found))


def noted(folder: Path, size: int = 2) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@contextlib.contextmanager
def held(listener: LoopbackListener, *, step: int | None = 0) -> Iterator[FakeDashboard]:
    """The dashboard of a run that pauses at its start."""
    with FakeDashboard(listener.accept(PATIENCE_S), patience_s=PATIENCE_S) as dashboard:
        ours = dashboard.expect("hello")["session_id"]
        dashboard.hello(session_id=ours, last_seq=0)
        dashboard.expect("paused", **({} if step is None else {"step": step}))
        yield dashboard


def done(dashboard: FakeDashboard, cmd: str, **payload: Any) -> dict[str, Any]:
    reply = dashboard.request(cmd, payload)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data
