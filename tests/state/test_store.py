"""Checkpoints on the disk: whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state import store as store_module
from otf_core.state.host_copy import host_copy
from otf_core.state.host_pool import HostPool
from otf_core.state.store import CheckpointStore, Kind, Manifest, Pending, write_checkpoint

torch.set_num_threads(1)


class Rig:
    def __init__(self, folder: Path | None, *, keep: int = 2) -> None:
        self.folder = folder
        self.tape: list[str] = []
        self.store = CheckpointStore(
            folder, keep=keep, on_saved=self.on_saved, on_removed=self.on_removed
        )
        self.store.start()
        self.step = 0

    def on_saved(self, manifest: Manifest, path: str) -> None:
        assert threading.current_thread().name == "otf-saver"
        assert path == str(self.path(manifest.id))
        self.tape.append(f"saved {manifest.id}")

    def on_removed(self, manifest: Manifest, path: str) -> None:
        assert not Path(path).exists()
        self.tape.append(f"removed {manifest.id}")

    def path(self, name: str, end: str = ".ckpt") -> Path:
        assert self.folder is not None
        return self.folder / f"{name}{end}"

    def save(self, kind: Kind = "ring", **how: Any) -> Pending:
        self.step += 1
        return self.again(kind, **how)

    def again(
        self, kind: Kind = "ring", *, state: Any = None, pinned: bool = False, left_by: str = ""
    ) -> Pending:
        made = {"w": torch.ones(3)} if state is None else state
        return self.store.save(
            lambda _: made,
            run_id="r",
            step=self.step,
            epoch=1,
            kind=kind,
            pinned=pinned,
            left_by=left_by,
        )

    def saved(self, *args: Any, **options: Any) -> Pending:
        pending = self.save(*args, **options)
        assert pending.wait(10)
        return pending

    def files(self) -> list[str]:
        assert self.folder is not None
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "run" / "checkpoints")
    yield rig
    rig.store.close()


def test_a_checkpoint_is_one_file_and_the_json_that_fits_it(rig: Rig) -> None:
    pending = rig.saved("manual", pinned=True)
    rig.store.close()

    data = Path(pending.path).read_bytes()
    manifest = json.loads(rig.path("1-manual", ".json").read_bytes())
    assert manifest.pop("ts") > 1e9
    assert manifest == {
        "id": "1-manual",
        "run_id": "r",
        "step": 1,
        "epoch": 1,
        "kind": "manual",
        "pinned": True,
        "exact": False,
        "left_by": "",
        "branch": 0,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "shards": [],
    }
    assert (pending.id, pending.step, pending.error) == ("1-manual", 1, None)
    assert rig.files() == ["1-manual.ckpt", "1-manual.json"]
    assert rig.tape == ["saved 1-manual"]


def test_what_is_saved_while_a_state_is_put_in_place_is_written_behind_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()

    class Told(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            arrived.set()
            return super().wait(timeout)

    monkeypatch.setattr(rig.store, "_may_write", Told())
    with rig.store.writing_later():
        pending = rig.save("ring")
        assert arrived.wait(10), "otf-saver did not ask whether it may write"
        assert rig.folder is not None
        assert not rig.folder.exists()
    assert pending.wait(10)
    with pytest.raises(KeyError), rig.store.writing_later():
        raise KeyError
    rig.saved()
    assert [m.id for m, _ in rig.store.list()] == ["2-ring", "1-ring"]


def test_what_is_written_is_loaded_without_trusting_it(rig: Rig) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = host_copy(
        {"model": model.state_dict(), "optimizers": [optimizer.state_dict()], "n": (1, None, "a")}
    )
    pending = rig.saved(state=state)

    loaded = torch.load(pending.path, weights_only=True)
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert loaded["n"] == (1, None, "a")
    assert loaded["optimizers"][0]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_the_ring_drops_the_oldest_that_is_not_pinned_and_says_so(rig: Rig) -> None:
    rig.saved("ring")
    rig.saved("manual", pinned=True)
    rig.saved("pause")
    rig.saved("auto")
    rig.saved("ring")
    rig.store.close()

    assert rig.tape == [
        "saved 1-ring",
        "saved 2-manual",
        "saved 3-pause",
        "saved 4-auto",
        "removed 1-ring",
        "saved 5-ring",
        "removed 3-pause",
    ]
    names = ["5-ring", "4-auto", "2-manual"]
    assert [m.id for m, _ in rig.store.list()] == names
    last = rig.store.last()
    assert last is not None
    assert (last[0].id, last[1]) == ("5-ring", str(rig.path("5-ring")))
    assert rig.files() == sorted(f"{n}{end}" for n in names for end in (".ckpt", ".json"))


def test_what_an_exception_leaves_pushes_out_no_whole_one(rig: Rig) -> None:
    for _ in range(2):
        rig.saved()
    for _ in range(3):
        rig.saved("auto", left_by="OSError")
    rig.store.close()
    assert [m.id for m, _ in rig.store.list()] == ["5-auto", "4-auto", "2-ring", "1-ring"]


def test_what_an_exception_leaves_does_not_let_go_of_where_the_branch_began(rig: Rig) -> None:
    for _ in range(2):
        rig.saved()
    rig.store.begin_branch(1, "1-ring")
    for _ in range(3):
        rig.saved("auto", left_by="OSError")
    rig.saved("manual", left_by="OSError")  # of a kind that stays
    rig.store.begin_branch(2, "1-ring")
    rig.saved("auto", left_by="OSError")
    rig.store.close()
    last = rig.store.last()
    assert last is not None
    assert last[0].id == "1-ring"


def test_a_file_that_somebody_took_away_does_not_keep_the_other_half(rig: Rig) -> None:
    rig.saved()
    rig.path("1-ring", ".json").unlink()
    rig.saved()
    rig.saved()
    rig.store.close()

    assert not rig.path("1-ring").exists()
    assert "removed 1-ring" in rig.tape


def test_what_is_pinned_later_stays_and_the_disk_knows(rig: Rig) -> None:
    first = rig.saved()
    rig.store.pin(first.id)
    rig.store.pin(first.id)
    rig.store.pin("nonsense")
    for _ in range(4):
        rig.saved()
    rig.store.close()

    assert [m.id for m, _ in rig.store.list()] == ["5-ring", "4-ring", "1-ring"]
    assert json.loads(rig.path("1-ring", ".json").read_bytes())["pinned"] is True


def test_the_list_does_not_wait_for_the_disk_of_a_pin(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rig.saved()
    asked: list[int] = []
    monkeypatch.setattr(
        store_module, "write_manifest", lambda *_: asked.append(len(rig.store.list()))
    )
    rig.store.pin(first.id)

    assert asked == [1]


def test_names_at_one_step_differ(rig: Rig) -> None:
    ids = [rig.saved("manual", pinned=True).id]
    for _ in range(2):
        pending = rig.again("manual", pinned=True)
        assert pending.wait(10)
        ids.append(pending.id)

    assert ids == ["1-manual", "1-manual-2", "1-manual-3"]


def test_two_may_wait_for_the_disk_and_a_third_is_busy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    write = write_checkpoint

    def slow(state: Any, path: Path) -> tuple[int, str]:
        begun.set()
        assert go.wait(10)
        return write(state, path)

    monkeypatch.setattr(store_module, "write_checkpoint", slow)
    first, second = rig.save(), rig.save()
    assert begun.wait(10)
    assert first.wait(0) is False
    assert rig.store.list() == []
    assert rig.store.last() is None

    with pytest.raises(CommandError, match="while 2 checkpoints are being written") as refused:
        rig.store.save(
            lambda _: pytest.fail("copied"), run_id="r", step=9, epoch=0, kind="ring", pinned=False
        )
    assert (refused.value.code, refused.value.retry_after_s) == (ErrorCode.BUSY, 1.0)
    go.set()
    assert first.wait(10)
    assert second.wait(float("inf"))
    assert rig.saved().error is None


def test_a_copy_that_fails_gives_its_place_back(rig: Rig) -> None:
    def fail(_: object) -> Any:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            rig.store.save(fail, run_id="r", step=1, epoch=0, kind="ring", pinned=False)
    assert rig.saved().error is None


def test_a_copy_gets_memory_that_comes_back_when_its_file_is_written(rig: Rig) -> None:
    """Also when it cannot be written; two copies, and no more, in turn."""
    where: list[int] = []

    def copy(pool: HostPool) -> Any:
        tensor = pool.copy(torch.full((1000,), float(len(where))))
        where.append(tensor.data_ptr())
        return {"w": tensor, "bad": object()} if len(where) % 3 == 0 else {"w": tensor}

    for step in range(12):
        saved = rig.store.save(copy, run_id="r", step=step, epoch=0, kind="ring", pinned=False)
        assert saved.wait(10)
        assert (saved.error is None) == (len(where) % 3 != 0)
        if saved.error is None:
            assert torch.load(saved.path, weights_only=True)["w"].eq(step).all()
    assert len(set(where)) == 2


def test_memory_is_not_written_over_before_its_file_is_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Semaphore(0)
    write = write_checkpoint

    def slow(state: Any, path: Path) -> tuple[int, str]:
        assert go.acquire(timeout=10)
        return write(state, path)

    monkeypatch.setattr(store_module, "write_checkpoint", slow)

    def save(number: float) -> Pending:
        return rig.store.save(
            lambda pool: {"w": pool.copy(torch.full((10,), number))},
            run_id="r", step=int(number), epoch=0, kind="ring", pinned=False,
        )  # fmt: skip

    pending = [save(1.0), save(2.0)]
    go.release()
    assert pending[0].wait(10)
    pending.append(save(3.0))
    for _ in range(2):
        go.release()
    for number, saved in enumerate(pending, 1):
        assert saved.wait(10)
        if number > 1:  # the ring keeps two
            assert torch.load(saved.path, weights_only=True)["w"].eq(number).all()


def test_the_first_copies_find_the_memory_that_was_prepared(rig: Rig) -> None:
    assert rig.store.prepare([(4000, False), (8, False)]) is None
    assert rig.store.prepare([(10**15, False)]) is None, "asked once"
    assert rig.saved().wait(10)  # otf-saver does one after the other
    before = [pool.nbytes for pool in rig.store._pools]
    assert before == [4008, 4008]

    def copy(pool: HostPool) -> Any:
        return {"w": pool.copy(torch.ones(1000)), "n": pool.copy(torch.tensor(1))}

    for step in range(4):
        pending = rig.store.save(copy, run_id="r", step=step, epoch=0, kind="ring", pinned=False)
        assert pending.wait(10)
    assert [pool.nbytes for pool in rig.store._pools] == before


@pytest.mark.parametrize(("available", "fits"), [(8 * 4008, True), (8 * 4008 - 1, False)])
def test_memory_that_is_short_is_not_taken_in_advance_and_not_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, available: int, fits: bool
) -> None:
    monkeypatch.setattr(store_module, "available_bytes", lambda: available)
    said = rig.store.prepare([(4000, False), (8, False)])
    if fits:
        assert said is None
        return
    assert said == (
        "8,016 bytes of host memory were wanted for checkpoints, 32,063 are available; "
        "allowed: a quarter of that. Each checkpoint makes its own and takes longer."
    )
    pending = rig.store.save(
        lambda pool: {"w": pool.copy(torch.ones(1000))},
        run_id="r", step=1, epoch=0, kind="ring", pinned=False,
    )  # fmt: skip
    assert pending.wait(10)
    assert pending.error is None
    rig.store.close()
    assert [pool.nbytes for pool in rig.store._pools] == [0, 0]


def test_memory_that_cannot_be_had_in_advance_is_no_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(HostPool, "reserve", reserve)
    rig.store.prepare([(4000, False)])
    assert rig.saved().error is None


def test_closing_does_not_wait_for_memory_that_nobody_will_use(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, on_saved=print, on_removed=print)
    store.prepare([(1000, False)] * 5)
    store._closing = True
    store.start()
    store.close()
    assert [pool.nbytes for pool in store._pools] == [0, 0]


def test_a_clock_that_goes_backwards_does_not_change_the_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (1000.0, 400.0, 400.0, 1001.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        rig.saved("manual", pinned=True)
    assert [m.id for m, _ in rig.store.list()] == ["4-manual", "3-manual", "2-manual", "1-manual"]
    stamps = [m.ts for m, _ in rig.store.list()]
    assert stamps == sorted(set(stamps), reverse=True)
    assert stamps[0] == 1001.0


def test_without_a_folder_nothing_is_saved() -> None:
    rig = Rig(None)
    with pytest.raises(CommandError, match="the run folder cannot be written") as refused:
        rig.save()
    assert refused.value.code is ErrorCode.NOT_ALLOWED_NOW
    rig.store.pin("x")
    rig.store.close()
    rig.store.close()


# What goes wrong.


class FullFile:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self._file.write(data)
        return written

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill(monkeypatch: pytest.MonkeyPatch, ending: str, room: int) -> None:
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(path, mode, *rest, **more)
        return FullFile(file, room) if path.name.endswith(ending) else file

    monkeypatch.setattr(Path, "open", open_full)


@pytest.mark.parametrize(
    ("ending", "room"), [(".ckpt.part", 0), (".ckpt.part", 700), (".json.part", 10)]
)
def test_a_full_disk_refuses_and_leaves_what_was_there_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, ending: str, room: int
) -> None:
    rig.saved()
    with monkeypatch.context() as patch:
        fill(patch, ending, room)
        failed = rig.saved("manual", pinned=True, state={"w": torch.zeros(1000)})

    assert failed.error is not None
    assert failed.error.code is ErrorCode.INTERNAL
    assert failed.error.detail == (
        "Saving failed with OSError (no space left on device); "
        "the older checkpoints are whole, training goes on."
    )
    assert rig.files() == ["1-ring.ckpt", "1-ring.json"]
    assert [m.id for m, _ in rig.store.list()] == ["1-ring"]
    assert rig.saved().error is None


def test_what_could_not_be_read_back_is_refused_by_name_and_the_saver_lives_on(rig: Rig) -> None:
    failed = rig.saved(state={"callbacks": {"Mine": {"f": lambda: None}}})

    assert failed.error is not None
    assert failed.error.code is ErrorCode.UNSUPPORTED
    assert failed.error.detail == (
        "Saving was asked, but callbacks.Mine.f is of type function, which could not be read back; "
        "allowed: tensors, numbers, strings, bytes, and lists, tuples, sets and dicts of them."
    )
    assert rig.files() == []
    assert rig.saved().error is None


def test_torchs_own_error_is_told_where_the_disk_is_not_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        raise RuntimeError("of torch")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="of torch"):
        write_checkpoint({}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rig = Rig(tmp_path / "file" / "checkpoints")
    failed = rig.saved()
    rig.store.close()

    assert failed.error is not None
    assert "OSError (" in failed.error.detail


def test_killed_between_the_file_and_its_json_there_is_no_checkpoint(tmp_path: Path) -> None:
    """A process is really killed there; what it leaves is a file without a JSON."""
    child = os.fork()
    if child == 0:
        folder = tmp_path / "c"
        folder.mkdir()
        write_checkpoint({"w": torch.ones(2)}, folder / "1-ring.ckpt")
        os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9

    assert [p.name for p in (tmp_path / "c").iterdir()] == ["1-ring.ckpt"]
    rig = Rig(tmp_path / "c")
    assert rig.store.list() == []
    rig.store.close()


def test_the_json_comes_last(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace

    def noted(path: Path, target: Any) -> Any:
        order.append(f"{path.name} -> {Path(target).name}")
        assert rig.store.list() == []
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    rig.saved()

    assert order == [
        "1-ring.ckpt.part -> 1-ring.ckpt",
        "1-ring.json.part -> 1-ring.json",
    ]


def test_a_file_that_was_there_stays_when_the_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    size, digest = write_checkpoint({"a": 1}, path)
    with pytest.raises(CommandError, match="f is of type function"):
        write_checkpoint({"f": lambda: None}, path)
    with monkeypatch.context() as patch:
        fill(patch, ".ckpt.part", 700)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint({"w": torch.ones(1000)}, path)

    data = path.read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


# Waiting for it.


def test_who_waits_is_told_once_when_it_is_done_and_at_once_after_that() -> None:
    pending = Pending(Manifest(id="a", run_id="r", step=1, epoch=0, ts=0.0, kind="ring"), "/a.ckpt")
    told: list[str] = []
    pending.then(lambda: told.append("before"))
    assert (told, pending.wait(0)) == ([], False)
    error = CommandError(ErrorCode.INTERNAL, "no")
    pending.settle(error)
    pending.then(lambda: told.append(f"after {pending.error}"))

    assert told == ["before", "after no"]
    assert pending.wait(0)


def test_close_writes_what_waits(rig: Rig) -> None:
    pending = [rig.save(), rig.save()]
    rig.store.close()

    assert [p.wait(0) for p in pending] == [True, True]
    rig.store.close()
