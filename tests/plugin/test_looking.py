"""A held run is looked at by commands, and goes on as if nobody had."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from otf_core.health.checks import CHECKS
from otf_core.runs import forking, looking
from tests.no_harm import digest
from tests.no_harm.configs import _val, digits
from tests.plugin.rig import Barrier, fitting, pause_in, unlogged
from tests.plugin.test_fork import Seeing, asks, bare, fit, refused


def losses_of(module: Seeing) -> Any:
    """Of each training sample, by other means than ours."""
    mode = module.training
    module.eval()
    with torch.no_grad():
        x, y = digits()[:]
        found = nn.functional.cross_entropy(module.net(x), y, reduction="none")
    module.train(mode)
    return found.double().numpy()


def sure_of(module: Seeing) -> Any:
    """The probability of what is predicted, of each training sample."""
    mode = module.training
    module.eval()
    with torch.no_grad():
        found = nn.functional.softmax(module.net(digits()[:][0]), dim=1).amax(dim=1)
    module.train(mode)
    return found.numpy()


def test_scan_report_and_region_tell_the_losses_and_leave_no_trace(tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    module, barrier = Seeing(), Barrier(4)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        want = losses_of(module)
        found = asks(run, "scan")
        page = asks(run, "samples")
        report = asks(run, "generate_report", {"owner_run_id": "r", "reqId": 7})
        some = asks(run, "generate_report", {"subset_indices": [5, 3]})
        middle = float(np.median(want))
        region = asks(run, "get_selected_region_indices", {"min_loss": middle})
        asks(run, "resume")
        trainer = run.outcome()
        told = [e for e in run.dashboard.events() if e["type"] == "progress"]
    assert (found["count"], page["total"], page["now"]) == (192, 192, True)
    assert found["rule"].startswith("by training_step of Seeing, its cross_entropy")
    assert found["figures"]["mean"] == pytest.approx(want.mean())
    assert page["losses"] == pytest.approx(want.tolist(), rel=1e-5)
    assert (report["losses"], report["sample_indices"]) == (page["losses"], [*range(192)])
    assert report["meta"] == {"at_step": 5, "at_epoch": 0, "note": "as it was found before"}
    assert (report["reqId"], some["sample_indices"]) == (7, [3, 5])
    assert set(region["indices"]) == {n for n, loss in enumerate(page["losses"]) if loss >= middle}
    assert (told[0]["total"], told[-1]["done"]) == (192, 2)
    assert unlogged(digest.of(trainer)) == expected


def test_samples_are_shown_as_the_module_says_and_leave_no_trace(tmp_path: Path) -> None:
    class Shows(Seeing):
        def render_sample(self, sample: Any) -> Any:
            torch.rand(3)
            if sample[2] == 5:
                msg = "no picture"
                raise OSError(msg)
            return {"kind": "text", "text": f"sample {sample[2]}", "label": int(sample[1])}

    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Shows()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        found = asks(run, "show_samples", {"ids": [3, 5]})
        of_val = asks(run, "show_samples", {"ids": [0], "on": "val"})
        for ids in ([], [192], [-1], [0] * 65):
            code, detail = refused(run, "show_samples", {"ids": ids})
            assert (code, "1 to 64, each from 0 to 191" in detail) == ("bad_payload", True)
        asks(run, "resume")
        trainer = run.outcome()
    label = int(digits()[3][1])
    assert found["samples"] == [
        {"id": 3, "kind": "text", "text": "sample 3", "label": label},
        {"id": 5, "kind": "text", "text": "", "reason": "OSError: no picture"},
    ]
    assert of_val["samples"][0]["reason"].startswith("IndexError")  # it has no third column
    assert unlogged(digest.of(trainer)) == expected


def test_a_fork_on_the_worst_tenth_looks_first_and_trains_on_it(tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    module, barrier = Seeing(), Barrier(4, 6)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        worst = sorted(np.argsort(losses_of(module), kind="stable")[173:].tolist())
        said = asks(run, "fork", {"selection": {"kind": "quantile", "from": 0.9, "to": 1.0}})
        assert said["subset_indices"] == worst
        asks(run, "resume")
        pause_in(run, barrier, 6)
        assert sorted(each for batch, _ in module.trained[5:7] for each in batch) == worst
        asks(run, "undo")
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


@pytest.mark.parametrize("cmd", CHECKS)
def test_a_check_of_its_health_answers_and_leaves_no_trace(cmd: str, tmp_path: Path) -> None:
    expected = bare()
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        found = asks(run, cmd, {"budget_steps": 1})
        assert isinstance(found["ok"], bool)
        assert found["text"]
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


class Slow(Seeing):
    """Its scan waits in the middle, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        reached, go = threading.Event(), threading.Event()
        self.events = lambda: (reached, go)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.training and batch_idx == 3:
            reached, go = self.events()
            reached.set()
            assert go.wait(30)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("cmd", ["scan", "fork"])
def test_what_is_cancelled_is_refused_and_the_run_is_as_it_was(cmd: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = unlogged(digest.of(fit([], Slow())))
    torch.manual_seed(3)
    module, barrier = Slow(), Barrier(4)
    payload = {"selection": {"kind": "region", "minLoss": 1.0, "maxLoss": 9.0}}
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        asked = run.dashboard.send(cmd, payload if cmd == "fork" else {})
        reached, go = module.events()
        assert reached.wait(30)
        assert refused(run, "cancel", {"request_id": "another"})[0] == "not_found"
        assert asks(run, "cancel", {"request_id": asked}) == {"cancelled": asked}
        go.set()
        reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
        assert f"{cmd} was cancelled after" in reply["detail"]
        assert asks(run, "cancel") == {"cancelled": None}
        assert asks(run, "status")["run_id"] == "r"
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


class Raising(Seeing):
    def per_sample_loss(self, batch: Any) -> Any:
        msg = "no luck"
        raise RuntimeError(msg)


def test_a_hook_that_raises_costs_the_command_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = unlogged(digest.of(fit([], Raising())))
    torch.manual_seed(3)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Raising()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        code, detail = refused(run, "scan", {})
        assert (code, "no luck" in detail) == ("internal", True)
        assert refused(run, "scan", {"on": "nothing"})[0] == "bad_payload"
        assert refused(run, "samples", {})[0] == "not_allowed_now"
        assert asks(run, "status")["state"] == "paused"
        asks(run, "resume")
        trainer: L.Trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


class Cancelled(Seeing):
    """Its evaluations ask, in their second batch, to be cancelled."""

    def __init__(self) -> None:
        super().__init__()
        asks_: list[Any] = []
        self.asks = lambda: asks_

    def _maybe(self, batch_idx: int) -> None:
        if batch_idx == 1 and self.asks():
            self.asks().pop()()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._maybe(batch_idx)
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._maybe(batch_idx)
        super().test_step(batch, batch_idx)


@pytest.mark.parametrize("cmd", ["test_now", "validate_now"])
def test_an_evaluation_that_is_cancelled_is_refused_and_leaves_no_trace(
    cmd: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    expected = unlogged(digest.of(fit([], Cancelled())))
    torch.manual_seed(3)
    module, barrier = Cancelled(), Barrier(4)
    with fitting(
        lambda c: fit(c, module), tmp_path, barrier, run_name="r", test_dataloaders=_val()
    ) as run:
        pause_in(run, barrier, 4)
        module.asks().append(lambda: run.dashboard.request("cancel"))
        code, detail = refused(run, cmd, {})
        assert (code, detail) == (
            "not_allowed_now",
            f"{cmd} was cancelled after 2 batches; the run is as it was.",
        )
        assert asks(run, "status")["state"] == "paused"
        assert asks(run, "results")["results"] == []
        assert asks(run, cmd)["metrics"]
        asks(run, "resume")
        trainer = run.outcome()
    assert unlogged(digest.of(trainer)) == expected


def test_a_report_that_is_no_line_of_a_dashboard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MOST_AT_ONCE", 100)
    barrier = Barrier(4)
    with fitting(lambda c: fit(c, Seeing()), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        code, detail = refused(run, "generate_report", {})
        assert (code, "allowed: 100, or scan" in detail) == ("unsupported", True)
        some = asks(run, "generate_report", {"subset_indices": [*range(100)]})
        assert len(some["losses"]) == 100
        asks(run, "resume")


def test_a_selection_is_counted_by_what_was_scanned_last(tmp_path: Path) -> None:
    module, barrier = Seeing(), Barrier(4, 6)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        assert asks(run, "select") == {"on": "train", "of": 192, "step": 5, "count": None}
        worst = {"selection": {"kind": "quantile", "from": 0.9, "to": 1.0}}
        assert refused(run, "select", worst)[0] == "not_allowed_now"
        figures = asks(run, "scan")["figures"]
        want, sure = losses_of(module), sure_of(module)
        whole, some = asks(run, "select"), asks(run, "select", worst)
        none = {"selection": {"kind": "region", "minLoss": 1e6, "maxLoss": 2e6}}
        assert asks(run, "select", none)["count"] == 0
        asks(run, "resume")
        pause_in(run, barrier, 6)
        later = asks(run, "select", worst)
        asks(run, "resume")
        run.outcome()
    assert (whole["count"], whole["figures"], whole["now"]) == (192, figures, True)
    assert (some["count"], some["of"], some["run_id"]) == (19, 192, "r")
    order = np.argsort(-want, kind="stable")[:19].tolist()
    assert [each["id"] for each in some["worst"]] == order
    assert [each["sure"] for each in some["worst"]] == pytest.approx(sure[order].tolist(), rel=1e-5)
    # The run has gone on: the losses are those of before, and that is said.
    assert (later["count"], later["worst"], later["now"]) == (19, some["worst"], False)
    assert (later["first_step"], later["last_step"], later["step"]) == (5, 5, 7)


def test_a_fork_tells_how_many_samples_it_has_and_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "IDS_TOLD", 3)
    module, barrier = Seeing(), Barrier(4)
    with fitting(lambda c: fit(c, module), tmp_path, barrier, run_name="r") as run:
        pause_in(run, barrier, 4)
        said = asks(run, "fork", {"selection": {"kind": "indices", "ids": [*range(20, 40)]}})
        whole = asks(run, "fork", {"selection": None})
        asks(run, "resume")
        run.outcome()
    assert (said["subset_indices"], said["subset_count"]) == ([20, 21, 22], 20)
    assert whole["subset_count"] == 20  # its parent's samples
