"""What is let through is what torch really loads with nothing allow-listed."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import io
import pathlib
import pickle
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.host_pool import HostPool
from otf_core.state.plain_checkpoint import loadable, refuse_unloadable

torch.set_num_threads(1)


class Colour(enum.Enum):
    RED = 1


class Text(enum.StrEnum):
    A = "a"


class Pair(NamedTuple):
    a: Any
    b: Any


class Words(str):
    __slots__ = ()


class Bag(dict[str, Any]):
    pass


class Marked(torch.Tensor):
    pass


class Wrapped(torch.Tensor):
    """Holds its numbers somewhere else, as a sharded or a compressed weight does."""

    held: torch.Tensor

    @staticmethod
    def of(inner: torch.Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(Wrapped, inner.shape)
        made.held = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return cls.of(func(args[0].held, *args[1:], **(kwargs or {})))


def torch_loads(value: Any) -> Any:
    """What comes back; raises where nothing does."""
    file = io.BytesIO()
    torch.save({"v": value}, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")["v"]


def comes_back(value: Any) -> bool:
    try:
        return type(torch_loads(value)) is type(value)
    except (pickle.PickleError, TypeError, AttributeError, KeyError, RuntimeError):
        return False


def versioned() -> collections.OrderedDict[str, Any]:
    state: Any = collections.OrderedDict(w=torch.ones(1))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return state  # type: ignore[no-any-return]


def holds_itself() -> list[Any]:
    loop: list[Any] = [1]
    loop.append(loop)
    return loop


GOOD: dict[str, Any] = {
    "None": None,
    "bool": True,
    "int": -5,
    "long": 2**63,
    "longest": 2**2039 - 1,
    "float": float("inf"),
    "complex": 1j,
    "str": "ä\ud800",
    "bytes": bytes(range(256)),
    "bytearray": bytearray(b"a"),
    "empty bytearray": bytearray(),
    "list": [1, [2]],
    "tuple": (1, (2,), ()),
    "dict": {1: 2, (1, "a"): 3, None: {}},
    "OrderedDict": versioned(),
    "Counter": collections.Counter("aab"),
    "set": {1, "a", (2,)},
    "empty set": set(),
    "Size": torch.Size([1, 2]),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda:1"),
    "layout": torch.sparse_coo,
    "qscheme": torch.per_tensor_affine,
    "Tensor": torch.ones(2, requires_grad=True),
    "Parameter": torch.nn.Parameter(torch.ones(2)),
    "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "meta": torch.ones(2, device="meta"),
    "sparse": torch.eye(2).to_sparse(),
    "conj": torch.tensor([1j]).conj(),
    "itself": holds_itself(),
}
BAD: dict[str, tuple[Any, str]] = {
    "longer": (2**2039, "int of 2,040 bits"),
    "negative": (-(2**2040), "int of 2,041 bits"),
    "frozenset": (frozenset({1}), "frozenset"),
    "defaultdict": (collections.defaultdict(int), "defaultdict"),
    "deque": (collections.deque([1]), "deque"),
    "named tuple": (Pair(1, 2), "Pair"),
    "dict's child": (Bag(a=1), "Bag"),
    "str's child": (Words("a"), "Words"),
    "enum": (Colour.RED, "Colour"),
    "str enum": (Text.A, "Text"),
    "path": (pathlib.PurePosixPath("a"), "PurePosixPath"),
    "date": (datetime.date(2020, 1, 1), "date"),
    "decimal": (decimal.Decimal(1), "Decimal"),
    "range": (range(3), "range"),
    "class": (int, "type"),
    "function": (len, "builtin_function_or_method"),
    "lambda": (lambda: None, "function"),
    "generator": (torch.Generator(), "Generator"),
    "module": (torch.nn.Linear(1, 1), "Linear"),
    "memory format": (torch.channels_last, "memory_format"),
    "array": (np.ones(2), "ndarray"),
    "date of NumPy": (np.datetime64("2020-01-01"), "datetime64"),
    "long double": (np.longdouble(1), "longdouble"),
    "object": (object(), "object"),
    "set": ({frozenset()}, "frozenset in a set"),
    "tuple": ((1, Colour.RED), "Colour in a tuple"),
    "nested": ([1, (2, [Colour.RED])], "Colour in a list in a tuple in a list"),
    "sub-byte": (
        torch.empty(0, dtype=getattr(torch, "uint4")).set_(  # noqa: B009 -- not in torch's stubs
            torch.ones(8).untyped_storage(), 0, (1,), (1,)
        ),
        "Tensor of torch.uint4 and torch.strided",
    ),
    "mkldnn": (torch.ones(2).to_mkldnn(), "Tensor of torch.float32 and torch._mkldnn"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_compressed_sparse_tensors_come_back() -> None:
    copy, left_out = loadable({"v": torch.eye(2).to_sparse_csr()}, "x")
    assert left_out == []
    assert torch.equal(torch_loads(copy)["v"].to_dense(), torch.eye(2))


@pytest.mark.parametrize("name", GOOD)
def test_what_torch_loads_is_let_through_and_comes_back(name: str) -> None:
    value = GOOD[name]
    assert comes_back(value)
    refuse_unloadable({"v": value})
    copy, left_out = loadable({"v": value}, "x")
    assert left_out == []
    assert type(copy["v"]) is type(value) or isinstance(value, torch.nn.Parameter)
    assert repr(torch_loads(copy["v"])) == repr(copy["v"])


@pytest.mark.parametrize("name", BAD)
def test_what_torch_does_not_load_is_refused_and_left_out_by_name(name: str) -> None:
    value, kind = BAD[name]
    assert not comes_back(value)
    with pytest.raises(CommandError) as refused:
        refuse_unloadable({"callbacks": {"Mine": {"v": value}}, "b": 1})
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert f"callbacks.Mine.v is of type {kind}, which" in refused.value.detail

    copy, left_out = loadable({"a": 1, "d": {"v": value, "b": 2}}, "callbacks.Mine")
    assert copy == {"a": 1, "d": {"b": 2}}
    assert left_out == [f"callbacks.Mine.d.v: {kind}"]
    assert loadable(value, "alone") == (None, [f"alone: {kind}"])


def test_empty_bytes_do_not_come_back_and_an_equal_value_does() -> None:
    assert not comes_back(b"")
    with pytest.raises(CommandError, match="a is of type bytes of length 0, which"):
        refuse_unloadable({"a": b""})
    copy, left_out = loadable({"a": b""}, "x")
    assert (torch_loads(copy), left_out) == ({"a": b""}, [])


@pytest.mark.parametrize(
    ("value", "python"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_numbers_of_numpy_become_those_of_python(value: Any, python: Any) -> None:
    assert not comes_back(value)
    with pytest.raises(CommandError, match=type(value).__name__):
        refuse_unloadable([value])
    copy, left_out = loadable({"v": [value], value: 1}, "x")
    assert (copy, left_out) == ({"v": [python], python: 1}, [])
    assert type(copy["v"][0]) is type(python)


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_every_dtype_is_let_through_if_and_only_if_torch_takes_it() -> None:
    for dtype in {v for v in vars(torch).values() if isinstance(v, torch.dtype)}:
        refuse_unloadable(dtype)
        if str(dtype).startswith(("torch.q", "torch.b")) and dtype is not torch.bool:
            continue  # quantized ones are made in other ways; bits of no type
        tensor = torch.empty(0, dtype=dtype)
        tensor.set_(torch.ones(8).untyped_storage(), 0, (1,), (1,))
        try:
            refuse_unloadable(tensor)
        except CommandError:
            assert not comes_back(tensor), dtype
        else:
            assert comes_back(tensor), dtype


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch's own load
def test_a_quantized_tensor_is_let_through() -> None:
    quantized = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 0, torch.qint8)
    refuse_unloadable({"q": quantized})
    copy, _ = loadable({"q": quantized}, "x")
    assert torch_loads(copy)["q"].dequantize().tolist() == [1.0, 2.0]


def test_a_tensor_of_the_users_type_is_stored_as_a_tensor_where_that_is_all_of_it() -> None:
    marked = torch.ones(2).as_subclass(Marked)
    assert not comes_back(marked)
    with pytest.raises(CommandError, match="of type Marked"):
        refuse_unloadable({"t": marked})
    copy, left_out = loadable({"t": marked}, "x")
    assert (type(copy["t"]), left_out) == (torch.Tensor, [])


def test_a_tensor_that_holds_its_numbers_somewhere_else_is_left_out() -> None:
    wrapped = Wrapped.of(torch.ones(2))
    with pytest.raises(CommandError, match="of type Wrapped"):
        refuse_unloadable({"t": wrapped})
    assert loadable({"t": wrapped}, "x") == ({}, ["x.t: Wrapped"])


def test_what_a_tensor_or_an_ordered_dict_has_as_attributes_is_looked_at() -> None:
    tensor: Any = torch.ones(1)
    tensor.mine = Colour.RED
    with pytest.raises(CommandError, match=r"t\.mine is of type Colour"):
        refuse_unloadable({"t": tensor})
    state: Any = versioned()
    state._metadata["x"] = Colour.RED
    with pytest.raises(CommandError, match=r"s\._metadata\.x is of type Colour"):
        refuse_unloadable({"s": state})
    assert loadable(state, "s")[1] == ["s.x: Colour"]


def test_a_tuple_that_holds_itself_does_not_come_back() -> None:
    inner: list[Any] = []
    loop = (inner,)
    inner.append(loop)
    assert not comes_back(loop)
    with pytest.raises(CommandError, match="tuple that holds itself"):
        refuse_unloadable({"t": loop})
    refuse_unloadable({"a": (1, 2), "b": [(1, 2), GOOD["tuple"], GOOD["tuple"]]})


def test_a_key_that_does_not_come_back_goes_with_its_value() -> None:
    copy, left_out = loadable({Colour.RED: torch.ones(1), "b": 2}, "x")
    assert (copy, left_out) == ({"b": 2}, ["x.Colour.RED: Colour"])
    with pytest.raises(CommandError, match=r"Colour\.RED is of type Colour"):
        refuse_unloadable({Colour.RED: 1})


def test_what_is_shared_stays_shared_and_what_is_shared_and_bad_is_named_wherever_it_is() -> None:
    good, bad = [torch.ones(1)], [1, Colour.RED]
    copy, left_out = loadable({"a": good, "b": good, "c": bad, "d": {"e": bad}}, "x")
    assert copy == {"a": good, "b": good, "d": {}}
    assert copy["a"] is copy["b"]
    assert left_out == ["x.c: Colour in a list", "x.d.e: Colour in a list"]


def test_it_is_a_copy_in_the_memory_that_is_handed_in() -> None:
    pool, tensor, words = HostPool(), torch.ones(100), ["a"]
    copy, _ = loadable({"t": tensor, "w": words, "s": {1}}, "x", pool)
    tensor.zero_()
    words.append("b")
    assert copy["t"].sum() == 100
    assert copy["w"] == ["a"]
    assert pool.nbytes == 400


def test_a_long_name_and_a_long_path_are_cut() -> None:
    with pytest.raises(CommandError) as refused:
        refuse_unloadable({"k" * 5000: object()})
    assert len(refused.value.detail) < 500


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**2050), max_value=2**2050),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from([v for v, _ in BAD.values() if not isinstance(v, torch.Tensor)]),
    st.sampled_from([np.float32(1), np.int64(2), torch.float16, torch.Size([2])]),
    st.just(torch.ones(2)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4).map(collections.OrderedDict),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_whatever_is_left_is_loaded_and_whatever_is_not_refused(value: Any) -> None:
    copy, _ = loadable({"v": value}, "x")
    refuse_unloadable(copy)
    assert repr(torch_loads(copy)) == repr(copy)
    try:
        refuse_unloadable(value)
    except CommandError:
        assert not comes_back(value)
    else:
        torch_loads(value)


def test_it_costs_about_a_microsecond_for_each_value() -> None:
    """Far from its limit on any machine: that it does not become quadratic, or pickle."""
    value = {f"name{n}": {"a": n, "b": [1.0, "x", None], "c": (n, n)} for n in range(2000)}
    seconds = min(_timed(value) for _ in range(5))
    assert seconds / 20_000 < 10e-6


def _timed(value: Any) -> float:
    began = time.thread_time()
    loadable(value, "x")
    return time.thread_time() - began
