"""Starts ``otf dashboard`` as a process of its own: for a run that asks for one, for the demo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

from otf_core import rendezvous
from otf_core.extras import lacking


def launch(
    save_dir: Path, *, port: int = 0, stderr: int | IO[str] | None = None
) -> tuple[subprocess.Popen[str], str]:
    """Start ``otf dashboard``; the process and its URL. Out of reach of this terminal's Ctrl-C.

    Args:
        port: of the page; 0 takes any free one.
        stderr: as for Popen; None is ours.

    Raises:
        RuntimeError: it did not start, or is not installed.
    """
    lacks = lacking("The dashboard", "dashboard")
    if lacks is not None:
        raise RuntimeError(lacks)
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard"]
    process = subprocess.Popen(
        [*command, "--dir", str(save_dir), "--port", str(port)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:  # one line is all that it ever says there
        url = process.stdout.readline().strip()
    if not url:
        msg = f"the dashboard did not start (exit code {process.wait()})"
        raise RuntimeError(msg)
    return process, url


def start_dashboard(save_dir: Path) -> str:
    """Start a dashboard unless one runs, say its URL on stderr; how the run is to dial.

    It outlives the run, so that what it shows stays.

    Raises:
        RuntimeError: it did not start.
    """
    if rendezvous.find() is None:
        # It must not hold a pipe that the run's stderr goes to.
        process, url = launch(save_dir, stderr=subprocess.DEVNULL)
        # Nobody waits for it, and that is no leak to be warned of.
        process.returncode = 0
        sys.stderr.write(f"otf: dashboard at {url}\n")
    return "auto"
