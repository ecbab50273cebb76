"""Norms of weights and gradients."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from otf_core.telemetry.norms import combine_norms, grad_norm, weight_norm


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def value(norm: Tensor | None) -> float:
    assert norm is not None
    assert norm.shape == ()
    assert not norm.requires_grad
    assert norm.grad_fn is None
    return float(norm.item())


def test_the_norm_is_that_of_all_parameters_as_one_vector() -> None:
    params = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([[2.0], [4.0]]))]
    assert value(weight_norm(params)) == 5.0


def test_the_norm_of_one_parameter_is_no_view_of_it() -> None:
    param = nn.Parameter(torch.tensor(3.0))
    norm = weight_norm([param])
    with torch.no_grad():
        param.fill_(7.0)
    assert value(norm) == 3.0


def test_a_parameter_that_two_optimizers_share_counts_once() -> None:
    param = nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([6.0, 8.0])
    assert value(weight_norm([param, param])) == 5.0
    assert value(grad_norm([param, param])) == 10.0


def test_nothing_with_a_value_has_no_norm() -> None:
    lazy = nn.LazyLinear(3)
    meta = nn.Parameter(torch.empty(3, device="meta"))
    whole = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
    assert weight_norm([]) is None
    assert grad_norm([nn.Parameter(torch.ones(2))]) is None
    assert weight_norm([*lazy.parameters(), meta, whole]) is None


def test_lazy_meta_and_integer_parameters_stand_beside_the_others_without_counting() -> None:
    params = [
        nn.Parameter(torch.tensor([3.0])),
        nn.Parameter(torch.empty(3, device="meta")),
        nn.Parameter(torch.full((2,), 9), requires_grad=False),
        *nn.LazyLinear(3).parameters(),
        nn.Parameter(torch.empty(0)),
        nn.Parameter(torch.tensor([4.0], dtype=torch.float64)),
    ]
    norm = weight_norm(params)
    assert value(norm) == 5.0
    assert norm is not None
    assert norm.dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_wider(dtype: torch.dtype) -> None:
    # 70,000 in all is beyond float16, and 4096 ones need more than the 8 bits of bfloat16.
    params = [nn.Parameter(torch.full((4900,), 1000.0, dtype=dtype))]
    assert value(weight_norm(params)) == 70_000.0


def test_complex_parameters_count_by_their_length() -> None:
    assert value(weight_norm([nn.Parameter(torch.tensor([3.0 + 4.0j]))])) == 5.0


def test_float8_is_widened() -> None:
    small = nn.Parameter(torch.tensor([3.0, 4.0]).to(torch.float8_e4m3fn), requires_grad=False)
    assert value(weight_norm([small])) == 5.0


def test_rows_of_a_sparse_gradient_that_repeat_are_summed_first_and_the_gradient_stays() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    grad = table.weight.grad
    assert grad is not None
    assert not grad.is_coalesced()
    assert value(grad_norm([table.weight])) == pytest.approx(math.sqrt(2 * 4 + 2), rel=1e-6)
    assert not grad.is_coalesced()


def test_a_norm_that_is_not_finite_is_told_as_it_is() -> None:
    assert math.isnan(value(weight_norm([nn.Parameter(torch.tensor([1.0, math.nan]))])))


def test_parts_combine_as_the_root_of_the_sum_of_squares() -> None:
    parts = [torch.tensor(3.0), None, torch.tensor(4.0, dtype=torch.float64)]
    assert value(combine_norms(parts)) == 5.0
    assert combine_norms([None]) is None
    assert combine_norms([]) is None


def test_no_memory_for_the_norm_gives_none_and_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "_foreach_norm", full)
    assert weight_norm([nn.Parameter(torch.ones(2))]) is None


def test_no_random_number_is_drawn_and_the_grad_mode_stays() -> None:
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    before = torch.get_rng_state()
    weight_norm(model.parameters())
    grad_norm(model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_the_default_dtype_of_the_user_does_not_matter() -> None:
    torch.set_default_dtype(torch.float16)
    try:
        norm = weight_norm([nn.Parameter(torch.tensor([70_000.0], dtype=torch.float32))])
    finally:
        torch.set_default_dtype(torch.float32)
    assert value(norm) == 70_000.0


@given(st.lists(st.lists(st.integers(-50, 50), max_size=5), min_size=1, max_size=5))
def test_any_split_into_tensors_has_the_norm_of_the_whole(rows: list[list[int]]) -> None:
    params = [nn.Parameter(torch.tensor(row, dtype=torch.float64)) for row in rows]
    exact = math.sqrt(sum(x * x for row in rows for x in row))
    assert value(weight_norm(params)) == pytest.approx(exact, rel=1e-12)


def test_compressed_sparse_gradients_count_as_they_are() -> None:
    param = nn.Parameter(torch.eye(2))
    assert value(norms_of(param, (torch.eye(2) * 3).to_sparse().coalesce())) == pytest.approx(
        math.sqrt(18)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that CSR is in beta
        compressed = torch.tensor([[0.0, 3.0], [4.0, 0.0]]).to_sparse_csr()
    assert value(weight_norm([compressed])) == 5.0


def norms_of(param: nn.Parameter, grad: Tensor) -> Tensor | None:
    param.grad = grad
    return grad_norm([param])


def test_where_summing_repeated_rows_would_wait_for_a_device_there_is_no_norm() -> None:
    where, what = torch.tensor([[0, 0]]), torch.tensor([3.0, 4.0])

    class OnDevice(nn.Parameter):
        """A sparse tensor that says it does not lie on the host."""

        @property
        def is_cpu(self) -> bool:  # type: ignore[override]
            return False

    sparse = torch.sparse_coo_tensor(where, what, (2,), check_invariants=True)
    assert value(weight_norm([sparse])) == 7.0
    assert weight_norm([OnDevice(sparse), nn.Parameter(torch.ones(1))]) is None
