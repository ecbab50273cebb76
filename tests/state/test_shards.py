"""Tensors that lie in parts on the ranks: a folder beside the checkpoint, whole or not there."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from otf_core.errors import CommandError
from otf_core.state.manifest import Manifest, UnfitError
from otf_core.state.run_folder import RunRecord, clean, write_record
from otf_core.state.shard_files import SafeReader, ShardReader, ShardWriter
from otf_core.state.shards import MARK, files_in, name_of, put_in, set_apart
from otf_core.state.store import CheckpointStore, Pending, read_checkpoint

torch.set_num_threads(1)
VALUES = torch.arange(12.0).reshape(4, 3)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """One rank, and a process group that is real; one for all, since gloo leaves files open."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    # This thread's cache has the group too. A child that another thread forks drops the cache,
    # and with it, were it the last to have it, the group: joining threads that no child has.
    _clear_sharding_prop_cache()
    dist.destroy_process_group()


class Rig:
    def __init__(self, folder: Path, mesh: DeviceMesh, *, keep: int = 2) -> None:
        self.folder, self.mesh, self.told = folder, mesh, []  # type: ignore[var-annotated]
        self.store = CheckpointStore(
            folder, keep=keep,
            on_saved=lambda m, _: self.told.append(f"saved {m.id}"),
            on_removed=lambda m, _: self.told.append(f"removed {m.id}"),
        )  # fmt: skip
        self.ignored = self.store.adopt()
        self.store.start()
        self.writer = ShardWriter()

    def save(self, step: int, *, into: Path | None = None) -> Pending:
        live = DTensor.from_local(VALUES + step, self.mesh, [Shard(0)])

        def copy(_: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            state = {"state_dict": set_apart({"w": live, "n": 1}, "state_dict", found), "otf": {}}
            state["otf"]["shards"] = self.writer.write(found, into or self.folder)  # type: ignore[index]
            live.to_local().zero_()  # the training goes on
            return state

        pending = self.store.save(copy, run_id="r", step=step, epoch=0, kind="ring", pinned=False)
        assert pending.wait(20)
        return pending

    def close(self) -> None:
        self.store.close()
        self.writer.close()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def rig(tmp_path: Path, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(dist, "new_group", lambda **_: dist.group.WORLD)
    rig = Rig(tmp_path / "p" / "r" / "checkpoints", mesh)
    yield rig
    rig.close()


def test_marks_stand_in_the_places_of_the_tensors_and_are_put_back(mesh: DeviceMesh) -> None:
    live = DTensor.from_local(VALUES, mesh, [Shard(0)])
    found: dict[str, Any] = {}
    state = set_apart({"a": [live, 2], "b": {3: live}, "c": (1, 2)}, "s", found)
    assert state == {"a": [(MARK, "s.a.0"), 2], "b": {3: (MARK, "s.b.3")}, "c": (1, 2)}
    assert set(found) == {"s.a.0", "s.b.3"}
    assert [name_of(each) for each in ((MARK, "x"), (1, 2), "x", (MARK,))] == [
        "x",
        None,
        None,
        None,
    ]
    back = put_in(state, {"s.a.0": 7, "s.b.3": 8})
    assert back == {"a": [7, 2], "b": {3: 8}, "c": (1, 2)}


def test_a_checkpoint_has_its_shards_and_drops_them_with_it(rig: Rig) -> None:
    pending = rig.save(1)
    assert pending.error is None
    assert rig.names() == ["1-ring.ckpt", "1-ring.json", "1-ring.shards"]
    manifest = pending.manifest
    assert [each.name for each in manifest.shards] == ["__0_0.distcp", ".metadata"]
    assert manifest.total_bytes == manifest.bytes + sum(each.bytes for each in manifest.shards)
    state, _ = read_checkpoint(Path(pending.path))
    assert files_in(state) == manifest.shards
    folder = Path(state["otf"]["shards"]["folder"])
    assert torch.equal(ShardReader(folder, files_in(state)).read("state_dict.w"), VALUES + 1)
    (folder / "mine.txt").write_text("a person's")
    rig.save(2)
    rig.save(3)
    rig.store.settle()
    assert rig.told == ["saved 1-ring", "saved 2-ring", "saved 3-ring", "removed 1-ring"]
    # What we did not write stays, and its folder.
    assert [path.name for path in (rig.folder / "1-ring.shards").iterdir()] == ["mine.txt"]
    assert "1-ring.ckpt" not in rig.names()


def test_ranks_read_their_parts_and_refuse_what_is_damaged(rig: Rig) -> None:
    state, _ = read_checkpoint(Path(rig.save(5).path))
    folder, files = Path(state["otf"]["shards"]["folder"]), files_in(state)

    def like(shapes: Any) -> dict[str, Any]:
        return {
            name: DTensor.from_local(torch.empty(shape.shape), rig.mesh, [Shard(0)])
            for name, shape in shapes.items()
        }

    found = rig.writer.read(folder, files, like)
    assert torch.equal(found["state_dict.w"].to_local(), VALUES + 5)
    shard = folder / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CommandError, match="is damaged: the SHA-256 of __0_0"):
        rig.writer.read(folder, files, like)


def test_half_written_shards_are_no_checkpoint_and_go_with_the_next_process(
    rig: Rig, tmp_path: Path
) -> None:
    whole = rig.save(1)
    rig.close()
    halves = [rig.folder / "0123456789ab.shards.part", rig.folder / "7-ring.shards"]
    for half in halves:
        half.mkdir()
        for name in ("__0_0.distcp", "__1_0.distcp", ".metadata.tmp"):
            (half / name).write_bytes(b"half")
    foreign = [rig.folder / "notes.shards", rig.folder / "ab.shards.part"]
    for folder in foreign:
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"somebody's")
    outside = tmp_path / "outside.distcp"
    outside.write_bytes(b"somebody's")
    linked = rig.folder / "ffffffffffff.shards.part"
    linked.mkdir()
    (linked / "__0_0.distcp").symlink_to(outside)

    again = Rig(rig.folder, rig.mesh)
    again.close()

    assert [manifest.id for manifest, _ in again.store.list()] == [whole.id]
    assert not any(half.exists() for half in halves)
    assert all((folder / "__0_0.distcp").read_bytes() == b"somebody's" for folder in foreign)
    assert outside.read_bytes() == b"somebody's"
    assert sorted(again.ignored) == [
        "0123456789ab.shards.part was half-written and is removed",
        "7-ring.shards was half-written and is removed",
        "ffffffffffff.shards.part is half-written and cannot be removed",
    ]


def test_a_disk_that_fails_refuses_the_checkpoint_and_leaves_nothing(
    rig: Rig, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the place of a folder")
    failed = rig.save(1, into=blocked)
    assert failed.error is not None
    assert "Saving failed with OSError (rank 0: " in failed.error.detail
    assert rig.names() == []
    assert rig.save(2).error is None  # the thread lives
    assert rig.told == ["saved 2-ring"]


def test_cleaning_a_run_takes_its_shards(rig: Rig, tmp_path: Path) -> None:
    rig.save(1)
    rig.close()
    run = tmp_path / "p" / "r"
    record = RunRecord(run_id="r", run_name="r", project="p", session_ids=[], ended_ts=1.0)
    write_record(run, record)
    removed, failed = clean(tmp_path, None)
    assert not failed
    assert {Path(path).name for path in removed} >= {"__0_0.distcp", ".metadata", "1-ring.ckpt"}
    assert not run.exists()


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_nothing_in_a_folder_is_executed(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = read_checkpoint(Path(rig.save(1).path))
    folder = Path(state["otf"]["shards"]["folder"])
    whole = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnfitError, match=r"asks for builtins\.print"):
        SafeReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(whole.replace(b"__0_0.distcp", b"../_0.distcp"))
    with pytest.raises(UnfitError, match="which lies outside of it"):
        SafeReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(whole[:40])
    with pytest.raises(UnfitError, match=r"has no \.metadata that can be read"):
        SafeReader(folder).read_metadata()
    assert "run" not in capsys.readouterr().out


def test_a_name_that_leads_out_of_the_folder_is_no_shard(rig: Rig) -> None:
    from otf_core.state.manifest import ShardFile, complete, write_manifest

    pending = rig.save(1)
    path = Path(pending.path)
    assert isinstance(complete(path), Manifest)
    odd = ShardFile(name="../1-ring.ckpt", bytes=path.stat().st_size, sha256="")
    pending.manifest.shards.append(odd)
    write_manifest(rig.folder, pending.manifest)
    with pytest.raises(UnfitError, match="is no file of its folder"):
        complete(path)
