"""The values of a step, read without waiting for a device; training thread only.

What is on the host is read at once. What is on a GPU goes to a pinned buffer in one copy a step,
and is read when an event behind that copy has passed.

Rule: ``put`` and ``ready`` never wait; ``flush`` does, and is for the gate and the end.
"""

from __future__ import annotations

import numbers
from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from otf_core.telemetry.norms import is_sharded

Tag = TypeVar("Tag")
Values = dict[str, float | None]


class Event(Protocol):
    """What is used of torch.cuda.Event."""

    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Device(Protocol):
    """The driver's calls, few enough to be played by a test."""

    def is_late(self, tensor: Tensor) -> bool:
        """Whether reading the tensor now would wait."""
        ...

    def start_copy(self, source: Tensor) -> tuple[Tensor, Event]:
        """Begins the copy to the host: where it will lie, and what passes when it does."""
        ...

    def give_back(self, host: Tensor) -> None:
        """The buffer was read and may be used again."""
        ...


class CudaDevice:
    """The real one. Buffers are reused: pinning memory anew may wait for the device."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def is_late(self, tensor: Tensor) -> bool:
        return not tensor.is_cpu

    def start_copy(self, source: Tensor) -> tuple[Tensor, Event]:
        if not source.is_cuda:
            return source, _Passed()  # other accelerators: one copy, waited for when it is read
        free = self._free.get((source.numel(), source.dtype))
        host = free.pop() if free else torch.empty_like(source, device="cpu", pin_memory=True)
        with torch.cuda.device(source.device):
            host.copy_(source, non_blocking=True)
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            event.record(torch.cuda.current_stream())  # the stream that copies, so behind the copy
        return host, event

    def give_back(self, host: Tensor) -> None:
        if host.is_cpu:
            self._free.setdefault((host.numel(), host.dtype), []).append(host)


class _Passed:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


class LateReader(Generic[Tag]):
    """A queue of steps, each with its values, in the order they were put."""

    def __init__(self, device: Device | None = None) -> None:
        self._device: Device = CudaDevice() if device is None else device
        self._steps: deque[tuple[Tag, Values, list[_Copy]]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def put(self, tag: Tag, values: Mapping[str, Any]) -> None:
        """Takes the values of a step; changes made to them later do not show.

        A tensor of one element, a number or a bool becomes a float (NaN and infinities stay what
        they are); None, complex, a tensor of several elements and everything else None.
        """
        read: Values = {}
        late: dict[torch.device, dict[str, Tensor]] | None = None
        for name, value in values.items():
            kind = type(value)
            if kind is float or value is None:
                read[name] = value
            elif kind is Tensor and value.is_cpu:
                read[name] = _item(value)
            elif isinstance(value, Tensor):
                read[name] = None  # keeps its place among the names
                if self._device.is_late(value) and _is_number(value):
                    late = {} if late is None else late
                    late.setdefault(value.device, {})[name] = value
                elif not is_sharded(value):
                    read[name] = _item(value)
            else:
                read[name] = float(value) if isinstance(value, numbers.Real) else None
        self._steps.append((tag, read, self._start(late) if late else []))

    def ready(self) -> list[tuple[Tag, Values]]:
        """Steps whose values have arrived, oldest first; one still on its way holds the later."""
        done: list[tuple[Tag, Values]] = []
        while self._steps:
            tag, values, copies = self._steps[0]
            if copies:
                if not all(copy.arrived() for copy in copies):
                    break
                self._land(copies, values)
            self._steps.popleft()
            done.append((tag, values))
        return done

    def flush(self) -> list[tuple[Tag, Values]]:
        """All steps, oldest first; waits for the device."""
        for _, _, copies in self._steps:
            for copy in copies:
                copy.wait()
        return self.ready()

    def _start(self, late: Mapping[torch.device, Mapping[str, Tensor]]) -> list[_Copy]:
        copies: list[_Copy] = []
        for tensors in late.values():
            try:
                source = _stacked(list(tensors.values()))
                host, event = self._device.start_copy(source)
            except (RuntimeError, TypeError):
                continue  # no memory for a few numbers: they stay None, the run goes on
            copies.append(_Copy(tuple(tensors), source, host, event))
        return copies

    def _land(self, copies: list[_Copy], values: Values) -> None:
        for copy in copies:
            if copy.failed:
                continue  # the buffer may still be written to: not given back
            values.update(zip(copy.names, copy.host.tolist(), strict=True))
            self._device.give_back(copy.host)


class _Copy:
    """One device's values of one step on their way. Keeps the source alive until then."""

    def __init__(self, names: tuple[str, ...], source: Tensor, host: Tensor, event: Event) -> None:
        self.names, self.source, self.host, self.event = names, source, host, event
        self.failed = False

    def arrived(self) -> bool:
        try:
            return self.failed or self.event.query()
        except RuntimeError:
            # The device has failed. That is the run's error, which its own next call raises.
            self.failed = True
            return True

    def wait(self) -> None:
        try:
            self.event.synchronize()
        except RuntimeError:
            self.failed = True


def _item(tensor: Tensor) -> float | None:
    try:
        value = tensor.item()
    except (RuntimeError, NotImplementedError):  # several elements, none, or no data (meta)
        return None
    return None if isinstance(value, complex) else float(value)


def _is_number(tensor: Tensor) -> bool:
    """One real element that lies there whole; of a DTensor the value may need a collective."""
    return not (
        tensor.is_meta
        or is_sharded(tensor)
        or tensor.layout is not torch.strided
        or tensor.is_complex()
        or tensor.numel() != 1
    )


def _stacked(tensors: list[Tensor]) -> Tensor:
    """One vector; float32 where all are, else float64, in which each small integer is exact."""
    with torch.no_grad():
        flat = [tensor.detach().reshape(()) for tensor in tensors]
        if any(tensor.dtype is not torch.float32 for tensor in flat):
            wide = torch.float32 if flat[0].device.type == "mps" else torch.float64  # mps has none
            flat = [tensor.to(wide) for tensor in flat]
        return torch.stack(flat)
