"""TIES against vectors that were worked out by hand, and against the paper's algorithm on all of a
model at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from otf_core.runs import merging
from tests.runs.merges import live, merged, refusal, told


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK", 3)


def by_the_paper(
    base: torch.Tensor, models: list[torch.Tensor], density: float, scale: float
) -> torch.Tensor:
    """Algorithm 1 on flat vectors; what ties with the last that is kept is kept as well."""
    taus = torch.stack([model.double() - base.double() for model in models])
    kept = max(1, int(density * base.numel()))
    for tau in taus:
        least = tau.abs().float().sort(descending=True).values[kept - 1]
        tau[tau.abs().float() < least] = 0.0
    gamma = taus.sum(0).sign()
    agree = (taus.sign() == gamma) & (gamma != 0)
    mean = torch.where(agree, taus, 0.0).sum(0) / agree.sum(0).clamp(min=1)
    return (base.double() + scale * mean).to(base.dtype)


def test_a_vector_worked_out_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    one = torch.tensor([5.0, 0.0, 1.5, 1.0, 3.0])  # changed by  4 -1  .5  0  2
    two = torch.tensor([3.0, 4.0, 1.0, 0.5, -3.0])  # changed by  2  3   0 -.5 -4
    # Trimmed to three of five:  4 -1 0 0 2  and  2 3 0 0 -4
    # Elected:                   +  +  . .  -
    # Mean of those that agree:  3  3  0 0 -4
    expected = torch.tensor([4.0, 4.0, 1.0, 1.0, -3.0])
    sources, begun = live({"w": one}, {"w": two}), live({"w": base})[0]
    assert torch.equal(merged("ties", sources, base=begun, density=0.6)["w"], expected)
    halved = merged("ties", sources, base=begun, density=0.6, scale=0.5)["w"]
    assert torch.equal(halved, torch.tensor([2.5, 2.5, 1.0, 1.0, -1.0]))


def test_where_the_changes_cancel_out_nothing_is_changed() -> None:
    sources = live({"w": torch.tensor([2.0, 5.0])}, {"w": torch.tensor([-2.0, 5.0])})
    base = live({"w": torch.zeros(2)})[0]
    found = merged("ties", sources, base=base, density=1.0)["w"]
    assert torch.equal(found, torch.tensor([0.0, 5.0]))


def test_weights_count_in_the_vote_and_in_the_mean() -> None:
    sources = live(*({"w": torch.tensor([value])} for value in (1.0, -2.0, 4.0)))
    base = live({"w": torch.zeros(1)})[0]
    found = merged("ties", sources, base=base, density=1.0, weights=[1, 9, 1])["w"]
    assert torch.equal(found, torch.tensor([-2.0]))
    found = merged("ties", sources, base=base, density=1.0, weights=[3, 1, 1])["w"]
    assert torch.allclose(found, torch.tensor([(3 * 1.0 + 4.0) / 4]))


def test_the_share_that_is_kept_is_one_of_the_whole_model() -> None:
    """The small tensor loses all its changes to the large ones elsewhere."""
    base = live({"a": torch.zeros(4), "b": torch.zeros(4)})[0]
    sources = live(
        {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([10.0, 20, 30, 40])},
        {"a": torch.tensor([10.0, 20, 30, 40]), "b": torch.tensor([1.0, 2, 3, 4])},
    )
    found = merged("ties", sources, base=base, density=0.5)
    assert torch.equal(found["a"], torch.tensor([10.0, 20, 30, 40]))
    assert torch.equal(found["b"], torch.tensor([10.0, 20, 30, 40]))


values = st.lists(
    st.one_of(st.floats(-4, 4, width=16), st.floats(-1e6, 1e6, width=32), st.just(0.0)),
    min_size=7,
    max_size=7,
)


@given(values, st.lists(values, min_size=2, max_size=4), st.floats(0.01, 1.0), st.floats(0.1, 2))
def test_in_pieces_it_is_what_it_is_on_the_whole(
    base: list[float], models: list[list[float]], density: float, scale: float
) -> None:
    begun, found = torch.tensor(base), [torch.tensor(model) for model in models]
    expected = by_the_paper(begun, found, density, scale)
    cut = [{"a": t[:4], "b": t[4:].reshape(3, 1)} for t in (begun, *found)]
    assume(not any(all(torch.equal(t[n], cut[0][n]) for t in cut) for n in ("a", "b")))
    got = merged("ties", live(*cut[1:]), base=live(cut[0])[0], density=density, scale=scale)
    assert torch.equal(torch.cat([got["a"], got["b"].reshape(-1)]), expected)


def test_what_nobody_has_changed_takes_no_part_in_the_ranking() -> None:
    frozen = torch.ones(96)
    base = live({"frozen": frozen, "w": torch.zeros(4)})[0]
    sources = live(
        *({"frozen": frozen, "w": torch.tensor(w)} for w in ([4.0, 3, 2, 1], [0.0, 0, 0, 9]))
    )
    found = merged("ties", sources, base=base, density=0.5)
    assert torch.equal(found["w"], torch.tensor([4.0, 3, 0, 9]))
    assert torch.equal(found["frozen"], frozen)


def test_of_many_the_last_that_is_kept_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK", 300)
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(2000, generator=generator)
    models = [base + torch.randn(2000, generator=generator).pow(5) for _ in range(3)]
    sources, begun = live(*({"w": model} for model in models)), live({"w": base})[0]
    for density in (0.001, 0.2, 0.5, 0.999):
        got = merged("ties", sources, base=begun, density=density)["w"]
        assert torch.equal(got, by_the_paper(base, models, density, 1.0))


def test_one_density_keeps_all_and_two_that_agree_are_averaged() -> None:
    base = live({"w": torch.zeros(3)})[0]
    sources = live({"w": torch.tensor([1.0, 2, 3])}, {"w": torch.tensor([3.0, 4, 5])})
    found = merged("ties", sources, base=base, density=1.0)["w"]
    assert torch.equal(found, torch.tensor([2.0, 3, 4]))
    assert "largest 20% of each source's change since s0" in told("ties", sources, base=base)


def test_what_it_cannot_work_with_is_refused() -> None:
    sources = live({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    assert "have begun from was not given" in refusal("ties", sources, field="base")
    base = live({"w": torch.zeros(3)})[0]
    for density in (0.0, -0.1, 1.1, float("nan")):
        refusal("ties", sources, field="density", base=base, density=density)
    for scale in (0.0, float("nan"), float("inf")):
        refusal("ties", sources, field="scale", base=base, scale=scale)
    worse = live({"w": torch.full((3,), float("nan"))})[0]
    refusal("ties", sources, field="paths", base=worse)
