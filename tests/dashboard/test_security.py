"""Who gets in: headers, tokens, and whose process dials."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from otf_core.dashboard.security import HostCheck, bearer, peer_is_ours, token_fits


def test_a_token_fits_only_itself() -> None:
    assert token_fits("abc", "abc")
    for other in ("abd", "ab", "", "abcd", None, 1, ["abc"], "äbc"):
        assert not token_fits(other, "abc")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer a", "a"),
        ("bearer  a ", "a"),
        ("Basic a", None),
        ("Bearer", None),
        ("", None),
        (None, None),
    ],
)
def test_a_bearer_header_gives_its_token(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


def test_an_address_is_let_in_only_where_we_listen_to_all() -> None:
    public, local = HostCheck("0.0.0.0"), HostCheck("127.0.0.1")
    assert public.problem("192.168.0.7:80", None) is None
    assert local.problem("192.168.0.7:80", None) is not None
    assert public.problem("evil.example", None) is not None
    assert local.problem("[::1]:80", None) is None
    assert HostCheck("my.host").problem("MY.host", "http://my.HOST") is None
    assert local.problem("127.0.0.1:1", "http://127.0.0.1:2") is not None
    assert local.problem("127.0.0.1:1", "null") is not None
    assert "evil.example" in str(public.problem("evil.example", None))


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def _table(tmp_path: Path, connection: socket.socket, uid: int) -> tuple[Path]:
    def shown(address: tuple[str, int]) -> str:
        return f"0100007F:{address[1]:04X}"

    path = tmp_path / "tcp"
    peer, local = connection.getpeername(), connection.getsockname()
    row = f"   1: {shown(peer)} {shown(local)} 01 00000000:00000000 00:00000000 00000000 {uid} 0 1"
    path.write_text(f"  sl  local_address rem_address\n{row}\n")
    return (path,)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel tells on Linux only")
def test_a_process_of_another_user_is_no_trainer_of_ours(tmp_path: Path) -> None:
    client, accepted = _pair()
    with client, accepted:
        assert peer_is_ours(accepted)
        for uid, ours in ((os.getuid(), True), (0, True), (os.getuid() + 12345, False)):
            assert peer_is_ours(accepted, tables=_table(tmp_path, accepted, uid)) is ours
        (tmp_path / "empty").write_text("header\n")
        assert not peer_is_ours(accepted, tables=(tmp_path / "empty",))
        assert peer_is_ours(accepted, tables=(tmp_path / "absent",))  # loopback, nobody tells
