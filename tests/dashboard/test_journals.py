"""Past runs, read from disk; and a journal and its trainer together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otf_core.dashboard import journals
from tests.dashboard.bench import TOKEN, Bench, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble


def write_journal(
    runs: Path, trainer: TrainerDouble, *, tail: bytes = b"", last: int | None = None
) -> Path:
    folder = runs / trainer.project / trainer.run_id
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    path = folder / "journal" / f"{trainer.session_id}.jsonl"
    lines = [json.dumps(event).encode() + b"\n" for event in trainer.events[:last]]
    path.write_bytes(b"".join(lines) + tail)
    return folder


def trained(
    session_id: str = "sess-1", *, steps: int = 20, run_id: str = "digits"
) -> TrainerDouble:
    trainer = TrainerDouble(session_id, token=TOKEN, run_id=run_id)
    trainer.begin()
    trainer.train(steps)
    return trainer


async def loaded(bench: Bench, *session_ids: str) -> None:
    for session_id in session_ids:
        await bench.dashboard.journals.load(session_id)


@in_loop
async def test_a_past_run_is_shown_as_a_journal(tmp_path: Path) -> None:
    trainer = trained()
    trainer.finish("failed", "RuntimeError: out of memory")
    write_journal(tmp_path, trainer)
    async with dashboard(tmp_path) as bench:
        await bench.until_has("sess-1", len(trainer.events))
        session = await bench.get("api/sessions/sess-1")
        assert (session["state"], session["connected"]) == ("journal", False)
        assert session["finished"]["error"] == "RuntimeError: out of memory"
        assert session["journal_complete"] is True
        run = await bench.get("api/runs/digits")
        assert (run["project"], run["summary"]["step"]) == ("demo", 20)
        found = await bench.get("api/runs/digits/metrics?names=loss")
        assert found["columns"]["loss"] == [
            e["loss"] for e in trainer.events if e["type"] == "trainStep"
        ]
        refused = await bench.command("sess-1", "pause")
        assert (refused.status_code, refused.json()["connected"]) == (503, False)


@pytest.mark.parametrize(
    "tail", [b'{"type":"trainStep","st', b"\xff\n", b"[]\n", b"null\n", b"{}\n"]
)
@in_loop
async def test_a_torn_journal_is_read_as_far_as_it_goes(tmp_path: Path, tail: bytes) -> None:
    trainer = trained()
    write_journal(tmp_path, trainer, tail=tail)
    async with dashboard(tmp_path) as bench:
        await bench.until_has("sess-1", 22)
        await loaded(bench, "sess-1")
        assert (await bench.get("api/sessions/sess-1"))["journal_complete"] is False


@in_loop
async def test_a_trainer_with_a_journal_is_asked_only_for_what_follows(tmp_path: Path) -> None:
    trainer = trained()
    write_journal(tmp_path, trainer, last=12)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        session = await bench.until_has("sess-1", 22)
        await bench.until_connected("sess-1")
        assert trainer.asked("hello")[0]["payload"]["last_seq"] == 12
        assert session.to_json()["state"] == "running"
        trainer.train(1)
        await bench.until_has("sess-1", 23)
        assert len(bench.store.runs["demo", "digits"].columns["sess-1"]) == 21


@in_loop
async def test_a_run_folder_that_was_moved_still_gives_its_checkpoints(tmp_path: Path) -> None:
    trainer = trained()
    trainer.emit("checkpoint_saved", id="c1", path="/old/place/checkpoints/1.ckpt", step=1)
    trainer.emit("checkpoint_saved", id="c2", path="/etc/passwd", step=1)
    folder = write_journal(tmp_path, trainer)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "1.ckpt").write_bytes(b"weights")
    async with dashboard(tmp_path) as bench:
        await bench.until_has("sess-1", 24)
        answer = await bench.http.get("api/checkpoints/sess-1/c1/file")
        assert answer.content == b"weights"
        assert (await bench.http.get("api/checkpoints/sess-1/c2/file")).status_code == 404


@in_loop
async def test_the_newest_journals_are_read_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setattr(journals, "MAX_FILES", 2)
    for n in range(4):
        trainer = trained(f"sess-{n}", run_id=f"run{n}", steps=1)
        folder = write_journal(tmp_path, trainer)
        os.utime(folder / "journal" / f"sess-{n}.jsonl", (n, n))
    async with dashboard(tmp_path) as bench:
        await bench.until_has("sess-3", 3)
        await bench.until_has("sess-2", 3)
        await bench.dashboard.journals.load_all()
        assert sorted(bench.store.sessions) == ["sess-2", "sess-3"]
        assert bench.said == [f"2 older journals below {tmp_path} are not read"]


@in_loop
async def test_a_large_journal_does_not_hold_up_a_trainer(tmp_path: Path) -> None:
    write_journal(tmp_path, trained("sess-old", steps=5000, run_id="old"))
    trainer = trained()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 22)
        assert (await bench.command("sess-1", "pause")).json()["ok"] is True
        await bench.until_has("sess-old", 5002)
