"""Ranks of a real process group stand at one boundary, however they drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks.held_often import PARTS
from tests.ranks.rig import run_by_hand


@pytest.mark.timeout(180)
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_two_hundred_pauses_of_skewed_ranks_are_each_at_one_boundary(
    tmp_path: Path, size: int
) -> None:
    found = run_by_hand("tests.ranks.held_often", tmp_path, size)

    first = found[0]
    assert [len(stood) for stood in first["stood"]] == [part.pauses for part in PARTS]
    assert sum(part.pauses for part in PARTS) == 200
    assert all(stood == sorted(stood) for stood in first["stood"])
    assert found == [first] * size
    assert first["alike"]


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_pause_may_last_four_times_longer_than_a_collective_would_wait(tmp_path: Path) -> None:
    first, second = run_by_hand("tests.ranks.held_often", tmp_path, 2, "5")

    assert len(first["stood"][0]) == 1
    assert "Timed out waiting 5000ms" in second.pop("alone")
    assert first.pop("alone") == ""
    assert first == second
    assert first["alike"]
