"""From the name of a command to its handler, and what a handler may not do to a run."""

from __future__ import annotations

from typing import Any

import pytest

from otf_core import protocol
from otf_core.control.bus import Ticket
from otf_core.control.router import LATER, CommandRouter, crashed
from otf_core.errors import CommandError, ErrorCode, LocalProtocolError
from tests.control.rig import FakeLink


def ticket(cmd: str, link: FakeLink) -> Ticket:
    request = protocol.Request(cmd=cmd, id="x")
    return Ticket(request, link, on_answer=lambda _: None)


def test_a_handler_for_no_command_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalProtocolError, match=r"'paws' was asked; there are ack, .*validate"):
        CommandRouter().on("paws")


def test_a_second_handler_is_refused_at_once_and_also_later() -> None:
    router = CommandRouter()
    early = router.on("ping")
    router.on("ping")(lambda _: 1)

    with pytest.raises(LocalProtocolError, match="'ping' was asked twice; allowed: one per"):
        router.on("ping")
    with pytest.raises(LocalProtocolError, match="'ping' was asked twice"):
        early(lambda _: 2)
    link = FakeLink()
    router.run(ticket("ping", link))
    assert link.replies == [{"id": "x", "ok": True, "data": 1}]


def test_the_decorator_gives_the_handler_back() -> None:
    def handler(_: Ticket) -> None:
        return None

    assert CommandRouter().on("ping")(handler) is handler


def test_a_reason_wins_over_a_handler_and_keeps_a_later_one_out() -> None:
    router = CommandRouter()
    router.on("pause")(lambda _: None)
    router.unsupported({"pause": "Several ranks."})

    with pytest.raises(CommandError, match="Several ranks") as refused:
        router.check(ticket("pause", FakeLink()))
    assert refused.value.code is ErrorCode.UNSUPPORTED
    with pytest.raises(LocalProtocolError, match="twice"):
        router.on("pause")
    assert "pause" not in router.capabilities()


def test_what_is_missing_and_what_can_be_done() -> None:
    router = CommandRouter()
    router.on("ping")(lambda _: None)
    router.unsupported({"fork": "Not yet."})

    assert router.missing() == sorted(
        protocol.COMMANDS.keys() - {"ping", "fork"} - protocol.ANSWERED_BY_CHANNEL
    )
    assert router.capabilities() == [
        "ack",
        "enforce_version",
        "hello",
        "ping",
        "resume_from",
        "server_info",
    ]


def test_a_command_that_nobody_carries_out_is_unsupported() -> None:
    with pytest.raises(CommandError, match="hello was asked") as refused:
        CommandRouter().check(ticket("hello", FakeLink()))
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_a_check_refuses_and_one_that_crashes_is_our_fault() -> None:
    crashes: list[tuple[str, str]] = []
    router = CommandRouter(on_crash=lambda t, text: crashes.append((t.request.cmd, text)))
    refusal = CommandError(ErrorCode.NOT_FOUND, "no")

    def refuse(_: Ticket) -> None:
        raise refusal

    def crash(_: Ticket) -> None:
        raise KeyError("oops")

    router.on("ping", check=refuse)(lambda _: None)
    router.on("note", check=crash)(lambda _: None)
    router.on("stop", check=lambda _: None)(lambda _: None)

    router.check(ticket("stop", FakeLink()))
    with pytest.raises(CommandError) as refused:
        router.check(ticket("ping", FakeLink()))
    assert refused.value is refusal
    with pytest.raises(CommandError, match="note failed with KeyError: 'oops'") as refused:
        router.check(ticket("note", FakeLink()))
    assert refused.value.code is ErrorCode.INTERNAL
    assert crashes[0][0] == "note"
    assert "Traceback" in crashes[0][1]


def test_a_handler_answers_refuses_or_answers_later() -> None:
    router = CommandRouter()
    kept: list[Ticket] = []

    def later(t: Ticket) -> Any:
        kept.append(t)
        return LATER

    def refuse(_: Ticket) -> None:
        raise CommandError(ErrorCode.NOT_FOUND, "No such run.", field="run_id")

    router.on("ping")(lambda _: {"a": 1})
    router.on("pause")(later)
    router.on("note")(refuse)
    link = FakeLink()
    for cmd in ("ping", "pause", "note"):
        router.run(ticket(cmd, link))

    assert link.replies == [
        {"id": "x", "ok": True, "data": {"a": 1}},
        {
            "id": "x",
            "ok": False,
            "error": "not_found",
            "code": "not_found",
            "detail": "No such run.",
            "field": "run_id",
        },
    ]
    kept[0].reply(2)
    assert link.replies[-1] == {"id": "x", "ok": True, "data": 2}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad"), "ping failed with ValueError: bad; training goes on."),
        (ValueError(), "ping failed with ValueError; training goes on."),
        (ValueError("x" * 900), f"ping failed with ValueError: {'x' * 488}; training goes on."),
    ],
)
def test_a_handler_that_crashes_is_a_reply_and_a_traceback(error: Exception, said: str) -> None:
    crashes: list[str] = []
    router = CommandRouter(on_crash=lambda _, text: crashes.append(text))

    def crash(_: Ticket) -> None:
        raise error

    router.on("ping")(crash)
    link = FakeLink()
    router.run(ticket("ping", link))

    assert (link.replies[0]["code"], link.replies[0]["detail"]) == ("internal", said)
    assert "in crash" in crashes[0]
    assert crashed("ping", error).detail == said


def test_nobody_has_to_listen_for_crashes() -> None:
    router = CommandRouter()
    router.on("ping")(lambda _: 1 // 0)
    link = FakeLink()
    router.run(ticket("ping", link))

    assert link.replies[0]["code"] == "internal"
