"""What is set is what trains, and taken back it never was; an evaluation leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from otf_core.testing.conformance.running import ANOTHER_SEED, Found, Running, as_if_killed
from otf_core.testing.conformance.small_run import Freeze, Rate
from otf_core.testing.conformance.suite import END, FIRST, START, WITHIN, Suite


class Changing(Suite):
    """Parameters, limits, validation and test."""

    @pytest.mark.parametrize("place", [FIRST, WITHIN, END])
    def test_a_rate_that_is_set_is_the_one_of_a_script_that_has_it(
        self, place: str, tmp_path: Path
    ) -> None:
        self.needs("set_param", "pause")
        batch, value = self.batch(place), 0.00375
        with self.running(tmp_path, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            self._set(run, value)
            run.resume()
            found = run.found()
            [told] = [e for e in run.events("param_changed") if e["path"] == "lr"]
        assert (told["applied_step"], told["by"]) == (step, "user")
        assert _each(told["new"], value)
        self._trained_with(Rate(value, step), found)

    def test_a_rate_that_was_set_outlives_the_process(self, tmp_path: Path) -> None:
        self.needs("set_param", "pause", "save_ckpt")
        batch, value = self.batch(WITHIN), 0.00375
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            self._set(run, value)
            path = run.ask("save_ckpt")["path"]
            path = as_if_killed(path, tmp_path / "run", tmp_path / "disk")
        with self.running(tmp_path / "disk", resume=str(path), number=ANOTHER_SEED) as again:
            found = again.found()
        assert found.weights == self.bare(rate=Rate(value, step)).weights
        assert set(found.probe.lrs) == {value}

    def test_a_rate_is_set_for_a_step_to_come(self, tmp_path: Path) -> None:
        self.needs("set_param")
        value = 0.00375
        with self.running(tmp_path, hold=(0,)) as run:
            run.probe.wait_for(0)
            change = {"path": "lr", "value": value, "mode": "override", "at_step": 3}
            asked = run.dashboard.send("set_param", change)
            run.dashboard.expect("accepted", request_id=asked, waits_for="step 3")
            run.probe.let_go(0)
            data = run.dashboard.reply_to(asked)["data"]
            assert data["applied_step"] == 3
            found = run.found()
        self._trained_with(Rate(value, 3), found)

    def test_a_rate_that_was_set_is_undone(self, tmp_path: Path) -> None:
        self.needs("set_param", "undo", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            before = self._row(run, "lr")["value"]
            self._set(run, 0.00375)
            assert run.ask("undo")["undone"]["cmd"] == "set_param"
            assert self._row(run, "lr")["value"] == before
            run.resume()
            self.same(run.found())

    def test_a_rate_that_is_released_is_as_if_it_had_held_until_then(self, tmp_path: Path) -> None:
        self.needs("set_param", "pause")
        first, second = self.batch(WITHIN), self.batch(START)
        with self.running(tmp_path, hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            self._set(run, 0.00375)
            run.resume()
            until = run.pause_in(second)["step"]
            run.ask("set_param", path="lr", release=True)
            run.resume()
            found = run.found()
        self._trained_with(Rate(0.00375, step, until), found)

    def test_a_frozen_parameter_is_one_that_a_script_does_not_train(self, tmp_path: Path) -> None:
        self.needs("set_param", "undo", "pause", "save_ckpt")
        first, second = self.batch(WITHIN), self.batch(START)
        with self.running(tmp_path / "run", hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            if not any(row["path"] == "model.frozen" for row in run.ask("list_params")["params"]):
                pytest.skip("its delegate has no model.frozen")
            nobody = run.refused("set_param", path="model.frozen", value="nobody")
            name = nobody["allowed"][0]
            frozen = run.ask("set_param", path="model.frozen", value=name)
            assert (frozen["old"], frozen["new"]) == ("", name)
            assert self._row(run, "model.frozen")["value"] == name
            path = as_if_killed(run.ask("save_ckpt")["path"], tmp_path / "run", tmp_path / "disk")
            run.resume()
            until = run.pause_in(second)["step"]
            assert run.ask("undo")["now"] == {"model.frozen": ""}
            run.resume()
            self.same_state(run.found(), self.bare(freeze=Freeze(step, until)))
        with self.running(tmp_path / "disk", resume=str(path), number=ANOTHER_SEED) as again:
            self.same_state(again.found(), self.bare(freeze=Freeze(step)))

    def test_what_is_previewed_is_what_then_happens(self, tmp_path: Path) -> None:
        self.needs("preview_params", "set_params", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            until = step + 4
            changes = [{"path": "lr", "value": 0.02, "to": 0.001, "over": 3, "until": until}]
            curves = run.ask("preview_params", changes=changes, steps=500)
            alone = run.ask("preview_params")
            assert alone["now"] == alone["then"]
            assert not run.events("param_changed")
            run.ask("set_params", changes=changes)
            run.resume()
            found = run.found()
            told = [e for e in run.events("param_changed") if e["by"] == "until"]
        assert {e["applied_step"] for e in told} == {until}
        first = next(iter(curves["then"]))
        used = found.probe.lrs[step:]
        assert curves["step"][0] == step + 1
        assert curves["then"][first][: len(used)] == used
        assert self.bare().probe.lrs[step:] == curves["now"][first][: len(used)]
        assert alone["now"][first] == curves["now"][first][: len(alone["now"][first])]

    def test_several_changes_are_one(self, tmp_path: Path) -> None:
        self.needs("set_params", "undo", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            lr, decay = (self._row(run, path)["value"] for path in ("lr", "weight_decay"))
            wrong = [{"path": "lr", "value": 0.5}, {"path": "weight_decay", "value": 50.0}]
            assert run.refused("set_params", changes=wrong)["code"] == "bad_payload"
            assert self._row(run, "lr")["value"] == lr
            changes = [{"path": "lr", "value": 0.5}, {"path": "weight_decay", "value": 0.25}]
            assert len(run.ask("set_params", changes=changes)["applied"]) == 2
            now = run.ask("undo")
            assert now["undone"]["cmd"] == "set_params"
            assert [self._row(run, p)["value"] for p in ("lr", "weight_decay")] == [lr, decay]
            run.resume()
            self.same(run.found())

    def test_everything_set_to_what_it_is_nothing_changes(self, tmp_path: Path) -> None:
        self.needs("set_param", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            rows = run.ask("list_params")["params"]
            for row in rows:
                if row["value"] is not None and not isinstance(row["value"], list):
                    mode = {"mode": "scale"} if row["owner"] == "scheduler" else {}
                    run.ask("set_param", path=row["path"], value=row["value"], **mode)
            values = {row["path"]: row["value"] for row in rows}
            now = run.ask("list_params")["params"]
            assert {row["path"]: row["value"] for row in now} == values
            assert "lr" in values
            assert ("after_fit" in values) == ("after_fit" not in self.framework.cannot)
            run.resume()
            self.same(run.found())

    def test_a_value_that_cannot_be_is_refused_and_nothing_changes(self, tmp_path: Path) -> None:
        self.needs("set_param", "pause")
        batch = self.batch(WITHIN)
        refusals: dict[str, Mapping[str, Any]] = {
            "value": {"path": "lr", "value": -1.0},
            "path": {"path": "learning_rate_of_nobody", "value": 1.0},
            "at_step": {"path": "lr", "value": 0.1, "at_step": 0},
        }
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            for field, payload in refusals.items():
                reply = run.refused("set_param", **payload)
                assert reply["field"] == field, reply
            run.resume()
            self.same(run.found())
            assert not run.events("param_changed")

    @pytest.mark.parametrize("cmd", ["validate_now", "test_now"])
    @pytest.mark.parametrize("place", [FIRST, END])
    def test_an_evaluation_leaves_no_trace(self, place: str, cmd: str, tmp_path: Path) -> None:
        self.needs(cmd, "pause")
        batch = self.batch(place)
        with self.running(tmp_path, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            found, again = (run.ask(cmd) for _ in range(2))
            assert found["metrics"], "it has found nothing"
            assert found["metrics"] == again["metrics"]
            assert found["step"] == run.ask("status")["step"] == step
            assert run.ask("status")["state"] == "paused"
            assert run.probe.batches == batch + 1, "it has trained"
            run.resume()
            self.same_state(run.found())
            assert run.losses() == self.losses(tmp_path / "watched")

    @pytest.mark.parametrize("cmd", ["validate_now", "test_now"])
    def test_an_evaluation_under_way_leaves_no_trace(self, cmd: str, tmp_path: Path) -> None:
        self.needs(cmd)
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            asked = run.dashboard.send(cmd)
            run.dashboard.expect("accepted", request_id=asked)
            run.probe.let_go(batch)
            assert run.dashboard.reply_to(asked)["ok"]
            self.same_state(run.found())
            states = [event["state"] for event in run.events("state")]
        action = "validating" if cmd == "validate_now" else "testing"
        assert states == ["running", action, "running", "finished"]

    def test_made_longer_it_is_the_run_that_had_always_been(self, tmp_path: Path) -> None:
        self.needs("extend", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            extend(run)
            run.resume()
            found = run.found()
        self.same(found, self.bare(epochs=3))

    def test_made_longer_at_its_end_it_is_the_run_that_had_always_been(
        self, tmp_path: Path
    ) -> None:
        self.needs("extend", "after_fit")
        with self.running(tmp_path, after_fit="hold") as run:
            run.dashboard.expect("state", state="paused", reason="after_fit")
            run.dashboard.expect("paused")
            extend(run)
            run.resume()
            run.dashboard.expect("state", state="paused", reason="after_fit")
            run.dashboard.expect("paused")
            run.resume()
            found = run.found()
        self.same_state(found, self.bare(epochs=3))

    def test_made_longer_it_stays_so_in_another_process(self, tmp_path: Path) -> None:
        self.needs("extend", "pause", "save_ckpt")
        batch = self.batch(WITHIN)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            extend(run)
            path = as_if_killed(run.ask("save_ckpt")["path"], tmp_path / "run", tmp_path / "disk")
        with self.running(tmp_path / "disk", resume=str(path), number=ANOTHER_SEED) as again:
            self.same_from(step, again.found(), self.bare(epochs=3))

    def test_made_longer_and_undone_it_is_the_run_that_it_was(self, tmp_path: Path) -> None:
        self.needs("extend", "undo", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            before = {name: run.ask("status")[name] for name in ("max_steps", "max_epochs")}
            extend(run)
            run.ask("undo")
            assert {name: run.ask("status")[name] for name in before} == before
            run.resume()
            self.same(run.found())

    def _set(self, run: Running, value: float) -> None:
        """The rate of every group, held from now on; it is read back."""
        data = run.ask("set_param", path="lr", value=value, mode="override")
        assert _each(data["new"], value)
        assert not _each(data["old"], value)
        assert _each(self._row(run, "lr")["value"], value)

    def _row(self, run: Running, path: str) -> dict[str, Any]:
        rows = run.ask("list_params")["params"]
        found: dict[str, Any] = next(row for row in rows if row["path"] == path)
        return found

    def _trained_with(self, rate: Rate, found: Found) -> None:
        expected = self.bare(rate=rate)
        assert found.probe.lrs == expected.probe.lrs, "the steps have used another rate"
        assert found.weights == expected.weights


def extend(run: Running) -> None:
    """By an epoch, in the unit that the run has."""
    status = run.ask("status")
    if status["max_epochs"] is not None:
        asked = {"max_epochs": status["max_epochs"] // 2 * 3}
    else:
        asked = {"max_steps": status["max_steps"] // 2 * 3}
    data = run.ask("extend", **asked)
    assert asked.items() <= data.items()


def _each(found: Any, value: float) -> bool:
    values = found if isinstance(found, list) else [found]
    return bool(values) and all(v == value for v in values)
