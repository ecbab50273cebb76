"""An agent over stdio, a dashboard, and a run that trains: each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

OTF = [sys.executable, "-m", "otf_core.cli.otf"]
RUN = """
import sys, torch, lightning as L
from otf_lightning import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits
torch.set_num_threads(1)
L.seed_everything(1, verbose=False)
ours = OnTheFlyCallback("p", "taught", save_dir=sys.argv[1], dashboard=sys.argv[2],
                        pause_at_start=True)
L.Trainer(max_epochs=50, accelerator="cpu", callbacks=[ours], logger=False, num_sanity_val_steps=0,
          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
          ).fit(LitDigits(), datamodule=Digits())
"""


@pytest.fixture
def held_run(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A dashboard's URL, and a run that stands before its first batch."""
    command = [*OTF, "dashboard", "--dir", str(tmp_path)]
    dashboard = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert dashboard.stdout is not None
    url = dashboard.stdout.readline().strip()
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path), "auto"], stderr=subprocess.DEVNULL
    )
    try:
        yield url, tmp_path
    finally:
        for process in (run, dashboard):
            process.terminate()
            process.wait(30)
        dashboard.stdout.close()


class Agent:
    """Calls tools of ``otf mcp``."""

    def __init__(self, url: str, *args: str) -> None:
        self._server = StdioServerParameters(
            command=OTF[0],
            args=[*OTF[1:], "mcp", "--url", url, *args],
            env={**os.environ},
        )

    async def __aenter__(self) -> Agent:
        self._client = await Client(stdio_client(self._server)).__aenter__()
        return self

    async def __aexit__(self, *left_by: Any) -> None:
        await self._client.__aexit__(*left_by)

    async def names(self) -> dict[str, Any]:
        return {tool.name: tool for tool in (await self._client.list_tools()).tools}

    async def call(self, name: str, **given: Any) -> dict[str, Any]:
        result = await self._client.call_tool(name, given)
        [content] = result.content
        found: dict[str, Any] = result.structured_content
        assert json.loads(content.text) == found  # type: ignore[union-attr]
        assert bool(result.is_error) == ("code" in found)
        return found

    async def until_held(self) -> dict[str, Any]:
        """The run has found the dashboard, and stands."""
        found: dict[str, Any] = {}
        for _ in range(600):
            found = await self.call("status")
            if (found.get("data") or {}).get("state") == "paused":
                return found
            await asyncio.sleep(0.1)  # another process comes up
        pytest.fail(f"the run does not stand: {found}")


@pytest.mark.timeout(180)
def test_an_agent_looks_and_steers_within_its_bounds(held_run: tuple[str, Path]) -> None:
    asyncio.run(asyncio.wait_for(_steers(*held_run), 150))


async def _steers(url: str, folder: Path) -> None:
    async with Agent(url, "--write", "--bounds", "lr=1e-5:1e-2", "--per-minute", "5") as agent:
        tools = await agent.names()
        assert {"status", "set", "pause", "preview", "metrics", "runs", "stop"} <= tools.keys()
        assert tools["set"].input_schema["required"] == ["path"]
        hints = tools["stop"].annotations
        assert (hints.read_only_hint, hints.destructive_hint) == (False, True)
        assert tools["status"].annotations.read_only_hint is True

        status = await agent.until_held()
        assert status["run"] == "taught"
        assert "Paused taught at step 0" in status["said"]

        tried = await agent.call("set", path="lr", value=0.004, dry_run=True)
        assert "code" not in tried, tried
        assert (tried["applied"], tried["dry_run"]) == (False, True)
        assert tried["would"]["line"] == "otf set lr 0.004 --run taught"
        first = next(iter(tried["preview"]["then"].values()))[0]
        assert first == 0.004

        done = await agent.call("set", path="lr", value=0.004)
        assert (done["applied"], done["data"]["new"], done["data"]["applied_step"]) == (
            True,
            0.004,
            0,
        )

        too_much = await agent.call("set", path="lr", value=0.5)
        assert (too_much["code"], too_much["allowed"]) == (
            "out_of_bounds",
            {"min": 1e-5, "max": 0.01},
        )
        wrong = await agent.call("set", path="weight_decay", value=77)
        assert wrong["code"] == "bad_payload"
        assert "allowed: 0.0 to 1.0" in wrong["said"]
        unknown = await agent.call("set", path="lr", valeu=0.001)
        assert (unknown["code"], unknown["applied"]) == ("usage", False)

        stop = await agent.call("stop")
        assert (stop["code"], stop["line"]) == ("needs_person", "otf stop --run taught")
        back = await agent.call("rollback", to="0")
        assert back["code"] == "needs_person"

        assert (await agent.call("undo"))["applied"] is True
        assert (await agent.call("note", text="lr looked low"))["applied"] is True
        assert (await agent.call("resume"))["applied"] is True
        held = await agent.call("pause")
        assert held["applied"] is True
        refused = await agent.call("note", text="once more")
        assert (refused["code"], refused["retry_after_s"] > 0) == ("too_many", True)

        names = (await agent.call("metrics"))["names"]
        assert "loss" in names
        loss = (await agent.call("metrics", names=["loss"], points=10))["series"]["loss"]
        assert 0 < len(loss["value"]) == len(loss["step"])
        events = (await agent.call("events", types=["param_changed", "note"]))["events"]
        assert [e["type"] for e in events] == ["param_changed", "param_changed", "note"]
    [journal] = folder.glob("p/taught/journal/*.jsonl")
    told = [
        json.loads(line) for line in journal.read_bytes().splitlines() if b"param_changed" in line
    ]
    assert [(e["path"], e["by"]) for e in told] == [("lr", "user"), ("lr", "undo")]


@pytest.mark.timeout(120)
def test_without_leave_an_agent_only_looks(tmp_path: Path) -> None:
    command = [*OTF, "dashboard", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dashboard:
        assert dashboard.stdout is not None
        url = dashboard.stdout.readline().strip()
        try:
            asyncio.run(asyncio.wait_for(_looks(url), 90))
        finally:
            dashboard.terminate()


async def _looks(url: str) -> None:
    async with Agent(url) as agent:
        tools = await agent.names()
        assert "status" in tools
        assert not {"set", "pause", "stop", "save"} & tools.keys()
        refused = await agent.call("set", path="lr", value=0.1)
        assert (refused["code"], "otf mcp --write" in refused["said"]) == ("read_only", True)
        assert (await agent.call("runs"))["runs"] == []
        assert (await agent.call("status"))["code"] == "no_run"
        assert (await agent.call("fly"))["code"] == "unknown_tool"
