"""The benchmarks run and say something; how fast anything is, no test here says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import blocks, fits, simulated, specialists, step_cost
from benchmarks.figures import Row
from otf_lightning import OnTheFlyCallback


@pytest.mark.timeout(120)
def test_a_short_run_gives_a_row_for_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_quieten", lambda: None)  # it changes the process for good
    names = ["events_per_s", "stalled_memory", "checkpoint_block", "guards"]
    code = bench.main([*names, "--quick", "--json", str(tmp_path / "rows.json")])

    told = json.loads((tmp_path / "rows.json").read_text())
    assert {row["bench"] for row in told["rows"]} == set(names)
    assert len(told["rows"]) == 8
    for row in told["rows"]:
        assert math.isfinite(row["ours"])
        assert row["ours"] > 0
    over = any(row["held"] == "over twice" for row in told["rows"])
    assert code == int(over)
    shown = capsys.readouterr().out
    for row in told["rows"]:
        assert row["what"] in shown


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_step_is_compared_with_the_bare_run_and_both_loggers(tmp_path: Path) -> None:
    rows = bench._alone("step_idle", tmp_path, quick=True)

    assert [row.what.rpartition(", ")[2] for row in rows] == ["telemetry off", "telemetry full"]
    for row in rows:
        assert {"CSVLogger", "TensorBoardLogger", "bare step, cpu median"} <= set(row.rivals)
        assert set(row.spread) == {
            "cpu median", "cpu p5", "cpu mean", "wall median", "wall p5", "all threads' cpu",
            "standard error of the cpu median",
        }  # fmt: skip


@pytest.mark.timeout(120)
def test_a_rollback_is_compared_with_starting_again(tmp_path: Path) -> None:
    rows = bench._alone("rollback", tmp_path, quick=True)

    assert [row.limit for row in rows] == [10.0, None, None]
    for row in rows:
        assert row.ours > 0
        assert min(row.spread.values()) > 0
        again, _, anew = row.rivals.values()
        assert 0 < again < anew
    assert {"read and verified", "undo point", "put in place"} <= set(rows[1].spread)


@pytest.mark.timeout(120)
def test_the_tap_is_compared_with_the_bare_loader(tmp_path: Path) -> None:
    rows = bench._alone("tap", tmp_path, quick=True)

    names = ", the data set holds 5,000 names"
    whats = [row.what.rpartition("tap, ")[2] for row in rows]
    assert whats == ["0 workers", "2 workers", f"0 workers{names}", f"2 workers{names}"]
    for row in rows:
        assert math.isfinite(row.ours)
        assert "bare again, cpu median" in row.rivals
        assert row.rivals["bare step, cpu median"] > 0


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_merge_is_compared_with_loading_all(tmp_path: Path) -> None:
    rows = bench._alone("merging", tmp_path, quick=True)

    strategies = ["linear", "fisher", "ties", "soup", "linear, the live model set aside"]
    assert [row.what.rpartition("one: ")[2] for row in rows] == strategies
    for row in rows:
        assert row.limit is None
        assert row.ours > 0
        assert row.spread["s"] > row.spread["of that verifying, s"] > 0
        assert {"torch.load of all", "torch.load of all, mmap"} < set(row.rivals)


@pytest.mark.timeout(120)
def test_a_scan_is_compared_with_a_plain_evaluation(tmp_path: Path) -> None:
    rows = bench._alone("scan", tmp_path, quick=True)

    assert [(row.limit, row.at_least) for row in rows] == [(0.9, True)] * 2
    for row in rows:
        assert row.ours > 0
        assert {"plain again", "plain, samples/s", "trainer.validate, samples/s"} == {*row.rivals}


@pytest.mark.timeout(120)
def test_within_one_fit_all_arms_take_turns_and_only_ours_is_told_of_its_steps(
    tmp_path: Path,
) -> None:
    callback = step_cost.attached("off")(tmp_path)
    assert isinstance(callback, OnTheFlyCallback)
    told: list[int] = []
    begin = OnTheFlyCallback.on_train_batch_start

    def noted(trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        told.append(batch_idx)
        begin(callback, trainer, module, batch, batch_idx)

    callback.on_train_batch_start = noted  # type: ignore[method-assign]
    work = fits.Workload((64, 32, 10), 16, steps=0, warm_up=5)
    found = blocks.alternate(callback, [blocks.Bare("again")], work, rounds=3, connected=False)

    assert {name: len(steps) for name, steps in found.items()} == {"bare": 3, "otf": 3, "again": 3}
    assert all(len(steps.cpu) == blocks.BLOCK - 2 for steps in found["otf"])
    assert len(told) == 5 + 3 * blocks.BLOCK + 1  # warm-up, its blocks, the last one


@pytest.mark.parametrize(
    ("ours", "limit", "at_least", "held"),
    [
        (50.0, 50.0, False, "yes"),
        (-3.0, 50.0, False, "yes"),
        (50.1, 50.0, False, "no"),
        (100.0, 50.0, False, "no"),
        (100.1, 50.0, False, "over twice"),
        (30_000.0, 30_000.0, True, "yes"),
        (29_999.0, 30_000.0, True, "no"),
        (14_999.0, 30_000.0, True, "over twice"),
        (7.0, None, False, "-"),
    ],
)
def test_a_figure_is_held_against_its_limit(
    ours: float, limit: float | None, at_least: bool, held: str
) -> None:
    row = Row(bench="b", what="w", unit="us", ours=ours, limit=limit, at_least=at_least)
    assert row.held == held
    assert row.to_json()["held"] == held


def test_an_unknown_name_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["step_idel"])
    assert ended.value.code == 2
    assert "step_idle" in capsys.readouterr().err


def _judged(*losses: float) -> specialists.Judged:
    found = np.array(losses)
    return specialists.Judged(found, found < 1.0)


def test_a_specialist_is_judged_on_what_its_parent_and_on_what_the_others_find_hard() -> None:
    # Ten samples: a tenth is one. Its parent finds the last one hard, the other parent the first.
    easy = [0.0] * 8
    first = {
        "parent": _judged(0.1, *easy, 3.0),
        "control": _judged(0.2, *easy, 2.0),
        specialists.SPECIALIST: _judged(0.7, *easy, 0.5),
        "merged": _judged(0.4, *easy, 1.5),
    }
    second = {
        **first,
        "parent": _judged(3.0, *easy, 0.1),
        specialists.SPECIALIST: _judged(0.9, *easy, 0.5),
    }

    own, others, everything = specialists.rows_of((0.0, 50, 25), [first, second])

    # The last sample in the first seed, 0.5 - 2.0, and the first one in the second, 0.9 - 0.2.
    found = [own.ours, own.spread["lowest"], own.spread["highest"], own.spread["better in"]]
    assert found == pytest.approx([-0.4, -1.5, 0.7, 1])
    assert others.ours == pytest.approx(-0.5)
    assert own.rivals["control's loss"] == pytest.approx(1.1)
    assert own.rivals["merged"] == pytest.approx(-0.15)
    assert everything.ours == pytest.approx(-0.09)
    assert everything.spread["right, control, %"] == pytest.approx(90.0)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_specialist_is_compared_with_a_control(tmp_path: Path) -> None:
    rows = bench._alone("specialists", tmp_path, quick=True)

    assert len(rows) == 3
    for row in rows:
        assert row.limit is None
        assert math.isfinite(row.ours)
        assert {"parent", "merged, fisher", "worst tenth weighs 9"} < set(row.rivals)


@pytest.mark.timeout(120)
def test_the_losses_of_many_samples_come_to_a_dashboard(tmp_path: Path) -> None:
    scan, pages = bench._alone("report", tmp_path, quick=True)

    assert scan.rivals["plain evaluation, s"] > 0
    assert pages.spread["pages"] == 1
    assert pages.spread["MB of JSON"] > 0.2


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_crowd_is_heard_by_every_page(tmp_path: Path) -> None:
    rows = bench._alone("hub", tmp_path, quick=True)

    assert [row.unit for row in rows] == ["%", "ms", "%", "ms"]
    for cpu, delay in zip(rows[::2], rows[1::2], strict=True):
        assert cpu.rivals["events a page, least"] > 0
        assert 0 < delay.spread["p5"] <= delay.ours <= delay.spread["p95"]


@pytest.mark.web
@pytest.mark.timeout(180)
def test_the_page_is_measured_in_a_browser(tmp_path: Path) -> None:
    rows = bench._alone("page", tmp_path, quick=True)

    assert [row.unit for row in rows] == ["% of a core", "ms", "MB", "ms"]
    assert [row.limit for row in rows] == [45.0, None, None, None]
    assert rows[0].what.startswith("browser, 21 charts")
    assert rows[1].spread["seen, of 1"] > 0.5
    for row in rows:
        assert math.isfinite(row.ours)
        assert row.ours > 0


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_safe_point_of_ranks_is_compared_with_asking_at_every_step(tmp_path: Path) -> None:
    [row] = bench._alone("ranks", tmp_path, quick=True)

    assert row.ours > 0
    assert row.spread["collectives more"] == 0
    assert row.rivals["collectives of a bare step"] == 1
    more = {name: value for name, value in row.rivals.items() if name.endswith("more")}
    assert [*more.values()] == [1, 1, 2]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_ranks_that_fit_here_are_measured_and_more_of_them_simulated(tmp_path: Path) -> None:
    rows = bench._alone("ranks_scale", tmp_path, quick=True)

    sizes = [row.what.partition(" ranks")[0] for row in rows]
    assert sizes == ["2", "4", "64", "256", "1,024", "4,096", "8,192"]
    for row in rows:
        assert row.ours > 0
        assert row.rivals["estimated"] > 0
    far = [row.ours for row in rows[2:]]
    assert far == sorted(far)


def test_what_is_simulated_is_what_can_be_told_by_hand() -> None:
    costs = simulated.Costs(push_s=1.0, serve_s=10.0, read_s=100.0, wake_s=1000.0)
    two = simulated.Simulation(2, costs)
    # Written, served, answered, served, rank 0 wakes, asks and reads; written, served, woken.
    there_and_back = 1.0 + 10.0 + 1000.0 + 10.0 + 1000.0
    assert two.seconds() == there_and_back + 10.0 + 100.0 + 1.0 + 10.0 + 1000.0
    assert two.operations == 6
    apart = dataclasses.replace(costs, latency_s=10_000.0)
    assert simulated.Simulation(2, apart).seconds() == there_and_back + 1121.0 + 3 * 10_000.0
    # Nobody else's turn is shorter for it: two on one core answer one after the other.
    both = simulated.Simulation(3, dataclasses.replace(costs, cores=1)).seconds()
    assert both > simulated.Simulation(3, costs).seconds() > two.seconds() / 2
