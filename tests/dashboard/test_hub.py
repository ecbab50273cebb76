"""The hub and trainers, over real sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from otf_core.errors import CommandError
from tests.dashboard.bench import TOKEN, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble


@in_loop
async def test_a_trainer_that_comes_is_heard_from_its_first_event_on(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(100)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        session = await bench.until_has("sess-1", 102)
        assert session.protocol == "otf/1"
        [run] = bench.store.runs.values()
        assert (run.project, run.run_id, run.run_name) == ("demo", "digits", "digits")
        assert run.summary["step"] == 100
        assert run.summary["best_val_step"] == 50
        assert len(run.columns["sess-1"]) == 100


@in_loop
async def test_what_is_held_is_acknowledged(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(1200)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await trainer.until(lambda t: t.acked == 1202)
        trainer.train(3)
        await trainer.until(lambda t: t.acked == 1205)
    asked = [r["payload"]["seq"] for r in trainer.asked("ack")]
    assert asked == sorted(asked)
    assert max(b - a for a, b in zip([0, *asked], asked, strict=False)) <= 500


@in_loop
async def test_a_trainer_that_comes_back_is_asked_for_the_rest_only(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench:
        async with trainer.on(bench.port):
            trainer.train(10)
            await bench.until_has("sess-1", 12)
        await bench.until_connected("sess-1", connected=False)
        assert bench.store.sessions["sess-1"].shown_state == "lost"
        trainer.train(10)
        async with trainer.on(bench.port):
            session = await bench.until_has("sess-1", 22)
            hello = trainer.asked("hello")[-1]["payload"]
            assert (hello["session_id"], hello["last_seq"]) == ("sess-1", 12)
            assert len(trainer.asked("resume_from")) == 1  # the first time only
            assert session.shown_state == "running"
            assert len(bench.store.runs["demo", "digits"].columns["sess-1"]) == 20


@in_loop
async def test_a_dashboard_that_restarts_has_the_history_from_the_trainer(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    for _ in range(2):
        async with dashboard(tmp_path) as bench, trainer.on(bench.port):
            trainer.train(5)
            await bench.until_has("sess-1", len(trainer.events))
            found = (await bench.get("api/sessions/sess-1/events"))["events"]
            kept = [event["type"] for event in found]
            assert kept == ["session_started", "newRun"]
    assert len(trainer.events) == 12


@pytest.mark.parametrize("said_gap", [True, False])
@in_loop
async def test_a_hole_in_the_stream_is_fetched_once(tmp_path: Path, said_gap: bool) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.said_gap = said_gap
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        trainer.drop = {5, 6, 7}
        trainer.train(10)
        session = await bench.until_has("sess-1", 12)
        ranges = [r["payload"] for r in trainer.asked("resume_from") if "until" in r["payload"]]
        assert ranges == [{"seq": 4, "until": 7}]
        assert session.to_json()["journal_complete"] is True
        columns = bench.store.runs["demo", "digits"].columns["sess-1"]
        assert list(columns.view().seq) == list(range(3, 13))


@in_loop
async def test_a_hole_that_cannot_be_filled_is_acknowledged_over(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(10)
    trainer.first_seq = 6  # the journal was trimmed
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await trainer.until(lambda t: t.acked == 12)
        assert bench.store.sessions["sess-1"].to_json()["journal_complete"] is False
        assert not [r for r in trainer.asked("resume_from") if "until" in r["payload"]]


@in_loop
async def test_two_trainers_are_kept_apart(tmp_path: Path) -> None:
    one, two = (
        TrainerDouble("sess-1", token=TOKEN),
        TrainerDouble("sess-2", run_id="other", token=TOKEN),
    )
    async with dashboard(tmp_path) as bench, one.on(bench.port), two.on(bench.port):
        one.begin()
        two.begin()
        one.train(3)
        two.train(4)
        await bench.until_has("sess-1", 5)
        await bench.until_has("sess-2", 6)
        assert (await bench.command("sess-2", "pause")).status_code == 200
        assert one.asked("pause") == []
        assert bench.store.runs["demo", "digits"].summary["step"] == 3
        assert bench.store.runs["demo", "other"].summary["step"] == 4


@in_loop
async def test_garbage_is_skipped_and_said_once(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        trainer.begin()
        await bench.until_has("sess-1", 2)
        garbage = [
            b"\xff\xfe",
            b'{"type": "trainStep", "loss": NaN}',
            b"[1]",
            b"null",
            b"{}",
            b"\x00",
        ]
        for line in garbage:
            trainer.write_raw(line + b"\n")
        trainer.write_raw(b"x" * (17 * 1024 * 1024) + b"\n")
        trainer.write_raw(b'{"type":"half')
        trainer.write_raw(b'","a":1}\n')
        trainer.train(1)
        await bench.until_has("sess-1", 3)
        assert len([line for line in bench.said if "no message" in line]) == 1


@in_loop
async def test_a_trainer_with_another_token_is_not_taken(tmp_path: Path) -> None:
    trainer = TrainerDouble(token="another")
    async with dashboard(tmp_path) as bench:
        await trainer.dial(bench.port)
        await trainer.closed()
        await trainer.hang_up()
        assert bench.store.sessions == {}
        assert any("refused this dashboard" in line for line in bench.said)


@in_loop
async def test_the_token_is_sent_only_to_who_asks_for_it(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=None)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        assert "token" not in trainer.asked("hello")[0]["payload"]


@in_loop
async def test_an_old_trainer_is_served_and_nothing_dangerous_is_sent_to_it(tmp_path: Path) -> None:
    trainer = TrainerDouble("sess-old", legacy=True)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await trainer.until(lambda t: bool(t.asked("server_info")))
        trainer.train(1)  # the old one sends a step before session_started
        trainer.begin()
        trainer.train(3)
        session = await bench.until_has("sess-old", 6)
        await trainer.until(lambda t: bool(t.asked("set_counter_seeds")))
        assert (session.protocol, session.version) == ("legacy", "0.1.4")
        assert session.shown_state == "running"
        assert list(bench.store.runs) == [("demo", "digits")]
        answer = await bench.command("sess-old", "pause")
        assert answer.json()["data"] == {"status": "paused", "step": 4, "ckpt": None}
        assert session.shown_state == "paused"
        refused = await bench.command("sess-old", "validate_now")
        assert refused.status_code == 409
        assert refused.json()["code"] == "unsupported"
    sent = {request["cmd"] for request in trainer.requests}
    assert sent == {"hello", "server_info", "set_counter_seeds", "pause", "validate_now"}


@in_loop
async def test_a_command_is_answered_when_it_has_been_applied(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(7)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 9)
        trainer.holding = True
        sent = await bench.command("sess-1", "pause", id="p1", wait_s=0)
        assert (sent.status_code, sent.json()) == (202, {"id": "p1", "pending": True})
        await bench.until(lambda: bench.hub.book("sess-1").open()[0].state == "accepted")
        [pending] = bench.store.sessions["sess-1"].to_json()["pending"]
        assert (pending["request_id"], pending["waits_for"]) == ("p1", "safe_point")
        trainer.carry_out(trainer.asked("pause")[0])
        again = await bench.command("sess-1", "pause", id="p1")
        assert again.json()["data"]["applied_step"] == 7
        assert len(trainer.asked("pause")) == 1
        assert bench.store.sessions["sess-1"].to_json()["pending"] == []


@in_loop
async def test_an_open_command_is_settled_by_its_id_after_a_reconnection(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench:
        async with trainer.on(bench.port):
            await bench.until_has("sess-1", 2)
            trainer.holding = True
            await bench.command("sess-1", "pause", id="p1", wait_s=0)
            await trainer.until(lambda t: bool(t.asked("pause")))
        await bench.until_connected("sess-1", connected=False)
        [receipt] = bench.hub.book("sess-1").open()
        assert receipt.state == "unknown"
        refused = await bench.command("sess-1", "resume")
        assert (refused.status_code, refused.json()["connected"]) == (503, False)
        trainer.carry_out(trainer.asked("pause")[0])  # answered while nobody was there
        async with trainer.on(bench.port):
            answer = await bench.command("sess-1", "pause", id="p1")
            assert answer.json()["ok"] is True
            assert receipt.state == "applied"
            assert [r["id"] for r in trainer.asked("pause")] == ["p1", "p1"]
            assert len([e for e in trainer.events if e["type"] == "paused"]) == 1


@in_loop
async def test_an_old_trainer_is_not_asked_twice(tmp_path: Path) -> None:
    trainer = TrainerDouble("sess-old", legacy=True)
    async with dashboard(tmp_path) as bench:
        async with trainer.on(bench.port):
            trainer.begin()
            await bench.until_connected("sess-old")
            receipt = bench.hub.send("sess-old", "pause", {}, request_id="p1")
            await receipt.wait(10)
            trainer._answer_as_of_old = lambda request: None  # type: ignore[method-assign]
            lost = bench.hub.send("sess-old", "save_ckpt", {}, request_id="s1")
            await trainer.until(lambda t: bool(t.asked("save_ckpt")))
        await bench.until_connected("sess-old", connected=False)
        del trainer._answer_as_of_old
        before = len(trainer.asked("server_info"))
        async with trainer.on(bench.port):
            trainer.train(1)
            await bench.until_connected("sess-old")
            await trainer.until(lambda t: len(t.asked("server_info")) > before)
        assert lost.state == "unknown"
        assert len(trainer.asked("save_ckpt")) == 1


@in_loop
async def test_a_run_that_ends_leaves_no_command_open(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench:
        async with trainer.on(bench.port):
            await bench.until_has("sess-1", 2)
            trainer.holding = True
            receipt = bench.hub.send("sess-1", "validate_now", {})
            trainer.finish("completed")
            await bench.until_has("sess-1", 4)
        assert await receipt.wait(10)
        assert receipt.reply is not None
        assert receipt.reply["code"] == "not_allowed_now"
        session = bench.store.sessions["sess-1"]
        assert (session.shown_state, session.connected) == ("finished", False)
        assert session.finished == {"status": "completed", "step": 0, "error": None}


@in_loop
async def test_of_1500_commands_each_is_answered_exactly_once(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        receipts = [
            bench.hub.send("sess-1", "note", {"text": str(n)}, request_id=f"n{n}")
            for n in range(1500)
        ]
        for receipt in receipts:
            assert await receipt.wait(20)
        assert {receipt.state for receipt in receipts} == {"applied"}
        assert [r["id"] for r in trainer.asked("note")] == [f"n{n}" for n in range(1500)]
        await bench.until_has("sess-1", 1502)


@in_loop
async def test_a_busy_answer_is_forgotten_so_that_it_can_be_asked_again(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        carry_out = trainer.carry_out
        trainer.carry_out = lambda request: trainer.write(  # type: ignore[method-assign]
            {"id": request["id"], "ok": False, "error": "busy", "code": "busy", "detail": "full",
             "retry_after_s": 1.0}
        )  # fmt: skip
        refused = await bench.command("sess-1", "note", id="n1", payload={"text": "x"})
        assert (refused.status_code, refused.json()["retry_after_s"]) == (503, 1.0)
        trainer.carry_out = carry_out  # type: ignore[method-assign]
        again = await bench.command("sess-1", "note", id="n1", payload={"text": "x"})
        assert again.json()["ok"] is True


@in_loop
async def test_a_reset_moves_the_connection_to_the_new_session(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(3)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 5)
        trainer.session_id, trainer.events, trainer.step = "sess-2", [], 0
        trainer.begin()
        trainer.train(2)
        session = await bench.until_has("sess-2", 4)
        assert (session.connected, session.protocol) == (True, "otf/1")
        assert bench.store.sessions["sess-1"].connected is False
        assert (await bench.command("sess-2", "pause")).json()["ok"] is True
        await trainer.until(lambda t: t.acked >= 4)


@in_loop
async def test_status_is_polled_and_shown(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        await bench.until(lambda: bench.store.sessions["sess-1"].status is not None)
        shown = await bench.get("api/sessions/sess-1")
        assert shown["status"]["steps_per_s"] == 50.0
        assert (shown["max_steps"], shown["exactness"], shown["device"]) == (1000, "exact", "cpu")
        assert shown["params"][0]["value"] == 0.001
        await bench.command("sess-1", "set_param", payload={"path": "lr", "value": 0.5})
        shown = await bench.get("api/sessions/sess-1")
        assert shown["params"][0]["value"] == 0.5


@in_loop
async def test_a_state_of_the_past_is_not_shown_as_the_present(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(5)
    trainer.go("paused", "user")
    trainer.emit("log", level="info", text="x")
    trainer.state = "running"
    async with dashboard(tmp_path) as bench:
        seen: set[str] = set()
        bench.store.watchers.add(lambda session, change: seen.add(session.shown_state))
        async with trainer.on(bench.port):
            await bench.until_has("sess-1", 9)
            await trainer.until(lambda t: t.acked == 9)
        assert "paused" not in seen


@in_loop
async def test_the_newer_of_two_connections_of_one_session_is_kept(tmp_path: Path) -> None:
    one, two = TrainerDouble(token=TOKEN), TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, one.on(bench.port):
        await bench.until_connected("sess-1")
        async with two.on(bench.port):
            await one.closed()
            await two.until(lambda t: bool(t.asked("status")))
            assert bench.store.sessions["sess-1"].connected is True


@in_loop
async def test_unknown_commands_and_the_connections_own_are_not_relayed(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        for cmd, code in (
            ("nonsense", "unknown_command"),
            ("hello", "bad_payload"),
            ("resume_from", "bad_payload"),
            ("enforce_version", "bad_payload"),
        ):
            with pytest.raises(CommandError) as refused:
                bench.hub.send("sess-1", cmd, {})
            assert refused.value.code == code
        with pytest.raises(CommandError) as refused:
            bench.hub.send("nobody", "pause", {})
        assert refused.value.allowed == ["sess-1"]


@in_loop
async def test_a_trainer_that_does_not_read_is_answered_for_with_busy(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, limit=2**16)
        hello = {"type": "hello", "protocol": "otf/1", "session_id": "sess-1"}
        writer.write(json.dumps({**hello, "token_required": False}).encode() + b"\n")
        request = json.loads(await reader.readline())
        identity = {"session_id": "sess-1", "last_seq": 0, "run_id": "r", "project": "p"}
        writer.write(
            json.dumps({"id": request["id"], "ok": True, "data": identity}).encode() + b"\n"
        )
        await bench.until_connected("sess-1")

        def send_much() -> None:
            for _ in range(200):
                bench.hub.send("sess-1", "note", {"text": "x" * 500_000})

        with pytest.raises(CommandError) as refused:
            send_much()
        assert refused.value.code == "busy"
        writer.transport.abort()
        await bench.until_connected("sess-1", connected=False)
