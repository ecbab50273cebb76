"""A run's name and what is changed in it, told to the loggers that the user has.

Rule 1: nothing of the user's is disturbed. No metric of theirs is written, no step is counted and
no row is added: what is told lies under names of its own, ``otf/…`` or ``otf.…``.
Rule 2: a logger may take its time, as a server does. It is told on ``otf-mirror``, for which no
step waits. One that raises is told of, and after a few times left alone.
"""

from __future__ import annotations

import csv
import datetime
import functools
import math
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

FLUSH_S: Final = 5.0  # so long the end of a fit waits for what is left
MAX_WAITING: Final = 1000
MAX_FAILURES: Final = 3  # in a row
MAX_LINES: Final = 100  # of changes, where all are kept in one value
MAX_TAG: Final = 4000  # characters; MLflow's servers take 5,000 at least

HEARD: Final = frozenset({"param_changed", "checkpoint_loaded", "note", "newRun", "runTransition"})

Event = Mapping[str, Any]


class Told(NamedTuple):
    """One thing that has happened to the run.

    Attributes:
        names: run_id, project and run_dir, where the run is another one now.
        event: of the journal; of the type "run" what the fit begins as, which is no change.
    """

    step: int
    text: str
    names: Mapping[str, str] | None
    event: Event

    @property
    def is_change(self) -> bool:
        """False: it only says which run this is."""
        return self.event["type"] != "run"

    @property
    def number(self) -> float | None:
        """The new value, where it is a number that can be drawn."""
        new = self.event.get("new")
        if isinstance(new, bool) or not isinstance(new, int | float) or not math.isfinite(new):
            return None
        return float(new)


class Target(Protocol):
    """A logger as this module tells it; otf-mirror."""

    def take(self, told: Told) -> None:
        """May raise whatever the logger's client raises."""


class Mirror:
    """Tells the loggers of one fit; made by the training thread when they are open.

    Args:
        names: run_id, project and run_dir of the run, as they are now.
        step: steps done.
        warn: told in one sentence what did not go; any thread.
    """

    def __init__(
        self,
        loggers: list[Any],
        names: Mapping[str, str],
        step: int,
        warn: Callable[[str], None],
    ) -> None:
        self._warn = warn
        self._targets = {
            f"{type(logger).__name__} ({n})" if n else type(logger).__name__: [make(logger), 0]
            for n, logger in enumerate(loggers)
            for kind, make in _KINDS.items()
            if isinstance(logger, kind)
        }
        self._project = names["project"]
        self._waiting: queue.Queue[Event | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._thread: threading.Thread | None = None
        if self._targets:
            self._put({"type": "run", "step": step, **names})
            self._thread = threading.Thread(target=self._run, name="otf-mirror", daemon=True)
            self._thread.start()

    def hear(self, event: Event) -> None:
        """An event of the session; any thread, never blocks."""
        if self._thread is not None and event["type"] in HEARD:
            self._put(event)

    def close(self) -> None:
        """Tell what is left, as far as it goes in ``FLUSH_S``; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._put(None)
        thread.join(FLUSH_S)
        if thread.is_alive():
            self._warn("a logger has not taken all changes of this run in time")
        elif self._lost:
            self._warn(f"loggers were not told of {self._lost:,} changes: they are too slow")

    def _put(self, event: Event | None) -> None:
        while True:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                try:
                    self._waiting.get_nowait()  # the oldest
                    self._lost += 1
                except queue.Empty:
                    continue
            else:
                return

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            for name, row in tuple(self._targets.items()):
                try:
                    row[0].take(told_of(event, self._project))
                    row[1] = 0
                except Exception as error:  # noqa: BLE001 -- border: otf-mirror, and the client of the user's logger may raise anything
                    self._failed(name, row, error)

    def _failed(self, name: str, row: list[Any], error: Exception) -> None:
        row[1] += 1
        if row[1] == 1:
            said = re.sub(r"//[^/\s@]+@", "//…@", str(error))  # who logs in where
            self._warn(f"{name} was not told what changes in this run: {said}"[:500])
        if row[1] == MAX_FAILURES:
            del self._targets[name]
            self._warn(f"{name} is not told any more what changes in this run")


def told_of(event: Event, project: str) -> Told:
    """What the loggers are told of an event that is ``HEARD``, or of the run as it begins."""
    match event["type"]:
        case "run":
            names = {name: str(event[name]) for name in ("run_id", "project", "run_dir")}
            return Told(event["step"], f"{names['run_id']} of {project}", names, event)
        case "param_changed":
            by = event.get("who") or event.get("by")
            by = f"{by} ({event['cause']})" if event.get("cause") else by
            until = f" until step {event['until']:,}" if event.get("until") is not None else ""
            values = f"{_shown(event.get('old'))} → {_shown(event.get('new'))}"
            text = f"{event.get('path')} {values}{until}, by {by}"
            return Told(int(event["applied_step"]), text, None, event)
        case "checkpoint_loaded":
            step, before = int(event["step"]), event.get("from_step")
            text = f"resumed from step {step:,}"
            if before is not None:
                text = f"rolled back from step {before:,} to {step:,}"
            return Told(step, text, None, event)
        case "note":
            text = f"note: {event.get('text')}" if "text" in event else "note taken back"
            return Told(int(event["step"]), text, None, event)
        case "newRun":
            meta, run_id = event.get("meta") or {}, str(event["run_id"])
            names = {"run_id": run_id, "project": project, "run_dir": str(meta.get("run_dir"))}
            parents = " and ".join(event.get("parents") or ())
            text = f"goes on as {run_id}, a {meta.get('kind')} of {parents}"
            return Told(int(meta.get("at_step") or 0), text, names, event)
        case kind:
            assert kind == "runTransition", kind
            return Told(int(event["prev_step"]), f"goes on with {event['to']}", None, event)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class _TensorBoard:
    """Two texts, with the steps of the user's curves."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._writer = logger.experiment

    def take(self, told: Told) -> None:
        if told.names is not None:
            text = "\n".join(f"- {name}: `{value}`" for name, value in told.names.items())
            self._writer.add_text("otf/run", text, told.step)
        if told.is_change:
            self._writer.add_text("otf/changes", told.text, told.step)


class _CSV:
    """``otf_changes.csv`` beside ``metrics.csv``, which gets no row and no column."""

    COLUMNS: Final = ("ts", "run_id", "step", "what", "path", "old", "new", "by", "who", "text")

    def __init__(self, logger: CSVLogger) -> None:
        self._file = Path(logger.experiment.log_dir) / "otf_changes.csv"

    def take(self, told: Told) -> None:
        event = told.event
        ts = event.get("ts")
        at = datetime.datetime.now(datetime.UTC) if ts is None else _utc(ts)
        row = {
            **{name: event.get(name) for name in self.COLUMNS},
            "ts": at.isoformat(timespec="seconds"),
            "step": told.step,
            "what": event["type"],
            "text": told.text,
        }
        new = not self._file.exists()
        with self._file.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, fieldnames=self.COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)


def _utc(ts: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ts, datetime.UTC)


class _Newest:
    """The newest changes as lines, where a value holds all of them."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

    def add(self, told: Told) -> list[str]:
        self._lines.append(f"step {told.step:,}: {told.text}")
        return list(self._lines)


class _WandB:
    """``config.otf``, ``summary["otf/changes"]``, and numbers as ``otf/…`` of the next row."""

    def __init__(self, logger: WandbLogger) -> None:
        self._run, self._newest = logger.experiment, _Newest()

    def take(self, told: Told) -> None:
        if told.names is not None:
            self._run.config.update({"otf": dict(told.names)}, allow_val_change=True)
        if not told.is_change:
            return
        self._run.summary.update({"otf/changes": self._newest.add(told)})
        if told.number is not None:
            # Not committed: a row of ours would count a step of theirs.
            self._run.log({f"otf/{told.event['path']}": told.number}, commit=False)


class _MLflow:
    """Tags ``otf.…``, and numbers as metrics ``otf/…``."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self._client, self._newest = logger.experiment, _Newest()
        self._tag = functools.partial(self._client.set_tag, logger.run_id)
        self._run_id = logger.run_id

    def take(self, told: Told) -> None:
        for name, value in (told.names or {}).items():
            self._tag(f"otf.{name}", value)
        if not told.is_change:
            return
        if told.number is not None:
            # The characters that MLflow allows in the name of a metric.
            name = re.sub(r"[^\w/. -]", "_", f"otf/{told.event['path']}", flags=re.ASCII)
            at_ms = int(told.event["ts"] * 1000)
            self._client.log_metric(
                self._run_id, name, told.number, timestamp=at_ms, step=told.step
            )
        lines = self._newest.add(told)
        while len(text := "\n".join(lines)) > MAX_TAG and len(lines) > 1:
            del lines[0]
        self._tag("otf.changes", text[:MAX_TAG])


_KINDS: Final[Mapping[type, Callable[[Any], Target]]] = {
    TensorBoardLogger: _TensorBoard,
    CSVLogger: _CSV,
    WandbLogger: _WandB,
    MLFlowLogger: _MLflow,
}
