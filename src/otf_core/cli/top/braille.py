"""A curve as lines of braille: two dots wide and four high in each character cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Final

_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, from the top


def plot(
    steps: Sequence[int], values: Sequence[float], span: tuple[int, int], width: int, height: int
) -> list[str]:
    """The mean of each column of dots as a line; its least and greatest value as dots of their own.

    Args:
        span: first and last step of the whole width.
    """
    columns, rows = 2 * width, 4 * height
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 1.0, high + 1.0
    cells = [[0] * width for _ in range(height)]

    def row_of(value: float) -> int:
        return round((high - value) / (high - low) * (rows - 1))

    before: tuple[int, int] | None = None
    for x, (least, greatest, mean) in sorted(_bucketed(steps, values, span, columns).items()):
        y = row_of(mean)
        for extreme in (least, greatest):
            _set(cells, x, row_of(extreme))
        for at, down in _line(before or (x, y), (x, y)):
            _set(cells, at, down)
        before = (x, y)
    return ["".join(chr(0x2800 + cell) for cell in line) for line in cells]


def _bucketed(
    steps: Sequence[int], values: Sequence[float], span: tuple[int, int], columns: int
) -> dict[int, tuple[float, float, float]]:
    """Column -> least, greatest and mean."""
    found: dict[int, list[float]] = {}
    wide = max(1, span[1] - span[0])
    for step, value in zip(steps, values, strict=True):
        x = min(columns - 1, max(0, (step - span[0]) * columns // wide))
        found.setdefault(x, []).append(value)
    return {x: (min(some), max(some), fmean(some)) for x, some in found.items()}


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots between two, without a gap."""
    far = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for n in range(far + 1):
        yield (
            round(start[0] + (end[0] - start[0]) * n / far),
            round(start[1] + (end[1] - start[1]) * n / far),
        )


def _set(cells: list[list[int]], x: int, y: int) -> None:
    cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
