"""Past runs, read from disk; and a journal and its trainer together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from otf_core.client.states import standing
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


@in_loop
async def test_a_run_whose_rank_was_killed_is_known_to_have_failed(tmp_path: Path) -> None:
    trainer = trained()
    trainer.emit("rank_state", rank=1, state="silent", why="rank 1 is silent", step=19)
    trainer.emit("rank_state", rank=1, state="failed", why="rank 1 ended", step=20)
    write_journal(tmp_path, trainer)
    async with dashboard(tmp_path) as bench:
        await bench.until_has("sess-1", len(trainer.events))
        session = await bench.get("api/sessions/sess-1")
        assert session["finished"] == {"status": "failed", "step": 20, "error": "rank 1 ended"}
        assert standing(session) == "failed"


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
async def test_all_journals_are_read_the_newest_first(tmp_path: Path) -> None:
    for n in range(4):
        trainer = trained(f"sess-{n}", run_id=f"run{n}", steps=1)
        folder = write_journal(tmp_path, trainer)
        os.utime(folder / "journal" / f"sess-{n}.jsonl", (n, n))
    async with dashboard(tmp_path) as bench:
        await bench.dashboard.journals.load_all()
        assert list(bench.store.sessions) == ["sess-3", "sess-2", "sess-1", "sess-0"]


@in_loop
async def test_a_large_journal_does_not_hold_up_a_trainer(tmp_path: Path) -> None:
    write_journal(tmp_path, trained("sess-old", steps=5000, run_id="old"))
    trainer = trained()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 22)
        assert (await bench.command("sess-1", "pause")).json()["ok"] is True
        await bench.until_has("sess-old", 5002)


def write_record(folder: Path, *session_ids: str) -> None:
    (folder / "run.json").write_text(json.dumps({"session_ids": list(session_ids)}))


def three_sessions(runs: Path) -> tuple[Path, list[TrainerDouble]]:
    """Steps 1-40, killed; from 30 again to 60, back to 45 and to 55, killed; from 50 to 70.

    The clocks of the later machines are wrong: only run.json knows the order.
    """
    first = trained("sess-c", steps=40)
    second, third = (TrainerDouble(key, token=TOKEN) for key in ("sess-a", "sess-b"))
    second.start_ts, third.start_ts = 9000.0, 2000.0
    for gen, trainer, at in ((1, second, 30), (3, third, 50)):
        trainer.run_gen = gen - 1
        trainer.begin()
        trainer.step = at
        trainer.back_to(at)
    second.train(30, gen="second")
    second.back_to(45)
    second.train(10, gen="again")
    third.train(20)
    trainers = [first, second, third]
    folders = {write_journal(runs, trainer) for trainer in trainers}
    [folder] = folders
    write_record(folder, "sess-c", "sess-a", "sess-b")
    return folder, trainers


@in_loop
async def test_a_run_of_three_sessions_is_one_run_with_one_curve(tmp_path: Path) -> None:
    _, trainers = three_sessions(tmp_path)
    async with dashboard(tmp_path) as bench:
        for trainer in trainers:
            await bench.until_has(trainer.session_id, len(trainer.events))
        [run] = (await bench.get("api/runs"))["runs"]
        assert run["session_ids"] == ["sess-c", "sess-a", "sess-b"]
        assert run["summary"]["step"] == 70
        found = await bench.get("api/runs/digits/metrics?names=loss")
        columns = found["columns"]
        assert columns["step"] == list(range(1, 71))
        assert found["total"] == 70
        assert columns["session"] == [0] * 30 + [1] * 20 + [2] * 20
        told = {(t.session_id, e["event_seq"]): e for t in trainers for e in t.events}
        for at, seq in enumerate(columns["event_seq"]):
            event = told[found["session_ids"][columns["session"][at]], seq]
            assert event["step"] == columns["step"][at]
            # 46 to 50 were done twice by the second session; what holds is what it did last.
            assert (event.get("gen") == "again") == (46 <= event["step"] <= 50)
            assert (event.get("gen") == "second") == (31 <= event["step"] <= 45)
        part = await bench.get("api/runs/digits/metrics?names=loss&from=44&to=52")
        assert part["columns"]["step"] == list(range(44, 53))
        events = await bench.get("api/runs/digits/events?types=checkpoint_loaded")
        assert [e["step"] for e in events["events"]] == [30, 45, 50]


@in_loop
async def test_a_run_that_comes_back_brings_the_journals_of_its_folder(tmp_path: Path) -> None:
    """Its earlier sessions trained while this dashboard was not there, in a folder that it does not
    watch."""
    runs = tmp_path / "elsewhere"
    trainer = TrainerDouble("sess-2", token=TOKEN, run_dir=str(runs / "demo" / "digits"))
    async with dashboard(tmp_path / "otf_runs") as bench:
        folder = write_journal(runs, trained("sess-1", steps=20))
        write_record(folder, "sess-1", "sess-2")
        trainer.start_ts += 500
        trainer.begin()
        trainer.step = 15
        trainer.back_to(15)
        trainer.train(5)
        async with trainer.on(bench.port):
            await bench.until_has("sess-2", len(trainer.events))
            await bench.until_has("sess-1", 22)
            run = await bench.get("api/runs/digits")
            assert run["session_ids"] == ["sess-1", "sess-2"]
            found = await bench.get("api/runs/digits/metrics?names=loss")
            assert found["columns"]["session"] == [0] * 15 + [1] * 5
