"""Where to dial: the file in which a dashboard says where it listens, and what else may listen.

Rule 1: the file holds a token, so its folder is 0700 and it is 0600; a file that is not ours, or
that others can read or write, is not believed.
Rule 2: the published extension has no token. It is served on loopback only and, where the system
tells whose a listening socket is (Linux), only if it is ours.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import ipaddress
import os
import stat
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

LEGACY_HOST: Final = "127.0.0.1"
LEGACY_PORT: Final = 47621
PROC_NET: Final = Path("/proc/net")
MAX_FILE_BYTES: Final = 64 * 1024  # ours has some 300
_LISTENING: Final = "0A"  # TCP_LISTEN in the "st" column of /proc/net/tcp
_NOWHERE: Final = ("off", "stdio")


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """What a running dashboard says of itself.

    Attributes:
        host, port: where trainers dial.
        token: what both sides must know.
        pid: the dashboard's process.
        url: of its page, without the token.
        cert_sha256: fingerprint of the certificate that the page is served with, None for http.
    """

    host: str
    port: int
    token: str
    pid: int
    url: str
    cert_sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """One place to dial.

    Attributes:
        token: what the other side must know, None if it need not know any.
        legacy: whether the published extension may be served there.
        name: for messages.
    """

    host: str
    port: int
    token: str | None
    legacy: bool
    name: str


def read_only_token(token: str) -> str:
    """The token of those who may watch: made from the owner's, which it does not give away."""
    made = hmac.digest(token.encode(), b"otf read-only", "sha256")
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def path(env: Mapping[str, str] = os.environ) -> Path:
    """Where the file lies: ``$XDG_RUNTIME_DIR/otf/dashboard.json``, else the user's runtime dir."""
    folder = env.get("XDG_RUNTIME_DIR")
    if not folder:
        import platformdirs  # here, since most systems have the variable

        # It warns that the variable is not set, which is no news to somebody who trains.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = platformdirs.user_runtime_dir()
    return Path(folder) / "otf" / "dashboard.json"


def write(rendezvous: Rendezvous, file: Path | None = None) -> None:
    """Say where we listen; replaces what another dashboard left. Raises OSError."""
    file = file or path()
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    problem = _folder_problem(file.parent)
    if problem:
        raise PermissionError(problem)
    file.parent.chmod(0o700)
    # mkstemp makes the file 0600 and under a name of its own.
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=".dashboard-")
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(rendezvous))
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove(rendezvous: Rendezvous, file: Path | None = None) -> None:
    """Take the file away, if it is still ours (same pid); another dashboard's is left."""
    file = file or path()
    found = _read(file)
    if found is not None and found.pid == rendezvous.pid:
        file.unlink(missing_ok=True)


def find(file: Path | None = None) -> Rendezvous | None:
    """The running dashboard's word, or None: no file, not ours, not readable, its process gone."""
    found = _read(file or path())
    return found if found is not None and _alive(found.pid) else None


def _read(file: Path) -> Rendezvous | None:
    try:
        if _folder_problem(file.parent):
            return None
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as opened:
        status = os.fstat(opened.fileno())
        private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
        if not private or status.st_uid != os.getuid():
            return None
        content = opened.read(MAX_FILE_BYTES)
    try:
        return msgspec.json.decode(content, type=Rendezvous)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _folder_problem(folder: Path) -> str | None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is no folder; a dashboard says there where it listens"
    if status.st_uid != os.getuid():
        return f"{folder} belongs to user {status.st_uid}; allowed: {os.getuid()}, who we are"
    if status.st_mode & 0o022:
        return f"{folder} is writable by others (mode {status.st_mode & 0o777:o}); allowed: 700"
    return None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's process: it is there
    return True


def parse_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. Raises ValueError that says what is allowed."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        msg = (
            f"dashboard was asked to be {text!r}; allowed: auto, spawn, stdio, off, or host:port "
            "with a port of 1-65535"
        )
        raise ValueError(msg)
    return host, int(port)


def chosen(dashboard: str, env: Mapping[str, str] = os.environ) -> str:
    """What ``dashboard`` means here: OTF_DASHBOARD says it where the script has left it open."""
    return env.get("OTF_DASHBOARD") or "auto" if dashboard == "auto" else dashboard


class Finder:
    """Says where to dial, anew each time it is asked; otf-writer.

    Args:
        dashboard: "auto" or "host:port"; "spawn" is looked for like "auto".
        env: OTF_DASHBOARD, OTF_TOKEN, ONTHEFLY_DASHBOARD_PORT, OTF_LEGACY, XDG_RUNTIME_DIR.
        proc_net: where the system lists its sockets; a test has its own.

    Raises:
        ValueError: no such address, no such port.
    """

    def __init__(
        self,
        dashboard: str = "auto",
        env: Mapping[str, str] = os.environ,
        *,
        proc_net: Path = PROC_NET,
    ) -> None:
        self._file = path(env)
        self._proc_net = proc_net
        self._token = env.get("OTF_TOKEN") or None
        self._legacy = env.get("OTF_LEGACY", "").strip().lower() != "off"
        where = chosen(dashboard, env)
        self._nowhere = where in _NOWHERE
        auto = self._nowhere or where in ("auto", "spawn")
        self._address = None if auto else parse_address(where)
        port = env.get("ONTHEFLY_DASHBOARD_PORT") or str(LEGACY_PORT)
        self._legacy_port = parse_address(f"{LEGACY_HOST}:{port}")[1]

    def next_targets(self) -> list[Target]:
        """Where to dial now, the best first; empty when nobody can be there."""
        if self._nowhere:
            return []
        found = find(self._file)
        if self._address is not None:
            return [self._asked_for(self._address, found)]
        targets = []
        if found is not None:
            name = _name(found.host, found.port)
            targets.append(Target(found.host, found.port, found.token, legacy=False, name=name))
        if self._legacy and self._listener_is_ours(self._legacy_port, must_exist=True):
            host, port = LEGACY_HOST, self._legacy_port
            targets.append(Target(host, port, self._token, legacy=True, name=_name(host, port)))
        return targets

    def still_good(self, target: Target) -> bool:
        """Asked once more when connected: the listener may have changed hands meanwhile."""
        return not target.legacy or self._listener_is_ours(target.port, must_exist=False)

    def _asked_for(self, address: tuple[str, int], found: Rendezvous | None) -> Target:
        host, port = address
        token = self._token
        if token is None and found is not None and (found.host, found.port) == address:
            token = found.token
        legacy = self._legacy and is_loopback(host) and self._listener_is_ours(port)
        return Target(host, port, token, legacy=legacy, name=_name(host, port))

    def _listener_is_ours(self, port: int, *, must_exist: bool = False) -> bool:
        """Whether all who could take a connection to this port are us; True where none can tell.

        Args:
            must_exist: whether nobody listening means no; saves a dial.
        """
        known, uids = listeners(port, self._proc_net)
        if not known:
            return True
        return all(uid == os.getuid() for uid in uids) and bool(uids or not must_exist)


def listeners(port: int, proc_net: Path = PROC_NET) -> tuple[bool, list[int]]:
    """Whether the system tells, and the user ids of those that listen on this port on loopback."""
    uids: list[int] = []
    known = False
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc_net / table).read_text("ascii").splitlines()
        except OSError:
            continue
        known = True
        uids += _listening_uids(lines[1:], port)
    return known, uids


def _listening_uids(rows: Iterable[str], port: int) -> Iterable[int]:
    for row in rows:
        columns = row.split()
        address, _, row_port = columns[1].partition(":")
        if columns[3] != _LISTENING or int(row_port, 16) != port:
            continue
        # The kernel prints 32-bit words in the machine's byte order; on a little-endian one the
        # first byte of the address comes last in its word.
        words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
        where = ipaddress.ip_address(b"".join(words))
        if isinstance(where, ipaddress.IPv6Address):
            where = where.ipv4_mapped or where
        if where.is_loopback or where.is_unspecified:
            yield int(columns[7])


def is_loopback(host: str) -> bool:
    """Whether this name can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
