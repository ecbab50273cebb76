"""Who may come in.

Rule 1: everything under /api but health and the OpenAPI document needs a token, compared in
constant time: the owner's, or the read-only one that is made from it and cannot be turned back.
Rule 2: a Host that we were not told of is refused, so that a foreign name that resolves to this
machine (DNS rebinding) gets nothing; an Origin, if sent, must be the Host or a name that the owner
has allowed. What a proxy says of itself in headers is not believed.
Rule 3: a trainer gets the token only if its process belongs to our user. Anyone on the machine can
dial the control port, and the hub's first request carries the token.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import math
import os
import socket
import sys
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from otf_core.rendezvous import is_loopback, read_only_token

MAX_WRONG: Final = 20  # wrong tokens of one peer within WINDOW_S; a person mistypes fewer
WINDOW_S: Final = 60.0
MAX_PEERS: Final = 1024
MAX_LABEL: Final = 80
MAX_BODY_BYTES: Final = 1024 * 1024
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def token_fits(asked: object, token: str) -> bool:
    """Constant-time comparison; anything that is no string does not fit."""
    return isinstance(asked, str) and hmac.compare_digest(asked.encode(), token.encode())


def bearer(header: str | None) -> str | None:
    """The token of an ``Authorization: Bearer`` header."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


class Role(enum.Enum):
    """What a token is good for."""

    OWNER = "owner"
    WATCHER = "watcher"


class TooManyError(Exception):
    """This peer has sent too many wrong tokens; its next one is looked at after ``retry_s``."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"Too many wrong tokens from this address; ask again in {retry_s:.0f} s.")
        self.retry_s = retry_s


class Access:
    """Whose token it is, and how often a peer may ask with a wrong one; event loop only.

    A peer that has shown a right token once is heard however many wrong ones come from its address,
    so that a stranger behind the same proxy cannot lock its users out.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner, self._watcher = token, read_only_token(token)
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()

    def enter(self, asked: object, address: str) -> Role | None:
        """The role of a token, None for one that is missing or wrong.

        Raises:
            TooManyError: it was not looked at.
        """
        if not isinstance(asked, str) or not asked:
            return None  # a guess is what has been given
        peer = _peer_of(address)
        wait_s = self._wait_s(peer)
        if wait_s and peer not in self._known:
            raise TooManyError(wait_s)
        is_owner, is_watcher = token_fits(asked, self._owner), token_fits(asked, self._watcher)
        if is_owner or is_watcher:
            _keep(self._known, peer, None)
            return Role.OWNER if is_owner else Role.WATCHER
        if wait_s:
            raise TooManyError(wait_s)
        times = self._wrong.get(peer) or deque(maxlen=MAX_WRONG)
        times.append(self._clock())
        _keep(self._wrong, peer, times)
        return None

    def _wait_s(self, peer: str) -> float:
        """Until the oldest of too many leaves the window, in whole seconds; 0 if nothing is."""
        times = self._wrong.get(peer)
        if times is None or len(times) < MAX_WRONG:
            return 0.0
        return float(max(0, math.ceil(times[0] + WINDOW_S - self._clock())))


def _keep(table: OrderedDict[str, Any], key: str, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_PEERS:
        table.popitem(last=False)


def _peer_of(address: str) -> str:
    """An address; of IPv6 its network, since one machine has all the addresses of a /64."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def label(said: object) -> str | None:
    """What a client calls itself, fit to be shown to others: one short line; None for nothing."""
    if not isinstance(said, str):
        return None
    # Controls, and marks that turn the direction of the text around them.
    plain = "".join(
        " " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c
        for c in said[: 4 * MAX_LABEL]
    )
    return " ".join(plain.split())[:MAX_LABEL].rstrip() or None


class HostCheck:
    """Which Host and Origin headers are ours."""

    def __init__(self, bound_host: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._is_public = not is_loopback(bound_host)
        own = {bound_host.lower()}
        if self._is_public:
            own.add(socket.gethostname().lower())
        self._names = _LOCAL_NAMES | own | self._allowed

    def problem(self, host: str | None, origin: str | None) -> str | None:
        """Why a request is refused, or None."""
        name = _name_of(f"//{host or ''}")
        if not name or not (name in self._names or (self._is_public and _is_address(name))):
            return (
                f"Host {_shown(host)} is not this dashboard's; allowed: "
                f"{', '.join(sorted(self._names))} and what --allow-host names."
            )
        if origin is not None and not self._is_own(origin, host or ""):
            return (
                f"Origin {_shown(origin)} is not this dashboard; allowed: the page that it serves, "
                "and that of a name in --allow-host."
            )
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        # A proxy may send on its own Host; the browser's Origin is the name that the owner gave.
        return parts.netloc.lower() == host.lower() or _name_of(origin) in self._allowed


def _shown(header: str | None) -> str:
    return repr((header or "")[:100])


def _name_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """An address cannot be rebound, so it needs no list."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def peer_is_ours(connection: socket.socket, *, tables: tuple[Path, ...] = _TABLES) -> bool:
    """Whether a connected peer on this machine belongs to our user or to root.

    Linux says so in /proc/net/tcp. Where that cannot be known, whoever comes by loopback is taken.
    """
    try:
        peer, local = connection.getpeername(), connection.getsockname()
    except OSError:
        return False  # gone already
    if not is_loopback(str(peer[0])):
        return False
    if not sys.platform.startswith("linux"):
        return True
    wanted = {(_hex_of(peer, v6), _hex_of(local, v6)) for v6 in (False, True)}
    readable = False
    for table in (*tables, *tables):  # a row can be missed while the kernel's table changes
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        readable = True
        for row in rows:
            cells = row.split()
            if len(cells) > 7 and (cells[1], cells[2]) in wanted:
                return int(cells[7]) in (0, os.getuid())
    return not readable


def _hex_of(address: tuple[object, ...], v6: bool) -> str:  # noqa: FBT001 -- two tables, two shapes
    """An address as the kernel prints it: words of four bytes in the machine's order."""
    ip = ipaddress.ip_address(str(address[0]))
    packed = ip.packed
    if v6 and isinstance(ip, ipaddress.IPv4Address):
        packed = b"\x00" * 10 + b"\xff\xff" + packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{int(str(address[1])):04X}"
