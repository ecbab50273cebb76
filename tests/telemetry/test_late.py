"""Reading values without waiting. A played device stands for a GPU; Parameters lie on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from otf_core.telemetry.late import CudaDevice, LateReader


class PlayedEvent:
    """Passes when told to; only then are the numbers in the buffer."""

    def __init__(self, source: Tensor, host: Tensor) -> None:
        self._source, self._host = source, host
        self.passed = self.broken = False
        self.waits = 0

    def arrive(self) -> None:
        self._host.copy_(self._source)
        self.passed = True

    def query(self) -> bool:
        if self.broken:
            raise RuntimeError("device-side assert")
        return self.passed

    def synchronize(self) -> None:
        self.waits += 1
        if self.broken:
            raise RuntimeError("device-side assert")
        self.arrive()


class PlayedDevice:
    def __init__(self) -> None:
        self.events: list[PlayedEvent] = []
        self.sources: list[Tensor] = []
        self.back: list[Tensor] = []
        self.full = False

    def is_late(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter)

    def start_copy(self, source: Tensor) -> tuple[Tensor, PlayedEvent]:
        if self.full:
            raise torch.OutOfMemoryError
        host = torch.full_like(source, -1)  # what would be read too early
        self.sources.append(source)
        self.events.append(PlayedEvent(source.clone(), host))
        return host, self.events[-1]

    def give_back(self, host: Tensor) -> None:
        self.back.append(host)


def on_device(value: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return nn.Parameter(torch.tensor(value, dtype=dtype), requires_grad=False)


def test_what_lies_on_the_host_is_read_at_once() -> None:
    reader: LateReader[int] = LateReader()
    reader.put(
        1,
        {
            "float": 0.5,
            "int": 2,
            "bool": True,
            "none": None,
            "text": "x",
            "list": [1.0],
            "complex": 1j,
            "numpy": np.float32(0.25),
            "array": np.array([1.0, 2.0]),
            "tensor": torch.tensor(1.5),
            "one": torch.tensor([[2.5]]),
            "graph": torch.tensor(3.5, requires_grad=True) * 2,
            "half": torch.tensor(0.5, dtype=torch.bfloat16),
            "count": torch.tensor(7),
            "flag": torch.tensor(True),
            "imaginary": torch.tensor(1j),
            "many": torch.ones(2),
            "empty": torch.empty(0),
            "meta": torch.empty((), device="meta"),
            "parameter": nn.Parameter(torch.tensor(4.5)),
            "big": torch.tensor(2**53 - 1),
        },
    )
    ((tag, values),) = reader.ready()
    assert tag == 1
    assert values == {
        "float": 0.5,
        "int": 2.0,
        "bool": 1.0,
        "none": None,
        "text": None,
        "list": None,
        "complex": None,
        "numpy": 0.25,
        "array": None,
        "tensor": 1.5,
        "one": 2.5,
        "graph": 7.0,
        "half": 0.5,
        "count": 7.0,
        "flag": 1.0,
        "imaginary": None,
        "many": None,
        "empty": None,
        "meta": None,
        "parameter": 4.5,
        "big": 2.0**53 - 1,
    }
    assert {type(value) for value in values.values()} == {float, type(None)}
    assert reader.ready() == []
    assert len(reader) == 0


def test_values_that_are_not_finite_stay_what_they_are() -> None:
    reader: LateReader[int] = LateReader()
    reader.put(1, {"nan": torch.tensor(math.nan), "inf": -math.inf})
    ((_, values),) = reader.ready()
    assert values["nan"] is not None
    assert math.isnan(values["nan"])
    assert values["inf"] == -math.inf


def test_a_change_after_put_does_not_show() -> None:
    reader: LateReader[int] = LateReader(PlayedDevice())
    host, device = torch.tensor(1.0), on_device(2.0)
    reader.put(1, {"host": host, "device": device})
    host.fill_(9.0)
    device.fill_(9.0)
    assert reader.flush() == [(1, {"host": 1.0, "device": 2.0})]


def test_a_value_on_the_device_is_there_when_its_event_has_passed_and_not_before() -> None:
    device = PlayedDevice()
    reader: LateReader[str] = LateReader(device)
    reader.put("a", {"loss": on_device(0.5), "lr": 0.1})
    assert reader.ready() == []
    assert len(reader) == 1
    device.events[0].arrive()
    assert reader.ready() == [("a", {"loss": 0.5, "lr": 0.1})]
    assert device.events[0].waits == 0


def test_a_step_takes_one_copy_whatever_the_types_of_its_values() -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    values = {
        "float": on_device(0.1),
        "double": on_device(0.1, torch.float64),
        "half": on_device(0.5, torch.bfloat16),
        "count": on_device(2**53 - 1, torch.int64),
        "flag": on_device(True, torch.bool),
        "shaped": on_device([[3.0]]),
        "many": on_device([1.0, 2.0]),
        "complex": on_device(1j, torch.complex64),
        "host": 1.0,
    }
    reader.put(1, values)
    assert len(device.events) == 1
    assert device.sources[0].dtype is torch.float64
    assert not device.sources[0].requires_grad
    ((_, read),) = reader.flush()
    assert read == {
        "float": torch.tensor(0.1).item(),
        "double": 0.1,
        "half": 0.5,
        "count": 2.0**53 - 1,
        "flag": 1.0,
        "shaped": 3.0,
        "many": None,
        "complex": None,
        "host": 1.0,
    }
    assert list(read) == list(values)


def test_where_all_are_float32_nothing_is_widened() -> None:
    device = PlayedDevice()
    LateReader[int](device).put(1, {"a": on_device(1.0), "b": on_device(2.0)})
    assert device.sources[0].dtype is torch.float32


def test_steps_come_in_their_order_and_one_on_its_way_holds_the_later() -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    reader.put(1, {"x": 1.0})
    reader.put(2, {"x": on_device(2.0)})
    reader.put(3, {"x": on_device(3.0)})
    reader.put(4, {"x": 4.0})
    assert reader.ready() == [(1, {"x": 1.0})]
    device.events[1].arrive()
    assert reader.ready() == []
    device.events[0].arrive()
    assert reader.ready() == [(2, {"x": 2.0}), (3, {"x": 3.0}), (4, {"x": 4.0})]


def test_flush_waits_and_brings_everything() -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    for step in range(3):
        reader.put(step, {"x": on_device(float(step))})
    assert reader.flush() == [(step, {"x": float(step)}) for step in range(3)]
    assert [event.waits for event in device.events] == [1, 1, 1]
    assert reader.flush() == []


def test_the_source_lives_until_the_copy_has_arrived_and_the_buffer_goes_back_then() -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    reader.put(1, {"x": on_device(1.0)})
    (_, _, copies) = reader._steps[0]
    assert copies[0].source is device.sources[0]
    assert device.back == []
    reader.flush()
    assert [host.tolist() for host in device.back] == [[1.0]]


@pytest.mark.parametrize("wait", [False, True])
def test_a_device_that_fails_gives_none_and_keeps_its_buffer(wait: bool) -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    reader.put(1, {"x": on_device(1.0), "y": 2.0})
    device.events[0].broken = True
    assert (reader.flush() if wait else reader.ready()) == [(1, {"x": None, "y": 2.0})]
    assert device.back == []


def test_no_memory_for_the_copy_gives_none() -> None:
    device = PlayedDevice()
    device.full = True
    reader: LateReader[int] = LateReader(device)
    reader.put(1, {"x": on_device(1.0), "y": 2.0})
    assert reader.ready() == [(1, {"x": None, "y": 2.0})]


def test_each_device_has_a_copy_of_its_own() -> None:
    device = PlayedDevice()
    reader: LateReader[int] = LateReader(device)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    copies = reader._start({first: {"a": on_device(1.0)}, second: {"b": on_device(2.0)}})
    assert [copy.names for copy in copies] == [("a",), ("b",)]
    assert [source.tolist() for source in device.sources] == [[1.0], [2.0]]


def test_no_random_number_is_drawn_and_the_grad_mode_stays() -> None:
    before = torch.get_rng_state()
    reader: LateReader[int] = LateReader(PlayedDevice())
    reader.put(1, {"x": on_device(1.0), "y": torch.tensor(1.0, requires_grad=True)})
    reader.flush()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


class PlayedCuda:
    """torch.cuda as far as CudaDevice uses it; writes down what is called in which order."""

    def __init__(self) -> None:
        self.tape: list[str] = []

    def device(self, device: torch.device) -> PlayedCuda:
        self.tape.append(f"device {device}")
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def current_stream(self) -> str:
        return "stream"

    def Event(self) -> Any:  # noqa: N802 -- torch's name
        tape = self.tape

        class Event:
            def record(self, stream: str) -> None:
                tape.append(f"record on {stream}")

        return Event()


class OnCuda(Tensor):
    """A host tensor that says it lies on a GPU."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def test_the_real_device_records_the_event_behind_a_copy_that_does_not_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = PlayedCuda()

    class Buffer(Tensor):
        def copy_(self, source: Tensor, *, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
            cuda.tape.append(f"copy {source.tolist()} non_blocking={non_blocking}")
            return self

    made: list[Tensor] = []

    def empty_like(source: Tensor, **how: Any) -> Tensor:
        assert how == {"device": "cpu", "pin_memory": True}
        made.append(torch.zeros(2).as_subclass(Buffer))
        return made[-1]

    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    device = CudaDevice()
    source = torch.tensor([1.0, 2.0]).as_subclass(OnCuda)
    host, _ = device.start_copy(source)
    assert cuda.tape == ["device cpu", "copy [1.0, 2.0] non_blocking=True", "record on stream"]
    device.start_copy(source)
    assert len(made) == 2  # the first is still in use
    device.give_back(host)
    again, _ = device.start_copy(source)
    assert again is host


def test_another_accelerator_is_read_when_asked_for() -> None:
    device = CudaDevice()
    source = torch.tensor([1.0])
    host, event = device.start_copy(source)
    assert host is source
    assert event.query()
    event.synchronize()
    assert not device.is_late(torch.ones(1))
    assert device.is_late(torch.ones(1, device="meta"))
