"""What a step costs more: nobody there, everything on, a dashboard that stalls or dies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from benchmarks import blocks, fits, peers
from benchmarks.figures import Row
from benchmarks.fits import Arm
from benchmarks.inside import Meter
from otf_lightning import OnTheFlyCallback

IDLE_US: Final = 50.0
FULL_SHARE: Final = 0.01
FULL_STEP_S: Final = 0.020
ABOUT: Final = "a step of about 20 ms, full telemetry, dashboard reading"
BARE: Final = Arm("bare")
CSV: Final = Arm("CSVLogger", logger=CSVLogger)
TENSORBOARD: Final = Arm("TensorBoardLogger", logger=TensorBoardLogger)


def attached(dashboard: str = "auto", telemetry: Any = "full") -> Callable[[Path], L.Callback]:
    """Makes our callback."""
    return lambda tmp: OnTheFlyCallback(
        project="bench", save_dir=tmp, dashboard=dashboard, telemetry=telemetry
    )


def step_idle(*, quick: bool, tmp: Path) -> list[Row]:
    """Tiny model, nobody there: telemetry off against its limit, full beside the loggers."""
    empty = Arm("an empty Callback", lambda _tmp: L.Callback())
    off = Arm("telemetry off", attached(telemetry="off"))
    full = Arm("telemetry full", attached())
    work = fits.Workload((64, 32, 10), 16, steps=60, warm_up=20) if quick else fits.TINY
    arms = [BARE, empty, off, full, CSV, TENSORBOARD]
    found = fits.alternate(arms, work, rounds=2 if quick else 12, tmp=tmp)
    cost = {arm.name: fits.added(found[arm.name], found["bare"]) for arm in arms[1:]}
    rivals = {name: cost[name].judged for name in (empty.name, CSV.name, TENSORBOARD.name)}
    beside = {**rivals, **fits.step_us(found["bare"])}
    return [
        Row(
            bench="step_idle",
            what=f"added per step, tiny model, nobody there, {name}",
            unit="us",
            ours=cost[name].judged,
            limit=IDLE_US if name == off.name else None,
            spread=cost[name].spread(),
            rivals=beside,
        )
        for name in (off.name, full.name)
    ]


def step_full(*, quick: bool, tmp: Path) -> list[Row]:
    """A step of real length, everything measured, a real dashboard connected and reading.

    Three figures. The difference to the bare step within one fit is what a user pays. The same
    between fits has no limit: two bare fits, which stand beside it, differ by as much as the limit
    would be, so that it says more about the machine than about us. The time inside
    our code is the steadiest, and leaves out what we cost outside of it: Lightning's own way to a
    callback, our other threads, and the caches that the model finds changed.
    """
    work = fits.of_length(
        0.004 if quick else FULL_STEP_S, steps=15 if quick else 60, warm_up=5 if quick else 20
    )
    with peers.dashboard(tmp):
        within = _within_one_fit(work, tmp / "within", rounds=2 if quick else 30)
        between = _between_fits(work, tmp, rounds=1 if quick else 12)
        long = dataclasses.replace(work, steps=15 if quick else 400)
        spent = _spent_inside(long, tmp / "inside")
    bare_us = within.rivals["bare step, cpu median, us"]
    inside = Row(
        bench="step_full",
        what=f"inside our code, {ABOUT}, mean",
        unit="% of the step",
        ours=100.0 * spent["mean"] / bare_us,
        limit=100.0 * FULL_SHARE,
        spread={f"{name}, us": value for name, value in spent.items()},
        rivals={"bare step, cpu median, us": bare_us},
    )
    return [within, between, inside]


def _within_one_fit(work: fits.Workload, tmp: Path, *, rounds: int) -> Row:
    loggers: list[blocks.Arm] = [
        blocks.Logging(CSV.name, CSVLogger(tmp / "csv")),
        blocks.Logging(TENSORBOARD.name, TensorBoardLogger(tmp / "tensorboard")),
    ]
    callback = attached()(tmp)
    assert isinstance(callback, OnTheFlyCallback)
    arms = [blocks.Bare("bare again"), *loggers]
    work = dataclasses.replace(work, warm_up=2 * work.warm_up)
    found = blocks.alternate(callback, arms, work, rounds=rounds)
    what = f"difference to the bare step within one fit, {ABOUT}, larger of cpu median and mean"
    return _difference(found, what, "otf", lambda cost: cost.judged, limit=100.0 * FULL_SHARE)


def _between_fits(work: fits.Workload, tmp: Path, *, rounds: int) -> Row:
    full = Arm("telemetry full", attached(), connected=True)
    arms = [BARE, Arm("bare again"), full, CSV, TENSORBOARD]
    found = fits.alternate(arms, work, rounds=rounds, tmp=tmp)
    # A mean of so few fits would say more about the machine.
    what = f"the same between fits, {ABOUT}, cpu median"
    return _difference(found, what, full.name, lambda cost: cost.median)


def _difference(
    found: dict[str, list[fits.Steps]],
    what: str,
    ours: str,
    figure: Callable[[fits.Added], float],
    limit: float | None = None,
) -> Row:
    cost = {name: fits.added(steps, found["bare"]) for name, steps in found.items()}
    bare = fits.step_us(found["bare"])
    share = 100.0 / bare["bare step, cpu median"]
    beside = {
        f"{name}, {which}, %": share * value
        for name in ("bare again", CSV.name, TENSORBOARD.name)
        for which, value in (("median", cost[name].median), ("mean", cost[name].mean))
    }
    return Row(
        bench="step_full",
        what=what,
        unit="% of the step",
        ours=share * figure(cost[ours]),
        limit=limit,
        spread={f"{name}, us": value for name, value in cost[ours].spread().items()},
        rivals={**beside, **{f"{name}, us": value for name, value in bare.items()}},
    )


def _spent_inside(work: fits.Workload, tmp: Path) -> dict[str, float]:
    """Microseconds of a step in our code, in one long fit."""
    meter = Meter()
    ours = attached()

    def timed(folder: Path) -> L.Callback:
        callback = ours(folder)
        assert isinstance(callback, OnTheFlyCallback)
        return meter.put_on(callback)

    def at_step(_batch_idx: int) -> None:
        meter.next_step()

    with meter.with_samples():
        fits.run_fit(Arm("inside", timed, connected=True, at_step=at_step), work, tmp)
    return meter.figures(skip=work.warm_up)


def stalled_dashboard(*, quick: bool, tmp: Path) -> list[Row]:
    """A dashboard that stops reading, and one killed in the middle, beside nobody there."""
    work = fits.Workload((64, 32, 10), 16, steps=60, warm_up=20) if quick else fits.TINY
    nobody = Arm("nobody there", attached())
    with peers.peer("stall") as (address, _):
        stalled = Arm("stalled", attached(address), connected=True)
        with_kills = _Killed(tmp, at=work.warm_up + work.steps // 2)
        arms = [nobody, stalled, with_kills.arm]
        with with_kills:
            found = fits.alternate(arms, work, rounds=2 if quick else 8, tmp=tmp)
    rows = []
    for arm in arms[1:]:
        cost = fits.added(found[arm.name], found[nobody.name])
        rows.append(
            Row(
                bench="stalled_dashboard",
                what=f"added per step beside nobody there, full telemetry, dashboard {arm.name}",
                unit="us",
                ours=cost.judged,
                limit=IDLE_US,
                spread=cost.spread(),
                rivals=fits.step_us(found[nobody.name]),
            )
        )
    return rows


class _Killed:
    """An arm whose dashboard is started before each fit and killed in the middle of it."""

    def __init__(self, tmp: Path, *, at: int) -> None:
        self._tmp, self._at = tmp, at
        self._open: Any = None
        self._process: Any = None
        self.arm = Arm("killed", self._attach, connected=True, at_step=self._step)

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._close()

    def _attach(self, tmp: Path) -> L.Callback:
        self._close()
        self._open = peers.dashboard(self._tmp)
        self._process = self._open.__enter__()
        return attached()(tmp)

    def _step(self, batch_idx: int) -> None:
        if batch_idx == self._at:
            self._process.kill()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
