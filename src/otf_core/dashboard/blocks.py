"""Charts of long runs without all of their rows: of each block of steps those that a chart shows.

Rule 1: a full chunk keeps for each metric the rows with the least and the greatest value of each
``2**BLOCK_SHIFT`` steps, and the first and the last with a value. A bucket of whole blocks shows
some of these, and never another row.
Rule 2: a chart is the same with them and without. Where they are not there (rows that an older
version has written), where rows may be superseded, and for buckets that are finer than blocks, all
rows are read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from otf_core.dashboard.columns import Block, View, rises
from otf_core.dashboard.peaks import Curves, extremes, series_of, shift_of

BLOCK_SHIFT: Final = 8  # blocks of 256 steps: 1,000 buckets of a run from 256,000 steps on


class Outline:
    """What a chart needs of a run that was told in one go.

    Args:
        names: its metrics.
        first: step of the first row.
    """

    def __init__(self, names: Iterable[str], first: int) -> None:
        self.first = self.last = first
        self.total = 0
        self._seq = {name: array("q") for name in names}
        self._step = {name: array("q") for name in self._seq}
        self._values = {name: array("d") for name in self._seq}

    def add(
        self, name: str, seq: Iterable[int], step: Iterable[int], values: Iterable[float]
    ) -> None:
        """Rows that tell all of a chunk; only such with a value."""
        self._seq[name].extend(seq)
        self._step[name].extend(step)
        self._values[name].extend(values)

    def add_rows(self, block: Block) -> bool:
        """All rows of a block behind the others; False if it is not behind them."""
        if not len(block):
            return True
        if not rises(block.seq) or not rises(block.step) or block.step[0] < self.last:
            return False
        for name in self._seq.keys() & block.values.keys():
            column = block.values[name]
            rows = [row for row, value in enumerate(column) if value == value]
            seq, step = map(block.seq.__getitem__, rows), map(block.step.__getitem__, rows)
            self.add(name, seq, step, map(column.__getitem__, rows))
        self.note(block.step[-1], len(block))
        return True

    def note(self, last: int, rows: int) -> None:
        """So many rows more, up to a step."""
        self.last, self.total = last, self.total + rows

    def curves(self, buckets: int) -> Curves:
        """As ``peaks.curves`` of all rows; any thread."""
        shift = shift_of(self.first, self.last, buckets)
        series = {}
        for name, values in self._values.items():
            seq, step = self._seq[name], self._step[name]
            view = View(len(values), seq, step, array("d"), {name: values})
            series[name] = series_of([view], [(0, view, range(len(values)))], shift, name)
        return Curves(self.total, self.first, self.last, 1 << shift, series)


def fits(first: int, last: int, buckets: int) -> bool:
    """Whether buckets of a range are made of whole blocks."""
    return shift_of(first, last, buckets) >= BLOCK_SHIFT


def telling_rows(step: array[int], column: array[float]) -> list[int]:
    """The rows of a chunk that charts may show of a metric; its steps must not fall."""
    found: set[int] = set()
    start = 0
    while start < len(step):
        stop = bisect_left(step, ((step[start] >> BLOCK_SHIFT) + 1) << BLOCK_SHIFT, start)
        ends = extremes(column, 0, start, stop)
        if ends is not None:
            found.update(row for _, _, row in ends)
        start = stop
    real = [row for row, value in enumerate(column) if value == value]
    return sorted(found.union(real[:1], real[-1:]))
