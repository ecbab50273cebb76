"""A channel with everything around it: what the tests of this floor stand on."""

from __future__ import annotations

import threading
from typing import Any

from otf_core import protocol
from otf_core.channel import Link, SocketChannel
from otf_core.errors import RemoteProtocolError
from otf_core.testing import HurriedClock, Listener, MemoryLog

IDENTITY = {
    "version": "0.2.0",
    "session_id": "s-1",
    "capabilities": ["pause", "journal"],
    "pid": 42,
    "host": "here",
    "device": "cpu",
    "state": "running",
    "run_id": "baseline",
    "project": "demo",
}


class EchoDesk:
    """Answers each request with its name; notes what it was told."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bool]] = []
        self.malformed_lines: list[str] = []
        self.lost_links: list[Link] = []
        self.links: list[Link] = []
        self.fail = False
        self.lost_event = threading.Event()

    def receive(self, request: protocol.Request, link: Link) -> None:
        if self.fail:
            msg = "the desk is broken"
            raise RuntimeError(msg)
        self.received.append((request.cmd, link.legacy))
        self.links.append(link)
        if request.id is not None:
            link.reply(protocol.reply_ok(request.id, {"cmd": request.cmd}))

    def malformed(self, error: RemoteProtocolError, link: Link) -> None:
        self.malformed_lines.append(str(error))
        link.event({"type": "error", "code": "bad_payload", "text": str(error)})

    def lost(self, link: Link) -> None:
        self.lost_links.append(link)
        self.lost_event.set()


class Rig:
    """A started channel, its log and its desk; a context manager."""

    def __init__(self, listener: Listener, **options: Any) -> None:
        self.log = MemoryLog()
        self.desk = EchoDesk()
        self.said: list[str] = []
        options = {"pace_s": 0, "clock": HurriedClock(), **options}
        self.channel = SocketChannel(
            options.pop("dial", listener.dial),
            options.pop("desk", self.desk),
            options.pop("log", self.log),
            identity=lambda: {**IDENTITY, "session_id": self.log.session_id},
            announce=self.said.append,
            **options,
        )
        self.log.emit = self.channel.emit
        self.channel.start()

    @property
    def mode(self) -> str:
        return self.channel.mode

    def steps(self, count: int, text: str = "") -> None:
        """So many trainSteps."""
        for _ in range(count):
            self.log.add("trainStep", {"text": text})

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close(0.1)
