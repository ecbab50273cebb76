"""A process that trains with the Runner and is told to end: it saves, and the command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import hashlib, signal, sys, threading
    from pathlib import Path
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from otf_core.runner import Runner, RunnerCallback

    class At(RunnerCallback):
        '''Something happens within batch 8 of the first process.'''

        def on_train_batch_end(self, run, outputs, batch, batch_idx):
            if run.counters.total_batches != 8:
                return
            if sys.argv[2] == "fail":
                raise RuntimeError("out of memory, say")
            while not [*Path(sys.argv[1]).glob("*/*/checkpoints/*.json")]:
                threading.Event().wait(0.01)  # a slow disk has none yet
            if sys.argv[2] in ("SIGINT", "SIGTERM", "SIGKILL"):
                signal.raise_signal(getattr(signal, sys.argv[2]))

    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(80, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16, shuffle=True)
    Runner(callbacks=At(), max_epochs=3, device="cpu", save_dir=sys.argv[1], project="p",
           run_name="r", dashboard="off", checkpoint_every=3, accumulate_grad_batches=2).fit(
        model, optimizer=optimizer, loss_fn=nn.MSELoss(), train_loader=loader)
    assert "lightning" not in sys.modules
    found = [p.detach().numpy().tobytes() for p in model.parameters()]
    found += [s["exp_avg"].numpy().tobytes() for s in optimizer.state.values()]
    found.append(torch.get_rng_state().numpy().tobytes())
    print("digest", hashlib.sha256(b"".join(found)).hexdigest(), flush=True)
"""
ROOT = Path(__file__).parents[2]


def ran(command: list[str] | str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return [sys.executable, str(file)]


@pytest.fixture
def expected(script: list[str], tmp_path: Path) -> str:
    done = ran([*script, str(tmp_path / "whole"), "on"])
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_in(err: str) -> str:
    """The last command that was printed, for a process to which nothing happens."""
    said = [line for line in err.splitlines() if "OTF_RESUME=" in line]
    assert said, err
    *command, _what = said[-1][said[-1].index("OTF_RESUME=") :].split(" ")
    return " ".join([*command, "on"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        pytest.param("SIGINT", -signal.SIGINT, "Ctrl-C: saved step 4;", marks=pytest.mark.long),
        ("SIGTERM", 143, "SIGTERM: saved step 4;"),
        pytest.param(
            "fail",
            1,
            "RuntimeError: step 4 is kept as it was left, in the middle of a batch",
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_printed_command_goes_on_as_if_nothing_had_been(
    name: str, code: int, said: str, script: list[str], expected: str, tmp_path: Path
) -> None:
    told = ran([*script, str(tmp_path / "runs"), name])
    assert (told.returncode, told.stdout) == (code, ""), told.stderr
    assert said in told.stderr
    done = ran(command_in(told.stderr))
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.timeout(120)
def test_a_killed_one_is_gone_on_with_by_auto_and_then_ends_at_once(
    script: list[str], expected: str, tmp_path: Path
) -> None:
    command = [*script, str(tmp_path / "runs")]
    assert ran([*command, "SIGKILL"]).returncode == -signal.SIGKILL
    done = ran([*command, "on"], OTF_RESUME="auto")
    assert "resumed from step " in done.stderr  # as far as the disk was
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    again = ran([*command, "on"], OTF_RESUME="auto")
    assert "resumed from step 9 (9-final)" in again.stderr
    assert (again.returncode, again.stdout) == (0, expected), again.stderr
