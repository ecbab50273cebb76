"""Live values to tensors and plain values and back."""

from __future__ import annotations

import collections
import copy
import datetime
import enum
import io
import random
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from otf_core.state.plain_values import (
    DEEP,
    PACKED_FROM,
    SMALL,
    TAG,
    Decoder,
    Encoder,
    UnsupportedValueError,
)

torch.set_num_threads(1)


class Labelled(torch.Tensor):
    pass


class Point(NamedTuple):
    x: int
    y: int


VALUES: list[Any] = [
    None, True, 3, 0.5, "a", b"b", [1, [2]], (1, (2,)), {"a": {1: 2}}, {1, 2}, frozenset({3}),
    collections.deque([1, 2], maxlen=5), collections.Counter("aab"), np.float32(1.5), np.int64(3),
    np.arange(6).reshape(2, 3), np.array(True), 1.5 - 2j, np.complex64(1j), np.array(["a", "bc"]),
    np.datetime64("2020-01-02"), np.timedelta64(3, "s"), np.str_("x"),
    torch.float16, torch.Size([2, 3]), Path("a/b"), bytearray(b"xy"), datetime.timedelta(1, 2, 3),
    datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC),
    collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), {(1, 2): 3, b"": 4},
    {np.int64(3): 1, b"": 2, (4,): 5},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_a_value_comes_back_as_it_was_over_a_file_that_is_not_trusted(
    value: Any, tmp_path: Path
) -> None:
    torch.save(Encoder()(value), tmp_path / "x")
    back = Decoder()(torch.load(tmp_path / "x", weights_only=True))

    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)


def test_what_is_encoded_already_is_copied_as_it_is() -> None:
    saved = Encoder()([np.arange(3), Phase.WARM, {(1, 2): random.Random(1)}, b"", torch.Size([1])])
    assert Encoder()(saved) == saved


def test_a_tensor_is_a_copy_both_ways() -> None:
    live = torch.ones(2)
    saved = Encoder()(live)
    live.add_(1)
    back = Decoder()(saved)
    back.add_(5)

    assert saved.tolist() == [1.0, 1.0]
    assert back.tolist() == [6.0, 6.0]


def test_what_was_one_is_one_afterwards() -> None:
    shared = [torch.ones(1)]
    back = Decoder()(Encoder()({"a": shared, "b": shared}))

    assert back["a"] is back["b"]


def test_a_tensor_of_another_device_remembers_which() -> None:
    saved = Encoder(lambda t: torch.zeros(t.shape))(torch.ones(2, device="meta"))
    assert (saved[TAG], saved["d"]) == ("tensor", "meta")
    assert Decoder()(saved).device.type == "meta"


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: None,
        torch.ones(1, requires_grad=True) * 2,
        torch.ones(1).as_subclass(Labelled),
        torch.eye(2).to_sparse(),
        np.array([None]),
        np.ma.array([1, 2], mask=[False, True]),
        np.zeros(1, dtype=[("a", int)]),
        datetime.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC")),
        torch.device("cpu"),
        random.SystemRandom(),
        Point(1, 2),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UnsupportedValueError, match=type(value).__name__):
        Encoder()([value])


def test_in_a_tree_it_is_left_out_and_named() -> None:
    encoder = Encoder()
    tree = encoder.tree({"a": 1, "b": {"c": object(), "d": 2}, "e": [object()]}, "root")

    assert tree == {"a": 1, "b": {"d": 2}}
    assert encoder.unknown == ["root.b.c: object", "root.e: object"]


def test_small_refuses_tensors_and_long_containers() -> None:
    for value in (torch.ones(1), [0] * (SMALL + 1)):
        with pytest.raises(UnsupportedValueError):
            Encoder(small=True)(value)
    assert Decoder()(Encoder(small=True)([0] * SMALL)) == [0] * SMALL


LISTS: dict[str, list[Any]] = {
    "ints": [-(2**63), 2**63 - 1, *range(PACKED_FROM)],
    "long ints": [2**63, *range(PACKED_FROM)],
    "floats": [float("nan"), -0.0, float("inf"), *map(float, range(PACKED_FROM))],
    "names": ["", "\ud800", *map(str, range(PACKED_FROM)), ""],
    "names with zeros": ["\0", *map(str, range(PACKED_FROM))],
    "flags": [True] * PACKED_FROM,
    "of two kinds": [1, 1.0] * PACKED_FROM,
    "flags among ints": [True, *range(PACKED_FROM)],
    "of a class": [np.float64(1.0)] * PACKED_FROM,
    "empty bytes": [b""] * PACKED_FROM,
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_a_long_list_comes_back_entry_by_entry(value: list[Any], tmp_path: Path) -> None:
    saved = Encoder()(value)
    torch.save(saved, tmp_path / "x")
    back = Decoder()(torch.load(tmp_path / "x", weights_only=True))

    assert [*map(type, back)] == [*map(type, value)]
    assert repr(back) == repr(value)


def test_a_long_list_of_one_kind_is_one_value_in_the_file() -> None:
    for name in ("ints", "floats", "names"):
        assert Encoder()(LISTS[name])[TAG] == "packed"
    live = [5] * PACKED_FROM
    saved = Encoder()({"a": live, "b": live})
    assert saved["a"] is saved["b"]
    assert Decoder()(saved["a"], live) is live


@pytest.mark.parametrize(
    "make",
    [
        lambda n: np.zeros((1, n)),
        lambda n: [[0] * (n // 2 - 1), [0] * (n // 2 - 1)],
        lambda n: {"a": {"b": [0] * (n - 2)}},
        lambda n: "x" * (16 * n),
        lambda n: [[b"x" * (16 * (n - 2))]],
    ],
    ids=["second dimension", "siblings", "nested", "text", "bytes within"],
)
def test_small_counts_all_that_lies_in_a_value(make: Callable[[int], Any]) -> None:
    encoder = Encoder(small=True)
    for _ in range(2):  # the next value is counted by itself
        encoder(make(SMALL))
    with pytest.raises(UnsupportedValueError):
        encoder(make(SMALL + 2))
    encoder([0] * SMALL)
    Encoder()(make(SMALL + 2))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_holds_itself_is_named_and_the_rest_is_stored() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    twice: dict[str, Any] = {"fine": 2}
    twice["self"] = twice
    encoder = Encoder()
    with pytest.raises(UnsupportedValueError, match="list that holds itself"):
        encoder(loop)

    assert encoder.tree({"a": loop, "b": twice, "c": 1}, "root") == {"b": {"fine": 2}, "c": 1}
    assert encoder.unknown == [
        "root.a: list that holds itself",
        "root.b.self: dict that holds itself",
    ]
    thing = Holder(loop=loop, twice=twice, same=[twice], n=1)
    assert encoder.attributes(thing) == {
        **{name: {TAG: "left"} for name in ("loop", "twice", "same")},
        "n": 1,
    }


def test_what_is_too_deep_for_pickle_is_named() -> None:
    assert Encoder()(nested(DEEP)) == nested(DEEP)
    with pytest.raises(UnsupportedValueError, match=f"list more than {DEEP} deep"):
        Encoder()(nested(DEEP + 1))
    Encoder().tree({"a": nested(100_000)}, "root")


class Thing:
    def __init__(self) -> None:
        self.count = 1
        self.seen = [1, 2]
        self.table: Any = collections.defaultdict(int, a=1)
        self.rng = random.Random(3)
        self.left = object()
        self._start_time = 5.0
        self.skipped = 1


def test_the_attributes_of_an_object_go_back_in_place() -> None:
    thing = Thing()
    saved = Encoder(skip=["skipped"]).attributes(thing)
    seen, table, rng, left = thing.seen, thing.table, thing.rng, thing.left
    first = rng.random()
    thing.count, thing.skipped, thing._start_time = 9, 9, 9.0
    thing.seen.append(3)
    thing.table["b"] += 1
    thing.later = "made after the capture"  # type: ignore[attr-defined]
    thing.kept = object()  # type: ignore[attr-defined]

    Decoder(skip=["skipped"]).attributes(thing, saved)

    assert (thing.count, thing.seen, dict(thing.table)) == (1, [1, 2], {"a": 1})
    assert (thing.seen is seen, thing.table is table, thing.rng is rng) == (True, True, True)
    assert thing.table["new"] == 0  # a defaultdict still
    assert thing.rng.random() == first
    assert thing.left is left
    assert (thing.skipped, thing._start_time) == (9, 9.0)
    assert not hasattr(thing, "later")
    assert hasattr(thing, "kept")


class Stateful:
    def __init__(self) -> None:
        self.n = 1

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n = state["n"] * 10


def test_an_object_with_a_state_dict_of_its_own_is_given_it() -> None:
    thing = Stateful()
    Decoder().attributes(thing, {TAG: thing.state_dict()})

    assert thing.n == 10


@pytest.mark.parametrize(
    "value",
    [b"", 2**2500, -(2**2500), np.zeros((0, 3)), [b"", b"x"]],
    ids=["bytes", "long int", "negative", "array", "in a list"],
)
def test_what_torch_writes_and_cannot_load_comes_back(value: Any) -> None:
    back = Decoder()(over_a_file(Encoder()(value)))
    if isinstance(value, np.ndarray):
        assert (back.shape, back.dtype) == (value.shape, value.dtype)
    else:
        assert back == value


class Holder:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def over_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def put(thing: Any, saved: Any) -> Decoder:
    decoder = Decoder()
    decoder.attributes(thing, over_a_file(saved))
    return decoder


class Watched:
    """Tells what is set, and refuses to have two of its attributes set."""

    def __init__(self) -> None:
        vars(self).update(
            told=[],
            n=1,
            x=0.0,
            nan=float("nan"),
            name="a",
            pair=(1, (2, [3])),
            seen=[1, {"a": 2}],
            tags=frozenset("a"),
            weights=torch.zeros(2),
            array=np.zeros(2),
            size=np.float32(1),
            when=datetime.timedelta(1),
            where=Path("a"),
            fixed=1,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)["told"].append(name)
        vars(self)[name] = value

    @property
    def fixed(self) -> int:
        return 0


def test_only_what_differs_is_set() -> None:
    thing = Watched()
    saved = Encoder(skip=["told"]).attributes(thing)
    before = dict(vars(thing))
    Decoder(skip=["told"]).attributes(thing, over_a_file(saved))

    assert thing.told == []
    assert all(vars(thing)[name] is value for name, value in before.items())

    changes = {"n": True, "x": -0.0, "name": "b", "pair": (1, (2, [3])), "tags": frozenset("b")}
    changes |= {"weights": torch.tensor([0.0, -0.0]), "array": np.zeros(2, np.float32)}
    for name, value in changes.items():
        vars(thing)[name] = value
    before["seen"][1]["a"] = 3
    Decoder(skip=["told"]).attributes(thing, over_a_file(saved))

    assert set(thing.told) == changes.keys() - {"pair"}
    assert (thing.n is True, str(thing.x), thing.tags) == (False, "0.0", frozenset("a"))
    assert str(thing.weights[1].item()) == "0.0"
    assert (thing.array.dtype, thing.seen) == (np.float64, [1, {"a": 2}])
    assert thing.seen is before["seen"]


def test_a_property_without_a_setter_gets_back_what_lay_behind_it() -> None:
    class Behind:
        @property
        def n(self) -> int:
            return int(vars(self)["n"])

    thing = Behind()
    vars(thing)["n"] = 1
    saved = Encoder().attributes(thing)
    vars(thing)["n"] = 2
    put(thing, saved)

    assert thing.n == 1
    put(thing, {})
    assert "n" not in vars(thing)


def test_none_is_put_where_nothing_is() -> None:
    thing = Holder()
    put(thing, {"best": None})
    assert vars(thing) == {"best": None}


@pytest.mark.parametrize("value", [[1], {"a": 1}, torch.ones(1), np.ones(1), random.Random(1)])
def test_what_was_two_is_two_again_though_it_is_one_now(value: Any) -> None:
    other = copy.deepcopy(value)
    thing = Holder(a=value, b=other, c={"a": [other]})
    saved = Encoder().attributes(thing)
    thing.b = thing.a
    put(thing, saved)

    assert thing.a is value
    assert thing.b is not thing.a
    assert thing.c["a"][0] is thing.b, "as it was"


def test_what_was_one_is_one_again_though_it_is_two_equal_ones_now() -> None:
    value = torch.ones(1)
    thing = Holder(a=value, b=value)
    saved = Encoder().attributes(thing)
    thing.b = value.clone()
    put(thing, saved)

    assert thing.a is thing.b


def test_what_lies_within_is_refilled_in_place_too() -> None:
    inner, table = [1], collections.defaultdict(list, a=[1])
    thing = Holder(stats={"train": inner}, tables=(table,), last=collections.deque([1], 2))
    saved = Encoder().attributes(thing)
    inner.append(2)
    table["b"].append(3)
    thing.last = collections.deque([1, 2, 3], 3)
    put(thing, saved)

    assert (thing.stats["train"] is inner, inner) == (True, [1])
    assert (thing.tables[0] is table, dict(table)) == (True, {"a": [1]})
    assert (list(thing.last), thing.last.maxlen) == ([1], 2)


def test_a_dict_of_the_users_comes_back_where_one_lives_and_is_named_elsewhere() -> None:
    class Table(dict[str, int]):
        pass

    thing = Holder(a=Table(x=1), b=[Table(x=2)])
    saved = Encoder().attributes(thing)
    thing.a["x"], thing.b[0]["x"] = 5, 6
    assert put(thing, saved).unknown == []
    assert (thing.a, thing.b) == ({"x": 1}, [{"x": 2}])

    thing.b = []
    assert put(thing, saved).unknown == ["Holder.b: Table"]
    assert (type(thing.a), thing.b) == (Table, [])


def test_generators_go_on_wherever_they_lie() -> None:
    makers: list[Callable[[], Any]] = [
        lambda: random.Random(1),
        lambda: np.random.default_rng(1),
        lambda: np.random.RandomState(1),
        lambda: np.random.Generator(np.random.Philox(1)),
        lambda: torch.Generator().manual_seed(1),
    ]

    def draw(generator: Any) -> float:
        if isinstance(generator, torch.Generator):
            return torch.rand(1, generator=generator).item()
        return float(generator.random() if hasattr(generator, "random") else generator.rand())

    thing = Holder(all=[make() for make in makers])
    saved = Encoder().attributes(thing)
    live = list(thing.all)
    drawn = [draw(generator) for generator in live]
    put(thing, saved)
    assert all(map(lambda a, b: a is b, thing.all, live))
    assert [draw(generator) for generator in live] == drawn

    for fresh in (Holder(all=None), Holder(all=live[::-1]), Holder()):
        put(fresh, saved)
        assert [draw(generator) for generator in fresh.all] == drawn


def test_a_parameter_in_a_list_gets_its_value_where_its_optimizer_finds_it() -> None:
    hidden = torch.nn.Parameter(torch.ones(2))
    thing = Holder(hidden=[hidden])
    saved = Encoder().attributes(thing)
    with torch.no_grad():
        hidden.add_(1)
    put(thing, saved)
    assert thing.hidden[0] is hidden
    assert (hidden.tolist(), hidden.requires_grad) == ([1.0, 1.0], True)

    thing.hidden = [None]
    assert put(thing, saved).unknown == ["Holder.hidden: Tensor that requires a gradient"]


def test_an_array_by_columns_stays_one() -> None:
    back = Decoder()(over_a_file(Encoder()(np.asfortranarray(np.arange(6).reshape(2, 3)))))
    assert back.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back.flags.f_contiguous


class Phase(enum.Enum):
    WARM = "w"
    MAIN = "m"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    A = "a"
    B = "b"


class Flags(enum.Flag):
    X = enum.auto()
    Y = enum.auto()


def test_a_member_of_an_enum_comes_back_as_a_member_of_the_class_that_lives() -> None:
    thing = Holder(
        phase=Phase.WARM,
        level=Level.LOW,
        mode=Mode.A,
        flags=Flags.X | Flags.Y,
        losses={Phase.WARM: [1.0], Phase.MAIN: [2.0]},
        pairs={(Phase.WARM, 1): Level.HIGH},
        past=[Phase.WARM],
        known=frozenset({Mode.A}),
    )
    saved = Encoder().attributes(thing)
    was = copy.deepcopy(vars(thing))
    changed = copy.copy(vars(thing))
    changed |= {"phase": Phase.MAIN, "level": Level.HIGH, "mode": Mode.B, "flags": Flags.Y}
    changed |= {"losses": {Phase.MAIN: []}, "pairs": {}, "past": [], "known": frozenset()}
    vars(thing).update(changed)

    assert put(thing, saved).unknown == []
    assert vars(thing) == was
    assert type(thing.level) is Level
    assert type(thing.mode) is Mode
    assert isinstance(thing.flags, Flags)


def test_a_member_of_an_enum_of_which_the_run_has_none_is_named_and_left() -> None:
    class Other(enum.Enum):
        WARM = "w"

    saved = Encoder().attributes(Holder(phase=Phase.WARM, n=1))
    for here in (Other.WARM, "w", None):
        thing = Holder(phase=here, n=2)
        assert put(thing, saved).unknown == ["Holder.phase: Phase"]
        assert (thing.phase, thing.n) == (here, 1)

    gone = Encoder().attributes(Holder(phase=Phase.WARM))
    gone["phase"]["v"] = "GONE"
    assert put(Holder(phase=Phase.WARM), gone).unknown == ["Holder.phase: Phase"]
