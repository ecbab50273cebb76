"""A run whose ranks hold parts of the weights (FSDP2): saved, killed, gone on with as it was, also
with another number of ranks; held and put back as one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from otf_core.errors import CommandError
from otf_core.runs.archive import ArchiveError, pack
from otf_core.runs.offline_weights import write
from otf_core.runs.unarchive import unpack
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.manifest import Manifest, UnfitError, complete
from otf_core.state.weights_file import open_weights
from otf_core.testing import FakeDashboard, LoopbackListener
from tests.plugin.sharded import ACCUMULATED, SEEN, STEPS
from tests.ranks import rig

PATIENCE_S = 120.0


def started(
    folder: Path, ranks: int, how: str, port: int = 0
) -> AbstractContextManager[subprocess.Popen[str]]:
    module = "tests.plugin.sharded"
    return rig.started(sys.executable, "-m", module, str(folder), str(ranks), how, str(port))


def ran(folder: Path, ranks: int, how: str, expected: int = 0) -> str:
    with started(folder, ranks, how) as process:
        _, err = process.communicate(timeout=150)
    assert process.returncode == expected, err
    return err


def found(folder: Path, how: str, rank: int) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / f"{how}.{rank}.json").read_text())
    return read


def manifests(folder: Path) -> list[Manifest]:
    paths = (folder / "runs/p/r/checkpoints").glob("*.json")
    each = [msgspec.json.decode(path.read_bytes(), type=Manifest) for path in paths]
    return sorted(each, key=lambda manifest: manifest.ts)


def file_of(folder: Path, manifest: Manifest) -> Path:
    return folder / "runs/p/r/checkpoints" / f"{manifest.id}.ckpt"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks without us."""
    folder = tmp_path_factory.mktemp("bare")
    ran(folder, 2, "bare")
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, killed together."""
    folder = tmp_path_factory.mktemp("killed")
    ran(folder, 2, "kill", -signal.SIGKILL)
    kept = manifests(folder)
    assert kept
    assert all(each.exact and len(each.shards) == 3 for each in kept)
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder / "runs", to / "runs", ignore=shutil.ignore_patterns("lock"))
    return to


def goes_on_exactly(bare: Path, folder: Path, ranks: int) -> None:
    step = manifests(folder)[-1].step
    assert f"resumed from step {step}" in ran(folder, ranks, "live")
    for rank in range(ranks):
        without, with_us = found(bare, "bare", rank), found(folder, "live", rank)
        logged = with_us.pop("logged")
        assert logged == without.pop("logged")[-len(logged) :]
        assert with_us == without


def goes_on_with_fewer(bare: Path, folder: Path, of: int, ranks: int) -> None:
    step = manifests(folder)[-1].step
    said = ran(folder, ranks, "live")
    assert f"it goes on with {ranks} rank" in said
    assert f"from a checkpoint of {of} ranks" in said
    assert "0 samples come twice" in said
    before = json.loads((bare / "whole.bare.0.json").read_text())
    after = json.loads((folder / "whole.live.0.json").read_text())
    assert min(map(int, after)) == step
    assert after[str(step)] == before[str(step)]  # weights and optimizer states, gathered
    record = json.loads((folder / "runs/p/r/run.json").read_text())
    assert not record["exactness"]["exact"]
    # The epoch goes on behind what the ranks before had of it.
    batches = step * ACCUMULATED
    epoch = found(bare, "bare", 0)[SEEN][batches][0]
    had = [
        sample
        for rank in range(of)
        for at, (of_epoch, *batch) in enumerate(found(bare, "bare", rank)[SEEN])
        for sample in batch
        if of_epoch == epoch and at < batches
    ]
    rest = [
        sample
        for rank in range(ranks)
        for of_epoch, *batch in found(folder, "live", rank)[SEEN][batches:]
        for sample in batch
        if of_epoch == epoch
    ]
    assert had
    assert rest
    assert len(set(had + rest)) == len(had + rest)
    ended = any(each[0] > epoch for each in found(folder, "live", 0)[SEEN])
    assert ended <= (set(had + rest) == set(range(192)))


@pytest.mark.timeout(300)
def test_killed_together_they_go_on_as_if_nothing_had_been(
    bare: Path, killed: Path, tmp_path: Path
) -> None:
    goes_on_exactly(bare, copied(killed, tmp_path), 2)


@pytest.mark.timeout(300)
def test_a_checkpoint_that_not_every_rank_could_write_is_none(bare: Path, tmp_path: Path) -> None:
    said = ran(tmp_path, 2, "torn", -signal.SIGKILL)
    assert "rank 1: MemoryError" in said
    first, *more = manifests(tmp_path)
    assert first.step == 0
    assert not more
    place = tmp_path / "runs/p/r/checkpoints"
    assert [p.read_bytes() for p in place.glob("*.part/__1_0.distcp")] == [b"half"]
    goes_on_exactly(bare, tmp_path, 2)
    assert not list(place.glob("*.part"))


@pytest.mark.timeout(300)
def test_one_rank_goes_on_with_the_weights_of_two_and_says_what_is_not_exact(
    bare: Path, killed: Path, tmp_path: Path
) -> None:
    goes_on_with_fewer(bare, copied(killed, tmp_path), 2, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_four_ranks_go_on_exactly_with_four_and_with_the_same_state_with_two(
    tmp_path: Path,
) -> None:
    ran(tmp_path, 4, "bare")
    ran(tmp_path, 4, "kill", -signal.SIGKILL)
    other = tmp_path / "other"
    other.mkdir()
    goes_on_with_fewer(tmp_path, copied(tmp_path, other), 4, 2)
    goes_on_exactly(tmp_path, tmp_path, 4)


@pytest.mark.timeout(60)
def test_full_weights_are_read_of_shards_without_any_rank(killed: Path) -> None:
    newest = manifests(killed)[-1]
    path = file_of(killed, newest)
    with open_weights(path) as weights:
        assert {name: tuple(shape.shape) for name, shape in weights.shapes.items()} == {
            "steps": (), "net.0.weight": (25, 64), "net.0.bias": (25,), "net.1.weight": (25,),
            "net.1.bias": (25,), "net.4.weight": (10, 25), "net.4.bias": (10,),
        }  # fmt: skip
        whole = weights.read("net.0.weight")
        assert torch.equal(weights.block("net.0.weight", 7, 90), whole.reshape(-1)[7:90])
        assert int(weights.read("steps")) == newest.step * ACCUMULATED
    said = write(killed / "runs/p/r", None, None)
    assert (said["checkpoint"], said["tensors"]) == (newest.id, 7)
    safetensors = pytest.importorskip("safetensors.torch")
    assert torch.equal(safetensors.load_file(said["out_path"])["net.0.weight"], whole)


@pytest.mark.long
@pytest.mark.timeout(60)
def test_an_archive_takes_the_shards_along(killed: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.zip"
    with file.open("wb") as out:
        pack([killed / "runs/p/r"], out, checkpoints="all")
    unpack(file, tmp_path / "runs", project=None)
    assert manifests(tmp_path) == manifests(killed)
    for each in manifests(killed):
        assert complete(file_of(tmp_path, each)) == each
    short = tmp_path / "short.zip"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(short, "w") as less:
        for entry in whole.infolist():
            if not entry.filename.endswith("5-ring.shards/.metadata"):
                less.writestr(entry, whole.read(entry))
    with pytest.raises(ArchiveError, match="is not both in it and on its list"):
        unpack(short, tmp_path / "other", project=None)


@pytest.mark.timeout(60)
def test_a_checkpoint_without_all_of_its_shards_is_none(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    path = file_of(folder, manifests(folder)[-1])
    assert complete(path).shards
    shard = next(path.with_suffix(".shards").glob("__1_*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    assert complete(path)  # of the same size
    with (
        pytest.raises(CommandError, match="SHA-256 of __1_0"),
        open_weights(path),
    ):
        pass
    shard.write_bytes(data[:-1])
    with pytest.raises(UnfitError, match="its JSON says"):
        complete(path)
    shard.unlink()
    with pytest.raises(CommandError, match="is not there"):
        read_checkpoint(path)


def done(dashboard: FakeDashboard, cmd: str, **payload: Any) -> dict[str, Any]:
    reply = dashboard.request(cmd, payload)
    assert reply["ok"], reply
    data: dict[str, Any] = reply["data"]
    return data


@pytest.mark.timeout(300)
def test_held_saved_changed_and_put_back_it_ends_as_if_nothing_had_been(
    bare: Path, tmp_path: Path
) -> None:
    with (
        LoopbackListener(legacy_allowed=False) as listener,
        started(tmp_path, 2, "held", listener.port) as process,
        FakeDashboard(listener.accept(PATIENCE_S), patience_s=PATIENCE_S) as dashboard,
    ):
        ours = dashboard.expect("hello")["session_id"]
        dashboard.hello(session_id=ours, last_seq=0)
        dashboard.expect("paused", step=0)
        first = done(dashboard, "save_ckpt")  # no optimizer has stepped yet
        pending: dict[str, Any] = {}
        while not pending:  # gradients lie in parts as well, in the middle of an accumulation
            done(dashboard, "resume")
            held = done(dashboard, "pause")
            assert held["step"] < STEPS
            saved = done(dashboard, "save_ckpt")
            state = torch.load(saved["path"], weights_only=True)
            pending = state["otf"]["exact"]["gradients"]
        assert saved["step"] == held["step"]
        away = done(dashboard, "park")
        assert away["ranks"] == 2
        assert 0 < away["freed_bytes"] == away["moved_bytes"]
        assert done(dashboard, "park", back=True)["changed"]
        assert 0 < done(dashboard, "validate_now")["metrics"]["val_loss"] < 10
        done(dashboard, "set_param", path="lr", value=0.5)
        assert done(dashboard, "rollback", checkpoint=first["id"])["step"] == 0
        assert done(dashboard, "rollback", checkpoint=saved["id"])["step"] == held["step"]
        done(dashboard, "set_param", path="lr", value=0.02)
        assert done(dashboard, "undo")["undone"]["cmd"] == "set_param"
        done(dashboard, "resume")
        dashboard.expect("trainingFinished", status="completed", step=STEPS)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
    for rank in (0, 1):
        without, with_us = found(bare, "bare", rank), found(tmp_path, "held", rank)
        assert with_us.pop("logged")[-3:] == without.pop("logged")[-3:]
        assert with_us == without
