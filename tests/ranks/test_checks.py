"""Checks of health on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.utils.checkpoint import checkpoint

from otf_core.errors import CommandError
from otf_core.health import checks
from otf_core.health.budget import CancelledError
from otf_core.health.report import Health
from otf_core.ranks import health as ranks_health
from otf_core.ranks.health import ChecksOfOther, SharedChecks, of_all
from tests.health.subjects import Plain, cross_entropy, net
from tests.ranks.sharing import FakeOthers, among

STEPPING = [name for name in checks.CHECKS if name != "dist_health"]


class Shared:
    """Ranks of this process, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *subjects: Plain) -> None:
        self.subjects = subjects
        for rank, subject in enumerate(subjects):
            subject.world_size, subject.rank = len(subjects), rank
        sides = [
            ChecksOfOther(lambda of=of: of, lambda: self.others.ceased > 0)  # type: ignore[misc]
            for of in subjects[1:]
        ]
        self.others = FakeOthers([side.rows() for side in sides])
        among(monkeypatch, ranks_health, self.others)

    def run(self, name: str, cancelled: Callable[[], bool] = bool, **payload: Any) -> Health:
        asked = SharedChecks(self.others)  # type: ignore[arg-type]
        return asked.run(name, self.subjects[0], payload, cancelled=cancelled)


@pytest.mark.parametrize("name", STEPPING)
def test_every_rank_looks_at_itself_and_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def made() -> Plain:
        module = net(nn.BatchNorm1d(5))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        return Plain(module, optimizer=optimizer)

    shared = Shared(monkeypatch, made(), made())
    before = [each.digest() for each in shared.subjects]
    found = shared.run(name)
    [other] = found.fields["others"]
    lines = found.text.splitlines()
    assert lines[0] == "Rank 0 of 2:"
    assert f"Rank 1: {other['said']}" in lines
    assert (other["rank"], len(other["said"]) > 10) == (1, True)
    assert found.ok or name == "throughput_health"  # which measures this machine
    assert [each.digest() for each in shared.subjects] == before


@pytest.mark.parametrize("name", ["numerics_health", "activations_health"])
def test_an_issue_of_another_rank_alone_is_one_and_is_told_in_full(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken = net()
    with torch.no_grad():
        broken[0].weight[0] = torch.nan
    found = Shared(monkeypatch, Plain(net()), Plain(broken)).run(name)
    assert not found.ok
    assert found.fields["others"][0]["ok"] is False
    told = found.text[found.text.index("Rank 1: ") :].splitlines()
    assert len(told) > 1
    assert any("0" in line for line in told[1:])


def test_what_another_rank_cannot_do_is_said_and_is_no_issue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = Plain(net()), Plain(net())
    other.why_no_step = "it steps by hand"
    found = Shared(monkeypatch, one, other).run("activations_health")
    assert found.ok
    assert found.fields["others"][0]["ok"] is None
    assert "Rank 1: A training step was asked for a check; it steps by hand." in found.text


def test_who_cancels_calls_the_others_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def seen(module: nn.Module, batch: Any) -> Any:
        asked.append(1)
        return cross_entropy(module, batch)

    shared = Shared(monkeypatch, Plain(net(), loss=seen), Plain(net(), loss=seen))
    with pytest.raises(CancelledError):
        shared.run("activations_health", cancelled=lambda: len(asked) > 0, budget_steps=3)
    assert shared.others.ceased == 1


@pytest.mark.parametrize("name", STEPPING)
def test_a_training_step_that_runs_a_collective_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def gathers(module: nn.Module, batch: Any) -> Any:
        torch.distributed.all_reduce(torch.ones(1))
        return cross_entropy(module, batch)

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        subject = Plain(net(), loss=gathers)
        before = subject.digest()
        shared = Shared(monkeypatch, subject, Plain(net()))
        with pytest.raises(CommandError, match="training step runs a collective"):
            shared.run(name)
        assert subject.digest() == before
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["throughput_health", "numerics_health", "determinism_health"])
def test_what_hangs_on_the_accumulation_of_gradients_is_not_run(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As DDP's hooks do, which would wait for the other ranks."""
    module = net()
    called: list[str] = []
    for p in module.parameters():
        p.register_post_accumulate_grad_hook(lambda _: called.append("accumulated"))
    Shared(monkeypatch, Plain(module), Plain(net())).run(name)
    assert called == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_that_would_be_missed_are_refused(
    monkeypatch: pytest.MonkeyPatch, reentrant: bool
) -> None:
    def checkpointed(module: nn.Module, batch: Any) -> Any:
        x, y = batch
        return nn.functional.cross_entropy(
            checkpoint(module, x.requires_grad_(), use_reentrant=reentrant), y
        )

    shared = Shared(monkeypatch, Plain(net(), loss=checkpointed), Plain(net()))
    if reentrant:
        with pytest.raises(CommandError, match="use_reentrant=False"):
            shared.run("numerics_health")
    else:
        assert shared.run("numerics_health").fields["without_gradient"] == []


def test_ranks_are_compared_by_what_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    other = net()
    with torch.no_grad():
        other[1].weight[0, 0] += 2
    shared = Shared(monkeypatch, Plain(net()), Plain(net()), Plain(other))
    found = shared.run("dist_health")
    [row] = found.fields["differing"]
    assert (row["parameter"], row["ranks"], row["max_abs"]) == ("1.weight", [2], 2.0)
    assert shared.others.told == ["hash_all", "hashes", "apart"]


def test_a_rank_that_has_no_room_for_it_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared(monkeypatch, Plain(net()), Plain(net()))

    def no_room(*_: Any) -> Any:
        msg = "out of memory"
        raise RuntimeError(msg)

    rows = shared.others._rows[0]
    monkeypatch.setattr(ranks_health.dist, "digest_of", no_room)
    heard = rows["hash_all"](0)
    assert heard == {"device": "cpu", "failed": "RuntimeError: out of memory"}
    assert rows["hashes"]("parameters") == {}


def test_of_many_ranks_those_that_need_it_come_first() -> None:
    heard = {
        rank: [None, {"ok": rank != 11, "text": f"head {rank}\nmore {rank}"}]
        for rank in range(1, 13)
    }
    lines = of_all(Health(True, "well", {}), heard).text.splitlines()
    assert lines[:5] == ["Rank 0 of 13:", "well", "Rank 11: head 11", "more 11", "Rank 1: head 1"]
    assert lines[-1] == "Of 4 more ranks 4 are well."
