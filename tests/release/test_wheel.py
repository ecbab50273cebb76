"""The wheel in an empty environment: alone, then with each extra by itself. `make test-wheel`.

The first environment has the wheel and what it requires. Those with an extra see it through a path
file, so that each has that extra and no other without a second torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from otf_core.extras import EXTRAS, how_to
from tests.release.built import ROOT, build

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1800)]

PYTHONS = [sys.executable, *os.environ.get("OTF_PYTHONS", "").split()]
USER = ROOT / "tests/release/user_of_lightning.py"
INSTALL_S, RUN_S = 1500, 300


@dataclasses.dataclass(frozen=True)
class Environment:
    """One of Python's, with a folder to be in that holds nothing of this project."""

    home: Path
    wheel: Path

    def run(self, *command: str, limit_s: float = RUN_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.home / "bin" / command[0]), *command[1:]],
            cwd=self.work, env=self.env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=limit_s,
        )  # fmt: skip

    @property
    def work(self) -> Path:
        folder = self.home / "work"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def env(self) -> dict[str, str]:
        kept = {
            key: text for key, text in os.environ.items() if not key.startswith(("PYTHON", "OTF_"))
        }
        runtime = self.home / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        return {**kept, "XDG_RUNTIME_DIR": str(runtime), "PATH": f"{self.home}/bin:{kept['PATH']}"}

    def install(self, *what: str) -> None:
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        done = self.run(
            "python", "-m", "pip", "install", "-q", *constraints, *what, limit_s=INSTALL_S
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("built"), "wheel")


@pytest.fixture(scope="module", params=PYTHONS)
def bare(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([request.param, "-m", "venv", str(home)], check=True)
    made = Environment(home, wheel)
    made.install("torch")  # first and alone: a later requirement must not bring another build of it
    made.install(str(wheel))
    return made


@pytest.fixture(scope="module")
def with_extra(
    bare: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Environment]:
    """Extra -> an environment with it, made when it is first asked for."""

    class Made(dict[str, Environment]):
        def __missing__(self, extra: str) -> Environment:
            home = tmp_path_factory.mktemp(extra)
            subprocess.run([bare.home / "bin/python", "-m", "venv", str(home)], check=True)
            (packages,) = home.glob("lib/python*/site-packages")
            (below,) = bare.home.glob("lib/python*/site-packages")
            (packages / "bare.pth").write_text(f"{below}\n")
            self[extra] = made = Environment(home, bare.wheel)
            made.install("--force-reinstall", "--no-deps", str(bare.wheel))  # its own commands
            made.install(f"otf-lightning[{extra}] @ {bare.wheel.as_uri()}")
            return made

    return Made()


def test_alone_it_imports_and_trains(bare: Environment) -> None:
    done = bare.run("python", "-W", "ignore", str(USER))
    assert done.returncode == 0, done.stderr
    where = bare.run("python", "-c", "import otf_core, otf_lightning; print(otf_core.__file__)")
    assert where.stdout.startswith(str(bare.home)), where.stdout
    assert bare.run("python", "-m", "pip", "check").returncode == 0


def test_alone_a_script_is_watched(bare: Environment) -> None:
    script = bare.work / "train.py"
    script.write_text(
        "import torch\n"
        "net = torch.nn.Linear(2, 1)\n"
        "opt = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for x in torch.utils.data.DataLoader(torch.ones(32, 2), batch_size=8):\n"
        "    opt.zero_grad(); net(x).mean().backward(); opt.step()\n"
        "print('done')\n"
    )
    done = bare.run("otf-fit", "--dashboard", "off", str(script))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "training found: SGD" in done.stderr


def test_alone_it_says_what_is_missing_and_how_it_comes(bare: Environment) -> None:
    for command, extra in ((["dashboard"], "dashboard"), (["mcp"], "agents"), (["demo"], "demo")):
        done = bare.run("otf", *command)
        assert (done.returncode, done.stdout) == (3, ""), command
        assert how_to(extra) in done.stderr
        assert "Traceback" not in done.stderr
    assert bare.run("otf", "status").returncode == 4
    doctor = json.loads(bare.run("otf", "doctor", "--json").stdout)
    said = {row["name"]: row for row in doctor["checks"]}
    assert {extra: said[f"extra {extra}"]["state"] for extra in EXTRAS} == dict.fromkeys(
        EXTRAS, "note"
    )
    assert said["page"]["said"] == "built"


def test_a_strict_checker_finds_the_types(bare: Environment) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable",
         str(bare.home / "bin/python"), "--cache-dir", str(bare.home / "mypy"),
         "--config-file", os.devnull, str(USER)],
        cwd=bare.work, env=bare.env, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def _get(asked: str | urllib.request.Request) -> bytes:
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return bytes(answer.read())


def test_dashboard_serves_the_page_to_a_run(with_extra: dict[str, Environment]) -> None:
    made = with_extra["dashboard"]
    serving = subprocess.Popen(
        [made.home / "bin/otf", "dashboard"], cwd=made.work, env=made.env, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with serving:
        assert serving.stdout is not None
        link = serving.stdout.readline().strip()
        try:
            url, _, token = link.partition("#token=")
            page = _get(url).decode()
            for name in re.findall(r'(?:src|href)="\./([^"]+)"', page):
                assert _get(f"{url}{name}")
            script = made.work / "run.py"
            script.write_text(USER.read_text().replace('dashboard="off"', 'dashboard="auto"'))
            done = made.run("python", "-W", "ignore", str(script))
            assert done.returncode == 0, done.stderr
            asked = urllib.request.Request(
                f"{url}api/runs", headers={"Authorization": f"Bearer {token}"}
            )
            runs = json.loads(_get(asked))
            assert {run["run_name"] for run in runs["runs"]} == {"line", "runner", "loop"}, runs
        finally:
            serving.send_signal(signal.SIGINT)
    assert serving.returncode == 0


def test_demo_runs_by_itself(with_extra: dict[str, Environment]) -> None:
    done = with_extra["demo"].run("otf", "demo", "--headless")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "applied at step" in done.stdout


def test_samples_are_chosen_by_k_means_and_written_as_parquet(
    with_extra: dict[str, Environment],
) -> None:
    made = with_extra["samples"]
    code = (
        "from otf_core.runs.sample_files import refuse_without_arrow, sample_file\n"
        "from sklearn.cluster import MiniBatchKMeans\n"
        "refuse_without_arrow('parquet')\n"
        "with open('t.parquet', 'wb') as file:\n"
        "    table = sample_file('parquet', file, {'id': int})\n"
        "    table.write({'id': [1, 2]})\n"
        "    table.end()\n"
        "assert open('t.parquet', 'rb').read(4) == b'PAR1'\n"
    )
    done = made.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_tui_draws_on_a_terminal(with_extra: dict[str, Environment]) -> None:
    made = with_extra["tui"]
    ours, theirs = pty.openpty()
    env = {**made.env, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    drawing = subprocess.Popen(
        [made.home / "bin/otf", "top"], cwd=made.work, env=env, stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        while b"otf dashboard" not in seen:  # none runs, and it says so on its own screen
            seen += os.read(ours, 4096)
        os.write(ours, b"q")
        assert drawing.wait(60) == 0
    finally:
        drawing.kill()
        drawing.wait()
        os.close(ours)


def test_agents_are_served(with_extra: dict[str, Environment]) -> None:
    made = with_extra["agents"]
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {},
                   "clientInfo": {"name": "test", "version": "1"}},
    }  # fmt: skip
    done = subprocess.run(
        [made.home / "bin/otf", "mcp"], cwd=made.work, env=made.env, text=True,
        input=json.dumps(hello) + "\n", capture_output=True, check=False, timeout=RUN_S,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[0])
    assert said["result"]["serverInfo"]["name"] == "otf", done.stderr


def test_all_is_every_extra(with_extra: dict[str, Environment]) -> None:
    made = with_extra["all"]
    doctor = json.loads(made.run("otf", "doctor", "--json").stdout)
    states = {row["name"]: row["state"] for row in doctor["checks"]}
    assert {extra: states[f"extra {extra}"] for extra in EXTRAS} == dict.fromkeys(EXTRAS, "ok")
