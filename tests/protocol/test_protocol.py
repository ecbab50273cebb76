"""The wire: what goes in comes out, and whatever comes in is a message or a refusal."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otf_core import protocol
from otf_core.errors import (
    CommandError,
    ErrorCode,
    LocalProtocolError,
    OtfError,
    RemoteProtocolError,
)
from otf_core.protocol import LineSplitter

COMMANDS = sorted(protocol.COMMANDS)
PAYLOADS = sorted({spec.payload for spec in protocol.COMMANDS.values()}, key=lambda p: p.__name__)


# Lines in.


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_a_request_or_a_protocol_error(line: bytes) -> None:
    try:
        assert isinstance(protocol.decode_request(line).cmd, str)
    except RemoteProtocolError:
        pass
    try:
        assert isinstance(protocol.decode_message(line), dict)
    except RemoteProtocolError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"cmd": st.sampled_from(COMMANDS) | st.text()},
        optional={"id": st.text() | JSON, "payload": JSON},
    )
)
def test_any_json_object_is_a_payload_or_a_refusal(message: dict[str, Any]) -> None:
    try:
        request = protocol.decode_request(json.dumps(message).encode())
        payload = protocol.decode_payload(request)
    except RemoteProtocolError:
        return
    except CommandError as error:
        found: Any = error.code
    else:
        found = type(payload)
    known = message["cmd"] in protocol.COMMANDS
    fits = protocol.COMMANDS[message["cmd"]].payload if known else ErrorCode.UNKNOWN_COMMAND
    assert found in ({fits, ErrorCode.BAD_PAYLOAD} if known else {fits})


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b"null", b"1", b'"pause"', b'{"cmd":1}', b'{"cmd":null}', b"\xff\xfe",
        b'{"cmd":"pause","id":1}', b'{"cmd":"pause"', b'{"cmd":"pause"} x', b'{"cmd":NaN}',
        b'{"cmd":"\\ud800"}', b'{"cmd":"x","id":"\xff"}', b"[" * 100_000,
        b'{"cmd":"x","payload":' + b"[" * 100_000, b'{"cmd":"x","n":1' + b"0" * 9000 + b"x}",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_by_name(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r'allowed: one JSON object \{"id", "cmd"'):
        protocol.decode_request(line)


@pytest.mark.parametrize(("line", "kind"), [(b"[1]", "list"), (b"null", "NoneType"), (b"3", "int")])
def test_a_message_that_is_no_object_is_refused(line: bytes, kind: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a line holds {kind}; allowed: one JSON object"):
        protocol.decode_message(line)
    with pytest.raises(RemoteProtocolError, match="is no JSON"):
        protocol.decode_message(b"{")


def test_a_request_as_the_published_extension_sends_it() -> None:
    assert protocol.decode_request(b'{"cmd":"resume"}') == protocol.Request(cmd="resume")
    request = protocol.decode_request(b'{"id":"a","cmd":"pause","payload":null,"x":{}}')
    assert (request.id, protocol.decode_payload(request)) == ("a", protocol.Pause())


# Payloads.


@pytest.mark.parametrize("payload", PAYLOADS)
@given(data=st.data())
def test_every_payload_comes_back_as_it_went(payload: type[protocol.Payload], data: Any) -> None:
    made = data.draw(st.builds(payload, **{
        name: _strategy(kind) for name, kind in _kinds(payload).items()
    }))  # fmt: skip

    assert msgspec.json.decode(msgspec.json.encode(made), type=payload) == made


def _kinds(payload: type[protocol.Payload]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(payload)}


def _strategy(kind: Any) -> st.SearchStrategy[Any]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    known: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(),
        int: st.integers(-(2**63), 2**63 - 1),
        bool: st.booleans(),
        float: finite.map(lambda x: x + 0.0),
        type(None): st.none(),
        msgspec.UnsetType: st.just(msgspec.UNSET),
    }
    if kind in known:
        return known[kind]
    arguments = getattr(kind, "__args__", ())
    if kind is Any:
        return st.none() | st.text() | st.booleans()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(kind, **{name: _strategy(each) for name, each in _kinds(kind).items()})
    if getattr(kind, "__origin__", None) is list:
        return st.lists(_strategy(arguments[0]), max_size=3)
    if getattr(kind, "__origin__", None) is dict:
        return st.dictionaries(st.text(), _strategy(arguments[1]), max_size=3)
    if arguments:
        return st.one_of([_strategy(each) for each in arguments])
    return st.just(kind)  # of a Literal


@pytest.mark.parametrize(
    ("cmd", "payload", "field"),
    [
        ("set_param", b"{}", "path"),
        ("set_param", b'{"path":5}', "path"),
        ("set_param", b'{"path":"lr","mul":"x"}', "mul"),
        ("set_param", b'{"path":"lr","mode":"x"}', "mode"),
        ("pause", b'{"at_step":1.5}', "at_step"),
        ("pause", b'{"at_step":true}', "at_step"),
        ("stop", b'{"save":1}', "save"),
        ("note", b"[]", None),
        ("note", b'"x"', None),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_with_its_field(
    cmd: str, payload: bytes, field: str | None
) -> None:
    with pytest.raises(CommandError, match=f"The payload of {cmd} does not fit: ") as refused:
        protocol.decode_payload(protocol.Request(cmd=cmd, payload=msgspec.Raw(payload)))
    assert (refused.value.code, refused.value.field) == (ErrorCode.BAD_PAYLOAD, field)


def test_an_unknown_command_names_the_known_and_is_not_echoed_whole() -> None:
    with pytest.raises(CommandError) as refused:
        protocol.decode_payload(protocol.Request(cmd="x" * 100_000))
    assert refused.value.allowed == COMMANDS
    assert len(refused.value.detail) < 1500


# Lines out.


def test_a_reply_says_applied_or_refused_and_the_extension_reads_the_sentence() -> None:
    assert protocol.reply_ok("a", {"x": math.nan}) == b'{"id":"a","ok":true,"data":{"x":null}}\n'
    error = CommandError(ErrorCode.BUSY, "Later.", retry_after_s=1.5, field="f", allowed=[1])
    whole = {
        "id": "a", "ok": False, "error": "busy", "code": "busy", "detail": "Later.",
        "field": "f", "allowed": [1], "retry_after_s": 1.5,
    }  # fmt: skip
    assert json.loads(protocol.reply_error("a", error, legacy=False)) == whole
    legacy = json.loads(protocol.reply_error("a", error, legacy=True))
    assert legacy == {**whole, "error": "Later."}
    assert CommandError(ErrorCode.INTERNAL, "x").to_wire() == {
        "error": "internal", "code": "internal", "detail": "x",
    }  # fmt: skip


def test_the_kinds_of_error_are_ours() -> None:
    for kind in (LocalProtocolError, RemoteProtocolError, CommandError):
        assert issubclass(kind, OtfError)
    assert str(CommandError(ErrorCode.BUSY, "why")) == "why"


@given(st.dictionaries(st.text(), JSON))
def test_non_finite_numbers_go_as_null_and_the_rest_as_it_is(message: dict[str, Any]) -> None:
    def finite(x: Any) -> Any:
        if isinstance(x, float):
            return x if math.isfinite(x) else None
        if isinstance(x, list):
            return [finite(v) for v in x]
        return {k: finite(v) for k, v in x.items()} if isinstance(x, dict) else x

    line = protocol.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == finite(message)


# Cuts.

LINES = st.lists(st.binary(max_size=12), max_size=8)


def fed(pieces: list[bytes], max_bytes: int) -> list[Any]:
    splitter = LineSplitter(max_bytes)
    found = itertools.chain.from_iterable(splitter.feed(piece) for piece in pieces)
    return [str(x) if isinstance(x, RemoteProtocolError) else x for x in found]


@given(LINES, st.lists(st.integers(0, 120), max_size=6), st.integers(1, 10))
def test_any_cut_of_the_stream_gives_the_same_lines(
    lines: list[bytes], cuts: list[int], most: int
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]

    whole = fed([stream], most)
    assert fed(pieces, most) == whole
    assert fed([stream[n : n + 1] for n in range(len(stream))], most) == whole


def test_a_line_too_long_is_skipped_to_its_end_and_said_once() -> None:
    assert fed([b"12345\n123456\n", b"1234", b"5678", b"9\nab\n"], 5) == [
        b"12345",
        "A line of 6 bytes was skipped; at most 5 are read.",
        "A line of 9 bytes was skipped; at most 5 are read.",
        b"ab",
    ]


def test_blank_lines_are_skipped_and_half_a_line_waits() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"\n  \r\n{}\r\n{")) == [b"{}"]
    assert list(splitter.feed(b"")) == []
    assert list(splitter.feed(b"}\n")) == [b"{}"]


def test_a_line_without_end_holds_no_memory() -> None:
    splitter = LineSplitter(100)
    for _ in range(50):
        assert list(splitter.feed(b"x" * 99)) == []
    assert len(splitter._held) == 0
    assert [str(e) for e in splitter.feed(b"\nok\n")] == [
        "A line of 4,950 bytes was skipped; at most 100 are read.",
        "b'ok'",
    ]
    assert protocol.MAX_LINE_BYTES == 16 * 1024 * 1024


# Tables and names.


def test_the_tables_do_not_use_the_names_of_the_extension() -> None:
    assert not protocol.RESERVED_EVENT_TYPES & protocol.EVENTS.keys()
    assert {n for n, e in protocol.EVENTS.items() if not e.journaled} == {
        "hello",
        "accepted",
        "gap",
        "error",
        "ranks",
    }
    unknown_there = {n for n, e in protocol.EVENTS.items() if not e.legacy}
    assert unknown_there == {"accepted", "gap", "parked", "progress", "ranks"}
    assert {n for n, e in protocol.EVENTS.items() if e.droppable} == {"trainStep", "progress"}
    control = {n for n, c in protocol.COMMANDS.items() if c.lane == "control"}
    assert control == {
        "hello", "server_info", "ack", "resume_from", "enforce_version", "ping", "status",
        "pause", "resume", "stop", "cancel",
    }  # fmt: skip
    assert {n for n, c in protocol.COMMANDS.items() if not c.answered} == {"ack"}


@pytest.mark.parametrize("name", ["a", "A-1._#", "x" * 120, "1"])
def test_a_name_of_a_run(name: str) -> None:
    assert protocol.run_name_problem(name) is None


@pytest.mark.parametrize("name", ["", ".a", "a/b", "x" * 121, "ä", "a b", "a\n", "..", "a:b", "²"])
def test_what_is_no_name_of_a_run(name: str) -> None:
    assert f"{name[:60]!r} is no run name; allowed: 1-120" in str(protocol.run_name_problem(name))


def test_automatic_names() -> None:
    names = itertools.islice(protocol.automatic_names("fork"), 3)
    assert list(names) == ["fork", "fork-2", "fork-3"]
