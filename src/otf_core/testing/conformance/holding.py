"""A pause is a true one, what is asked meanwhile is answered, and stop ends where it says."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from otf_core.state import park
from otf_core.testing.accelerator import FakeAccelerator
from otf_core.testing.conformance.running import ANOTHER_SEED, as_if_killed
from otf_core.testing.conformance.suite import END, FIRST, LATE, PLACES, WITHIN, Suite


class Holding(Suite):
    """The safe point, the gate, and both ends of a run."""

    @pytest.mark.parametrize("place", PLACES)
    def test_a_pause_stands_behind_the_batch(self, place: str, tmp_path: Path) -> None:
        self.needs("pause")
        batch = self.batch(place)
        with self.running(tmp_path, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            assert run.probe.batches == batch + 1, "it stands within a later batch"
            assert step == run.probe.steps, "the step is not that of the optimizer"
            status = run.ask("status")
            assert (status["state"], status["step"]) == ("paused", step)
            assert not run.probe.moves_while_it_says_it_stands()
            assert not run.probe.goes_on(), "it trained while it was paused"
            run.resume()
            self.same(run.found())
            assert run.probe.steps > step
            kinds = [event["type"] for event in run.events()]
            seen = [event for event in run.events() if event["type"] in ("paused", "resumed")]
        assert [(event["type"], event["step"]) for event in seen] == [
            ("paused", step),
            ("resumed", step),
        ]
        assert "trainStep" not in kinds[kinds.index("paused") : kinds.index("resumed")]

    def test_pausing_at_once_paused_on_arrival(self, tmp_path: Path) -> None:
        self.needs("pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            asked = run.dashboard.send("pause")
            run.dashboard.expect("accepted", request_id=asked)
            run.dashboard.expect("state", state="pausing")
            status = run.ask("status")
            assert (status["state"], status["step"]) == ("pausing", run.probe.steps)
            assert not run.events("paused")
            assert not [m for m in run.dashboard.messages if m.get("id") == asked]
            run.probe.let_go(batch)
            first = run.dashboard.reply_to(asked)["data"]
            assert run.ask("pause") == first, "a second pause is the same one"
            run.resume()
            self.same(run.found())
            assert len(run.events("paused")) == 1

    def test_it_is_held_before_the_first_batch(self, tmp_path: Path) -> None:
        self.needs("pause_at_start")
        with self.running(tmp_path, pause_at_start=True) as run:
            assert run.dashboard.expect("paused")["step"] == 0
            assert not run.probe.moves_while_it_says_it_stands()
            assert not run.probe.goes_on()
            assert run.probe.batches == 0
            run.resume()
            self.same(run.found())

    def test_it_is_held_at_a_step_to_come(self, tmp_path: Path) -> None:
        self.needs("pause")
        with self.running(tmp_path, hold=(0,)) as run:
            run.probe.wait_for(0)
            asked = run.dashboard.send("pause", {"at_step": 3})
            run.dashboard.expect("accepted", request_id=asked, waits_for="step 3")
            run.probe.let_go(0)
            assert run.dashboard.reply_to(asked)["data"]["step"] == run.probe.steps == 3
            run.resume()
            self.same(run.found())

    def test_what_only_reads_is_answered_within_a_batch(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            queued = run.dashboard.send("list_params")
            assert run.ask("ping", t=1.5)["t"] == 1.5
            assert run.ask("status")["queue_len"] == 1
            assert not [m for m in run.dashboard.messages if m.get("id") == queued]
            run.probe.let_go(batch)
            assert run.dashboard.reply_to(queued)["ok"]
            self.same(run.found())

    @pytest.mark.parametrize("stands", [False, True])
    @pytest.mark.parametrize("place", [FIRST, END])
    def test_stop_ends_it_behind_the_batch(
        self, place: str, tmp_path: Path, *, stands: bool
    ) -> None:
        self.needs("stop", "pause")
        batch = self.batch(place)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            save = "save_ckpt" not in self.framework.cannot
            if stands:
                run.pause_in(batch)
                data = run.ask("stop", save=save)
            else:
                run.probe.wait_for(batch)
                asked = run.dashboard.send("stop", {"save": save})
                run.dashboard.expect("accepted", request_id=asked)
                run.probe.let_go(batch)
                data = run.dashboard.reply_to(asked)["data"]
            found = run.found()
            [finished] = run.events("trainingFinished")
            assert [event["step"] for event in run.events("stopping")] == [data["step"]]
        assert data["status"] == "stopping"
        assert (found.probe.batches, found.probe.steps) == (batch + 1, data["step"])
        assert (finished["status"], finished["step"]) == ("stopped", data["step"])
        if not save:
            return
        path = as_if_killed(data["ckpt"], tmp_path / "run", tmp_path / "disk")
        with self.running(tmp_path / "disk", resume=str(path), number=ANOTHER_SEED) as again:
            self.same_from(data["step"], again.found())

    def test_an_exception_ends_it_as_failed_and_comes_through(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, fail=batch) as run:
            run.thread.wait()
            assert run.thread.error is run.probe.error
            finished = run.dashboard.expect("trainingFinished")
            run.dashboard.expect_end()
            steps = [event["step"] for event in run.events("trainStep")]
        assert (finished["status"], finished["step"]) == ("failed", run.probe.steps)
        assert "failed on purpose" in finished["error"]
        assert steps == list(range(1, run.probe.steps + 1))

    def test_what_failed_goes_on_from_its_checkpoints(self, tmp_path: Path) -> None:
        self.needs("save_ckpt")
        batch = self.batch(LATE)
        with self.running(tmp_path, fail=batch, checkpoint_every=3) as run:
            run.thread.wait()
        with self.running(tmp_path, resume="auto", number=ANOTHER_SEED) as again:
            found = again.found()
            [loaded] = again.events("checkpoint_loaded")
        assert 0 < loaded["step"] < found.probe.steps + loaded["step"]
        self.same_from(loaded["step"], found)

    def test_the_end_is_held(self, tmp_path: Path) -> None:
        self.needs("after_fit")
        with self.running(tmp_path, after_fit="hold") as run:
            run.dashboard.expect("state", state="paused", reason="after_fit")
            assert run.dashboard.expect("paused")["step"] == run.probe.steps
            assert run.probe.steps == self.bare().probe.steps
            run.resume()
            self.same_state(run.found())
            assert run.events("trainingFinished")[0]["status"] == "completed"

    def test_parked_it_gives_the_device_back_and_comes_back_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.needs("pause", "park")
        device = FakeAccelerator()
        monkeypatch.setattr(park, "accelerator_of", lambda _: device)
        gc.freeze()  # what is there before is not counted, nor collected each time
        try:
            self._parked(device, tmp_path)
        finally:
            gc.unfreeze()

    def _parked(self, device: FakeAccelerator, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            run.probe.wait_for(batch)
            if "park" not in run.ask("hello", protocol="otf/1")["capabilities"]:
                pytest.skip("the framework has not said what it holds")
            early = run.dashboard.send("park")
            run.dashboard.expect("accepted", request_id=early)
            step = run.pause_in(batch)["step"]
            assert run.dashboard.reply_to(early)["code"] == "not_allowed_now"
            away = run.ask("park")
            assert (away["parked"], away["step"], away["ranks"]) == (True, step, 1)
            assert 0 < away["freed_bytes"] == away["moved_bytes"]
            assert away["left_bytes"] == device.used_bytes()
            assert run.ask("park") == {**away, "changed": False}
            said = run.ask("status")
            assert said["state"] == "paused"
            assert said["parked"]["freed_bytes"] == away["freed_bytes"]
            assert said["parked"]["since_s"] >= 0
            run.ask("list_params")
            for cmd in {"save_ckpt", "validate_now", "test_now", "set_param"} - set(
                self.framework.cannot
            ):
                asked = {"path": "lr", "value": 0.5} if cmd == "set_param" else {}
                assert "found the run parked" in run.refused(cmd, **asked)["detail"]
            assert not run.probe.moves_while_it_says_it_stands()
            # There is no room: it is held on, and comes back when there is.
            device.capacity_bytes = device.used_bytes()
            assert "no room" in run.refused("resume")["detail"]
            assert "no room" in run.refused("stop")["detail"]
            assert run.ask("status")["state"] == "paused"
            device.capacity_bytes = float("inf")
            assert run.ask("park", back=True)["changed"]
            assert not run.ask("park", back=True)["changed"]
            assert run.ask("status")["parked"] is None
            assert run.ask("park")["moved_bytes"] == away["moved_bytes"]
            assert not run.probe.goes_on()
            run.resume()
            self.same(run.found())
            told = [event["parked"] for event in run.events("parked")]
        assert told == [True, False, True, False]
        path = as_if_killed(away["ckpt"], tmp_path / "run", tmp_path / "disk")
        with self.running(tmp_path / "disk", resume=str(path), number=ANOTHER_SEED) as again:
            self.same_from(step, again.found())
