"""A dashboard that is killed over and over: the run does not notice, and no event is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from otf_core.client import Client
from otf_lightning import OnTheFlyCallback
from tests.no_harm import digest
from tests.no_harm.configs import _fit

KILLS = 20
BATCHES = 48  # 4 epochs of 12


class Dashboard:
    """``otf dashboard`` as a process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.client = Client.from_url(self._process.stdout.readline().strip())

    def wait_for_trainer(self) -> dict[str, Any]:
        """Until a trainer is connected and its history is here."""
        turn = threading.Event()
        for _ in range(600):
            for session in self.client.live_sessions():
                return session
            turn.wait(0.05)
        msg = "no trainer came back"
        raise TimeoutError(msg)

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """SIGINT: the ordinary end."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        assert self._process.stdout is not None
        self._process.send_signal(how)
        self._process.wait(20)
        self._process.stdout.close()


class Killer(L.Callback):
    """Kills the dashboard inside the chosen batches and starts another."""

    def __init__(self, folder: Path, at: set[int]) -> None:
        self._folder, self._at = folder, at
        self.dashboard = Dashboard(folder)
        self.killed = self._batch = 0

    def on_train_batch_end(self, *_: Any) -> None:
        if self._batch in self._at:
            self.dashboard.wait_for_trainer()
            self.dashboard.kill()
            self.killed += 1
            self.dashboard = Dashboard(self._folder)
        self._batch += 1


@pytest.mark.timeout(300)
def test_twenty_kills_cost_the_run_nothing_and_no_event(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    expected = digest.of(_fit([], max_epochs=4))

    killer = Killer(tmp_path, set(random.Random(20).sample(range(BATCHES), KILLS)))
    torch.manual_seed(5)
    callback = OnTheFlyCallback("kills", "run", save_dir=tmp_path)
    try:
        found = digest.of(_fit([callback, killer], max_epochs=4))
        (journal,) = tmp_path.glob("kills/run/journal/*.jsonl")
        told = [json.loads(line) for line in journal.read_text().splitlines()]
        client = killer.dashboard.client
        session = client.session(told[0]["session_id"])
        shown = client.events(session["session_id"], types=["trainStep"], limit=1000)
        others = client.events(session["session_id"], limit=1000)
    finally:
        killer.dashboard.end()

    assert killer.killed == KILLS
    for part, value in expected.items():
        assert found[part] == value, part
    assert [e["event_seq"] for e in told] == list(range(1, len(told) + 1))
    assert [e["step"] for e in told if e["type"] == "trainStep"] == list(range(1, BATCHES + 1))
    assert session["last_seq"] == len(told)
    assert session["state"] == "finished"
    assert [e["event_seq"] for e in shown] == [
        e["event_seq"] for e in told if e["type"] == "trainStep"
    ]
    assert [e["event_seq"] for e in others if e["type"] != "trainStep"] == [
        e["event_seq"] for e in told if e["type"] != "trainStep"
    ]
