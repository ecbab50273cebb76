"""Counters of the machine: memory, processor, GPUs; read by ``otf-sampler`` beside the training.

Rule 1: no torch here, so no tensor is touched, no CUDA context made and no device waited for.
Rule 2: a machine without GPU or driver is no error. A counter that cannot be read is None, be it
from the start or from the moment at which the driver died.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import psutil

_MIB: Final = 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One visible GPU; ``index`` is its place among the visible ones, as torch counts."""

    index: int
    uuid: str | None
    name: str | None
    mem_used_mib: float | None  # on the device, by all processes
    mem_total_mib: float | None
    util_pct: float | None
    temp_c: float | None


@dataclass(frozen=True, slots=True)
class SystemSample:
    """What was read at one moment; the empty one until the first sample is there."""

    taken_at_s: float | None = None  # monotonic
    rss_mib: float | None = None  # this process, without its children
    cpu_pct: float | None = None  # this process; 100 is one core
    gpus: tuple[GpuSample, ...] = ()

    def gpu(self, index: int = 0) -> GpuSample | None:
        """The GPU that torch calls ``cuda:index``."""
        return self.gpus[index] if 0 <= index < len(self.gpus) else None


class Nvml(Protocol):
    """What is used of the module ``pynvml``: small, so that tests can play the driver."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int

    def nvmlInit(self) -> None: ...  # noqa: N802 -- the driver's names
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...  # noqa: N802


class DeviceStatsMonitor:
    """Owns the thread ``otf-sampler``, which reads the counters every ``interval_s`` seconds.

    ``start``, ``stop``: the owner's thread. ``latest``: any thread, without a lock. Not to be used
    in a forked child, which has no such thread: there ``abandon_in_child``.

    Args:
        interval_s: between two samples.
        nvml: the driver's calls; None for ``pynvml``, loaded on the thread.
        environ: where ``CUDA_VISIBLE_DEVICES`` is read, when the thread starts.
        clock: monotonic seconds.
        report: is told, on otf-sampler, of an error that ended the thread.
    """

    def __init__(
        self,
        interval_s: float = 1.0,
        *,
        nvml: Nvml | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        report: Callable[[Exception], None] | None = None,
    ) -> None:
        self.interval_s = interval_s
        self._nvml, self._environ, self._clock, self._report = nvml, environ, clock, report
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._latest = SystemSample()

    def latest(self) -> SystemSample:
        """The newest sample; any thread, one attribute read."""
        return self._latest

    def start(self) -> None:
        """Starts otf-sampler; a second call while it runs does nothing."""
        if self._thread is not None:
            return
        self._stopping.clear()
        self._pid = os.getpid()
        thread = threading.Thread(target=self._run, name="otf-sampler", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self, timeout_s: float = 1.0) -> None:
        """Ends the thread and joins it for ``timeout_s`` at most; may be called twice.

        A driver call that hangs keeps the thread, a daemon, but not the caller.
        """
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            thread.join(timeout_s)

    def abandon_in_child(self) -> None:
        """Forgets the thread that the parent has; in a forked child only."""
        self._thread = None
        self._stopping = threading.Event()  # the copied one may be locked for ever
        self._latest = SystemSample()

    def _run(self) -> None:
        """otf-sampler: reads counters, publishes samples; touches nothing else."""
        stopping = self._stopping
        try:
            process = _Process()
            # Before the driver is asked: loading it takes long on some machines.
            self._latest = SystemSample(self._clock(), *process.read())
            with _Gpus(self._nvml or _pynvml(), self._environ) as gpus:
                while True:
                    rss_mib, cpu_pct = process.read()
                    self._latest = SystemSample(self._clock(), rss_mib, cpu_pct, gpus.read())
                    if stopping.wait(self.interval_s):
                        return
        except Exception as error:  # noqa: BLE001 -- main function of our own thread
            self._latest = SystemSample()
            if self._report is not None:
                self._report(error)


def _pynvml() -> Any:
    """The driver's module, loaded on otf-sampler so that nobody waits for it."""
    import pynvml

    return pynvml


class _Process:
    """psutil's view of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first answer is 0 by definition: there is no span yet
        self._first = True

    def read(self) -> tuple[float | None, float | None]:
        try:
            rss_mib = self._process.memory_info().rss / _MIB
            cpu_pct = self._process.cpu_percent()
        except psutil.Error:
            return None, None
        first, self._first = self._first, False
        return rss_mib, None if first else cpu_pct


class _Gpus:
    """The visible GPUs, opened once; empty where there is no driver. otf-sampler only."""

    def __init__(self, nvml: Nvml, environ: Mapping[str, str]) -> None:
        self._nvml = nvml
        self._visible = environ.get("CUDA_VISIBLE_DEVICES")
        self._open = False
        self._gpus: list[tuple[Any, str | None, str | None]] = []  # handle, uuid, name

    def __enter__(self) -> _Gpus:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            return self  # no driver, or no GPU
        self._open = True
        for handle in self._handles():
            self._gpus.append((handle, self._uuid(handle), self._name(handle)))
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._ask(self._nvml.nvmlShutdown)

    def read(self) -> tuple[GpuSample, ...]:
        return tuple(
            self._read(index, handle, uuid, name)
            for index, (handle, uuid, name) in enumerate(self._gpus)
        )

    def _read(self, index: int, handle: Any, uuid: str | None, name: str | None) -> GpuSample:
        nvml = self._nvml
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        util_pct = self._ask(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        temp_c = self._ask(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        )
        return GpuSample(
            index=index,
            uuid=uuid,
            name=name,
            mem_used_mib=None if memory is None else memory.used / _MIB,
            mem_total_mib=None if memory is None else memory.total / _MIB,
            util_pct=util_pct,
            temp_c=temp_c,
        )

    def _handles(self) -> list[Any]:
        """As CUDA counts them: in the order named, up to the first that is none.

        Numbers are the driver's, in PCI order; CUDA's own order is the same where all GPUs are of
        one kind or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
        """
        count = self._ask(self._nvml.nvmlDeviceGetCount) or 0
        if self._visible is None:
            handles = [self._by_index(index) for index in range(count)]
            return [handle for handle in handles if handle is not None]
        found: list[Any] = []
        for entry in (part.strip() for part in self._visible.split(",")):
            handle = self._named(entry, count)
            if handle is None:
                break
            found.append(handle)
        return found

    def _named(self, entry: str, count: int) -> Any:
        if entry.isascii() and entry.isdigit():
            return self._by_index(int(entry)) if int(entry) < count else None
        if entry.startswith("MIG-"):
            return self._ask(lambda: self._nvml.nvmlDeviceGetHandleByUUID(entry))
        if not entry.startswith("GPU-"):
            return None
        handles = (self._by_index(index) for index in range(count))
        # CUDA takes the beginning of a UUID, if only one has it.
        matches = [
            handle
            for handle in handles
            if handle is not None and (self._uuid(handle) or "").startswith(entry)
        ]
        return matches[0] if len(matches) == 1 else None

    def _by_index(self, index: int) -> Any:
        return self._ask(lambda: self._nvml.nvmlDeviceGetHandleByIndex(index))

    def _uuid(self, handle: Any) -> str | None:
        return self._ask(lambda: _text(self._nvml.nvmlDeviceGetUUID(handle)))

    def _name(self, handle: Any) -> str | None:
        return self._ask(lambda: _text(self._nvml.nvmlDeviceGetName(handle)))

    def _ask(self, call: Callable[[], _T]) -> _T | None:
        """What the driver answers; None where it cannot, or not any more."""
        try:
            return call()
        except self._nvml.NVMLError:
            return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
