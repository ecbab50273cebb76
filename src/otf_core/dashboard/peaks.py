"""Curves for the screen: of each bucket of steps the least and the greatest value; any thread.

Rule 1: one grid for all metrics. A bucket is ``2**k`` steps and begins at a multiple of that, with
the smallest k that gives no more buckets than were asked for: peaks of charts line up, of several
runs too, and a run that goes on does not move the buckets that are full.
Rule 2: every point is a value of the journal, with its step and event_seq. The first and the last
value of the range are always there, so that a curve begins and ends where it does.
"""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from otf_core.dashboard.columns import View, kept_rows

MAX_BUCKETS: Final = 2000

_Point = tuple[float, int, int]  # value, view, row


@dataclasses.dataclass(frozen=True)
class Curves:
    """What ``curves`` has found.

    Attributes:
        total: rows within the range.
        first, last: steps of the range; None if it has no row and no bound.
        bucket_steps: steps of a bucket.
        series: by metric, parallel lists ``step``, ``value``, ``seq``, ``session``.
    """

    total: int
    first: int | None
    last: int | None
    bucket_steps: int
    series: Mapping[str, dict[str, list[Any]]]


def curves(
    views: Sequence[View], names: Sequence[str], *, low: int | None, high: int | None, buckets: int
) -> Curves:
    """Least and greatest value of each bucket, for the metrics named.

    The views are those of a run's sessions in order; what was superseded is left out.
    """
    held = _ranges(views, low, high)
    first = held[0][1].step[held[0][2].start] if held and low is None else low
    last = held[-1][1].step[held[-1][2][-1]] if held and high is None else high
    total = sum(len(rows) for _, _, rows in held)
    if first is None or last is None or not held:
        series = {name: _empty() for name in names}
        return Curves(total, first, last, 1, series)
    shift = shift_of(first, last, buckets)
    pieces = list(_pieces(held, shift))
    return Curves(total, first, last, 1 << shift, {n: _series(views, pieces, n) for n in names})


def series_of(
    views: Sequence[View], held: Sequence[tuple[int, View, range]], shift: int, name: str
) -> dict[str, list[Any]]:
    """The points of one metric, of rows whose steps do not fall."""
    return _series(views, list(_pieces(held, shift)), name)


def _empty() -> dict[str, list[Any]]:
    return {"step": [], "value": [], "seq": [], "session": []}


def _ranges(
    views: Sequence[View], low: int | None, high: int | None
) -> list[tuple[int, View, range]]:
    """The rows between two steps, in order of their steps: (index of the view, view, rows)."""
    held = []
    for index, (view, ranges) in enumerate(kept_rows(views)):
        for rows in ranges:
            start, stop = rows.start, rows.stop
            if low is not None:
                start = bisect_left(view.step, low, start, stop)
            if high is not None:
                stop = bisect_right(view.step, high, start, stop)
            if start < stop:
                held.append((index, view, range(start, stop)))
    return held


def shift_of(first: int, last: int, buckets: int) -> int:
    """The exponent of the size of a bucket."""
    shift = max(0, ((last - first + 1) // buckets).bit_length() - 1)
    while (last >> shift) - (first >> shift) >= buckets:
        shift += 1
    return shift


_Piece = tuple[int, int, int, int]  # bucket, view, first row, row after the last


def _pieces(held: Sequence[tuple[int, View, range]], shift: int) -> Iterator[_Piece]:
    for index, view, rows in held:
        start = rows.start
        while start < rows.stop:
            bucket = view.step[start] >> shift
            stop = bisect_left(view.step, (bucket + 1) << shift, start, rows.stop)
            yield bucket, index, start, stop
            start = stop


def _series(views: Sequence[View], pieces: Sequence[_Piece], name: str) -> dict[str, list[Any]]:
    columns = [view.values.get(name) for view in views]
    points: list[_Point] = []
    lowest: _Point | None = None
    greatest: _Point | None = None
    at: int | None = None
    ends: list[tuple[int, int, int]] = []  # the first and the last piece with a value
    for bucket, index, start, stop in pieces:
        column = columns[index]
        found = extremes(column, index, start, stop) if column is not None else None
        if found is None:
            continue
        ends[1:] = [(index, start, stop)]
        if bucket != at or lowest is None or greatest is None:
            points += _in_order(lowest, greatest)
            at, (lowest, greatest) = bucket, found
        else:
            lowest = min(lowest, found[0], key=_value)
            greatest = max(greatest, found[1], key=_value)
    points += _in_order(lowest, greatest)
    return _told(views, _with_ends(columns, points, ends))


def _value(point: _Point) -> float:
    return point[0]


def extremes(
    column: array[float], index: int, start: int, stop: int
) -> tuple[_Point, _Point] | None:
    """The first of the least and of the greatest values of some rows; None where there is none."""
    part = column[start:stop].tolist()  # each number is made once, not by each of the passes
    if part[0] == part[0]:
        low, high = part.index(min(part)), part.index(max(part))
    else:  # the first is missing: nothing is less than NaN
        real = [row for row, value in enumerate(part) if value == value]
        if not real:
            return None
        low, high = min(real, key=part.__getitem__), max(real, key=part.__getitem__)
    return (part[low], index, start + low), (part[high], index, start + high)


def _in_order(lowest: _Point | None, greatest: _Point | None) -> list[_Point]:
    if lowest is None or greatest is None:
        return []
    if lowest[1:] == greatest[1:]:
        return [lowest]
    return sorted((lowest, greatest), key=lambda point: point[1:])


def _with_ends(
    columns: Sequence[array[float] | None],
    points: list[_Point],
    ends: Sequence[tuple[int, int, int]],
) -> list[_Point]:
    if not ends:
        return points
    index, start, stop = ends[0]
    first = next(_real(columns[index], index, range(start, stop)))
    index, start, stop = ends[-1]
    last = next(_real(columns[index], index, range(stop - 1, start - 1, -1)))
    if points[0][1:] != first[1:]:
        points.insert(0, first)
    if points[-1][1:] != last[1:]:
        points.append(last)
    return points


def _real(column: array[float] | None, index: int, rows: range) -> Iterator[_Point]:
    assert column is not None
    for row in rows:
        if column[row] == column[row]:
            yield column[row], index, row


def _told(views: Sequence[View], points: Sequence[_Point]) -> dict[str, list[Any]]:
    return {
        "step": [views[index].step[row] for _, index, row in points],
        "value": [value for value, _, _ in points],
        "seq": [views[index].seq[row] for _, index, row in points],
        "session": [index for _, index, _ in points],
    }
