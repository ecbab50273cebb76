"""Starts ``otf top``, or prints one screen; the main thread."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import click

from otf_core import extras
from otf_core.cli.failure import EXIT_USAGE, Failure
from otf_core.cli.top import screen
from otf_core.client import Client, RefusedError, band
from otf_core.client.board import Board, Row

NAME: Final = f"otf top on {socket.gethostname()}"
NO_TERMINAL: Final = (
    "otf top needs a terminal that can move its cursor; one screen as plain text: otf top --once"
)
HISTORY: Final = (
    "state", "paused", "resumed", "stall", "rank_state", "epoch_end", "checkpoint_removed",
    "checkpoint_loaded",
    "test_complete", "auto_test_complete", "param_changed", "note", "trainingFinished", "error",
    "session_started", "newRun",
)  # fmt: skip
LOG_BACK: Final = 3_000  # numbers that a log's lines are looked for in
MAX_HISTORY: Final = 10_000
BUCKETS: Final = 400  # some more than a wide terminal has dots for a chart


def run(url: str | None) -> int:
    """The page, until it is left; the exit status."""
    if not can_draw(os.environ, sys.stdin.isatty() and sys.stdout.isatty()):
        _refuse("no_terminal", NO_TERMINAL)
    lacks = extras.lacking("otf top", "tui")
    if lacks is not None:
        _refuse("unsupported", f"{lacks}; without it: otf top --once")
    from otf_core.cli.top.app import Top

    return Top(lambda: find(url)).run() or 0


def can_draw(env: Mapping[str, str], is_tty: bool) -> bool:  # noqa: FBT001 -- a fact of the process
    """Whether there is a terminal, and a clever one."""
    return is_tty and env.get("TERM", "") not in ("", "dumb", "unknown")


def _refuse(code: str, detail: str) -> NoReturn:
    raise Failure(EXIT_USAGE, {"error": code, "code": code, "detail": detail})


def find(url: str | None) -> Client:
    """The dashboard of an address, else the one that runs here.

    Raises:
        NoDashboardError: none runs.
    """
    timeout_s = 5.0
    if url is None:
        return Client.from_rendezvous(timeout_s=timeout_s)
    return Client.from_url(url, timeout_s=timeout_s)


def where(client: Client) -> str:
    """Where it listens, for people."""
    return urlsplit(client.url).netloc


def print_once(url: str | None, *, as_json: bool = False) -> int:
    """One screen on stdout, as wide as the terminal or 100; or what it says, as JSON."""
    board, client = Board(), find(url)
    fill(board, client)
    if as_json:
        click.echo(json.dumps(_facts(board), ensure_ascii=False))
        return 0
    width = max(screen.SMALLEST[0], shutil.get_terminal_size((100, 40)).columns)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    click.echo(screen.once(board, width, 40, where(client)))
    return 0


def _facts(board: Board) -> dict[str, Any]:
    row = board.current()
    key = row.session["session_id"] if row is not None else None
    return {
        "state": band.state_of(board, row),
        "sentence": band.sentence(board, row),
        "facts": band.facts(board, row),
        "project": row.key[0] if row is not None else None,
        "run_id": row.key[1] if row is not None else None,
        "session_id": key,
        "controls": [dataclasses.asdict(control) for control in band.controls(board, row)],
        "checkpoints": board.checkpoints_of(row) if row is not None else [],
        "runs": [{"letter": each.letter, "run_id": each.key[1], "state": each.state}
                 for each in board.rows()],
    }  # fmt: skip


def fill(board: Board, client: Client) -> None:
    """All that a screen shows, asked by REST; takes as long as the answers do."""
    welcome = {"kind": "welcome", "sessions": client.sessions(), "runs": client.runs()}
    board.take(welcome, board.now_ts())
    row = board.current()
    if row is None:
        return
    board.told_of(row.session["session_id"]).take(history_of(client, row))
    board.take_curves(row, curves_of(client, row))


def history_of(client: Client, row: Row) -> list[dict[str, Any]]:
    """What a session has told before we came; any thread."""
    key, last = row.session["session_id"], int(row.session.get("last_seq") or 0)
    told = client.events(key, types=HISTORY, limit=MAX_HISTORY)
    return told + client.events(key, after=max(0, last - LOG_BACK), limit=MAX_HISTORY)


def curves_of(client: Client, row: Row) -> dict[str, Any]:
    """The curves of a run that a screen shows; none, if it has told nothing yet. Any thread."""
    project, run_id = row.key
    try:
        names = screen.chart_names(client.run(run_id, project=project)["metrics"], 8)
        asked = [*names, "epoch"]
        got = client.curves(run_id, asked, project=project, buckets=BUCKETS)
    except RefusedError:
        return {}
    return dict(got["series"])
