"""The verbs' table against the wire, and the sentences."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from otf_core.client.verbs import VERBS, number, payload_of, read_value, size, span, state_sentence
from otf_core.protocol import COMMANDS


def test_every_verb_is_a_command_and_its_arguments_are_fields_of_the_payload() -> None:
    for verb in VERBS:
        payload = COMMANDS[verb.cmd].payload
        fields = {field.name for field in msgspec.structs.fields(payload)}
        assert {arg.key for arg in verb.args} <= fields, verb.word
    assert len({verb.word for verb in VERBS}) == len(VERBS)


def test_what_is_not_given_is_not_sent() -> None:
    for verb in VERBS:
        assert payload_of(verb, {}) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("3", 3), ("-1", -1), ("1e-4", 1e-4), ("sgd", "sgd")],
)
def test_a_value_is_read_as_what_it_looks_like(text: str, value: Any) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_sizes_spans_and_numbers_are_for_people() -> None:
    assert [size(n) for n in (None, 0, 999, 91_234, 9_123_400, 14_100_000_000)] == [
        "size unknown", "0 B", "999 B", "91 kB", "9.1 MB", "14 GB",
    ]  # fmt: skip
    assert [span(s) for s in (0, 59.4, 60, 125, 1200, 8040, 200_000)] == [
        "0 s", "59 s", "1 min", "2 min 5 s", "20 min", "2 h 14 min", "2 d 7 h",
    ]  # fmt: skip
    assert [number(n) for n in (12400, 0.312, 1e-4, True, None, [0.1, 2], 3.0, "x")] == [
        "12,400", "0.312", "0.0001", "on", "none", "[0.1, 2]", "3", "x",
    ]  # fmt: skip


SESSION: dict[str, Any] = {
    "run_id": "r", "run_name": "digits", "step": 12400, "epoch": 3, "max_steps": 50_000,
    "max_epochs": None, "reason": None, "finished": None, "last_ts": 1000.0, "status": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state": "running"}, "Training digits — step 12,400 of 50,000, epoch 3"),
        ({"state": "paused"}, "Paused digits at step 12,400 of 50,000, epoch 3"),
        (
            {"state": "pausing"},
            "Pausing digits — finishing the batch after step 12,400, then it holds there",
        ),
        (
            {"state": "failed", "finished": {"error": "out of memory"}},
            "Failed digits at step 12,400 — out of memory",
        ),
        ({"state": "finished"}, "Finished digits — 12,400 steps"),
        (
            {"state": "lost", "max_steps": None, "epoch": None},
            "Connection lost — digits was at step 12,400; it goes on without this dashboard",
        ),
        (
            {"state": "journal"},
            "Journal of digits — last written 3 h ago at step 12,400; no trainer attached",
        ),
        ({"state": "starting"}, "Starting digits — attached, training has not begun"),
        ({"state": "testing", "max_steps": -1}, "Testing digits at step 12,400, epoch 3"),
    ],
)
def test_a_state_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert state_sentence(SESSION | change, 1000.0 + 3 * 3600) == sentence
