"""What was set can be given back: the value goes on as script and schedule have it by then."""

from __future__ import annotations

import pytest

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.steering.knobs import clip_knob
from otf_core.steering.params import Steering
from tests.steering.test_ledger import scheduled, unedited
from tests.steering.test_params import Box, one_group
from tests.steering.worlds import SCHEDULES, STEPS


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_released_schedule_stands_where_it_would_have_stood(name: str) -> None:
    plain = unedited(name)
    run = scheduled(name)
    steering = Steering(run)
    for index in range(STEPS):
        if index == 4:
            steering.apply(SetParam(path="lr", value=0.007, mode="override"), index)
        if index == 9:
            released = steering.apply(SetParam(path="lr", release=True), index)
            assert released.old == [0.007, 0.007]
            assert released.new == run.lrs() == plain[index]
        run.step(index)
        assert run.lrs() == ([0.007, 0.007] if 4 <= index < 9 else plain[index + 1])
        assert steering.watch(index + 1) == []


def test_the_row_of_a_value_that_is_set_says_what_the_script_would_use() -> None:
    run = one_group()
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.5), 1)
    assert steering.list()[0]["value"] == 0.5
    assert steering.list()[0]["script"] == 0.1
    steering.apply(SetParam(path="lr", release=True), 2)
    assert steering.list()[0]["value"] == 0.1
    assert "script" not in steering.list()[0]


def test_a_release_is_undone() -> None:
    run = one_group()
    steering = Steering(run)
    steering.apply(SetParam(path="lr", value=0.5), 1)
    released = steering.apply(SetParam(path="lr", release=True), 2)
    back = steering.undo(released, 3)
    assert (back.old, back.new) == (0.1, 0.5)
    assert run.lrs() == [0.5]


def test_a_knob_is_released_to_what_the_script_had() -> None:
    box = Box(1.0)
    run = one_group()
    run.knobs = {"clip": clip_knob(box.read, box.write)}
    steering = Steering(run)
    steering.apply(SetParam(path="clip", value=3.0), 1)
    steering.apply(SetParam(path="clip", value=4.0), 2)
    steering.apply(SetParam(path="clip", release=True), 3)
    assert box.value == 1.0
    with pytest.raises(CommandError):
        steering.check(SetParam(path="clip", release=True), 4)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (SetParam(path="lr", release=True), ErrorCode.NOT_ALLOWED_NOW),
        (SetParam(path="lr", release=True, value=1.0), ErrorCode.BAD_PAYLOAD),
        (SetParam(path="lr", release=True, mode="scale"), ErrorCode.BAD_PAYLOAD),
        (SetParam(path="nothing", release=True), ErrorCode.NOT_FOUND),
    ],
)
def test_what_cannot_be_released_is_refused(request_: SetParam, code: ErrorCode) -> None:
    steering = Steering(one_group())
    with pytest.raises(CommandError) as found:
        steering.check(request_, 1)
    assert found.value.code is code
