"""The rows of a table of samples, part by part: what a scan knows, and the samples' own columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.render import Cell, columns_of
from otf_core.runs.subject import Subject, fetch, seed_all
from otf_core.runs.table import NO_CLASS, SampleTable

ROWS: Final = 4_096  # in memory at a time; a row group of Parquet
FETCHED: Final = 64  # samples at a time
_INT64: Final = range(-(2**63), 2**63)

Cells = dict[str, Cell]


class SampleRows:
    """Of one table; training thread, within ``subject.apart``.

    Which columns the samples have of their own, and of which kind, is told by the first part.

    Attributes:
        kinds: of every column, by name.
        left_out: values of later samples that have another name, or do not fit the kind.

    Args:
        table: with losses.
        cancelled: asked between samples.

    Raises:
        CommandError: ``not_allowed_now``, it was cancelled. What the data set raises passes.
    """

    def __init__(self, table: SampleTable, subject: Subject, cancelled: Callable[[], bool]) -> None:
        self._table, self._subject, self._cancelled = table, subject, cancelled
        self.left_out = 0
        self._first = self._fetched(0, FETCHED)
        # Images and the like: the rest of them need not be asked for.
        self._has_own = any(self._first)
        if self._has_own:
            self._first += self._fetched(FETCHED, ROWS)
        cells: dict[str, set[type]] = {}
        for row in self._first:
            for name, cell in row.items():
                cells.setdefault(name, set()).update(() if cell is None else (_kind_of(cell),))
        self._own = {name: _common(kinds) for name, kinds in cells.items()}
        label = self._own.pop("label", None)
        self.kinds: dict[str, type] = {"sample_index": int, "loss": float}
        self._label_is_own = table.labels is None and label is not None
        if table.labels is not None or label is not None:
            self.kinds["label"] = int if table.labels is not None else (label or str)
        if table.predictions is not None:
            self.kinds["prediction"] = int
        self._names = {
            name: name if name not in self.kinds else f"own_{name}" for name in self._own
        }
        self.kinds |= {self._names[name]: kind for name, kind in self._own.items()}

    def parts(self) -> Iterator[tuple[int, dict[str, list[Any]]]]:
        """How many rows are done with this part, and its columns."""
        for start in range(0, len(self._table), ROWS):
            end = min(start + ROWS, len(self._table))
            self._refuse_cancelled(start)
            own = self._first if start == 0 else None
            if own is None and self._has_own:
                own = self._fetched(start, end)
            self._first = []  # not kept
            yield end, self._columns(start, end, own or [])

    def _columns(self, start: int, end: int, own: list[Cells]) -> dict[str, list[Any]]:
        table, part = self._table, slice(start, end)
        assert table.losses is not None
        found: dict[str, list[Any]] = {
            "sample_index": table.ids[part].tolist(),
            "loss": table.losses[part].tolist(),
        }
        if table.labels is not None:
            found["label"] = [None if n == NO_CLASS else n for n in table.labels[part].tolist()]
        elif self._label_is_own:
            found["label"] = [self._cell(row.get("label"), self.kinds["label"]) for row in own]
        if table.predictions is not None:
            classes = table.predictions[part].tolist()
            found["prediction"] = [None if n == NO_CLASS else n for n in classes]
        for name, kind in self._own.items():
            found[self._names[name]] = [self._cell(row.get(name), kind) for row in own]
        for row in own:
            self.left_out += sum(name not in self._own for name in row if name != "label")
        return found

    def _cell(self, cell: Cell, kind: type) -> Cell:
        if cell is None or (type(cell) is kind and (kind is not int or cell in _INT64)):
            return cell
        if kind is str:
            return str(cell)
        if kind is float and type(cell) is int:
            return float(cell)
        self.left_out += 1
        return None

    def _fetched(self, start: int, end: int) -> list[Cells]:
        subject, found = self._subject, []
        ids = self._table.ids[start:end].tolist()
        for at in range(0, len(ids), FETCHED):
            self._refuse_cancelled(start + at)
            some = ids[at : at + FETCHED]
            seed_all(some[0])
            found += [columns_of(s, subject.render) for s in fetch(subject.dataset, some)]
        return found

    def _refuse_cancelled(self, done: int) -> None:
        if self._cancelled():
            detail = (
                f"It was cancelled after {done:,} of {len(self._table):,} rows; nothing was "
                "written, the run is as it was."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)


def _kind_of(cell: Cell) -> type:
    return float if type(cell) is int and cell not in _INT64 else type(cell)


def _common(kinds: set[type]) -> type:
    """The kind that has room for all of them; text has."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return float if kinds == {int, float} else str
