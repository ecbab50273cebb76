"""Charts of a report, as SVG with labels of HTML, so that they stretch and their text does not.

However many points there are, a curve is a bounded number of them: least and greatest of each
bucket, and above them the mean.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

BUCKETS: Final = 360
FULL: Final = 1000  # units of a plot, both ways
SMOOTH_FROM: Final = 40  # points; fewer are shown as they are
MARKS_APART: Final = 4.5  # per cent of the width; nearer ones share a badge
_UNSEEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        letter: of the run, which names its colour.
        main: the run that the report is about.
        points: shown as points with a thin line: a validation.
    """

    letter: str
    name: str
    steps: Sequence[int]
    values: Sequence[float]
    main: bool = False
    points: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that was done at a step; its number is that of the list."""

    step: int
    number: int


def text(value: object, most: int = 300) -> str:
    """Anything as HTML text or attribute: escaped, without what is not seen, not too long."""
    said = _UNSEEN.sub("", str(value))
    return html.escape(said if len(said) <= most else f"{said[:most]}…", quote=True)


def short(value: float) -> str:
    """A number for an axis: 10k, 0.5, 1e-5."""
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        if 1e6 <= size < 1e9:
            return f"{value / 1e6:.4g}M"
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value / 1000:.4g}k" if size >= 1000 else f"{value:.4g}"


def chart(
    title: str,
    curves: Sequence[Curve],
    span: tuple[int, int],
    *,
    value: str = "",
    marks: Sequence[Mark] = (),
    tall: bool = False,
    log: bool | None = None,
    smooth: bool = True,
) -> str:
    """A figure; empty where no curve has a value.

    Args:
        span: first and last step.
        value: what stands in its head.
        log: None: where the values are positive and far apart.
        smooth: a running mean over faint values; else the values themselves.
    """
    curves = [curve for curve in curves if len(curve.values)]
    if not curves:
        return ""
    low = min(min(curve.values) for curve in curves)
    high = max(max(curve.values) for curve in curves)
    log = low > 1e-100 and (high / low > 30 if log is None else log)
    down, up = domain_of(low, high, log=log)
    scale = Scale(span, down, up, log=log)
    ticks = [(scale.y(tick), short(tick)) for tick in ticks_of(down, up, log=log)]
    # The run that it is about lies on top.
    drawn = "".join(
        _curve(c, scale, smooth=smooth) for c in sorted(curves, key=lambda c: (c.main, c.points))
    )
    grid = "".join(f"M0 {y}H{FULL}" for y, _ in ticks)
    rules = "".join(f"M{scale.x(mark.step)} 0V{FULL}" for mark in marks)
    ys = "".join(f'<i style="top:{y / 10:g}%">{tick}</i>' for y, tick in ticks)
    xs = "".join(_x_labels(scale, span))
    badges = "".join(_badges(marks, scale)) if tall else ""
    said = f"{title}: {short(low)} to {short(high)}, steps {span[0]:,} to {span[1]:,}"
    return (
        f'<figure class="ch{" tall" if tall else ""}"><figcaption><span class="t">{text(title)}'
        f"{'<small>log</small>' if log else ''}</span><b>{text(value)}</b></figcaption>"
        f'<div class="plot"><div class="ys">{ys}</div><div class="xs">{xs}</div>'
        f'<svg viewBox="0 0 {FULL} {FULL}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(said)}"><path class="grid" d="{grid}"/>'
        f'{f"""<path class="rule" d="{rules}"/>""" if rules else ""}{drawn}</svg>'
        f'{f"""<div class="marks">{badges}</div>""" if badges else ""}</div></figure>'
    )


class Scale:
    """From steps and values to units of a plot."""

    def __init__(self, span: tuple[int, int], down: float, up: float, *, log: bool) -> None:
        self._first, self._steps = span[0], max(1, span[1] - span[0])
        self._log = log
        self._down, self._up = (math.log10(down), math.log10(up)) if log else (down, up)

    def x(self, step: float) -> int:
        return round(FULL * (step - self._first) / self._steps)

    def y(self, value: float) -> int:
        at = math.log10(value) if self._log else value
        return round(FULL * (self._up - at) / (self._up - self._down))


def _curve(curve: Curve, scale: Scale, *, smooth: bool) -> str:
    kind = f'class="{text(curve.letter)}{" main" if curve.main else ""}'
    if curve.points:
        steps, values = _few(curve)
        places = [(scale.x(s), scale.y(v)) for s, v in zip(steps, values, strict=True)]
        dots = "".join(f"M{x} {y}h0" for x, y in places)
        line = f'<path {kind} thin" d="{path_of(places)}"/>'
        ring = f'<path {kind} dot" d="{dots}"/><path class="hole" d="{dots}"/>'
        return line + (ring if len(places) <= 60 else "")
    if len(curve.values) < SMOOTH_FROM:
        places = [(scale.x(s), scale.y(v)) for s, v in zip(curve.steps, curve.values, strict=True)]
        alone = f'<path {kind} dot" d="M{places[0][0]} {places[0][1]}h0"/>'
        return alone if len(places) == 1 else f'<path {kind}" d="{path_of(places)}"/>'
    raw, mean = [], []
    for step, least, greatest, middle in buckets_of(curve.steps, curve.values):
        x = scale.x(step)
        raw += [(x, scale.y(value)) for value in dict.fromkeys((least, greatest))]
        mean.append((x, scale.y(middle)))
    if not smooth:
        return f'<path {kind}" d="{path_of(raw)}"/>'
    return f'<path {kind} raw" d="{path_of(raw)}"/><path {kind}" d="{path_of(mean)}"/>'


def _few(curve: Curve) -> tuple[list[int], list[float]]:
    found = list(zip(curve.steps, curve.values, strict=True))
    if len(found) > BUCKETS:
        found = [(step, middle) for step, _, _, middle in buckets_of(curve.steps, curve.values)]
    return [step for step, _ in found], [value for _, value in found]


def buckets_of(
    steps: Sequence[int], values: Sequence[float]
) -> Iterator[tuple[int, float, float, float]]:
    """Middle step, least, greatest, and a running mean."""
    first, last = steps[0], steps[-1]
    weight = 0.25 if len(values) > BUCKETS else 0.12
    mean, total = 0.0, 0.0
    begin = 0
    for n in range(1, BUCKETS + 1):
        edge = first + (last - first) * n / BUCKETS
        end = len(steps) if n == BUCKETS else bisect_left(steps, math.floor(edge) + 1, begin)
        if end == begin:
            continue
        piece = values[begin:end]
        # The weights of a mean that begins with nothing add up to less than one.
        mean = (1 - weight) * mean + weight * math.fsum(piece) / len(piece)
        total = (1 - weight) * total + weight
        yield steps[(begin + end - 1) // 2], min(piece), max(piece), mean / total
        begin = end


def path_of(places: Sequence[tuple[int, int]]) -> str:
    """A line through them, as a path."""
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def domain_of(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """A little more than the values have."""
    if log:
        room = max(0.02, 0.06 * math.log10(high / low))
        return 10 ** (math.log10(low) - room), 10 ** (math.log10(high) + room)
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-12):
        room = abs(high) * 0.5 or 1.0
        return low - room, high + room
    room = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.2 * high else low - room), high + room


def ticks_of(down: float, up: float, *, log: bool) -> list[float]:
    """Round values within, four to six."""
    if log:
        decades = range(math.floor(math.log10(down)), math.ceil(math.log10(up)) + 1)
        wanted = (1, 2, 5) if up / down < 300 else (1,)
        found = [m * 10.0**d for d in decades for m in wanted if down <= m * 10.0**d <= up]
        if len(found) >= 2:
            return found[:: 1 + len(found) // 7]
    wide = up - down
    unit = 10.0 ** math.floor(math.log10(wide / 4))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10, 20) if wide / (unit * m) <= 5)
    first = math.ceil(down / step)
    return [n * step for n in range(first, math.floor(up / step) + 1)]


def _x_labels(scale: Scale, span: tuple[int, int]) -> Iterator[str]:
    for tick in ticks_of(span[0], max(span[1], span[0] + 1), log=False):
        if tick == int(tick):
            yield f'<i style="left:{scale.x(tick) / 10:g}%">{short(tick)}</i>'


def _badges(marks: Sequence[Mark], scale: Scale) -> Iterator[str]:
    groups: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda mark: (mark.step, mark.number)):
        if groups and (scale.x(mark.step) - scale.x(groups[-1][0].step)) / 10 < MARKS_APART:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    for group in groups:
        numbers = sorted(mark.number for mark in group)
        said = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        yield f'<a href="#do-{numbers[0]}" style="left:{scale.x(group[0].step) / 10:g}%">{said}</a>'
