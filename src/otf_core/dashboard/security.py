"""Who may come in.

Rule 1: everything under /api but health and the OpenAPI document needs the token, compared in
constant time.
Rule 2: a Host that we were not told of is refused, so that a foreign name that resolves to this
machine (DNS rebinding) gets nothing; an Origin, if sent, must be the Host.
Rule 3: a trainer gets the token only if its process belongs to our user. Anyone on the machine can
dial the control port, and the hub's first request carries the token.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from otf_core.rendezvous import is_loopback

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


class HostCheck:
    """Which Host and Origin headers are ours."""

    def __init__(self, bound_host: str, allowed: Iterable[str] = ()) -> None:
        self._names = _LOCAL_NAMES | {bound_host.lower()} | {name.lower() for name in allowed}
        self._is_public = not is_loopback(bound_host)

    def problem(self, host: str | None, origin: str | None) -> str | None:
        """Why a request is refused, or None."""
        name = _name_of(host or "")
        if not name or not (name in self._names or (self._is_public and _is_address(name))):
            return (
                f"Host {host!r} is not this dashboard's; allowed: {', '.join(sorted(self._names))}"
                " and what --allow-host names."
            )
        if origin is not None and urlsplit(origin).netloc.lower() != (host or "").lower():
            return f"Origin {origin!r} is not this dashboard; allowed: the page that it serves."
        return None


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
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
