"""What a run and its relatives have told, read from their folders for a report; no torch.

Rule 1: nothing that stands in a file is believed: what is no number is none, what is no event is
left out and counted.
Rule 2: what was rolled back, or trained again after a resume, is told by what came later.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import operator
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from otf_core.runs.archive import PIECE_BYTES, Telling, project_runs, relatives
from otf_core.state import run_folder
from otf_core.state.manifest import Manifest
from otf_core.state.run_folder import RunRecord
from otf_core.telemetry.canonical import resolve

FIELDS: Final = (
    "loss", "val_loss", "accuracy", "lr", "grad_norm", "weight_norm", "throughput",
    "data_wait_frac",
)  # fmt: skip
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
MAX_NAMES: Final = 40  # of what a module logged
LARGEST: Final = 1e100  # that is drawn
MAX_HIDDEN: Final = 1_000
MAX_EVENTS: Final = 20_000  # of a run, that are no steps
MAX_RESULTS: Final = 200
KEPT: Final = frozenset(
    {
        "param_changed", "paused", "resumed", "newRun", "runTransition", "checkpoint_loaded",
        "note", "test_complete", "auto_test_complete", "trainingFinished", "stopping", "exactness",
        "stall", "rank_state", "log", "session_started", "epoch_end",
    }
)  # fmt: skip


class Series:
    """Values over steps, ascending."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")
        self._last = -1

    def add(self, step: int, value: float) -> None:
        """A later value of the same step takes its place."""
        if step <= self._last:
            self.turn_back(step - 1)
        self._last = step
        self.steps.append(step)
        self.values.append(value)

    def turn_back(self, step: int) -> None:
        """What was told behind this step is told no more."""
        keep = bisect.bisect_right(self.steps, step)
        del self.steps[keep:]
        del self.values[keep:]
        self._last = self.steps[-1] if keep else -1


class ToldRun:
    """One run: its record, its curves, what was done to it."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder, self.record = folder, record
        self.series: dict[str, Series] = {}
        self._hidden: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.step = 0
        self.first_ts = self.last_ts = math.nan
        self.undone = 0  # steps that were trained and turned back
        self.checkpoints: list[Manifest] = []
        self.results: list[dict[str, Any]] = []

    @property
    def run_id(self) -> str:
        """Its name."""
        return self.record.run_id

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        found = self.series.get(name)
        return found.values[-1] if found and found.values else None

    def take_step(self, line: _Line) -> None:
        """One trainStep."""
        step = count(line.step)
        if step is None:
            return
        self.step = step
        for name, value in zip(FIELDS, _fields_of(line), strict=True):
            if value is not None:
                self._put(name, step, value)
        if isinstance(line.metrics, dict):
            for name, value in line.metrics.items():
                if value is None or name in self._hidden:
                    continue
                if name in self.series or self._is_shown(name):
                    self._put(name, step, value)

    def _is_shown(self, name: str) -> bool:
        """Under its own name: what has a field of a step is shown by that; asked once."""
        known = resolve([name])
        shown = len(self.series) < MAX_NAMES and not (known and known[0][0] in FIELDS)
        if not shown and len(self._hidden) < MAX_HIDDEN:
            self._hidden.add(name)
        return shown

    def _put(self, name: str, step: int, value: Any) -> None:
        # A run has a million of them: what is a plain float is not asked further.
        if type(value) is not float or not -LARGEST < value < LARGEST:
            value = number(value)
            if value is None:
                return
        series = self.series.get(name)
        if series is None:
            series = self.series[name] = Series()
        series.add(step, value)

    def turn_back(self, step: int) -> None:
        """Another state was put in place: what is behind it is told no more."""
        self.undone += max(0, self.step - step)
        self.step = step
        for series in self.series.values():
            series.turn_back(step)


class Told(msgspec.Struct, kw_only=True):
    """A run and its relatives, oldest first.

    Attributes:
        lost: lines of journals that are no events.
    """

    run: Any  # ToldRun
    family: list[Any]
    lost: int = 0


class _Line(msgspec.Struct):
    """What is looked at in a line; any type, since it is not believed."""

    type: Any = None
    run_id: Any = None
    ts: Any = None
    step: Any = None
    loss: Any = None
    val_loss: Any = None
    accuracy: Any = None
    lr: Any = None
    grad_norm: Any = None
    weight_norm: Any = None
    throughput: Any = None
    data_wait_frac: Any = None
    metrics: Any = None


_fields_of = operator.attrgetter(*FIELDS)
_lines = msgspec.json.Decoder(_Line)
_objects = msgspec.json.Decoder(dict[str, Any])


def number(value: Any) -> float | None:
    """A number that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if -LARGEST < found < LARGEST else None


def count(value: Any) -> int | None:
    """A step, else None."""
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
    return value if ok else None


def read(project_dir: Path, run_id: str, telling: Telling | None = None) -> Told:
    """All that the folders of a run and its relatives say.

    Raises:
        ArchiveError: there is no such run; it was cancelled.
        OSError: a folder cannot be read.
    """
    known = project_runs(project_dir)
    family = {f.name: ToldRun(*known[f.name]) for f in relatives(project_dir, run_id)}
    told = Told(run=family[run_id], family=list(family.values()))
    paths = list(_journals(family))
    telling = telling or Telling(lambda _done, _total: None, lambda: False)
    telling.total = sum(path.stat().st_size for path in paths)
    for path in paths:
        _read_journal(path, family, told, telling)
    for run in told.family:
        run.checkpoints = [m for m, _ in run_folder.complete_checkpoints(run.folder)]
        run.results = list(_results(run.folder / "results.jsonl"))
    return told


def _journals(family: Mapping[str, ToldRun]) -> Iterator[Path]:
    """In the order of their sessions."""
    for run in family.values():
        order = {run_folder.run_name_of(s): n for n, s in enumerate(run.record.session_ids)}
        paths = (run.folder / "journal").glob("*.jsonl")
        yield from sorted(paths, key=lambda path: (order.get(path.stem, len(order)), path.name))


def _read_journal(path: Path, family: Mapping[str, ToldRun], told: Told, telling: Telling) -> None:
    with path.open("rb") as file:
        done = 0
        while line := file.readline(MAX_LINE_BYTES):
            done += len(line)
            if done >= PIECE_BYTES:
                telling.add(done)
                done = 0
            if not line.strip():
                continue
            try:
                event = _lines.decode(line)
                kind, run = str(event.type), family.get(str(event.run_id))
                if run is None:
                    continue
                if (ts := number(event.ts)) is not None:
                    run.first_ts = ts if math.isnan(run.first_ts) else min(run.first_ts, ts)
                    run.last_ts = ts if math.isnan(run.last_ts) else max(run.last_ts, ts)
                if kind == "trainStep":
                    run.take_step(event)
                elif kind in KEPT:
                    _take(run, kind, _objects.decode(line))
            except (ValueError, RecursionError):
                told.lost += 1


def _take(run: ToldRun, kind: str, event: dict[str, Any]) -> None:
    step = count(event.get("step"))
    if kind == "checkpoint_loaded" and step is not None:
        event["undone"] = max(0, run.step - step)
        run.turn_back(step)
    elif kind == "epoch_end":
        value = number(event.get("val_loss"))
        known = run.series.get("val_loss")
        if value is not None and not (known and known.steps and known.values[-1] == value):
            run.series.setdefault("val_loss", Series()).add(run.step, value)
        return
    if step is None:
        event["step"] = run.step
    if len(run.events) < MAX_EVENTS:
        run.events.append(event)


def _results(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file.read(MAX_LINE_BYTES).splitlines()[-MAX_RESULTS:]:
            with contextlib.suppress(ValueError, RecursionError):
                yield _objects.decode(line)
