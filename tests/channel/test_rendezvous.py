"""Where to dial: whose word is believed, and whom a run may be shown to."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from otf_core import rendezvous
from otf_core.rendezvous import Finder, Rendezvous, Target

OURS = os.getuid()
SAID = Rendezvous("127.0.0.1", 5000, "secret", os.getpid(), "http://127.0.0.1:80/")
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
TABLE = {"127.0.0.1": "0100007F", "0.0.0.0": "00000000", "10.0.0.1": "0100000A"}
TABLE_6 = {"::1": "0" * 24 + "01000000", "::": "0" * 32, "v4": "0" * 16 + "FFFF00000100007F"}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run")}


def proc_net(folder: Path, *rows: tuple[str, int, str, int]) -> Path:
    """A /proc/net with these (address, port, state, uid)."""
    folder.mkdir(exist_ok=True)
    tables = {"tcp": "", "tcp6": ""}
    for address, port, state, uid in rows:
        table = "tcp" if address in TABLE else "tcp6"
        local = f"{(TABLE | TABLE_6)[address]}:{port:04X}"
        tables[table] += f"   0: {local} 00000000:0000 {state} 0:0 00:0 00000000 {uid} 0 1\n"
    for table, content in tables.items():
        (folder / table).write_text(HEADER + content)
    return folder


def test_what_is_written_is_found_private_and_is_removed_by_its_owner_only(
    env: dict[str, str],
) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert rendezvous.find(file) == SAID
    other = Rendezvous("127.0.0.1", 6000, "other", os.getppid(), "http://127.0.0.1:81/")
    rendezvous.remove(other, file)
    assert rendezvous.find(file) == SAID
    rendezvous.write(other, file)
    assert rendezvous.find(file) == other
    assert [entry.name for entry in file.parent.iterdir()] == ["dashboard.json"]
    rendezvous.remove(other, file)
    rendezvous.remove(other, file)
    assert rendezvous.find(file) is None


def test_the_file_lies_in_the_runtime_folder_or_where_the_system_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert rendezvous.path({"XDG_RUNTIME_DIR": "/r"}) == Path("/r/otf/dashboard.json")
    monkeypatch.setattr("platformdirs.user_runtime_dir", lambda: str(tmp_path))
    assert rendezvous.path({"XDG_RUNTIME_DIR": ""}) == tmp_path / "otf" / "dashboard.json"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    rendezvous.write(SAID)
    assert rendezvous.find() == SAID
    rendezvous.remove(SAID)
    assert rendezvous.find() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o700 | 0o001])
def test_a_file_that_others_may_touch_is_not_believed(env: dict[str, str], mode: int) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    file.chmod(mode)
    assert rendezvous.find(file) is None


def test_a_folder_that_others_may_write_is_neither_read_nor_written(env: dict[str, str]) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    file.parent.chmod(0o722)
    assert rendezvous.find(file) is None
    with pytest.raises(PermissionError, match=r"mode 722\); allowed: 700"):
        rendezvous.write(SAID, file)


def test_a_link_in_place_of_file_or_folder_is_not_followed(
    env: dict[str, str], tmp_path: Path
) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    target = tmp_path / "elsewhere.json"
    file.rename(target)
    file.symlink_to(target)
    assert rendezvous.find(file) is None
    file.unlink()
    file.parent.rmdir()
    (tmp_path / "real").mkdir(mode=0o700)
    file.parent.symlink_to(tmp_path / "real")
    assert rendezvous.find(file) is None
    with pytest.raises(PermissionError, match="is no folder"):
        rendezvous.write(SAID, file)


def test_what_another_user_wrote_is_not_believed(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    monkeypatch.setattr(os, "getuid", lambda: OURS + 1)
    assert rendezvous.find(file) is None
    with pytest.raises(PermissionError, match=f"belongs to user {OURS}; allowed: {OURS + 1}"):
        rendezvous.write(SAID, file)
    monkeypatch.setattr(rendezvous, "_folder_problem", lambda _: None)
    assert rendezvous.find(file) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"host": 5}', b"{" * 100_000])
def test_a_file_that_says_nothing_sensible_is_none(env: dict[str, str], content: bytes) -> None:
    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    file.write_bytes(content)
    assert rendezvous.find(file) is None


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**70])
def test_a_dashboard_whose_process_is_gone_is_ignored(env: dict[str, str], pid: int) -> None:
    file = rendezvous.path(env)
    rendezvous.write(Rendezvous("127.0.0.1", 1, "t", os.getpid(), "u"), file)
    text = file.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{pid}')
    file.write_text(text)
    assert rendezvous.find(file) is None


def test_a_process_that_we_may_not_signal_is_alive(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    monkeypatch.setattr(os, "kill", refuse)
    assert rendezvous.find(file) == SAID


def test_a_write_that_fails_leaves_no_half_file(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "no space"
        raise OSError(msg)

    file = rendezvous.path(env)
    rendezvous.write(SAID, file)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        rendezvous.write(SAID, file)
    assert [entry.name for entry in file.parent.iterdir()] == ["dashboard.json"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.7:65535", ("10.0.0.7", 65535)),
        ("[::1]:47621", ("::1", 47621)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert rendezvous.parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":1", "h:", "h:0", "h:65536", "h:x", "h:-1", "h:²"])
def test_what_is_no_address_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: auto, spawn, stdio, off, or host:port"):
        rendezvous.parse_address(text)


def test_the_environment_says_it_where_the_script_leaves_it_open() -> None:
    assert rendezvous.chosen("auto", {}) == "auto"
    assert rendezvous.chosen("auto", {"OTF_DASHBOARD": "stdio"}) == "stdio"
    assert rendezvous.chosen("off", {"OTF_DASHBOARD": "stdio"}) == "off"


def test_ours_comes_before_the_legacy_one(env: dict[str, str], tmp_path: Path) -> None:
    net = proc_net(tmp_path / "net", ("127.0.0.1", 47621, "0A", OURS))
    finder = Finder(env=env, proc_net=net)
    legacy = Target("127.0.0.1", 47621, None, legacy=True, name="127.0.0.1:47621")
    assert finder.next_targets() == [legacy]
    rendezvous.write(SAID, rendezvous.path(env))
    ours = Target("127.0.0.1", 5000, "secret", legacy=False, name="127.0.0.1:5000")
    assert finder.next_targets() == [ours, legacy]
    assert finder.still_good(ours)
    assert finder.still_good(legacy)
    proc_net(tmp_path / "net", ("127.0.0.1", 47621, "0A", OURS + 1))
    assert finder.still_good(ours)
    assert not finder.still_good(legacy)


@pytest.mark.parametrize(
    ("rows", "served"),
    [
        ([], False),
        ([("127.0.0.1", 47621, "0A", OURS)], True),
        ([("::", 47621, "0A", OURS)], True),
        ([("v4", 47621, "0A", OURS)], True),
        ([("127.0.0.1", 47621, "0A", OURS + 1)], False),
        ([("0.0.0.0", 47621, "0A", OURS + 1)], False),
        ([("::1", 47621, "0A", OURS + 1)], False),
        ([("v4", 47621, "0A", OURS + 1)], False),
        ([("127.0.0.1", 47621, "0A", OURS), ("::", 47621, "0A", OURS + 1)], False),
        ([("127.0.0.1", 47621, "01", OURS)], False),
        ([("10.0.0.1", 47621, "0A", OURS)], False),
        ([("127.0.0.1", 47620, "0A", OURS)], False),
    ],
)
def test_a_legacy_dashboard_is_dialled_only_if_its_socket_is_ours(
    env: dict[str, str], tmp_path: Path, rows: list[tuple[str, int, str, int]], served: bool
) -> None:
    finder = Finder(env=env, proc_net=proc_net(tmp_path / "net", *rows))
    assert bool(finder.next_targets()) is served


def test_where_nobody_can_tell_whose_a_socket_is_loopback_is_dialled(
    env: dict[str, str], tmp_path: Path
) -> None:
    finder = Finder(env=env, proc_net=tmp_path / "nothing")
    assert [t.legacy for t in finder.next_targets()] == [True]


def test_the_real_table_names_our_listening_socket_as_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert rendezvous.listeners(port) == (True, [OURS])
    assert rendezvous.listeners(port) == (True, [])


def test_the_environment_turns_legacy_off_moves_its_port_and_gives_a_token(
    env: dict[str, str], tmp_path: Path
) -> None:
    net = proc_net(tmp_path / "net", ("127.0.0.1", 4000, "0A", OURS))
    more = {**env, "ONTHEFLY_DASHBOARD_PORT": "4000", "OTF_TOKEN": "t"}
    assert Finder(env=more, proc_net=net).next_targets() == [
        Target("127.0.0.1", 4000, "t", legacy=True, name="127.0.0.1:4000")
    ]
    assert Finder(env={**more, "OTF_LEGACY": "OFF"}, proc_net=net).next_targets() == []
    with pytest.raises(ValueError, match="port of 1-65535"):
        Finder(env={**env, "ONTHEFLY_DASHBOARD_PORT": "many"})


@pytest.mark.parametrize("where", ["off", "stdio"])
def test_nobody_is_dialled_where_nobody_is_wanted(env: dict[str, str], where: str) -> None:
    rendezvous.write(SAID, rendezvous.path(env))
    assert Finder(where, env).next_targets() == []


def test_an_address_is_the_only_target_and_legacy_there_on_our_loopback_only(
    env: dict[str, str], tmp_path: Path
) -> None:
    net = proc_net(tmp_path / "net")
    rendezvous.write(SAID, rendezvous.path(env))

    def only(where: str, **more: str) -> Target:
        (target,) = Finder(where, {**env, **more}, proc_net=net).next_targets()
        return target

    assert only("10.1.2.3:9") == Target("10.1.2.3", 9, None, legacy=False, name="10.1.2.3:9")
    assert only("[::1]:9") == Target("::1", 9, None, legacy=True, name="[::1]:9")
    assert only("localhost:9").legacy
    assert not only("elsewhere:9").legacy
    assert not only("localhost:9", OTF_LEGACY="off").legacy
    assert only("127.0.0.1:5000").token == "secret"
    assert only("127.0.0.1:5000", OTF_TOKEN="mine").token == "mine"
    assert only("127.0.0.1:5001").token is None
    proc_net(tmp_path / "net", ("127.0.0.1", 9, "0A", OURS + 1))
    assert not only("localhost:9").legacy
