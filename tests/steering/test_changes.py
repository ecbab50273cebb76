"""The ledger's rows are plain: what is taken back by them is what would have been at once."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from torch.optim import SGD, Optimizer, lr_scheduler

from otf_core.control.bus import Ticket, Within
from otf_core.errors import CommandError
from otf_core.protocol import Request, SetParam
from otf_core.steering.params import Steering
from otf_core.steering.plain import of_plain, to_plain
from tests.steering.worlds import Run


def made() -> Optimizer:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": [each]} for each in weights]
    return SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


def scheduled() -> Run:
    optimizer = made()
    return Run([optimizer], [lr_scheduler.StepLR(optimizer, 2, 0.5)])


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        SetParam("lr", mul=0.3),
        SetParam("lr", value=0.07, mode="override", until=9),
        SetParam("optim.0.groups.1.lr", to=0.001, over=4, shape="cosine"),
        SetParam("weight_decay", value=0.25),
        SetParam("momentum", value=0.1 + 0.2),
    ],
    ids=lambda asked: asked.path,
)
def test_taken_back_by_plain_values_it_is_what_it_would_have_been(
    asked: SetParam, *, elsewhere: bool
) -> None:
    found = []
    for through_json in (False, True):
        run = scheduled()
        steering = Steering(run)
        steering.apply(SetParam("lr", value=0.03), 0)
        run.step(0)
        steering.watch(1)
        applied = steering.apply(asked, 1)
        if through_json:
            plain = msgspec.json.decode(msgspec.json.encode(to_plain(steering, applied)))
            if elsewhere:  # as after a kill: other objects, the same state
                state, run_before = steering.state(), run
                run = scheduled()
                run.made[0].load_state_dict(run_before.made[0].state_dict())
                run.stepped[0].load_state_dict(run_before.stepped[0].state_dict())
                run.done, steering = run_before.done, Steering(run)
                steering.load(state)
            applied = of_plain(steering, plain)
        steering.undo(applied, 1)
        values = []
        for index in range(1, 6):
            run.step(index)
            steering.watch(index + 1)
            group = run.made[0].param_groups
            values.append([(g["lr"], g["weight_decay"], g["momentum"]) for g in group])
        found.append(values)
    assert found[0] == found[1]


def test_what_the_run_has_no_more_is_said() -> None:
    steering = Steering(Run([made()]))
    plain = to_plain(steering, steering.apply(SetParam("momentum", value=0.5), 0))
    without = Steering(Run([torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])]))
    with pytest.raises(CommandError, match=r"optim\.0\.groups\.0\.momentum.* has it no more"):
        of_plain(without, plain)
    assert not any(
        math.isinf(each) for row in plain["undo"].values() if row for each in row.values()
        if isinstance(each, float)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (None, None),
        ("ada@gpu", "ada@gpu"),
        ("a\n b\t c", "a b c"),
        ("x" * 200, "x" * 80),
    ],
)
def test_who_has_asked_is_one_line(said: str | None, shown: str | None) -> None:
    ticket = Ticket(Request(cmd="ping", who=said), Within(), on_answer=lambda _: None)
    assert (ticket.who, ticket.by, ticket.cause) == (shown, "user", None)
