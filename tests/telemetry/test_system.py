"""Counters of the machine, with a played driver."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from otf_core.telemetry.system import DeviceStatsMonitor, GpuSample, Nvml, SystemSample

MIB = 1024 * 1024


class DriverError(Exception):
    """What the played driver raises."""


class PlayedNvml:
    """A driver with GPUs ``GPU-a0`` …; what stands in ``broken`` raises."""

    NVMLError: type[Exception] = DriverError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, gpus: int = 3) -> None:
        self.uuids = [f"GPU-{letter}{n}" for n, letter in enumerate("abcdefgh"[:gpus])]
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.current_thread().name)
        if name in self.broken or "all" in self.broken:
            raise DriverError(name)

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._call("shutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._call("count")
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        self._call(f"index {index}")
        return self.uuids[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        self._call("by uuid")
        if uuid != "MIG-1":
            raise DriverError(uuid)
        return uuid

    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes:  # noqa: N802
        self._call("uuid")
        return str(handle)

    def nvmlDeviceGetName(self, handle: Any) -> str | bytes:  # noqa: N802
        self._call("name")
        return f"Card {handle}".encode()  # as older versions answer

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        self._call("memory")
        return SimpleNamespace(used=3 * MIB, total=8 * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        self._call("util")
        return SimpleNamespace(gpu=42, memory=1)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        self._call("temp")
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 65


class Script:
    """Stands in for the stop event: after each sample runs the next part, then says stop."""

    def __init__(self, monitor: DeviceStatsMonitor, parts: list[Callable[[], None]]) -> None:
        self.samples: list[SystemSample] = []
        self.waited_s: list[float] = []
        self._monitor, self._parts = monitor, iter(parts)

    def wait(self, timeout_s: float) -> bool:
        self.waited_s.append(timeout_s)
        self.samples.append(self._monitor.latest())
        part = next(self._parts, None)
        if part is None:
            return True
        part()
        return False


def sampled(
    nvml: Nvml, *parts: Callable[[], None], visible: str | None = None
) -> list[SystemSample]:
    """The samples of a run of the thread's main function on this thread."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monitor = DeviceStatsMonitor(0.5, nvml=nvml, environ=environ, clock=lambda: 7.0)
    script = Script(monitor, list(parts))
    monitor._stopping = script  # type: ignore[assignment]
    monitor._run()
    assert set(script.waited_s) == {0.5}
    return script.samples


def test_before_the_first_sample_there_is_an_empty_one() -> None:
    assert DeviceStatsMonitor().latest() == SystemSample(None, None, None, ())
    assert SystemSample().gpu() is None


def test_a_sample_holds_every_counter_in_its_unit() -> None:
    nvml = PlayedNvml(gpus=1)
    (sample,) = sampled(nvml)
    assert sample.taken_at_s == 7.0
    assert sample.gpus == (GpuSample(0, "GPU-a0", "Card GPU-a0", 3.0, 8.0, 42.0, 65.0),)
    assert sample.rss_mib is not None
    assert 1.0 < sample.rss_mib < psutil.virtual_memory().total / MIB
    assert nvml.calls[0] == "init"
    assert nvml.calls[-1] == "shutdown"


def test_the_load_of_the_processor_needs_a_span_and_so_comes_with_the_second_sample() -> None:
    first, second = sampled(PlayedNvml(0), lambda: None)
    assert first.cpu_pct is not None or second.cpu_pct is not None
    assert second.cpu_pct is not None
    assert second.cpu_pct >= 0.0


def test_without_a_driver_there_is_the_process_and_no_gpu() -> None:
    nvml = PlayedNvml()
    nvml.broken = {"init"}
    (sample,) = sampled(nvml)
    assert sample.gpus == ()
    assert sample.rss_mib is not None
    assert nvml.calls == ["init"]  # what was not opened is not closed


@pytest.mark.parametrize(
    ("counter", "fields"),
    [
        ("uuid", ["uuid"]),
        ("name", ["name"]),
        ("memory", ["mem_used_mib", "mem_total_mib"]),
        ("util", ["util_pct"]),
        ("temp", ["temp_c"]),
    ],
)
def test_a_counter_that_fails_is_none_and_the_others_stand(counter: str, fields: list[str]) -> None:
    nvml = PlayedNvml(gpus=1)
    nvml.broken = {counter}
    (sample,) = sampled(nvml)
    (gpu,) = sample.gpus
    names = ["uuid", "name", "mem_used_mib", "mem_total_mib", "util_pct", "temp_c"]
    assert [name for name in names if getattr(gpu, name) is None] == fields


def test_a_driver_that_dies_gives_none_from_then_on_and_its_end_is_no_error() -> None:
    nvml = PlayedNvml(gpus=1)
    before, after = sampled(nvml, lambda: nvml.broken.add("all"))
    assert before.gpus[0].util_pct == 42.0
    assert after.gpus == (GpuSample(0, "GPU-a0", "Card GPU-a0", None, None, None, None),)
    assert after.rss_mib is not None


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-a0", "GPU-b1", "GPU-c2"]),
        ("", []),
        ("-1", []),
        ("0", ["GPU-a0"]),
        ("2,0", ["GPU-c2", "GPU-a0"]),
        (" 2 , 1 ", ["GPU-c2", "GPU-b1"]),
        ("1,3,0", ["GPU-b1"]),  # CUDA stops at the first that is none
        ("1,-1,0", ["GPU-b1"]),
        ("GPU-b1", ["GPU-b1"]),
        ("GPU-c", ["GPU-c2"]),
        ("GPU-", []),  # several begin so
        ("GPU-x,0", []),
        ("MIG-1", ["MIG-1"]),
        ("MIG-2", []),
        ("none", []),
        ("²", []),
    ],
)
def test_the_gpus_are_those_that_cuda_sees_in_its_order(
    visible: str | None, uuids: list[str]
) -> None:
    (sample,) = sampled(PlayedNvml(), visible=visible)
    assert [gpu.uuid for gpu in sample.gpus] == uuids
    assert [gpu.index for gpu in sample.gpus] == list(range(len(uuids)))
    assert [sample.gpu(index) for index in range(len(uuids))] == list(sample.gpus)
    assert sample.gpu(len(uuids)) is None
    assert sample.gpu(-1) is None


def test_a_gpu_that_cannot_be_opened_is_left_out_where_all_are_meant() -> None:
    nvml = PlayedNvml()
    nvml.broken = {"index 1"}
    (sample,) = sampled(nvml)
    assert [gpu.uuid for gpu in sample.gpus] == ["GPU-a0", "GPU-c2"]
    nvml.broken = {"count"}
    assert sampled(nvml)[0].gpus == ()


def test_a_process_that_cannot_be_read_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "memory_info", denied)
    (sample,) = sampled(PlayedNvml(1))
    assert (sample.rss_mib, sample.cpu_pct) == (None, None)
    assert sample.gpus[0].util_pct == 42.0


class Signal:
    """A clock that tells when so many samples were taken."""

    def __init__(self, at: int) -> None:
        self.reached = threading.Event()
        self._left = at

    def __call__(self) -> float:
        self._left -= 1
        if self._left <= 0:
            self.reached.set()
        return 0.0


def test_the_thread_is_named_samples_alone_and_ends_when_told() -> None:
    nvml, signal = PlayedNvml(), Signal(at=4)
    monitor = DeviceStatsMonitor(0.001, nvml=nvml, environ={}, clock=signal)
    monitor.start()
    monitor.start()
    assert [t.daemon for t in threading.enumerate() if t.name == "otf-sampler"] == [True]
    assert signal.reached.wait(10.0)
    monitor.stop()
    assert "otf-sampler" not in {t.name for t in threading.enumerate()}
    assert nvml.threads == {"otf-sampler"}
    assert nvml.calls.count("shutdown") == 1
    assert len(monitor.latest().gpus) == 3
    monitor.stop()


def test_it_may_be_started_again() -> None:
    for _ in range(2):
        signal = Signal(at=2)
        monitor = DeviceStatsMonitor(60.0, nvml=PlayedNvml(), environ={}, clock=signal)
        monitor.start()
        monitor.stop()
        monitor.start()
        assert signal.reached.wait(10.0)
        monitor.stop()


def test_stopping_does_not_wait_for_the_interval_nor_for_a_driver_that_hangs() -> None:
    inside, let_go = threading.Event(), threading.Event()

    class Hanging(PlayedNvml):
        def nvmlInit(self) -> None:  # noqa: N802
            inside.set()
            assert let_go.wait(30.0)

    monitor = DeviceStatsMonitor(3600.0, nvml=Hanging(), environ={})
    monitor.start()
    thread = monitor._thread
    assert thread is not None
    assert inside.wait(10.0)
    assert monitor.latest().rss_mib is not None  # the process is read before the driver
    monitor.stop(timeout_s=0.01)
    assert thread.is_alive()
    let_go.set()
    thread.join(10.0)
    assert not thread.is_alive()


def test_an_unforeseen_error_ends_the_thread_empties_the_sample_and_is_reported() -> None:
    class Odd(PlayedNvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            raise ZeroDivisionError

    told: list[Exception] = []
    monitor = DeviceStatsMonitor(nvml=Odd(), environ={}, report=told.append)
    monitor.start()
    thread = monitor._thread
    assert thread is not None
    thread.join(10.0)
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert monitor.latest() == SystemSample()
    monitor.stop()
    silent = DeviceStatsMonitor(nvml=Odd(), environ={})
    silent._run()  # told to nobody, and still no error


def test_a_forked_child_forgets_the_thread_and_joins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = DeviceStatsMonitor(3600.0, nvml=PlayedNvml(), environ={})
    monitor.start()
    thread, stopping, parent = monitor._thread, monitor._stopping, os.getpid()
    assert thread is not None
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)  # as if forked
    monitor.abandon_in_child()
    assert monitor.latest() == SystemSample()
    monitor._thread = thread
    monkeypatch.setattr(thread, "join", None)  # the child would wait for what it does not have
    monitor.stop()
    assert thread.is_alive()
    assert not stopping.is_set()
    monkeypatch.undo()
    stopping.set()
    thread.join(10.0)


def test_the_real_driver_or_its_absence_is_no_error() -> None:
    signal = Signal(at=2)
    told: list[Exception] = []
    monitor = DeviceStatsMonitor(60.0, clock=signal, report=told.append)
    monitor.start()
    assert signal.reached.wait(20.0)
    monitor.stop(10.0)
    assert told == []
    assert monitor.latest().rss_mib is not None
