"""Every fit of the Runner is a run, with a folder of its own and nobody who looks on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    own_runtime_dir: None,
    queues_have_ended: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTF_DASHBOARD", "off")
