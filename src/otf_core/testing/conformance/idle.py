"""Attaching changes nothing, and what is told of a run is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from otf_core.testing.conformance.fields import STAMPS, TRAIN_STEP, missing_or_strange
from otf_core.testing.conformance.running import ANOTHER_SEED, SEED, alone, options
from otf_core.testing.conformance.small_run import Probe, shape_of
from otf_core.testing.conformance.suite import WITHIN, Suite


class Idle(Suite):
    """With no command given."""

    def test_the_small_run_is_worth_a_test(self) -> None:
        once, other = self.bare(), self.bare(number=ANOTHER_SEED)
        again = self.bare(number=SEED)  # not the one that is kept
        assert again.state == once.state, "two runs of one seed differ: nothing can be compared"
        assert other.weights != once.weights, "the run does not depend on its seed"
        assert self.bare(epochs=3).probe.batches * 2 == once.probe.batches * 3
        assert once.probe.batches >= 8
        assert once.probe.steps > 0
        assert len(once.logged) >= once.probe.steps

    def test_watched_it_is_the_run_that_it_was(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            self.same(run.found())

    @pytest.mark.parametrize("telemetry", ["full", "basic", "off"])
    def test_with_nobody_there_it_is_the_run_that_it_was(
        self, telemetry: str, tmp_path: Path
    ) -> None:
        otf = options(tmp_path, telemetry=telemetry)
        self.same(alone(self.framework, otf, Probe()))

    def test_when_the_dashboard_dies_it_is_the_run_that_it_was(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            run.dashboard.close()
            run.probe.open()
            self.same(run.thread.found())

    def test_nothing_is_left_on_what_was_trained(self, tmp_path: Path) -> None:
        expected = [shape_of(o) for o in self.bare().objects]
        with self.running(tmp_path) as run:
            assert [shape_of(o) for o in run.found().objects] == expected

    def test_every_step_is_told_once(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            steps = run.found().probe.steps
            told = run.events("trainStep")
        assert [event["step"] for event in told] == list(range(1, steps + 1))
        assert all(isinstance(event["loss"], float) for event in told)
        assert [event["epoch"] for event in told] == sorted(event["epoch"] for event in told)
        assert {event["epoch"] for event in told} == {0, 1}
        assert sum(event["batches_per_s"] is not None for event in told) == steps
        metrics = any(event["metrics"] for event in told)
        assert metrics == ("metrics" not in self.framework.cannot), "what it logs is told, or not"

    def test_what_is_told_of_a_step_has_its_fields_and_types(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            run.found()
            for event in run.events("trainStep"):
                assert event.keys() - STAMPS == TRAIN_STEP.keys()
                wrong = {k: event[k] for k, t in TRAIN_STEP.items() if not isinstance(event[k], t)}
                assert not wrong

    def test_every_event_has_its_fields(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            run.found()
            for event in run.events():
                assert not missing_or_strange(event), event

    def test_the_story_is_in_order(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            steps = run.found().probe.steps
            events = run.events()
        kinds = [event["type"] for event in events]
        order = ["session_started", "newRun", "exactness", "trainStep", "trainingFinished"]
        assert sorted(order, key=kinds.index) == order
        assert kinds.count("session_started") == kinds.count("newRun") == 1
        assert kinds.count("epoch_end") == 2
        states = [event["state"] for event in events if event["type"] == "state"]
        assert states == ["running", "finished"]
        finished = self._one(events, "trainingFinished")
        assert (finished["status"], finished["step"]) == ("completed", steps)
        assert kinds.index("trainingFinished") > len(kinds) - 4

    def test_the_exactness_report_is_that_of_the_run(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            assert run.ask("status")["exactness"] == self.framework.exactness
            run.found()
            said = self._one(run.events(), "exactness")
        assert said["text"] == self.framework.exactness
        assert said["exact"] == (not self.framework.exactness.startswith("not exact"))

    def test_its_beginning_and_its_end_are_kept(self, tmp_path: Path) -> None:
        self.needs("save_ckpt")
        with self.running(tmp_path) as run:
            steps = run.found().probe.steps
            saved = [(event["kind"], event["step"]) for event in run.events("checkpoint_saved")]
        end = [] if "after_fit" in self.framework.cannot else [("final", steps)]
        # Who is seen when a batch is trained already begins behind it, and says so.
        begins = 1 if "pause_at_start" in self.framework.cannot else 0
        assert saved == [("auto", begins), *end]

    def test_nothing_is_complained_of(self, tmp_path: Path) -> None:
        with self.running(tmp_path) as run:
            run.found()
            logs = run.events("log")
        said = [event["text"] for event in logs if event["level"] != "info"]
        declared = self.framework.cannot.get("save_ckpt")
        assert not [text for text in said if declared is None or declared not in text]

    def test_two_runs_of_one_process_do_not_meet(self, tmp_path: Path) -> None:
        for _ in range(2):
            with self.running(tmp_path) as run:
                self.same(run.found())
        folders = sorted(path.parent.name for path in tmp_path.glob("*/*/run.json"))
        assert folders == ["run", "run-2"]

    def test_a_dashboard_that_comes_late_is_told_everything(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            seq = run.ask("status")["last_seq"]
            assert seq > 0
            found = run.ask("resume_from", seq=0, until=seq)
            assert (found["count"], found["complete"]) == (seq, True)
            self.same(run.found())

    @staticmethod
    def _one(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        [event] = [event for event in events if event["type"] == kind]
        return event
