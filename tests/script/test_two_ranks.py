"""Two ranks of a script, killed together, go on exactly: each where it stood."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
import torch

from otf_core.state.checkpoint_file import Manifest
from tests.script.ranks import Ranks
from tests.script.rig import PATIENCE_S, SHAPES, Ran, Zygote, environment, shape

RANKS: Final = (0, 1)
EVERY: Final = ["--checkpoint-every", "2"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def ranks(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    other = Zygote(tmp_path_factory.mktemp("zygote"))
    yield Ranks(zygote, other)
    other.close()


@pytest.fixture(scope="module")
def plain(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Ran]]:
    """The run that nothing has touched, by its micro-batches."""

    @functools.cache
    def run(micro: str) -> list[Ran]:
        folder = tmp_path_factory.mktemp("plain")
        return ranks.run("python", shape("ddp_accumulates"), folder, {"MICRO": micro})

    return run


@pytest.fixture(scope="module")
def killed(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a script in a folder of its own: the newest checkpoint of a run that was killed."""
    folder = tmp_path_factory.mktemp("killed")
    for name in ("ddp_accumulates.py", "digest.py"):
        shutil.copy(SHAPES / name, folder)
    asked = [*EVERY, str(folder / "ddp_accumulates.py"), "digest.json"]
    ranks.run("otf-fit", asked, folder, {"KILLED": "all:6"})
    return kept(folder)[-1][1]


def digests(folder: Path) -> list[str]:
    return [(folder / f"{rank}/digest.json.{rank}").read_text() for rank in RANKS]


def kept(folder: Path) -> list[tuple[Manifest, Path]]:
    """The checkpoints of a run in the order in which they were made."""
    found = [
        (msgspec.json.decode(path.read_bytes(), type=Manifest), path.with_suffix(".ckpt"))
        for path in folder.glob("**/checkpoints/*.json")
    ]
    return sorted(found, key=lambda each: each[0].ts)


def codes(ran: list[Ran]) -> list[int]:
    return [each.code for each in ran]


@pytest.mark.parametrize(("micro", "step"), [("1", 7), ("1", 16), ("3", 5)])
def test_killed_they_go_on_as_if_nothing_had_been(
    ranks: Ranks, plain: Callable[[str], list[Ran]], tmp_path: Path, micro: str, step: int
) -> None:
    asked = [*EVERY, *shape("ddp_accumulates")]
    left = ranks.run("otf-fit", asked, tmp_path, {"MICRO": micro, "KILLED": f"all:{step}"})
    assert left[0].code == -signal.SIGKILL, left[0].stderr
    assert left[1].code != 0

    on = ranks.run("otf-fit", ["--resume", "auto", *asked], tmp_path, {"MICRO": micro})

    bare = plain(micro)
    assert codes(bare) == codes(on) == [0, 0], [each.stderr for each in on]
    assert digests(tmp_path) == digests(bare[0].folder.parent)
    [resumed] = [line for line in on[0].said if "resumed from step" in line]
    saved = int(resumed.partition("from step ")[2].partition(" ")[0])
    assert on[0].stdout == b"".join(bare[0].stdout.splitlines(keepends=True)[saved:])
    assert {event["text"] for event in on[0].events("exactness")} == {"exact"}
    assert on[1].said == []


def test_what_the_ranks_have_alike_is_stored_once(killed: Path) -> None:
    state = torch.load(killed, weights_only=True)["otf"]
    mine, other = state["exact"]["script"], state["ranks"][0]
    pairs = [
        (a["v"], b["v"])
        for a, b in zip(mine["nodes"], other["nodes"], strict=True)
        if isinstance(a.get("v"), torch.Tensor)
    ]
    alike = [a.data_ptr() == b.data_ptr() for a, b in pairs if a.numel()]
    weights = 6 + 2 * 6  # of two linear layers and a norm, with two moments of each
    assert sum(alike) >= weights
    assert mine["rng"]["torch"] != other["rng"]["torch"]


def test_torchrun_ends_the_others_of_a_killed_rank_and_they_go_on(
    plain: Callable[[str], list[Ran]], tmp_path: Path
) -> None:
    asked = [*EVERY, *shape("ddp_accumulates")]
    code, _ = launched(asked, tmp_path, KILLED="1:9")
    assert code != 0
    code, out = launched(["--resume", "auto", *asked], tmp_path)
    bare = plain("1")
    assert code == 0
    found = [(tmp_path / f"digest.json.{rank}").read_text() for rank in RANKS]
    assert found == digests(bare[0].folder.parent)
    assert out
    assert bare[0].stdout.endswith(out)


def launched(asked: list[str], folder: Path, **env: str) -> tuple[int, bytes]:
    """By torchrun; what it has started ends with it."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *("-m", "otf_core.cli.otf_fit", *asked),
        ],
        cwd=folder,
        env=environment(folder, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=2 * PATIENCE_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out


def refused(ran: list[Ran], said: str) -> None:
    """On all ranks, in one sentence, and nothing was trained."""
    assert codes(ran) == [3, 3], [each.stderr for each in ran]
    [sentence] = [line for line in ran[0].said if "resume was asked" in line]
    assert said in sentence
    assert sentence.endswith("; nothing was trained")
    assert ran[1].said == []
    assert ran[0].stdout == b""


def test_an_edited_script_is_refused_on_all_ranks(
    ranks: Ranks, killed: Path, tmp_path: Path
) -> None:
    source = (SHAPES / "ddp_accumulates.py").read_text()
    script = tmp_path / "ddp_accumulates.py"
    script.write_text(source.replace("lr=0.05", "lr=0.01"))
    shutil.copy(SHAPES / "digest.py", tmp_path)
    asked = ["--resume", str(killed), str(script), "digest.json"]
    refused(ranks.run("otf-fit", asked, tmp_path), "ddp_accumulates.py was edited since")


def test_what_one_rank_cannot_go_on_from_no_rank_does(
    ranks: Ranks, killed: Path, tmp_path: Path
) -> None:
    script = killed.parents[5] / "ddp_accumulates.py"
    asked = ["--resume", str(killed), str(script), "digest.json"]
    on = ranks.run("otf-fit", asked, tmp_path, {"LARGE_1": "1"})
    refused(on, "rank 1: It would not go on exactly: a Tensor of 1,440,000")


def test_a_checkpoint_that_is_not_there_is_refused_on_all_ranks(
    ranks: Ranks, tmp_path: Path
) -> None:
    asked = ["--resume", "nowhere.ckpt", *shape("ddp_accumulates")]
    refused(ranks.run("otf-fit", asked, tmp_path), "where there is no file")


def test_one_rank_does_not_go_on_from_a_checkpoint_of_two(
    zygote: Zygote, killed: Path, tmp_path: Path
) -> None:
    script = killed.parents[5] / "ddp_accumulates.py"
    ran = zygote.run("otf-fit", ["--resume", str(killed), str(script), "digest.json"], tmp_path)
    assert ran.code == 3
    assert "of 2 ranks, this run has 1 rank" in ran.stderr


def test_a_time_between_checkpoints_is_refused_for_ranks(zygote: Zygote, tmp_path: Path) -> None:
    asked = ["--checkpoint-every", "1min", *shape("ddp_accumulates")]
    ran = zygote.run("otf-fit", asked, tmp_path, {"WORLD_SIZE": "2", "RANK": "0"})
    assert ran.code == 2
    assert "checkpoint_every was asked every 60 s for 2 ranks" in ran.stderr


def test_a_rank_that_cannot_be_captured_is_told_of_and_holds_nobody(
    ranks: Ranks, tmp_path: Path
) -> None:
    ran = ranks.run("otf-fit", [*EVERY, *shape("ddp_accumulates")], tmp_path, {"FAILS": "1"})
    assert codes(ran) == [0, 0], [each.stderr for each in ran]
    assert 2 not in [manifest.step for manifest, _ in kept(tmp_path)]
    assert 24 in [manifest.step for manifest, _ in kept(tmp_path)]
    told = " ".join(event["text"] for event in ran[0].events("log"))
    assert "Rank 1 could not be captured (FileNotFoundError" in told


def test_ranks_with_different_numbers_of_batches_wait_for_nobody(
    ranks: Ranks, tmp_path: Path
) -> None:
    ran = ranks.run("otf-fit", [*EVERY, *shape("ddp_joins")], tmp_path)
    assert codes(ran) == [0, 0], [each.stderr for each in ran]
    assert kept(tmp_path) == []
    told = " ".join(event["text"] for event in ran[0].events("log"))
    assert "within join() each has its own number of batches" in told
