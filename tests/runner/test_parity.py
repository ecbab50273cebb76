"""The Runner against Lightning itself: the same calls in the same order, and the same bits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.exact.digest import differences
from tests.runner.shapes import SHAPES, WORKERS
from tests.runner.sides import Tape, trained


def _apart(tapes: list[Tape]) -> str:
    """Where two tapes part, for a person to read."""
    one, other = tapes
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return f"at {place} of {len(one)}, {len(other)}:\nLightning {a}\nRunner    {b}\nbehind {one[place - 2 : place]}"  # noqa: E501
    return f"{len(one)} against {len(other)}: {one[len(other) :] or other[len(one) :]}"


@pytest.mark.parametrize("name", SHAPES)
def test_the_hook_tape_is_that_of_lightning(name: str) -> None:
    (theirs, end), (ours, our_end) = (
        trained(SHAPES[name], side, hooks=True) for side in ("lightning", "runner")
    )
    assert len(theirs) > 20
    assert theirs == ours, _apart([theirs, ours])
    assert differences(end, our_end) == []


@pytest.mark.parametrize("name", {**SHAPES, **WORKERS})
def test_weights_rng_and_logged_values_are_those_of_lightning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape: Any = {**SHAPES, **WORKERS}[name]
    if "seeded" in name:
        monkeypatch.setenv("PL_SEED_WORKERS", "1")
    (theirs, end), (ours, our_end) = (
        trained(shape, side, hooks=False) for side in ("lightning", "runner")
    )
    assert theirs == ours, _apart([theirs, ours])
    assert differences(end, our_end) == []
