"""A dashboard with real sockets, and hands to hold it by: waits are for events, never for time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from otf_core.dashboard.api import WEB
from otf_core.dashboard.hub import HubTiming
from otf_core.dashboard.serve import Dashboard, Options
from otf_core.dashboard.store import Session
from otf_core.rendezvous import read_only_token

TOKEN = "s3cret"
WATCH = read_only_token(TOKEN)
FAST = HubTiming(hello_wait_s=0.05, tick_s=0.02)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A coroutine as a test; pytest needs its parameters."""
    import functools

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(40):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


class Bench:
    """A running dashboard and a client of its API."""

    def __init__(self, dashboard: Dashboard, http: httpx.AsyncClient, said: list[str]) -> None:
        self.dashboard, self.http, self.said = dashboard, http, said
        self.store, self.hub, self.port = dashboard.store, dashboard.hub, dashboard.control_port

    async def until(self, fits: Callable[[], bool]) -> None:
        """Wait until a change in the store, or a receipt, makes this true."""
        happened = asyncio.Event()

        def watch(*_: Any) -> None:
            happened.set()

        self.store.watchers.add(watch)
        self.hub.receipt_watchers.add(watch)
        try:
            async with asyncio.timeout(10):
                while not fits():
                    happened.clear()
                    await happened.wait()
        finally:
            self.store.watchers.discard(watch)
            self.hub.receipt_watchers.discard(watch)

    async def until_has(self, session_id: str, seq: int) -> Session:
        """Wait until all events up to a number are there."""
        await self.until(lambda: self._contiguous(session_id) >= seq)
        return self.store.sessions[session_id]

    def _contiguous(self, session_id: str) -> int:
        session = self.store.sessions.get(session_id)
        return session.have.contiguous if session is not None else 0

    async def until_connected(self, session_id: str, *, connected: bool = True) -> None:
        def fits() -> bool:
            session = self.store.sessions.get(session_id)
            return session is not None and session.connected is connected

        await self.until(fits)

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def command(self, session_id: str, cmd: str, **body: Any) -> httpx.Response:
        body = {"cmd": cmd, "payload": {}, **body}
        return await self.http.post(f"api/sessions/{session_id}/commands", json=body)

    @contextlib.asynccontextmanager
    async def page(self, *, at: str | None = None, **options: Any) -> AsyncIterator[Page]:
        """A page's socket; ``at`` is the page's address where it is another than our own."""
        url = (at or self.dashboard.url).replace("http", "ws", 1) + "api/live"
        # A page that is left with messages unread closes at once all the same.
        asked = {"max_size": None, "max_queue": None, "proxy": None, **options}
        async with connect(url, **asked) as socket:
            yield Page(socket)


class Page:
    """A page's socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    async def say(self, message: dict[str, Any]) -> None:
        await self.socket.send(msgspec.json.encode(message).decode())

    async def enter(self, token: str = TOKEN, **more: Any) -> dict[str, Any]:
        await self.say({"token": token, **more})
        return await self.until(lambda m: m["kind"] == "welcome")

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read until a message fits."""
        async with asyncio.timeout(15):
            while True:
                message: dict[str, Any] = msgspec.json.decode(await self.socket.recv())
                self.seen.append(message)
                if fits(message):
                    return message

    def events(self) -> list[dict[str, Any]]:
        return [e for m in self.seen if m["kind"] == "events" for e in m["events"]]


@contextlib.asynccontextmanager
async def dashboard(
    folder: Path, *, timing: HubTiming = FAST, web: Path = WEB, **options: Any
) -> AsyncIterator[Bench]:
    """A dashboard that runs inside the block."""
    said: list[str] = []
    made = Dashboard(
        Options(folder=folder, **options), token=TOKEN, timing=timing, say=said.append, web=web
    )
    async with made.running():
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            base_url=made.url, headers=headers, timeout=15, trust_env=False
        ) as http:
            yield Bench(made, http, said)


Wait = Callable[[], Awaitable[None]]
