"""One run over all its sessions: its columns and its summary; event loop only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeGuard

from otf_core.dashboard.columns import MAX_ROWS, Columns, View, is_count, kept_rows


@dataclasses.dataclass
class Run:
    """One run over all its sessions."""

    project: str
    run_id: str
    run_name: str
    created_ts: float | None = None
    parents: list[str] = dataclasses.field(default_factory=list)
    made: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a fork or merge: from what
    session_ids: list[str] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(
            ("step", "val_loss", "best_val_loss", "best_val_step", "loss")
        )
    )
    checkpoints: dict[tuple[str, str], dict[str, Any]] = dataclasses.field(default_factory=dict)
    columns: dict[str, Columns] = dataclasses.field(default_factory=dict)
    max_rows: int = MAX_ROWS
    saves: bool = False  # somebody writes the columns into a database
    recount: bool = False  # the summary tells of steps that are superseded

    @property
    def key(self) -> tuple[str, str]:
        return self.project, self.run_id

    def to_json(self) -> dict[str, Any]:
        """``Run`` of the API."""
        return {
            "run_id": self.run_id,
            "project": self.project,
            "run_name": self.run_name,
            "session_ids": list(self.session_ids),
            "parents": list(self.parents),
            "made": dict(self.made),
            "created_ts": self.created_ts,
            "summary": dict(self.counted_summary()),
            "checkpoints": list(self.checkpoints.values()),
        }

    def to_row(self) -> dict[str, Any]:
        """What a database lists."""
        return {**self.to_json(), "recount": self.recount}

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], columns: Mapping[str, Columns], *, max_rows: int, saves: bool
    ) -> Run:
        """A run as a database lists it."""
        fields = ("project", "run_id", "run_name", "created_ts", "parents", "made", "session_ids",
                  "summary", "recount")  # fmt: skip
        made = cls(
            **{name: row[name] for name in fields},
            max_rows=max_rows, saves=saves, columns=dict(columns),
        )  # fmt: skip
        made.checkpoints = {(c["session_id"], c["id"]): c for c in row["checkpoints"]}
        return made

    def take_in(self, other: Run) -> None:
        """The sessions that somebody else knows of this run."""
        self.session_ids += [key for key in other.session_ids if key not in self.session_ids]
        self.columns = other.columns | self.columns
        self.checkpoints = other.checkpoints | self.checkpoints
        self.recount = True

    def forget(self, session_id: str) -> None:
        """One of its sessions is no more."""
        self.session_ids.remove(session_id)
        self.columns.pop(session_id, None)
        for key in [key for key in self.checkpoints if key[0] == session_id]:
            del self.checkpoints[key]
        self.recount = True

    def names(self) -> list[str]:
        """Metrics with a value, in order of appearance."""
        found: dict[str, None] = {}
        for columns in self.columns.values():
            found |= dict.fromkeys(columns.names)
        return list(found)

    def in_order(self) -> list[tuple[str, Columns]]:
        """Sessions that have told of steps, the first first."""
        return [(key, self.columns[key]) for key in self.session_ids if key in self.columns]

    def columns_of(self, session_id: str) -> Columns:
        """The columns of a session, made if there are none."""
        found = self.columns.get(session_id)
        if found is None:
            found = self.columns[session_id] = Columns(self.max_rows, saves=self.saves)
        return found

    def turn_back(self, session_id: str, seq: int, step: int) -> None:
        """The run is at an earlier step again, whatever was told of later ones."""
        self.columns_of(session_id).turn_back(seq, step)
        self.superseded_from(step + 1)
        if session_id == self.session_ids[-1]:
            self.summary["step"] = step

    def note_step(self, session_id: str, event: Mapping[str, Any]) -> None:
        """Take a trainStep into the summary."""
        step = event.get("step")
        if session_id == self.session_ids[-1]:
            if is_count(step):
                self.summary["step"] = step
            if is_number(event.get("loss")):
                self.summary["loss"] = event["loss"]
        self.note_val_loss(session_id, event.get("val_loss"), step)

    def note_val_loss(self, session_id: str, value: Any, step: Any) -> None:
        """Take a validation into the summary, unless a later session has superseded it."""
        if not is_number(value):
            return
        if session_id == self.session_ids[-1]:
            self.summary["val_loss"] = value
        elif self._supersedes(session_id, step):
            return
        best = self.summary["best_val_loss"]
        if best is None or value < best:
            self.summary["best_val_loss"], self.summary["best_val_step"] = value, step

    def _supersedes(self, session_id: str, step: Any) -> bool:
        """Whether a session after this one has told of a step anew."""
        later = self.session_ids[self.session_ids.index(session_id) + 1 :]
        lowest = [self.columns[key].lowest for key in later if key in self.columns]
        return is_count(step) and any(low is not None and step >= low for low in lowest)

    def superseded_from(self, step: int) -> None:
        """From this step on what was told before may be superseded."""
        best = self.summary["best_val_step"]
        if is_count(best) and best >= step:
            self.recount = True

    def counted_summary(self) -> dict[str, Any]:
        """The summary; the best validation is looked for again if its step was undone."""
        if self.recount and not any(columns.partial for columns in self.columns.values()):
            self.count_again([columns.view(["val_loss"]) for _, columns in self.in_order()])
        return self.summary

    def count_again(self, views: Sequence[View]) -> None:
        """Look for the best validation; the views are those of its sessions in order."""
        self.recount = False
        found = list(_val_losses(views))
        best = min(found, default=(None, None))
        self.summary["best_val_loss"], self.summary["best_val_step"] = best
        self.summary["val_loss"] = found[-1][0] if found else None


def _val_losses(views: Sequence[View]) -> Iterator[tuple[float, int]]:
    for view, ranges in kept_rows(views):
        values = view.values.get("val_loss")
        if values is not None:
            for row in chain.from_iterable(ranges):
                if not math.isnan(values[row]):
                    yield values[row], view.step[row]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is a finite number; a trainer may send anything."""
    return is_count(value) or (type(value) is float and math.isfinite(value))
