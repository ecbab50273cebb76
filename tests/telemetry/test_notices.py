"""Webhooks and the desktop are told what becomes of a run, beside it, and keep their secrets."""

from __future__ import annotations

import json
import logging
import platform
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from otf_core import protocol
from otf_core.opening import RunOptions
from otf_core.telemetry import notifier
from otf_core.telemetry.emitter import Emitter
from otf_core.telemetry.notices import NAMES, Target, notice_of, targets
from otf_core.telemetry.notifier import PER_MINUTE, Notifier, NotToldError, on_desktop, post
from otf_core.testing import ManualClock

SECRET = "T0P/s3cret"
ABOUT = {"project": "p", "host": "h", "pid": 7}


class Hook:
    """A webhook on this machine, which answers as the test says."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []  # then 200
        self.heard = threading.Condition()
        self.hold: threading.Event | None = None
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with hook.heard:
                    hook.bodies.append(json.loads(body))
                    hook.headers.append(dict(self.headers))
                    code = hook.answers.pop(0) if hook.answers else 200
                    hook.heard.notify_all()
                if hook.hold is not None:
                    hook.hold.wait(60)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"{hook.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                logging.getLogger("hook").debug("asked")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), name="hook")
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{SECRET}"

    def expect(self, count: int) -> list[Any]:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.bodies) >= count, 60), self.bodies
            return self.bodies[:]

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.close()


class Said(list[str]):
    """What was said, and whether anything was."""

    def __init__(self) -> None:
        super().__init__()
        self.spoke = threading.Event()

    def append(self, text: str) -> None:
        super().append(text)
        self.spoke.set()


@contextmanager
def telling(*asked: Target, **more: Any) -> Iterator[tuple[Emitter, Notifier, Said]]:
    """An emitter whose events are told; and what was said of it."""
    said = Said()
    tells = Notifier(asked, about=ABOUT, say=said.append, **more)
    emitter = Emitter(session_id="s", run_id="digits", sinks=(tells.hear,))
    tells.start()
    try:
        yield emitter, tells, said
    finally:
        tells.close(60)


def one(**given: Any) -> Target:
    [found] = targets(given, {})
    return found


# What is asked.


def test_it_is_asked_by_a_word_a_mapping_or_from_outside() -> None:
    env = {"OTF_NOTIFY": "desktop https://a.example/x", "HOOK": "https://b.example/y", "KEY": "k"}
    more = {"url": "env:HOOK", "on": "failed", "headers": {"X-Key": "env:KEY"}, "tries": 2}
    found = targets(["desktop", more], env)
    assert [each.url for each in found] == [
        None, "https://b.example/y", None, "https://a.example/x"
    ]  # fmt: skip
    assert found[1] == Target(
        url="https://b.example/y", on=("failed",), headers={"X-Key": "k"}, tries=2
    )
    [outside] = targets(None, {"OTF_NOTIFY": '{"url": "https://a.example", "timeout_s": 1}'})
    assert (outside.url, outside.timeout_s) == ("https://a.example", 1.0)
    assert targets(None, {}) == ()


WRONG = [
    (5, "an int"),
    ({"desktop": True, "url": "https://a"}, "neither or both"),
    ({}, "neither or both"),
    ({"url": "https://a", "secret": SECRET}, "with secret; allowed: url"),
    (f"http://a.example/{SECRET}", "without https"),
    (f"file:///{SECRET}", "without https"),
    (f"https://a.example/ {SECRET}", "without https"),
    (f"https://[{SECRET}", "without https"),
    ({"url": "env:NONE"}, "'NONE', which is not set"),
    ({"url": "https://a", "on": ["began"]}, "allowed: paused, finished, failed, stalled, guard"),
    ({"url": "https://a", "on": []}, "allowed: paused"),
    ({"url": "https://a", "tries": 0}, "allowed: 1 to 10"),
    ({"url": "https://a", "timeout_s": 1e9}, "allowed: 0.1 to 30"),
    ({"url": "https://a", "timeout_s": True}, "timeout_s=True"),
    ({"url": "https://a", "template": {"a": ["{loss}"]}}, "{loss} in its template; allowed: {what"),
    ({"url": "https://a", "template": {"a": b"x"}}, "a template with a bytes"),
    ({"url": "https://a", "headers": {"X\n": SECRET}}, "that is none"),
    ({"url": "https://a", "headers": {"X": f"{SECRET}\r\nY: 1"}}, "that is none"),
    ({"url": 5}, "an int|a int"),
]


@pytest.mark.parametrize(("asked", "said"), WRONG)
def test_what_is_not_allowed_is_refused_when_it_is_given_without_its_secret(
    asked: Any, said: str
) -> None:
    with pytest.raises(ValueError, match="notify was asked") as caught:
        RunOptions(notify=asked)
    assert any(each in str(caught.value).replace("a int", "an int") for each in said.split("|"))
    assert SECRET not in str(caught.value)


def test_what_stands_outside_is_refused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTF_NOTIFY", f"http://a.example/{SECRET}")
    with pytest.raises(ValueError, match="OTF_NOTIFY was asked") as caught:
        RunOptions()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("OTF_NOTIFY", "{")
    with pytest.raises(ValueError, match="to be JSON, and is none"):
        RunOptions()


def test_no_secret_is_in_what_is_shown() -> None:
    options = RunOptions(notify={"url": f"https://a.example/{SECRET}", "headers": {"X": SECRET}})
    made = options.session_options("Net", None)
    for shown in (options, made, made.notify[0], made.notify[0].shown):
        assert SECRET not in repr(shown)
    assert made.notify[0].shown == "a.example"


# What is told.

STAMPS = {"run_id": "digits", "session_id": "s", "ts": 5.0}
TOLD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"type": "paused", "step": 1500, "ckpt": "c"}, "paused", "digits is paused at step 1,500"),
    ({"type": "trainingFinished", "status": "completed", "step": 9}, "finished",
     "digits has finished at step 9"),
    ({"type": "trainingFinished", "status": "stopped", "step": 9}, "finished",
     "digits was stopped at step 9"),
    ({"type": "trainingFinished", "status": "failed", "step": 9, "error": "E: {x}"}, "failed",
     "digits has failed at step 9: E: {x}"),
    ({"type": "stall", "step": 3, "seconds": 31.0, "where": "train.py:4 in f", "over": False},
     "stalled", "digits stands still: no batch has ended for 31.0 s at step 3, in train.py:4 in f"),
    ({"type": "stall", "step": 3, "seconds": 31.0, "where": None, "over": True}, None, ""),
    ({"type": "rank_state", "state": "failed", "why": "rank 1 has ended", "step": 2}, "failed",
     "digits has lost a rank at step 2: rank 1 has ended"),
    ({"type": "rank_state", "state": "silent", "why": "rank 1", "step": 2}, None, ""),
    ({"type": "guard", "rule": "spike", "metric": "loss", "value": 9.5, "did": "paused",
      "step": 4}, "guard", "digits is guarded by spike at step 4: loss is 9.5; paused"),
    ({"type": "guard", "rule": "nan", "did": "pause", "text": "loss is {nan}", "step": 4}, "guard",
     "digits is guarded by nan at step 4: loss is {nan}"),
    ({"type": "resumed", "step": 4}, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("event", "what", "text"), TOLD)
def test_an_event_in_words(event: dict[str, Any], what: str | None, text: str) -> None:
    found = notice_of({**STAMPS, **event}, ABOUT)
    assert (found and found["what"]) == what
    if found is not None:
        assert found["text"] == text
        assert set(found) == set(NAMES)
        assert (found["project"], found["pid"], found["step"]) == ("p", 7, event["step"])


def test_a_webhook_gets_what_it_is_told_of_and_by_its_template(hook: Hook) -> None:
    template = {"content": "{run_id}: {text}!", "n": "{step}", "deep": ["{error}", 5], "b": "{"}
    plain = one(url=hook.url, on=["finished"])
    templated = one(url=hook.url, on=["paused"], template=template, headers={"X-Key": SECRET})
    with telling(plain, templated) as (emitter, _, said):
        emitter.emit("log", level="info", phase="info", text='{"type":"paused"')
        emitter.emit("paused", step=3, request={"action": "pause"}, ckpt=None)
        [first] = hook.expect(1)
        emitter.emit("resumed", step=3)
        emitter.emit("trainingFinished", status="completed", step=8)
    assert first == {
        "content": "digits: digits is paused at step 3!", "n": 3, "deep": [None, 5], "b": "{"
    }  # fmt: skip
    assert len(hook.bodies) == 2, "what is left is told before it is closed"
    assert hook.bodies[1]["text"] == "digits has finished at step 8"
    assert [headers.get("X-Key") for headers in hook.headers] == [SECRET, None]
    assert hook.headers[0]["Content-Type"] == "application/json"
    assert said == []


def test_what_fails_is_tried_again_and_then_said_once_without_the_address(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "WAIT_S", 0.001)
    hook.answers = [500, 503, 200, 404, 404, 404, 404]
    with telling(one(url=hook.url, tries=3)) as (emitter, _, said):
        for step in (1, 2, 3):
            emitter.emit("paused", step=step, request={}, ckpt=None)
        hook.expect(7)
    assert [body["step"] for body in hook.bodies] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert said == ["127.0.0.1 was not notified: HTTP 404"]


def test_an_address_that_leads_elsewhere_is_not_followed(hook: Hook) -> None:
    hook.answers = [302]
    with pytest.raises(NotToldError, match="HTTP 302"):
        post(one(url=hook.url), b"{}")
    assert len(hook.bodies) == 1


def test_who_does_not_answer_holds_nobody(hook: Hook) -> None:
    hook.hold = threading.Event()
    target = one(url=hook.url, timeout_s=0.2, tries=1)
    with telling(target) as (emitter, tells, said):
        emitter.emit("paused", step=1, request={}, ckpt=None)
        hook.expect(1)
        emitter.emit("trainingFinished", status="completed", step=2)  # returns at once
        tells.close(60)
    assert said == ["127.0.0.1 was not notified: it has not answered in time"]


def test_nobody_there_is_said_by_its_kind() -> None:
    found = Hook()
    url = found.url
    found.close()
    with pytest.raises(NotToldError, match=r"^Connection refused$"):
        post(one(url=url), b"{}")


def test_the_end_of_a_run_waits_for_a_bounded_time() -> None:
    reached, go = threading.Event(), threading.Event()

    def hangs(*_: Any) -> None:
        reached.set()
        go.wait(60)

    with telling(one(url="https://a.example"), send=hangs) as (emitter, tells, _):
        emitter.emit("paused", step=1, request={}, ckpt=None)
        assert reached.wait(60)
        thread = tells._thread
        tells.close(0.01)
        assert thread is not None
        assert thread.is_alive()
        go.set()
        thread.join(60)
        assert not thread.is_alive()


def test_a_run_that_stalls_on_and_on_tells_so_many_a_minute() -> None:
    clock = ManualClock()
    sent: list[int] = []
    rung = threading.Event()

    def send(_: Target, body: bytes) -> None:
        sent.append(json.loads(body)["step"])
        if sent[-1] == 900:
            rung.set()

    target = one(url="https://a.example")
    with telling(target, send=send, clock=clock.now) as (emitter, _, said):
        for step in range(PER_MINUTE + 1):
            emitter.emit("paused", step=step, request={}, ckpt=None)
        assert said.spoke.wait(60)
        clock.advance(61.0)
        emitter.emit("paused", step=900, request={}, ckpt=None)
        assert rung.wait(60)
    assert sent == [*range(PER_MINUTE), 900]
    assert said == [f"a.example was not notified: more than {PER_MINUTE} a minute: some are "
                    "left out"]  # fmt: skip


def test_nobody_to_tell_is_no_thread() -> None:
    before = threading.active_count()
    with telling() as (emitter, tells, _):
        assert threading.active_count() == before
        emitter.emit("paused", step=1, request={}, ckpt=None)
        assert not tells._lines


def test_a_step_is_not_even_looked_at() -> None:
    with telling(one(url="https://a.example", tries=1), send=lambda *_: None) as (_, tells, _):
        line = protocol.encode({"type": "trainStep", "step": 1})
        tells.hear(1, line, True)
        tells.hear(2, protocol.encode({"type": "checkpoint_saved", "text": "paused"}), False)
        assert not tells._lines


def test_the_desktop_is_shown_title_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(NotToldError, match="notify-send is not installed"):
        on_desktop("t", "x")
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/shown\nexit ${{CODE:-0}}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with telling(one(desktop=True, on=["paused"])) as (emitter, _, said):
        emitter.emit("paused", step=2, request={}, ckpt=None)
    assert (tmp_path / "shown").read_text().splitlines() == [
        "--app-name=otf", "--", "digits: paused", "digits is paused at step 2"
    ]  # fmt: skip
    assert said == []
    monkeypatch.setenv("CODE", "3")
    with pytest.raises(NotToldError, match="ended with 3"):
        on_desktop("t", "x")
