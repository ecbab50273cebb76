"""A script under otf-fit does what it does under python: weights, random numbers, stdout."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.script.rig import PATIENCE_S, Ran, Zygote, environment, ran, shape

# shape -> what otf says that it has found, and the steps that it tells
FOUND = {
    "plain": ("AdamW over 1 parameter group of Sequential as 'net', loader 1 of 2 ('train')", 12),
    "amp_scaler": ("SGD over 1 parameter group of Sequential as 'model', loader 1 of 1", 9),
    "accumulation": ("Adam over 1 parameter group of Linear as 'model', loader 1 of 1", 6),
    "gan": (
        "RMSprop over 1 parameter group of Generator as 'gan.g', RMSprop over 1 parameter group of "
        "Critic as 'gan.c', loader 1 of 1",
        12,
    ),
    "lbfgs": ("LBFGS over 1 parameter group of Sequential as 'model', loader 1 of 1", 6),
    "two_loaders": (
        "SGD over 2 parameter groups of Linear as 'net', loader 2 of 2 ('stream')",
        12,
    ),
    "no_loader": ("Adam over 1 parameter group of tensors of no module, no loader", 12),
    "by_hand": ("no optimizer, Linear as 'model', no loader", 10),
    "nested": ("SGD over 1 parameter group of Net as 'state['net']', loader 1 of 1 ('data')", 12),
    "workers": ("Adam over 1 parameter group of Linear as 'model', loader 1 of 1", 8),
    "tqdm_trainer": (
        "SGD over 1 parameter group of Linear as 'trainer.model', loader 1 of 1 ('trainer.loader')",
        15,
    ),
    "while_next": ("Adam over 1 parameter group of Linear as 'model', loader 1 of 1", 10),
    "compiled": ("Adam over 1 parameter group of Sequential as 'model', loader 1 of 1", 6),
    "compiled_step": ("SGD over 1 parameter group of Linear as 'net', loader 1 of 1", 6),
    "compiled_loops": ("Adam over 1 parameter group of Net as 'model', no loader", 6),
    # A loader with an __iter__ of its own, and another that is asked now and then.
    "everything": (
        "Adam over 1 parameter group of Sequential as 'net', loader 1 of 2 ('loader'), StepLR",
        12,
    ),
    "folds": ("Adam over 1 parameter group of Linear as 'model', a loader", 6),
    "prefetched": ("Adam over 1 parameter group of Sequential as 'model', loader 1 of 2", 9),
    "library_trainer": (
        "AdamW over 1 parameter group of Sequential as 'net', loader 1 of 2 ('loader')",
        12,
    ),
    "sam": ("SAM over 1 parameter group of Linear as 'model', loader 1 of 1", 8),
}


def compare(bare: Ran, under: Ran) -> None:
    assert (under.code, bare.code) == (0, 0), under.stderr
    assert bare.digest is not None
    assert under.digest == bare.digest
    assert under.stdout == bare.stdout
    theirs = without_times(line for line in under.stderr.splitlines() if line[:5] != "otf: ")
    if not any("epoch" in line for line in theirs):  # a progress bar shows the time
        assert theirs == without_times(bare.stderr.splitlines())


def without_times(lines: Iterable[str]) -> list[str]:
    """torch's own log lines begin with the time and the process."""
    return [re.sub(r"^W\d{4} [\d:.]+ \d+ ", "", line) for line in lines]


@pytest.mark.parametrize("name", FOUND)
def test_a_script_does_what_it_does_under_python(name: str, zygote: Zygote, tmp_path: Path) -> None:
    bare = zygote.run("python", shape(name), tmp_path / "bare")
    under = zygote.run("otf-fit", shape(name), tmp_path / "under")
    compare(bare, under)
    said, steps = FOUND[name]
    [found] = [line for line in under.said if "training found" in line]
    assert said in found
    assert under.steps() == list(range(1, steps + 1))
    [end] = under.events("trainingFinished")
    assert (end["status"], end["step"]) == ("completed", steps)


def launched(how: list[str], folder: Path) -> Ran:
    folder.mkdir()
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
                *(*how, *shape("ddp")),
            ],
            cwd=folder,
            env=environment(folder),
            stdout=out,
            stderr=err,
            timeout=2 * PATIENCE_S,
            check=False,
        )
    return ran(done.returncode, folder)


@pytest.mark.timeout(200)
def test_two_ranks_do_what_they_do_under_torchrun_alone(tmp_path: Path) -> None:
    bare = launched([], tmp_path / "bare")
    under = launched(["-m", "otf_core.cli.otf_fit"], tmp_path / "under")
    assert (bare.code, under.code) == (0, 0), under.stderr
    assert under.stdout == bare.stdout
    for rank in (0, 1):
        name = f"digest.json.{rank}"
        assert (under.folder / name).read_text() == (bare.folder / name).read_text()
    [found] = [line for line in under.said if "training found" in line]
    assert "SGD over 1 parameter group of Linear as 'model', loader 1 of 1" in found
    assert under.steps() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(under.events("trainingFinished")) == 1
