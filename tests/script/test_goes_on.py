"""A script under otf-fit is killed, stopped and taken back, and ends as the one nobody touched."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from otf_core.runs.archive import pack
from otf_core.runs.unarchive import unpack
from tests.script.rig import Ran, Zygote, controlled, shape


def ok(reply: dict[str, Any]) -> dict[str, Any]:
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


def after(whole: Ran, part: Ran) -> bytes:
    """What is still to be printed."""
    assert whole.stdout.startswith(part.stdout)
    return whole.stdout[len(part.stdout) :]


@pytest.mark.parametrize("how", ["path", "auto", "environment"])
def test_killed_from_outside_it_goes_on_by_every_way_to_ask_for_it(
    how: str, zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("python", shape("gan"), tmp_path / "bare")
    folder = tmp_path / "otf"
    with controlled(zygote, shape("gan"), folder, "--checkpoint-every", "2") as (script, board):
        board.expect("paused")
        ok(board.request("resume"))
        while board.expect("checkpoint_saved")["step"] < 4:
            pass
        os.kill(script.pid, signal.SIGKILL)
        killed = script.wait()
    assert killed.code == -signal.SIGKILL
    found = sorted(folder.rglob("4-ring.ckpt"))
    asked = {"path": ["--resume", str(found[0])], "auto": ["--resume", "auto"]}.get(how, [])
    env = {"OTF_RESUME": str(found[0])} if how == "environment" else {}
    on = zygote.run("otf-fit", [*asked, *shape("gan")], folder, env)
    assert on.code == 0, on.stderr
    assert on.digest == bare.digest
    assert bare.stdout.endswith(on.stdout[-200:])
    assert any("resumed from step" in line for line in on.said)


def test_killed_and_taken_elsewhere_as_one_file_it_goes_on_there(
    zygote: Zygote, tmp_path: Path
) -> None:
    bare = zygote.run("python", shape("gan"), tmp_path / "bare")
    folder, there = tmp_path / "otf", tmp_path / "there"
    with controlled(zygote, shape("gan"), folder, "--checkpoint-every", "2") as (script, board):
        board.expect("paused")
        ok(board.request("resume"))
        while board.expect("checkpoint_saved")["step"] < 4:
            pass
        os.kill(script.pid, signal.SIGKILL)
        script.wait()
    (run_dir,) = (path.parent for path in folder.rglob("run.json"))
    with (tmp_path / "a.zip").open("xb") as file:
        pack([run_dir], file)
    there.mkdir()
    unpack(tmp_path / "a.zip", there / run_dir.parent.parent.relative_to(folder))
    shutil.rmtree(folder)
    on = zygote.run("otf-fit", ["--resume", "auto", *shape("gan")], there)
    assert (on.code, on.digest) == (0, bare.digest), on.stderr
    assert any("resumed from step" in line for line in on.said)


def test_stopped_it_goes_on_where_it_was(zygote: Zygote, tmp_path: Path) -> None:
    bare = zygote.run("python", shape("no_loader"), tmp_path / "bare")
    with controlled(zygote, shape("no_loader"), tmp_path / "otf") as (script, board):
        board.expect("paused")
        saved = ok(board.request("stop"))["ckpt"]
        stopped = script.wait()
    on = zygote.run("otf-fit", ["--resume", saved, *shape("no_loader")], tmp_path / "on")
    assert (on.code, on.digest) == (0, bare.digest), on.stderr
    assert on.stdout.endswith(after(bare, stopped))


def test_a_held_value_goes_on_being_held(zygote: Zygote, tmp_path: Path) -> None:
    with controlled(zygote, shape("plain"), tmp_path / "otf") as (script, board):
        board.expect("paused")
        ok(board.request("set_param", {"path": "lr", "value": 0.5}))
        saved = ok(board.request("stop"))["ckpt"]
        stopped = script.wait()
    on = zygote.run("otf-fit", ["--resume", saved, *shape("plain")], tmp_path / "on")
    assert on.code == 0, on.stderr
    told = stopped.events("trainStep")  # the run goes on in its folder
    assert {event["lr"] for event in told if event["step"] > 1} == {0.5}
    assert len(told) == 12


def test_taken_back_while_it_runs_it_goes_on_from_there(zygote: Zygote, tmp_path: Path) -> None:
    with controlled(zygote, shape("plain"), tmp_path / "otf") as (script, board):
        board.expect("paused")
        first = ok(board.request("save_ckpt"))
        assert ok(board.request("rollback", {"checkpoint": first["id"]}))["step"] == 1
        ok(board.request("resume"))
        under = script.wait()
    bare = zygote.run("python", shape("plain"), tmp_path / "bare")
    assert (under.code, under.digest, under.stdout) == (0, bare.digest, bare.stdout), under.stderr


def test_what_cannot_go_on_there_is_refused_with_code_3(zygote: Zygote, tmp_path: Path) -> None:
    missing = zygote.run("otf-fit", ["--resume", "none.ckpt", *shape("plain")], tmp_path)
    assert missing.code == 3
    assert (missing.stdout, missing.digest) == (b"", None)
    assert "where there is no file" in missing.stderr


def test_a_resume_that_is_refused_says_only_that(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "width").write_text("2")
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "net = torch.nn.Linear(2, int(open('width').read()))\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for turn in range(3):\n"
        "    net(torch.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n"
    )
    zygote.run("otf-fit", ["--checkpoint-every", "1", str(script)], tmp_path)
    (tmp_path / "width").write_text("3")
    on = zygote.run("otf-fit", ["--resume", "auto", str(script)], tmp_path)
    [refusal] = on.said
    assert on.code == 3
    assert refusal.endswith("nothing was trained")


def test_a_loader_without_a_name_is_one_as_well_when_it_goes_on(
    zygote: Zygote, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader\n"
        "net = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for epoch in range(2):\n"
        "    for x in DataLoader(torch.ones(6, 2), batch_size=2):\n"
        "        net(x).sum().backward()\n"
        "        optimizer.step()\n"
    )
    first = zygote.run("otf-fit", ["--checkpoint-every", "1", str(script)], tmp_path)
    on = zygote.run("otf-fit", ["--resume", "auto", str(script)], tmp_path)
    assert first.said[0] in on.said
    assert first.said[0].endswith("Linear as 'net', a loader")


def test_an_async_loop_is_met_at_its_head_and_is_not_gone_on_from(
    zygote: Zygote, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import asyncio, torch\n"
        "net = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "async def feed():\n"
        "    for n in range(3):\n"
        "        yield torch.ones(1, 2)\n"
        "async def train():\n"
        "    for epoch in range(2):\n"
        "        async for x in feed():\n"
        "            net(x).sum().backward()\n"
        "            optimizer.step()\n"
        "asyncio.run(train())\n"
    )
    first = zygote.run("otf-fit", ["--checkpoint-every", "1", str(script)], tmp_path)
    assert first.steps() == [1, 2, 3, 4, 5, 6]
    on = zygote.run("otf-fit", ["--resume", "auto", str(script)], tmp_path)
    assert on.code == 3
    assert "the script trains within asyncio" in on.stderr
