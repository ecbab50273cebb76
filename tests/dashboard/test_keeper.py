"""The database of a folder: what it keeps, through starts, kills, damage and full disks."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from otf_core.dashboard import database, journals, keeper
from otf_core.dashboard.database import MIGRATIONS, VERSION
from otf_core.dashboard.folder_lock import FolderLock
from tests.dashboard.bench import TOKEN, Bench, dashboard, in_loop
from tests.dashboard.test_journals import three_sessions, trained, write_journal, write_record
from tests.dashboard.trainer_double import TrainerDouble

FILE = "dashboard.sqlite"


async def settled(bench: Bench) -> None:
    """Everything has been read and is on the disk."""
    await bench.dashboard.journals.load_all()
    await bench.dashboard.keeper.recount()
    assert await bench.dashboard.keeper.save_all()


async def all_told(bench: Bench) -> dict[Any, Any]:
    """What a page or a script can get to know."""
    runs = {run["run_id"]: run for run in (await bench.get("api/runs"))["runs"]}
    told: dict[Any, Any] = {"runs": runs}
    for run_id in runs:
        for what in ("metrics", "metrics?buckets=64", "events?limit=10000"):
            told[run_id, what] = await bench.get(f"api/runs/{run_id}/{what}")
        told[run_id, "names"] = (await bench.get(f"api/runs/{run_id}"))["metrics"]
    for session in (await bench.get("api/sessions"))["sessions"]:
        key = session["session_id"]
        told[key] = session
        types = "trainStep,newRun,checkpoint_loaded"
        told[key, "steps"] = await bench.get(f"api/sessions/{key}/events?types={types}&limit=9999")
        told[key, "after"] = await bench.get(f"api/sessions/{key}/events?after=3&limit=7")
    return told


def differences(found: dict[Any, Any], told: dict[Any, Any]) -> dict[Any, Any]:
    """What is not the same, part by part."""
    return {
        key: (found.get(key), told.get(key))
        for key in found.keys() | told.keys()
        if found.get(key) != told.get(key)
    }


def in_memory(bench: Bench) -> int:
    rows = [c.in_memory for run in bench.store.runs.values() for c in run.columns.values()]
    return sum(rows) + sum(len(session.events) for session in bench.store.sessions.values())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines of journals that were parsed."""
    lines: list[bytes] = []
    decode = journals._decode

    def count(found: list[bytes]) -> Any:
        lines.extend(line for line in found if line.strip())
        return decode(found)

    monkeypatch.setattr(journals, "_decode", count)
    return lines


@in_loop
async def test_a_second_start_reads_no_journal_and_knows_the_same(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    three_sessions(tmp_path)
    async with dashboard(tmp_path / "none") as bench:
        assert await all_told(bench) == {"runs": {}}
    async with dashboard(tmp_path) as bench:
        await bench.dashboard.journals.load_all()
        await bench.dashboard.keeper.recount()
        told = await all_told(bench)
        assert await bench.dashboard.keeper.save_all()
        assert in_memory(bench) == 0
        assert differences(await all_told(bench), told) == {}
    assert len(decoded) > 100
    decoded.clear()
    async with dashboard(tmp_path) as bench:
        assert len(bench.store.sessions) == 3
        assert differences(await all_told(bench), told) == {}
        assert in_memory(bench) == 0
    assert decoded == []
    assert bench.said == []


@in_loop
async def test_of_a_journal_that_has_grown_only_the_rest_is_read(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    trainer = trained(steps=50)
    write_journal(tmp_path, trainer, last=30, tail=b'{"type":"trainSt')
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        assert (await bench.get("api/sessions/sess-1"))["journal_complete"] is False
    decoded.clear()
    write_journal(tmp_path, trainer)
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        assert [json.loads(line)["event_seq"] for line in decoded] == list(range(31, 53))
        grown = await all_told(bench)
        assert grown["sess-1"]["journal_complete"] is True
    (tmp_path / FILE).unlink()
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        assert await all_told(bench) == grown


@in_loop
async def test_another_file_in_the_place_of_a_journal_is_read_from_its_beginning(
    tmp_path: Path,
) -> None:
    write_journal(tmp_path, trained(steps=60))
    async with dashboard(tmp_path) as bench:
        await settled(bench)
    for steps in (20, 90):
        other = TrainerDouble("sess-1", token=TOKEN)
        other.begin()
        other.train(steps, aux=float(steps))
        write_journal(tmp_path, other)
        async with dashboard(tmp_path) as bench:
            await settled(bench)
            found = await bench.get("api/runs/digits/metrics?names=aux")
            assert found["columns"]["aux"] == [float(steps)] * steps


@in_loop
async def test_a_journal_that_is_gone_is_off_the_list(tmp_path: Path) -> None:
    write_journal(tmp_path, trained("sess-1", run_id="kept"))
    folder = write_journal(tmp_path, trained("sess-2", run_id="gone"))
    async with dashboard(tmp_path) as bench:
        await settled(bench)
    shutil.rmtree(folder)
    for said in (["1 sessions whose journals are gone were taken off the list"], []):
        async with dashboard(tmp_path) as bench:
            assert [run["run_id"] for run in (await bench.get("api/runs"))["runs"]] == ["kept"]
            assert list(bench.store.sessions) == ["sess-1"]
            assert bench.said == said


@in_loop
async def test_a_folder_that_was_moved_needs_no_reading(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    write_journal(tmp_path / "a", trained())
    async with dashboard(tmp_path / "a") as bench:
        await settled(bench)
        told = await all_told(bench)
    decoded.clear()
    (tmp_path / "a").rename(tmp_path / "b")
    async with dashboard(tmp_path / "b", max_db_bytes=1) as bench:
        assert differences(await all_told(bench), told) == {}
        assert decoded == []
        await bench.dashboard.keeper.make_room()
        assert differences(await all_told(bench), told) == {}
        assert len(decoded) == 22


@in_loop
async def test_what_a_trainer_without_a_journal_said_is_kept(tmp_path: Path) -> None:
    trainer = trained(steps=40)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 42)
        trainer.train(10)
        await bench.until_has("sess-1", 52)
    async with dashboard(tmp_path) as bench:
        session = await bench.get("api/sessions/sess-1")
        assert (session["state"], session["last_seq"]) == ("journal", 52)
        found = await bench.get("api/runs/digits/metrics?names=loss")
        steps = [e for e in trainer.events if e["type"] == "trainStep"]
        assert found["columns"]["loss"] == [e["loss"] for e in steps]
        trainer.train(5)
        async with trainer.on(bench.port):  # and it goes on where the database ends
            await bench.until_has("sess-1", 57)
            assert trainer.asked("hello")[-1]["payload"]["last_seq"] == 52
            found = await bench.get("api/runs/digits/metrics?names=loss&buckets=100")
            assert found["series"]["loss"]["step"] == list(range(1, 56))
            async with bench.page() as page:
                await page.enter()
                await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 0})
                await page.until(lambda m: m.get("history") is True and m["session_id"] == "sess-1")
                told = [e["event_seq"] for e in page.events()]
                assert told == list(range(1, 58))


@in_loop
async def test_a_journal_whose_trainer_told_it_all_is_passed_over(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    trainer = trained(steps=40)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 42)
    trainer.train(3)
    write_journal(tmp_path, trainer)
    for unread in ([42, 43, 44, 45], []):  # the last that is known, to see that it is the same
        async with dashboard(tmp_path) as bench:
            await settled(bench)
            assert [json.loads(line)["event_seq"] for line in decoded] == unread
            assert bench.store.sessions["sess-1"].have.contiguous == 45
            found = await bench.get("api/runs/digits/metrics?names=loss")
            assert found["columns"]["step"] == list(range(1, 44))
        decoded.clear()


@in_loop
async def test_forks_in_one_journal_are_whole_each_with_its_parents(tmp_path: Path) -> None:
    trainer = TrainerDouble("sess-1", token=TOKEN, run_id="base")
    trainer.begin()
    trainer.train(30)
    trainer.emit("finalizeRun", next_run="fork1", last_step=30)
    trainer.run_id, trainer.run_gen = "fork1", 1
    trainer.emit("newRun", parents=["base"], run_name="base", project="demo", meta={"kind": "fork"})
    trainer.step = 20
    trainer.train(25, factor=0.5)
    folder = tmp_path / "demo" / "fork1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"session_ids": ["sess-1"], "journal": "base"}))
    trainer.run_id = "base"
    write_record(write_journal(tmp_path, trainer), "sess-1")
    for _ in range(2):
        async with dashboard(tmp_path) as bench:
            await settled(bench)
            runs = {run["run_id"]: run for run in (await bench.get("api/runs"))["runs"]}
            assert {key: run["parents"] for key, run in runs.items()} == {
                "base": [], "fork1": ["base"],
            }  # fmt: skip
            assert runs["fork1"]["summary"]["step"] == 45
            for run_id, steps in (("base", range(1, 31)), ("fork1", range(21, 46))):
                found = await bench.get(f"api/runs/{run_id}/metrics?buckets=100")
                assert found["series"]["loss"]["step"] == list(steps)
                events = await bench.get(f"api/runs/{run_id}/events?types=newRun,trainStep")
                told = [e for e in trainer.events if e["run_id"] == run_id]
                assert [e["event_seq"] for e in events["events"]] == [
                    e["event_seq"] for e in told if e["type"] in ("newRun", "trainStep")
                ]


HOSTILE = (
    "'; DROP TABLE sessions; --", '"quoted"', "<img onerror=alert(1)>", "%_\\", "\x00nul", "ü🙂",
    "a" * 5000, "event_seq ", "0",
)  # fmt: skip


@in_loop
async def test_hostile_names_are_names(tmp_path: Path) -> None:
    trainer = TrainerDouble("se'ss\"; DROP TABLE events", token=TOKEN, run_id=HOSTILE[0])
    trainer.begin()
    for at, name in enumerate(HOSTILE):
        trainer.emit(name, step=at)
        trainer.train(2, **{name: float(at)})
    key = trainer.session_id
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has(key, len(trainer.events))
        live = await bench.get("api/runs")
    async with dashboard(tmp_path) as bench:
        assert await bench.get("api/runs") == live
        [run] = bench.store.runs.values()
        assert set(HOSTILE) <= set(run.names())
        query = {"names": HOSTILE[1], "buckets": "10", "project": "demo"}
        url = f"api/runs/{urllib.parse.quote(HOSTILE[0], safe='')}/metrics"
        found = (await bench.http.get(url, params=query)).json()
        assert found["series"][HOSTILE[1]]["value"] == [1.0, 1.0]
        events = await bench.http.get(
            f"api/sessions/{urllib.parse.quote(key, safe='')}/events", params={"types": HOSTILE[0]}
        )
        assert [e["step"] for e in events.json()["events"]] == [0]


@in_loop
async def test_a_clock_that_jumps_back_changes_no_order(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(10)
    trainer.start_ts -= 86_400
    trainer.train(10)
    trainer.emit("note", step=20, text="later")
    told = [e["event_seq"] for e in trainer.events]
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", len(told))
    async with dashboard(tmp_path) as bench:
        types = "session_started,newRun,trainStep,note"
        found = await bench.get(f"api/sessions/sess-1/events?types={types}")
        assert [e["event_seq"] for e in found["events"]] == told
        assert [e["ts"] for e in found["events"]] == [e["ts"] for e in trainer.events]


# -- damage ------------------------------------------------------------------------------------


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(60_000))


def garbage_inside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[16_384:] = random.Random(1).randbytes(len(data) - 16_384)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE sessions (x)")
    made.close()


def of_a_later_version(path: Path) -> None:
    with sqlite3.connect(path) as found:
        found.execute(f"PRAGMA user_version = {VERSION + 7}")
    found.close()


def of_another_folder(path: Path) -> None:
    other = path.parent.parent / "other"
    other.mkdir()
    fresh = database.Database(other / FILE)
    fresh.open(writes=True)
    fresh.close()
    path.write_bytes((other / FILE).read_bytes())


def with_rows_of_no_meaning(path: Path) -> None:
    with sqlite3.connect(path) as found:
        found.execute("UPDATE sessions SET body = x'7b7d'")
    found.close()


DAMAGE = (
    garbage_inside,
    of_another_folder,
    of_a_later_version,
    *(
        pytest.param(damage, marks=pytest.mark.long)
        for damage in (garbage, cut_off, nothing, of_another_program, with_rows_of_no_meaning)
    ),
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@in_loop
async def test_a_database_that_cannot_be_used_is_set_aside_and_made_anew(
    tmp_path: Path, damage: Any
) -> None:
    runs = tmp_path / "otf_runs"
    three_sessions(runs)
    async with dashboard(runs) as bench:
        await settled(bench)
        told = await all_told(bench)
    damage(runs / FILE)
    bad = (runs / FILE).read_bytes()
    async with dashboard(runs) as bench:
        await settled(bench)
        assert differences(await all_told(bench), told) == {}
        [said] = bench.said
        assert said.startswith(f"the database {runs / FILE} ")
        [kept] = [p for p in runs.iterdir() if ".set-aside-" in p.name and not p.name.endswith("m")]
        assert kept.name in said
        if damage in (garbage, nothing, of_another_program, of_a_later_version):
            assert kept.read_bytes() == bad
    async with dashboard(runs) as bench:
        assert differences(await all_told(bench), told) == {}
        assert bench.said == []


@in_loop
async def test_damage_that_is_found_when_a_chart_is_opened_costs_nothing(tmp_path: Path) -> None:
    three_sessions(tmp_path)
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        told = await all_told(bench)
    async with dashboard(tmp_path) as bench:
        garbage_inside(tmp_path / FILE)
        assert differences(await all_told(bench), told) == {}
        assert len(bench.said) == 1
        assert "set-aside" in bench.said[0]
        await settled(bench)
    async with dashboard(tmp_path) as bench:
        assert differences(await all_told(bench), told) == {}


@pytest.mark.parametrize(
    "kind", ["another", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("random", "cut"))]
)
@in_loop
async def test_a_wal_that_does_not_fit_does_no_harm(tmp_path: Path, kind: str) -> None:
    """The process was killed; its WAL is not what it was."""
    killed = tmp_path / "killed"
    write_journal(tmp_path / "runs", trained())
    async with dashboard(tmp_path / "runs") as bench:
        await settled(bench)
        told = await all_told(bench)
        shutil.copytree(tmp_path / "runs", killed)  # as a kill would leave it
    wal = killed / f"{FILE}-wal"
    assert wal.stat().st_size > 0
    if kind == "random":
        wal.write_bytes(random.Random(2).randbytes(200_000))
    elif kind == "cut":
        wal.write_bytes(wal.read_bytes()[: wal.stat().st_size * 2 // 3])
    else:
        write_journal(tmp_path / "other", trained("sess-9", run_id="theirs"))
        async with dashboard(tmp_path / "other") as bench:
            await settled(bench)
            wal.write_bytes((tmp_path / "other" / f"{FILE}-wal").read_bytes())
    async with dashboard(killed) as bench:
        await settled(bench)
        assert list(bench.store.sessions) == ["sess-1"]
        assert differences(await all_told(bench), told) == {}


# -- versions ------------------------------------------------------------------------------------


@in_loop
async def test_a_database_of_an_older_version_is_brought_to_ours(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    three_sessions(tmp_path)
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        told = await all_told(bench)
    older = sqlite3.connect(tmp_path / "older.sqlite")
    for statement in MIGRATIONS[0]:
        older.execute(statement)
    older.execute("PRAGMA user_version = 1")
    older.execute("ATTACH ? AS ours", (str(tmp_path / FILE),))
    for table in ("meta", "runs", "events", "columns", "chunks", "cells"):
        older.execute(f"INSERT INTO {table} SELECT * FROM ours.{table}")
    older.execute("INSERT INTO sessions SELECT session_id, revision, body FROM ours.sessions")
    older.commit()
    older.close()
    (tmp_path / "older.sqlite").rename(tmp_path / FILE)
    decoded.clear()
    async with dashboard(tmp_path) as bench:
        assert differences(await all_told(bench), told) == {}
        assert bench.said == []
    assert decoded == []
    found = sqlite3.connect(tmp_path / FILE)
    assert found.execute("PRAGMA user_version").fetchone() == (VERSION,)
    found.close()


async def limit_pages(bench: Bench, count: int) -> None:
    """A disk that has no room for more."""
    keeper = bench.dashboard.keeper
    assert keeper._database is not None
    await keeper._run(keeper._database._run, f"PRAGMA max_page_count = {count}")


# -- disks and neighbours ------------------------------------------------------------------------


@in_loop
async def test_a_full_disk_is_said_once_and_costs_nothing(tmp_path: Path) -> None:
    trainer = trained(steps=40)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 42)
        assert await bench.dashboard.keeper.save_all()
        await limit_pages(bench, 1)
        for _ in range(3):
            trainer.train(1000, **{f"m{n}": n / 7 for n in range(30)})
            await bench.until_has("sess-1", len(trainer.events))
            assert not await bench.dashboard.keeper.save_all()
        [said] = bench.said
        assert "cannot be written (database or disk is full)" in said
        health = await bench.get("api/health")
        assert health["store"] == {"mode": "writer", "text": said}
        found = await bench.get("api/runs/digits/metrics?names=m3&points=10000")
        assert found["columns"]["m3"][40:] == [3 / 7] * 3000
        await limit_pages(bench, 2**30)
        await bench.until(lambda: len(bench.said) == 2)
        assert bench.said[1] == "the database can be written again"
        assert await bench.dashboard.keeper.save_all()
    async with dashboard(tmp_path) as bench:
        assert bench.store.sessions["sess-1"].have.contiguous == len(trainer.events)
        found = await bench.get("api/runs/digits/metrics?names=m3&points=10000")
        assert found["columns"]["step"] == list(range(1, 3041))


@in_loop
async def test_a_folder_that_nobody_can_write_is_shown_from_memory(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    trainer = trained()
    async with dashboard(tmp_path / "runs") as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 22)
        assert (await bench.get("api/health"))["store"]["mode"] == "memory"
        assert len(bench.said) == 1


@in_loop
async def test_a_second_dashboard_reads_and_takes_over_when_the_first_is_gone(
    tmp_path: Path,
) -> None:
    write_journal(tmp_path, trained("sess-old", run_id="old"))
    theirs, ours = trained("sess-1", run_id="theirs"), trained("sess-2", run_id="ours")
    async with dashboard(tmp_path) as first:
        await settled(first)
        async with dashboard(tmp_path) as second:
            assert (await first.get("api/health"))["store"] == {"mode": "writer", "text": None}
            said = (await second.get("api/health"))["store"]
            assert said["mode"] == "reader"
            assert second.said == [said["text"]]
            assert "only reads" in said["text"]
            async with second.page() as page:
                assert (await page.enter())["store"] == said
            old = await second.get("api/runs/old/metrics")
            assert old == await first.get("api/runs/old/metrics")
            async with theirs.on(first.port), ours.on(second.port):
                await first.until_has("sess-1", 22)
                await second.until_has("sess-2", 22)
                found = await second.get("api/runs/ours/metrics?names=loss")
                assert found["total"] == 20
                assert await first.dashboard.keeper.save_all()
                assert not await second.dashboard.keeper.save_all()
                await first.dashboard.keeper.close()
                await second.until(lambda: second.dashboard.keeper.mode == "writer")
                assert second.said[1].startswith("the other dashboard is gone")
                health = await second.get("api/health")
                assert health["store"] == {"mode": "writer", "text": None}
                ours.train(5)
                await second.until_has("sess-2", 27)
            assert set(second.store.sessions) == {"sess-old", "sess-1", "sess-2"}
            found = await second.get("api/runs/theirs/metrics?names=loss")
            assert found["total"] == 20
    async with dashboard(tmp_path) as third:
        totals = {
            run_id: (await third.get(f"api/runs/{run_id}/metrics"))["total"]
            for run_id in ("old", "theirs", "ours")
        }
        assert totals == {"old": 20, "theirs": 20, "ours": 25}
        assert third.said == []


@in_loop
async def test_what_the_other_dashboard_wrote_is_not_written_over(tmp_path: Path) -> None:
    """A trainer goes from the first dashboard, which dies, to the second."""
    trainer = trained("sess-1")
    async with dashboard(tmp_path) as first:
        async with trainer.on(first.port):
            await first.until_has("sess-1", 22)
            assert await first.dashboard.keeper.save_all()
        async with dashboard(tmp_path) as second:
            trainer.train(10)
            async with trainer.on(first.port):
                await first.until_has("sess-1", 32)
                assert await first.dashboard.keeper.save_all()
            trainer.train(10)
            async with trainer.on(second.port):
                await second.until_has("sess-1", 42)
                await first.dashboard.keeper.close()
                await second.until(lambda: second.dashboard.keeper.mode == "writer")
                trainer.train(3)
                await second.until_has("sess-1", 45)
                found = await second.get("api/runs/digits/metrics?names=loss")
                assert found["columns"]["step"] == list(range(1, 44))
    async with dashboard(tmp_path) as third, trainer.on(third.port):
        await third.until_has("sess-1", 45)
        found = await third.get("api/runs/digits/metrics?names=loss")
        assert found["columns"]["step"] == list(range(1, 44))


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire()
    first.write({"pid": 1})
    assert not second.acquire()
    assert second.read() == {"pid": 1}
    first.release()
    assert second.acquire()
    second.release()


# -- room ----------------------------------------------------------------------------------------


@in_loop
async def test_over_its_bound_the_oldest_leave_and_come_back_when_opened(
    tmp_path: Path, decoded: list[bytes]
) -> None:
    for n in range(6):
        trainer = TrainerDouble(f"sess-{n}", token=TOKEN, run_id=f"run{n}")
        trainer.start_ts += 1000 * n
        trainer.begin()
        noise = random.Random(n)
        for _ in range(300):
            trainer.train(1, **{f"m{k}": noise.random() for k in range(20)})
        write_journal(tmp_path, trainer)
    async with dashboard(tmp_path) as bench:
        await settled(bench)
        told = await all_told(bench)
    size = (tmp_path / FILE).stat().st_size
    async with dashboard(tmp_path, max_db_bytes=int(0.8 * size)) as bench:
        await bench.dashboard.keeper.make_room()
        by_age = sorted(bench.store.sessions.values(), key=lambda s: s.opened_ts)
        away = [session.session_id for session in by_age if session.away]
        assert away == [session.session_id for session in by_age[: len(away)]]
        assert 1 <= len(away) <= 4
        [said] = bench.said
        assert f"{len(away)} older sessions" in said
        assert (await bench.get("api/runs"))["runs"] == list(told["runs"].values())
        decoded.clear()
        assert differences(await all_told(bench), told) == {}
        assert len(decoded) >= len(away) * 302
        assert await bench.dashboard.keeper.save_all()
        await bench.dashboard.keeper.make_room()
        await bench.dashboard.keeper.make_room()
        assert len(bench.said) == 1
    assert (tmp_path / FILE).stat().st_size < 0.95 * size
    async with dashboard(tmp_path) as bench:  # away is away, until somebody asks
        assert any(session.away for session in bench.store.sessions.values())
        assert differences(await all_told(bench), told) == {}


@in_loop
async def test_a_long_run_keeps_its_newest_rows_in_memory_and_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LIVE_ROWS", 400)
    trainer = trained(steps=1000)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 1002)
        assert await bench.dashboard.keeper.save_all()
        assert in_memory(bench) == 100 + 2
        trainer.train(50)
        trainer.back_to(900)
        trainer.train(20)
        last = len(trainer.events)
        await bench.until_has("sess-1", last)
        found = await bench.get("api/runs/digits/metrics?names=loss&points=9999")
        assert found["columns"]["step"] == list(range(1, 921))
        assert found["thinned"] is False
        events = await bench.get("api/sessions/sess-1/events?types=trainStep&after=400&limit=300")
        assert [e["event_seq"] for e in events["events"]] == list(range(401, 701))
        async with bench.page() as page:
            await page.enter()
            await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 0})
            await page.until(lambda m: m.get("history") is True and m["session_id"] == "sess-1")
            while page.events()[-1]["event_seq"] < last:
                await page.until(lambda m: m["kind"] == "events")
            assert [e["event_seq"] for e in page.events()] == list(range(1, last + 1))
        best = await bench.get("api/runs/digits")
        assert best["summary"]["step"] == 920
