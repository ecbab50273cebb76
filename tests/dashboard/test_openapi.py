"""The document and the real server, as schemathesis sees them, with each token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from otf_core.dashboard import security
from otf_core.dashboard.openapi import ENDPOINTS, STRING
from otf_core.rendezvous import read_only_token
from tests.dashboard.bench import TOKEN, dashboard
from tests.dashboard.trainer_double import TrainerDouble

POLL_S = 0.01
THERE = {"session_id": "sess-1", "run": "digits", "ckpt_id": "20-ring", "request_id": "p1"}
TOKENS = {"owner": TOKEN, "watcher": read_only_token(TOKEN)}
# Parameters that no operation knows are ignored, as fields are.
CONFIG = {
    "generation": {"with-security-parameters": False, "allow-extra-parameters": False},
    # A command for a session whose trainer is gone.
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]}},
}
# Any text is a path; the others have parameters that only some values fit.
CAN_BE_WRONG = {
    f"{e.method} {e.path}"
    for e in ENDPOINTS
    if e.body is not None or any(schema is not STRING for schema, _ in e.query.values())
}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a dashboard with a trainer, in a thread with a loop of its own."""
    # Wrong tokens are tried with each operation.
    monkeypatch.setattr(security, "MAX_WRONG", 1_000_000)
    ready, urls, ended = threading.Event(), list[str](), list[Callable[[], object]]()

    async def serve() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        ended.append(lambda: loop.call_soon_threadsafe(end.set))
        run_dir = tmp_path / "demo" / "digits"
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints" / "20-ring.ckpt").write_bytes(b"weights")
        trainer = TrainerDouble(token=TOKEN, run_dir=str(run_dir))
        trainer.begin()
        trainer.train(20)
        trainer.saved(20)
        async with dashboard(tmp_path) as bench, trainer.on(bench.port):
            await bench.until_has("sess-1", 23)
            urls.append(bench.dashboard.url)
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="dashboard")
    thread.start()
    assert ready.wait(20)
    yield urls[0]
    ended[0]()
    thread.join(20)


def hold_against_the_document(url: str, token: str, count: int) -> list[str]:
    """So many requests, right ones and wrong ones, to each operation; which those are."""
    config = schemathesis.Config.from_dict(CONFIG)
    api = schemathesis.openapi.from_url(f"{url}api/openapi.json", config=config)
    tried = []
    for found in api.get_all_operations():
        operation = found.ok()
        tried.append(operation.label)
        for mode in GenerationMode:
            if mode.is_negative and operation.label not in CAN_BE_WRONG:
                continue
            _send(operation.as_strategy(generation_mode=mode), token, count)
    return tried


def _send(cases: Any, token: str, count: int) -> None:
    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases, known=st.booleans())
    def send(case: Any, known: bool) -> None:
        if known:  # else nothing but "not found" would be seen
            case.path_parameters = {name: THERE[name] for name in case.path_parameters or {}}
        for where in (case.query, case.body):
            if isinstance(where, dict) and type(where.get("wait_s")) in (int, float):
                where["wait_s"] = min(where["wait_s"], POLL_S)
        case.call_and_validate(headers={"Authorization": f"Bearer {token}"}, timeout=20)

    send()


@pytest.mark.parametrize("who", TOKENS)
def test_what_is_answered_is_what_the_document_says(url: str, who: str) -> None:
    tried = hold_against_the_document(url, TOKENS[who], 4)
    assert "POST /api/sessions/{session_id}/commands" in tried
    assert len(tried) == 11


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("who", TOKENS)
def test_so_it_is_with_whatever_is_sent(url: str, who: str) -> None:
    hold_against_the_document(url, TOKENS[who], 300)
