"""Every command of the VS Code extension has its full answer, on Lightning and on the Runner."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otf_core.protocol import COMMANDS, EVENTS
from tests.protocol.legacy import (
    ASKED,
    REQUIRED,
    STAMPS,
    alike,
    answers,
    command,
    lacks,
    rows,
    shape,
)
from tests.runs.fits import SIDES

NAMES = [name for name, _, _ in ASKED]
OURS = {  # of otf/1 alone
    "hello", "ack", "resume_from", "ping", "status", "list_params", "list_checkpoints", "set_param",
    "set_params", "preview_params", "list_changes", "list_guards", "set_guard", "park",
    "validate_now", "results", "note", "rollback", "extend", "undo", "scan", "samples",
    "select",
    "compare", "show_samples", "merge_preview", "cancel", "export_weights", "export_session",
    "export_report", "export_recipe",
}  # fmt: skip


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """All that one fit has answered; once for each framework."""

    @functools.cache
    def ask(side: str) -> dict[str, Any]:
        return answers(side, tmp_path_factory.mktemp(side))

    return ask


def test_the_table_has_every_command() -> None:
    asked = {command(name) for name, _, _ in ASKED}
    assert asked == COMMANDS.keys() - OURS
    assert list(rows()) == [name for name, _, _ in ASKED]
    assert {name: row["payload"] for name, row in rows().items()} == {
        name: payload for name, payload, _ in ASKED
    }
    assert REQUIRED.keys() == asked - {"propose_subsets"}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_host_reads(name: str) -> None:
    row = rows()[name]
    if row["reply"]["ok"]:
        assert not lacks(shape(row["reply"]["data"]), REQUIRED[command(name)]), row["reply"]
        assert "type" not in row["reply"]["data"]
    else:
        assert row["reply"]["error"] == row["reply"]["detail"]  # it shows nothing else
    assert all(
        EVENTS[kind].legacy and event.keys() > STAMPS for kind, event in row["events"].items()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", SIDES)
def test_an_answer_is_that_of_the_table(
    side: str, name: str, answered: Callable[[str], dict[str, Any]]
) -> None:
    row, found = rows()[name], answered(side)[name]
    for part in ("reply", "events"):
        assert alike(shape(found[part]), shape(row[part])), (found[part], row[part])
    if found["reply"]["ok"]:
        assert not lacks(shape(found["reply"]["data"]), REQUIRED[command(name)])
    else:
        assert found["reply"]["code"] == row["reply"]["code"]


@pytest.mark.parametrize("side", SIDES)
def test_what_was_asked_is_what_was_done(
    side: str, answered: Callable[[str], dict[str, Any]]
) -> None:
    found = answered(side)
    data = {name: row["reply"].get("data") for name, row in found.items()}
    # The next automatic name is above the seed; the form's filling is not applied.
    assert [data[name]["new_run"] for name in data if command(name) == "fork" and data[name]] == [
        "fork3", "fork4", "hard", "fork5",
    ]  # fmt: skip
    assert found["fork.from_a_checkpoint"]["events"]["param_changed"]["new"] == 0.004
    losses = dict(
        zip(
            data["generate_report"]["sample_indices"],
            data["generate_report"]["losses"],
            strict=True,
        )
    )
    worst = sorted(losses, key=lambda n: (losses[n], n))[
        -len(data["fork.quantile"]["subset_indices"]) :
    ]
    assert sorted(data["fork.quantile"]["subset_indices"]) == sorted(worst)
    assert len(data["fork.region"]["subset_indices"]) == len(losses)
    clusters = data["fork.kmeans"]["subset_indices"]
    assert 0 < len(clusters) < len(losses)
    assert data["generate_report.of_some"]["sample_indices"] == [3, 5]
    for back in ("switch_run", "switch_run.back", "switch_run.once_more"):
        assert (data[back]["run_id"], data[back]["step"], data[back]["paused"]) == ("r", 5, True)
    for name in ("fork.region", "fork.kmeans", "fork.quantile", "fork.from_a_checkpoint"):
        told = found[name]["events"]["newRun"]
        assert (told["run_id"], told["parents"]) == (data[name]["new_run"], ["r"])
        assert told["meta"]["selection"]["kind"] in name or name == "fork.from_a_checkpoint"
    assert found["test_now"]["events"]["test_complete"]["avg_loss"] == data["test_now"]["avg_loss"]
    assert Path(data["save_ckpt"]["path"]).name == "5-pause.ckpt"
    again = found["reset_session"]["events"]["newRun"]
    assert (again["run_id"], again["parents"]) == ("merge2", ["r", "hard"])
