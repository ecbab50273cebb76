"""A real ``otf dashboard``, killed while a trainer writes; what comes after is the journal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dashboard.bench import in_loop
from tests.dashboard.trainer_double import TrainerDouble


@contextlib.asynccontextmanager
async def otf_dashboard(
    runs: Path, control_port: int, env: dict[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """Its process, and a client of it; killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--force", "--dir", str(runs),
        "--control-port", str(control_port), env=env, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url, token = (await process.stdout.readline()).decode().strip().split("#token=")
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=15, trust_env=False
        ) as http:
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Writer:
    """A trainer that keeps a journal, as a session of ours does."""

    def __init__(self, runs: Path, session_id: str) -> None:
        # The process's token is its own; this double asks for none.
        self.trainer = TrainerDouble(session_id, token=None, run_id=f"run-{session_id}")
        folder = runs / self.trainer.project / self.trainer.run_id / "journal"
        folder.mkdir(parents=True)
        self.path = folder / f"{session_id}.jsonl"
        self.trainer.begin()
        self.written = 0

    def train(self, steps: int) -> None:
        self.trainer.train(steps)
        if random.Random(len(self.trainer.events)).random() < 0.3:
            self.trainer.emit("log", level="info", phase="train", text="so far")

    def write(self) -> None:
        with self.path.open("ab") as file:
            for event in self.trainer.events[self.written :]:
                file.write(json.dumps(event).encode() + b"\n")
        self.written = len(self.trainer.events)

    async def run(self, port: int) -> None:
        """Train, connected, until the dashboard is gone."""
        await self.trainer.dial(port)
        gone = asyncio.ensure_future(self.trainer.closed())
        while not gone.done():
            self.train(20)
            self.write()
            await asyncio.wait([gone], timeout=0.005)
        await self.trainer.hang_up()


async def told(http: httpx.AsyncClient, session_id: str) -> list[dict[str, Any]]:
    kinds = "session_started,newRun,trainStep,log"
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["event_seq"] if found else 0
        answer = await http.get(
            f"api/sessions/{session_id}/events?types={kinds}&limit=10000&after={after}"
        )
        assert answer.status_code == 200, answer.text
        more = answer.json()["events"]
        if not more:
            return found
        found += more


async def has_all(http: httpx.AsyncClient, session_id: str, count: int) -> None:
    while True:
        answer = await http.get(f"api/sessions/{session_id}")
        if answer.status_code == 200 and answer.json()["last_seq"] >= count:
            return
        await http.get(f"api/sessions/{session_id}/events?after={count - 1}&wait_s=0.2")


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.long)])
@in_loop
async def test_a_dashboard_that_is_killed_again_and_again_has_what_the_journals_have(
    tmp_path: Path, kills: int
) -> None:
    runs, runtime = tmp_path / "otf_runs", tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    env = os.environ | {"XDG_RUNTIME_DIR": str(runtime)}
    writers = [Writer(runs, "sess-1"), Writer(runs, "sess-2")]
    port, chance = free_port(), random.Random(7)
    for _ in range(kills):
        async with otf_dashboard(runs, port, env) as (process, http):
            running = [asyncio.ensure_future(writer.run(port)) for writer in writers]
            # Somewhere in its work: so many events after it was there.
            goal = len(writers[0].trainer.events) + chance.randrange(200, 4000)
            await has_all(http, "sess-1", goal)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*running)
    for writer in writers:
        writer.write()
    async with otf_dashboard(runs, port, env) as (process, http):
        for writer in writers:
            key, events = writer.trainer.session_id, writer.trainer.events
            lines = [json.loads(line) for line in writer.path.read_bytes().splitlines()]
            assert lines == events
            await has_all(http, key, len(events))
            found = await told(http, key)
            assert [e["event_seq"] for e in found] == [e["event_seq"] for e in lines]
            for event, line in zip(found, lines, strict=True):
                assert event == {**line, **event}
                assert event.get("loss") == line.get("loss")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
