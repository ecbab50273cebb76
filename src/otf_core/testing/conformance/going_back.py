"""A checkpoint is the whole run: killed and gone on, rolled back, undone, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.testing.conformance.running import ANOTHER_SEED, Found, Running, as_if_killed, running
from otf_core.testing.conformance.suite import END, FIRST, LATE, PLACES, START, WITHIN, Suite


class GoingBack(Suite):
    """Capture and apply."""

    def test_a_checkpoint_is_the_file_that_it_is_said_to_be(self, tmp_path: Path) -> None:
        self.needs("save_ckpt")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch, batch + 1)) as run:
            run.probe.wait_for(batch)
            asked = run.dashboard.send("save_ckpt")
            run.dashboard.expect("accepted", request_id=asked)
            run.probe.let_go(batch)
            data = run.dashboard.reply_to(asked)["data"]
            run.probe.wait_for(batch + 1)
            step = run.probe.steps
            path = Path(data["path"])
            content = path.read_bytes()
            manifest = json.loads(path.with_suffix(".json").read_text())
            saved = run.dashboard.expect("checkpoint_saved", id=data["id"])
            run.pause_in(batch + 1)
            listed = run.ask("list_checkpoints")["checkpoints"]
            run.resume()
            self.same(run.found())
        told = {"id": data["id"], "step": step, "kind": "manual", "left_by": ""}
        kept = {"run_id": "run", "pinned": True, "exact": self._exact()}
        disk = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert manifest == {**manifest, **told, **kept, **disk}
        assert saved["path"] == str(path)
        assert data["id"] in [row["id"] for row in listed]
        state = torch.load(path, map_location="cpu", weights_only=True)
        assert state["otf"]["step"] == data["step"] == step

    def test_saving_changes_nothing(self, tmp_path: Path) -> None:
        self.needs("save_ckpt")
        otf = {"checkpoint_every": 2, "keep_checkpoints": 1}
        batch = self.batch(END)
        with self.running(tmp_path, hold=(batch,), **otf) as run:
            run.probe.wait_for(batch)
            # While the disk is busy none is made, and a small run is quick.
            run.dashboard.expect("checkpoint_saved", kind="ring")
            self.same(run.found())
            steps = [e["step"] for e in run.events("checkpoint_saved") if e["kind"] == "ring"]
            assert steps == sorted(steps)
            assert all(step % 2 == 0 for step in steps)
            assert len(steps) > 1

    @pytest.mark.parametrize("place", PLACES)
    def test_killed_behind_a_batch_it_goes_on_as_if_not(self, place: str, tmp_path: Path) -> None:
        self.needs("save_ckpt", "pause")
        batch = self.batch(place)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            data = run.pause_in(batch)
            path = as_if_killed(data["ckpt"], tmp_path / "run", tmp_path / "disk")
        self._goes_on(data["step"], tmp_path, tmp_path / "disk", str(path))

    def test_killed_it_goes_on_from_the_newest(self, tmp_path: Path) -> None:
        self.needs("save_ckpt", "pause")
        first, second = self.batch(WITHIN), self.batch(START)
        with self.running(tmp_path / "run", hold=(first, second)) as run:
            run.pause_in(first)
            run.resume()
            data = run.pause_in(second)
            as_if_killed(data["ckpt"], tmp_path / "run", tmp_path / "disk")
        self._goes_on(data["step"], tmp_path, tmp_path / "disk", "auto")

    def test_killed_twice_it_goes_on_as_if_not(self, tmp_path: Path) -> None:
        self.needs("save_ckpt", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path / "run", hold=(batch,)) as run:
            data = run.pause_in(batch)
            step = data["step"]
            path = as_if_killed(data["ckpt"], tmp_path / "run", tmp_path / "disk")
        how: dict[str, Any] = {"resume": str(path), "number": ANOTHER_SEED, "hold": (1,)}
        with self.running(tmp_path / "disk", **how) as again:
            data = again.pause_in(1)
            assert data["step"] == step + again.probe.steps
            path = as_if_killed(data["ckpt"], tmp_path / "disk", tmp_path / "third")
        self._goes_on(data["step"], tmp_path, tmp_path / "third", str(path))

    def _goes_on(self, step: int, tmp_path: Path, disk: Path, resume: str) -> None:
        with self.running(disk, resume=resume, number=ANOTHER_SEED) as again:
            found = again.found()
            events = again.events()
            losses = again.losses()
        self.same_from(step, found)
        kinds = [event["type"] for event in events]
        assert kinds.index("checkpoint_loaded") < kinds.index("trainStep")
        expected = self.losses(tmp_path / "watched")
        assert losses == {s: loss for s, loss in expected.items() if s > step}
        assert found.probe.steps == self.bare().probe.steps - step

    def test_rolled_back_to_where_it_stands_nothing_has_changed(self, tmp_path: Path) -> None:
        self.needs("rollback", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            for _ in range(2):
                data = run.ask("rollback", step=step)
                assert (data["step"], data["from_step"]) == (step, step)
            run.resume()
            self.same(run.found())

    @pytest.mark.parametrize(
        ("to", "at"), [(FIRST, WITHIN), (WITHIN, END), (END, START), (FIRST, LATE), (WITHIN, LATE)]
    )
    def test_rolled_back_it_goes_on_as_if_not(self, to: str, at: str, tmp_path: Path) -> None:
        self.needs("rollback", "pause")
        with self._rolled_back(to, at, tmp_path) as (run, step, from_step):
            found = self._to_its_end(run)
            events = run.events("trainStep")
            losses = run.losses()
        self.same_from(step, found)
        assert losses == self.losses(tmp_path / "watched")
        undone = [event["step"] for event in events if event["run_gen"] == 0]
        again = [event["step"] for event in events if event["run_gen"] == 1]
        assert undone == list(range(1, from_step + 1))
        assert again == list(range(step + 1, self.bare().probe.steps + 1))

    def test_a_rollback_undone_it_is_where_it_was(self, tmp_path: Path) -> None:
        self.needs("rollback", "pause", "undo")
        with self._rolled_back(WITHIN, START, tmp_path) as (run, _, from_step):
            assert run.ask("undo")["now"] == {"step": from_step}
            found = self._to_its_end(run)
        self.same(found)

    def test_a_rollback_under_way_undone_it_is_where_it_was(self, tmp_path: Path) -> None:
        self.needs("rollback", "pause", "undo")
        first, second = self.batch(FIRST), self.batch(START)
        with self.running(tmp_path, hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            run.resume()
            run.probe.wait_for(second)
            back = run.dashboard.send("rollback", {"step": step})
            asked = run.dashboard.send("undo", {"request_id": back})
            run.dashboard.expect("accepted", request_id=asked)
            run.probe.let_go(second)
            told = run.dashboard.reply_to(back)["data"]
            assert told["step"] == step
            assert run.dashboard.reply_to(asked)["data"]["now"] == {"step": told["from_step"]}
            self.same(run.found())

    def test_reset_it_begins_anew_and_is_the_same(self, tmp_path: Path) -> None:
        self.needs("reset_session", "pause")
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            assert run.ask("reset_session")["step"] == 0
            assert run.ask("status")["step"] == run.ask("pause")["step"] == 0
            found = self._to_its_end(run)
        self.same_from(0, found)

    @contextlib.contextmanager
    def _rolled_back(self, to: str, at: str, save_dir: Path) -> Iterator[tuple[Running, int, int]]:
        """A run that stands at one place, rolled back to an earlier one; the two steps."""
        first, second = self.batch(to), self.batch(at)
        with self.running(save_dir, hold=(first, second)) as run:
            step = run.pause_in(first)["step"]
            run.resume()
            from_step = run.pause_in(second)["step"]
            data = run.ask("rollback", step=step)
            assert (data["step"], data["from_step"]) == (step, from_step)
            assert run.ask("pause")["step"] == step
            status = run.ask("status")
            assert (status["step"], status["state"]) == (step, "paused")
            yield run, step, from_step

    def _to_its_end(self, run: Running) -> Found:
        assert not run.probe.moves_while_it_says_it_stands()
        assert not run.probe.goes_on(), "it trained while it was paused"
        run.resume()
        return run.found()

    @pytest.mark.parametrize("kind", ["no file", "no checkpoint", "of nothing"])
    def test_what_is_no_snapshot_of_it_is_refused(self, kind: str, tmp_path: Path) -> None:
        self.needs("load_ckpt", "pause")
        path = tmp_path / "foreign.ckpt"
        if kind == "no checkpoint":
            path.write_bytes(b"these are words")
        elif kind == "of nothing":
            torch.save({"otf": {"version": "0", "step": 1}}, path)
        self._refuses(path, tmp_path / "run")

    def test_a_snapshot_of_another_model_is_refused(self, tmp_path: Path) -> None:
        self.needs("load_ckpt", "pause")
        another = self.framework.another()
        if another is None:
            pytest.skip("the framework has no run of another model to try it with")
        with running(another, tmp_path / "another", hold=(1,)) as other:
            path = other.pause_in(1)["ckpt"]
        self._refuses(Path(path), tmp_path / "run")

    def _refuses(self, path: Path, save_dir: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(save_dir, hold=(batch,)) as run:
            step = run.pause_in(batch)["step"]
            reply = run.refused("load_ckpt", path=str(path))
            assert reply["code"] in ("bad_payload", "not_found"), reply
            assert run.ask("status")["step"] == step
            run.resume()
            self.same(run.found())
            assert not run.events("checkpoint_loaded")

    def _exact(self) -> bool:
        return not self.framework.exactness.startswith("not exact")
