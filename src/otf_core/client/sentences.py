"""What the answer to each verb says, in sentences; ``say`` of a row of ``verbs.VERBS``.

Each takes the name of the run, the data of the reply and the session. Pure functions, any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

from otf_core.client.states import ranks_sentence, state_sentence
from otf_core.client.words import columns, number, one_line, size, span, sparkline

WORST_SHOWN: Final = 10
WORST_COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = MappingProxyType(
    {"id": str, "loss": number, "label": str, "prediction": str}
)


def _checkpoint(path: Any, session: Mapping[str, Any]) -> str:
    if not path:
        return "; no checkpoint yet"
    last = session.get("last_checkpoint") or {}
    weight = (
        f" ({size(last.get('bytes'))})" if last.get("path") == path and last.get("bytes") else ""
    )
    return f"; checkpoint {PurePath(str(path)).name}{weight}"


def paused(name: str, data: Any, session: Mapping[str, Any]) -> str:
    where = _checkpoint(data.get("ckpt"), session)
    return f"Paused {name} at step {number(data.get('step'))}{where}"


def resumed(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- the table's shape
    if "path" in data:
        change = f"{number(data.get('old'))} → {number(data.get('new'))}"
        step = number(data.get("applied_step"))
        return f"Gave {data['path']} of {name} back to the script: {change}, applied at step {step}"
    if data.get("changed") is False:
        return f"{name} was training already, at step {number(data.get('step'))}"
    return f"Resumed {name} at step {number(data.get('step'))}"


def parked(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    if not data.get("parked"):
        again = "" if data.get("changed") else " already"
        return f"{name} is back on its device{again}; it stays paused"
    freed, left = size(data.get("freed_bytes")), size(data.get("left_bytes"))
    return f"Parked {name}: {freed} of the device are free, {left} stay; otf resume brings it back"


def stopped(name: str, data: Any, session: Mapping[str, Any]) -> str:
    where = _checkpoint(data.get("ckpt"), session)
    return f"Stopping {name} at step {number(data.get('step'))}{where}"


def saved(name: str, data: Any, session: Mapping[str, Any]) -> str:
    path = data.get("path")
    if not path:
        return f"{name} saved nothing at step {number(data.get('step'))}"
    last = session.get("last_checkpoint") or {}
    weight = (
        f" ({size(last.get('bytes'))})" if last.get("path") == path and last.get("bytes") else ""
    )
    return f"Saved {PurePath(str(path)).name}{weight} of {name} at step {number(data.get('step'))}"


def _metrics(values: Any) -> str:
    shown = [f"{key} {number(value)}" for key, value in (values or {}).items()]
    return ", ".join(shown) or "no metrics"


def validated(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    took = data.get("seconds")
    time = f" in {took:.1f} s" if isinstance(took, int | float) else ""
    said = _metrics(data.get("metrics"))
    return f"Validated {name} at step {number(data.get('step'))}{time}: {said}"


def tested(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    loss = data.get("avg_loss")
    said = f"average loss {number(loss)}" if loss is not None else "no finite loss"
    values = data.get("metrics")
    more = f"; {_metrics(values)}" if values else ""
    return f"Tested {name} at step {number(data.get('step'))}: {said}{more}"


def results(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A table, a column for each metric; run by run as it came."""
    rows = data.get("results") or []
    if not rows:
        return f"{name} was neither tested nor validated yet"
    found = dict.fromkeys(key for row in rows for key in row.get("metrics") or {})
    losses = ["avg_loss"] if any(row.get("avg_loss") is not None for row in rows) else []
    head = ("run", "step", "kind", "label", *losses, *found, "took")
    cells = [
        (
            str(row.get("run_id")),
            number(row.get("step")),
            str(row.get("kind"))
            + (f" of {n} batches" if (n := row.get("limit_batches")) is not None else ""),
            row.get("label") or "-",
            *(_or_dash(row.get(key)) for key in losses),
            *(_or_dash((row.get("metrics") or {}).get(key)) for key in found),
            f"{row.get('seconds', 0):.1f} s",
        )
        for row in rows
    ]
    return columns([head, *cells], right=("step", *losses, *found, "took"))


def _or_dash(value: Any) -> str:
    return "-" if value is None else number(value)


def was_set(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    step, until = data.get("applied_step"), data.get("until")
    lasts = f"; the script's again at step {number(until)}" if until is not None else ""
    modes = {"scale": " (scales the rest of the schedule)", "replace": " (replaces the schedule)"}
    mode = modes.get(str(data.get("mode")), "")
    change = f"{number(data.get('old'))} → {number(data.get('new'))}"
    return (
        f"Set {data.get('path')} of {name}: {change}, applied at step {number(step)}{mode}{lasts}"
    )


def previewed(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """Each value without and with the change: a picture and its ends."""
    steps = data.get("step") or []
    now, then = data.get("now") or {}, data.get("then") or {}
    if not steps or not then:
        return f"{name} has nothing to preview"
    head = f"{name}, steps {number(steps[0])} to {number(steps[-1])}, nothing is changed:"
    rows = [("", "", "from", "to")]
    for path, values in then.items():
        rows.append((path, sparkline(now[path]), number(now[path][0]), number(now[path][-1])))
        if values != now[path]:
            ends = number(values[0]), number(values[-1])
            rows.append(("  with the change", sparkline(values), *ends))
    more = [str(each) for each in data.get("assumes") or []]
    if ends_at := data.get("ends"):
        more.append(f"the schedule ends at step {number(ends_at['step'])}: {ends_at['why']}")
    return "\n".join([head, columns(rows, right=("from", "to")), *more])


def params(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    rows = data.get("params") or []
    if not rows:
        return f"{name} has no parameter that can be set"
    width = max(len(str(row.get("path"))) for row in rows)
    lines = []
    for row in rows:
        pending = row.get("pending")
        waits = f", becomes {number(pending.get('value'))}" if isinstance(pending, dict) else ""
        bounds = f"{number(row.get('min'))} to {number(row.get('max'))}"
        choices = row.get("choices")
        allowed = ", ".join(map(str, choices)) if choices else bounds
        value = number(row.get("value"))
        own = f"; {number(row['script'])} by the script itself" if "script" in row else ""
        lines.append(
            f"{row.get('path')!s:<{width}}  {value}{waits}  ({row.get('owner')}; {allowed}{own})"
        )
    return "\n".join(lines)


def guards(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A rule a line."""
    rows = data.get("guards") or []
    if not rows:
        return f"{name} has no guard; otf guard nan --watch nan makes one"
    return "\n".join(_guard(row) for row in rows)


def _guard(row: Mapping[str, Any]) -> str:
    params, does = row["params"], str(row["action"])
    settings = ", ".join(f"{key} {number(v)}" for key, v in params.items() if v is not None)
    if does == "rollback":
        does = f"rollback, lr times {number(row['lr'])}"
    said = [f"{row['rule']}: {row['watch']} of {row['metric']}"]
    said += [settings, does] if settings else [does]
    if row["budget"] is not None:
        said.append(f"{row['budget_left']} of {row['budget']} left")
    if row["last"] is not None:
        said.append(f"last at step {number(row['last']['step'])}")
    return "; ".join(said) + ("" if row["enabled"] else "; off")


def guard_set(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    row, step = data.get("new"), number(data.get("applied_step"))
    if row is None:
        return f"Took the guard {data.get('rule')} of {name} away, at step {step}"
    return f"{name} is watched from step {step} on by {_guard(row)}"


def checkpoints(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A table, newest first as it came."""
    rows = data.get("checkpoints") or []
    if not rows:
        return f"{name} has no checkpoint yet"
    now_ts = time.time()
    head = ("id", "step", "epoch", "kind", "pinned", "exact", "size", "age")
    cells = [head, *(_checkpoint_cells(row, now_ts) for row in rows)]
    return columns(cells, right=("step", "epoch", "size", "age"))


def _checkpoint_cells(row: Mapping[str, Any], now_ts: float) -> tuple[str, ...]:
    ts = row.get("ts")
    return (
        str(row.get("id")),
        number(row.get("step")),
        number(row.get("epoch")) if row.get("epoch") is not None else "-",
        str(row.get("kind")),
        "yes" if row.get("pinned") else "no",
        "yes" if row.get("exact") else "no",
        size(row.get("bytes")),
        span(max(0.0, now_ts - ts)) if isinstance(ts, int | float) else "-",
    )


def changes(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A table, the oldest first as it came."""
    rows = data.get("changes") or []
    if not rows:
        return f"Nothing was changed in {name}"
    head = ("", "step", "by", "what", "old", "new", "undone by")
    table = columns([head, *map(_change_cells, rows)], right=("", "step"))
    left_out = (data.get("total") or 0) - len(rows)
    return f"{number(left_out)} older ones are not shown\n{table}" if left_out > 0 else table


def _change_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    who, by, cause = row.get("who"), str(row.get("by")), row.get("cause")
    said = (who or "-") if by == "user" else f"{by}, {who}" if who else by
    until = f" until {number(row['until'])}" if row.get("until") is not None else ""
    undone_by = row.get("undone_by")
    return (
        str(row.get("id")),
        number(row.get("step")),
        one_line(f"{said} ({cause})" if cause else said),
        one_line(f"{row.get('path') or row.get('cmd')}{until}"),
        *(one_line(_change_value(row.get(name))) for name in ("old", "new")),
        str(undone_by) if undone_by is not None else "-",
    )


def _change_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_or_dash(each)}" for name, each in value.items())
    return "-" if value is None else number(value)


def noted(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    return f"Noted at step {number(data.get('step'))} of {name}"


def status(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    known = {**session, **{key: data[key] for key in ("state", "step", "epoch") if key in data}}
    lines = [state_sentence({**known, "status": data}, float(session.get("status_ts") or 0.0))]
    lines += [
        f"  pending: {pending.get('cmd')}, waits for {pending.get('waits_for')}"
        for pending in data.get("pending") or []
    ]
    last = data.get("last_checkpoint")
    if last:
        at = f"{PurePath(str(last.get('path'))).name} at step {number(last.get('step'))}"
        lines.append(f"  last checkpoint: {at}")
    if on := data.get("data"):
        some = f"{number(on.get('chosen'))} of {number(on.get('of'))} samples"
        lines.append(f"  trains on {some}; {number(on.get('drawn'))} of them were drawn by now")
    if ranks := ranks_sentence(data):
        lines.append(f"  {ranks}")
    if data.get("exactness"):
        lines.append(f"  exactness: {data['exactness']}")
    return "\n".join(lines)


def rolled_back(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    to, from_step, which = number(data.get("step")), data.get("from_step"), data.get("checkpoint")
    which = which or PurePath(str(data.get("path"))).name
    way = f"from step {number(from_step)} to {to}" if from_step is not None else f"to step {to}"
    return f"Rolled back {name} {way} (checkpoint {which})"


def forked(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    chosen = data.get("subset_count")
    on = f" on {number(chosen)} sample{'s' * (chosen != 1)}" if chosen else ""
    at = number(data.get("at_step"))
    return f"Forked {data.get('new_run')} from {data.get('parent')} at step {at}{on}"


def merged(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """What was merged; of a preview what each way would be worth, the best one marked."""
    if "candidates" not in data:
        parents = " and ".join(data.get("parents") or ())
        at = number(data.get("at_step"))
        said = f"Merged {parents} by {data.get('strategy')} into {data.get('new_run')}"
        return "\n".join([f"{said}, from step {at}", *(f"  {t}" for t in data.get("told") or ())])
    best, rows, refused = data.get("best"), [], []
    for each in [*(data.get("parents") or ()), *(data.get("candidates") or ())]:
        is_parent = "run_id" in each
        label = f"{each['run_id']}/{each['checkpoint']}" if is_parent else each["strategy"]
        if "refused" in each:
            refused.append(f"  {label} cannot be: {each['refused']}")
            continue
        mark = "best" if best and best.items() <= each.items() else ""
        rows.append((label, number(each["score"]), mark))
    head = ("", str(data.get("monitor")), "")
    title = f"Merges of {name} at step {number(data.get('step'))}; nothing was merged"
    return "\n".join([title, columns([head, *rows], right=head[1:2]), *refused])


def scanned(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """Mean and quantiles, the worst samples, the classes."""
    figures = data.get("figures") or {}
    on, count, first = data.get("on"), number(data.get("count")), data.get("first_step")
    at = f"at step {number(data.get('step'))}"
    if first != data.get("last_step"):
        at = f"over steps {number(first)} to {number(data.get('last_step'))}"
    lines = [f"Scanned {count} samples of the {on} set of {name} {at}, {data.get('rule')}"]
    right = figures.get("accuracy")
    said = f", accuracy {number(right)}" if right is not None else ""
    lines.append(f"  mean loss {number(figures.get('mean'))}{said}")
    if left_out := figures.get("not_finite"):
        lines.append(f"  {number(left_out)} losses are not finite")
    shares = [q for q in figures.get("quantiles") or [] if q["share"] in (0.5, 0.9, 0.99, 1.0)]
    told = ", ".join(f"{q['share'] * 100:.0f} % {number(q['loss'])}" for q in shares)
    lines.append(f"  quantiles {told}")
    head = ("sample", "loss", "label", "predicted")
    cells = [
        tuple("-" if row[key] is None else shown(row[key]) for key, shown in WORST_COLUMNS.items())
        for row in (figures.get("worst") or [])[:WORST_SHOWN]
    ]
    return "\n".join([*lines, columns([head, *cells], right=head)])


def shown(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A line for each; of an image its size, since a terminal has none."""
    lines = []
    for each in data.get("samples") or []:
        kind = each.get("kind")
        if kind == "image":
            what = f"an image of {each.get('width')} x {each.get('height')}"
        elif kind == "row":
            values = ", ".join(map(str, (each.get("values") or [])[:8]))
            what = f"{values}, …" if len(each.get("values") or []) > 8 else values
        else:
            what = str(each.get("text") or "")[:200].replace("\n", " ")
        label = f"  label {each['label']}" if each.get("label") is not None else ""
        reason = f"  ({each['reason']})" if each.get("reason") else ""
        lines.append(f"{number(each.get('id'))}{label}  {what}{reason}")
    return "\n".join(lines)


def compared(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """A row for each run, and of each two which does better on how many samples."""
    head = ("run", "step", "mean", "50 %", "90 %", "worst", "accuracy")
    cells = []
    for row in data.get("runs") or []:
        at = {q["share"]: q["loss"] for q in row.get("quantiles") or []}
        figures = (row.get("mean"), at.get(0.5), at.get(0.9), at.get(1.0), row.get("accuracy"))
        cells.append((str(row.get("name")), number(row.get("step")), *map(_or_dash, figures)))
    count = number(data.get("count"))
    lines = [f"Losses on {count} samples of the {data.get('on')} set, {data.get('rule')}"]
    lines.append(columns([head, *cells], right=head[1:]))
    lines += [
        f"{pair['other']} does better than {pair['one']} on {number(pair['better'])}, worse on "
        f"{number(pair['worse'])}"
        for pair in data.get("pairs") or []
    ]
    return "\n".join(lines)


def exported(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    rows, step = number(data.get("rows")), number(data.get("applied_step"))
    return f"Exported {rows} samples of {name} at step {step} to {data.get('out_path')}"


def exported_weights(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """Where they are, and what is not there."""
    step, weight = number(data.get("step")), size(data.get("bytes"))
    of, left_out = f"{data.get('run_id')} at step {step}", data.get("left_out")
    missing = f"; left out, being no tensors: {', '.join(left_out)}" if left_out else ""
    return f"Exported the weights of {of} ({weight}) to {data.get('out_path')}{missing}"


def exported_archive(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    """Which runs are in it, and which parents are not."""
    runs, count = ", ".join(data.get("runs") or ()), data.get("checkpoints")
    kept = f"{number(count)} checkpoint{'' if count == 1 else 's'}"
    missing = data.get("missing")
    without = f"; without {', '.join(missing)}" if missing else ""
    where = f"({size(data.get('bytes'))}) into {data.get('out_path')}"
    return f"Packed {runs} with {kept} {where}{without}"


def exported_report(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    where = f"({size(data.get('bytes'))}) to {data.get('out_path')}"
    return f"Wrote the report of {data.get('run_id')} {where}"


def exported_recipe(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    return f"Wrote the {number(data.get('steps'))} steps of {name} to {data.get('out_path')}"


def healthy(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    found = "nothing to look at" if data.get("ok") else "there is something to look at"
    return f"{name} at step {number(data.get('step'))}: {found}\n{data.get('text')}"


def cancelled(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    if data.get("cancelled") is None:
        return f"Nothing that can be cancelled is running in {name}"
    return f"Cancelled in {name}; it ends behind its slice"


def switched(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    step = number(data.get("step"))
    return f"Switched to {data.get('run_id')}, which is paused at step {step}"


def undone(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    cmd = (data.get("undone") or {}).get("cmd") or "command"
    now = [(str(key), number(value)) for key, value in (data.get("now") or {}).items()]
    if len(now) == 1:
        [(key, value)] = now
        said = f" {key}, now {value}"
    else:
        said = "".join(f", {key} now {value}" for key, value in now)
    at = data.get("applied_step")
    step = f", applied at step {number(at)}" if at is not None else ""
    return f"Undone in {name}: {cmd}{said}{step}"


def extended(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    old = data.get("old") or {}
    kinds = (("max_epochs", "epochs"), ("max_steps", "steps"))
    said = [
        (f"{number(old.get(key))} → " if old.get(key) else "") + f"{number(data[key])} {unit}"
        for key, unit in kinds
        if data.get(key) is not None and data.get(key) != old.get(key)
    ]
    step = number(data.get("applied_step"))
    return f"Extended {name}: {', '.join(said) or 'no limit has changed'}, applied at step {step}"


def was_reset(name: str, data: Any, session: Mapping[str, Any]) -> str:  # noqa: ARG001 -- as above
    where = f"; its session is {data['session_id']} now" if data.get("session_id") else ""
    return f"Reset {name}: it is paused at step 0, as it was before its first{where}"


def exactness_sentence(text: str | None) -> str:
    """What a run promises of its resume, as the trainer words it."""
    return text or "not known: this run has not said whether it resumes exactly"
