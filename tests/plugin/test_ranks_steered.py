"""Data and model of two ranks are steered as one, and end as if the script had done the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin import ranks_steered as steered
from tests.plugin.test_ranks_as_one import RANKS, attached, done, outcome, result, started

SCRIPT = "tests.plugin.ranks_steered"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_parameters_are_frozen_and_batches_are_other_ones_on_both_ranks(
    tmp_path: Path, killed: bool
) -> None:
    with attached(tmp_path, SCRIPT) as (process, dashboard):
        # Under DDP the reducer waits for the gradient of every parameter, the frozen ones too.
        done(dashboard, "set_param", path="model.frozen", value="*")
        assert done(dashboard, "undo")["now"] == {"model.frozen": ""}
        asked = [
            dashboard.send("set_param", change)
            for change in (
                {"path": "model.frozen", "value": steered.FROZEN, "at_step": steered.FREEZE_AT,
                 "until": steered.THAW_AT},
                {"path": "data.batch_size", "value": steered.OTHER, "at_step": steered.CHANGE_AT},
                {"path": "data.sampler.weights.3", "value": steered.FACTOR,
                 "at_step": steered.CHANGE_AT},
                {"path": "model.ema", "value": False, "at_step": steered.REST_AT,
                 "until": steered.WORK_AT},
            )
        ]  # fmt: skip
        for each in asked:
            dashboard.expect("accepted", request_id=each)
        done(dashboard, "resume")
        steps = [dashboard.reply_to(each)["data"]["applied_step"] for each in asked]
        assert steps == [
            steered.FREEZE_AT, steered.CHANGE_AT, steered.CHANGE_AT, steered.REST_AT,
        ]  # fmt: skip
        ended = dashboard.expect("trainingFinished")
        assert (ended["status"], ended["step"]) == ("completed", steered.STEPS)
        outcome(process)
    with started(tmp_path, 0, SCRIPT) as process:
        outcome(process)
    if killed:
        with started(tmp_path, -1, SCRIPT) as process:
            outcome(process)
    for rank in RANKS:
        if killed:
            again, bare = (result(tmp_path, name, rank) for name in ("again", "bare"))
            del again["logged"], bare["logged"]  # of one process each
            assert again == bare
        assert result(tmp_path, "live", rank) == result(tmp_path, "bare", rank)
