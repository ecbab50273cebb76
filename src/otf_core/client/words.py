"""Numbers, sizes and times in words; pure functions, any thread."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def size(count: Any) -> str:
    """Bytes for people: 91 kB, 1.2 GB."""
    if not isinstance(count, int | float):
        return "size unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            shown = count / factor
            return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"
    return f"{count:.0f} B"


def number(value: Any) -> str:
    """A number for people: 12,400; 0.312; 0.0001."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off"}.get(value, "none") if value is not None else "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(number(item) for item in value) + "]"
    return str(value)


def span(seconds: float) -> str:
    """A time for people, no more than two units: 41 s, 12 min 5 s, 2 h 14 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    if whole < 86400:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")
    return f"{whole // 86400} d" + (f" {whole % 86400 // 3600} h" if whole % 86400 >= 3600 else "")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve from zero up, in a line of blocks."""
    top = max(0.0, *values) if values else 0.0
    if top <= 0:
        return "▁" * min(width, len(values))
    count = min(width, len(values))
    picked = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(value / top * 8)))] for value in picked)


def one_line(text: Any) -> str:
    """What others wrote, without what a terminal would obey or what turns its letters round."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def columns(rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """A table as lines, the first row its titles; columns named in ``right`` end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush = [title in right for title in rows[0]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, flush, strict=True)
        ).rstrip()
        for row in rows
    )
