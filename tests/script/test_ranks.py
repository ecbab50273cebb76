"""What ranks agree on is the same for all, and nobody waits for one that is not coming."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from otf_core.script import ranks
from otf_core.script.ranks import Ranks
from otf_core.state.keeper import Every, ResumeError


def of(size: int) -> list[Ranks]:
    store = dist.HashStore()
    return [Ranks(rank, size, store) for rank in range(size)]


def at_once(*calls: Callable[[], str]) -> list[str]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result(10.0) for done in [pool.submit(call) for call in calls]]


def test_ranks_that_are_all_there_go_on() -> None:
    one, two = of(2)
    assert at_once(lambda: one.meet("here"), lambda: two.meet("here")) == ["", ""]


def test_one_that_cannot_go_on_is_heard_by_all_and_waits_for_none() -> None:
    one, two, three = of(3)
    assert two.meet("here", "it is full") == "rank 1: it is full"
    assert [one.meet("here"), three.meet("here")] == ["rank 1: it is full"] * 2


def test_a_rank_that_comes_too_late_hears_what_was_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.0)
    one, two = of(2)
    said = "rank 1 did not come there within 0 s"
    assert [one.meet("here"), two.meet("here")] == [said, said]


def test_nobody_waits_for_a_rank_that_has_ended() -> None:
    one, two = of(2)
    two.end()
    assert one.meet("here") == "rank 1 has ended"


def test_ranks_that_have_parted_meet_no_more_behind_a_step_but_elsewhere() -> None:
    one, two = of(2)
    two.part("within join()")
    assert one.meet(f"{ranks.STEP}4") == "within join()"
    assert at_once(lambda: one.meet("place"), lambda: two.meet("place")) == ["", ""]


def test_all_hear_what_rank_0_has_not_found() -> None:
    one, two = of(2)

    def find() -> None:
        msg = "there is no file"
        raise ResumeError(msg)

    for each in (one, two):
        with pytest.raises(ResumeError, match="there is no file"):
            each.origin(find)
    again, other = of(2)
    assert again.origin(lambda: None) is other.origin(find) is None


def test_one_rank_agrees_with_itself() -> None:
    alone = Ranks()
    assert alone.meet("here") == ""
    assert alone.meet("here", "it is full") == "it is full"


def test_only_steps_are_the_same_for_all_ranks() -> None:
    assert ranks.refused(Every(steps=3), 2) is None
    assert ranks.refused(Every(seconds=60.0), 1) is None
    assert "60 s for 2 ranks" in str(ranks.refused(Every(seconds=60.0), 2))
