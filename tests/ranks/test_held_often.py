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
