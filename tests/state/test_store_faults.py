"""Processes that are killed while they write, and disks that are full in the middle."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError
from otf_core.state.store import CheckpointStore, Pending

torch.set_num_threads(1)

OLD: dict[str, Any] = {"otf": {"exact": {}}, "w": torch.arange(1000.0)}
NEW: dict[str, Any] = {"otf": {"exact": {}}, "w": torch.arange(5000.0), "b": torch.ones(7)}


def store_in(folder: Path, keep: int = 9) -> CheckpointStore:
    return CheckpointStore(folder, keep=keep, on_saved=lambda *_: None, on_removed=lambda *_: None)


def save(store: CheckpointStore, step: int, state: Any) -> Pending:
    pending = store.save(lambda _: state, run_id="r", step=step, epoch=0, kind="ring", pinned=False)
    assert pending.wait(20)
    return pending


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints that an earlier process saved."""
    folder = tmp_path / "checkpoints"
    store = store_in(folder)
    store.start()
    for step in (1, 2):
        assert save(store, step, OLD).error is None
    store.close()
    return folder


def forked(work: Callable[[], object]) -> int:
    """What becomes of a process that does this; it never comes back into the test."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Killed.


class Mortal:
    """Counts what happens to the disk, byte by byte, and dies at one of these events."""

    def __init__(self, dies_at: int) -> None:
        self._left = dies_at
        opened, replace, unlink, fsync = Path.open, Path.replace, Path.unlink, os.fsync

        def open_mortal(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            file = opened(path, mode, *rest, **more)
            return MortalFile(file, self) if path.suffix == ".part" else file

        def before(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.spend(1)
                return real(*args, **options)

            return call

        for owner, name, made in (
            (Path, "open", open_mortal),
            (Path, "replace", before(replace)),
            (Path, "unlink", before(unlink)),
            (os, "fsync", before(fsync)),
        ):
            setattr(owner, name, made)

    def spend(self, events: int) -> int:
        """How many of them are lived through."""
        self._left -= events
        return events + min(0, self._left)

    @property
    def is_dead(self) -> bool:
        return self._left <= 0

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class MortalFile:
    def __init__(self, file: Any, mortal: Mortal) -> None:
        self._file, self._mortal = file, mortal

    def write(self, data: Any) -> int:
        data = bytes(data)
        written: int = self._file.write(data[: self._mortal.spend(len(data))])
        if self._mortal.is_dead:
            self._file.flush()
            self._mortal.die()
        return written

    def __enter__(self) -> MortalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def events_of_a_save(tmp_path: Path) -> int:
    """Bytes of both files, each fsync and rename; a few more or less, as the time has digits."""
    store = store_in(tmp_path / "measured")
    store.start()
    manifest = save(store, 3, NEW).manifest
    store.close()
    return manifest.bytes + (tmp_path / "measured" / "3-ring.json").stat().st_size + 6


def write_and_die(folder: Path, dies_at: int, keep: int = 9) -> int:
    def work() -> None:
        store = store_in(folder, keep)
        store.adopt()
        store.start()
        mortal = Mortal(dies_at)
        original = mortal.spend

        def spend(events: int) -> int:
            lived = original(events)
            if events == 1 and mortal.is_dead:
                mortal.die()
            return lived

        mortal.spend = spend  # type: ignore[method-assign]
        save(store, 3, NEW)
        store.close()

    return forked(work)


@pytest.mark.timeout(120)
def test_killed_at_any_byte_of_a_write_the_older_ones_stay_whole(
    folder: Path, tmp_path: Path
) -> None:
    events = events_of_a_save(tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    left_behind: set[tuple[str, ...]] = set()
    early = [*range(1, events - 300, events // 12), *range(events - 300, events - 10, 29)]
    for dies_at in [*early, *range(events - 10, events + 5)]:
        ended = write_and_die(folder, dies_at)
        assert ended == -signal.SIGKILL or (ended == 0 and dies_at not in early)

        store = store_in(folder)
        ignored = store.adopt()
        left = {path.name for path in folder.iterdir()} - whole.keys()
        ids = [manifest.id for manifest, _ in store.list()]
        assert ids in (["2-ring", "1-ring"], ["3-ring", "2-ring", "1-ring"])
        for name in ids:
            state = store.read(name)
            assert torch.equal(state["w"], (NEW if name == "3-ring" else OLD)["w"])
        if "3-ring" in ids:
            assert ignored == []
        else:
            assert len(ignored) >= 1, f"nothing was said at {dies_at}"
        assert {name: (folder / name).read_bytes() for name in whole} == whole
        left_behind.add(tuple(sorted(left)))
        store.start()
        again = save(store, 3, NEW)
        assert again.error is None
        assert torch.equal(store.read(again.id)["w"], NEW["w"])
        store.close()
        for path in folder.iterdir():
            if path.name not in whole:
                path.unlink()
    assert left_behind == {(), ("3-ring.ckpt",), ("3-ring.ckpt", "3-ring.json")}


def test_killed_while_the_ring_drops_one_it_is_gone_or_whole(folder: Path, tmp_path: Path) -> None:
    events = events_of_a_save(tmp_path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    seen: set[tuple[str, ...]] = set()
    for dies_at in range(events - 5, events + 10):
        assert write_and_die(folder, dies_at, keep=2) in (0, -signal.SIGKILL)
        store = store_in(folder)
        store.adopt()
        ids = [manifest.id for manifest, _ in store.list()]
        for name in ids:
            store.read(name)
        seen.add(tuple(ids))
        for path in folder.iterdir():
            path.unlink()
        for name, data in whole.items():
            (folder / name).write_bytes(data)
    assert seen >= {("3-ring", "2-ring", "1-ring"), ("3-ring", "2-ring")}
    assert seen <= {("2-ring", "1-ring"), ("3-ring", "2-ring", "1-ring"), ("3-ring", "2-ring")}


# Full.


@pytest.mark.parametrize("room", [0, 100, 5000, 20_000])
def test_a_disk_that_is_full_in_the_middle_refuses_and_the_next_goes_through(
    folder: Path, room: int
) -> None:
    """The kernel itself refuses: no file of this process may become larger."""

    def work() -> None:
        store = store_in(folder)
        assert store.adopt() == []
        store.start()
        none = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, none))
        failed = save(store, 3, NEW)
        resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))
        assert isinstance(failed.error, CommandError)
        assert failed.error.detail == (
            "Saving failed with OSError (file too large); "
            "the older checkpoints are whole, training goes on."
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "1-ring.ckpt", "1-ring.json", "2-ring.ckpt", "2-ring.json",
        ]  # fmt: skip
        for name in ("1-ring", "2-ring"):
            assert torch.equal(store.read(name)["w"], OLD["w"])
        assert save(store, 3, NEW).error is None
        store.close()

    assert forked(work) == 0
    store = store_in(folder)
    assert store.adopt() == []
    assert [manifest.id for manifest, _ in store.list()] == ["3-ring-2", "2-ring", "1-ring"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file that is written is the device that is always full."""
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return opened(Path("/dev/full") if "w" in mode else path, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        yield


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_systems_own_full_device_refuses(folder: Path, full: None) -> None:
    store = store_in(folder)
    store.adopt()
    store.start()
    failed = save(store, 3, NEW)
    store.close()
    assert failed.error is not None
    assert "no space left on device" in failed.error.detail
    assert [manifest.id for manifest, _ in store.list()] == ["2-ring", "1-ring"]
