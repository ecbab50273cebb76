"""The whole screen as lines of text, made from what is known; pure functions.

Rule 1: what a run, a checkpoint or a log line says is text of somebody else: it goes through
``one_line``, and no markup is read in it.
Rule 2: at a given size each part has its place, so nothing moves while numbers change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from otf_core.cli.lines import event_line
from otf_core.cli.top.braille import plot
from otf_core.client.band import (
    GLYPHS,
    TONES,
    Control,
    controls,
    facts,
    outcome,
    progress,
    sentence,
    state_of,
)
from otf_core.client.board import Board, Curve, Held, Row
from otf_core.client.states import standing
from otf_core.client.words import number, one_line, size, span
from otf_core.telemetry.metrics import METRICS

PANES: Final = ("Runs", "Log", "Checkpoints")
SMALLEST: Final = (40, 12)
WIDE, TALL = 110, 34  # from here on all panes are shown together
LABELS: Final = {metric.name: metric.label for metric in METRICS}
UNITS: Final = {metric.name: f" {metric.unit}" for metric in METRICS if metric.unit}
FIRST: Final = (
    "loss", "val_loss", "lr", "grad_norm", "throughput", "mem_vram", "ram_mb", "accuracy",
    "gpu_util", "data_wait_frac", "weight_norm", "batches_per_s",
)  # fmt: skip
CHART_WIDTH: Final = 26
LOG: Final = frozenset({"loss", "val_loss", "grad_norm"})
LOG_FROM: Final = 30.0
KEYS: Final = "↑↓ run  Tab pane  : command  ? keys  q quit"
_TONE_STYLES: Final = {
    "live": "cyan", "done": "green", "warn": "yellow", "bad": "red", "mute": "bright_black",
}  # fmt: skip
_CONTROL_STYLES: Final = {
    "idle": "", "pending": "yellow", "applied": "cyan", "refused": "red", "off": "bright_black",
}  # fmt: skip
_QUIET: Final = "bright_black"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the person at the keyboard has chosen to see.

    Attributes:
        back: lines that the log is scrolled up.
        where: of the dashboard, for the top line.
    """

    pane: str = "Runs"
    back: int = 0
    where: str = ""


def screen(board: Board, width: int, height: int, shown: Shown) -> list[Text]:
    """Exactly ``height`` lines, none wider than ``width``."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        said = f"otf top needs {SMALLEST[0]} x {SMALLEST[1]}; this is {width} x {height}"
        return _fill([_line(said, width)], width, height)
    row = board.current()
    head = [
        _top(board, row, width, shown),
        *_sentence(board, row, width),
        _line("  " + " · ".join(facts(board, row)), width, _QUIET),
        _progress(progress(board, row), width),
        *_controls(controls(board, row), width),
        *_receipts(board, row, width, 2 if height >= 20 else 1),
    ]
    if height >= TALL:
        head.append(Text(""))
    room = height - len(head) - 1
    body = _body(board, row, width, room, shown)
    hint = "" if board.may_write else "read-only  "
    return [*_fill([*head, *body], width, height - 1), _line(hint + KEYS, width, _QUIET)]


def chart_grid(width: int, height: int) -> tuple[int, int, int]:
    """Columns, rows, and lines of each plot; no rows where there is no room."""
    across = max(1, min(4, width // CHART_WIDTH))
    if height < 9:
        return across, 0, 0
    if height < 13:
        return across, 1, 3
    return across, 2, max(3, min(8, height // 4 - 1))


# -- the band ------------------------------------------------------------------------------------


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(clip(text, width), style=style)


def clip(text: str, width: int) -> str:
    """One line of at most so many cells; what is cut shows that it is."""
    text = one_line(text)
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _padded(text: str, width: int) -> str:
    return set_cell_size(clip(text, width), width)


def _fill(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    filled = [*lines[:height]]
    filled += [Text("")] * (height - len(filled))
    for line in filled:
        line.truncate(width)
    return filled


def _top(board: Board, row: Row | None, width: int, shown: Shown) -> Text:
    trainers = sum(1 for session in board.sessions.values() if session["connected"])
    runs = len(board.rows())
    who = f"{row.letter} {row.key[1]}" if row is not None else ""
    told = f"{runs} run{'s' * (runs != 1)}, {trainers} trainer{'s' * (trainers != 1)}"
    link = board.link
    wait = max(0.0, (link.retry_ts or 0.0) - board.now_ts())
    again = f", next try in {wait:.0f} s" if link.retry_ts and wait >= 0.5 else ""
    state = {
        "up": f"connected {shown.where}".rstrip(), "lost": f"not connected{again}",
        "looking": f"looking for a dashboard{again}", "refused": "no valid token",
    }[link.state]  # fmt: skip
    right = clip(state, width // 2)
    room = width - cell_len(right) - 1
    left = f"otf top  {who}" + (f"  ·  {told}" if cell_len(who) + len(told) + 14 < room else "")
    return Text.assemble((_padded(left, room), "bold"), " ", (right, _QUIET))


def _sentence(board: Board, row: Row | None, width: int) -> list[Text]:
    """One line on a wide screen, else two."""
    state = state_of(board, row)
    style = _TONE_STYLES[TONES.get(state, "mute")]
    words = one_line(f"{GLYPHS.get(state, '◌')} {sentence(board, row)}")
    return _wrapped(words, width, 1 if width >= WIDE else 2, f"bold {style}")


def _wrapped(words: str, width: int, count: int, style: str) -> list[Text]:
    """Broken at spaces into exactly so many lines."""
    lines: list[str] = []
    rest = words
    while len(lines) < count - 1 and cell_len(rest) > width:
        cut = rest.rfind(" ", 0, width) if rest.isascii() else -1
        cut = cut if cut > width // 2 else len(set_cell_size(rest, width).rstrip())
        at = rest.rfind(" ", 0, cut + 1)
        cut = at if at > width // 2 else cut
        lines.append(rest[:cut])
        rest = "  " + rest[cut:].lstrip()
    lines.append(clip(rest, width))
    return [Text(line, style=style) for line in lines] + [Text("")] * (count - len(lines))


def _progress(share: float | None, width: int) -> Text:
    if share is None:
        return Text("─" * width, style=_QUIET)
    label = f" {share * 100:.0f} %"
    room = width - len(label)
    done = int(share * room)
    return Text.assemble(
        ("━" * done, "cyan"), ("─" * (room - done), _QUIET), (label, "")
    )  # fmt: skip


def _controls(found: Sequence[Control], width: int) -> list[Text]:
    across = 3 if width >= WIDE else 2 if width >= 76 else 1
    lines = -(-6 // across)
    cell = width // across
    made = []
    for n in range(lines):
        line = Text()
        for control in found[n * across : (n + 1) * across]:
            style = _CONTROL_STYLES[control.state]
            line.append(f"{control.key:>5} ", f"bold {style}")
            line.append(_padded(control.label, 13), style)
            line.append(_padded(control.line, cell - 19), style or _QUIET)
        made.append(line)
    return made


def _receipts(board: Board, row: Row | None, width: int, count: int) -> list[Text]:
    """The newest commands of anyone; the last one on as many lines as it needs."""
    found = board.receipts_of(row.session["session_id"]) if row is not None else []
    lines: list[Text] = []
    for held in found[:count]:
        room = count - len(lines)
        if room <= 0:
            break
        words = _receipt(board, held)
        needs = 1 if cell_len(words) <= width else room
        lines += _wrapped(words, width, needs, _receipt_style(held))
    return lines + [Text("")] * (count - len(lines))


def _receipt(board: Board, held: Held) -> str:
    mark = {"applied": "✓", "refused": "✗", "unknown": "?"}.get(held.state, "…")
    ts = held.receipt.get("answered_ts") or held.receipt.get("sent_ts")
    age = f" {span(max(0.0, board.now_ts() - ts))} ago" if ts else ""
    by = held.receipt.get("client") or held.receipt.get("by")
    who = "" if held.mine else f", {by}"
    return one_line(f"{mark} {outcome(board, held)} ({age.strip() or 'now'}{who})")


def _receipt_style(held: Held) -> str:
    return {"applied": "", "refused": "red", "unknown": "yellow"}.get(held.state, "yellow")


# -- charts and panes ----------------------------------------------------------------------------


def _body(board: Board, row: Row | None, width: int, room: int, shown: Shown) -> list[Text]:
    if row is None:
        return []
    across, down, plot_lines = chart_grid(width, room)
    charts = _charts(board, row, width, (across, down, plot_lines))
    room -= len(charts)
    if width >= WIDE and room >= 14:
        upper = max(5, room * 2 // 5)
        half = width // 2
        left = _pane("Runs", board, row, half - 2, upper, shown)
        right = _pane("Checkpoints", board, row, width - half, upper, shown)
        sides = [_beside(a, b, half) for a, b in zip(left, right, strict=True)]
        return [*charts, *sides, *_pane("Log", board, row, width, room - upper, shown)]
    return [*charts, *_pane(shown.pane, board, row, width, room, shown, tabs=True)]


def chart_names(names: Sequence[str], count: int) -> list[str]:
    """The metrics that are drawn, the usual first."""
    memory = "mem_vram" if "mem_vram" in names else "ram_mb"
    first = [n for n in FIRST if n in names and (n == memory or n not in ("mem_vram", "ram_mb"))]
    rest = [n for n in names if n not in FIRST and not n.startswith(("lrs", "global_step"))]
    return [*first, *rest][:count]


def _charts(board: Board, row: Row, width: int, grid: tuple[int, int, int]) -> list[Text]:
    across, down, plot_lines = grid
    curves = board.curves.get(row.key, {})
    names = chart_names(list(curves), across * down)
    if not down:
        return []
    cell = width // across
    every = [curve for name in names for curve in (curves[name],)]
    first = min((c.steps[0] for c in every), default=0)
    last = max((c.steps[-1] for c in every), default=1)
    lines: list[Text] = []
    for n in range(down):
        drawn = [
            _chart(name, curves[name], (first, last), cell - 2, plot_lines)
            for name in names[n * across : (n + 1) * across]
        ]
        for at in range(plot_lines + 1):
            line = Text()
            for block in drawn:
                line.append_text(block[at])
                line.append("  ")
            lines.append(line)
    if not names:
        lines[0] = _line("  no numbers yet", width, _QUIET)
    return lines


def _chart(
    name: str, curve: Curve, steps: tuple[int, int], width: int, height: int
) -> list[Text]:  # fmt: skip
    title = LABELS.get(name, name.removeprefix("metrics."))
    value = number(curve.values[-1])
    unit = UNITS.get(name, "")
    value += unit if cell_len(title) + len(value) + len(unit) < width else ""
    low, high = f"{min(curve.values):.3g}", f"{max(curve.values):.3g}"
    values, between = curve.values, f"{low} to {high}"
    # As on the page: a loss that has fallen far would be a line along the bottom.
    if name in LOG and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        values, between = [math.log10(value) for value in values], f"{between} log"
    room = width - cell_len(title) - len(value) - 2
    head = Text.assemble((clip(title, max(4, width - len(value) - 1)), ""), " ", (value, "bold"))
    if low != high and len(between) < room:
        head.append(" " * (width - head.cell_len - len(between)))
        head.append(between, _QUIET)
    head.truncate(width, pad=True)
    body = plot(curve.steps, values, steps, width, height)
    return [head, *(Text(line, style="cyan") for line in body)]


def _beside(left: Text, right: Text, at: int) -> Text:
    line = left.copy()
    line.truncate(at, pad=True)
    return line.append_text(right)


def _pane(
    name: str, board: Board, row: Row, width: int, height: int, shown: Shown, *, tabs: bool = False
) -> list[Text]:
    if height < 1:
        return []
    rows = {"Runs": _runs, "Log": _log, "Checkpoints": _checkpoints}[name]
    title = Text()
    for each in PANES if tabs else (name,):
        title.append(f"[{each}] " if each == name and tabs else f" {each}  ",
                     "bold" if each == name else _QUIET)  # fmt: skip
    title.truncate(width)
    title.append("─" * (width - title.cell_len), _QUIET)
    body = list(rows(board, row, width, height - 1, shown))
    return _fill([title, *body], width, height)


def _runs(board: Board, row: Row, width: int, height: int, shown: Shown) -> Iterator[Text]:  # noqa: ARG001 -- a pane's shape
    rows = board.rows()
    at = next((n for n, each in enumerate(rows) if each.key == row.key), 0)
    start = max(0, min(at - height // 2, len(rows) - height))
    name_room = max(8, width - 53)
    for each in rows[start : start + height]:
        summary = (each.run or {}).get("summary") or {}
        here = each.key == row.key
        step = summary.get("step") if each.state == "left" else each.session.get("step")
        line = Text(style="bold" if here else "")
        line.append("> " if here else "  ")
        line.append(f"{each.letter:<2} ", "bold cyan")
        line.append(_padded(each.key[1], name_room))
        state = each.state if each.state == "left" else standing(each.session)
        line.append(" " + _padded(state, 11), _TONE_STYLES[TONES.get(state, "mute")])
        line.append(f" step {number(step):<10}")
        val = summary.get("val_loss")
        line.append(f" val loss {number(val) if val is not None else '-':<7}")
        yield line


def _log(board: Board, row: Row, width: int, height: int, shown: Shown) -> Iterator[Text]:
    events = list(board.told_of(row.session["session_id"]).events.values())
    end = max(min(height, len(events)), len(events) - shown.back)
    if not events:
        yield _line("  nothing yet", width, _QUIET)
    for event in events[max(0, end - height) : end]:
        bad = event.get("type") == "error" or event.get("level") in ("error", "ERROR")
        style = "red" if bad else "yellow" if event.get("type") == "guard" else ""
        yield _line(event_line(event), width, style)


def _checkpoints(board: Board, row: Row, width: int, height: int, shown: Shown) -> Iterator[Text]:  # noqa: ARG001 -- a pane's shape
    found = board.checkpoints_of(row)
    if not found:
        yield _line("  none kept yet", width, _QUIET)
    now_ts = board.now_ts()
    more = len(found) - height
    for checkpoint in found[: height - 1 if more > 0 else height]:
        yield _line(checkpoint_line(checkpoint, now_ts), width)
    if more > 0:
        yield _line(f"  {more + 1} older", width, _QUIET)


def checkpoint_line(checkpoint: dict[str, object], now_ts: float) -> str:
    """One of the list: id, step, size, age, whether it is exact."""
    ts = checkpoint.get("ts")
    age = f"{span(max(0.0, now_ts - ts))} ago" if isinstance(ts, int | float) else ""
    exact = {True: "exact", False: "not exact"}.get(bool(checkpoint.get("exact")), "")
    exact = exact if checkpoint.get("exact") is not None else ""
    said = f"  {one_line(checkpoint.get('id')):<14} step {number(checkpoint.get('step')):<9}"
    return f"{said} {size(checkpoint.get('bytes')):>6}  {exact:<9}  {age}"


def once(board: Board, width: int, height: int, where: str) -> str:
    """The screen as plain text, as long as it has something to say."""
    row = board.current()
    lines = screen(board, width, height, Shown("Runs", 0, where))[:-1]
    said = [line.plain.rstrip() for line in lines]
    if row is not None and not (width >= WIDE and height >= TALL):
        for name in PANES[1:]:
            pane = _pane(name, board, row, width, 8, Shown())
            said += ["", *(line.plain.rstrip() for line in pane)]
    while said and not said[-1]:
        said.pop()
    return "\n".join(line for line, before in zip(said, ["x", *said], strict=False)
                     if line or before)  # fmt: skip
