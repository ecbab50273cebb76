"""User data to JSON: never an exception, never a device that is waited for twice."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otf_core import protocol
from otf_core.sanitise import MAX_DEPTH, MAX_ITEMS, MAX_VALUES, sanitise


def told(value: Any) -> Any:
    """What the other side reads, by the whole way."""
    line = protocol.encode({"v": value, "unknown": object})  # the type: never the fast way
    return json.loads(line)["v"]


class Colour(enum.Enum):
    RED = "red"
    NAN = math.nan


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Row(msgspec.Struct):
    a: Any


class Number(int):
    def __int__(self) -> int:
        raise KeyError("int")


class Real(float):
    def __float__(self) -> float:
        raise KeyError("float")


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise KeyError("str")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (2**63, 2**63),
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (Number(3), 3),
        (Real(0.5), 0.5),
        (Real("nan"), None),
        (Text("a"), "a"),
        ("\ud800x", "?x"),
        (Text("\ud800"), "?"),
        ({"\udc00": 1}, {"?": 1}),
        ({1: 2, (3,): None, None: 4}, {"1": 2, "(3,)": None, "None": 4}),
        (b"ab\xff", "ab\ufffd"),
        (bytearray(b"ab"), "ab"),
        ([1, (2, [math.nan])], [1, [2, [None]]]),
        ({3, 1, 2}, [1, 2, 3]),
        pytest.param(frozenset({"b", "a"}), ["a", "b"], id="frozenset"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00+00:00"),
        (datetime.time(3, 4), "03:04:00"),
        (Colour.RED, "red"),
        (Colour.NAN, None),
        (Point(1, math.inf), {"x": 1, "y": None}),
        (Row({1}), {"a": [1]}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.deque([1]), "deque([1])"),
        (decimal.Decimal("1.5"), "Decimal('1.5')"),
        (1 + 2j, "(1+2j)"),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.longdouble("1.5"), 1.5),
        (np.array([1.5], dtype=np.longdouble), [1.5]),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.complex64(1j), "np.complex64(1j)"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([np.nan, 1.0]), [None, 1.0]),
        (np.array([{"a": 1}, None], dtype=object), [{"a": 1}, None]),
        (np.zeros((101, 100)), {"shape": [101, 100], "dtype": "float64"}),
        (np.zeros((0, 3)), []),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1, 2], dtype=torch.int8), [1, 2]),
        (torch.tensor([True]), [True]),
        (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
        (torch.nn.Parameter(torch.ones(2)), [1.0, 1.0]),
        (torch.tensor(math.inf), None),
        (torch.zeros(MAX_ITEMS + 1), {"shape": [MAX_ITEMS + 1], "dtype": "torch.float32"}),
        (Point, "<class '" + __name__ + ".Point'>"),
    ],
    ids=lambda v: repr(v)[:30].encode("ascii", "replace").decode() if not callable(v) else "call",
)
def test_what_becomes_of_a_value(value: Any, plain: Any) -> None:
    assert sanitise(value) == plain
    assert told(value) == plain


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.tensor(1j),
    ],
    ids=["meta", "sparse", "complex"],
)
def test_a_tensor_without_numbers_is_its_repr(tensor: torch.Tensor) -> None:
    assert "ensor" in told(tensor)


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


class NoText:
    def __str__(self) -> str:
        raise RuntimeError

    __hash__ = object.__hash__


class WrongRepr:
    def __repr__(self) -> str:
        return 3  # type: ignore[return-value]


class BadDict(dict[str, int]):
    def items(self) -> Any:
        raise KeyError("items")

    values = __iter__ = __len__ = items


class NoPairs(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        raise ValueError

    def __repr__(self) -> str:
        raise ValueError


class BadList(list[int]):
    def __iter__(self) -> Iterator[int]:
        raise OSError

    def __len__(self) -> int:
        raise OSError


class BadPath:
    def __fspath__(self) -> str:
        raise OSError


class BadClass:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise AttributeError("no class")


class BadDate(datetime.date):
    def isoformat(self) -> str:
        raise ValueError


@dataclasses.dataclass
class BadField:
    x: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise KeyError("x")
        return object.__getattribute__(self, name)


class BadArray(np.ndarray):
    def tolist(self) -> Any:
        raise RuntimeError


HOSTILE: list[Any] = [
    Silent(), NoText(), WrongRepr(), BadDict(a=1), NoPairs(), BadList([1]), BadPath(), BadClass(),
    BadDate(2026, 1, 1), BadField(), np.zeros(2).view(BadArray), {NoText(): 1}, [Silent()],
    Point(Silent()), 10**9000, -(10**9000), {"a": {10**9000: 1}}, {Silent(), 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "value", HOSTILE, ids=[type(v).__name__ + str(n) for n, v in enumerate(HOSTILE)]
)
def test_a_hostile_object_costs_its_own_value_alone(value: Any) -> None:
    line = protocol.encode({"bad": value, "good": [1, "a"]})

    assert json.loads(line)["good"] == [1, "a"]
    assert line.count(b"\n") == 1
    assert len(line) < 1000


def test_the_name_of_the_type_is_what_is_left_of_what_has_no_repr() -> None:
    assert sanitise(Silent()) == "<Silent>"
    assert sanitise({NoText(): 1}) == {"<NoText>": 1}
    assert sanitise([1, BadPath()])[0] == 1


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["self"] = ring
    point = Point(None)
    point.x = point

    assert sanitise(loop) == [1, "<list>"]
    assert sanitise(ring) == {"self": "<dict>"}
    assert sanitise(point) == {"x": "<Point>", "y": None}
    assert told(loop) == [1, "<list>"]


def test_what_is_shared_is_written_twice() -> None:
    shared = [1]
    assert sanitise([shared, shared]) == [[1], [1]]


def test_deep_nesting_is_cut_at_a_depth() -> None:
    deep: Any = "core"
    for _ in range(5000):
        deep = [deep]

    said, depth = told(deep), 0
    while isinstance(said, list):
        said, depth = said[0], depth + 1
    assert said == "<list>"
    assert MAX_DEPTH - 1 <= depth <= MAX_DEPTH + 1


def test_ten_lists_in_ten_lists_in_ten_lists_end() -> None:
    bomb: Any = ["x"]
    for _ in range(12):
        bomb = [bomb] * 10

    assert len(json.dumps(sanitise(bomb))) < 20 * MAX_VALUES


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(JSON)
def test_what_json_can_hold_stays_as_it_is(value: Any) -> None:
    assert sanitise(value) == value


TEXT = st.text(st.characters())  # half a surrogate pair among them
LEAVES = [
    st.none(),
    st.floats(),
    st.integers(),
    TEXT,
    st.binary(),
    st.complex_numbers(),
    st.dates(),
]
ANYTHING = st.recursive(
    st.one_of(*LEAVES, st.integers(0, len(HOSTILE) - 1).map(lambda n: HOSTILE[n])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.integers() | TEXT, inner, max_size=3),
        st.builds(Point, inner),
    ),
    max_leaves=10,
)


@given(ANYTHING)
def test_anything_becomes_one_line(value: Any) -> None:
    line = protocol.encode({"type": "log", "v": value})

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert protocol.decode_message(line)["type"] == "log"


# Devices, played: this floor looks torch up and never imports it.


class Wire:
    """Counts what is fetched from each device."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.single: list[str] = []


class DeviceTensor:
    """As much of a tensor as is used; its numbers lie on a host tensor that may not be asked."""

    def __init__(self, wire: Wire, host: torch.Tensor, device: str, *, raw: bool = True) -> None:
        self._wire, self._host, self._raw = wire, host, raw
        self._name = device

    device = property(lambda self: _Device(self._name))
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)

    def numel(self) -> int:
        return self._host.numel()

    def element_size(self) -> int:
        return self._host.element_size()

    def detach(self) -> DeviceTensor:
        return self

    contiguous = detach

    def reshape(self, *shape: int) -> DeviceTensor:
        if not self._raw:
            raise RuntimeError("sparse")
        return DeviceTensor(self._wire, self._host.reshape(*shape), self._name)

    def view(self, dtype: torch.dtype) -> DeviceTensor:
        return DeviceTensor(self._wire, self._host.view(dtype), self._name)

    def cpu(self) -> torch.Tensor:
        self._wire.fetched.append(self._name)
        return self._host

    def tolist(self) -> Any:
        self._wire.single.append(self._name)
        return self._host.tolist()


class _Device:
    def __init__(self, name: str) -> None:
        self.type, self._name = name.partition(":")[0], name

    def __str__(self) -> str:
        return self._name


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()

    def cat(parts: list[DeviceTensor]) -> DeviceTensor:
        first = parts[0]
        assert len({p._name for p in parts}) == 1
        return DeviceTensor(wire, torch.cat([p._host for p in parts]), first._name)

    class Either(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return type(value) in (DeviceTensor, torch.Tensor)

    class Tensor(metaclass=Either):
        pass

    fake = SimpleNamespace(Tensor=Tensor, cat=cat, uint8=torch.uint8)
    monkeypatch.setitem(sys.modules, "torch", fake)
    return wire


def test_all_tensors_of_a_device_are_fetched_in_one_copy_wherever_they_lie(wire: Wire) -> None:
    def on(device: str, *values: float, dtype: torch.dtype = torch.float32) -> DeviceTensor:
        return DeviceTensor(wire, torch.tensor(values, dtype=dtype), device)

    shared = on("cuda:0", 9, dtype=torch.int64)
    event = {
        "a": on("cuda:0", 1.5, math.nan),
        "b": [on("cuda:0", 2, dtype=torch.bfloat16), {"c": on("cuda:1", 3)}],
        "d": Point(on("cuda:0", 1, 0, dtype=torch.bool), (shared, shared)),
        "e": DeviceTensor(wire, torch.tensor(7.0), "cuda:1"),
    }

    assert sanitise(event) == {
        "a": [1.5, None],
        "b": [[2.0], {"c": [3.0]}],
        "d": {"x": [True, False], "y": [[9], [9]]},
        "e": 7.0,
    }
    assert sorted(wire.fetched) == ["cuda:0", "cuda:1"]
    assert wire.single == []


def test_a_long_tensor_of_a_device_is_not_fetched_at_all(wire: Wire) -> None:
    long = DeviceTensor(wire, torch.zeros(MAX_ITEMS + 1), "cuda:0")

    assert sanitise([long]) == [{"shape": [MAX_ITEMS + 1], "dtype": "torch.float32"}]
    assert (wire.fetched, wire.single) == ([], [])


def test_one_that_has_no_plain_bytes_does_not_cost_the_others_their_one_copy(wire: Wire) -> None:
    sparse = DeviceTensor(wire, torch.ones(1), "cuda:0", raw=False)
    others = [DeviceTensor(wire, torch.tensor(float(n)), "cuda:0") for n in range(3)]

    assert sanitise([sparse, *others]) == [[1.0], 0.0, 1.0, 2.0]
    assert (wire.fetched, wire.single) == (["cuda:0"], ["cuda:0"])


def test_a_device_that_fails_costs_no_exception(wire: Wire) -> None:
    class Broken(DeviceTensor):
        def tolist(self) -> Any:
            raise RuntimeError("device-side assert")

    broken = DeviceTensor(wire, torch.ones(1), "cuda:0", raw=False)
    broken.tolist = lambda: 1 // 0  # type: ignore[method-assign]

    assert "DeviceTensor" in sanitise([broken])[0]


def test_without_torch_and_numpy_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delitem(sys.modules, "numpy")

    assert sanitise({"a": {1}, "b": math.nan}) == {"a": [1], "b": None}
