"""Samples and health of two ranks are looked at; and both end as if nobody had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from otf_core.health.checks import CHECKS
from otf_core.runs.samples import Scan
from otf_core.runs.subject import Subject, silenced
from otf_core.state.parked import parked
from otf_core.testing import FakeDashboard
from tests.no_harm.configs import digits
from tests.plugin.ranks_look import APART, BATCH, PARTED_AT, SIZES, STEPS, WAITS_AT, Looked
from tests.plugin.test_ranks_as_one import RANKS, attached, done, outcome, result, started

LOOKS = "tests.plugin.ranks_look"


def held_at(dashboard: FakeDashboard, folder: Path, step: int) -> None:
    done(dashboard, "resume")
    asked = dashboard.send("pause", {"at_step": step})
    dashboard.expect("accepted", request_id=asked)
    (folder / f"go{max(at for at in WAITS_AT if at < step)}").touch()
    assert dashboard.reply_to(asked)["data"]["step"] == step


def refused(dashboard: FakeDashboard, cmd: str, **payload: Any) -> str:
    reply = dashboard.request(cmd, payload)
    assert not reply["ok"], reply
    detail: str = reply["detail"]
    return detail


def scanned(dashboard: FakeDashboard, on: str, **payload: Any) -> list[float]:
    """The losses of a set, which has each sample once."""
    found = done(dashboard, "scan", on=on, **payload)
    assert found["count"] == SIZES[on]
    assert found["rule"].endswith("cross_entropy for each sample, on 2 ranks")
    page = done(dashboard, "samples", on=on)
    assert page["sample_indices"] == list(range(SIZES[on]))
    losses: list[float] = page["losses"]
    return losses


@contextlib.contextmanager
def _around(net: Looked) -> Iterator[None]:
    with parked({"": net}, []), silenced(net):
        yield


def in_one_process(checkpoint: str, on: str) -> list[float]:
    """The losses that a checkpoint has, found here."""
    net = Looked(Path())
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    subject = Subject(
        on, digits(SIZES[on]), default_collate, BATCH, {"": net}, net.training_step,
        "training_step", lambda: _around(net),
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scan = Scan(subject)
        scan.work()
    finally:
        torch.set_num_threads(threads)
    assert scan.table().losses is not None
    losses: list[float] = scan.table().losses.tolist()
    return losses


def look_at_all(dashboard: FakeDashboard, folder: Path) -> None:
    """What one process finds is found, bit for bit; and all that is made of it is made."""
    saved = done(dashboard, "save_ckpt")
    losses = {on: scanned(dashboard, on) for on in SIZES}
    for on, found in losses.items():
        assert found == in_one_process(saved["path"], on)
    worst = done(
        dashboard, "select", on="train", selection={"kind": "quantile", "from": 0.9, "to": 1}
    )
    assert worst["count"] == 14
    assert done(dashboard, "select", on="train")["figures"]["count"] == SIZES["train"]
    report = done(dashboard, "generate_report", owner_run_id="r", reqId=1)
    assert report["losses"] == losses["train"]
    some = done(
        dashboard, "generate_report", owner_run_id="r", reqId=2, subset_indices=[140, 3, 77]
    )
    assert some["sample_indices"] == [3, 77, 140]
    middle = sorted(losses["train"])[70]
    region = done(dashboard, "get_selected_region_indices", run_id="r", min_loss=0, max_loss=middle)
    assert region["indices"] == [n for n, loss in enumerate(losses["train"]) if loss <= middle]
    pictures = done(dashboard, "show_samples", on="train", ids=[5, 148])["samples"]
    assert [each["id"] for each in pictures] == [5, 148]
    assert scanned(dashboard, "val", layer="net.1") == losses["val"]
    clusters = {"kind": "kmeans", "k": 2, "target_clusters": [0, 1], "feature": "net.1"}
    rows = done(dashboard, "export_subset", format="csv", on="val", selection=clusters)["rows"]
    assert rows == SIZES["val"]
    both = done(dashboard, "compare", runs=["r", saved["id"]], on="val")
    assert both["rule"].endswith("on 2 ranks")
    assert (both["pairs"][0]["same"], both["pairs"][0]["apart"]) == (SIZES["val"], [])
    for cmd in ("export_weights", "export_session", "export_report"):
        assert Path(done(dashboard, cmd)["out_path"]).stat().st_size > 0
    assert done(dashboard, "prepare_export", dir=str(folder))["ckpt"]["step"] == saved["step"]


def check_health(dashboard: FakeDashboard) -> None:
    for cmd in CHECKS:
        found = done(dashboard, cmd)
        if cmd == "dist_health":
            assert (found["differing"], found["states_differing"]) == ([], [])
            names = [row["name"] for row in found["buffers_differing"]]
            assert names == ["net.1.running_mean", "net.1.running_var"]
            assert "Statistics of BatchNorm differ" in found["text"]
            assert "6 parameters are bit for bit the same on 2 ranks." in found["text"]
        else:
            assert found["text"].startswith("Rank 0 of 2:")
            assert [row["rank"] for row in found["others"]] == [1]
        assert found["ok"] or cmd == "throughput_health"  # which measures this machine
    assert done(dashboard, "dist_health", sample_weights=2, require_all_ranks=True)["compared"] == 2


def cancel_a_scan(dashboard: FakeDashboard, folder: Path) -> None:
    (folder / "slow").touch()
    asked = dashboard.send("scan", {"on": "test"})
    dashboard.expect("progress", request_id=asked)
    assert done(dashboard, "cancel", request_id=asked)["cancelled"] == asked
    reply = dashboard.reply_to(asked)
    assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
    assert "of 53 samples; the run is as it was." in reply["detail"]
    (folder / "slow").unlink()


@pytest.mark.timeout(400)
def test_two_ranks_that_are_looked_at_end_as_if_nobody_had(tmp_path: Path) -> None:
    with attached(tmp_path, LOOKS) as (process, dashboard):
        background = {"on": "train", "background": True, "share": 0.5, "ids": list(range(60, 90))}
        asked = dashboard.send("scan", background)
        held_at(dashboard, tmp_path, 6)
        look_at_all(dashboard, tmp_path)
        check_health(dashboard)
        held_at(dashboard, tmp_path, PARTED_AT + 1)
        found = done(dashboard, "dist_health")
        [row] = found["differing"]
        assert not found["ok"]
        assert (row["parameter"], row["ranks"]) == ("net.0.weight", [1])
        assert row["max_abs"] == pytest.approx(APART, rel=0.1)
        assert "net.0.weight  rank 1 has another than rank 0" in found["text"]
        cancel_a_scan(dashboard, tmp_path)
        held_at(dashboard, tmp_path, 18)
        scan = dashboard.reply_to(asked)["data"]
        assert scan["count"] == 30
        assert 0 <= scan["first_step"] <= scan["last_step"] <= 18
        for cmd in ("scan", *CHECKS):
            if cmd != "dist_health":
                assert "runs a collective (all" in refused(dashboard, cmd)
        done(dashboard, "resume")
        assert dashboard.expect("trainingFinished")["step"] == STEPS
        outcome(process)
    with started(tmp_path, 0, LOOKS) as process:
        outcome(process)
    for rank in RANKS:
        bare, live = (result(tmp_path, name, rank) for name in ("bare", "live"))
        assert live.pop("logged") == bare.pop("logged")
        assert live == bare
