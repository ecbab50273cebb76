"""Starts and ends the dashboard's process: hub, journals, HTTP, rendezvous file.

Rule 1: stdout carries one line, the URL with its token; everything else goes to stderr.
Rule 2: one dashboard is in the rendezvous file, the last that was started; an earlier one keeps the
trainers that it has, and at its end leaves the file alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import importlib.metadata
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Final

import uvicorn

from otf_core import rendezvous
from otf_core.dashboard.api import WEB, make_app
from otf_core.dashboard.hub import Hub, HubTiming, announce
from otf_core.dashboard.journals import Journals
from otf_core.dashboard.live import Live
from otf_core.dashboard.security import HostCheck
from otf_core.dashboard.store import Store

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3
CONTROL_HOST: Final = "127.0.0.1"
MAX_WS_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``otf dashboard`` was asked."""

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int = 0
    folder: Path = Path("otf_runs")
    allow_hosts: tuple[str, ...] = ()


class Server(uvicorn.Server):
    """Ends when told; signals are handled by ``serve``, so that they end it with exit 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's signal handlers alone."""
        yield


class Dashboard:
    """All parts of one dashboard; event loop only. Tests run it without a process of its own."""

    def __init__(
        self,
        options: Options,
        *,
        token: str | None = None,
        timing: HubTiming = HubTiming(),  # noqa: B008 -- frozen
        say: Callable[[str], None] = announce,
        web: Path = WEB,
    ) -> None:
        self.options = options
        self.token = token or secrets.token_urlsafe(32)
        self.version = importlib.metadata.version("otf-lightning")
        self.store = Store(runs_dir=options.folder)
        self.journals = Journals(options.folder, self.store, say)
        self.hub = Hub(
            self.store, self.token, timing=timing, say=say,
            load_journal=self.journals.load, load_run=self.journals.load_run,
        )  # fmt: skip
        check = HostCheck(options.host, options.allow_hosts)
        self.live = Live(self.hub, check, self.version)
        self.app = make_app(self.hub, self.live, check, self.version, web=web)
        self.port = self.control_port = 0
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Of the page, without the token."""
        host = self.options.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        shown = f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
        return f"http://{shown}:{self.port}/"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Dashboard]:
        """Serve inside the block.

        Raises:
            OSError: a port is taken.
        """
        options = self.options
        listener = _listen(options.host, options.port)
        self.port = int(listener.getsockname()[1])
        try:
            self.control_port = await self.hub.start(CONTROL_HOST, options.control_port)
        except OSError:
            listener.close()
            raise
        config = uvicorn.Config(
            self.app, lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, ws_max_size=MAX_WS_BYTES, ws_max_queue=32,
            ws_per_message_deflate=False,  # a page is mostly on this machine
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = Server(config)
        loop = asyncio.get_running_loop()
        serving = loop.create_task(self._server.serve(sockets=[listener]))
        self.journals.find()
        reading = loop.create_task(self.journals.load_all())
        try:
            yield self
        finally:
            reading.cancel()
            self._server.should_exit = True
            await self.hub.close()
            await asyncio.gather(serving, reading, return_exceptions=True)
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)  # noqa: FBT003 -- the socket module's own signature
    return listener


async def _serve(options: Options) -> int:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, ended.set)
    dashboard = Dashboard(options)
    try:
        async with dashboard.running():
            said = rendezvous.Rendezvous(
                CONTROL_HOST, dashboard.control_port, dashboard.token, os.getpid(), dashboard.url
            )
            rendezvous.write(said)
            try:
                sys.stdout.write(f"{dashboard.url}#token={dashboard.token}\n")
                sys.stdout.flush()
                await ended.wait()
            finally:
                rendezvous.remove(said)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "the port is taken; --port 0 takes any free one" if taken else str(error)
        announce(f"cannot start: {why}")
        return EXIT_REFUSED
    return EXIT_OK


def run(options: Options) -> int:
    """Serve until SIGINT or SIGTERM; the exit status. Main thread only.

    Whether another dashboard runs is the caller's question; this one takes over the rendezvous
    file.
    """
    return asyncio.run(_serve(options))
