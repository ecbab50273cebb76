"""Starts and ends the dashboard's process: hub, journals, HTTP, rendezvous file.

Rule 1: stdout carries the URL with its token, and with ``share`` a second one for those who watch;
everything else goes to stderr, without a token.
Rule 2: one dashboard is in the rendezvous file, the last that was started; an earlier one keeps the
trainers that it has, and at its end leaves the file alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import os
import secrets
import signal
import socket
import ssl
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
from otf_core.dashboard.security import Access, HostCheck
from otf_core.dashboard.store import Store

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 3
CONTROL_HOST: Final = "127.0.0.1"
MAX_WS_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``otf dashboard`` was asked.

    Attributes:
        allow_hosts: names under which a proxy in front serves it.
        root_path: the prefix that such a proxy leaves on the paths, "/some/where"; "" for none.
        tls: certificate and key, PEM; None for http.
        share: whether the link that only watches is printed as well.
    """

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int = 0
    folder: Path = Path("otf_runs")
    allow_hosts: tuple[str, ...] = ()
    root_path: str = ""
    tls: tuple[Path, Path] | None = None
    share: bool = False


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
        access = Access(self.token)
        self.live = Live(self.hub, check, access, self.version, lambda: built_from(web))
        self.app = make_app(
            self.hub, self.live, check, access, self.version,
            web=web, root_path=options.root_path,
        )  # fmt: skip
        self.port = self.control_port = 0
        self.cert_sha256: str | None = None
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Of the page for this machine, without the token."""
        local = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        return self._url(local.get(self.options.host, self.options.host))

    @property
    def url_for_others(self) -> str:
        """Of the page for other machines; the same where only this one is served."""
        everywhere = self.options.host in ("0.0.0.0", "::", "")
        return self._url(socket.gethostname() if everywhere else self.options.host)

    def _url(self, host: str) -> str:
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{'https' if self.options.tls else 'http'}://{shown}:{self.port}/"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Dashboard]:
        """Serve inside the block.

        Raises:
            OSError: a port is taken, or certificate and key are of no use.
        """
        options = self.options
        tls = None
        if options.tls is not None:
            tls = tls_context(*options.tls)
            self.cert_sha256 = fingerprint(options.tls[0])
        listener = _listen(options.host, options.port)
        self.port = int(listener.getsockname()[1])
        try:
            self.control_port = await self.hub.start(CONTROL_HOST, options.control_port)
        except OSError:
            listener.close()
            raise
        config = uvicorn.Config(
            self.app, lifespan="off", log_config=None, access_log=False, server_header=False,
            log_level="warning",  # below it, frames are logged, and the first is a token
            proxy_headers=False, ws_max_size=MAX_WS_BYTES, ws_max_queue=32,
            ws_per_message_deflate=False,  # a page is mostly on this machine
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        config.load()
        config.ssl = tls
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


def built_from(web: Path) -> str | None:
    """What the page there was built from, as its build says; None if it was not built."""
    try:
        return (web / "built-from.txt").read_text("ascii").strip()[:64] or None
    except (OSError, UnicodeDecodeError):
        return None


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What a server with this certificate speaks.

    Raises:
        OSError: they cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # never ask on the terminal
    except (OSError, ValueError) as error:
        msg = (
            f"{cert} and {key} are no certificate and key that can be used ({error}); "
            "allowed: PEM files that belong together, the key without a password"
        )
        raise OSError(msg) from error
    return context


def fingerprint(cert: Path) -> str:
    """SHA-256 of the first certificate in a PEM file, as hex."""
    head, mark, _ = cert.read_text("latin-1").partition("-----END CERTIFICATE-----")
    pem = head[head.index("-----BEGIN CERTIFICATE-----") :] + mark
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


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
                CONTROL_HOST, dashboard.control_port, dashboard.token, os.getpid(), dashboard.url,
                dashboard.cert_sha256,
            )  # fmt: skip
            rendezvous.write(said)
            try:
                _print_links(dashboard)
                await ended.wait()
            finally:
                rendezvous.remove(said)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "the port is taken; --port 0 takes any free one" if taken else str(error)
        announce(f"cannot start: {why}")
        return EXIT_REFUSED
    return EXIT_OK


def _print_links(dashboard: Dashboard) -> None:
    others = dashboard.url_for_others
    if others != dashboard.url:
        announce(f"other machines reach it at {others}")
    sys.stdout.write(f"{dashboard.url}#token={dashboard.token}\n")
    if dashboard.options.share:
        announce("the second link only watches")
        watch = rendezvous.read_only_token(dashboard.token)
        sys.stdout.write(f"{others}#token={watch}\n")
    sys.stdout.flush()


def run(options: Options) -> int:
    """Serve until SIGINT or SIGTERM; the exit status. Main thread only.

    Whether another dashboard runs is the caller's question; this one takes over the rendezvous
    file.
    """
    return asyncio.run(_serve(options))
