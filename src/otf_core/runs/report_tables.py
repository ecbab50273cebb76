"""The tables of a report: results, samples, checkpoints, messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from otf_core.runs.report_chart import short, text
from otf_core.runs.report_words import clock, counted, valued, weight
from otf_core.runs.told import ToldRun, count, number

MAX_CHECKPOINTS: Final = 100
MAX_RESULTS: Final = 60


def result_rows(run: ToldRun) -> list[dict[str, Any]]:
    """Of the file of results, or where there is none, as they were told."""
    tests = ("test_complete", "auto_test_complete")
    told_of = ({**event, "kind": "test"} for event in run.events if event.get("type") in tests)
    rows = [dict(each) for each in run.results] or list(told_of)
    for row in rows:
        row["loss"] = number(row.get("avg_loss"))
        metrics = row.get("metrics")
        known = metrics.items() if isinstance(metrics, dict) else ()
        row["metrics"] = {k: v for k, value in known if (v := number(value)) is not None}
        row["step"] = count(row.get("step")) or 0
        row["kind"] = "test" if row.get("kind") == "test" else "validation"
    return rows


def results(run: ToldRun) -> str:
    rows = result_rows(run)
    if not rows:
        return ""
    body = "".join(_result(row) for row in rows[-MAX_RESULTS:])
    left = len(rows) - MAX_RESULTS
    more = f'<p class="hint">{counted(left)} older are not listed.</p>' if left > 0 else ""
    return (
        '<section><h2>Tests and validations</h2><div class="box"><table><thead><tr><th>What</th>'
        '<th class="num">Step</th><th class="num">Loss</th><th>Values</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}</section>"
    )


def _result(row: Mapping[str, Any]) -> str:
    label = row.get("label")
    named = f" <span class='hint'>{text(label, 60)}</span>" if label else ""
    values = " ".join(
        f"<span class='pair'>{text(k, 60)} <b>{valued(v)}</b></span>"
        for k, v in list(row["metrics"].items())[:20]
    )
    loss = valued(row["loss"]) if row["loss"] is not None else "-"
    return (
        f"<tr><td>{row['kind'].capitalize()}{named}</td><td class='num'>{counted(row['step'])}</td>"
        f"<td class='num'>{loss}</td><td>{values}</td></tr>"
    )


def samples(on: str, scanned: Mapping[str, Any]) -> str:
    """The figures of a scan: how the losses lie, which samples have the worst."""
    found = scanned["figures"]
    parts = [
        f"<div><h3>{title}</h3><b>{valued(found.get(key))}</b></div>"
        for key, title in (("count", "Samples"), ("mean", "Mean loss"), ("std", "Spread"),
                           ("accuracy", "Accuracy"), ("not_finite", "Not finite"))
        if found.get(key) is not None
    ]  # fmt: skip
    histogram = found.get("histogram") or {}
    bars = _bars(histogram.get("edges") or (), histogram.get("counts") or ())
    worst = "".join(
        f"<tr><td class='num'>{valued(row.get('id'))}</td>"
        f"<td class='num'>{valued(row.get('loss'))}</td>"
        f"<td>{text(row.get('label'), 40)}</td><td>{text(row.get('prediction'), 40)}</td></tr>"
        for row in (found.get("worst") or ())[:12]
    )
    classes = "".join(
        f"<tr><td>{text(row.get('label'), 40)}</td><td class='num'>{valued(row.get('count'))}</td>"
        f"<td class='num'>{valued(row.get('mean'))}</td>"
        f"<td class='num'>{valued(row.get('accuracy'))}</td></tr>"
        for row in (found.get("classes") or ())[:30]
    )
    tables = (
        "<div class='box'><table><thead><tr><th class='num'>Sample</th><th class='num'>Loss</th>"
        f"<th>Label</th><th>Predicted</th></tr></thead><tbody>{worst}</tbody></table></div>"
        if worst
        else ""
    )
    tables += (
        "<div class='box'><table><thead><tr><th>Class</th><th class='num'>Samples</th>"
        "<th class='num'>Mean loss</th><th class='num'>Accuracy</th></tr></thead>"
        f"<tbody>{classes}</tbody></table></div>"
        if classes
        else ""
    )
    return (
        f"<section><h2>Samples of the {text(on, 20)} set</h2>"
        f"<p class='hint'>{text(scanned.get('rule', ''))}</p>"
        f"<div class='tiles'>{''.join(parts)}</div>{bars}"
        f"<div class='pairs'>{tables}</div></section>"
    )


def _bars(edges: Sequence[Any], counts: Sequence[Any]) -> str:
    numbers = [number(n) for n in counts]
    if not numbers or None in numbers or len(edges) != len(counts) + 1:
        return ""
    most = max(1.0, *(n for n in numbers if n is not None))
    wide = 1000 / len(numbers)
    bars = "".join(
        f"<rect x='{k * wide + wide * 0.06:.1f}' width='{wide * 0.88:.1f}' "
        f"y='{1000 - 1000 * (n or 0) / most:.0f}' height='{1000 * (n or 0) / most:.0f}'>"
        f"<title>{short(edges[k])} to {short(edges[k + 1])}: {valued(n)}</title></rect>"
        for k, n in enumerate(numbers)
    )
    xs = "".join(
        f"<i style='left:{100 * k / len(numbers):g}%'>{short(edges[k])}</i>"
        for k in range(0, len(edges), max(1, len(numbers) // 5))
    )
    return (
        "<figure class='ch'><figcaption><span class='t'>Losses of the samples</span></figcaption>"
        f"<div class='plot'><div class='ys'><i style='top:0'>{valued(most)}</i></div>"
        f"<div class='xs'>{xs}</div><svg class='bars' viewBox='0 0 1000 1000' "
        f"preserveAspectRatio='none' role='img' aria-label='Histogram of losses'>{bars}</svg></div>"
        "</figure>"
    )


def checkpoints(run: ToldRun) -> str:
    found = sorted(run.checkpoints, key=lambda m: -m.ts)
    if not found:
        return ""
    rows = "".join(
        f"<tr><td><code>{text(m.id, 80)}</code></td><td class='num'>{counted(m.step)}</td>"
        f"<td>{text(m.kind, 20)}{', kept' if m.pinned else ''}</td>"
        f"<td>{'exact' if m.exact else 'not exact'}</td>"
        f"<td class='num'>{weight(m.total_bytes)}</td>"
        f"<td class='when'>{clock(m.ts)}</td><td><code>{text(m.sha256, 12)}</code></td></tr>"
        for m in found[:MAX_CHECKPOINTS]
    )
    left = len(found) - MAX_CHECKPOINTS
    more = f'<p class="hint">{counted(left)} older are not listed.</p>' if left > 0 else ""
    return (
        "<section><h2>Checkpoints</h2><div class='box'><table><thead><tr><th>Id</th>"
        "<th class='num'>Step</th><th>Kind</th><th>Resume</th><th class='num'>Size</th>"
        "<th class='when'>Time</th><th>SHA-256</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{more}</section>"
    )


def messages(run: ToldRun) -> str:
    found = [
        e for e in run.events if e.get("type") == "log" and e.get("level") in ("warning", "error")
    ]
    if not found:
        return ""
    rows = "".join(
        f"<tr><td class='num'>{counted(count(e.get('step')) or 0)}</td>"
        f"<td>{text(e.get('level'), 10)}</td>"
        f"<td class='pre what'>{text(e.get('text'), 1500)}</td></tr>"
        for e in found[-30:]
    )
    return (
        f"<section><h2>Warnings and errors</h2><div class='box'><table><tbody>{rows}</tbody>"
        "</table></div></section>"
    )
