"""Adapters are found by their names, their products are what is averaged, and the rest stays."""

from __future__ import annotations

import pytest
import torch

from otf_core.errors import ErrorCode
from otf_core.runs import merging
from otf_core.runs.adapters import is_adapter
from tests.runs.merges import Tensors, live, merged, refusal, told

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"
BASE: Tensors = {"layer.weight": torch.randn(6, 5), "steps": torch.tensor([1, 2])}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK", 3)


def pair(seed: int, rank: int = 2, out: int = 6, inside: int = 5) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        **BASE,
        A: torch.randn(rank, inside, generator=generator),
        B: torch.randn(out, rank, generator=generator),
    }


def product(tensors: Tensors) -> torch.Tensor:
    return tensors[B].double() @ tensors[A].double()


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.h.0.attn.c_attn.lora_A.default.weight",
        "base_model.model.h.0.lora_embedding_B.default",
        "base_model.model.h.0.lora_magnitude_vector.default.weight",
        "layers.3.mlp.ia3_l.default",
        "encoder.layer.0.output.adapters.task.adapter_down.0.weight",
        "prompt_encoder.default.embedding.weight",
        "prefix_tuning.wte.weight",
        "classifier.modules_to_save.default.weight",
        "lora_B",
        "unet.to_q.lora.down.weight",
        "q_proj.hada_w1_a.default",
    ],
)
def test_what_libraries_call_their_adapters_is_recognised(name: str) -> None:
    assert is_adapter(name)


@pytest.mark.parametrize(
    "name", ["layer.weight", "explora.weight", "floral_A", "head.bias", "aprompt.x", "conv1.weight"]
)
def test_other_names_are_not(name: str) -> None:
    assert not is_adapter(name)


def test_where_nothing_is_recognised_it_is_refused_with_what_would_be() -> None:
    sources = live(BASE, BASE)
    detail = refusal("adapter", sources, field="strategy", code=ErrorCode.UNSUPPORTED)
    assert (
        "no tensor is recognised as an adapter by its name; recognised: lora*, adapter*" in detail
    )


def test_what_is_no_adapter_must_be_the_same_and_stays() -> None:
    sources = live(pair(1), pair(2))
    found = merged("adapter", sources)
    assert all(torch.equal(found[name], value) for name, value in BASE.items())
    moved = {**pair(2), "layer.weight": BASE["layer.weight"] + 1}
    assert "layer.weight is not the same in all sources, and this strategy leaves it" in refusal(
        "adapter", live(pair(1), moved), field="paths"
    )
    running = [{**pair(i), "bn.running_mean": torch.full((1,), float(i))} for i in (1, 2)]
    assert "bn.running_mean" in refusal("adapter", live(*running), field="paths")


def test_the_product_is_the_best_of_its_rank_for_the_mean_of_the_products() -> None:
    found = [pair(seed) for seed in (1, 2, 3)]
    weights = (0.5, 0.25, 0.25)
    mean = sum(w * product(each) for w, each in zip(weights, found, strict=True))
    left, values, right = torch.linalg.svd(torch.as_tensor(mean), full_matrices=False)
    best = left[:, :2] * values[:2] @ right[:2]
    got = merged("adapter", live(*found), weights=[2, 1, 1])
    assert torch.allclose(product(got), best, atol=1e-5)
    kept = float(values[:2].square().sum() / values.square().sum())
    said = told("adapter", live(*found), weights=[2, 1, 1])
    assert f"brought back to its rank; kept is {kept:.1%} of its square norm" in said

    apart = {name: torch.stack([each[name] for each in found]).mean(0) for name in (A, B)}
    assert (product(apart) - mean).norm() > 1.2 * (best - mean).norm()


def test_the_same_product_in_other_factors_stays_that_product() -> None:
    one = pair(1)
    turn = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])
    other = {**one, A: torch.linalg.inv(turn) @ one[A], B: one[B] @ turn}
    got = merged("adapter", live(one, other))
    assert torch.allclose(product(got), product(one), atol=1e-5)
    assert got[A].shape == one[A].shape
    assert "kept is 100.0%" in told("adapter", live(one, other))


def test_where_one_factor_is_the_same_the_mean_of_the_other_is_exact() -> None:
    one, other = pair(1), {**pair(2), A: pair(1)[A]}
    got = merged("adapter", live(one, other))
    assert torch.equal(got[A], one[A])
    assert torch.equal(got[B], ((one[B].double() + other[B].double()) / 2).float())


def test_equal_adapters_stay_bit_for_bit() -> None:
    got = merged("adapter", live(pair(1), pair(1)))
    assert all(torch.equal(got[name], value) for name, value in pair(1).items())


@pytest.mark.parametrize(
    ("first", "second", "shapes"),
    [
        ("lora_A", "lora_B", ((2, 5), (6, 2))),
        ("x.lora_embedding_A.default", "x.lora_embedding_B.default", ((2, 9), (4, 2))),
        ("x.lora_A.default.weight", "x.lora_B.default.weight", ((2, 3, 3, 3), (8, 2, 1, 1))),
        ("x.lora_down.weight", "x.lora_up.weight", ((2, 5), (6, 2))),
        ("x.to_q.lora.down.weight", "x.to_q.lora.up.weight", ((2, 5), (6, 2))),
        ("x.lora_A.default.weight", "x.lora_B.default.weight", ((5, 4), (3, 5))),
    ],
)
def test_pairs_of_other_libraries_and_of_convolutions_are_pairs(
    first: str, second: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    found = [{first: torch.randn(shapes[0]), second: torch.randn(shapes[1])} for _ in range(2)]

    def flat(t: Tensors) -> torch.Tensor:
        return t[second].double().flatten(1) @ t[first].double().flatten(1)

    mean = (flat(found[0]) + flat(found[1])) / 2
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    rank = shapes[0][0]
    best = left[:, :rank] * values[:rank] @ right[:rank]
    for order in ((first, second), (second, first)):
        got = merged("adapter", live(*({name: each[name] for name in order} for each in found)))
        assert list(got) == list(order)
        assert [got[name].shape for name in (first, second)] == list(map(torch.Size, shapes))
        assert torch.allclose(flat(got), best, atol=1e-5)


def test_layers_that_loralib_merges_in_one_are_merged_each_by_itself() -> None:
    found = [{"q.lora_A": torch.randn(4, 5), "q.lora_B": torch.randn(6, 2)} for _ in range(2)]
    got = merged("adapter", live(*found))
    for rows, outs in ((slice(0, 2), slice(0, 3)), (slice(2, 4), slice(3, 6))):
        part = [{A: t["q.lora_A"][rows], B: t["q.lora_B"][outs]} for t in (*found, got)]
        alone = merged("adapter", live(*part[:2]))
        assert torch.allclose(product(part[2]), product(alone), atol=1e-5)


def test_what_fits_no_product_and_other_products_are_refused() -> None:
    odd = [{"q.lora_A": torch.randn(3, 5), "q.lora_B": torch.randn(6, 2)} for _ in range(2)]
    detail = refusal("adapter", live(*odd), field="strategy", code=ErrorCode.UNSUPPORTED)
    assert "q.lora_A [3, 5] and q.lora_B [6, 2] are no low-rank pair" in detail
    loha = [{"q.hada_w1_a": torch.randn(3, 5)} for _ in range(2)]
    detail = refusal("adapter", live(*loha), field="strategy", code=ErrorCode.UNSUPPORTED)
    assert "q.hada_w1_a are factors of a product" in detail
    assert torch.equal(
        merged("adapter", live(loha[0], loha[0]))["q.hada_w1_a"], loha[0]["q.hada_w1_a"]
    )


def test_biases_prompts_and_the_like_are_averaged_each_by_itself() -> None:
    names = ("x.lora_B.default.bias", "prompt_encoder.default.embedding.weight", "y.ia3_l.default")
    found = [{name: torch.randn(3) for name in names} for _ in range(2)]
    got = merged("adapter", live(*found))
    for name in names:
        mean = (found[0][name].double() + found[1][name].double()) / 2
        assert torch.equal(got[name], mean.float())
    assert told("adapter", live(*found)) == (
        "adapter merges 3 tensors; the rest is equal in all and stays"
    )


def test_a_pair_of_zeros_stays_one() -> None:
    found = [{A: torch.randn(2, 5), B: torch.zeros(6, 2)} for _ in range(2)]
    found[1][B][0, 0] = 0.0
    got = merged("adapter", live(*found))
    assert not product(got).any()
