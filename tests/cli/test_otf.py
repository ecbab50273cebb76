"""The command line, as a process, against a real dashboard and a trainer made from the protocol."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otf_core import rendezvous
from otf_core.cli.otf import main
from otf_core.client import Client
from tests.dashboard import tls
from tests.dashboard.bench import TOKEN, Bench, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble


@dataclass
class Ended:
    """What a process left."""

    status: int | None
    out: str
    err: str

    def json(self) -> Any:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of the test's own, so that no other dashboard is met."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


async def otf(*args: str, cwd: Path | None = None) -> Ended:
    """Run it to its end, beside the loop that serves it."""
    command = [sys.executable, "-m", "otf_core.cli.otf", *args]
    ran = await asyncio.to_thread(
        subprocess.run, command, cwd=cwd, capture_output=True, text=True, check=False
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


@asynccontextmanager
async def announced(tmp_path: Path) -> AsyncIterator[Bench]:
    """A dashboard that the command line finds."""
    async with dashboard(tmp_path / "otf_runs") as bench:
        said = rendezvous.Rendezvous(
            "127.0.0.1", bench.port, TOKEN, os.getpid(), bench.dashboard.url
        )
        rendezvous.write(said)
        yield bench


@asynccontextmanager
async def training(tmp_path: Path) -> AsyncIterator[tuple[Bench, TrainerDouble]]:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(120)
    async with announced(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 122)
        await bench.until(lambda: bench.store.sessions["sess-1"].status is not None)
        yield bench, trainer


SENTENCES: list[tuple[list[str], str]] = [
    (["status"], "Training digits — step 120 of 1,000, epoch 0, 50 steps/s, 18 s left"),
    (["pause"], "Paused digits at step 120; checkpoint 120-pause.ckpt (91 kB)"),
    (["resume"], "Resumed digits at step 120"),
    (["save"], "Saved 120-manual.ckpt of digits at step 120"),
    (["validate"], "Validated digits at step 120 in 0.8 s: val_loss 0.41"),
    (["test"], "Tested digits at step 120: average loss 0.4127"),
    (["set", "lr", "0.0005"], "Set lr of digits: 0.001 → 0.0005, applied at step 120"),
    (["note", "halved the rate"], "Noted at step 120 of digits"),
    (["checkpoints"], "digits has no checkpoint yet"),
    (["export", "samples", "--worst", "0.1", "--out", "/w.csv"],
     "Exported 19 samples of digits at step 120 to /w.csv"),
    (["params"], "lr  0.0005  (optimizer; 0 to 10)"),
    (["undo"], "Undone in digits: set_param lr, now 0.001, applied at step 120"),
    (["extend", "--epochs", "30"], "Extended digits: 20 → 30 epochs, applied at step 120"),
    (["stop"], "Stopping digits at step 120; no checkpoint yet"),
]  # fmt: skip


@in_loop
async def test_each_verb_says_what_has_happened(tmp_path: Path, runtime: Path) -> None:
    async with training(tmp_path) as (_, trainer):
        for args, sentence in SENTENCES:
            ended = await otf(*args)
            assert (ended.status, ended.err) == (0, ""), args
            if args == ["stop"]:
                assert ended.out.startswith("Stopping digits at step 120")
            else:
                assert ended.out.splitlines()[0] == sentence
        assert trainer.state == "interrupted"


@in_loop
async def test_json_is_the_data_of_the_reply(tmp_path: Path, runtime: Path) -> None:
    async with training(tmp_path) as (bench, trainer):
        ended = await otf("pause", "--json", "--reason", "look")
        [receipt] = bench.hub.book("sess-1").newest(1)
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        assert (receipt.by, receipt.client) == ("cli", who)
        path = "otf_runs/demo/digits/checkpoints/120-pause.ckpt"
        done = {"status": "paused", "step": 120, "ckpt": path, "applied_step": 120}
        assert ended.json() == done
        assert trainer.asked("pause")[0]["payload"] == {"reason": "look"}
        assert (await otf("status", "--json")).json()["state"] == "paused"
        assert (await otf("params", "--json")).json()["params"][0]["path"] == "lr"
        assert (await otf("ps", "--json")).json()["sessions"][0]["session_id"] == "sess-1"


@pytest.mark.parametrize(
    ("args", "payload"),
    [
        (["set", "lr", "0.5", "--mul"], {"path": "lr", "mul": 0.5}),
        (
            ["set", "lr", "1e-4", "--at-step", "500", "--mode", "override"],
            {"path": "lr", "value": 1e-4, "at_step": 500, "mode": "override"},
        ),
        (["set", "amsgrad", "true"], {"path": "amsgrad", "value": True}),
        (["pause", "--at-step", "500"], {"at_step": 500}),
        (["stop", "--no-save"], {"save": False}),
        (["stop"], {}),
        (["validate", "--limit-batches", "3"], {"limit_batches": 3}),
        (["test", "--label", "final"], {"label": "final"}),
        (["note", "text", "--step", "7"], {"text": "text", "step": 7}),
        (["set", "after_fit", "hold"], {"path": "after_fit", "value": "hold"}),
        (["resume", "lr"], {"path": "lr", "release": True}),
        (["undo"], {}),
        (["undo", "r-1", "--restore"], {"request_id": "r-1", "restore": True}),
        (["extend", "--epochs", "30"], {"max_epochs": 30}),
        (["extend", "--steps", "900"], {"max_steps": 900}),
        (["reset", "--yes"], {"reason": "manual"}),
    ],
)
@in_loop
async def test_arguments_become_the_payload(
    tmp_path: Path, runtime: Path, args: list[str], payload: dict[str, Any]
) -> None:
    async with training(tmp_path) as (_, trainer):
        assert (await otf(*args)).status == 0
        known = {"stop", "pause", "set_param", "validate_now", "test_now", "note", "undo",
                 "extend", "reset_session"}  # fmt: skip
        [sent] = [r["payload"] for r in trainer.requests if r["cmd"] in known]
        assert sent == payload


@in_loop
async def test_a_rollback_names_what_it_went_back_from_and_to(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (_, trainer):
        trainer.saved(40)
        trainer.saved(80, "manual")
        ended = await otf("rollback", "80")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out == "Rolled back digits from step 120 to 80 (checkpoint 80-manual)\n"
        assert trainer.step == 80
        said = (await otf("rollback", "40-ring", "--json")).json()
        assert (said["checkpoint"], said["step"], said["from_step"]) == ("40-ring", 40, 80)
        file = "otf_runs/demo/digits/checkpoints/80-manual.ckpt"
        assert (await otf("rollback", file, cwd=tmp_path)).status == 0
        [sent] = trainer.asked("load_ckpt")
        assert sent["payload"] == {"path": str(tmp_path / file)}


@in_loop
async def test_a_step_without_a_checkpoint_is_refused_with_the_nearest(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (_, trainer):
        trainer.saved(40)
        ended = await otf("rollback", "60")
        assert (ended.status, ended.out) == (3, "")
        assert ended.err == "otf: No checkpoint as asked for; the nearest are 40.\n"
        said = (await otf("rollback", "60", "--json")).json()
        assert (said["code"], said["allowed"]) == ("not_found", [40])
        assert trainer.step == 120


@in_loop
async def test_checkpoints_are_a_table_with_the_newest_first(tmp_path: Path, runtime: Path) -> None:
    async with training(tmp_path) as (_, trainer):
        trainer.saved(40)
        trainer.saved(80, "manual", exact=False)
        first, second, third = (await otf("checkpoints")).out.splitlines()
        assert first.split() == ["id", "step", "epoch", "kind", "pinned", "exact", "size", "age"]
        assert second.split()[:8] == ["80-manual", "80", "0", "manual", "yes", "no", "91", "kB"]
        assert third.split()[:8] == ["40-ring", "40", "0", "ring", "no", "yes", "91", "kB"]
        listed = (await otf("checkpoints", "--json", "--of", "digits")).json()["checkpoints"]
        assert [row["step"] for row in listed] == [80, 40]


@in_loop
async def test_a_reset_asks_first_and_without_a_terminal_wants_to_hear_yes(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (bench, trainer):
        ended = await otf("reset")
        assert (ended.status, ended.out) == (2, "")
        assert "say --yes" in ended.err
        status, said = await on_a_terminal("n\n", "reset")
        assert status == 3
        assert "Put digits back to before its first step?" in said
        assert "nothing was sent" in said
        assert trainer.asked("reset_session") == []
        status, said = await on_a_terminal("y\n", "reset")
        assert status == 0
        assert "Reset digits: it is paused at step 0" in said
        # The answer came on the session that the reset began; it is told to who asked all the same.
        assert "its session is sess-1-again now" in said
        await bench.until_has("sess-1-again", 2)
        assert bench.store.sessions["sess-1"].pending() == []


async def on_a_terminal(typed: str, *args: str) -> tuple[int, str]:
    """Run it with a terminal for its input; its status and all that it wrote."""
    mine, its = os.openpty()
    command = [sys.executable, "-m", "otf_core.cli.otf", *args]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    os.close(its)
    os.write(mine, typed.encode())
    out, _ = await process.communicate()
    os.close(mine)
    assert process.returncode is not None
    return process.returncode, out.decode()


@in_loop
async def test_a_refusal_ends_with_3_and_says_why(tmp_path: Path, runtime: Path) -> None:
    async with training(tmp_path):
        ended = await otf("set", "lr", "-1")
        assert (ended.status, ended.out) == (3, "")
        assert ended.err == "otf: lr -1 asked; it is 0.001 now and may be 0 to 10.\n"
        said = (await otf("set", "lr", "-1", "--json")).json()
        assert (said["code"], said["allowed"]) == ("bad_payload", {"min": 0.0, "max": 10.0})


@in_loop
async def test_an_answer_that_does_not_come_in_time_is_no_success(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (_, trainer):
        trainer.holding = True
        ended = await otf("pause", "--wait", "0.1", "--json")
        assert ended.status == 3
        assert ended.json()["code"] == "no_answer"


@in_loop
async def test_with_no_run_it_ends_with_4_and_says_what_to_start(
    tmp_path: Path, runtime: Path
) -> None:
    ended = await otf("status")
    assert ended.status == 4
    assert "otf dashboard" in ended.err
    assert (await otf("status", "--json")).json()["code"] == "no_dashboard"
    async with announced(tmp_path):
        ended = await otf("pause", "--json")
        assert (ended.status, ended.json()["code"]) == (4, "no_run")
        assert (await otf("ps")).out == "No run yet — the dashboard listens.\n"


@in_loop
async def test_of_several_runs_one_must_be_named(tmp_path: Path, runtime: Path) -> None:
    other = TrainerDouble("sess-2", run_id="other", token=TOKEN)
    async with training(tmp_path) as (bench, trainer), other.on(bench.port):
        other.begin()
        await bench.until_has("sess-2", 2)
        ended = await otf("pause", "--json")
        assert (ended.status, ended.json()["allowed"]) == (2, ["sess-1", "sess-2"])
        assert "digits (sess-1)" in ended.json()["detail"]
        assert trainer.asked("pause") == other.asked("pause") == []
        assert (await otf("pause", "--run", "other")).status == 0
        assert (await otf("pause", "--run", "sess-1")).status == 0
        assert (len(trainer.asked("pause")), len(other.asked("pause"))) == (1, 1)
        ended = await otf("pause", "--run", "nobody")
        assert ended.status == 4
        assert "digits (sess-1), other (sess-2)" in ended.err
        table = (await otf("ps")).out
        assert "sess-1" in table
        assert "sess-2" in table


@in_loop
async def test_a_run_that_was_resumed_is_listed_once(tmp_path: Path, runtime: Path) -> None:
    async with announced(tmp_path) as bench:
        first, second = (TrainerDouble(key, token=TOKEN) for key in ("sess-1", "sess-2"))
        second.start_ts += 100
        for trainer in (first, second):
            async with trainer.on(bench.port):
                trainer.begin()
                await bench.until_has(trainer.session_id, 2)
            await bench.until_connected(trainer.session_id, connected=False)
        for args in (["ps"], ["ps", "--all"]):
            [row] = (await otf(*args, "--json")).json()["sessions"]
            assert row["session_id"] == "sess-2"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"], ["set"], ["set", "lr"], ["pause", "--at-step", "x"], ["note"], ["rollback"],
        ["extend"], ["extend", "--epochs", "3", "--steps", "4"], ["extend", "--epochs", "few"],
    ],
)  # fmt: skip
@in_loop
async def test_what_is_no_command_ends_with_2(runtime: Path, args: list[str]) -> None:
    ended = await otf(*args)
    assert (ended.status, ended.out) == (2, "")
    ended = await otf(*args, "--json")
    assert ended.json()["code"] == "usage"


def _spawn(*args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "otf_core.cli.otf", *args]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


async def _start(*args: str, cwd: Path) -> tuple[subprocess.Popen[str], str]:
    process = _spawn("dashboard", *args, cwd=cwd)
    return process, await _line(process)


async def _end(process: subprocess.Popen[str], sig: signal.Signals) -> Ended:
    process.send_signal(sig)
    out, err = await asyncio.to_thread(process.communicate)
    return Ended(process.returncode, out, err)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
@in_loop
async def test_a_dashboard_prints_its_url_and_ends_cleanly(
    tmp_path: Path, runtime: Path, sig: signal.Signals
) -> None:
    process, line = await _start(cwd=tmp_path)
    found = rendezvous.find()
    assert found is not None
    assert line == f"{found.url}#token={found.token}\n"
    assert found.pid == process.pid
    assert (runtime / "otf" / "dashboard.json").stat().st_mode & 0o777 == 0o600
    trainer = TrainerDouble(token=found.token)
    await trainer.dial(found.port)
    await trainer.until(lambda t: bool(t.asked("status")))
    ended = await _end(process, sig)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    await trainer.closed()
    await trainer.hang_up()
    assert rendezvous.find() is None


@in_loop
async def test_a_second_dashboard_says_where_the_first_is(tmp_path: Path, runtime: Path) -> None:
    first, line = await _start(cwd=tmp_path)
    ended = await otf("dashboard", cwd=tmp_path)
    assert (ended.status, ended.out) == (3, "")
    address, _, token = line.strip().partition("#token=")
    assert f"runs already at {address};" in ended.err
    assert token not in ended.err
    asked = await otf("dashboard", "--url")
    assert (asked.status, asked.out, asked.err) == (0, line, "")
    asked = await otf("dashboard", "--url", "--read-only")
    assert asked.out == f"{address}#token={rendezvous.read_only_token(token)}\n"
    second, other = await _start("--force", cwd=tmp_path)
    found = rendezvous.find()
    assert found is not None
    assert other.startswith(found.url)
    assert (await _end(first, signal.SIGTERM)).status == 0
    assert rendezvous.find() == found  # the first leaves the second's file alone
    assert (await _end(second, signal.SIGTERM)).status == 0


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["--host", "0.0.0.0"], 3, ["--tls-cert", "--tls-key", "--insecure", "ssh -L"]),
        (["--listen", "192.168.0.7"], 3, ["--tls-cert", "--insecure", "ssh -L"]),
        (["--listen", "::"], 3, ["--tls-cert", "--insecure", "ssh -L"]),
        (["--tls-cert", "a.pem"], 2, ["--tls-cert and --tls-key go together"]),
        (["--listen", "0.0.0.0", "--tls-key", "a.pem"], 2, ["go together"]),
        (["--read-only"], 2, ["--url", "--share"]),
        (["--root-path", "proxy"], 2, ["a path from the root"]),
        (["--url"], 4, ["otf dashboard"]),
        (["--tls-cert", "absent.pem", "--tls-key", "absent.pem"], 3, ["absent.pem", "PEM"]),
    ],
)
def test_a_dashboard_that_would_be_open_to_others_or_cannot_be_is_refused(
    runtime: Path, capsys: pytest.CaptureFixture[str], args: list[str], status: int, said: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dashboard", *args])
    assert ended.value.code == status
    out, err = capsys.readouterr()
    assert out == ""
    assert all(words in err for words in said), err
    assert rendezvous.find() is None


@in_loop
async def test_other_machines_are_served_with_tls_and_a_link_that_only_watches(
    tmp_path: Path, runtime: Path
) -> None:
    cert, key = tls.pair(tmp_path)
    args = ("--listen", "0.0.0.0", "--tls-cert", str(cert), "--tls-key", str(key), "--share")
    process, line = await _start(*args, cwd=tmp_path)
    assert process.stdout is not None
    shared = (await asyncio.to_thread(process.stdout.readline)).strip()
    address, _, token = line.strip().partition("#token=")
    assert address.startswith("https://127.0.0.1:")
    others, _, watch = shared.partition("#token=")
    assert others == address.replace("127.0.0.1", socket.gethostname())
    assert watch == rendezvous.read_only_token(token)
    assert (await otf("ps")).out == "No run yet — the dashboard listens.\n"  # over TLS
    ended = await _end(process, signal.SIGTERM)
    assert ended.status == 0
    assert token not in ended.err
    assert watch not in ended.err


@in_loop
async def test_without_tls_it_has_to_be_asked_for_and_is_warned_of(
    tmp_path: Path, runtime: Path
) -> None:
    process, line = await _start("--host", "0.0.0.0", "--insecure", cwd=tmp_path)
    assert line.startswith("http://127.0.0.1:")
    ended = await _end(process, signal.SIGTERM)
    assert ended.status == 0
    assert "can read the token" in ended.err


@in_loop
async def test_a_dead_dashboard_is_replaced(tmp_path: Path, runtime: Path) -> None:
    first, _ = await _start(cwd=tmp_path)
    await _end(first, signal.SIGKILL)
    assert (await otf("status")).status == 4
    second, line = await _start(cwd=tmp_path)
    assert line.startswith("http://127.0.0.1:")
    assert (await _end(second, signal.SIGTERM)).status == 0


@in_loop
async def test_a_port_that_is_taken_is_said(tmp_path: Path, runtime: Path) -> None:
    async with announced(tmp_path) as bench:
        port = str(bench.dashboard.port)
        ended = await otf("dashboard", "--port", port, "--force", cwd=tmp_path)
        assert ended.status == 3
        assert "the port is taken" in ended.err


@in_loop
async def test_tail_shows_the_last_events_as_lines_or_as_json(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (bench, trainer):
        trainer.emit("log", level="info", text="plain \x1b[31mred", phase="info")
        await bench.until_has("sess-1", 123)
        ended = await otf("tail", "-n", "1")
        assert ended.out.endswith("log  info: plain  [31mred\n")
        ended = await otf("tail", "-n", "2", "--json", "--type", "trainStep")
        steps = [json.loads(line)["step"] for line in ended.out.splitlines()]
        assert steps == [119, 120]


@in_loop
async def test_tail_follows(tmp_path: Path, runtime: Path) -> None:
    async with training(tmp_path) as (_, trainer):
        process = _spawn("tail")
        for kind in ("session_started", "newRun"):
            assert kind in await _line(process)
        trainer.emit("note", note_id="n", text="now", step=120)
        assert "note  at step 120: now" in await _line(process)
        assert (await _end(process, signal.SIGINT)).status == 130


@in_loop
async def test_doctor_names_what_it_finds(tmp_path: Path, runtime: Path) -> None:
    ended = await otf("doctor", "--json", "--dir", str(tmp_path / "runs"))
    checks = {check["name"]: check for check in ended.json()["checks"]}
    assert ended.status == 0
    assert {
        "Python",
        "torch",
        "lightning",
        "rendezvous",
        "dashboard",
        "run folder",
        "GPU",
        "page",
    } <= set(checks)
    assert "otf dashboard" in checks["dashboard"]["said"]
    async with training(tmp_path):
        said = (await otf("doctor")).out
        assert "answers; 1 live runs" in said
    blocked = tmp_path / "file"
    blocked.write_text("")
    ended = await otf("doctor", "--dir", str(blocked / "runs"))
    assert ended.status == 3
    assert "BAD  run folder" in ended.out


@in_loop
async def test_doctor_says_what_each_live_run_promises_and_why(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (bench, trainer):
        said = (await otf("doctor")).out
        assert "ok   exactness of digits: exact\n" in said
        trainer.exactness = "not exact because the loader is not in order"
        reasons = ["DataLoader(in_order=False)", "2 workers"]
        trainer.emit("exactness", exact=False, text=trainer.exactness, reasons=reasons)
        await bench.until(lambda: bench.store.sessions["sess-1"].exactness == trainer.exactness)
        lines = (await otf("doctor")).out.splitlines()
        at = lines.index("note exactness of digits: not exact because the loader is not in order")
        assert lines[at + 1 : at + 3] == [f"       {reason}" for reason in reasons]
        checks = {
            check["name"]: check for check in (await otf("doctor", "--json")).json()["checks"]
        }
        assert checks["exactness of digits"]["reasons"] == reasons


@in_loop
async def test_doctor_reads_the_report_of_a_run_that_is_over(runtime: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "digits"
    (folder / "checkpoints").mkdir(parents=True)
    ended = await otf("doctor", str(folder))
    assert (ended.status, ended.out.startswith("BAD  exactness of digits")) == (3, True)
    record: dict[str, Any] = {"run_id": "digits"}
    (folder / "run.json").write_text(json.dumps(record))
    ended = await otf("doctor", str(folder))
    assert ended.status == 0
    assert ended.out.startswith("note exactness of digits: not known")
    record["exactness"] = {"exact": True, "text": "exact except the Timer", "reasons": ["Timer"]}
    (folder / "run.json").write_text(json.dumps(record))
    checkpoint = folder / "checkpoints" / "200-ring.ckpt"
    for path in (folder, folder / "run.json", checkpoint):
        ended = await otf("doctor", str(path))
        assert ended.out == "ok   exactness of digits: exact except the Timer\n       Timer\n"
    (folder / "run.json").write_text("{")
    assert (await otf("doctor", str(folder), "--json")).json()["ok"] is False


def test_it_starts_without_torch_and_without_the_heavy_parts() -> None:
    code = (
        "import sys, otf_core.cli.otf, otf_core.client; "
        "heavy = {'torch', 'numpy', 'lightning', 'rich', 'starlette', 'asyncio', 'typer'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_demo_becomes_the_demo_and_passes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from otf_core.cli import otf as module

    ran: list[list[str]] = []
    execv: Callable[[str, list[str]], None] = lambda path, args: ran.append(args[1:])  # noqa: E731
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit) as ended:
        module.main(["demo", "--headless", "--help"])
    assert ended.value.code == 0
    assert ran == [["-m", "otf_lightning.demo", "--headless", "--help"]]


@in_loop
async def test_an_export_names_the_file_as_it_was_meant_at_the_terminal(
    tmp_path: Path, runtime: Path
) -> None:
    async with training(tmp_path) as (_, trainer):
        (here := tmp_path / "here").mkdir()
        ended = await otf("export", "samples", "--out", "x.csv", "--json", cwd=here)
        assert ended.json()["out_path"] == str(here / "x.csv")
        [asked] = trainer.asked("export_subset")
        assert asked["payload"]["out_path"] == str(here / "x.csv")
        wrong = await otf("export", "samples", "--worst", "0.1", "--ids", "3")
        assert (wrong.status, trainer.asked("export_subset")) == (2, [asked])
        assert (await otf("export", "samples", "--format", "xlsx", "--json")).json()[
            "code"
        ] == "usage"
        found = Client.from_rendezvous()
        data = await asyncio.to_thread(found.send, "sess-1", "spill_all", {})
        assert data == [{"ckpt_id": "digits-1", "owner": "digits", "path": "/1.ckpt", "step": 1}]
