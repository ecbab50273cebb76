"""A rule that watches the run does what a person would have done, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otf_core.testing.conformance.suite import LATE, START, Suite


class Guarded(Suite):
    """A weight becomes NaN."""

    def test_a_guard_goes_back_and_the_run_is_that_of_a_script_with_the_smaller_rate(
        self, tmp_path: Path
    ) -> None:
        self.needs("rollback", "set_param", "save_ckpt")
        batch = self.batch(START)
        otf: dict[str, Any] = {"guards": "nan:rollback", "checkpoint_every": 2}
        # The disk is given time: what is not written yet when a third is due is left out.
        with self.running(tmp_path, poison=batch, hold=(batch,), **otf) as run:
            run.probe.wait_for(batch)
            run.probe.let_go(batch)
            found = run.found()
            [told] = run.events("guard")
            [loaded] = run.events("checkpoint_loaded")
            changed = [e for e in run.events("param_changed") if e["by"] == "guard"]
            losses = run.losses()
        step, wrong = loaded["step"], told["step"]
        assert wrong in (batch + 1, batch + 2), "it was found at another step"
        assert step <= wrong - 2, "it went to a checkpoint that no loss has vouched for"
        assert (told["rule"], told["action"], told["did"]) == ("nan", "rollback", "rollback")
        assert (told["value"], told["at_step"], told["budget_left"]) == (None, step, 2)
        assert [e["request_id"] for e in changed] == [told["requests"][1]] * len(changed)
        assert {(e["path"], e["cause"], e["applied_step"]) for e in changed} == {
            ("lr", "nan", step)
        }
        expected = self.bare(scale=(0.5, step))
        assert found.weights == expected.weights
        assert found.state["random"] == expected.state["random"]
        left = len(expected.probe.lrs) * (expected.probe.steps - step) // expected.probe.steps
        assert found.probe.lrs[-left:] == expected.probe.lrs[-left:]
        assert None not in losses.values()

    def test_a_guard_that_cannot_go_back_says_so_and_holds_the_run(self, tmp_path: Path) -> None:
        self.needs("pause")
        batch = self.batch(LATE) - 2
        rule = {"watch": "nan", "action": "rollback", "back": 10**6}
        with self.running(tmp_path, poison=batch, guards=rule, checkpoint_every=10**6) as run:
            run.dashboard.expect("paused")
            [row] = run.ask("list_guards")["guards"]
            assert run.ask("status")["reason"] == "guard"
            [told] = run.events("guard")
            assert (told["action"], told["did"], told["request_id"]) == ("rollback", "pause", None)
            assert "it cannot go back: no checkpoint" in told["text"]
            assert (row["budget_left"], row["last"]) == (3, {"step": told["step"], "value": None})
            off = run.ask("set_guard", rule="nan", enabled=False)
            assert (off["old"]["enabled"], off["new"]["enabled"]) == (True, False)
            run.resume()
            run.found()
            assert len(run.events("guard")) == 1  # it is not told again while it is wrong
