"""Runs a script as several ranks, each forked from a process that has torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.script.rig import PATIENCE_S, Ran, Running, Zygote


class Ranks:
    """As many ranks as zygotes; rank 0 has the store of the process group, as without torchrun."""

    def __init__(self, *zygotes: Zygote) -> None:
        self._zygotes = zygotes

    def run(
        self, mode: str, argv: list[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> list[Ran]:
        """Run a script to the end of all ranks; none is left behind, however this ends."""
        running: list[Running] = []
        # A rank that waits for another would do so for half an hour.
        late = threading.Timer(PATIENCE_S, lambda: [_kill(each.pid) for each in running])
        common = {
            "WORLD_SIZE": str(len(self._zygotes)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            **(env or {}),
        }
        late.start()
        try:
            for rank, zygote in enumerate(self._zygotes):
                own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.append(zygote.start(mode, argv, folder / str(rank), own))
            return [each.wait() for each in running]
        finally:
            late.cancel()
            late.join()
            for each in running:
                each.kill()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
