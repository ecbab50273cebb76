"""``otf demo``: a dashboard and a real run to play with.

python -m otf_lightning.demo              # URL first; Ctrl-C ends both
python -m otf_lightning.demo --headless   # drives itself, prints what its journal says, exits
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

from otf_core import extras, protocol
from otf_core.client import Client
from otf_core.spawn import launch
from otf_lightning.callback import OnTheFlyCallback
from otf_lightning.digits import Digits, LitDigits

FIRST_STEP: Final = 25  # the visitor lets the run get going
REPLY_S: Final = 120.0
REFUSED: Final = 3  # exit code, as of `otf`


class Pace(L.Callback):
    """Slows the run down so that a person can follow it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._never = seconds, threading.Event()

    def on_train_batch_end(self, *_: Any) -> None:
        self._never.wait(self._seconds)


@contextlib.contextmanager
def running_dashboard(folder: Path, port: int) -> Iterator[str]:
    """``otf dashboard`` as a process of its own; yields its URL, ends it cleanly.

    Raises:
        RuntimeError: it did not start.
    """
    process, url = launch(folder, port=port)
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Visitor(threading.Thread):
    """What a person would do at the page, over the same API; for ``--headless``."""

    def __init__(self, url: str) -> None:
        super().__init__(name="otf-demo-visitor", daemon=True)
        self._client = Client.from_url(url)
        self.problem: str | None = None

    def run(self) -> None:
        try:
            self._visit()
        except Exception as error:  # noqa: BLE001 -- main function of a thread of ours: the summary says what failed
            self.problem = f"{type(error).__name__}: {error}"

    def _visit(self) -> None:
        session_id = self._session()
        for event in self._client.follow(session_id, types=["trainStep", "trainingFinished"]):
            if event["type"] == "trainingFinished" or event["step"] >= FIRST_STEP:
                break
        for cmd, payload in (
            ("pause", {"reason": "to have a look"}),
            ("validate_now", {}),
            ("test_now", {"label": "demo"}),
            ("set_param", {"path": "lr", "mul": 0.5}),
            ("note", {"text": "halved the learning rate"}),
            ("resume", {}),
            ("save_ckpt", {}),
        ):
            self._client.send(session_id, cmd, payload, REPLY_S)

    def _session(self) -> str:
        waiting = threading.Event()
        while True:
            for session in self._client.live_sessions():
                return str(session["session_id"])
            waiting.wait(0.1)


def train(folder: Path, *, epochs: int, delay: float, quiet: bool) -> Path | None:
    """One real run; returns its journal."""
    L.seed_everything(7, verbose=False)
    callback = OnTheFlyCallback(project="demo", run_name="digits", save_dir=folder)
    journal = _JournalPath(callback)
    bar = [] if quiet or not sys.stderr.isatty() else [RichProgressBar()]
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, journal, Pace(delay), *bar],
        logger=CSVLogger(folder / "csv"),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bool(bar),
        log_every_n_steps=10,
    )
    trainer.fit(LitDigits(), datamodule=Digits())
    return journal.path


class _JournalPath(L.Callback):
    """Keeps where the journal of the run lies, past the end of its session."""

    def __init__(self, callback: OnTheFlyCallback) -> None:
        self._callback = callback
        self.path: Path | None = None

    def on_train_start(self, *_: Any) -> None:
        if self._callback.session is not None:
            self.path = self._callback.session.journal.path


def summary(journal: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """What the journal says of the run, and what it does not say but should."""
    events = [protocol.decode_message(line) for line in journal.read_bytes().splitlines()]
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        first.setdefault(str(event["type"]), event)
    steps = [e for e in events if e["type"] == "trainStep"]
    rows = [("steps", f"{len(steps)} told, the last is step {steps[-1]['step']}")] if steps else []
    for kind, label, said in (
        ("paused", "pause", "held at step {step}; checkpoint {ckpt}"),
        ("test_complete", "test result", "average loss {avg_loss:.4f} at step {step}"),
        (
            "param_changed",
            "learning rate",
            "{path} {old:.3g} → {new:.3g} applied at step {applied_step}",
        ),
        ("note", "note", "“{text}” at step {step}"),
        ("resumed", "resume", "went on at step {step}"),
        ("checkpoint_saved", "checkpoint", "{path} ({bytes:,} bytes)"),
        ("trainingFinished", "end", "{status} at step {step}"),
    ):
        if kind in first:
            rows.append((label, said.format(**first[kind])))
    validations = [e["val_loss"] for e in steps if e.get("val_loss") is not None]
    if validations:
        rows.append(("val_loss", f"{validations[0]:.4f} at first, {validations[-1]:.4f} at last"))
    wanted = ("paused", "resumed", "param_changed", "test_complete", "trainingFinished")
    return rows, [kind for kind in wanted if kind not in first]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="otf demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--headless", action="store_true", help="drive itself and exit")
    parser.add_argument("--epochs", type=int, default=None, help="default: 40, headless 2")
    parser.add_argument("--delay", type=float, default=None, help="seconds a step, default: 0.1")
    parser.add_argument("--port", type=int, default=0, help="of the page; 0 takes any free one")
    parser.add_argument("--dir", type=Path, default=Path("otf_runs"), help="where runs are kept")
    args = parser.parse_args(argv)
    out = Console(highlight=False, soft_wrap=True)
    lacks = extras.lacking("otf demo", "demo")
    if lacks is not None:
        sys.stderr.write(f"{lacks}\n")
        return REFUSED
    if not args.headless:
        return _play(args, out)
    # Its own runtime folder, so that it neither finds nor replaces a dashboard of the user's.
    with tempfile.TemporaryDirectory(prefix="otf-demo-") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        return _headless(args, out)


def _headless(args: argparse.Namespace, out: Console) -> int:
    with running_dashboard(args.dir, args.port) as url:
        out.print(f"dashboard: {url}", markup=False)
        visitor = Visitor(url)
        visitor.start()
        delay = 0.02 if args.delay is None else args.delay
        journal = train(args.dir, epochs=args.epochs or 2, delay=delay, quiet=True)
        visitor.join(REPLY_S)
    if journal is None:
        out.print("the run has no journal")
        return 1
    rows, missing = summary(journal)
    table = Table("what", title=str(journal.parent.parent))
    table.add_column("according to its journal", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    if visitor.problem is not None:
        out.print(f"the visitor failed: {visitor.problem}", markup=False)
    if missing:
        out.print(f"not in the journal: {', '.join(missing)}")
    return 1 if missing or visitor.problem is not None else 0


def _play(args: argparse.Namespace, out: Console) -> int:
    with running_dashboard(args.dir, args.port) as url:
        out.print(f"Open {url}", markup=False)
        out.print("Try: otf status, otf pause, otf set lr 0.0005, otf resume. Ctrl-C ends both.")
        try:
            delay = 0.1 if args.delay is None else args.delay
            train(args.dir, epochs=args.epochs or 40, delay=delay, quiet=False)
            out.print("The run is over; its page stays until Ctrl-C.")
            threading.Event().wait()
        except (KeyboardInterrupt, SystemExit):
            out.print("Ended.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
