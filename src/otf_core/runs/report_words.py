"""Values, sizes and times of a report, as HTML text."""

from __future__ import annotations

import datetime
import math
from typing import Any

from otf_core.runs.report_chart import short, text
from otf_core.runs.told import count


def valued(value: Any) -> str:
    """A value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else text(value, 20)
    if isinstance(value, float):
        if not math.isfinite(value):
            return "none"
        if 0 < abs(value) < 1e-4:
            return short(value)
        whole = value.is_integer() and 1e4 <= abs(value) < 1e15
        return f"{value:,.0f}" if whole else f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(valued(each) for each in value[:8])}]"
    return "none" if value is None else text(value, 60)


def counted(value: Any) -> str:
    return f"{value:,}" if count(value) is not None else "0"


def weight(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"


def lasted(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def clock(ts: float) -> str:
    """Of the machine that makes the page, with its zone."""
    try:
        at = datetime.datetime.fromtimestamp(ts, datetime.UTC).astimezone()
    except (ValueError, OverflowError, OSError):
        return "not known"
    day, zone = f'<span class="d">{at:%Y-%m-%d} </span>', f'<span class="d"> {at:%Z}</span>'
    return f'<time datetime="{at.isoformat(timespec="seconds")}">{day}{at:%H:%M:%S}{zone}</time>'
