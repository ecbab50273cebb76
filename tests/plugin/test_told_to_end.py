"""A process that is told to end leaves a checkpoint, and says the command that goes on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
    import hashlib, sys
    import torch
    import lightning as L
    from otf_lightning import OnTheFlyCallback
    from tests.no_harm import digest
    from tests.no_harm.configs import Net, _train, _trainer, _val

    class At(L.Callback):
        '''Something happens within batch 7 of the first process.'''

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 7 and sys.argv[2] == "raise":
                raise RuntimeError("out of memory, say")
            if trainer.global_step == 7 and sys.argv[2] == "wait":
                print("inside", flush=True)
                sys.stdin.readline()

    if __name__ == "__main__":
        torch.set_num_threads(1)
        L.seed_everything(3, verbose=False)
        ours = OnTheFlyCallback("p", "r", save_dir=sys.argv[1], dashboard="off",
                                checkpoint_every=3)
        trainer = _trainer([ours, At()] if sys.argv[2] != "bare" else [At()])
        trainer.fit(Net(), _train(), _val())
        found = digest.of(trainer)
        del found["logged"], found["callbacks"]
        print("digest", hashlib.sha256(repr(found).encode()).hexdigest(), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return file


def start(script: Path, *args: str, **more: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(script), str(script.parent / "runs"), *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root, **more},
    )  # fmt: skip


def digest_in(out: str) -> str:
    return next(line.split()[1] for line in out.splitlines() if line.startswith("digest"))


def command_in(err: str) -> tuple[str, dict[str, str]]:
    """The last command that was printed, and the checkpoint in it."""
    said = [line for line in err.splitlines() if "OTF_RESUME=" in line]
    assert said, err
    command = said[-1][said[-1].index("OTF_RESUME=") :]
    variable, _, _ = command.partition(" ")
    name, _, path = variable.partition("=")
    return command, {name: path}


def goes_on(script: Path, command: str) -> str:
    """Run the very command in a shell; what was to wait or to raise is over by then."""
    command = command.replace(" wait", " on").replace(" raise", " on")
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return digest_in(done.stdout)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "step"),
    [pytest.param(signal.SIGINT, 8, marks=pytest.mark.long), (signal.SIGTERM, 8)],
)
def test_the_printed_command_goes_on_as_if_nothing_had_been(
    number: signal.Signals, step: int, script: Path
) -> None:
    bare = start(script, "bare")
    expected = digest_in(bare.communicate(timeout=60)[0])

    told = start(script, "wait")
    assert told.stdout is not None
    while told.stdout.readline().strip() != "inside":
        pass
    told.send_signal(number)
    out, err = told.communicate("\n", timeout=60)
    assert "digest" not in out, err
    assert f"saved step {step}" in err
    command, variables = command_in(err)
    assert Path(variables["OTF_RESUME"]).name.startswith(f"{step}-")
    assert goes_on(script, command) == expected


@pytest.mark.long
@pytest.mark.timeout(120)
def test_after_an_exception_the_newest_checkpoint_goes_on_exactly(script: Path) -> None:
    bare = start(script, "bare")
    expected = digest_in(bare.communicate(timeout=60)[0])
    failed = start(script, "raise")
    _, err = failed.communicate(timeout=60)
    assert failed.returncode != 0
    assert "out of memory, say" in err
    command, variables = command_in(err)
    assert Path(variables["OTF_RESUME"]).name == "6-ring.ckpt"
    assert goes_on(script, command) == expected


@pytest.mark.timeout(60)
def test_a_second_ctrl_c_ends_at_once(script: Path) -> None:
    told = start(script, "wait")
    assert told.stdout is not None
    assert told.stderr is not None
    while told.stdout.readline().strip() != "inside":
        pass
    told.send_signal(signal.SIGINT)
    while "once more ends at once" not in told.stderr.readline():
        pass
    told.send_signal(signal.SIGINT)
    out, _ = told.communicate(timeout=30)
    assert "digest" not in out
