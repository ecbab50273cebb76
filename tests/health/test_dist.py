"""Whether ranks have the same parameters, optimizer states and settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.health import dist
from otf_core.health.budget import CancelledError
from tests.health.subjects import Plain, budget, net

Change = Callable[[Plain], object]


class Others:
    """Ranks of this process; see dist.Ranks."""

    def __init__(self, *subjects: Plain, failed: Sequence[int] = ()) -> None:
        self.subjects = dict(enumerate(subjects, start=1))
        self.failed, self.asked = failed, []  # type: ignore[var-annotated]

    @contextlib.contextmanager
    def totals(self, sample_weights: int) -> Iterator[dict[int, Mapping[str, Any]]]:
        found: dict[int, Mapping[str, Any]] = {}
        yield found
        self.hashes = {
            rank: dist.Hashes(subject, budget(), sample_weights)
            for rank, subject in self.subjects.items()
        }
        for rank, hashes in self.hashes.items():
            told = {"failed": "no room"} if rank in self.failed else {"totals": hashes.totals}
            found[rank] = {"device": "cpu", **told}

    def digests(self, kind: str) -> dict[int, Mapping[str, str]]:
        self.asked.append(kind)
        return {rank: hashes.of[kind] for rank, hashes in self.hashes.items()}

    def apart(self, kind: str, name: str, tensor: torch.Tensor) -> dict[int, Any]:
        self.asked.append(name)
        return {
            rank: dist.apart(hashes.tensor(kind, name), tensor.shape, dist.pieces(tensor))
            for rank, hashes in self.hashes.items()
        }


def of(world_size: int) -> Plain:
    subject = Plain(net())
    subject.world_size = world_size
    return subject


def trained(change: Change = lambda _: None) -> Plain:
    """Two steps of Adam, and then what a rank has otherwise."""
    module = net(nn.BatchNorm1d(5))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for number in range(2):
        module(torch.full((4, 6), float(number)) + torch.arange(6.0)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    subject = Plain(module, optimizer=optimizer)
    change(subject)
    subject.world_size = 2
    return subject


def found_of(*changes: Change, **more: Any) -> Any:
    return dist.check(trained(), budget(), ranks=Others(*map(trained, changes)), **more)


def test_one_rank_says_so_and_is_well() -> None:
    found = dist.check(Plain(net()), budget())
    assert found.ok
    assert found.text.splitlines()[-1] == "One rank, nothing to compare."
    wire = found.to_wire()
    assert (wire["ok"], wire["world_size"], wire["rank"], wire["device"]) == (True, 1, 0, "cpu")
    assert wire["backend"] is None


def test_ranks_that_agree_are_told_with_how_many_parameters() -> None:
    others = Others(Plain(net()), Plain(net()))
    found = dist.check(of(3), budget(), ranks=others)
    assert found.ok
    assert others.asked == []  # one digest of each kind tells it
    assert "4 parameters are bit for bit the same on 3 ranks." in found.text


def test_a_parameter_that_differs_in_one_bit_is_named_with_its_ranks() -> None:
    other = net()
    with torch.no_grad():
        other[1].bias[0] = torch.nextafter(other[1].bias[0], torch.tensor(9.0))
    others = Others(Plain(net()), Plain(other))
    found = dist.check(of(3), budget(), ranks=others)
    assert not found.ok
    [row] = found.fields["differing"]
    assert (row["parameter"], row["ranks"]) == ("1.bias", [2])
    assert 0 < row["max_abs"] < 1e-6
    assert others.asked == ["parameters", "1.bias"]
    assert "1 of 4 parameters differ: 1.bias." in found.text
    assert "1.bias  rank 2 has another than rank 0  by" in found.text


def test_a_parameter_that_a_rank_has_not_is_named() -> None:
    found = dist.check(of(2), budget(), ranks=Others(Plain(net(torch.nn.Linear(5, 5)))))
    row = {"parameter": "2.weight", "ranks": [1], "max_abs": None, "relative": None}
    assert row in found.fields["differing"]
    assert not found.ok


@pytest.mark.parametrize("required", [True, False])
def test_where_the_others_cannot_be_asked_nothing_is_claimed(required: bool) -> None:
    found = dist.check(of(2), budget(), require_all_ranks=required)
    assert found.ok is not required
    assert found.fields["differing"] is None
    assert "not compared" in found.text


def test_a_sample_of_the_parameters_is_spread_over_all_with_their_states() -> None:
    subject = Plain(net(torch.nn.Linear(5, 5)))
    some = dist.Hashes(subject, budget(), 3).of[dist.PARAMETERS]
    assert list(some) == ["0.weight", "1.weight", "2.weight"]
    assert len(dist.Hashes(subject, budget(), 99).of[dist.PARAMETERS]) == 6
    states = dist.Hashes(trained(), budget(), 1).of[dist.STATES]
    assert list(states) == [
        f"optimizer 0.weight {key}" for key in ("step", "exp_avg", "exp_avg_sq")
    ]


def test_by_how_much_is_told() -> None:
    def change(subject: Plain) -> None:
        weight = subject.module.get_parameter("0.weight")
        with torch.no_grad():
            weight.add_(weight, alpha=0.5)

    found = found_of(change)
    weight = trained().module.get_parameter("0.weight")
    [row] = found.fields["differing"]
    assert row["max_abs"] == pytest.approx(0.5 * float(weight.detach().abs().max()))
    assert row["relative"] == pytest.approx(0.5)
    assert "50 % in all" in found.text


def test_the_state_and_the_settings_of_an_optimizer_are_compared() -> None:
    def state(subject: Plain) -> None:
        optimizer = subject.optimizers["optimizer"]
        optimizer.state[subject.module.get_parameter("0.bias")]["exp_avg"][0] += 1

    def settings(subject: Plain) -> None:
        subject.optimizers["optimizer"].param_groups[0]["lr"] = 0.2

    found = found_of(state, settings)
    assert not found.ok
    assert found.fields["differing"] == []
    [state_row], [setting] = found.fields["states_differing"], found.fields["settings_differing"]
    assert (state_row["name"], state_row["ranks"]) == ("optimizer 0.bias exp_avg", [1])
    assert state_row["max_abs"] == pytest.approx(1)
    assert (setting["name"], setting["ranks"]) == ("optimizer group 0 lr", [2])
    assert "optimizer settings differ: optimizer group 0 lr." in found.text


def test_statistics_of_batch_norm_differ_and_that_is_no_issue() -> None:
    def change(subject: Plain) -> None:
        subject.module.get_buffer("1.running_mean").add_(1)

    found = found_of(change)
    assert found.ok
    [row] = found.fields["buffers_differing"]
    assert (row["name"], row["ranks"]) == ("1.running_mean", [1])
    assert row["max_abs"] == pytest.approx(1)
    assert "Statistics of BatchNorm differ (1.running_mean), as they may" in found.text


def test_another_buffer_is_for_its_model_to_judge() -> None:
    subjects = [Plain(net()), Plain(net())]
    for number, subject in enumerate(subjects):
        subject.module.register_buffer("seen", torch.tensor([number]))
        subject.world_size = 2
    found = dist.check(subjects[0], budget(), ranks=Others(subjects[1]))
    assert found.ok
    assert "1 other buffers differ" in found.text
    assert "seen  rank 1 has another than rank 0  by 1 at most" in found.text


@pytest.mark.parametrize("required", [True, False])
def test_a_rank_that_could_not_be_compared_is_named(required: bool) -> None:
    others = Others(Plain(net()), Plain(net()), failed=[2])
    found = dist.check(of(3), budget(), ranks=others, require_all_ranks=required)
    assert found.ok is not required
    assert found.fields["unheard"] == [{"rank": 2, "why": "no room"}]
    assert found.text.splitlines()[-1] == "Rank 2 was not compared: no room"
    assert "on 2 ranks" in found.text


def test_states_that_lie_in_parts_on_the_ranks_are_not_compared() -> None:
    class Parts(torch.optim.SGD):
        def consolidate_state_dict(self) -> None: ...

    module = net()
    subject = Plain(module, optimizer=Parts(module.parameters(), lr=0.1))
    subject.world_size = 2
    found = dist.check(subject, budget(), ranks=Others(subject))
    assert found.fields["not_compared"] == ["optimizer"]
    assert "States of optimizer lie in parts on the ranks; not compared." in found.text


def test_only_a_few_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "MEASURED", 1)

    def change(subject: Plain) -> None:
        with torch.no_grad():
            for p in subject.module.parameters():
                p.add_(1)

    rows = found_of(change).fields["differing"]
    assert len(rows) == 6
    assert [row["max_abs"] is None for row in rows] == [False] + 5 * [True]


@pytest.mark.parametrize("piece", [1, 4, 100])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_how_far_apart_does_not_hang_on_the_pieces(
    monkeypatch: pytest.MonkeyPatch, piece: int, kind: torch.dtype
) -> None:
    monkeypatch.setattr(dist, "PIECE", piece)
    one, other = torch.zeros(3, 3, dtype=kind), torch.full((3, 3), 2, dtype=kind)
    other[1, 1] = 4
    assert dist.apart(one, other.shape, dist.pieces(other)) == [4.0, 1.0]
    assert dist.apart(one, [9], dist.pieces(other)) == [None, None]
    assert dist.apart(None, [3, 3], dist.pieces(other)) == [None, None]
    assert dist.apart(other, one.shape, dist.pieces(one)) == [4.0, None]  # beside nothing


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, 3).T,
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.complex64).conj(),
        torch.zeros(2, dtype=torch.bool),
    ],
)
def test_a_digest_is_of_any_tensor(tensor: torch.Tensor) -> None:
    assert dist.digest_of(tensor) == dist.digest_of(tensor.clone())
    assert dist.digest_of(tensor) != dist.digest_of(torch.zeros(7))


def test_a_zero_with_another_sign_is_another() -> None:
    assert dist.digest_of(torch.tensor([0.0])) != dist.digest_of(torch.tensor([-0.0]))


def test_it_is_cancelled_between_two_parameters() -> None:
    with pytest.raises(CancelledError):
        dist.check(of(2), budget(cancelled=lambda: True), ranks=Others())
