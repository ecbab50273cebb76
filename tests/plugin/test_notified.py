"""Whoever is to be told of a fit is told, and nothing that is kept of it has the address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.no_harm.configs import _fit
from tests.plugin.rig import Barrier, fitting
from tests.telemetry.test_notices import SECRET, Hook


@pytest.mark.timeout(180)
def test_a_fit_tells_of_its_pause_and_of_its_end(tmp_path: Path) -> None:
    hook, barrier = Hook(), Barrier(3)
    notify = {"url": hook.url, "headers": {"Authorization": SECRET}}
    try:
        with fitting(_fit, tmp_path, barrier, notify=notify, after_fit="return") as fit:
            barrier.wait_for(3)
            asked = fit.dashboard.send("pause")
            fit.dashboard.expect("state", state="pausing")
            barrier.let_go(3)
            step = fit.dashboard.reply_to(asked)["data"]["step"]
            [told] = hook.expect(1)
            assert (told["what"], told["step"]) == ("paused", step)
            assert Path(told["checkpoint"]).is_file()
            assert fit.dashboard.request("resume")["ok"]
            barrier.open()
            fit.outcome()
        assert [(body["what"], body["status"]) for body in hook.bodies] == [
            ("paused", None),
            ("finished", "completed"),
        ]
        assert {body["project"] for body in hook.bodies} == {told["project"]}
    finally:
        hook.close()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".ckpt" for path in kept)
    assert any(path.suffix == ".jsonl" for path in kept)
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]
