"""Tickets: how a notebook shows the page without keeping its token; event loop only.

A notebook keeps what it shows, so whatever its output holds is shared with the file. A ticket is
worth nothing a minute after it was made, and nothing after it was used; its use is an answer of
303 whose Location carries the token behind ``#``, which no server and no file sees again.

Rule: the page may be framed by others than itself only where its address names a frame, which
comes with a ticket; then by pages of this machine. There are no cookies, and the token is kept for
one tab, so that a page framed by a stranger has none.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

LIFE_S: Final = 60.0
MAX_KEPT: Final = 1024
ITSELF: Final = "frame-ancestors 'self'"
# A notebook's server on this machine; and VS Code, whose schemes no page of the web can have.
NOTEBOOKS: Final = (
    "http://localhost:* http://127.0.0.1:* https://localhost:* https://127.0.0.1:* "
    "vscode-webview: vscode-file:"
)


@dataclasses.dataclass
class _Ticket:
    token: str | None
    frame: str
    ends_s: float


class Tickets:
    """Those that were given out.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, _Ticket] = OrderedDict()
        self._frames: OrderedDict[str, None] = OrderedDict()

    def issue(self, token: str) -> str:
        """A ticket for who has shown this token."""
        ticket, frame = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
        self._kept[ticket] = _Ticket(token, frame, self._clock() + LIFE_S)
        self._frames[frame] = None
        for table in (self._kept, self._frames):
            if len(table) > MAX_KEPT:
                table.popitem(last=False)
        return ticket

    def use(self, ticket: str) -> str | None:
        """Where it leads, from the folder of the page; None for one that is none of ours.

        One that was used, or is too old, leads to the page without its token: a tab that has shown
        it before has kept that.
        """
        found = self._kept.get(ticket)
        if found is None:
            return None
        token, found.token = found.token, None
        fresh = token is not None and self._clock() < found.ends_s
        return f"?frame={found.frame}" + (f"#token={token}" if fresh else "")

    def policy(self, csp: str, frame: str | None) -> str:
        """The page's policy where its address names this frame."""
        if frame is None or frame not in self._frames:
            return csp
        return csp.replace(ITSELF, f"{ITSELF} {NOTEBOOKS}")
