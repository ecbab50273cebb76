"""What a run was, as one HTML page that opens anywhere: no script, nothing from elsewhere.

Rule 1: whatever comes from a run is text of somebody else, and goes through ``text``.
Rule 2: the page stays small, however long the run was: curves are thinned, lists are cut, and
what is cut is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from otf_core import __version__
from otf_core.runs import told
from otf_core.runs.archive import Telling
from otf_core.runs.report_chart import Curve, Mark, chart, text
from otf_core.runs.report_tables import checkpoints, messages, result_rows, results, samples
from otf_core.runs.report_words import clock, counted, lasted, valued
from otf_core.runs.told import Told, ToldRun, count, number
from otf_core.state import run_folder

LETTERS: Final = "ABCDE"  # the colours of the page
MAX_ACTIONS: Final = 300
MAX_CHARTS: Final = 16
MAX_FAMILY: Final = 60
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
TITLES: Final[Mapping[str, str]] = {
    "accuracy": "Accuracy",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "weight_norm": "Weight norm",
    "throughput": "Samples per second",
    "data_wait_frac": "Share of a step that waits for data",
}
STATUS: Final[Mapping[str | None, tuple[str, str]]] = {
    "completed": ("Finished", "ok"),
    "stopped": ("Stopped", "warn"),
    "failed": ("Failed", "bad"),
}


class Action(NamedTuple):
    """Something that was done; ``said`` is HTML."""

    ts: float
    step: int
    said: str


def report(
    project_dir: Path,
    run_id: str,
    *,
    figures: Mapping[str, Any] | None = None,
    now_ts: float,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> str:
    """The page.

    Args:
        figures: of scans, by the set that was scanned: ``rule`` and ``figures`` as ``scan`` has
            them.
        tell: bytes that are read and of all.

    Raises:
        ArchiveError: there is no such run; it was cancelled.
        OSError: its folder cannot be read.
    """
    found = told.read(project_dir, run_id, Telling(tell, cancelled))
    run: ToldRun = found.run
    drawn = _drawn(found)
    actions = sorted(_actions(found), key=lambda action: action.ts)
    parts = [
        _head(run, next(filter(None, map(_device, (run, *found.family))), "")),
        _tiles(run),
        _family(found, drawn),
        _charts(found, drawn, actions),
        _done(actions),
        results(run),
        *(samples(on, each) for on, each in sorted((figures or {}).items())),
        checkpoints(run),
        messages(run),
        _foot(found, now_ts),
    ]
    name, style = text(run_id), Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name} - otf</title><style>{style}</style></head><body><main>"
        f"{''.join(parts)}</main></body></html>\n"
    )


# What it is.


def _head(run: ToldRun, device: str) -> str:
    record = run.record
    verb, tone = _status(run)
    length_s = run.last_ts - run.first_ts
    at = count(record.made.get("at_step")) or 0
    own = max(0, run.step - at)
    said = [f"<b>{counted(own)}</b> {'step' if own == 1 else 'steps'}{' of its own' if at else ''}"]
    if length_s >= 1:
        said.append(f"in <b>{lasted(length_s)}</b>")
    made = record.made
    origin = ""
    if record.parents:
        where = (
            f" at step {counted(made['at_step'])}" if count(made.get("at_step")) is not None else ""
        )
        chosen = made.get("subset_count")
        on = f", on {counted(chosen)} chosen samples" if count(chosen) is not None else ""
        kind = {"fork": "fork", "merge": "merge"}.get(record.kind, "child")
        of = " and ".join(text(parent) for parent in record.parents[:6])
        origin = f", a {kind} of <b>{of}</b>{where}{on}"
    exact = record.exactness
    reasons = exact.get("reasons")
    listed = "".join(
        f"<li>{text(reason)}</li>" for reason in (reasons if isinstance(reasons, list) else [])[:20]
    )
    sessions = len(record.session_ids)
    facts = [
        ("Project", text(record.project)),
        ("Machine", text(", ".join(x for x in (record.host, device) if x) or "not known")),
        ("Began", clock(run.first_ts)),
        ("Last told", clock(run.last_ts)),
        ("Stood still", lasted(_paused_s(run)) if _paused_s(run) >= 1 else "never"),
        ("Processes", f"{sessions}: it was resumed" if sessions > 1 else "1"),
        ("Versions", text(", ".join(f"{k} {v}" for k, v in record.versions.items()), 600)),
        ("A resume", f"{_exactness(exact)}{f'<ul>{listed}</ul>' if listed else ''}"),
    ]
    if run.undone:
        facts.append(("Undone", f"{counted(run.undone)} steps, not shown below"))
    rows = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts if v)
    ends = [event for event in run.events if event.get("type") == "trainingFinished"]
    error = ends[-1].get("error") if ends else None
    why = f'<p class="error">{text(error, 2000)}</p>' if record.status == "failed" and error else ""
    return (
        f'<header><p class="crumb">{LOGO}<span>otf</span><span>/</span>'
        f"<span>{text(record.project)}</span></p>"
        f"<h1>{text(run.run_id)}</h1>"
        f'<p class="lead"><span class="pill" data-tone="{tone}">{verb}</span> '
        f'{" ".join(said)}{origin}</p>{why}<dl class="facts">{rows}</dl></header>'
    )


LOGO: Final = (
    '<svg class="logo" viewBox="0 0 20 20" aria-hidden="true"><path d="M2 15h6c3 0 3-9 6-9h4"/>'
    '<path class="base" d="M2 15h16"/></svg>'
)


def _status(run: ToldRun) -> tuple[str, str]:
    """In a word, and how good that is."""
    if (known := STATUS.get(run.record.status)) is not None:
        return known
    kinds = [event.get("type") for event in run.events if event.get("type") != "log"]
    if kinds[-1:] == ["runTransition"]:
        return "Left", "warn"
    if not run_folder.is_alive(run.record):
        return "Broken off", "warn"
    held = [kind for kind in kinds if kind in ("paused", "resumed")][-1:] == ["paused"]
    return ("Paused", "warn") if held else ("Training", "ok")


def _exactness(report: Mapping[str, Any]) -> str:
    if report.get("exact") is True and not report.get("reasons"):
        return "goes on exactly, bit for bit"
    said = report.get("text")
    return f"is {text(said, 800)}" if said else "nothing is known of whether it goes on exactly"


def _tiles(run: ToldRun) -> str:
    tiles = []
    for name, title in (("loss", "Training loss"), ("val_loss", "Validation loss")):
        value = run.last(name)
        if value is None:
            continue
        series = run.series[name]
        best = min(series.values)
        at = series.steps[series.values.index(best)]
        more = (
            f"least {valued(best)} at step {counted(at)}"
            if name == "val_loss"
            else "at the last step"
        )
        tiles.append((title, valued(value), more))
    if (value := run.last("accuracy")) is not None:
        tiles.append(
            ("Accuracy", valued(value), f"highest {valued(max(run.series['accuracy'].values))}")
        )
    tests = [row for row in result_rows(run) if row["kind"] == "test"]
    if tests:
        last = tests[-1]
        loss = last["loss"]
        name = f"{text(last.get('label') or 'test', 40)}, at step {counted(last['step'])}"
        shown = valued(loss) if loss is not None else next(iter(last["metrics"].values()), "-")
        tiles.append(("Test", shown if isinstance(shown, str) else valued(shown), name))
    if not tiles:
        return ""
    cells = "".join(
        f"<div><h3>{title}</h3><b>{value}</b><small>{more}</small></div>"
        for title, value, more in tiles
    )
    return f'<section class="tiles">{cells}</section>'


# Its relatives.


def _drawn(found: Told) -> dict[str, str]:
    """Those whose curves are shown, with their letters: the run, its parents, children, others."""
    run: ToldRun = found.run
    parents = [r for r in found.family if r.run_id in run.record.parents]
    children = [r for r in found.family if run.run_id in r.record.parents]
    order = dict.fromkeys(r.run_id for r in (run, *parents, *children, *found.family))
    return dict(zip(order, LETTERS, strict=False))


def _family(found: Told, drawn: Mapping[str, str]) -> str:
    if len(found.family) == 1:
        return ""
    known = {r.run_id: r for r in found.family[:MAX_FAMILY]}
    below: dict[str, list[ToldRun]] = {}
    roots = []
    for r in known.values():
        parents = [p for p in r.record.parents if p in known and p != r.run_id]
        if parents:
            below.setdefault(parents[0], []).append(r)
        else:
            roots.append(r)
    seen: set[str] = set()

    def branch(r: ToldRun, depth: int) -> str:
        if r.run_id in seen or depth > MAX_FAMILY:
            return ""
        seen.add(r.run_id)
        inside = "".join(branch(child, depth + 1) for child in below.get(r.run_id, []))
        here = ' aria-current="true"' if r is found.run else ""
        deeper = f"<ul>{inside}</ul>" if inside else ""
        return f"<li><div{here}>{_relative(r, drawn)}</div>{deeper}</li>"

    tree = "".join(branch(r, 0) for r in roots)
    # Who is his own ancestor stands in no branch.
    tree += "".join(branch(r, 0) for r in known.values() if r.run_id not in seen)
    left = len(found.family) - len(known)
    more = f'<p class="hint">{left} more are not listed.</p>' if left > 0 else ""
    return f'<section><h2>Relatives</h2><ul class="tree">{tree}</ul>{more}</section>'


def _relative(r: ToldRun, drawn: Mapping[str, str]) -> str:
    record = r.record
    made = record.made
    said = []
    if record.kind != "base":
        others = record.parents[1:]
        extra = f" with {text(', '.join(others))}" if others else ""
        at = count(made.get("at_step"))
        origin = f" at step {counted(at)}" if at is not None else ""
        said.append(f"{text(record.kind, 20)}{extra}{origin}")
    said.append(f"to step {counted(r.step or record.step)}")
    for name, title in (("loss", "loss"), ("val_loss", "val loss")):
        if (value := r.last(name)) is not None:
            said.append(f"{title} {valued(value)}")
    said.append(_status(r)[0].lower())
    return f"{_tag(drawn.get(r.run_id))}<b>{text(r.run_id)}</b><span>{' · '.join(said)}</span>"


def _tag(letter: str | None) -> str:
    return f'<i class="tag {letter}">{letter}</i>' if letter else '<i class="tag">·</i>'


# Its curves.


def _charts(found: Told, drawn: Mapping[str, str], actions: Sequence[Action]) -> str:
    run: ToldRun = found.run
    family = {r.run_id: r for r in found.family}
    shown = [(letter, family[name]) for name, letter in drawn.items()]
    steps = [s for _, r in shown for series in r.series.values() if series.steps
             for s in (series.steps[0], series.steps[-1])]  # fmt: skip
    if not steps:
        return '<section><h2>Curves</h2><p class="hint">No step was told.</p></section>'
    first, last = min(steps), max(steps)
    span = (0 if first < 0.2 * last else first), max(last, first + 1)
    marks = [Mark(action.step, n) for n, action in enumerate(actions[-MAX_ACTIONS:], 1)]
    marks = [mark for mark in marks if span[0] <= mark.step <= span[1]]

    def curves(name: str, *, points: bool = False) -> list[Curve]:
        return [
            Curve(letter, r.run_id, series.steps, series.values, r is run, points)
            for letter, r in shown
            if (series := r.series.get(name)) is not None
        ]

    head = run.last("loss")
    losses = [*curves("loss"), *curves("val_loss", points=True)]
    figures = [
        chart(
            "Loss",
            losses,
            span,
            value=valued(head) if head is not None else "",
            marks=marks,
            tall=True,
        )
    ]
    names = [name for name in (*TITLES, *sorted(run.series)) if name not in ("loss", "val_loss")]
    for name in list(dict.fromkeys(names))[:MAX_CHARTS]:
        value = run.last(name)
        title = TITLES.get(name, name)
        rows = curves(name, points=name not in TITLES and _sparse(run, name))
        log = False if name in ("lr", "accuracy", "data_wait_frac") else None
        if len(rows):
            said = valued(value) if value is not None else ""
            figures.append(
                chart(title, rows, span, value=said, marks=marks, log=log, smooth=name != "lr")
            )
    left = len(dict.fromkeys(names)) - MAX_CHARTS
    more = f'<p class="hint">{left} more values were logged.</p>' if left > 0 else ""
    key = "".join(f"<span>{_tag(letter)}{text(r.run_id, 60)}</span>" for letter, r in shown)
    rings = '<span><i class="ring"></i>validation</span>' if curves("val_loss") else ""
    badge = '<span><i class="badge">1</i>what was done, see below</span>' if marks else ""
    return (
        f'<section><h2>Curves</h2><p class="key">{key}{rings}{badge}</p>'
        f'<div class="charts">{"".join(figures)}</div>{more}</section>'
    )


def _sparse(run: ToldRun, name: str) -> bool:
    series, losses = run.series.get(name), run.series.get("loss")
    return bool(series and losses) and len(series.steps) * 4 < len(losses.steps)  # type: ignore[union-attr]


# What was done.


def _actions(found: Told) -> Iterator[Action]:
    run: ToldRun = found.run
    notes = [event for event in run.events if event.get("type") == "note"]
    removed = {str(event.get("note_id")) for event in notes if event.get("removed")}
    paused: dict[str, Any] | None = None
    for event in run.events:
        ts, step = number(event.get("ts")) or 0.0, count(event.get("step")) or 0
        match event.get("type"):
            case "param_changed":
                applied = count(event.get("applied_step"))
                change = f"{valued(event.get('old'))} → <b>{valued(event.get('new'))}</b>"
                by = event.get("by")
                how = f" ({text(by, 20)})" if by not in (None, "user") else ""
                said = f"<code>{text(event.get('path'), 80)}</code> {change}{how}"
                yield Action(ts, step if applied is None else applied, said)
            case "paused":
                paused = event
            case "resumed" if paused is not None:
                began = number(paused.get("ts")) or ts
                yield Action(began, step, f"Paused for {lasted(max(0.0, ts - began))}")
                paused = None
            case "checkpoint_loaded" if "from_step" in event:
                undone = count(event.get("undone")) or 0
                lost = f", {counted(undone)} steps undone" if undone else ""
                name = f"<code>{text(event.get('id'), 80)}</code>"
                before = count(event.get("from_step"))
                where = f" from step {counted(before)}" if before is not None else ""
                yield Action(ts, step, f"Put back{where} to step {counted(step)}, {name}{lost}")
            case "checkpoint_loaded":
                name = f"<code>{text(event.get('id'), 80)}</code>"
                yield Action(ts, step, f"Went on from step {counted(step)}, {name}")
            case "note" if str(event.get("note_id")) not in removed:
                yield Action(ts, step, f"<q>{text(event.get('text'), 1200)}</q>")
            case "stall" if event.get("over") is not True:
                yield Action(ts, step, f"No step for {valued(event.get('seconds'))} s")
            case "rank_state":
                yield Action(ts, step, text(str(event.get("why")).capitalize(), 300))
            case "stopping":
                yield Action(ts, step, "Stopped by a command")
            case "trainingFinished":
                verb = STATUS.get(str(event.get("status")), ("Ended", ""))[0]
                yield Action(ts, step, verb)
    if run.record.parents:
        ts, step = run.record.started_ts, count(run.record.made.get("at_step")) or 0
        verb = "Merged" if run.record.kind == "merge" else "Forked"
        yield Action(ts, step, f"{verb} from <b>{text(' and '.join(run.record.parents[:6]))}</b>")
    if paused is not None:
        ts, step = number(paused.get("ts")) or 0.0, count(paused.get("step")) or 0
        yield Action(ts, step, "Paused")
    for child in found.family:
        if run.run_id in child.record.parents and child is not run:
            kind = "Merged" if child.record.kind == "merge" else "Forked"
            at = count(child.record.made.get("at_step"))
            chosen = count(child.record.made.get("subset_count"))
            on = f", on {counted(chosen)} chosen samples" if chosen is not None else ""
            said = f"{kind} into <b>{text(child.run_id)}</b>{on}"
            yield Action(child.record.started_ts, run.step if at is None else at, said)


def _done(actions: Sequence[Action]) -> str:
    if not actions:
        return ""
    rows = "".join(
        f'<tr id="do-{n}"><td><i class="badge">{n}</i></td>'
        f'<td class="num">{counted(action.step)}</td>'
        f'<td class="when">{clock(action.ts)}</td><td class="what">{action.said}</td></tr>'
        for n, action in enumerate(actions[-MAX_ACTIONS:], 1)
    )
    left = len(actions) - MAX_ACTIONS
    more = f'<p class="hint">{counted(left)} older are not listed.</p>' if left > 0 else ""
    return (
        '<section><h2>What was done</h2><div class="box"><table><thead><tr><th></th>'
        '<th class="num">Step</th><th class="when">Time</th><th>What</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}</section>"
    )


def _foot(found: Told, now_ts: float) -> str:
    lost = f" {counted(found.lost)} lines of its journal could not be read." if found.lost else ""
    return f"<footer>Made by otf {text(__version__)} on {clock(now_ts)}.{lost}</footer>"


def _device(run: ToldRun) -> str:
    """As the run has told it in its first line."""
    for event in run.events:
        said = str(event.get("text"))
        if (
            event.get("type") == "log"
            and said.startswith(f"{run.run_id}: ")
            and ", process " in said
        ):
            return said.removeprefix(f"{run.run_id}: ").partition(", process ")[0]
    return ""


def _paused_s(run: ToldRun) -> float:
    total, began = 0.0, None
    for event in run.events:
        if event.get("type") == "paused":
            began = number(event.get("ts"))
        elif event.get("type") == "resumed" and began is not None:
            total += max(0.0, (number(event.get("ts")) or began) - began)
            began = None
    return total
