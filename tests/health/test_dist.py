"""Whether ranks have the same parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.health import dist
from otf_core.health.budget import CancelledError
from tests.health.subjects import Plain, budget, net


def of(world_size: int) -> Plain:
    subject = Plain(net())
    subject.world_size = world_size
    return subject


def gathered(*others: Any) -> Any:
    """All ranks: this one, and others with parameters of their own."""

    def gather(part: Any) -> list[Any]:
        parts = [{**part, "digests": dist.digests(other, budget())} for other in others]
        return [part, *parts]

    return gather


def test_one_rank_says_so_and_is_well() -> None:
    found = dist.check(Plain(net()), budget())
    assert found.ok
    assert found.text.splitlines()[-1] == "One rank, nothing to compare."
    wire = found.to_wire()
    assert (wire["ok"], wire["world_size"], wire["rank"], wire["device"]) == (True, 1, 0, "cpu")
    assert wire["backend"] is None


def test_ranks_that_agree_are_told_with_how_many_parameters() -> None:
    gather = gathered(Plain(net()), Plain(net()))
    found = dist.check(of(3), budget(), gather=gather)
    assert found.ok
    assert "4 parameters are bit for bit the same on 3 ranks." in found.text


def test_a_parameter_that_differs_in_one_bit_is_named_with_its_ranks() -> None:
    other = net()
    with torch.no_grad():
        other[1].bias[0] = torch.nextafter(other[1].bias[0], torch.tensor(9.0))
    gather = gathered(Plain(net()), Plain(other))
    found = dist.check(of(3), budget(), gather=gather)
    assert not found.ok
    assert found.fields["differing"] == [{"parameter": "1.bias", "ranks": [2]}]
    assert "1.bias" in found.text


def test_a_parameter_that_a_rank_has_not_is_named() -> None:
    gather = gathered(Plain(net(torch.nn.Linear(5, 5))))
    found = dist.check(of(2), budget(), gather=gather)
    assert {"parameter": "2.weight", "ranks": [1]} in found.fields["differing"]


@pytest.mark.parametrize("required", [True, False])
def test_where_the_others_cannot_be_asked_nothing_is_claimed(required: bool) -> None:
    found = dist.check(of(2), budget(), require_all_ranks=required)
    assert found.ok is not required
    assert found.fields["differing"] is None
    assert "not compared" in found.text


def test_a_sample_of_the_parameters_is_spread_over_all() -> None:
    subject = Plain(net(torch.nn.Linear(5, 5)))
    assert list(dist.digests(subject, budget(), 3)) == ["0.weight", "1.weight", "2.weight"]
    assert len(dist.digests(subject, budget(), 99)) == 6


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
        dist.check(of(2), budget(cancelled=lambda: True), gather=gathered())


@pytest.mark.long
def test_two_processes_find_where_they_differ(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.health.one_rank"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "group")],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=50)
        assert process.returncode == 0
        same, other = map(json.loads, said.splitlines())
        assert (same["ok"], same["backend"], same["differing"]) == (True, "gloo", [])
        assert not other["ok"]
        assert other["differing"] == [{"parameter": "1.weight", "ranks": [1]}]
