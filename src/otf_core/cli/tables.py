"""What the command line shows as a table; imports rich, so only where it is shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from otf_core.client.words import number, span


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
            session["state"],
            number(session["step"]),
            number(session["epoch"]) if session["epoch"] is not None else "-",
            session["device"] or "-",
            heard,
            session["session_id"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)
