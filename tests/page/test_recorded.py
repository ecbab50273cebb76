"""The family that the page is shown is what it is said to be, and comes alive again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from otf_core.client import Client
from tests.page import recorded

pytestmark = [pytest.mark.web, pytest.mark.timeout(150)]


def test_it_is_the_family_of_the_table(family: Path) -> None:
    events = recorded.journal(family)
    steps: dict[str, list[int]] = {}
    for event in events:
        if event["type"] == "trainStep":
            steps.setdefault(event["run_id"], []).append(event["step"])
    assert steps == {
        "digits": [*range(1, 201)],
        "hard": [*range(121, 181)],
        "gentle": [*range(201, 261), *range(241, 261)],
        "both": [*range(201, 241)],
    }
    made = {e["run_id"]: (e["parents"], e["meta"]["kind"]) for e in events if e["type"] == "newRun"}
    assert made == {
        "digits": ([], "base"),
        "hard": (["digits"], "fork"),
        "gentle": (["digits"], "fork"),
        "both": (["digits", "gentle"], "merge"),
    }
    assert [e["step"] for e in events if e["type"] == "note"] == [30]


def test_its_last_run_stands_there_with_a_trainer(family: Path, tmp_path: Path) -> None:
    with recorded.living(family, tmp_path) as url:
        client, turn = Client.from_url(url), threading.Event()
        for _ in range(600):
            if any(s["state"] == "paused" for s in client.live_sessions()):
                break
            turn.wait(0.1)
        (session,) = client.live_sessions()
        assert (session["run_id"], session["step"]) == ("both", 240)
