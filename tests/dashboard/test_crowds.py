"""Many pages, many trainers, floods and cut lines: what is held is bounded, and nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from otf_core.dashboard import live, receipts, store
from otf_core.dashboard.receipts import Receipt, ReceiptBook
from tests.dashboard.bench import TOKEN, WATCH, Bench, Page, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble

NOTE = {"kind": "command", "session_id": "sess-1", "cmd": "note", "payload": {"text": "x"}}


@contextlib.asynccontextmanager
async def pages(bench: Bench, count: int, token: str = TOKEN) -> AsyncIterator[list[Page]]:
    """So many that follow the first session."""
    await bench.until_has("sess-1", 2)
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            page = await stack.enter_async_context(bench.page())
            await page.enter(token)
            await page.say({"kind": "subscribe", "session_id": "sess-1", "after_seq": 0})
            await page.until(lambda m: m.get("history") is True)
            made.append(page)
        yield made


def has(seq: int) -> Any:
    return lambda m: any(e["event_seq"] == seq for e in m.get("events", ()))


async def _in_a_crowd(tmp_path: Path, readers: int, sleepers: int, steps: int) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with (
        dashboard(tmp_path) as bench,
        trainer.on(bench.port),
        pages(bench, readers) as awake,
        pages(bench, sleepers, WATCH) as asleep,
    ):
        for page in asleep:
            page.socket.transport.pause_reading()
        for _ in range(steps // 50):
            trainer.train(50, padding="x" * 1000)
            await trainer.drain()
        last = steps + 2
        await bench.until_has("sess-1", last)
        await asyncio.gather(*(page.until(has(last), within_s=120) for page in awake))
        for page in awake:
            assert [e["event_seq"] for e in page.events()] == list(range(1, last + 1))
        answer = await bench.command("sess-1", "pause", id="p1")
        assert answer.json()["ok"] is True
        applied = [
            page.until(lambda m: m.get("receipt", {}).get("state") == "applied") for page in awake
        ]
        assert {m["receipt"]["id"] for m in await asyncio.gather(*applied)} == {"p1"}
        for theirs in bench.dashboard.live._pages:
            assert len(theirs._direct) == 0
            assert len(theirs._receipts) <= 1
        for page in asleep:
            page.socket.transport.resume_reading()
        await asyncio.gather(*(page.until(has(last), within_s=120) for page in asleep))
        for page in asleep:
            told = [e["event_seq"] for e in page.events()]
            assert len(told) == len(set(told))


@in_loop
async def test_pages_that_sleep_hold_up_no_page_that_reads(tmp_path: Path) -> None:
    await _in_a_crowd(tmp_path, readers=12, sleepers=4, steps=500)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_two_hundred_pages_of_which_some_sleep(tmp_path: Path) -> None:
    asyncio.run(_in_a_crowd(tmp_path, readers=160, sleepers=40, steps=500))


async def _many_trainers(tmp_path: Path, count: int) -> None:
    trainers = [TrainerDouble(f"sess-{n}", run_id=f"run-{n}", token=TOKEN) for n in range(count)]
    async with dashboard(tmp_path) as bench, contextlib.AsyncExitStack() as stack:
        for trainer in trainers:
            trainer.begin()
            await stack.enter_async_context(trainer.on(bench.port))
        page = await stack.enter_async_context(bench.page())
        await bench.until(lambda: len(bench.store.sessions) == count)
        welcome = await page.enter()
        assert len(welcome["sessions"]) == count
        for trainer in trainers:
            trainer.train(20)
        for trainer in trainers:
            await bench.until_has(trainer.session_id, 22)
        answers = await asyncio.gather(
            *(bench.command(t.session_id, "pause", id=t.session_id) for t in trainers)
        )
        assert [a.json()["data"]["step"] for a in answers] == [20] * count
        seen: set[str] = set()
        while len(seen) < count:
            said = await page.until(lambda m: m.get("receipt", {}).get("state") == "applied")
            seen.add(said["receipt"]["id"])
        assert [len(t.asked("pause")) for t in trainers] == [1] * count
        assert len(bench.store.runs) == count


@in_loop
async def test_trainers_are_heard_side_by_side(tmp_path: Path) -> None:
    await _many_trainers(tmp_path, 10)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_fifty_trainers_are_heard_side_by_side(tmp_path: Path) -> None:
    asyncio.run(_many_trainers(tmp_path, 50))


async def _flooded(tmp_path: Path, count: int, watching: int) -> None:
    """A trainer that tells as fast as its socket takes it, and another that is to be heard."""
    loud, quiet = TrainerDouble(token=TOKEN), TrainerDouble("sess-2", run_id="other", token=TOKEN)
    loud.begin()
    quiet.begin()
    async with (
        dashboard(tmp_path) as bench,
        loud.on(bench.port),
        quiet.on(bench.port),
        pages(bench, watching) as crowd,
    ):
        await bench.until_has("sess-2", 2)
        stamps = '"run_id":"digits","run_gen":0,"session_id":"sess-1","ts":1767225600.0'
        flood = b"".join(
            f'{{"type":"trainStep","step":{n},"loss":0.5,{stamps},"event_seq":{n + 2}}}\n'.encode()
            for n in range(1, count + 1)
        )
        loud.write_raw(flood)
        followers = [
            asyncio.ensure_future(page.until(has(count + 2), within_s=120)) for page in crowd
        ]
        # In the midst of it: a command to the other trainer, and what all hear of it.
        assert (await bench.command("sess-2", "pause", id="p2")).json()["ok"] is True
        await bench.until_has("sess-1", count + 2)
        await asyncio.gather(*followers)
        session = bench.store.sessions["sess-1"]
        assert len(session.feed) <= store.MAX_FEED
        for page in crowd:
            steps = [e["event_seq"] for e in page.events() if e["type"] == "trainStep"]
            left_out = sum(m.get("left_out", 0) for m in page.seen)
            assert len(steps) == len(set(steps))
            assert len(steps) + left_out == count
            if not any(m.get("receipt", {}).get("id") == "p2" for m in page.seen):
                await page.until(lambda m: m.get("receipt", {}).get("id") == "p2")
        live_ = bench.dashboard.live
        assert len(live_._chunks) <= 2 * len(bench.store.sessions)
        assert len(live_._receipts) <= live.RECEIPT_TEXTS
        assert len(live_._noted) <= len(bench.store.sessions)


@in_loop
async def test_a_trainer_that_floods_drowns_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_FEED", 2000)
    monkeypatch.setattr(live, "HISTORY_STEPS", 500)
    await _flooded(tmp_path, 10_000, watching=6)


@in_loop
async def test_a_receipt_does_not_wait_behind_a_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINES_A_MESSAGE", 10)
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), pages(bench, 1) as [page]:
        session = bench.store.sessions["sess-1"]
        stamps = {"run_id": "digits", "session_id": "sess-1", "ts": 1767225600.0}
        for seq in range(3, 503):  # in one turn of the loop, and the command after them
            event = {"type": "trainStep", "step": seq, "loss": 0.5, **stamps, "event_seq": seq}
            bench.store.add(session, event, json.dumps(event).encode())
        bench.hub.send("sess-1", "note", {"text": "x"}, request_id="n1")
        await page.until(has(502))
        before = [m for m in page.seen if m["kind"] == "events" and not m.get("history")]
        first = next(n for n, m in enumerate(page.seen) if m["kind"] == "receipt")
        assert len(before) == 50
        assert first < page.seen.index(before[2])


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_hundred_thousand_events_at_once_drown_nobody(tmp_path: Path) -> None:
    asyncio.run(_flooded(tmp_path, 100_000, watching=20))


@in_loop
async def test_one_id_from_two_pages_is_one_command(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with (
        dashboard(tmp_path) as bench,
        trainer.on(bench.port),
        bench.page() as one,
        bench.page() as other,
    ):
        await bench.until_has("sess-1", 2)
        await one.enter(client="one")
        await other.enter(client="other")
        trainer.holding = True
        await one.say({**NOTE, "id": "same"})
        await trainer.until(lambda t: bool(t.asked("note")))
        await other.say({**NOTE, "id": "same"})
        again = await bench.command("sess-1", "note", id="same", wait_s=0)
        assert again.status_code == 202
        trainer.carry_out(trainer.asked("note")[0])
        for page in (one, other):
            said = await page.until(lambda m: m.get("receipt", {}).get("state") == "applied")
            assert (said["receipt"]["id"], said["receipt"]["client"]) == ("same", "one")
        assert len(trainer.asked("note")) == 1


@in_loop
async def test_a_line_that_is_cut_is_had_again_whole(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, bench.page() as page:
        await page.enter()
        async with trainer.on(bench.port):
            await bench.until_has("sess-1", 2)
            trainer.drop = {3}
            event = trainer.emit("note", note_id="n", text="whole" * 1000, step=0)
            trainer.write_raw(json.dumps(event).encode()[:2000])
        await bench.until_connected("sess-1", connected=False)
        assert bench.store.sessions["sess-1"].have.highest == 2
        trainer.drop = set()
        async with trainer.on(bench.port):
            await bench.until_has("sess-1", 3)
            await page.until(has(3))
        assert [e["text"] for e in page.events() if e["type"] == "note"] == ["whole" * 1000]


@in_loop
async def test_what_is_large_goes_to_who_has_asked_and_to_others_in_short(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    large = {"samples": ["x" * 100_000]}
    async with (
        dashboard(tmp_path) as bench,
        trainer.on(bench.port),
        bench.page() as asks,
        bench.page() as other,
    ):
        await bench.until_has("sess-1", 2)
        await asks.enter()
        await other.enter()
        trainer.holding = True
        await asks.say({**NOTE, "id": "n1"})
        await trainer.until(lambda t: bool(t.asked("note")))
        trainer.write({"id": "n1", "ok": True, "data": large})

        def applied(message: dict[str, Any]) -> bool:
            return bool(message.get("receipt", {}).get("state") == "applied")

        said = (await asks.until(applied))["receipt"]
        assert said["reply"]["data"] == large
        short = (await other.until(applied))["receipt"]
        assert (short["reply"]["ok"], short["reply"]["data"], short["payload"]) == (True, None, {})
        assert short["left_out_bytes"] > 100_000
        whole = await bench.get("api/sessions/sess-1/commands/n1")
        assert whole["reply"]["data"] == large


@in_loop
async def test_a_page_that_asks_and_never_reads_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_DIRECT", 200)
    async with dashboard(tmp_path) as bench, bench.page(max_queue=1) as page:
        await page.enter()
        page.socket.transport.pause_reading()
        ping = msgspec.json.encode({"kind": "what" * 10}).decode()
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(20):
                while bench.dashboard.live._pages:
                    await page.socket.send(ping)
        assert not bench.dashboard.live._pages
        page.socket.transport.abort()


def test_receipts_are_kept_up_to_a_number_and_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_KEPT", 5)
    monkeypatch.setattr(receipts, "MAX_BYTES", 1000)

    def kept(sizes: list[int], *, answered: bool = True) -> list[str]:
        book = ReceiptBook()
        for n, size in enumerate(sizes):
            receipt = Receipt(str(n), "note", {}, "page", 0.0)
            book.put(receipt, 10)
            if answered:
                receipt.settle({"ok": True}, 0.0)
                book.add_bytes(receipt, size)
        return [receipt.id for receipt in book.newest(100)]

    assert kept([10] * 7) == ["2", "3", "4", "5", "6"]
    assert kept([400, 400, 400]) == ["1", "2"]
    assert kept([400, 5000]) == ["1"]  # the one that has just come is kept whatever its size
    assert kept([10] * 7, answered=False) == ["0", "1", "2", "3", "4", "5", "6"]


def test_the_feed_is_bounded_by_lines_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_FEED", 3)
    monkeypatch.setattr(store, "MAX_FEED_BYTES", 100)
    session = store.Session("s", 0.0)
    for n in range(5):
        session.show(n, b"x" * 10)
    assert [seq for seq, _, _ in session.feed] == [2, 3, 4]
    session.show(5, b"x" * 85)
    assert [seq for seq, _, _ in session.feed] == [4, 5]
    session.show(6, b"x" * 200)
    assert (list(session.feed), session.fed) == ([], 7)  # served from the store
