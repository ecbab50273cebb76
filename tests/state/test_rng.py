"""What draws inside leaves the generators as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from otf_core.state.rng import generator_state, get_rng, parked_rng, set_generator_state, set_rng


def draw() -> tuple[Any, ...]:
    return (
        torch.rand(3).tolist(),
        np.random.rand(3).tolist(),  # noqa: NPY002, RUF100 -- the global state is what is tested
        np.random.randn(),  # leaves half a pair behind
        [random.random() for _ in range(3)],
        random.gauss(0, 1),  # so does this
    )


def test_what_was_put_back_draws_the_same() -> None:
    draw()
    state = get_rng()
    first = draw()

    set_rng(state)
    assert draw() == first
    set_rng(state)
    assert draw() == first


def test_the_state_is_loaded_without_trusting_it(tmp_path: Any) -> None:
    state = get_rng()
    torch.save(state, tmp_path / "rng")
    assert torch.load(tmp_path / "rng", weights_only=True) == state


def test_a_parked_block_leaves_no_trace_also_when_it_raises() -> None:
    state = get_rng()
    expected = draw()
    set_rng(state)

    with parked_rng():
        draw()
        torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), parked_rng():
        _ = draw()[0][0] / 0

    assert draw() == expected


def test_the_states_of_devices_are_put_back_each_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3], dtype=torch.uint8)]
    put: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, d: put.append((d, s.tolist())))

    set_rng(get_rng())

    assert put == [(0, [1, 2]), (1, [3])]


@pytest.mark.parametrize(
    ("generator", "draws"),
    [
        (torch.Generator().manual_seed(1), lambda g: torch.rand(2, generator=g).tolist()),
        (random.Random(1), lambda g: [g.random(), g.gauss(0, 1)]),
        (np.random.RandomState(1), lambda g: g.randn(3).tolist()),
        (np.random.default_rng(1), lambda g: g.normal(size=3).tolist()),
    ],
    ids=["torch", "random", "RandomState", "Generator"],
)
def test_a_generator_object_comes_back(generator: Any, draws: Any) -> None:
    draws(generator)
    state = generator_state(generator)
    first = draws(generator)

    set_generator_state(generator, state)
    assert draws(generator) == first
