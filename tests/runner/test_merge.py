"""Merges in a fit of the Runner: what is previewed is what is committed, and parents stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from otf_core.state.checkpoint_file import read_checkpoint
from tests.exact import digest
from tests.exact.digest import differences
from tests.exact.models import CLASSES, Net
from tests.plugin.rig import Fit, pause_in
from tests.plugin.test_fork import asks, refused
from tests.runner.rig import Barrier, bare, fitted, fitting

STRATEGIES = ["linear", "fisher", "ties", "soup"]


class Normed(Net):
    """With BatchNorm, and a test."""

    def layers(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(16, CLASSES),
        )  # fmt: skip


def options(**more: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    return {"model": Normed(), **more}


def held_with_two(save_dir: Path, run: Fit, barrier: Barrier) -> None:
    """The run "r" at step 3, and a fork of it, "f", at step 5, which is the one that trains."""
    pause_in(run, barrier, 2)
    asks(run, "fork", {"run_name": "f", "params": {"lr": 0.1}})
    asks(run, "resume")
    pause_in(run, barrier, 4)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fit]:
    barrier = Barrier(2, 4)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        held_with_two(tmp_path, run, barrier)
        yield run


def weights_of(run: Fit, run_id: str | None = None) -> dict[str, torch.Tensor]:
    """Of the checkpoint that is made now, or of the newest of another run."""
    kept = asks(run, "save_ckpt")["path"]
    if run_id is not None:
        [kept] = Path(kept).parents[2].glob(f"{run_id}/checkpoints/3-*.ckpt")
    state, _ = read_checkpoint(Path(kept))
    weights: dict[str, torch.Tensor] = state["state_dict"]
    return weights


def test_a_preview_says_what_each_would_be_worth_and_changes_nothing(tmp_path: Path) -> None:
    parts: dict[bool, Any] = {}
    for previewed in (False, True):
        barrier = Barrier(2, 4)
        where = tmp_path / str(previewed)
        with fitting(where, barrier, run_name="r", **options()) as run:
            held_with_two(where, run, barrier)
            if previewed:
                asked = {"parents": ["f", "r"], "recalibrate": True}
                found = asks(run, "merge_preview", asked)
                alone = asks(run, "validate_now")["metrics"]
            asks(run, "resume")
            parts[previewed] = digest.of_run(run.outcome())
    assert differences(parts[False], parts[True]) == []
    f, r = found["parents"]
    assert (f["run_id"], r["run_id"], f["metrics"]) == ("f", "r", alone)
    assert r["score"] != f["score"]
    by_name = {each["strategy"]: each for each in found["candidates"]}
    assert [*by_name] == [*STRATEGIES, "adapter"]
    assert "no tensor is recognised as an adapter" in by_name["adapter"]["refused"]
    scores = {name: by_name[name]["score"] for name in STRATEGIES}
    assert all(isinstance(score, float) for score in scores.values()), by_name
    everything = [*found["candidates"], *found["parents"]]
    best = min((each for each in everything if each["score"]), key=lambda each: each["score"])
    assert found["best"] == {
        name: best[name] for name in ("strategy", "run_id", "checkpoint") if name in best
    }
    assert "gathered anew over 6 batches" in " ".join(by_name["linear"]["told"])
    assert "changes are told from r/3-pause" in by_name["ties"]["told"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_committed_is_what_was_previewed(strategy: str, two: Fit) -> None:
    payload = {"parents": ["f", "r"], "strategy": strategy, "recalibrate": strategy == "fisher"}
    [promised] = asks(two, "merge_preview", payload)["candidates"]
    said = asks(two, "merge", {**payload, "new_name": "m"})
    assert (said["new_run"], said["parents"], said["at_step"]) == ("m", ["f", "r"], 5)
    assert asks(two, "validate_now")["metrics"] == promised["metrics"]
    made = two.dashboard.expect("newRun", run_id="m")
    assert (made["parents"], made["meta"]["kind"]) == (["f", "r"], "merge")
    asks(two, "resume")


def test_a_linear_merge_is_the_mean_and_goes_on_with_the_first_parents_optimizer(
    two: Fit,
) -> None:
    f, r = weights_of(two), weights_of(two, "r")
    asks(two, "merge", {"parents": ["f", "r"], "weights": [3, 1], "strategy": "swa"})
    state, _ = read_checkpoint(Path(asks(two, "save_ckpt")["path"]))
    for name, merged in state["state_dict"].items():
        if merged.is_floating_point():
            torch.testing.assert_close(merged, (3 * f[name] + r[name]) / 4)
        else:
            assert torch.equal(merged, f[name])
    assert len(state["optimizer_states"][0]["state"]) == 6
    assert float(state["optimizer_states"][0]["state"][0]["step"]) == 5
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    asks(two, "resume")


def test_a_fresh_optimizer_is_one_and_the_merge_trains(two: Fit) -> None:
    said = asks(two, "merge", {"parents": ["f", "r"], "optimizer": "fresh"})
    assert any("begins anew" in text for text in said["told"])
    state, _ = read_checkpoint(Path(asks(two, "save_ckpt")["path"]))
    assert state["optimizer_states"][0]["state"] == {}
    asks(two, "resume")
    outcome = two.outcome()
    assert outcome.counters.global_step == 12


def test_its_parents_are_what_they_were(tmp_path: Path) -> None:
    expected = bare(**options())
    barrier = Barrier(2, 4)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        held_with_two(tmp_path, run, barrier)
        asks(run, "merge", {"parents": ["f", "r"], "new_name": "m"})
        undone = asks(run, "undo")
        assert undone["now"]["run_id"] == "f"
        asks(run, "switch_run", {"run_id": "r"})
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def test_a_merge_trains_on_all_the_data_and_says_what_that_means(tmp_path: Path) -> None:
    barrier = Barrier(2, 4)
    with fitting(tmp_path, barrier, run_name="r", **options()) as run:
        pause_in(run, barrier, 2)
        some = {"kind": "indices", "ids": [*range(40)]}
        asks(run, "fork", {"run_name": "f", "selection": some, "batch_size": 8})
        asks(run, "resume")
        pause_in(run, barrier, 4)
        assert asks(run, "status")["data"]["chosen"] == 40
        said = asks(run, "merge", {"parents": ["f", "r"]})
        assert asks(run, "status")["data"] is None
        assert "it trains on all samples; the epochs that f had" in " ".join(said["told"])
        said = asks(run, "merge", {"parents": ["r", "f"]})
        assert "it trains on all samples" not in " ".join(said["told"])
        asks(run, "resume")


def test_a_killed_merge_goes_on_exactly(tmp_path: Path) -> None:
    barrier, named = Barrier(2, 4), {"project": "p", "run_name": "r"}
    with fitting(tmp_path / "runs", barrier, **named, **options()) as run:
        held_with_two(tmp_path, run, barrier)
        asks(run, "merge", {"parents": ["f", "r"], "strategy": "fisher"})
        copied = shutil.copytree(tmp_path / "runs", tmp_path / "copied")
        asks(run, "resume")
        expected = digest.of_run(run.outcome())
    torch.manual_seed(99)
    where = {"save_dir": copied, "dashboard": "off", "resume": "auto"}
    found = digest.of_run(fitted(**where, **named, **options()))
    assert differences(expected, found) == []


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        ({"parents": ["r"]}, "bad_payload", "allowed: 2 to 16"),
        ({"parents": ["r", "nobody"]}, "not_found", "nobody"),
        ({"parents": ["f", "r"], "strategy": "magic"}, "bad_payload", "allowed: linear"),
        ({"parents": ["f", "r"], "checkpoints": ["x"]}, "bad_payload", "1 checkpoints"),
        ({"parents": ["f", "r"], "checkpoints": [None, "x"]}, "not_found", "no checkpoint 'x'"),
        ({"parents": ["f", "r"], "weights": [1]}, "bad_payload", "1 weights"),
        ({"parents": ["f", "r"], "optimizer": "none"}, "bad_payload", "parent, fresh"),
        ({"parents": ["f", "r"], "steps": 0}, "bad_payload", "steps"),
        ({"parents": ["f", "r"], "strategy": "soup", "monitor": "m"}, "bad_payload", "monitor"),
        ({"parents": ["f", "r"], "strategy": "ties", "base": "x"}, "not_found", "'x'"),
        ({"parents": ["f", "r"], "new_name": "r"}, "bad_payload", "named r already"),
        ({"parents": ["f", "r"], "new_name": "../r"}, "bad_payload", ""),
        ({"parents": ["f", "f"], "strategy": "ties"}, "bad_payload", "did not part"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_the_run_is_as_it_was(
    payload: dict[str, Any], code: str, says: str, two: Fit
) -> None:
    before = weights_of(two)
    found = refused(two, "merge", payload)
    assert (found[0], says in found[1]) == (code, True), found
    after = weights_of(two)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert asks(two, "status")["run_id"] == "f"
    asks(two, "resume")


def test_another_model_and_a_damaged_file_are_refused(two: Fit, tmp_path: Path) -> None:
    [ours] = tmp_path.glob("*/r/checkpoints/3-*.ckpt")
    other = tmp_path / "other.ckpt"
    other.write_bytes(ours.read_bytes()[:-100])
    found = refused(two, "merge", {"parents": ["f", "r"], "paths": [None, str(other)]})
    assert found[0] == "bad_payload"
    assert asks(two, "status")["run_id"] == "f"
    asks(two, "resume")


def test_a_validation_that_raises_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    class Raises(Normed):
        raises = False

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if Raises.raises:
                msg = "no"
                raise OSError(msg)
            super().validation_step(batch, batch_idx)

    torch.manual_seed(5)
    expected = bare(model=Raises())
    torch.manual_seed(5)
    barrier = Barrier(2)
    with fitting(tmp_path, barrier, run_name="r", model=Raises()) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"run_name": "f"})
        Raises.raises = True
        assert refused(run, "merge_preview", {"parents": ["f", "r"]})[0] == "internal"
        Raises.raises = False
        asks(run, "resume")
        found = digest.of_run(run.outcome())
    assert differences(expected, found) == []


def test_a_preview_can_be_cancelled_at_a_batch(tmp_path: Path) -> None:
    """By the validation's own loader, which asks for it in its first batch."""
    asked: list[Any] = []

    class Cancels(Normed):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if asked and asked[0] is not None:
                asked.pop()()
            super().validation_step(batch, batch_idx)

    torch.manual_seed(5)
    expected = bare(model=Cancels())
    torch.manual_seed(5)
    barrier = Barrier(2)
    with fitting(tmp_path, barrier, run_name="r", model=Cancels()) as run:
        pause_in(run, barrier, 2)
        asks(run, "fork", {"run_name": "f"})
        dashboard = run.dashboard
        cancelled: list[Any] = []
        asked.append(lambda: cancelled.append(dashboard.request("cancel")))
        found = refused(run, "merge_preview", {"parents": ["f", "r"]})
        assert found[0] == "not_allowed_now"
        assert "was cancelled after 0 of 7" in found[1]
        asks(run, "resume")
        outcome = digest.of_run(run.outcome())
    assert differences(expected, outcome) == []
