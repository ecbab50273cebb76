"""Many trainers and many pages of one dashboard, in one process of their own.

As a program: ``python -m benchmarks.crowd``; it finds the dashboard by its file, takes
``{trainers, pages, hz, metrics, warm_up_s, seconds}`` as JSON on stdin, and says on stdout what the
pages have seen. A page reads frames and looks for one field in them; it does not parse.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

from otf_core import protocol, rendezvous

SENT_AT: Final = re.compile(rb'"sent_at": ?([0-9.]+)')
HANDSHAKE: Final = (
    "GET /api/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Trainer:
    """As much of otf/1 as a dashboard asks for."""

    def __init__(self, number: int, metrics: int) -> None:
        self.session_id, self.run_id = f"sess-{number}", f"run-{number}"
        self._names = [f"metric_{n}" for n in range(metrics)]
        self._seq = self._step = 0

    async def dial(self, port: int, token: str) -> None:
        """Connect, and answer from then on."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._write({"type": "hello", "protocol": "otf/1", "version": "0", "pid": os.getpid(),
                     "session_id": self.session_id, "token_required": True})  # fmt: skip
        self._serving = asyncio.ensure_future(self._serve(token))

    async def _serve(self, token: str) -> None:
        identity = {"session_id": self.session_id, "run_id": self.run_id, "project": "bench",
                    "state": "running", "capabilities": sorted(protocol.COMMANDS)}  # fmt: skip
        while line := await self._reader.readline():
            request = json.loads(line)
            cmd = request["cmd"]
            data: dict[str, Any] = {}
            if cmd == "hello":
                assert request["payload"]["token"] == token
                data = {"protocol": "otf/1", "last_seq": self._seq, "first_seq": 1, **identity}
            elif cmd == "resume_from":
                data = {"from": self._seq + 1, "to": self._seq, "count": 0, "complete": True}
            elif cmd == "status":
                data = {"step": self._step, "last_seq": self._seq, "steps_per_s": 5.0, **identity}
            if "id" in request:
                self._write({"id": request["id"], "ok": True, "data": data})

    def _write(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    def emit(self, kind: str, **fields: Any) -> None:
        """One numbered event."""
        self._seq += 1
        now = time.time()
        stamps = {"run_id": self.run_id, "run_gen": 0, "ts": now, "session_id": self.session_id}
        self._write({"type": kind, **fields, **stamps, "event_seq": self._seq, "sent_at": now})

    def begin(self) -> None:
        """What every run says first."""
        names = {"project": "bench", "run_name": self.run_id}
        self.emit("session_started", **names)
        self.emit("newRun", parents=[], meta={}, **names)

    def step(self) -> None:
        """One step with all its metrics."""
        self._step += 1
        metrics = {name: 1.0 / (n + self._step) for n, name in enumerate(self._names)}
        self.emit("trainStep", step=self._step, epoch=0, loss=1.0 / self._step, metrics=metrics)


class Page:
    """A page that follows one session."""

    def __init__(self) -> None:
        self.frames = self.bytes = 0
        self.delays_s: list[float] = []
        self.counting = False

    async def open(self, port: int, token: str, session_id: str) -> None:
        """Enter and subscribe; read from then on."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        self._writer.write(HANDSHAKE.encode())
        await self._reader.readuntil(b"\r\n\r\n")
        self._say({"token": token})
        self._say({"kind": "subscribe", "session_id": session_id, "after_seq": 0})
        self._reading = asyncio.ensure_future(self._read())

    def _say(self, message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        assert len(text) < 126
        self._writer.write(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)

    async def _read(self) -> None:
        while True:
            kind, size = await self._reader.readexactly(2)
            if size >= 126:
                size = int.from_bytes(
                    await self._reader.readexactly(2 if size == 126 else 8), "big"
                )
            frame = await self._reader.readexactly(size)
            if self.counting and kind & 0x0F == 1:
                now = time.time()
                self.frames, self.bytes = self.frames + 1, self.bytes + size
                if b'"history"' not in frame:
                    self.delays_s += [now - float(at) for at in SENT_AT.findall(frame)]


async def crowd(asked: dict[str, Any]) -> dict[str, Any]:
    """All of them, for so many seconds."""
    found = rendezvous.find()
    assert found is not None
    port = urlsplit(found.url).port or 0
    trainers = [Trainer(n, asked["metrics"]) for n in range(asked["trainers"])]
    pages = [Page() for _ in range(asked["pages"])]
    for trainer in trainers:
        await trainer.dial(found.port, found.token)
        trainer.begin()
    await asyncio.sleep(1.0)  # all are known before pages subscribe
    for n, page in enumerate(pages):
        await page.open(port, found.token, trainers[n % len(trainers)].session_id)

    async def train(trainer: Trainer, offset_s: float) -> None:
        await asyncio.sleep(offset_s)
        due_s = time.monotonic()
        while True:
            trainer.step()
            due_s += 1 / asked["hz"]
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    each_s = 1 / asked["hz"] / len(trainers)
    work = [asyncio.ensure_future(train(t, n * each_s)) for n, t in enumerate(trainers)]
    await asyncio.sleep(asked["warm_up_s"])
    sys.stdout.write("begin\n")
    sys.stdout.flush()
    for page in pages:
        page.counting = True
    own = time.process_time()
    await asyncio.sleep(asked["seconds"])
    own = time.process_time() - own
    for page in pages:
        page.counting = False
    for task in work:
        task.cancel()
    assert all(task.cancelled() or not task.done() or not task.exception() for task in work)
    return {
        "delays_s": [delay for page in pages for delay in page.delays_s],
        "least_events": min(len(page.delays_s) for page in pages),
        "frames": sum(page.frames for page in pages),
        "bytes": sum(page.bytes for page in pages),
        "own_cpu_s": own,
    }


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(asyncio.run(crowd(json.loads(sys.stdin.readline()))))}\n")
    sys.stdout.flush()
    os._exit(0)  # two hundred sockets need no farewell
