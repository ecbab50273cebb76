"""A run as one picture: its losses, and below them what else it has told; SVG that stands alone.

Rule: no style, no script, no address. It is put into documents of others, where a class or an id of
ours would meet theirs; what comes from a run is text, and escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from otf_core.runs.report_chart import (
    FULL,
    SMOOTH_FROM,
    Scale,
    buckets_of,
    domain_of,
    path_of,
    short,
    text,
    ticks_of,
)
from otf_core.runs.report_words import valued
from otf_core.runs.told import Series, ToldRun

WIDTH: Final = 880
LARGE, SMALL, GAP = 250, 118, 14
PANEL, LINE, GRID = "#ffffff", "#dcdfdb", "#eceeeb"
TEXT, QUIET, CURVE, DOTS = "#15191a", "#636c6f", "#14378c", "#872c10"
FONT: Final = 'font-family="Inter, system-ui, sans-serif" font-variant-numeric="tabular-nums"'
BELOW: Final[Mapping[str, str]] = {
    "lr": "Learning rate", "accuracy": "Accuracy", "grad_norm": "Gradient norm",
    "throughput": "Samples per second", "weight_norm": "Weight norm",
}  # fmt: skip
NOISY: Final = frozenset({"loss", "grad_norm", "throughput"})  # a mean over faint values


class Drawn(NamedTuple):
    """A curve: its values, its colour, and how it is drawn."""

    series: Series
    colour: str
    dots: bool = False
    noisy: bool = False


def picture(run: ToldRun, said: str) -> str:
    """The picture of what a run has told so far; ``said`` is its name for who cannot see it."""
    losses = [
        Drawn(run.series[name], colour, dots=name == "val_loss", noisy=name in NOISY)
        for name, colour in (("loss", CURVE), ("val_loss", DOTS))
        if name in run.series and run.series[name].steps
    ]
    below = [name for name in BELOW if name in run.series and run.series[name].steps][:3]
    every = [run.series[name] for name in below] + [one.series for one in losses]
    if not every:
        return _document(60, said, [_words(WIDTH / 2, 34, "no step yet", QUIET, "middle")])
    span = min(s.steps[0] for s in every), max(*(s.steps[-1] for s in every), 1)
    span = (0 if span[0] < 0.2 * span[1] else span[0]), span[1]
    parts: list[str] = []
    top = 0
    if losses:
        parts += _panel(0, 0, WIDTH, LARGE, _loss_title(run), losses, span)
        top = LARGE + GAP
    wide = (WIDTH - GAP * (len(below) - 1)) / max(1, len(below))
    for n, name in enumerate(below):
        title = [(BELOW[name], TEXT), (valued(run.last(name)), TEXT)]
        drawn = [Drawn(run.series[name], CURVE, noisy=name in NOISY)]
        parts += _panel(n * (wide + GAP), top, wide, SMALL, title, drawn, span)
    return _document(top + SMALL if below else LARGE, said, parts)


def _document(height: float, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="100%" '
        f'role="img" aria-label="{text(said, 600)}" {FONT} font-size="12">{"".join(parts)}</svg>'
    )


def _words(x: float, y: float, said: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{text(said)}</text>'


def _loss_title(run: ToldRun) -> list[tuple[str, str]]:
    title = [("Loss", TEXT)]
    for name, what, colour in (("loss", "training", CURVE), ("val_loss", "validation", DOTS)):
        if (value := run.last(name)) is not None:
            title.append((f"{what} {valued(value)}", colour))
    return title


def _panel(
    left: float, top: float, width: float, height: float, title: Sequence[tuple[str, str]],
    drawn: Sequence[Drawn], span: tuple[int, int],
) -> Iterator[str]:  # fmt: skip
    """A chart: its frame, its axes, its curves."""
    low = min(min(one.series.values) for one in drawn)
    high = max(max(one.series.values) for one in drawn)
    log = drawn[0].noisy and low > 1e-100 and high / low > 30
    down, up = domain_of(low, high, log=log)
    scale = Scale(span, down, up, log=log)
    x, y, w, h = left + 46, top + 28, width - 60, height - 48
    yield (
        f'<rect x="{left + 0.5:g}" y="{top + 0.5:g}" width="{width - 1:g}" '
        f'height="{height - 1:g}" rx="6" fill="{PANEL}" stroke="{LINE}"/>'
    )
    head, *others = title
    spans = f'<tspan fill="{head[1]}" font-weight="600">{text(head[0])}</tspan>' + "".join(
        f'<tspan fill="{colour}" dx="10">{text(said)}</tspan>' for said, colour in others
    )
    yield f'<text x="{left + 10:g}" y="{top + 18:g}">{spans}</text>'
    for tick in ticks_of(down, up, log=log)[:: 1 if height > 200 else 2]:
        at = y + h * scale.y(tick) / FULL
        yield f'<path d="M{x:g} {at:g}h{w:g}" stroke="{GRID}"/>'
        yield _words(x - 6, at + 4, short(tick), QUIET, "end")
    for tick in ticks_of(span[0], max(span[1], span[0] + 1), log=False):
        if tick == int(tick):
            yield _words(x + w * scale.x(tick) / FULL, top + height - 7, short(tick), QUIET,
                         "middle")  # fmt: skip
    box = f'transform="translate({x:g} {y:g}) scale({w / FULL:g} {h / FULL:g})"'
    for one in drawn:
        yield f'<g {box} fill="none" stroke="{one.colour}" stroke-linejoin="round">'
        yield from _curve(one, scale)
        yield "</g>"


def _curve(one: Drawn, scale: Scale) -> Iterator[str]:
    stroke = 'vector-effect="non-scaling-stroke"'
    steps, values = one.series.steps, one.series.values
    if one.dots or len(values) < SMOOTH_FROM:
        found = list(zip(steps, values, strict=True))
        if len(found) > 200:
            found = [(step, mean) for step, _, _, mean in buckets_of(steps, values)]
        places = [(scale.x(step), scale.y(value)) for step, value in found]
        yield f'<path {stroke} stroke-width="1.5" d="{path_of(places)}"/>'
        if one.dots or len(places) == 1:
            points = "".join(f"M{x} {y}h0" for x, y in places[-60:])
            yield f'<path {stroke} stroke-width="5" stroke-linecap="round" d="{points}"/>'
        return
    raw, mean = [], []
    for step, least, greatest, middle in buckets_of(steps, values):
        raw += [(scale.x(step), scale.y(value)) for value in dict.fromkeys((least, greatest))]
        mean.append((scale.x(step), scale.y(middle)))
    if not one.noisy:
        yield f'<path {stroke} stroke-width="1.75" d="{path_of(raw)}"/>'
        return
    yield f'<path {stroke} stroke-width="1" stroke-opacity="0.25" d="{path_of(raw)}"/>'
    yield f'<path {stroke} stroke-width="1.75" d="{path_of(mean)}"/>'
