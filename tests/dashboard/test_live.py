"""The live feed: what a page is told, in order, and what a slow or foreign one costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from otf_core.dashboard import live, store
from tests.dashboard.bench import TOKEN, Page, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble


@in_loop
async def test_a_page_is_welcomed_with_all_that_there_is(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(3)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 5)
        welcome = await page.enter()
        assert [s["session_id"] for s in welcome["sessions"]] == ["sess-1"]
        assert [r["run_id"] for r in welcome["runs"]] == ["digits"]
        await page.say({"kind": "ping", "t": 7})
        assert (await page.until(lambda m: m["kind"] == "pong"))["t"] == 7


@pytest.mark.parametrize("first", ['{"token": "wrong"}', "{}", "[]", "no json", '{"token": 1}'])
@in_loop
async def test_a_page_without_the_token_is_closed_with_4401(tmp_path: Path, first: str) -> None:
    async with dashboard(tmp_path) as bench, bench.page() as page:
        await page.socket.send(first)
        with pytest.raises(ConnectionClosed) as closed:
            await page.socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


@in_loop
async def test_a_page_that_says_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TOKEN_WAIT_S", 0.05)
    async with dashboard(tmp_path) as bench, bench.page() as page:
        with pytest.raises(ConnectionClosed) as closed:
            await page.socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


@in_loop
async def test_a_foreign_page_does_not_get_as_far_as_the_token(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        with pytest.raises(InvalidStatus) as refused:
            async with bench.page(origin="http://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        port = bench.dashboard.port
        with pytest.raises(InvalidStatus) as refused:
            async with connect(
                f"ws://evil.example:{port}/api/live", host="127.0.0.1", port=port, proxy=None
            ):
                pass
        assert refused.value.response.status_code == 403


@in_loop
async def test_subscribing_brings_the_history_and_then_each_event_once(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(50)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 52)
        await page.enter()
        await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 10})
        await page.until(lambda m: any(e["event_seq"] == 52 for e in m.get("events", ())))
        trainer.train(50)
        await page.until(lambda m: any(e["event_seq"] == 102 for e in m.get("events", ())))
        assert [e["event_seq"] for e in page.events()] == list(range(11, 103))
        assert page.events() == trainer.events[10:]


@in_loop
async def test_without_subscribing_come_all_events_but_steps(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await page.enter()
        trainer.begin()
        trainer.train(5)
        trainer.emit("note", note_id="n", text="last", step=5)
        await page.until(lambda m: any(e["type"] == "note" for e in m.get("events", ())))
        assert [e["type"] for e in page.events()] == ["session_started", "newRun", "note"]


@in_loop
async def test_a_replayed_hole_reaches_the_page(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 2)
        await page.enter()
        await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 2})
        await page.until(lambda m: m.get("history") is True)
        trainer.drop = {4, 5}
        trainer.train(6)
        seen: set[int] = set()
        while seen != set(range(3, 9)):
            message = await page.until(lambda m: m["kind"] == "events")
            seen |= {e["event_seq"] for e in message["events"]}
        replayed = [e["event_seq"] for e in page.events() if e.get("replay")]
        assert replayed == [4, 5]


@in_loop
async def test_a_command_of_the_page_is_followed_by_its_receipts(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 2)
        await page.enter()
        trainer.holding = True
        ask = {"kind": "command", "session_id": "sess-1", "id": "p1", "cmd": "pause", "payload": {}}
        await page.say(ask)
        await page.say(ask)  # a second press does nothing
        accepted = await page.until(lambda m: m.get("receipt", {}).get("state") == "accepted")
        assert accepted["receipt"]["waits_for"] == "safe_point"
        assert accepted["receipt"]["by"] == "page"
        trainer.carry_out(trainer.asked("pause")[0])
        applied = await page.until(lambda m: m.get("receipt", {}).get("state") == "applied")
        assert applied["receipt"]["reply"]["data"]["status"] == "paused"
        session = await page.until(
            lambda m: m["kind"] == "session" and m["session"]["state"] == "paused"
        )
        assert session["session"]["pending"] == []
        assert len(trainer.asked("pause")) == 1
        await page.say({**ask, "session_id": "nobody", "id": "x1"})
        refused = await page.until(lambda m: m.get("receipt", {}).get("id") == "x1")
        assert refused["receipt"]["state"] == "refused"
        assert refused["receipt"]["reply"]["code"] == "not_found"


@in_loop
async def test_what_others_ask_is_shown_too_also_after_a_reload(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        async with bench.page() as page:
            await page.enter()
            await bench.command("sess-1", "pause", id="c1", by="cli")
            said = await page.until(lambda m: m.get("receipt", {}).get("state") == "applied")
            assert (said["receipt"]["id"], said["receipt"]["by"]) == ("c1", "cli")
        async with bench.page() as page:
            await page.enter()
            said = await page.until(lambda m: m["kind"] == "receipt")
            assert (said["receipt"]["id"], said["receipt"]["state"]) == ("c1", "applied")


@in_loop
async def test_a_page_that_does_not_read_stalls_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_FEED", 1500)
    monkeypatch.setattr(live, "HISTORY_STEPS", 1000)
    monkeypatch.setattr(live, "LINES_A_MESSAGE", 100)
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        async with (
            bench.page(max_queue=1) as slow,
            bench.page() as quick,
        ):
            await slow.enter()
            await slow.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 0})
            slow.socket.transport.pause_reading()
            await quick.enter()
            await quick.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 2})
            for _ in range(20):
                trainer.train(300, padding="x" * 2000)
                await trainer.drain()
            await bench.until_has("sess-1", 6002)
            await trainer.until(lambda t: t.acked == 6002)
            answer = await bench.command("sess-1", "pause")
            assert answer.json()["ok"] is True
            await quick.until(lambda m: any(e["event_seq"] == 6002 for e in m.get("events", ())))
            slow.socket.transport.resume_reading()
            await slow.until(lambda m: any(e["event_seq"] == 6002 for e in m.get("events", ())))
            told = [e["event_seq"] for e in slow.events()]
            assert len(told) == len(set(told))
            # It fell behind what the feed holds, so its past was thinned and said to be.
            left_out = sum(m.get("left_out", 0) for m in slow.seen)
            assert left_out > 0
            steps = [e for e in slow.events() if e["type"] == "trainStep"]
            assert len(steps) + left_out == 6000


@in_loop
async def test_a_page_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        async with bench.page() as page:
            await page.enter()
            assert len(bench.dashboard.live._pages) == 1
        async with asyncio.timeout(5):
            while bench.dashboard.live._pages:
                await asyncio.sleep(0)


@in_loop
async def test_of_ranks_the_newest_goes_to_who_follows_the_run_and_is_no_event(
    tmp_path: Path,
) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()

    def tell(step: int) -> None:
        rows = [{"rank": 0, "state": "ok", "step": step}, {"rank": 1, "state": "ok", "step": step}]
        about = {"step": step, "world_size": 2, "slowest": None, "rows": rows, "ts": 1.0}
        trainer.write({"type": "ranks", **about, "session_id": "sess-1", "run_id": "digits"})

    def ranks(page: Page) -> list[int]:
        return [e["step"] for e in page.events() if e["type"] == "ranks"]

    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as other:
        await bench.until_has("sess-1", 2)
        await other.enter()
        session = bench.store.sessions["sess-1"]
        for step in (1, 2, 3):
            tell(step)
        await bench.until(lambda: session.ranks is not None and b'"step": 3' in session.ranks)
        async with bench.page() as page:
            await page.enter()
            await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 0})
            await page.until(lambda m: ranks(page) == [3])
            tell(4)
            await page.until(lambda m: ranks(page) == [3, 4])
            await page.say({"kind": "unsubscribe", "session_id": "sess-1"})
            await page.say({"kind": "ping", "t": 1})
            await page.until(lambda m: m["kind"] == "pong")
            tell(5)
            trainer.train(3)
            trainer.emit("note", note_id="n", text="last", step=3)
            await page.until(lambda m: any(e["type"] == "note" for e in m.get("events", ())))
            assert ranks(page) == [3, 4]
            assert not [e for e in page.events() if e["type"] == "trainStep"]
        await other.until(lambda m: any(e["type"] == "note" for e in m.get("events", ())))
        assert ranks(other) == []
        assert session.have.highest == 6
        assert "ranks" not in {event["type"] for event in session.events}


@in_loop
async def test_what_a_check_has_found_is_told_after_a_reload_however_much_was_asked_since(
    tmp_path: Path,
) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        for number in range(2):
            await bench.command("sess-1", "numerics_health", id=f"check-{number}", by="cli")
        await bench.command("sess-1", "select", id="question", by="cli")
        for number in range(25):
            await bench.command("sess-1", "note", id=f"note-{number}", payload={"text": "x"})
        async with bench.page() as page:
            await page.enter()
            last = await page.until(lambda m: m.get("receipt", {}).get("id") == "note-24")
            assert last["receipt"]["state"] == "applied"
            told = [m["receipt"]["id"] for m in page.seen if m["kind"] == "receipt"]
            assert told == ["check-1", *(f"note-{number}" for number in range(5, 25))]
