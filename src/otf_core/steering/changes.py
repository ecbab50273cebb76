"""The ledger of a run: every change that was made to it, in its order, as plain values.

Rule 1: a row is plain, so that a checkpoint has all of them and a process that goes on from it can
take each of them back.
Rule 2: the ledger is that of the branch: a state that is put in place brings its own.
Rule 3: a number is given once; those of rows that a rollback has taken with it do not come again.

Training thread only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

MAX_ROWS: Final = 5_000  # some 2 MB in a checkpoint; the oldest are left out, and that is said


class Change(msgspec.Struct, kw_only=True):
    """One row.

    Attributes:
        id: 1, 2, 3 …
        ts: when it was made, Unix seconds.
        step, epoch, batch_idx: where the run stood.
        who: whoever gave the command, as all who watch the run are shown it.
        by: ``user``, ``undo``, ``rollback``, ``guard``, ``recipe``, ``fork`` or ``until``.
        cause: the rule of a guard, the run of a recipe, what was taken back.
        path: of a value; None where it is another change.
        old, new: of the value; before and behind it.
        undone_by: the row that has taken it back.
        undoes: the row that it has taken back.
        skips: the request that was taken back as if it had never been, and is not to come again.
        run_id: the run that trained then.
        group: the first row of those that were made as one, and are taken back as one.
        asked: the payload, where it can be carried out again.
        back: what is needed to take it back; None where it cannot be.
        before: the checkpoint to which ``undo`` with ``restore`` rolls back.
        unlike: why a run in which it was made cannot be had again by a recipe.
    """

    id: int
    ts: float
    step: int
    epoch: int
    batch_idx: int = 0
    who: str | None = None
    by: str = "user"
    cause: str | None = None
    cmd: str | None = None
    request_id: str | None = None
    path: str | None = None
    old: Any = None
    new: Any = None
    mode: Any = None
    until: int | None = None
    undone_by: int | None = None
    undoes: int | None = None
    skips: str | None = None
    run_id: str | None = None
    group: int = 0
    asked: dict[str, Any] | None = None
    back: dict[str, Any] | None = None
    before: str | None = None
    unlike: str | None = None

    @property
    def open(self) -> bool:
        """Whether it can be taken back."""
        return self.back is not None and self.undone_by is None

    def to_wire(self) -> dict[str, Any]:
        """As ``list_changes`` has it."""
        found = {name: getattr(self, name) for name in _TOLD}
        return {**found, "can_undo": self.open}

    def told(self) -> dict[str, Any]:
        """As ``param_changed`` has it beside its stamps."""
        found = {name: getattr(self, name) for name in _TOLD if name != "ts"}
        return {**found, "applied_step": self.step}


_TOLD: Final = (
    "id", "ts", "step", "epoch", "who", "by", "cause", "cmd", "request_id", "path", "old", "new",
    "mode", "until", "undone_by",
)  # fmt: skip


class Changes:
    """All rows of the run that trains.

    Attributes:
        lost: why rows are missing from it; None: none are.
    """

    def __init__(self) -> None:
        self._rows: list[Change] = []
        self._next = 1
        self.lost: str | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Change]:
        return iter(tuple(self._rows))

    def add(self, **given: Any) -> Change:
        """A new row, with the next number and the time of now."""
        row = Change(id=self._next, ts=time.time(), **given)
        row.group = row.group or row.id
        self._next += 1
        self._rows.append(row)
        if len(self._rows) > MAX_ROWS:
            del self._rows[:-MAX_ROWS]
            self.lost = f"it had more than {MAX_ROWS:,} changes, of which the oldest are not kept"
        return row

    def together(self, row: Change) -> Sequence[Change]:
        """Those that were made as one with it, in their order."""
        return [each for each in self._rows if each.group == row.group]

    def requests(self) -> set[str | None]:
        """The ids of all that was done, and of what is not to come again."""
        return {name for row in self._rows for name in (row.request_id, row.skips)}

    def newest(self, count: int | None) -> list[Change]:
        """The last of them, the oldest first."""
        return self._rows[-count:] if count else list(self._rows)

    def clear(self) -> None:
        """A run that begins."""
        self._rows.clear()
        self.lost = None

    def state(self) -> dict[str, Any]:
        """Plain values, to go into a checkpoint."""
        rows = [msgspec.structs.asdict(row) for row in self._rows]
        return {"next": self._next, "rows": rows, "lost": self.lost}

    def load(
        self, state: Mapping[str, Any] | None, step: int, *, run_id: str | None = None
    ) -> None:
        """Take over a ``state`` in place of all rows.

        Notes are no part of the state: those of the run that trains stay, up to this step.

        Args:
            step: steps done when it was taken; a state of 0.2.0 has no ledger.
        """
        notes = [
            row for row in self._rows
            if row.cmd == "note" and row.run_id == run_id and row.step <= step
        ]  # fmt: skip
        if state is None:
            self._rows = notes
            self.lost = f"it goes on from a checkpoint of step {step} that has no ledger"
            return
        rows = [Change(**row) for row in state["rows"]]
        known = {row.id for row in rows}
        rows += [row for row in notes if row.id not in known]
        self._rows = sorted(rows, key=lambda row: row.id)
        self._next = max(self._next, state["next"])
        self.lost = state["lost"]
