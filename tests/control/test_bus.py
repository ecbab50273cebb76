"""The control bus: every request with an id is answered exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from otf_core import protocol
from otf_core.control import bus as bus_module
from otf_core.control.bus import ControlBus, Ticket
from otf_core.control.router import LATER, CommandRouter
from otf_core.errors import CommandError, ErrorCode, RemoteProtocolError
from tests.control.rig import FakeLink

CLOSED = CommandError(ErrorCode.NOT_ALLOWED_NOW, "The run is over.")


class Rig:
    """A bus whose handlers note what they did; ``note`` is queued, ``ping`` is not."""

    def __init__(self, **options: Any) -> None:
        self.step = 4
        self.tape: list[str] = []
        self.link = FakeLink(self.tape)
        self.wakes = 0
        self.router = CommandRouter()
        self.bus = ControlBus(self.router, wake=self.wake, step=lambda: self.step, **options)
        self.held: list[Ticket] = []
        self.answer: Callable[[Ticket], Any] = lambda t: {"n": len(self.tape)}
        for cmd in ("ping", "note", "set_param", "list_params"):
            self.router.on(cmd)(self.handle)
        for cmd in ("pause", "save_ckpt"):
            self.router.on(cmd)(self.hold)

    def wake(self) -> None:
        self.wakes += 1

    def handle(self, ticket: Ticket) -> Any:
        self.tape.append(f"did {ticket.request.cmd}")
        return self.answer(ticket)

    def hold(self, ticket: Ticket) -> Any:
        self.held.append(ticket)
        return LATER

    def send(
        self, cmd: str, name: str | None, payload: bytes = b"{}", link: FakeLink | None = None
    ) -> None:
        request = protocol.Request(cmd=cmd, id=name, payload=msgspec.Raw(payload))
        self.bus.receive(request, link or self.link)

    def work(self) -> None:
        while (ticket := self.bus.take()) is not None:
            self.router.run(ticket)


@pytest.fixture
def rig() -> Rig:
    return Rig()


NOTE = b'{"text":"hi"}'


# Lanes.


def test_what_reads_brings_its_reply_alone_and_what_changes_is_accepted_first(rig: Rig) -> None:
    rig.send("ping", "a")
    rig.send("list_params", "b")
    rig.send("note", "c", NOTE)
    assert rig.tape == ["did ping", "a: ok", "accepted c"]
    assert (rig.wakes, rig.bus.queue_len) == (2, 2)

    rig.work()

    assert rig.tape[3:] == ["did list_params", "b: ok", "did note", "c: ok"]
    assert rig.link.events == [
        {
            "type": "accepted",
            "request_id": "c",
            "cmd": "note",
            "step": 4,
            "waits_for": "safe_point",
        }
    ]
    assert rig.bus.take() is None


def test_the_payload_is_decoded_before_a_handler_sees_it(rig: Rig) -> None:
    seen: list[Any] = []
    rig.answer = lambda t: seen.append(t.payload)
    rig.send("note", "a", b'{"text":"hi","step":2,"unknown":[1]}')
    rig.send("note", "b", b'{"step":2}')
    rig.send("note", "c", b'{"text":5}')
    rig.send("ping", "d", b"null")
    rig.work()

    assert seen == [protocol.Ping(), protocol.Note(text="hi", step=2)]
    said = {r["id"]: (r.get("code"), r.get("field")) for r in rig.link.replies if not r["ok"]}
    assert said == {"b": ("bad_payload", "text"), "c": ("bad_payload", "text")}
    assert "accepted b" not in rig.tape


def test_an_unknown_command_is_answered_with_the_known_ones(rig: Rig) -> None:
    rig.send("paws", "a")

    said = rig.link.replies[0]
    assert (said["code"], said["field"]) == ("unknown_command", "cmd")
    assert said["allowed"] == sorted(protocol.COMMANDS)
    assert said["detail"].startswith("'paws' was asked; there are ack, activations_health, ")


def test_a_command_that_this_run_cannot_do_is_refused_before_it_is_accepted(rig: Rig) -> None:
    rig.router.unsupported({"note": "No notes here."})
    rig.send("note", "a", NOTE)

    assert rig.tape == ["a: unsupported"]


def test_a_line_that_is_no_request_is_said_on_the_connection(rig: Rig) -> None:
    rig.bus.malformed(RemoteProtocolError("what is this"), rig.link)

    assert rig.link.events == [
        {"type": "error", "code": "bad_payload", "text": "what is this", "request_id": None}
    ]


# Requests without an id.


def test_without_an_id_only_a_failure_is_said_and_as_an_event(rig: Rig) -> None:
    rig.send("note", None, NOTE)
    rig.send("note", None, b"{}")
    rig.work()

    assert rig.tape == ["error bad_payload", "did note"]
    assert rig.link.events == [
        {
            "type": "error",
            "code": "bad_payload",
            "text": "The payload of note does not fit: Object missing required field `text`.",
            "request_id": None,
        }
    ]
    assert rig.link.replies == []


# Same id, same answer.


def test_the_same_id_gets_the_first_answer_and_nothing_is_done_again(rig: Rig) -> None:
    data = {"n": [1]}
    rig.answer = lambda _: data
    rig.send("ping", "a")
    data["n"].append(2)  # what was answered stays what was answered
    other = FakeLink()
    rig.send("ping", "a")
    rig.send("note", "a", NOTE, link=other)  # also over another connection, as another command

    first = {"id": "a", "ok": True, "data": {"n": [1]}}
    assert rig.link.replies == [first, first]
    assert other.replies == [first]
    assert rig.tape.count("did ping") == 1
    assert "did note" not in rig.tape


def test_a_refusal_is_repeated_in_the_words_of_the_connection_that_asks(rig: Rig) -> None:
    legacy = FakeLink(legacy=True)
    rig.send("note", "a")
    rig.send("note", "a", link=legacy)

    assert rig.link.replies[0]["error"] == "bad_payload"
    assert legacy.replies[0]["error"] == legacy.replies[0]["detail"]
    assert legacy.replies[0]["code"] == "bad_payload"


def test_asked_again_while_it_is_carried_out_one_reply_goes_to_whom_asked_last(rig: Rig) -> None:
    other = FakeLink()
    rig.send("save_ckpt", "a")
    rig.send("save_ckpt", "a")
    rig.send("save_ckpt", "a", link=other)
    rig.work()
    assert len(rig.held) == 1

    rig.held[0].reply("saved")

    assert rig.link.replies == []
    assert other.replies == [{"id": "a", "ok": True, "data": "saved"}]


def test_a_ticket_is_answered_once_whoever_answers_again(rig: Rig) -> None:
    rig.send("save_ckpt", "a")
    rig.work()
    rig.held[0].reply(1)
    rig.held[0].reply(2)
    rig.held[0].fail(CLOSED)

    assert rig.link.replies == [{"id": "a", "ok": True, "data": 1}]
    assert rig.held[0].answered


def test_two_threads_that_answer_at_once_make_one_answer() -> None:
    link, settled = FakeLink(), []
    ticket: Ticket

    def on_answer(_: Ticket) -> None:
        settled.append(1)

    ticket = Ticket(protocol.Request(cmd="ping", id="a"), link, on_answer=on_answer)
    barrier = threading.Barrier(2)
    ticket._lock = _Both(barrier)  # type: ignore[assignment]
    threads = [threading.Thread(target=ticket.reply, args=(n,), name=f"t{n}") for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(link.replies), len(settled)) == (1, 1)


class _Both:
    """A lock that both threads have come to before either takes it."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier, self._lock = barrier, threading.Lock()

    def __enter__(self) -> None:
        self._barrier.wait(10)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_asked_again_in_the_moment_of_the_answer_gets_it(rig: Rig) -> None:
    ticket = Ticket(protocol.Request(cmd="ping", id="a"), rig.link, on_answer=lambda _: None)
    ticket.reply(1)
    other = FakeLink()

    ticket.move_to(other)

    assert other.replies == [{"id": "a", "ok": True, "data": 1}]


def test_busy_is_not_kept(rig: Rig) -> None:
    def busy(_: Ticket) -> None:
        raise CommandError(ErrorCode.BUSY, "Later.", retry_after_s=2.0)

    rig.answer = busy
    rig.send("ping", "a")
    rig.answer = lambda _: 1
    rig.send("ping", "a")

    assert rig.link.replies == [
        {
            "id": "a",
            "ok": False,
            "error": "busy",
            "code": "busy",
            "detail": "Later.",
            "retry_after_s": 2.0,
        },
        {"id": "a", "ok": True, "data": 1},
    ]


def test_the_last_4096_answers_are_kept_and_the_one_before_is_not(rig: Rig) -> None:
    assert bus_module.MAX_ANSWERS == 4096
    for n in range(4097):
        rig.send("ping", f"{n}")
    did = rig.tape.count("did ping")

    rig.send("ping", "1")
    assert rig.tape.count("did ping") == did
    rig.send("ping", "0")
    assert rig.tape.count("did ping") == did + 1


def test_an_answer_that_took_long_is_kept_by_the_time_of_the_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked first, then polled for until 4,096 others were answered: it must not be done again."""
    monkeypatch.setattr(bus_module, "MAX_ANSWERS", 3)
    rig.send("save_ckpt", "slow")
    rig.work()
    for n in range(5):
        rig.send("ping", f"{n}")
    rig.held[0].reply("saved")

    rig.send("save_ckpt", "slow")
    rig.work()

    assert len(rig.held) == 1
    assert [r["data"] for r in rig.link.replies if r["id"] == "slow"] == ["saved", "saved"]


def test_what_is_open_is_never_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "MAX_ANSWERS", 2)
    for n in range(5):
        rig.send("save_ckpt", f"{n}")
        rig.send("ping", f"p{n}")
    rig.send("save_ckpt", "0")
    rig.work()

    assert len(rig.held) == 5


def test_a_kept_answer_does_not_keep_what_was_asked(rig: Rig) -> None:
    rig.send("note", "a", b'{"text":"' + b"x" * 5000 + b'"}')
    rig.work()

    kept = rig.bus._answers["a"]
    assert (bytes(kept.request.payload), kept.payload) == (b"{}", None)


# The bounded queue.


def test_1500_commands_at_once_get_exactly_one_answer_each(rig: Rig) -> None:
    for n in range(1500):
        rig.send("note", f"{n}", NOTE)
        rig.send("ping", f"p{n}")  # the control lane works however full the queue is
    assert rig.bus.queue_len == bus_module.MAX_QUEUE == 1000
    assert len([e for e in rig.link.events if e["type"] == "accepted"]) == 1000
    rig.work()

    answers = Counter(r["id"] for r in rig.link.replies)
    assert set(answers.values()) == {1}
    assert len(answers) == 3000
    busy = [r for r in rig.link.replies if not r["ok"]]
    assert [r["id"] for r in busy] == [f"{n}" for n in range(1000, 1500)]
    assert busy[0] == {
        "id": "1000",
        "ok": False,
        "error": "busy",
        "code": "busy",
        "detail": "note was asked; 1,000 commands are waiting, which is all the queue holds.",
        "retry_after_s": 1.0,
    }
    did = [r["id"] for r in rig.link.replies if r["ok"] and r["id"][0] != "p"]
    assert did == [f"{n}" for n in range(1000)]


def test_a_full_queue_has_room_again_and_the_refused_id_is_then_carried_out() -> None:
    rig = Rig(max_queue=1)
    rig.send("note", "a", NOTE)
    rig.send("note", "b", NOTE)
    rig.work()
    rig.send("note", "b", NOTE)
    rig.work()

    assert [r["ok"] for r in rig.link.replies] == [False, True, True]
    assert rig.wakes == 2


def test_1500_commands_of_two_connections_and_a_busy_training_thread(rig: Rig) -> None:
    """Real threads: nothing is lost and nothing is answered twice."""
    links = [FakeLink(), FakeLink()]
    reading = threading.Event()

    def read(which: int) -> None:
        for n in range(750):
            rig.send("note", f"{which}-{n}", NOTE, link=links[which])

    def train() -> None:
        while not reading.is_set():
            rig.work()
        rig.work()

    training = threading.Thread(target=train, name="training")
    readers = [threading.Thread(target=read, args=(n,), name=f"reader-{n}") for n in range(2)]
    for thread in (training, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    reading.set()
    training.join()

    for which, link in enumerate(links):
        assert sorted(r["id"] for r in link.replies) == sorted(f"{which}-{n}" for n in range(750))


# Later steps.


def test_what_waits_for_a_step_is_due_when_it_is_done_in_the_order_it_came(rig: Rig) -> None:
    at = b'{"path":"lr","value":1,"at_step":6}'
    for name in ("a", "b"):
        rig.send("set_param", name, at)
    assert [e["waits_for"] for e in rig.link.events] == ["step 6", "step 6"]
    for ticket in (rig.bus.take(), rig.bus.take()):
        assert ticket is not None
        rig.bus.schedule(ticket, 6)
    rig.send("set_param", "c", b'{"path":"lr","value":1}')
    late = rig.bus.take()
    assert late is not None
    rig.bus.schedule(late, 5)

    assert rig.bus.waiting
    assert [(n, t.id) for n, t in rig.bus.scheduled("set_param")] == [(5, "c"), (6, "a"), (6, "b")]
    assert rig.bus.scheduled("pause") == []
    assert rig.bus.take() is None
    rig.step = 5
    assert rig.bus.take() is late
    assert rig.bus.take() is None
    rig.step = 7
    assert [t.id for t in (rig.bus.take(), rig.bus.take()) if t is not None] == ["a", "b"]
    assert not rig.bus.waiting


def test_what_waits_can_be_withdrawn_by_its_name(rig: Rig) -> None:
    for name, cmd in (("a", "pause"), ("b", "save_ckpt"), ("c", "pause")):
        rig.send(cmd, name)
        rig.work()
        rig.bus.schedule(rig.held[-1], 9)

    assert rig.bus.withdraw("pause", CLOSED) == 2
    assert rig.bus.withdraw("pause", CLOSED) == 0
    assert [r["id"] for r in rig.link.replies] == ["a", "c"]
    assert [t.id for _, t in rig.bus.scheduled("save_ckpt")] == ["b"]


def test_pending_is_what_was_accepted_and_has_no_answer(rig: Rig) -> None:
    rig.send("pause", "a")
    rig.send("list_params", "reads")
    rig.send("note", "c", NOTE)

    pending = rig.bus.pending()
    assert [(p["request_id"], p["cmd"], p["waits_for"]) for p in pending] == [
        ("a", "pause", "safe_point"),
        ("c", "note", "safe_point"),
    ]
    assert all(isinstance(p["since_ts"], float) for p in pending)
    rig.work()
    assert [p["request_id"] for p in rig.bus.pending()] == ["a"]


# The end.


def test_close_answers_everything_that_is_open_and_everything_after(rig: Rig) -> None:
    rig.send("pause", "held")
    rig.send("note", "queued", NOTE)
    rig.send("save_ckpt", "waits")
    rig.send("note", None, NOTE)
    rig.bus.schedule(rig.held[0], 9)

    rig.bus.close(CLOSED)
    rig.send("note", "late", NOTE)
    rig.send("ping", "late-ping")
    rig.work()
    rig.held[0].reply("too late")

    codes = [(r["id"], r.get("code")) for r in rig.link.replies]
    assert codes == [
        (name, "not_allowed_now") for name in ("held", "queued", "waits", "late", "late-ping")
    ]
    assert [e["code"] for e in rig.link.events if e["type"] == "error"] == ["not_allowed_now"]
    assert (rig.bus.queue_len, rig.bus.waiting, rig.bus.pending()) == (0, False, [])


def test_closed_between_the_check_and_the_queue_it_is_answered_once_and_not_accepted(
    rig: Rig,
) -> None:
    rig.router._handlers["note"] = (rig.handle, lambda _: rig.bus.close(CLOSED))
    rig.send("note", "a", NOTE)
    rig.work()

    assert rig.tape == ["a: not_allowed_now"]
    assert rig.bus.queue_len == 0


def test_an_answer_to_nobody_is_sent_to_nobody(rig: Rig) -> None:
    ticket = Ticket(protocol.Request(cmd="ping"), rig.link, on_answer=lambda _: None)
    ticket.reply(1)

    assert rig.tape == []
