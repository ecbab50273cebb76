"""A recipe that cannot be replayed is refused by name, before the run has trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.runner import Runner
from otf_core.steering.changes import MAX_ROWS, Changes
from otf_core.steering.recipe import RecipeError, read_recipe, recipe_of
from tests.exact import digest
from tests.exact.digest import differences
from tests.exact.models import Net
from tests.plugin.rig import pause_in
from tests.plugin.test_fork import asks, refused
from tests.runner.rig import Barrier, fitted, fitting

SET = {"at_step": 2, "cmd": "set_param", "payload": {"path": "lr", "value": 0.005}}


class Another(Net):
    """With one parameter more."""

    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Parameter(torch.zeros(2))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """A file of these steps."""

    def write(*steps: Any, **more: Any) -> str:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"otf_recipe": 1, "of": "r", "steps": steps, **more}))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"at_step": 3, "cmd": "merge", "payload": {"parents": ["a", "b"]}}, "(merge at step 3)"),
        ({"at_step": 3, "cmd": "rollback", "payload": {"step": 1}}, "(rollback at step 3)"),
        ({"at_step": 1, **{k: SET[k] for k in ("cmd", "payload")}}, "it stands behind one of"),
        ({**SET, "payload": {"value": 1}}, "missing required field `path`"),
        ({**SET, "payload": {"path": "lr", "valu": 1}}, "its payload has valu"),
        ({**SET, "payload": {"path": "lr", "value": 1, "at_step": 9}}, "its payload has at_step"),
        ({"at_step": 3, "cmd": "undo"}, "it takes back None"),
        ({"at_step": 3, "cmd": "undo", "payload": {"request_id": "recipe-2"}}, "'recipe-2'"),
        ({"at_step": 3, "cmd": "set_param", "when": 1}, "unknown field `when`"),
    ],
)
def test_a_file_is_refused_where_it_is_given(
    step: dict[str, Any], said: str, written: Callable[..., str]
) -> None:
    path = written(SET, step)
    with pytest.raises(RecipeError) as found:
        Runner(recipe=path)
    assert said in str(found.value)
    assert "step 2 of the recipe" in str(found.value) or path in str(found.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b'{"otf_recipe": 1}'])
def test_what_is_no_recipe_is_said(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe\.json"):
        read_recipe(path)


def test_one_of_another_format_is_refused(written: Callable[..., str]) -> None:
    with pytest.raises(RecipeError, match="format 2; allowed: 1"):
        read_recipe(written(otf_recipe=2))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"path": "learning_rate_of_nobody", "value": 1.0}, "learning_rate_of_nobody"),
        ({"path": "lr", "value": -1.0}, "allowed: 0.0 to 10.0"),
        ({"path": "lr", "value": 0.1, "until": 4}, "allowed: 5 or later"),
        ({"path": "after_fit", "value": "hold"}, "after_fit is no value of the training"),
    ],
)
def test_a_step_that_no_run_of_it_can_have_is_refused_before_the_first_batch(
    payload: dict[str, Any], said: str, written: Callable[..., str], tmp_path: Path
) -> None:
    path = written(SET, {"at_step": 4, "cmd": "set_param", "payload": payload})
    barrier = Barrier()
    with pytest.raises(RecipeError) as found:
        fitted(barrier, save_dir=tmp_path, dashboard="off", recipe=path)
    assert said in str(found.value)
    assert f"(set_param {payload['path']} at step 4)" in str(found.value)
    assert not list(tmp_path.glob("*/*/journal/*.jsonl")) or not _trained(tmp_path)


def test_a_step_that_is_refused_when_it_is_due_ends_the_run(
    written: Callable[..., str], tmp_path: Path
) -> None:
    path = written({**SET, "payload": {"path": "lr", "mul": 1e6}})
    with pytest.raises(RecipeError, match=r"step 1 of the recipe \(set_param lr at step 2\)"):
        fitted(save_dir=tmp_path, dashboard="off", recipe=path)
    assert _trained(tmp_path) == [1, 2]


def test_the_model_has_to_be_the_same(tmp_path: Path) -> None:
    barrier = Barrier(2)
    with fitting(tmp_path / "one", barrier, run_name="r") as run:
        pause_in(run, barrier, 2)
        asks(run, "set_param", {"path": "lr", "value": 0.005})
        path = asks(run, "export_recipe")["out_path"]
        asks(run, "resume")
        expected = digest.of_run(run.outcome())
    with pytest.raises(RecipeError, match=r"is of another model: that of r has [\d,]+ parameters"):
        fitted(save_dir=tmp_path / "other", dashboard="off", recipe=path, model=Another())
    again = fitted(save_dir=tmp_path / "same", dashboard="off", recipe=path)
    assert differences(expected, digest.of_run(again)) == []


def test_a_run_that_goes_on_does_only_what_is_left(
    written: Callable[..., str], tmp_path: Path
) -> None:
    steps = [SET, {**SET, "at_step": 7, "payload": {"path": "weight_decay", "value": 0.25}}]
    path = written(*steps, {"at_step": 9, "cmd": "undo", "payload": {"request_id": "recipe-1"}})
    whole = digest.of_run(fitted(save_dir=tmp_path / "whole", dashboard="off", recipe=path))
    barrier = Barrier(4)
    with fitting(tmp_path / "runs", barrier, run_name="r", recipe=path) as run:
        kept = pause_in(run, barrier, 4)["ckpt"]
        assert [row["by"] for row in asks(run, "list_changes")["changes"]] == ["recipe"]
        asks(run, "stop", {"save": False})
    given = {"save_dir": tmp_path / "runs", "dashboard": "off", "resume": kept}
    assert differences(whole, digest.of_run(fitted(recipe=path, **given))) == []
    with pytest.raises(RecipeError, match=r"step 1 .* 5 steps are done already"):
        fitted(recipe=written({**SET, "payload": {"path": "lr", "value": 0.5}, "at_step": 1}),
               **given)  # fmt: skip


def test_what_was_taken_back_as_if_it_had_never_been_does_not_come_again(
    written: Callable[..., str], tmp_path: Path
) -> None:
    bare = digest.of_run(fitted(save_dir=tmp_path / "bare", dashboard="off"))
    barrier = Barrier(0, 4)
    with fitting(tmp_path / "runs", barrier, recipe=written(SET)) as run:
        kept = pause_in(run, barrier, 0)["step"]
        asks(run, "resume")
        pause_in(run, barrier, 4)
        assert asks(run, "undo", {"restore": True})["now"]["step"] == kept
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(bare, found) == []


def test_a_fork_is_in_the_ledger_of_its_run_and_no_recipe_is_made_of_it(tmp_path: Path) -> None:
    barrier = Barrier(2)
    with fitting(tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 2)
        asks(run, "set_param", {"path": "lr", "value": 0.005})
        asks(run, "fork", {"params": {"weight_decay": 0.5}})
        rows = asks(run, "list_changes")["changes"]
        assert [(row["cmd"], row["by"], row["path"]) for row in rows] == [
            ("set_param", "user", "lr"), ("fork", "user", None), ("fork", "fork", "weight_decay"),
        ]  # fmt: skip
        said = refused(run, "export_recipe", {})
        assert said[0] == "not_allowed_now"
        assert "fork of r (change 2, at step 3)" in said[1]
        assert asks(run, "undo")["now"]["run_id"] == "r"
        rows = asks(run, "list_changes")["changes"]
        assert [(row["cmd"], row["by"]) for row in rows] == [
            ("set_param", "user"), ("undo", "undo"),
        ]  # fmt: skip
        assert asks(run, "export_recipe")["steps"] == 1
        asks(run, "resume")
        run.outcome()


def test_a_ledger_without_its_oldest_rows_makes_no_recipe() -> None:
    changes = Changes()
    for _ in range(MAX_ROWS + 1):
        changes.add(step=1, epoch=0)
    assert (len(changes), next(iter(changes)).id) == (MAX_ROWS, 2)
    again = Changes()
    again.load(changes.state(), 1)
    assert again.add(step=1, epoch=0).id == MAX_ROWS + 2
    for ledger in (changes, again):
        with pytest.raises(Exception, match="the oldest are not kept"):
            recipe_of(ledger, run_id="r", model=None, apart=lambda _: False)
    again.load(None, 7)
    with pytest.raises(Exception, match="a checkpoint of step 7 that has no ledger"):
        recipe_of(again, run_id="r", model=None, apart=lambda _: False)


def _trained(save_dir: Path) -> list[int]:
    [journal] = save_dir.glob("*/*/journal/*.jsonl")
    events = [json.loads(line) for line in journal.read_bytes().splitlines()]
    return [event["step"] for event in events if event["type"] == "trainStep"]
