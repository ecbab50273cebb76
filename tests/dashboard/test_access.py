"""Who may come in, by which way, and what those may who only watch. Real uvicorn, real sockets."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from otf_core.client import Client, NoDashboardError, RefusedError
from otf_core.dashboard import security
from otf_core.dashboard.openapi import ENDPOINTS
from otf_core.dashboard.security import Access, HostCheck, Role, TooManyError, label
from otf_core.dashboard.serve import fingerprint, tls_context
from otf_core.rendezvous import read_only_token
from tests.dashboard import tls
from tests.dashboard.bench import TOKEN, WATCH, Bench, dashboard, in_loop
from tests.dashboard.proxies import keeping, proxy, stripping
from tests.dashboard.trainer_double import TrainerDouble

WATCHER = {"Authorization": f"Bearer {WATCH}"}


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# -- those who watch -------------------------------------------------------------------------------


def test_the_token_of_a_watcher_is_made_from_the_owners_and_is_another() -> None:
    assert read_only_token(TOKEN) == WATCH
    assert read_only_token(TOKEN + "x") != WATCH
    assert TOKEN not in WATCH
    assert len(WATCH) == 43  # 256 bits


@in_loop
async def test_a_watcher_sees_everything_and_does_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo" / "digits"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "3-ring.ckpt").write_bytes(b"weights")
    trainer = TrainerDouble(token=TOKEN, run_dir=str(run_dir))
    trainer.begin()
    trainer.train(3)
    trainer.saved(3)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 6)
        places = {"session_id": "sess-1", "run": "digits", "request_id": "p1", "ckpt_id": "3-ring"}
        for endpoint in ENDPOINTS:
            path = endpoint.path.format(**places)
            body = {"cmd": "pause"} if endpoint.body else None
            answer = await bench.http.request(endpoint.method, path, headers=WATCHER, json=body)
            assert answer.status_code == (403 if endpoint.owner else 200), path
            assert TOKEN not in answer.text + str(answer.headers)
            if endpoint.owner:
                assert answer.json()["code"] == "unauthorized"
                assert "only watches" in answer.json()["detail"]
        assert {e.name for e in ENDPOINTS if e.owner} == {"command", "checkpoint_file"}
        assert all(e.owner for e in ENDPOINTS if e.method != "GET")
        assert trainer.asked("pause") == []


@in_loop
async def test_the_command_of_a_watcher_is_refused_to_its_page_alone(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with (
        dashboard(tmp_path) as bench,
        trainer.on(bench.port),
        bench.page() as owner,
        bench.page() as watcher,
    ):
        await bench.until_has("sess-1", 2)
        assert (await owner.enter())["read_only"] is False
        assert (await watcher.enter(WATCH))["read_only"] is True
        await watcher.say(
            {"kind": "command", "session_id": "sess-1", "id": "w1", "cmd": "pause", "payload": {}}
        )
        refused = (await watcher.until(lambda m: m["kind"] == "receipt"))["receipt"]
        assert (refused["id"], refused["state"]) == ("w1", "refused")
        assert refused["reply"]["code"] == "unauthorized"
        await bench.command("sess-1", "note", id="o1", payload={"text": "x"})
        for page in (owner, watcher):
            seen = await page.until(lambda m: m.get("receipt", {}).get("state") == "applied")
            assert seen["receipt"]["id"] == "o1"
        assert all(m.get("receipt", {}).get("id") != "w1" for m in owner.seen)
        assert trainer.asked("pause") == []
        assert TOKEN not in str(watcher.seen)


@in_loop
async def test_everybody_sees_who_did_it(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with (
        dashboard(tmp_path) as bench,
        trainer.on(bench.port),
        bench.page() as named,
        bench.page() as unnamed,
        bench.page() as onlooker,
    ):
        await bench.until_has("sess-1", 2)
        assert (await named.enter(client="Firefox on\n  a phone\u202e"))["client"] == (
            "Firefox on a phone"
        )
        assert (await unnamed.enter(client=7))["client"] == "page 1"
        await onlooker.enter(WATCH)
        note = {"kind": "command", "session_id": "sess-1", "cmd": "note", "payload": {"text": "x"}}
        await named.say({**note, "id": "n1"})
        await unnamed.say({**note, "id": "n2"})
        text = {"payload": {"text": "x"}}
        long = "me@here" + "e" * 200
        await bench.command("sess-1", "note", id="n3", by="cli", client=long, **text)
        await bench.command("sess-1", "note", id="n4", **text)
        who: dict[str, Any] = {}
        while len(who) < 4:
            said = (await onlooker.until(lambda m: m["kind"] == "receipt"))["receipt"]
            if said["state"] == "applied":
                who[said["id"]] = (said["by"], said["client"])
        assert who == {
            "n1": ("page", "Firefox on a phone"),
            "n2": ("page", "page 1"),
            "n3": ("cli", long[:80]),
            "n4": ("rest", None),
        }
        refused = await bench.command("sess-1", "note", client=["me"])
        assert (refused.status_code, refused.json()["field"]) == (400, "client")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("me@here", "me@here"),
        ("  a\tb\r\n c ", "a b c"),
        ("\x1b[31mred\x00", "[31mred"),
        ("\u202eevil\u2066\u200b", "evil"),
        ("<img onerror=x>", "<img onerror=x>"),  # the page puts text in as text
        ("x" * 10_000, "x" * 80),
        ("Ünï 手", "Ünï 手"),
        ("", None),
        (" \n", None),
        (None, None),
        (7, None),
    ],
)
def test_a_client_is_called_what_fits_a_line(said: object, shown: str | None) -> None:
    assert label(said) == shown


@in_loop
async def test_a_page_is_told_what_it_would_be_if_it_were_loaded_now(tmp_path: Path) -> None:
    web = tmp_path / "dist"
    web.mkdir()
    async with dashboard(tmp_path, web=web) as bench:
        async with bench.page() as page:
            assert (await page.enter())["build"] is None
        (web / "built-from.txt").write_text("abc123\n")
        async with bench.page() as page:
            assert (await page.enter())["build"] == "abc123"


# -- wrong tokens ----------------------------------------------------------------------------------


def test_after_too_many_wrong_tokens_a_peer_has_to_wait() -> None:
    clock = Clock()
    access = Access("right", clock=clock)
    for _ in range(security.MAX_WRONG):
        assert access.enter("wrong", "10.0.0.1") is None
        clock.now_s += 1
    with pytest.raises(TooManyError) as refused:
        access.enter("right", "10.0.0.1")  # not even looked at
    assert refused.value.retry_s == security.WINDOW_S - security.MAX_WRONG
    assert access.enter("right", "10.0.0.2") is Role.OWNER
    assert access.enter(read_only_token("right"), "10.0.0.2") is Role.WATCHER
    clock.now_s += refused.value.retry_s - 0.5
    with pytest.raises(TooManyError):
        access.enter("right", "10.0.0.1")
    clock.now_s += 0.5
    assert access.enter("right", "10.0.0.1") is Role.OWNER


def test_a_peer_that_is_known_is_not_locked_out_by_others_at_its_address() -> None:
    clock = Clock()
    access = Access("right", clock=clock)
    assert access.enter("right", "10.0.0.1") is Role.OWNER
    for _ in range(security.MAX_WRONG):
        access.enter("wrong", "10.0.0.1")
    with pytest.raises(TooManyError):
        access.enter("wrong", "10.0.0.1")
    assert access.enter("right", "10.0.0.1") is Role.OWNER


def test_no_token_is_no_guess_and_does_not_count() -> None:
    access = Access("right", clock=Clock())
    for missing in (None, "", 7, ["right"], {}):
        for _ in range(2 * security.MAX_WRONG):
            assert access.enter(missing, "10.0.0.1") is None
    assert access.enter("right", "10.0.0.1") is Role.OWNER


def test_the_addresses_of_one_ipv6_network_are_one_peer_and_a_mapped_one_is_its_ipv4() -> None:
    access = Access("right", clock=Clock())
    for n in range(security.MAX_WRONG):
        access.enter("wrong", f"2001:db8::{n:x}")
    with pytest.raises(TooManyError):
        access.enter("right", "2001:db8::ffff:1")
    assert access.enter("right", "2001:db8:0:1::1") is Role.OWNER
    for _ in range(security.MAX_WRONG):
        access.enter("wrong", "::ffff:10.0.0.9")
    with pytest.raises(TooManyError):
        access.enter("right", "10.0.0.9")


def test_what_is_remembered_of_peers_is_bounded() -> None:
    access = Access("right", clock=Clock())
    for n in range(3 * security.MAX_PEERS):
        address = f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
        access.enter("wrong", address)
        access.enter("right", address)
    assert len(access._wrong) == len(access._known) == security.MAX_PEERS


@in_loop
async def test_too_many_wrong_tokens_are_answered_so_on_both_ways_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_WRONG", 3)
    async with dashboard(tmp_path) as bench:
        wrong = {"Authorization": "Bearer wrong"}
        for _ in range(2):
            assert (await bench.http.get("api/runs", headers=wrong)).status_code == 401
        async with bench.page() as page:
            assert await _closed(page, "wrong") == 4401
        answer = await bench.http.get("api/runs", headers=wrong)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert answer.json()["retry_after_s"] == int(answer.headers["retry-after"])
        assert (await bench.http.get("api/runs")).status_code == 429  # nor is a right one heard
        async with bench.page() as page:
            assert await _closed(page, TOKEN) == 4429
        assert (await bench.http.get("api/health")).status_code == 200


async def _closed(page: Any, token: str) -> int:
    await page.say({"token": token})
    with pytest.raises(ConnectionClosed) as closed:
        await page.socket.recv()
    assert closed.value.rcvd is not None
    return int(closed.value.rcvd.code)


# -- by other ways ---------------------------------------------------------------------------------


async def _works(bench: Bench, at: str, **page: Any) -> None:
    """Page, REST and WebSocket, as a browser asks for them that is shown ``at``."""
    origin = at[: at.index("/", 8)]
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": origin}
    async with httpx.AsyncClient(base_url=at, trust_env=False, verify=False) as http:
        assert (await http.get("")).text == "<!doctype html><p>page"
        assert (await http.get("a.js")).text == "1"
        assert (await http.get("api/sessions", headers=headers)).json() == {"sessions": []}
        foreign = {**headers, "Origin": "https://evil.example"}
        assert (await http.get("api/sessions", headers=foreign)).status_code == 403
    async with bench.page(at=at, origin=origin, **page) as socket:
        assert (await socket.enter())["sessions"] == []


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """The files of a page."""
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><p>page")
    (folder / "a.js").write_text("1")
    return folder


@in_loop
async def test_over_ssh_l_the_page_has_another_port(tmp_path: Path, web: Path) -> None:
    async with dashboard(tmp_path, web=web) as bench, proxy(bench.dashboard.port, keeping) as port:
        assert port != bench.dashboard.port
        await _works(bench, f"http://localhost:{port}/")


@pytest.mark.parametrize("kind", ["strips", "keeps"])
@in_loop
async def test_the_page_works_under_a_prefix(tmp_path: Path, web: Path, kind: str) -> None:
    prefix = "/user/me/proxy/8000"
    rewrite = stripping(prefix) if kind == "strips" else keeping
    root_path = "" if kind == "strips" else prefix
    async with (
        dashboard(tmp_path, web=web, root_path=root_path) as bench,
        proxy(bench.dashboard.port, rewrite) as port,
    ):
        await _works(bench, f"http://localhost:{port}{prefix}/")
        if kind == "keeps":
            async with httpx.AsyncClient(trust_env=False) as http:
                bare = await http.get(f"http://localhost:{port}{prefix}")
            assert (bare.status_code, bare.headers["location"]) == (307, "8000/")
            await _works(bench, bench.dashboard.url)  # and without it


@in_loop
async def test_a_proxy_of_another_name_has_to_be_named(tmp_path: Path) -> None:
    async with dashboard(tmp_path, allow_hosts=("hub.example",)) as bench:
        for headers, status in (
            ({"Host": "hub.example", "Origin": "https://hub.example"}, 200),
            # One that sends on its own Host, as nginx does unless it is told otherwise.
            ({"Origin": "https://hub.example"}, 200),
            ({"Origin": "https://hub.example:8443"}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Host": "other.example", "Origin": "https://hub.example"}, 403),
            ({"X-Forwarded-Host": "evil.example", "Host": "evil.example"}, 403),
        ):
            answer = await bench.http.get("api/runs", headers=headers)
            assert answer.status_code == status, headers


@pytest.mark.parametrize(
    "origin",
    ["http://[", "null", "", "file://", "javascript:0", "http://", "//127.0.0.1:1", "\xff"],
)
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    assert HostCheck("127.0.0.1", ["a.b"]).problem("127.0.0.1:1", origin) is not None


@in_loop
async def test_with_a_certificate_all_is_tls(tmp_path: Path, web: Path) -> None:
    cert, key = tls.pair(tmp_path)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    async with dashboard(tmp_path, web=web, tls=(cert, key)) as bench:
        url = bench.dashboard.url
        assert url.startswith("https://127.0.0.1:")
        await _works(bench, url, ssl=unchecked)
        known = Client(url, TOKEN, cert_sha256=bench.dashboard.cert_sha256)
        assert await asyncio.to_thread(known.runs) == []
        other = Client(url, TOKEN, cert_sha256="0" * 64)
        with pytest.raises(NoDashboardError, match="certificate is another one"):
            await asyncio.to_thread(other.runs)
        with pytest.raises(NoDashboardError, match="certificate"):
            await asyncio.to_thread(Client(url, TOKEN).runs)  # nobody vouches for it
        with pytest.raises(NoDashboardError):
            await asyncio.to_thread(Client(url.replace("https", "http"), TOKEN).runs)
        watching = Client(url, WATCH, cert_sha256=fingerprint(cert))
        with pytest.raises(RefusedError, match="only watches"):
            await asyncio.to_thread(watching.send, "sess-1", "pause")


def test_a_certificate_of_no_use_is_refused_and_never_asks_for_a_password(tmp_path: Path) -> None:
    cert, key = tls.pair(tmp_path)
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("-----BEGIN CERTIFICATE-----\n")
    for bad in ((cert, cert), (nothing, key), (tmp_path / "absent.pem", key), (tmp_path, key)):
        with pytest.raises(OSError, match="no certificate and key that can be used"):
            tls_context(*bad)
    assert tls_context(cert, key).minimum_version >= ssl.TLSVersion.TLSv1_2


@in_loop
async def test_a_message_that_is_not_understood_is_answered_and_costs_nothing_else(
    tmp_path: Path,
) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 2)
        await page.enter()
        command = {"kind": "command", "session_id": "sess-1"}
        odd: list[Any] = [
            {"kind": "from the future", "x": 1}, {"kind": 7}, {}, [], "text", None, command,
            {**command, "cmd": 5}, {"kind": "subscribe"}, {"kind": "subscribe", "session_id": "no"},
        ]  # fmt: skip
        for message in odd:
            await page.say(message)
        await page.socket.send("no json {")
        await page.socket.send(b"\x00\xff")
        await page.say({"kind": "ping", "t": 1})
        await page.until(lambda m: m["kind"] == "pong")
        answers = [m for m in page.seen if m["kind"] == "error"]
        assert len(answers) == len(odd) + 2
        assert {m["code"] for m in answers} == {"bad_payload"}
        for n, bad in enumerate(({"payload": [1]}, {"id": "x" * 300}, {"cmd": "nonsense"})):
            await page.say({**command, "cmd": "pause", "id": f"b{n}", **bad})
            said = await page.until(lambda m: m.get("receipt", {}).get("state") == "refused")
            assert len(msgspec.json.encode(said)) < 3000
        assert trainer.asked("pause") == []
