"""What the command line shows as a table; imports rich, so only where it is shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from otf_core.client.states import standing
from otf_core.client.words import number, span


def runs_tree(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print runs as a tree, each below its parent; main thread."""
    known = {(run["project"], run["run_id"]) for run in runs}
    below: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    roots: dict[str, list[Mapping[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run.get("created_ts") or 0.0):
        parents = [p for p in run["parents"] if (run["project"], p) in known]
        if parents:
            below.setdefault((run["project"], parents[0]), []).append(run)
        else:
            roots.setdefault(run["project"], []).append(run)

    def hang(tree: Tree, run: Mapping[str, Any]) -> None:
        branch = tree.add(_run_line(run))
        for child in below.get((run["project"], run["run_id"]), ()):
            hang(branch, child)

    for project, found in roots.items():
        tree = Tree(Text(project or "-", style="bold"))
        for run in found:
            hang(tree, run)
        Console().print(tree)


def _run_line(run: Mapping[str, Any]) -> Text:
    summary = run["summary"]
    said = [f"step {number(summary['step'])}"] if summary["step"] is not None else []
    said += [f"{name} {number(summary[name])}" for name in ("loss", "val_loss") if summary[name]]
    more = list(run["parents"][1:])
    said += [f"and from {', '.join(more)}"] if more else []
    return Text.assemble((str(run["run_id"]), "bold"), f"  {', '.join(said)}")


def sessions_table(sessions: Sequence[Mapping[str, Any]]) -> None:
    """Print sessions, one a row; main thread. Names are untrusted: no markup is read in them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "project", "state", "step", "epoch", "device", "last heard", "session"):
        table.add_column(title, overflow="fold", no_wrap=title not in ("run", "session"))
    for session in sessions:
        last = session.get("last_ts")
        heard = span(max(0.0, time.time() - last)) + " ago" if last else "-"
        cells = (
            session["run_name"] or session["run_id"],
            session["project"] or "-",
            standing(session),
            number(session["step"]),
            number(session["epoch"]) if session["epoch"] is not None else "-",
            session["device"] or "-",
            heard,
            session["session_id"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)
