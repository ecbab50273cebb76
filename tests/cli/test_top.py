"""``otf top``: what it shows is what the dashboard has said, and a key sends a command."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from otf_core import rendezvous
from otf_core.cli.top import command
from otf_core.cli.top.app import DRAW_S
from otf_core.cli.top.braille import plot
from otf_core.cli.top.typed import read
from otf_core.client import Client
from otf_core.client.states import standing
from otf_core.client.verbs import UsageError
from tests.cli.top_rig import client_of, learn, learning, served, shown
from tests.dashboard.bench import TOKEN, in_loop
from tests.dashboard.trainer_double import TrainerDouble

HOSTILE = "x\x1b[31m\x07\x9b2J\u202e[red]<b>"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 12), (200, 60)])
@in_loop
async def test_all_of_it_fits_on_the_screen(tmp_path: Path, width: int, height: int) -> None:
    trainer = learning()
    trainer.saved(200)
    async with served(tmp_path, trainer) as bench, shown(bench, width, height) as screen:
        await screen.until(lambda: screen.app.board.curves)
        await screen.until_says("Training digits — step 600")
        lines = screen.text().split("\n")
        assert len(lines) == height
        assert max(map(len, lines)) <= width
        if width >= 80:
            for words in ("600 of 1,000, epoch 0", "50 steps/s", "pauses not counted", "60 %",
                          "Space Pause", "X Stop…", "asks first", "Validation loss 0.23",
                          "Gradient norm", "Memory"):  # fmt: skip
                await screen.until_says(words)
            assert any("\u2801" <= c <= "\u28ff" for c in screen.text())
        if width >= 120:
            assert "200-ring" in screen.text()
            assert "checkpoint_saved" in screen.text()


@in_loop
async def test_a_pause_is_pending_until_the_trainer_has_answered(tmp_path: Path) -> None:
    trainer = learning()
    trainer.holding = True
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("at step end")
        await screen.pilot.press("space")
        await screen.until(lambda: screen.control("pause").line == "waits for step end")
        await screen.until_says("Pausing waits for step end")
        assert "Training digits" in screen.text()  # still: nothing is optimistic
        assert "applied" not in screen.text()

        await screen.pilot.press("space", "space")
        await trainer.until(lambda t: len(t.asked("pause")) == 1)
        trainer.carry_out(trainer.asked("pause")[0])
        await screen.until_says("Paused digits at step 600 for ")
        await screen.until_says("✓ Paused digits at step 600; checkpoint 600-pause.ckpt")
        assert len(trainer.asked("pause")) == 1  # a second press has sent nothing
        assert screen.control("resume").line == "from 601"

        trainer.holding = False
        await screen.pilot.press("space")
        await screen.until_says("✓ Resumed digits at step 600")
        [receipt] = bench.hub.book("sess-1").newest(1)
        assert (receipt.by, receipt.client) == ("cli", command.NAME)


@in_loop
async def test_an_answer_names_its_step_and_gives_way_to_the_fact(tmp_path: Path) -> None:
    trainer = learning()
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("last: 0.23")
        await screen.pilot.press("v")
        await screen.until_says("Validate applied @ 600")
        await screen.until_says("✓ Validated digits at step 600 in 0.8 s: val_loss 0.41")
        later = screen.app.board.now_ts() + 7
        screen.app.board.clock = lambda: later
        await screen.until(lambda: screen.control("validate_now").state == "idle")


@in_loop
async def test_a_refusal_says_why_and_that_nothing_has_changed(tmp_path: Path) -> None:
    trainer = learning()
    async with served(tmp_path, trainer) as bench, shown(bench, 120, 40) as screen:
        await screen.until_says("at step end")
        await screen.pilot.press("colon")
        screen.app.query_one("#line", Input).value = "set lr -1"
        await screen.pilot.press("enter")
        await screen.until(lambda: "Refused" in screen.dialog())
        assert "lr -1 asked; it is 0.001 now and may be 0 to 10." in screen.dialog()
        assert "Nothing changed." in screen.dialog()
        await screen.pilot.press("escape")
        await screen.until_says("✗ set lr -1 refused: lr -1 asked")
        assert trainer.params[0]["value"] == 0.001


@in_loop
async def test_what_is_typed_is_what_the_command_line_takes(tmp_path: Path) -> None:
    trainer = learning()
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("at step end")
        await screen.pilot.press("colon")
        line = screen.app.query_one("#line", Input)
        assert line.display
        line.value = "otf set lr 0.0005"
        await screen.pilot.press("enter")
        await screen.until_says("✓ Set lr of digits: 0.001 → 0.0005, applied at step 600")
        assert not line.display
        await screen.pilot.press("colon")
        line.value = "params"
        await screen.pilot.press("enter")
        await screen.until(lambda: "lr  0.0005  (optimizer; 0 to 10)" in screen.dialog())
        await screen.pilot.press("escape", "colon")
        line.value = "dance"
        await screen.pilot.press("enter")
        await screen.until(lambda: "'dance' is no verb" in screen.dialog())


def test_a_line_becomes_a_request() -> None:
    for line, cmd, payload in (
        ("set lr 0.5 --mul", "set_param", {"path": "lr", "mul": 0.5}),
        ("otf stop --no-save", "stop", {"save": False}),
        ("note 'two words'", "note", {"text": "two words"}),
        ("export weights --checkpoint 200-ring", "export_weights", {"checkpoint": "200-ring"}),
        ("merge a b --strategy ties", "merge", {"parents": ["a", "b"], "strategy": "ties"}),
    ):
        found = read(line)
        assert (found.cmd, found.payload) == (cmd, payload)
    for line, why in (
        ("note 'open", "quotation"),
        ("pause --at-step soon", "not a valid integer"),
        ("set", "Missing argument"),
        ("set lr", "NAME and VALUE"),
        ("merge a", "two runs or more"),
        ("", "nothing was typed"),
    ):
        with pytest.raises(UsageError, match=why):
            read(line)


@in_loop
async def test_stop_and_rollback_ask_first(tmp_path: Path) -> None:
    trainer = learning()
    trainer.saved(200)
    trainer.saved(400)
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("2 kept")
        await screen.pilot.press("x")
        await screen.until(lambda: "Stop digits at step 600?" in screen.dialog())
        await screen.pilot.press("enter")  # the answer that has the focus changes nothing
        await screen.pilot.press("r")
        await screen.until(lambda: "back to which checkpoint?" in screen.dialog())
        labels = [str(o.prompt) for o in screen.app.screen.query_one(OptionList).options]
        assert "400-ring" in labels[1]
        assert "200 steps to redo" in labels[1]
        await screen.pilot.press("down", "enter")
        await screen.until_says("✓ Rolled back digits from step 600 to 400 (checkpoint 400-ring)")
        assert [r["payload"] for r in trainer.asked("rollback")] == [{"checkpoint": "400-ring"}]
        assert trainer.asked("stop") == []
        await screen.pilot.press("x", "down", "enter")
        await screen.until_says("Stopped digits at step 400")
        assert screen.control("pause").line == "ended"
        await screen.pilot.press("space", "c", "x")
        assert len(screen.app.screen_stack) == 1
        assert [r["cmd"] for r in trainer.requests if r["cmd"] in ("pause", "save_ckpt")] == []


@in_loop
async def test_while_the_dashboard_is_away_nothing_can_be_sent(tmp_path: Path) -> None:
    trainer = learning()
    trainer.holding = True
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("at step end")
        await screen.pilot.press("c")
        await screen.until(lambda: screen.control("save_ckpt").line == "waits for step end")
        [request] = trainer.asked("save_ckpt")
        give_back = await screen.cut_off(bench)
        await screen.until_says("Connection lost")
        assert "digits was training at step 600; it goes on without this page" in screen.said()
        await screen.until_says("offline")
        assert screen.control("save_ckpt").line == "unknown"
        await screen.until_says("save sent, no answer — unknown until reconnected")
        await screen.pilot.press("space", "v")
        assert [r.cmd for r in bench.hub.book("sess-1").open()] == ["save_ckpt"]

        trainer.carry_out(request)
        await bench.until(lambda: not bench.hub.book("sess-1").open())
        give_back()
        await screen.until_says("✓ Saved 600-manual.ckpt of digits at step 600")
        assert screen.control("pause").state == "idle"


@in_loop
async def test_what_a_new_dashboard_has_no_record_of_is_unknown(tmp_path: Path) -> None:
    trainer = learning()
    trainer.holding = True
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("at step end")
        await screen.pilot.press("c")
        await screen.until(lambda: screen.control("save_ckpt").line == "waits for step end")
        give_back = await screen.cut_off(bench)
        await screen.until_says("Connection lost")
        bench.hub.book("sess-1")._receipts.clear()
        give_back()
        await screen.until_says("save: no answer, and the dashboard has no record of it")


@in_loop
async def test_without_a_dashboard_it_says_how_to_start_one_and_finds_it(tmp_path: Path) -> None:
    trainer = learning()
    async with shown(None) as screen:
        await screen.until_says("No dashboard runs — start one with: otf dashboard")
        async with served(tmp_path, trainer) as bench:
            screen.app._find = lambda: client_of(bench)
            await screen.until_says("Training digits — step 600")


@in_loop
async def test_a_wrong_token_is_said(tmp_path: Path) -> None:
    async with served(tmp_path) as bench, shown(bench, token="wrong") as screen:
        await screen.until_says("Not let in")


@in_loop
async def test_with_a_link_that_only_watches_the_keys_send_nothing(tmp_path: Path) -> None:
    trainer = learning()
    watch = rendezvous.read_only_token(TOKEN)
    async with served(tmp_path, trainer) as bench, shown(bench, token=watch) as screen:
        await screen.until_says("Pause read-only")
        await screen.until_says("read-only ↑↓ run")
        await screen.pilot.press("space", "c", "x")
        screen.app.typed("pause")
        await screen.until(lambda: "Not now: read-only. Nothing was sent." in screen.dialog())
        assert bench.hub.book("sess-1").newest(9) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nothing here makes a certificate")
@in_loop
async def test_a_dashboard_with_tls_is_followed_if_its_certificate_is_the_one_known(
    tmp_path: Path,
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=otf"
    openssl = ["openssl", *made.split(), "-out", str(cert), "-keyout", str(key)]
    subprocess.run(openssl, check=True, capture_output=True)
    trainer = learning()
    async with served(tmp_path, trainer, tls=(cert, key)) as bench, shown(None) as screen:
        url, known = bench.dashboard.url, bench.dashboard.cert_sha256
        screen.app._find = lambda: Client(url, TOKEN, cert_sha256="0" * 64)
        await screen.until(lambda: "another one" in screen.app.board.link.why)
        screen.app._find = lambda: Client(url, TOKEN, cert_sha256=known)
        await screen.until_says("Training digits — step 600")
        await screen.until(lambda: screen.app.board.curves)


@in_loop
async def test_no_run_yet_then_one_that_fails(tmp_path: Path) -> None:
    async with served(tmp_path) as bench, shown(bench) as screen:
        await screen.until_says("No run yet")
        trainer = learning()
        async with trainer.on(bench.port):
            await screen.until_says("Training digits")
            trainer.saved(600)
            trainer.finish("failed", "CUDA out of memory\x1b[2J")
            await screen.until_says("Failed digits at step 600 — CUDA out of memory")
            await screen.until_says("the checkpoint at 600 is intact")
            assert "\x1b" not in screen.text()


@in_loop
async def test_a_pause_of_hours_and_a_stall_are_told_with_their_length(tmp_path: Path) -> None:
    trainer = learning()
    trainer.go("paused", "user")
    paused = trainer.emit("paused", step=600, ckpt=None)
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        screen.app.board.clock = lambda: paused["ts"] + 2 * 3600 + 14 * 60
        screen.app.board.skew_s = 0.0
        await screen.until(lambda: screen.app.board.told_of("sess-1").events)
        screen.app.board.skew_s = 0.0
        await screen.until_says("for 2 h 14 min — 8 s of training left")
        trainer.go("running", None)
        trainer.emit("resumed", step=600)
        trainer.emit("stall", step=600, seconds=43, limit_s=30, where="all_reduce", over=False)
        await screen.until_says("Stalled ")
        await screen.until_says("digits at step 600: all_reduce")
        assert screen.control("pause").line == "no step end"


@in_loop
async def test_a_guard_and_what_is_parked_are_told(tmp_path: Path) -> None:
    trainer = learning()
    async with served(tmp_path, trainer) as bench, shown(bench, 140, 40) as screen:
        await screen.until_says("Training digits")
        trainer.emit(
            "guard", rule="spike", metric="loss", value=4.2, bound=2.1, step=600, action="pause",
            did="pause", request_id=None, budget_left=1,
        )  # fmt: skip
        await screen.until_says("guard spike: loss 4.2, bound 2.1 at step 600; pause, 1 left")
        usual = trainer.status
        parked = {"parked": {"since_s": 3.0, "freed_bytes": 14_100_000_000}}
        trainer.status = lambda: {**usual(), **parked}  # type: ignore[method-assign]
        trainer.go("paused", "user")
        trainer.emit("paused", step=600, request={"action": "pause"}, ckpt=None)
        await screen.until_says("— parked, 14 GB freed, 8 s of training left")


def test_a_run_that_nobody_trains_any_more_says_how_it_ended() -> None:
    def said(state: str, status: str | None) -> str:
        return standing({"state": state, "finished": status and {"status": status}})

    assert [said("journal", "failed"), said("lost", "failed")] == ["failed", "failed"]
    assert [said("journal", "completed"), said("journal", "stopped")] == ["finished", "stopped"]
    assert [said("journal", None), said("running", "failed")] == ["journal", "running"]


@in_loop
async def test_two_runs_have_letters_and_the_arrows_choose(tmp_path: Path) -> None:
    one, two = learning(), TrainerDouble("sess-2", run_id="second", token=TOKEN)
    two.start_ts += 10
    two.begin()
    learn(two, 30)
    async with served(tmp_path, one, two) as bench, shown(bench) as screen:
        await screen.until_says("otf top B second · 2 runs, 2 trainers")
        await screen.pilot.press("down")
        await screen.until_says("otf top A digits")
        await screen.until_says("> A digits")
        await screen.pilot.press("space")
        await trainer_has(one, "pause")
        assert two.asked("pause") == []
        await screen.pilot.press("tab")
        await screen.until_says("[Log]")
        await screen.until_says("paused at step 600")


async def trainer_has(trainer: TrainerDouble, cmd: str) -> None:
    await trainer.until(lambda t: bool(t.asked(cmd)))


@in_loop
async def test_what_others_have_written_is_only_shown(tmp_path: Path) -> None:
    trainer = learning(run_id=HOSTILE)
    trainer.emit("log", level="info", phase="fit", text=HOSTILE)
    trainer.emit("trainStep", step=601, epoch=6, loss=1.0, metrics={HOSTILE: 1.0})
    async with served(tmp_path, trainer) as bench, shown(bench, 120, 40) as screen:
        await screen.until_says("[red]<b>")
        await screen.until(lambda: screen.text().count("[red]<b>") >= 3)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", screen.text())
        screen.app.action_stop()
        await screen.pilot.pause()
        assert "\x1b" not in screen.dialog()


@in_loop
async def test_it_draws_at_most_five_times_a_second(tmp_path: Path) -> None:
    trainer = learning()
    async with served(tmp_path, trainer) as bench, shown(bench) as screen:
        await screen.until_says("at step end")
        screen.app.board.clock = lambda: 1e9
        screen.app.draw()
        drawn = screen.app._drawn
        screen.app.draw()
        assert screen.app._drawn is drawn  # nothing has changed, nothing is drawn
        assert DRAW_S >= 0.2


def test_a_curve_is_drawn_from_edge_to_edge() -> None:
    rising = plot(range(100), [float(n) for n in range(100)], (0, 99), 10, 2)
    assert rising == ["⠀⠀⠀⠀⠀⣀⡠⠔⠊⠉", "⣀⡠⠔⠊⠉⠀⠀⠀⠀⠀"] or all(len(line) == 10 for line in rising)
    assert rising[0][-1] != "⠀"
    assert rising[1][0] != "⠀"
    assert rising[0][0] == rising[1][-1] == "⠀"
    assert plot([5], [1.0], (0, 10), 4, 1)[0].strip("⠀") != ""


# -- the process ---------------------------------------------------------------------------------


def _plain(raw: bytes) -> str:
    return re.sub(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[()][AB0]|[=>])", b"", raw).decode(errors="replace")


class Terminal:
    """A real terminal, 80 x 24, and what was written on it."""

    def __init__(self, *args: str, env: dict[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (24, 80))
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "otf_core.cli.otf", "top", *args],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, env=env, start_new_session=True,
        )  # fmt: skip

    async def until(self, words: str) -> None:
        loop = asyncio.get_running_loop()
        got: asyncio.Queue[bytes] = asyncio.Queue()
        loop.add_reader(self.master, lambda: got.put_nowait(os.read(self.master, 65536)))
        try:
            async with asyncio.timeout(25):
                while words not in _plain(self.raw):
                    self.raw += await got.get()
        finally:
            loop.remove_reader(self.master)

    async def ended(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.master, self._more)
        try:
            return await asyncio.to_thread(self.process.wait, 20)
        finally:
            loop.remove_reader(self.master)

    def _more(self) -> None:
        self.raw += os.read(self.master, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _environment(tmp_path: Path, **more: str) -> dict[str, str]:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM", "COLUMNS")}
    return {**kept, "XDG_RUNTIME_DIR": str(runtime), "TERM": "xterm-256color", **more}


@in_loop
async def test_in_a_terminal_keys_steer_and_q_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = _environment(tmp_path, NO_COLOR="1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", env["XDG_RUNTIME_DIR"])
    trainer = learning()
    async with served(tmp_path, trainer) as bench:
        said = rendezvous.Rendezvous(
            "127.0.0.1", bench.port, TOKEN, os.getpid(), bench.dashboard.url
        )
        rendezvous.write(said)
        terminal = Terminal(env=env)
        try:
            await terminal.until("at step end")
            terminal.press(b" ")
            await trainer_has(trainer, "pause")
            await terminal.until("from 601")
            terminal.press(b"q")
            assert await terminal.ended() == 0
            assert b"\x1b[?1049l" in terminal.raw  # the screen from before
            assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
            assert termios.tcgetattr(terminal.slave) == terminal.before
            assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", terminal.raw)  # NO_COLOR
            assert trainer.state == "paused"  # the run goes on without the page
        finally:
            terminal.close()
            rendezvous.remove(said)


def _otf(*args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, "-m", "otf_core.cli.otf", "top", *args]
    return subprocess.run(
        command_line, env=env, capture_output=True, text=True, check=False, timeout=50
    )


@in_loop
async def test_once_prints_one_screen_without_textual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = learning(run_id="di\x1b[31mgits")
    trainer.saved(400)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("textual", "websockets"):
        (hidden / f"{name}.py").write_text(f"raise ImportError('no', name='{name}')\n")
    async with served(tmp_path, trainer) as bench:
        env = _environment(tmp_path, COLUMNS="100")
        env["PYTHONPATH"] = os.pathsep.join([str(hidden), *filter(None, sys.path)])
        url = f"{bench.dashboard.url}#token={TOKEN}"
        done = await asyncio.to_thread(_otf, "--once", "--url", url, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        for words in ("Training di [31mgits — step 600 of 1,000", "Space Pause", "Loss 0.09",
                      "400-ring", "session_started"):  # fmt: skip
            assert words in done.stdout, done.stdout
        done = await asyncio.to_thread(_otf, "--json", "--url", url, env=env)
        said = json.loads(done.stdout)
        assert (said["state"], said["run_id"]) == ("running", trainer.run_id)
        assert [c["cmd"] for c in said["controls"]][:2] == ["pause", "save_ckpt"]


def test_without_the_extra_or_a_terminal_it_says_what_to_do(tmp_path: Path) -> None:
    env = _environment(tmp_path)
    for term in ("dumb", "xterm-256color"):  # no terminal in either
        done = _otf(env={**env, "TERM": term})
        assert done.returncode == 2
        assert done.stderr.strip() == f"otf: {command.NO_TERMINAL}"
    done = _otf("--once", env=env)
    assert done.returncode == 4
    assert "start one with: otf dashboard" in done.stderr


def test_without_textual_it_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from otf_core.cli.failure import Failure

    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setattr(command, "can_draw", lambda env, is_tty: True)
    with pytest.raises(Failure, match=r"pip install 'otf-lightning\[tui\]'") as refused:
        command.run(None)
    assert refused.value.status == 2


def test_status_loads_none_of_it() -> None:
    code = (
        "import otf_core.cli.otf, sys; "
        "assert not {'textual', 'websockets', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
