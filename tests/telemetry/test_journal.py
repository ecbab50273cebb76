"""The journal: nothing is missed by a reader, and a disk that fails costs the run nothing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otf_core.telemetry import journal as journal_module
from otf_core.telemetry.journal import INDEX_EVERY, Journal


def line(seq: int) -> bytes:
    return b'{"type":"log","event_seq":%d,"pad":"%s"}\n' % (seq, b"x" * (seq % 7))


def lines(first: int, last: int) -> list[bytes]:
    return [line(seq) for seq in range(first, last + 1)]


class Disk:
    """Stands before os.write: counts, fails, or holds a write until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: OSError | None = None
        self.most: int | None = None  # bytes that one write takes
        self.gate: threading.Event | None = None
        self.came = threading.Event()
        self.synced = 0
        self.sync_fails: OSError | None = None
        self._write, self._fsync = os.write, os.fsync
        self.fake = _Os(self)
        monkeypatch.setattr(journal_module, "os", self.fake)

    def write(self, fd: int, data: Any) -> int:
        self.came.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.fails is not None:
            raise self.fails
        return self._write(fd, data if self.most is None else data[: self.most])

    def fsync(self, fd: int) -> None:
        if self.sync_fails is not None:
            raise self.sync_fails
        self.synced += 1
        self._fsync(fd)


class _Os:
    def __init__(self, disk: Disk) -> None:
        self.write: Callable[[int, Any], int] = disk.write
        self.fsync: Callable[[int], None] = disk.fsync

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Rig:
    def __init__(self, path: Path | None, **options: Any) -> None:
        self.losses: list[str] = []
        self.lost = threading.Event()
        self.journal = Journal(path, on_loss=self.on_loss, **options)
        self.last = 0

    def on_loss(self, why: str) -> None:
        self.losses.append(why)
        self.lost.set()
        # As the session does: the loss is an event of its own.
        self.add(1)

    def add(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.journal.append(self.last, line(self.last))

    def read(self, after: int = 0, until: int | None = None) -> list[bytes]:
        return list(self.journal.read(after, self.last if until is None else until))


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "GATHER_S", 0.0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "journal" / "s.jsonl")
    yield rig
    rig.journal.close()


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_what_is_not_on_the_disk_yet_is_read_from_memory(rig: Rig) -> None:
    rig.add(3)  # before the thread is there

    assert rig.read() == lines(1, 3)
    assert rig.read(1, 2) == [line(2)]
    assert (rig.journal.first_seq, rig.journal.last_seq, rig.journal.complete) == (1, 3, True)


def test_the_file_has_every_line_as_first_sent_after_close(rig: Rig, disk: Disk) -> None:
    disk.most = 7  # a write may take less than it is given
    rig.journal.start()
    rig.add(600)
    rig.journal.close()

    path = rig.journal.path
    assert path is not None
    assert path.read_bytes() == b"".join(lines(1, 600))
    assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
    assert disk.synced == 1
    assert rig.losses == []


@pytest.mark.parametrize("split", [0, 1, 255, 256, 257, 600])
def test_half_on_the_disk_and_half_in_memory_reads_as_one(tmp_path: Path, split: int) -> None:
    rig = Rig(tmp_path / "s.jsonl")
    rig.journal.start()
    rig.add(split)
    rig.journal.close()
    rig.add(600 - split)

    for after in (0, 1, 254, 255, 256, 257, 511, 512, 513, 599, 600):
        for until in (after, after + 1, 256, 257, 512, 600):
            expected = lines(after + 1, min(until, 600))
            assert rig.read(after, until) == expected, (after, until)
    assert len(rig.journal._index) == -(-split // INDEX_EVERY)
    assert len(rig.journal._pending) == 600 - split
    assert rig.journal._pending_bytes == sum(map(len, lines(split + 1, 600)))


def test_reading_while_it_is_written_and_appended_misses_nothing(rig: Rig) -> None:
    rig.journal.start()
    total = 4000
    done = threading.Event()

    def write() -> None:
        rig.add(total)
        done.set()

    writer = threading.Thread(target=write, name="training")
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        until = rig.journal.last_seq
        assert list(rig.journal.read(until // 2, until)) == lines(until // 2 + 1, until)
        reads += 1
    writer.join()
    rig.journal.sync()
    assert rig.read() == lines(1, total)


def test_sync_has_the_disk_flushed(rig: Rig, disk: Disk) -> None:
    flushed = threading.Event()
    fsync = disk.fsync

    def sync(fd: int) -> None:
        fsync(fd)
        flushed.set()

    disk.fake.fsync = sync
    rig.journal.start()
    rig.add(1)
    rig.journal.sync()

    assert flushed.wait(10)
    path = rig.journal.path
    assert path is not None
    assert path.read_bytes() == line(1)
    rig.journal.close()
    assert disk.synced == 2


def test_flush_waits_for_the_disk_also_behind_a_write_that_nobody_synced(
    rig: Rig, disk: Disk
) -> None:
    disk.gate, may_sync = threading.Event(), threading.Event()
    fsync = disk.fsync

    def sync(fd: int) -> None:
        assert may_sync.wait(10)
        fsync(fd)

    disk.fake.fsync = sync
    rig.journal.start()
    rig.add(1)
    assert disk.came.wait(10)  # it is being written, and will not be synced
    thread = threading.Thread(target=rig.journal.flush, args=(10,), name="asks")
    thread.start()
    while not rig.journal._sync_asked:
        threading.Event().wait(0.001)
    disk.gate.set()
    thread.join(0.2)
    assert thread.is_alive()
    may_sync.set()
    thread.join(10)
    assert disk.synced == 1


def test_append_does_not_wait_for_a_disk_that_hangs(rig: Rig, disk: Disk) -> None:
    disk.gate = threading.Event()
    rig.journal.start()
    rig.add(1)
    assert disk.came.wait(10)

    rig.add(100)
    assert rig.read() == lines(1, 101)
    disk.gate.set()
    rig.journal.close()
    assert rig.read() == lines(1, 101)


@pytest.mark.parametrize("where", ["write", "half", "fsync"])
def test_a_full_disk_is_said_once_and_the_run_goes_on(rig: Rig, disk: Disk, where: str) -> None:
    rig.journal.start()
    rig.add(300)
    rig.journal.sync()
    while rig.journal._written < 300:
        disk.came.wait(0.01)
    if where == "fsync":
        disk.sync_fails = FULL
    elif where == "half":
        disk.most = 5
        write = disk.write

        def half(fd: int, data: Any) -> int:
            taken = write(fd, data)
            disk.fails = FULL
            return taken

        disk.fake.write = half
    else:
        disk.fails = FULL
    rig.add(10)
    rig.journal.sync()
    assert rig.lost.wait(10)
    rig.add(10)
    rig.journal.sync()
    rig.journal.close()

    assert rig.losses == [f"journal {rig.journal.path}: No space left on device"]
    assert rig.last == 321
    assert rig.read() == lines(1, 321)
    assert rig.journal.complete


def test_memory_is_bounded_and_what_fell_out_is_known(tmp_path: Path, disk: Disk) -> None:
    rig = Rig(tmp_path / "s.jsonl", memory_bytes=1000)
    disk.fails = FULL
    rig.journal.start()
    rig.add(1)
    assert rig.lost.wait(10)
    rig.add(500)

    journal = rig.journal
    assert journal._pending_bytes <= 1000
    assert journal.first_seq == journal._pending[0][0] > 400
    assert not journal.complete
    assert rig.read() == lines(journal.first_seq, rig.last)
    journal.close()


def test_behind_what_is_on_the_disk_there_may_be_a_hole(tmp_path: Path, disk: Disk) -> None:
    rig = Rig(tmp_path / "s.jsonl", memory_bytes=1000)
    rig.journal.start()
    rig.add(5)
    rig.journal.sync()
    while rig.journal._written < 5:
        disk.came.wait(0.01)
    disk.fails = FULL
    rig.add(1)
    assert rig.lost.wait(10)
    rig.add(100)

    kept = rig.journal._pending[0][0]
    assert kept > 50
    assert (rig.journal.first_seq, rig.journal.complete) == (1, False)
    assert rig.read() == [*lines(1, 5), *lines(kept, rig.last)]
    rig.journal.close()


def test_a_disk_that_hangs_until_memory_is_full_has_failed(tmp_path: Path, disk: Disk) -> None:
    rig = Rig(tmp_path / "s.jsonl", memory_bytes=1000)
    disk.gate = threading.Event()
    rig.journal.start()
    rig.add(1)
    assert disk.came.wait(10)
    rig.add(200)
    assert rig.journal._pending_bytes <= 1000
    assert rig.losses == []  # nobody could be told from within append
    disk.gate.set()
    assert rig.lost.wait(10)
    rig.add(5)
    rig.journal.close()

    assert rig.losses == [f"journal {rig.journal.path}: the disk is too slow"]
    assert rig.read() == [line(1), *lines(rig.journal._pending[0][0], rig.last)]
    assert not rig.journal.complete


def test_a_folder_that_cannot_be_made_is_said_once_and_memory_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    rig = Rig(tmp_path / "file" / "journal" / "s.jsonl")
    rig.add(2)
    rig.journal.start()
    rig.add(2)
    rig.journal.sync()
    rig.journal.close()

    assert len(rig.losses) == 1
    assert "Not a directory" in rig.losses[0] or "File exists" in rig.losses[0]
    assert rig.read() == lines(1, 5)


def test_without_a_path_it_keeps_the_newest_in_memory() -> None:
    rig = Rig(None, memory_bytes=500)
    rig.journal.start()
    rig.add(100)
    rig.journal.close()

    assert rig.losses == []
    assert 1 < rig.journal.first_seq <= 100
    assert rig.read() == lines(rig.journal.first_seq, 100)


def test_close_twice_and_without_a_start(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.jsonl")
    rig.journal.close()
    rig.journal.start()
    rig.add(1)
    rig.journal.close()
    rig.journal.close()

    assert rig.read() == lines(1, 1)


def test_close_leaves_the_file_to_a_thread_that_hangs(
    rig: Rig, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed under it, the number could by then be another file's."""
    monkeypatch.setattr(journal_module, "CLOSE_S", 0.0)
    disk.gate = threading.Event()
    rig.journal.start()
    rig.add(1)
    assert disk.came.wait(10)
    thread = rig.journal._thread
    rig.journal.close()
    held = rig.journal._file
    assert held is not None
    os.fstat(held)

    disk.gate.set()
    assert thread is not None
    thread.join(10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)
    assert rig.read() == lines(1, 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_that_lets_go_leaves_the_file_to_the_parent(rig: Rig, disk: Disk) -> None:
    disk.gate = threading.Event()
    rig.journal.start()
    rig.add(10)
    assert disk.came.wait(10)  # ten lines are under way when it forks
    child = os.fork()
    if child == 0:
        code = 1
        try:
            rig.journal.abandon_in_child()
            rig.journal.abandon_in_child()
            rig.journal.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    disk.gate.set()
    rig.add(10)
    rig.journal.close()

    path = rig.journal.path
    assert path is not None
    assert path.read_bytes() == b"".join(lines(1, 20))
    assert rig.losses == []


def test_the_replay_for_a_legacy_host_goes_up_to_where_live_goes_on(rig: Rig) -> None:
    rig.journal.start()
    rig.add(3)

    assert rig.journal.legacy_replay() == ([line(1)], 3)


def test_what_fell_out_before_a_write_keeps_the_rest_off_the_disk(tmp_path: Path) -> None:
    """The number of a line in the file is that of its event, so no hole may come there."""
    rig = Rig(tmp_path / "s.jsonl", memory_bytes=1000)
    rig.add(200)
    rig.journal.start()
    rig.journal.sync()
    assert rig.lost.wait(10)
    rig.journal.close()

    assert (tmp_path / "s.jsonl").read_bytes() == b""
    assert rig.journal.first_seq > 100
    assert not rig.journal.complete
    assert rig.read() == lines(rig.journal.first_seq, rig.last)


def test_a_late_event_is_found_by_the_index_and_not_by_reading_from_the_start(rig: Rig) -> None:
    rig.journal.start()
    rig.add(300)
    rig.journal.close()
    assert rig.journal.path is not None
    with rig.journal.path.open("r+b") as file:
        file.write(b"\n" * 10)  # would be counted as lines

    assert rig.read(256) == lines(257, 300)


def test_what_was_flushed_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, on_loss=lambda _why: None)
    journal.start()
    journal.append(1, b"one\n")
    journal.flush(10)
    assert path.read_bytes() == b"one\n"
    journal.flush(10)
    journal.close()
