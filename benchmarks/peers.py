"""The other end, each in a process of its own, so that it takes no turn of the training thread.

As a program: ``python -m benchmarks.peers stall|read|pause|rollback N``; the first line on stdout
is the port, the next ones what was found, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from otf_core import protocol
from otf_core.testing import FakeDashboard, LoopbackListener
from otf_core.transport import Transport

ROOT: Final = Path(__file__).parents[1]


@contextlib.contextmanager
def dashboard(tmp: Path) -> Iterator[subprocess.Popen[str]]:
    """``otf dashboard`` as a user starts it; runs find it by its file."""
    command = [sys.executable, "-m", "otf_core.cli.otf", "dashboard", "--dir", str(tmp / "seen")]
    with _running(command) as process:
        line(process)  # the URL: it listens
        yield process


@contextlib.contextmanager
def peer(what: str, *args: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """One of the programs below: where it listens, and the process."""
    with _running([sys.executable, "-m", "benchmarks.peers", what, *args]) as process:
        yield f"127.0.0.1:{int(line(process))}", process


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line on its stdout."""
    out: IO[str] | None = process.stdout
    assert out is not None
    said = out.readline()
    if not said:
        msg = f"{process.args!r} ended with exit code {process.wait()} and said nothing"
        raise RuntimeError(msg)
    return said.strip()


def answer(process: subprocess.Popen[str]) -> Any:
    """The next line of a peer."""
    return json.loads(line(process))


# -- the programs --------------------------------------------------------------------------------


def _request(cmd: str, **payload: Any) -> bytes:
    return protocol.encode({"id": f"{cmd}-0", "cmd": cmd, "payload": payload})


def _say(value: Any) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def _accept(listener: LoopbackListener) -> Transport:
    transport = listener.accept(timeout_s=None)
    assert transport is not None
    return transport


def stall(listener: LoopbackListener) -> None:
    """Shakes hands with all who come and reads nothing."""
    kept = []
    while True:
        transport = _accept(listener)
        transport.send(_request("hello", protocol=protocol.PROTOCOL))
        transport.send(_request("resume_from", seq=0))
        kept.append(transport)


def read(listener: LoopbackListener, count: int) -> None:
    """Parses every line; says when event ``count`` was there."""
    transport = _accept(listener)
    transport.send(_request("hello", protocol=protocol.PROTOCOL))
    transport.send(_request("resume_from", seq=0))
    splitter = protocol.LineSplitter()
    events, last = 0, 0
    while last < count and (data := transport.recv()):
        for line in splitter.feed(data):
            assert isinstance(line, bytes)
            message = protocol.decode_message(line)
            if "event_seq" in message:
                events, last = events + 1, message["event_seq"]
    _say({"events": events, "at_s": time.monotonic()})


def pause(listener: LoopbackListener, count: int) -> None:
    """Pauses and resumes ``count`` times, then stops the run; says when each was asked and held,
    the latter as the event ``state`` says; ``paused`` comes later, with the file.
    """
    with FakeDashboard.on(listener, patience_s=60.0) as run:
        run.hello()
        run.expect("trainStep")
        found = []
        for number in range(count):
            # Not in step with the batches: each pause meets another place in one.
            time.sleep(0.02 + 0.0037 * (number % 7))
            asked = time.time()
            request = run.send("pause")
            held = run.expect("state", state="paused")["ts"]
            run.reply_to(request)
            replied = time.time()
            resumed_at = time.time()
            request = run.send("resume")
            resumed = run.expect("resumed")["ts"]
            run.reply_to(request)
            run.expect("trainStep")
            times = {"asked": asked, "held": held, "replied": replied}
            found.append({**times, "resume_asked": resumed_at, "resumed": resumed})
        run.send("stop")
        run.expect("trainingFinished")
        _say(found)


def rollback(listener: LoopbackListener, count: int) -> None:
    """Rolls a run back to one checkpoint ``count`` times, then stops it."""
    with FakeDashboard.on(listener, patience_s=60.0) as run:
        run.hello()
        run.expect("trainStep", step=10)
        name = run.request("save_ckpt")["data"]["id"]
        run.expect("checkpoint_saved", id=name)
        found = []
        for number in range(count):
            time.sleep(0.02 + 0.0037 * (number % 7))  # as above
            asked = time.time()
            reply = run.request("rollback", {"checkpoint": name})
            found.append({"asked": asked, "replied": time.time()})
            assert reply["ok"], reply
            run.expect("checkpoint_saved")  # how it was before
            run.expect("trainStep")
        run.send("stop")
        run.expect("trainingFinished")
        _say(found)


def main() -> None:
    """See the module."""
    what, *args = sys.argv[1:]
    with LoopbackListener() as listener:
        _say(listener.port)
        if what == "stall":
            stall(listener)
        elif what == "read":
            read(listener, int(args[0]))
        elif what == "rollback":
            rollback(listener, int(args[0]))
        else:
            pause(listener, int(args[0]))


if __name__ == "__main__":
    os.environ.pop("OTF_TOKEN", None)
    main()
