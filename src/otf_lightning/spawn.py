"""Starts ``otf dashboard`` for a run that asks for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from otf_core import rendezvous


def start_dashboard(save_dir: Path) -> str:
    """Start a dashboard unless one runs, say its URL on stderr; how the run is to dial.

    The dashboard is a process of its own and outlives the run, so that what it shows stays.

    Raises:
        RuntimeError: it did not start; its own words are in the message.
    """
    if rendezvous.find() is None:
        command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(save_dir)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            # It outlives the run, and must not hold a pipe that the run's stderr goes to.
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout:
            url = process.stdout.readline().strip()
        if not url:
            msg = f"dashboard='spawn' was asked, but it ended with exit code {process.wait()}"
            raise RuntimeError(msg)
        # It outlives the run: nobody waits for it, and that is no leak to be warned of.
        process.returncode = 0
        sys.stderr.write(f"otf: dashboard at {url}\n")
    return "auto"
