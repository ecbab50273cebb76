"""A checkpoint of another framework is refused by name, whichever of the two is asked."""

from __future__ import annotations

from typing import Any

import pytest

from otf_core.errors import CommandError
from otf_lightning import snapshot


def test_lightning_refuses_a_checkpoint_of_a_loop_of_the_users_own() -> None:
    nobody: Any = None  # not looked at: the refusal comes first
    state = {"otf": {"exact": {"format": snapshot.FORMAT, "kind": "the Runner"}}}
    with pytest.raises(CommandError) as caught:
        snapshot.check(nobody, state)
    assert caught.value.detail == (
        "The checkpoint is of the Runner, this run is of Lightning; allowed: one of its own; "
        "the run is as it was."
    )
