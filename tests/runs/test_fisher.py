"""The Fisher information is that of gradients taken by hand, and weights the mean as it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import fisher, merging
from otf_core.runs.fisher import fisher_diagonal, write_fisher
from otf_core.state.weights_file import open_weights
from tests.runs.merges import live, merged, refusal, told

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 2, (12,), generator=torch.Generator().manual_seed(2))
BATCHES = [(X[:5], Y[:5]), (X[5:10], Y[5:10]), (X[10:11], Y[10:11]), (X[11:], Y[11:])]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK", 3)


class TwoLayers(nn.Module):
    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, hidden)
        self.second = nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def loss(module: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(module(batch[0]), batch[1])


def by_hand(module: TwoLayers) -> dict[str, torch.Tensor]:
    """The chain rule written out: d = softmax - onehot, back through tanh; no autograd."""
    w1, b1 = module.first.weight.detach().double(), module.first.bias.detach().double()
    w2, b2 = module.second.weight.detach().double(), module.second.bias.detach().double()
    total = {name: torch.zeros_like(p).double() for name, p in module.named_parameters()}
    for x, y in zip(X.double(), Y, strict=True):
        h = torch.tanh(w1 @ x + b1)
        d2 = torch.softmax(w2 @ h + b2, 0) - functional.one_hot(y, 2)
        d1 = (w2.T @ d2) * (1 - h**2)
        total["second.weight"] += torch.outer(d2, h) ** 2
        total["second.bias"] += d2**2
        total["first.weight"] += torch.outer(d1, x) ** 2
        total["first.bias"] += d1**2
    return {name: value / len(X) for name, value in total.items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value, rtol=1e-4, atol=1e-9), name


def ways_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    taken: list[str] = []
    for way in ("_of_one", "_of_many"):
        original = getattr(fisher._Gradients, way)

        def noted(self: Any, *args: Any, way: str = way, original: Any = original) -> Any:
            taken.append(way)
            return original(self, *args)

        monkeypatch.setattr(fisher._Gradients, way, noted)
    return taken


def test_it_is_the_mean_of_the_squared_gradients_of_single_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = TwoLayers()
    taken = ways_taken(monkeypatch)
    assert_close(fisher_diagonal(module, BATCHES, loss), by_hand(module))
    # Tried and compared, then five at once twice; batches of one need no torch.func.
    assert taken == ["_of_many", "_of_one", "_of_many", "_of_many", "_of_one", "_of_one"]
    assert all(p.grad is None for p in module.parameters())


def test_what_torch_func_cannot_do_is_done_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_item(module: nn.Module, batch: Any) -> torch.Tensor:
        found = loss(module, batch)
        assert found.item() > 0
        return found

    module = TwoLayers()
    taken = ways_taken(monkeypatch)
    assert_close(fisher_diagonal(module, BATCHES, with_item), by_hand(module))
    assert taken == ["_of_many"] + ["_of_one"] * len(X)


def test_where_torch_func_finds_something_else_it_is_done_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = TwoLayers()
    outside = module.second.weight  # not the one that functional_call puts in its place

    def past_the_module(_: nn.Module, batch: Any) -> torch.Tensor:
        hidden = torch.tanh(module.first(batch[0]))
        logits = functional.linear(hidden, outside, module.second.bias)
        return functional.cross_entropy(logits, batch[1])

    taken = ways_taken(monkeypatch)
    assert_close(fisher_diagonal(module, BATCHES, past_the_module), by_hand(module))
    assert taken.count("_of_one") == len(X) + 1


def test_a_large_model_is_cut_into_fewer_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TwoLayers()
    nbytes = sum(p.numel() * 4 for p in module.parameters())
    taken = ways_taken(monkeypatch)
    monkeypatch.setattr(fisher, "GRADIENTS_BYTES", 2 * nbytes)
    assert_close(fisher_diagonal(module, [(X, Y)], loss), by_hand(module))
    assert taken.count("_of_many") == 1 + 6
    taken.clear()
    monkeypatch.setattr(fisher, "GRADIENTS_BYTES", nbytes)
    assert_close(fisher_diagonal(module, [(X, Y)], loss), by_hand(module))
    assert taken == ["_of_one"] * len(X)


def test_how_the_samples_are_batched_does_not_matter() -> None:
    module = TwoLayers()
    one = fisher_diagonal(module, [{"x": (X, Y)}], lambda m, b: loss(m, b["x"]))
    singles = [(X[i : i + 1], Y[i : i + 1]) for i in range(len(X))]
    assert_close(one, {n: v.double() for n, v in fisher_diagonal(module, singles, loss).items()})


def test_what_is_not_of_single_samples_is_given_with_each() -> None:
    scale = torch.tensor([1.0, 0.5, 2.0])  # as long as nothing else
    batch = (X, Y, scale, "text", 3)

    def scaled(module: nn.Module, batch: Any) -> torch.Tensor:
        assert batch[3:] == ("text", 3)
        return functional.cross_entropy(module(batch[0] * batch[2]), batch[1])

    module = TwoLayers()
    expected = fisher_diagonal(module, [(X * scale, Y)], loss)
    found = fisher_diagonal(module, [batch], scaled)
    assert_close(found, {name: value.double() for name, value in expected.items()})


def test_only_what_is_trained_has_any_and_what_is_not_used_has_none() -> None:
    module = TwoLayers()
    module.first.weight.requires_grad_(False)
    module.unused = nn.Parameter(torch.ones(2))
    found = fisher_diagonal(module, BATCHES, loss)
    assert found.keys() == {"first.bias", "second.weight", "second.bias", "unused"}
    assert not found["unused"].any()


def test_of_half_precision_the_squares_are_float32() -> None:
    module = TwoLayers().bfloat16()
    found = fisher_diagonal(module, [(X.bfloat16(), Y)], loss)
    for name, value in by_hand(TwoLayers()).items():
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name].double(), value, rtol=0.2, atol=1e-3)


def test_gradients_and_a_surrounding_no_grad_are_left_alone() -> None:
    module = TwoLayers()
    for p in module.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = {name: p.clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        assert_close(fisher_diagonal(module, BATCHES, loss), by_hand(module))
    assert all(bool((p.grad == 7.0).all()) for p in module.parameters() if p.grad is not None)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_without_a_batch_there_is_none_and_it_can_be_cancelled() -> None:
    with pytest.raises(CommandError, match="there is no batch"):
        fisher_diagonal(TwoLayers(), [], loss)
    seen: list[int] = []

    def cancel(done: int) -> None:
        seen.append(done)
        if done == 2:
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, "cancelled")

    with pytest.raises(CommandError, match="cancelled"):
        fisher_diagonal(TwoLayers(), BATCHES, loss, on_batch=cancel)
    assert seen == [1, 2]


def test_what_the_users_loss_raises_passes() -> None:
    def broken(module: nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fisher_diagonal(TwoLayers(), BATCHES, broken)


# The mean.


def test_the_mean_is_weighted_by_the_information() -> None:
    found = [torch.randn(7) for _ in range(3)]
    information = [torch.rand(7) for _ in range(3)]
    weights = (0.5, 0.25, 0.25)
    top = sum(
        w * f.double() * t.double() for w, f, t in zip(weights, information, found, strict=True)
    )
    bottom = sum(w * f.double() for w, f in zip(weights, information, strict=True))
    got = merged(
        "fisher",
        live(*({"w": t} for t in found)),
        fishers=live(*({"w": f} for f in information)),
        weights=[2, 1, 1],
    )["w"]
    assert torch.allclose(got.double(), top / bottom, rtol=1e-7)


def test_where_the_data_say_nothing_it_is_the_plain_mean() -> None:
    sources = live({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([4.0, 4.0])})
    fishers = live({"w": torch.tensor([0.0, 3.0])}, {"w": torch.tensor([0.0, 0.0])})
    found = merged("fisher", sources, fishers=fishers, weights=[2, 1])["w"]
    assert torch.equal(found, torch.tensor([2.0, 1.0]))


def test_tiny_information_weights_as_large_does() -> None:
    sources = live({"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])})
    fishers = live({"w": torch.tensor([2e-42])}, {"w": torch.tensor([1e-42])})
    assert merged("fisher", sources, fishers=fishers)["w"].item() == pytest.approx(2.0, rel=1e-3)


def test_a_shared_weight_has_the_information_of_the_name_that_torch_gives_it() -> None:
    found = []
    for value in (1.0, 4.0):
        shared = torch.tensor([value])
        found.append({"embedding": shared, "head": shared})
    fishers = live({"head": torch.tensor([3.0])}, {"head": torch.tensor([0.0])})
    got = merged("fisher", live(*found), fishers=fishers)
    assert torch.equal(got["embedding"], torch.tensor([1.0]))


def test_what_has_no_information_is_averaged_and_named() -> None:
    sources = live(*({"w": torch.full((1,), v), "frozen": torch.full((1,), v)} for v in (0.0, 4.0)))
    fishers = live(*({"w": torch.ones(1) * f} for f in (3.0, 1.0)))
    found = merged("fisher", sources, fishers=fishers)
    assert (found["w"].item(), found["frozen"].item()) == (1.0, 2.0)
    assert told("fisher", sources, fishers=fishers).endswith("information is there: frozen")


def test_information_that_does_not_fit_is_refused() -> None:
    sources = live({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    assert "none Fisher information" in refusal("fisher", sources, field="fishers")
    one = live({"w": torch.ones(2)})
    assert "1 Fisher" in refusal("fisher", sources, field="fishers", fishers=one)
    other = live(*({"w": torch.ones(3)} for _ in range(2)))
    assert "another shape" in refusal("fisher", sources, field="fishers", fishers=other)
    for bad in (-1.0, float("nan")):
        wrong = live({"w": torch.ones(2)}, {"w": torch.tensor([1.0, bad])})
        with pytest.raises(CommandError, match="negative or NaN"):
            merged("fisher", sources, fishers=wrong)


def test_it_goes_by_the_disk(tmp_path: Path) -> None:
    module = TwoLayers()
    expected = fisher_diagonal(module, BATCHES, loss)
    write_fisher(tmp_path / "0.fisher", expected)
    with open_weights(tmp_path / "0.fisher") as found:
        assert all(torch.equal(found.read(name), value) for name, value in expected.items())


class Counting(nn.Module):
    """Keeps what it has seen, as a metric does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen, self.all = torch.zeros(()), list[torch.Tensor]()
        self.register_buffer("total", torch.zeros(()))
        self.total: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        self.seen = self.seen + out.detach().sum()
        self.total = self.total + out.detach().sum()
        self.all.append(out.detach())
        return out


def test_a_module_that_keeps_what_it_has_seen_keeps_nothing_of_vmap() -> None:
    torch.manual_seed(0)
    module, plain = Counting(), nn.Linear(3, 2)
    plain.load_state_dict(module.layer.state_dict())
    batch = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])

    def loss(model: nn.Module, given: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(given[0]), given[1])

    found = fisher_diagonal(module, [batch, batch], loss)
    expected = fisher_diagonal(plain, [batch, batch], loss)
    assert torch.equal(found["layer.weight"], expected["weight"])
    # Whatever is there can be read, and be put back.
    assert all(isinstance(each.item(), float) for each in (module.seen, module.total))
    assert all(isinstance(each.sum().item(), float) for each in module.all)
