"""The notifier: a thread that tells webhooks and the desktop what has become of a run.

Rule 1: whoever emits an event hands a line over and goes on; nobody waits for a network.
Rule 2: what cannot be told is given up after a bounded time, and said once for each target.
Rule 3: an address that answers with another one is not followed: it would be sent the secrets.
"""

from __future__ import annotations

import http.client
import os
import platform
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from otf_core import __version__
from otf_core.telemetry.notices import LOCAL, TYPES, Target, notice_of

CLOSE_S: Final = 10.0  # so long the end of a run waits for what is still to be told
WAIT_S: Final = 1.0  # before the second try, then doubled
MAX_WAITING: Final = 100
PER_MINUTE: Final = 20  # to each target; a run that stalls again and again tells no more
DESKTOP_S: Final = 5.0
_HEADS: Final = tuple(f'{{"type":"{name}"'.encode() for name in sorted(TYPES))


class NotToldError(Exception):
    """A target was not reached; what it says shows no secret."""


class Notifier:
    """Of one session.

    Args:
        about: project, host and pid of the run.
        say: told once for each target that is not reached; any thread.
        send, show: reach a webhook and the desktop, or raise NotToldError.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        about: Mapping[str, Any],
        say: Callable[[str], None],
        send: Callable[[Target, bytes], None] | None = None,
        show: Callable[[str, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets, self._about, self._say = tuple(targets), dict(about), say
        self._send, self._show = send or post, show or on_desktop
        self._clock = clock
        self._lines: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._due, self._closing = threading.Event(), threading.Event()
        self._until_s = float("inf")
        self._thread: threading.Thread | None = None
        self._said: set[tuple[int, str]] = set()
        self._told: dict[int, deque[float]] = {}

    def hear(self, _seq: int, line: bytes, droppable: bool) -> None:  # noqa: FBT001 -- as a sink takes it
        """One event as it is sent; a sink of the emitter, any thread."""
        if not droppable and self._thread is not None and line.startswith(_HEADS):
            self._lines.append(line)
            self._due.set()

    def start(self) -> None:
        """Start the thread, where there is anybody to tell."""
        if self._targets:
            self._thread = threading.Thread(target=self._run, name="otf-notifier", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Tell what is left, as far as the time goes; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._until_s = self._clock() + timeout_s
        self._closing.set()
        self._due.set()
        thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            while self._lines:
                self._tell(msgspec.json.decode(self._lines.popleft()))
            if self._closing.is_set():
                return

    def _tell(self, event: Mapping[str, Any]) -> None:
        notice = notice_of(event, self._about)
        if notice is None:
            return
        for place, target in enumerate(self._targets):
            if notice["what"] not in target.on:
                continue
            if self._too_often(place):
                self._say_once(place, f"more than {PER_MINUTE} a minute: some are left out")
                continue
            try:
                self._reach(target, notice)
            except NotToldError as error:
                self._say_once(place, str(error))
            except Exception as error:  # noqa: BLE001 -- border of our thread: the next is told all the same
                self._say_once(place, type(error).__name__)

    def _reach(self, target: Target, notice: Mapping[str, Any]) -> None:
        if target.url is None:
            self._show(notice["title"], notice["text"])
            return
        body = msgspec.json.encode(target.body(notice))
        wait_s = WAIT_S
        for tries_left in reversed(range(target.tries)):
            try:
                self._send(target, body)
            except NotToldError:
                left_s = self._until_s - self._clock()
                if tries_left == 0 or left_s <= 0:
                    raise
                # The end of the run cuts a wait short, and leaves the try.
                self._closing.wait(min(wait_s, left_s))
                wait_s *= 2
            else:
                return

    def _too_often(self, place: int) -> bool:
        told, now_s = self._told.setdefault(place, deque()), self._clock()
        while told and told[0] <= now_s - 60:
            told.popleft()
        if len(told) >= PER_MINUTE:
            return True
        told.append(now_s)
        return False

    def _say_once(self, place: int, why: str) -> None:
        if (place, why) not in self._said:
            self._said.add((place, why))
            self._say(f"{self._targets[place].shown} was not notified: {why}")


def post(target: Target, body: bytes) -> None:
    """One POST of JSON.

    Raises:
        NotToldError: there was no answer in time, or one that is not 2xx.
    """
    assert target.url is not None
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"otf/{__version__}",
        **target.headers,
    }
    request = urllib.request.Request(target.url, data=body, headers=headers, method="POST")
    handlers: list[Any] = [_Stays()]
    if urlsplit(target.url).hostname in LOCAL:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=target.timeout_s):
            return
    except urllib.error.HTTPError as error:
        with error:
            msg = f"HTTP {error.code}"
        raise NotToldError(msg) from None
    except urllib.error.URLError as error:
        raise NotToldError(_reason(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotToldError(_reason(error)) from None


class _Stays(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Not followed: what it raises has the code."""


def _reason(error: Any) -> str:
    """The kind of failure alone: a text could have the address in it."""
    if isinstance(error, TimeoutError):
        return "it has not answered in time"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__ if isinstance(error, BaseException) else "it was not reached"


def on_desktop(title: str, text: str) -> None:
    """A notification of this machine's desktop.

    Raises:
        NotToldError: there is no program for it, or it has failed.
    """
    if platform.system() == "Darwin":
        script = "on run argv\ndisplay notification (item 2 of argv) with title (item 1 of argv)"
        command = ["osascript", "-e", f"{script}\nend run", title, text]
    else:
        command = ["notify-send", "--app-name=otf", "--", title, text]
    program = shutil.which(command[0])
    if program is None:
        msg = f"{command[0]} is not installed"
        raise NotToldError(msg)
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=DESKTOP_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToldError(_reason(error)) from None
    if done.returncode:
        msg = f"{command[0]} ended with {done.returncode}"
        raise NotToldError(msg)
