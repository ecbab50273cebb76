"""``dashboard="spawn"``: one is started, its URL is said, and it outlives the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from otf_core import rendezvous
from otf_core.client import Client
from otf_lightning import OnTheFlyCallback
from tests.no_harm.configs import _fit


@pytest.mark.timeout(90)
def test_a_run_starts_its_dashboard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _fit([OnTheFlyCallback("p", "spawned", save_dir=tmp_path, dashboard="spawn")])

    found = rendezvous.find()
    assert found is not None
    try:
        client = Client.from_rendezvous()
        (session,) = client.sessions()
        assert (session["run_id"], session["state"], session["step"]) == ("spawned", "finished", 24)
        said = [line for line in capfd.readouterr().err.splitlines() if "dashboard at" in line]
        assert said == [f"otf: dashboard at {client.page_url}"]
    finally:
        os.kill(found.pid, signal.SIGINT)
        psutil.Process(found.pid).wait(20)
    assert rendezvous.find() is None
