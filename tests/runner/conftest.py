from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _runs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Runner keeps its runs below the working directory, and looks for a dashboard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTF_DASHBOARD", "off")
