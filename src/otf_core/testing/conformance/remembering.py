"""What was done to a run is known, is taken back in another process, and is done to another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otf_core.testing.conformance.changing import extend
from otf_core.testing.conformance.running import ANOTHER_SEED, Running, as_if_killed
from otf_core.testing.conformance.small_run import Rate
from otf_core.testing.conformance.suite import START, WITHIN, Suite

RATE = 0.00375
OF_EACH_KIND = {
    "eps": 1e-4,
    "gradient_clip_val": 0.25,
    "model.dropout": 0.375,
    "model.frozen": "*bias",
    "data.batch_size": 4,
}


class Remembering(Suite):
    """The ledger of changes, and recipes."""

    def test_a_recipe_does_to_a_run_that_begins_what_was_done_to_another(
        self, tmp_path: Path
    ) -> None:
        self.needs("set_param", "set_params", "undo", "pause")
        first, second = self.batch(WITHIN), self.batch(START)
        with self.running(tmp_path / "one", hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            run.ask("set_param", path="lr", mul=0.5)
            run.ask("set_param", path="weight_decay", value=0.125)
            curve = {"path": "lr", "value": 0.02, "to": 0.001, "over": 3, "until": step + 1}
            run.ask("set_params", changes=[curve, {"path": "weight_decay", "value": 0.25}])
            if "extend" not in self.framework.cannot:
                extend(run)
            run.resume()
            until = run.pause_in(second)["step"]
            run.ask("set_param", path="lr", value=RATE, mode="override")
            run.ask("note", text="no step of a recipe")
            run.ask("undo", change=2)
            rows = run.ask("list_changes")["changes"]
            path = run.ask("export_recipe")["out_path"]
            run.resume()
            expected = run.found()
            told = _told(run)
        steps = json.loads(Path(path).read_text())["steps"]
        extended = [] if "extend" in self.framework.cannot else ["extend"]
        cmds = ["set_param", "set_param", "set_params", *extended, "set_param", "undo"]
        assert [each["cmd"] for each in steps] == cmds
        assert [each["at_step"] for each in steps] == [step] * (len(steps) - 2) + [until] * 2
        assert [row["id"] for row in rows] == [*range(1, len(rows) + 1)]
        with self.running(tmp_path / "other", recipe=path) as other:
            found = other.found()
            replayed = _told(other)
        self.same(found, expected)
        assert replayed == told
        assert {e["by"] for e in other.events("param_changed")} == {"recipe", "undo", "until"}

    def test_a_recipe_has_values_of_every_kind(self, tmp_path: Path) -> None:
        self.needs("set_param", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path / "one", hold=(batch,)) as run:
            run.pause_in(batch)
            there = {row["path"] for row in run.ask("list_params")["params"]} & OF_EACH_KIND.keys()
            for path in sorted(there):
                run.ask("set_param", path=path, value=OF_EACH_KIND[path])
            rows = run.ask("list_changes")["changes"]
            recipe = run.ask("export_recipe")["out_path"]
            run.resume()
            expected = run.found()
        assert {row["path"] for row in rows} == there
        with self.running(tmp_path / "other", recipe=recipe) as other:
            found = other.found()
        self.same(found, expected)
        assert found.weights != self.bare().weights

    def test_a_change_is_undone_in_another_process(self, tmp_path: Path) -> None:
        self.needs("set_param", "undo", "pause", "save_ckpt")
        batch = self.batch(WITHIN)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            run.ask("set_param", path="lr", value=RATE, mode="override")
            run.ask("set_param", path="weight_decay", value=0.25)
            run.ask("undo")
            before = run.ask("list_changes")["changes"]
            path = as_if_killed(run.ask("save_ckpt")["path"], tmp_path / "run", tmp_path / "disk")
        with self.running(
            tmp_path / "disk", resume=str(path), number=ANOTHER_SEED, hold=(1,)
        ) as again:
            until = again.pause_in(1)["step"]
            assert again.ask("list_changes")["changes"] == before
            assert again.refused("undo", change=2)["field"] == "change"
            assert again.ask("undo", change=1)["undone"]["change"] == 1
            rows = again.ask("list_changes")["changes"]
            again.resume()
            found = again.found()
        assert found.weights == self.bare(rate=Rate(RATE, step, until)).weights
        assert (rows[0]["undone_by"], rows[-1]["cause"]) == (rows[-1]["id"], "change 1")
        assert until > step

    def test_what_is_rolled_back_is_not_in_the_ledger_nor_in_its_recipe(
        self, tmp_path: Path
    ) -> None:
        self.needs("set_param", "undo", "rollback", "pause", "save_ckpt")
        first, second = self.batch(WITHIN), self.batch(START)
        with self.running(tmp_path / "one", hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            run.ask("set_param", path="lr", value=RATE, mode="override")
            kept = run.ask("save_ckpt")["id"]
            run.resume()
            run.pause_in(second)
            run.ask("set_param", path="weight_decay", value=0.5)
            run.ask("rollback", checkpoint=kept)
            rows = run.ask("list_changes")["changes"]
            assert [(row["cmd"], row["by"]) for row in rows] == [
                ("set_param", "user"), ("rollback", "user"),
            ]  # fmt: skip
            run.ask("set_param", path="weight_decay", value=0.25)
            run.ask("undo", restore=True)
            path = run.ask("export_recipe")["out_path"]
            run.resume()
            found = run.found()
        steps = json.loads(Path(path).read_text())["steps"]
        assert [(each["at_step"], each["payload"]["path"]) for each in steps] == [(step, "lr")]
        with self.running(tmp_path / "other", recipe=path) as other:
            self.same_state(other.found(), found)
        assert found.weights == self.bare(rate=Rate(RATE, step)).weights


def _told(run: Running) -> list[tuple[Any, ...]]:
    names = ("path", "old", "new", "mode", "until", "applied_step")
    return [tuple(map(str, map(e.get, names))) for e in run.events("param_changed")]
