"""Every fit of the Runner is a run, with a folder of its own and nobody who looks on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_runtime_dir: None
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTF_DASHBOARD", "off")
    yield
    # Torch closes the queues of its workers, and does not wait for the threads that feed them.
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(10)
