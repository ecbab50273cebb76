"""A merge refuses what does not fit, treats each tensor as what it is, and streams the rest."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import merge, merging
from otf_core.runs.merging import Options
from otf_core.runs.weights import Named, Weights, parameter_names
from otf_core.state.weights_file import open_weights
from tests.runs.merges import Tensors, live, merged, on_disk, refusal, told

INF, NAN = float("inf"), float("nan")
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every tensor here is read in several pieces."""
    monkeypatch.setattr(merging, "BLOCK", 3)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def trained(seed: int) -> nn.Module:
    module = net(seed)
    for _ in range(seed + 1):
        module(torch.randn(8, 4))
    return module


def options_for(strategy: str, sources: list[Weights]) -> dict[str, Any]:
    """What each strategy cannot do without."""
    return {
        "ties": {"base": sources[0], "density": 1.0},
        "fisher": {"fishers": live(*({n: torch.ones_like(t) for n, t in s.shapes.items()
                                      if t.is_floating_point()} for s in sources))},
        "soup": {"evaluate": lambda tensors: float(len(list(tensors)))},
    }.get(strategy, {})  # fmt: skip


# The strategies as such.


def test_there_is_an_entry_for_each_and_nobody_can_change_it_for_all() -> None:
    assert list(merge.STRATEGIES) == ["linear", "fisher", "ties", "soup", "adapter"]
    assert dict(merge.LEGACY) == {"swa": "linear"}
    with pytest.raises(TypeError):
        merge.STRATEGIES["own"] = merge.STRATEGIES["linear"]  # type: ignore[index]


def test_an_unknown_strategy_is_refused_with_those_that_there_are() -> None:
    detail = refusal("mean", live({}, {}), field="strategy")
    assert "'mean'" in detail
    assert "linear, fisher, ties, soup, adapter, swa" in detail


@pytest.mark.parametrize("strategy", ["linear", "swa", "fisher", "ties", "soup"])
def test_what_is_the_same_in_all_sources_stays_bit_for_bit(strategy: str) -> None:
    weights = trained(1).state_dict()
    sources = live(weights, dict(weights), dict(weights))
    found = merged(strategy, sources, **options_for(strategy, sources))
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert all(found[name].dtype == weights[name].dtype for name in weights)


dtypes = st.sampled_from(
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.int64,
        torch.bool,
        torch.float8_e4m3fn,
    ]
)
shapes = st.lists(st.integers(0, 3), max_size=3)


@given(
    st.dictionaries(
        st.sampled_from(["w", "bn.running_var", "bn.num_batches_tracked", "x.lora_A", "x.lora_B"]),
        st.tuples(dtypes, shapes),
        min_size=1,
    ),
    st.sampled_from(["linear", "ties", "soup", "adapter"]),
    st.integers(0, 99),
)
def test_whatever_a_model_holds_equal_ones_merge_to_the_same(
    kinds: dict[str, tuple[torch.dtype, list[int]]], strategy: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: (8 * torch.randn(shape, generator=generator)).to(dtype)
        for name, (dtype, shape) in kinds.items()
    }
    sources = live(*({n: t.clone() for n, t in weights.items()} for _ in range(3)))
    if strategy == "adapter" and not any("lora" in name for name in weights):
        refusal(strategy, sources, field="strategy", code=ErrorCode.UNSUPPORTED)
        return
    found = merged(strategy, sources, **options_for(strategy, sources))
    assert list(found) == list(weights)
    for name, value in weights.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(merging.wide(found[name]), merging.wide(value))


@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([2, 4]),  # of which the shares are exact
    st.integers(0, 99),
)
def test_of_any_type_and_shape_the_mean_is_rounded_once(
    dtype: torch.dtype, shape: list[int], number: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator).to(dtype) for _ in range(number)]
    expected = torch.stack([each.double() for each in found]).mean(0).to(dtype)
    got = merged("linear", live(*({"w": each} for each in found)))["w"]
    assert got.shape == torch.Size(shape)
    assert torch.equal(got.double(), expected.double())


@pytest.mark.parametrize("strategy", ["linear", "fisher", "ties", "soup", "adapter"])
def test_the_sources_stay_what_they_are(strategy: str) -> None:
    names = ("x.lora_A", "x.lora_B") if strategy == "adapter" else ("a", "b")
    found = [{name: torch.randn(2, 2, dtype=torch.float64) for name in names} for _ in range(2)]
    options = {
        "ties": {"base": live({name: torch.randn(2, 2).double() for name in names})[0]},
        "fisher": {"fishers": live(*({n: torch.rand(2, 2).double() for n in names} for _ in "ab"))},
        "soup": {"evaluate": lambda tensors: float(len(list(tensors)))},
    }.get(strategy, {})
    read = [*live(*found), *options.get("fishers", ())]  # type: ignore[attr-defined]
    before = [{name: each.read(name) for name in names} for each in read]
    assert not torch.equal(merged(strategy, read[:2], **options)[names[0]], before[0][names[0]])  # type: ignore[arg-type]
    for each, was in zip(read, before, strict=True):
        assert all(torch.equal(each.read(name), was[name]) for name in names)


# Linear.


def test_linear_is_the_weighted_mean_that_numpy_finds() -> None:
    found = [torch.randn(7, 5) for _ in range(3)]
    sources = live(*({"w": each} for each in found))
    expected = np.average([each.double().numpy() for each in found], axis=0, weights=[1, 2, 5])
    assert np.array_equal(
        merged("linear", sources, weights=[1, 2, 5])["w"].numpy(), expected.astype(np.float32)
    )
    plain = np.mean([each.double().numpy() for each in found], axis=0).astype(np.float32)
    for name in ("linear", "swa"):
        assert np.array_equal(merged(name, sources)["w"].numpy(), plain)


@given(
    st.lists(st.tuples(finite, st.floats(0, 1e6)), min_size=2, max_size=5).filter(
        lambda pairs: sum(weight for _, weight in pairs) > 0
    ),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_mean_lies_within_what_it_is_of(
    pairs: list[tuple[float, float]], dtype: torch.dtype
) -> None:
    sources = live(*({"w": torch.tensor([value], dtype=dtype)} for value, _ in pairs))
    found = merged("linear", sources, weights=[weight for _, weight in pairs])["w"].item()
    assert min(value for value, _ in pairs) <= found <= max(value for value, _ in pairs)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.floats(0.001, 1e3), min_size=2, max_size=6),
)
def test_equal_weights_stay_equal_by_any_mean(value: float, weights: list[float]) -> None:
    values = [torch.tensor([value], dtype=torch.float64)] * len(weights)
    shares = [weight / sum(weights) for weight in weights]
    assert torch.equal(merging.weighted_mean(values, shares), values[0])


@given(st.lists(st.floats(0, 1e12), min_size=2, max_size=8).filter(lambda found: sum(found) > 0))
def test_the_weights_of_the_sources_sum_to_one(weights: list[float]) -> None:
    sources = live(*({"w": torch.ones(1)} for _ in weights))
    job = merging.Job("Merging", sources, Options(weights=weights), None, lambda *_: None)
    assert sum(job.weights) == pytest.approx(1.0)
    assert all(weight >= 0 for weight in job.weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [0.0, 0.0], [1.0, NAN], [1.0, INF]])
def test_other_weights_are_refused(weights: list[float]) -> None:
    sources = live({"w": torch.ones(1)}, {"w": torch.ones(1)})
    refusal("linear", sources, field="weights", weights=weights)


def test_one_source_is_none_to_merge() -> None:
    assert "1 sources" in refusal("linear", live({"w": torch.ones(1)}), field="paths")


def test_what_a_strategy_does_not_need_is_not_looked_at() -> None:
    sources = live({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    base = live({"other": torch.full((1,), NAN)})[0]
    assert torch.equal(merged("linear", sources, base=base)["w"], torch.tensor([0.5]))


# Soup.


def distance(target: torch.Tensor) -> Any:
    def evaluate(tensors: Iterator[Named]) -> float:
        return float((dict(tensors)["w"] - target).norm())

    return evaluate


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_a_soup_is_what_trying_by_hand_finds(seed: int, number: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(3, generator=generator)
    found = [target + torch.randn(3, generator=generator) for _ in range(number)]
    score = distance(target)

    def mean(members: list[int]) -> torch.Tensor:
        return torch.stack([found[i].double() for i in members]).mean(0).float()

    order = sorted(range(number), key=lambda i: score(iter([("w", found[i])])))
    members = order[:1]
    for place in order[1:]:
        tried = [*members, place]
        if score(iter([("w", mean(tried))])) <= score(iter([("w", mean(members))])):
            members = tried
    sources = live(*({"w": each} for each in found))
    got = merged("soup", sources, score)["w"]
    assert torch.allclose(got, mean(members), rtol=0, atol=1e-6)


def test_a_soup_of_two_that_err_to_either_side_takes_both_and_leaves_the_third() -> None:
    target = torch.zeros(2)
    sources = live(*({"w": torch.tensor(each)} for each in ([1.0, 0.0], [-1.0, 0.5], [9.0, 9.0])))
    run = merge.run("soup", sources, None, distance(target))
    assert torch.equal(dict(run.tensors())["w"], torch.tensor([0.0, 0.25]))
    assert run.told == ("soup took 2 of 3, together 0.25: s0 (1), s1 (1.118)",)


def test_a_soup_takes_in_what_makes_it_no_worse() -> None:
    sources = live({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    assert torch.equal(merged("soup", sources, lambda _: 1.0)["w"], torch.tensor([0.5]))


def test_a_soup_scores_each_source_as_it_is_with_its_own_statistics() -> None:
    sources = live(*(trained(seed).state_dict() for seed in (1, 2, 3)))
    seen: list[Tensors] = []

    def evaluate(tensors: Iterator[Named]) -> float:
        seen.append(dict(tensors))
        return float(len(seen) % 2)  # 1 0 1, then 0 1: the middle one, and who comes first

    run = merge.run("soup", sources, None, evaluate)
    for tensors, source in zip(seen, sources, strict=False):
        assert all(
            torch.equal(tensors[name], source.read(name))
            for name in tensors
            if not name.endswith("num_batches_tracked")
        )
    final = dict(run.tensors())
    pair = [sources[1].read("1.running_var"), sources[0].read("1.running_var")]
    assert torch.allclose(final["1.running_var"], sum(pair) / 2)


def test_a_soup_needs_somebody_who_scores_finds_its_own_weights_and_needs_a_number() -> None:
    sources = live({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    assert "nothing to score" in refusal("soup", sources, field="strategy")
    refusal("soup", sources, field="weights", weights=[1, 1], evaluate=lambda _: 1.0)
    assert "finite" in refusal("soup", sources, field="paths", evaluate=lambda _: NAN)
    scores = iter([NAN, 2.0, 3.0])
    taken = merged("soup", sources, lambda _: next(scores))
    assert torch.equal(taken["w"], torch.ones(1))


def test_what_scoring_raises_passes() -> None:
    sources = live({"w": torch.zeros(1)}, {"w": torch.ones(1)})

    def cancelled(_: object) -> float:
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, "cancelled")

    with pytest.raises(CommandError, match="cancelled"):
        merge.run("soup", sources, None, cancelled)


# What is no weight.


def test_statistics_are_averaged_counters_are_the_first_ones_and_both_are_told() -> None:
    one, other = trained(1), trained(2)
    sources = live(one.state_dict(), other.state_dict())
    names = parameter_names({"": one})
    found = merged("ties", sources, base=live(net(0).state_dict())[0], scale=7.0, parameters=names)
    for name in ("1.running_mean", "1.running_var"):
        a, b = (source.read(name).double() for source in sources)
        assert torch.equal(found[name], ((a + b) / 2).float())
    assert found["1.num_batches_tracked"].item() == 2
    said = told("linear", sources, parameters=names)
    assert "running statistics of 1 BatchNorm layers are averaged" in said
    assert "counters are those of s0: 1.num_batches_tracked" in said


def test_a_statistic_is_known_by_its_name_where_the_parameters_are_not() -> None:
    sources = live(
        *({"bn.running_var": torch.full((1,), v), "w": torch.zeros(1)} for v in (1.0, 3.0))
    )
    base = live({"bn.running_var": torch.full((1,), 9.0), "w": torch.zeros(1)})[0]
    found = merged("ties", sources, base=base, scale=0.5)
    assert torch.equal(found["bn.running_var"], torch.tensor([2.0]))


def test_other_floating_buffers_are_averaged_whatever_the_strategy() -> None:
    sources = live(*({"shadow": torch.full((2,), v), "w": torch.zeros(1)} for v in (1.0, 3.0)))
    base = live({"shadow": torch.full((2,), 9.0), "w": torch.zeros(1)})[0]
    found = merged("ties", sources, base=base, parameters=["w"])
    assert torch.equal(found["shadow"], torch.full((2,), 2.0))
    assert "buffers are averaged: shadow" in told("linear", sources, parameters=["w"])


@pytest.mark.parametrize(
    ("values", "is_parameter"),
    [
        ((torch.tensor([1, 2]), torch.tensor([1, 3])), False),
        ((torch.tensor(1), torch.tensor(2)), True),
        ((torch.tensor(True), torch.tensor(False)), False),
    ],
)
def test_other_whole_numbers_must_be_the_same(
    values: tuple[torch.Tensor, torch.Tensor], is_parameter: bool
) -> None:
    sources = live(*({"x": value, "w": torch.ones(1)} for value in values))
    names = ["w", "x"] if is_parameter else ["w"]
    detail = refusal("linear", sources, field="paths", parameters=names)
    assert "x is not the same in all sources" in detail
    same = live(*({"x": values[0], "w": torch.ones(1)} for _ in range(2)))
    assert torch.equal(merged("linear", same, parameters=names)["x"], values[0])


def test_a_whole_number_that_is_a_buffer_counts() -> None:
    sources = live(*({"steps": torch.tensor(value), "w": torch.ones(1)} for value in (3, 5)))
    assert merged("linear", sources, parameters=["w"])["steps"].item() == 3
    refusal("linear", sources, field="paths")


def test_shared_tensors_stay_one() -> None:
    found: list[Tensors] = []
    for value in (1.0, 3.0):
        shared = torch.full((4,), value)
        found.append({"embedding": shared, "between": torch.zeros(1), "head": shared})
    streamed = list(merge.run("linear", live(*found)).tensors())
    assert [name for name, _ in streamed] == ["embedding", "head", "between"]
    assert streamed[0][1] is streamed[1][1]
    assert torch.equal(streamed[0][1], torch.full((4,), 2.0))


def test_what_is_shared_in_one_and_differs_in_another_is_refused() -> None:
    shared = torch.ones(4)
    one = {"embedding": shared, "head": shared}
    two = {"embedding": torch.ones(4), "head": torch.tensor([1.0, 1, 1, 2])}
    detail = refusal("linear", live(one, two), field="paths")
    assert "embedding and head are one tensor in s0, and two different ones in s1" in detail
    two["head"] = torch.ones(4)
    assert torch.equal(merged("linear", live(one, two))["head"], shared)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_the_type_is_that_of_the_first_and_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    found = [torch.randn(7, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(3)]
    one, *rest = (each.to(dtype) for each in found)
    sources = live({"w": one}, *({"w": each} for each in rest))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = sum(w * t.to(wide) for w, t in zip((0.5, 0.25, 0.25), (one, *rest), strict=True))
    got = merged("linear", sources, weights=[2, 1, 1])["w"]
    assert got.dtype == dtype
    assert torch.equal(got, torch.as_tensor(expected).to(dtype))


def test_sources_may_have_their_weights_in_other_types() -> None:
    sources = live({"w": torch.ones(3).bfloat16()}, {"w": torch.full((3,), 2.0)})
    assert torch.equal(merged("linear", sources)["w"], torch.full((3,), 1.5).bfloat16())
    assert merged("linear", sources[::-1])["w"].dtype == torch.float32


# What is refused before anything is touched.


def test_another_architecture_is_refused_with_names_and_shapes() -> None:
    one = net(0).state_dict()
    two = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).state_dict()
    detail = refusal("linear", live(one, one, two), field="paths")
    assert "s2 is of another model than s0" in detail
    assert "0.weight [6, 4] (s0 [5, 4])" in detail
    assert "and 2 more" in detail


def test_missing_and_further_names_and_other_kinds_are_refused() -> None:
    plain = {"a": torch.ones(1), "b": torch.ones(2)}
    detail = refusal("linear", live(plain, {"a": torch.ones(1), "c": torch.ones(2)}), field="paths")
    assert "b none (s0 [2]), c [2] (s0 none)" in detail
    whole = {"a": torch.ones(1), "b": torch.ones(2, dtype=torch.int64)}
    assert "b int64[2] (s0 [2])" in refusal("linear", live(plain, whole), field="paths")


def test_a_base_of_another_model_is_refused() -> None:
    sources = live({"w": torch.ones(1)}, {"w": torch.zeros(1)})
    base = live({"w": torch.ones(2)})[0]
    refusal("ties", sources, field="paths", base=base)


@pytest.mark.parametrize(
    ("value", "why"), [(NAN, "holds NaN"), (INF, "holds infinity"), (-INF, "holds infinity")]
)
@pytest.mark.parametrize("strategy", ["linear", "fisher", "ties", "soup"])
def test_weights_that_are_not_finite_are_refused_by_source_and_name(
    strategy: str, value: float, why: str
) -> None:
    good = {"a": torch.zeros(7), "b": torch.zeros(7), "c": torch.zeros(7)}
    bad = {**good, "b": torch.tensor([0.0] * 6 + [value]), "c": torch.full((7,), NAN)}
    sources = live(good, bad)
    detail = refusal(strategy, sources, field="paths", **options_for(strategy, sources))
    assert f"b of s1 {why}" in detail


def test_a_mask_of_infinities_that_all_have_is_no_fault_and_stays() -> None:
    mask = torch.full((3, 3), -INF).triu(1)
    sources = live(*({"mask": mask.clone(), "w": torch.randn(2)} for _ in range(2)))
    assert torch.equal(merged("linear", sources)["mask"], mask)
    nothing = live(*({"mask": torch.full((2,), NAN)} for _ in range(2)))
    refusal("linear", nothing, field="paths")


def test_a_result_that_its_type_cannot_hold_is_refused_by_name() -> None:
    found = ({"w": torch.full((2,), v).half()} for v in (30_000.0, 60_000.0))
    base = live({"w": torch.zeros(2).half()})[0]
    run = merge.run("ties", live(*found), Options(base=base, scale=2.0, density=1.0))
    with pytest.raises(CommandError, match=r"the merged w is not finite as torch\.float16"):
        list(run.tensors())


# From the disk.


def test_checkpoints_are_merged_as_their_weights_in_memory_are(tmp_path: Path) -> None:
    weights = [trained(seed).state_dict() for seed in (1, 2)]
    paths = [on_disk(tmp_path / f"{place}.ckpt", each) for place, each in enumerate(weights)]
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(open_weights(path)) for path in paths]
        run = merge.run("linear", sources)
        first, again = dict(run.tensors()), dict(run.tensors())
    expected = merged("linear", live(*weights))
    assert run.names == tuple(first) == tuple(expected)
    for name, tensor in expected.items():
        assert torch.equal(first[name], tensor)
        assert torch.equal(again[name], tensor)


def test_a_file_that_fails_in_the_middle_is_refused_by_its_name(tmp_path: Path) -> None:
    paths = [on_disk(tmp_path / f"{place}.ckpt", net(place).state_dict()) for place in (1, 2)]
    with open_weights(paths[0]) as one, open_weights(paths[1], field="paths") as other:
        streaming = merge.run("linear", [one, other]).tensors()
        next(streaming)
        paths[1].write_bytes(b"")
        with pytest.raises(CommandError, match=r"2\.ckpt' was asked; it has been changed"):
            list(streaming)


def test_what_is_no_tensor_is_left_and_named(tmp_path: Path) -> None:
    weights = {"w": torch.ones(1), "_extra_state": {"a": 1}}
    path = on_disk(tmp_path / "a.ckpt", weights)
    with open_weights(path) as one, open_weights(path) as other:
        run = merge.run("linear", [one, other])
    assert run.names == ("w",)
    assert run.told == ("no tensors, and left as they are: _extra_state",)


def test_each_pass_over_the_sources_is_told_and_can_be_cancelled() -> None:
    sources = live(
        {"a": torch.randn(5), "b": torch.randn(5)}, {"a": torch.zeros(5), "b": torch.ones(5)}
    )
    base = live({"a": torch.zeros(5), "b": torch.zeros(5)})[0]
    seen: list[tuple[int, int]] = []
    merge.run("ties", sources, Options(base=base), None, lambda *found: seen.append(found))
    assert seen == [(1, 2), (2, 2)] * 5  # checked, then twice each of the two sources

    def cancel(done: int, in_all: int) -> None:
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, "cancelled")

    with pytest.raises(CommandError, match="cancelled"):
        merge.run("linear", sources, None, None, cancel)


def test_the_blocks_cover_all_there_is() -> None:
    for number in range(8):
        found = list(merging.pieces(number))
        assert list(itertools.chain(*(range(*each) for each in found))) == list(range(number))
