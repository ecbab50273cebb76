"""What somebody sends who means harm: refused, and nothing of ours stands in the refusal."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from otf_core.dashboard import security
from otf_core.dashboard.security import CSP, HEADERS, MAX_BODY_BYTES
from tests.dashboard.bench import TOKEN, WATCH, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble

BEARER = f"Authorization: Bearer {TOKEN}"


async def raw(port: int, *lines: str, body: bytes = b"", whole: bool = True) -> bytes:
    """What comes back for bytes that no client would send; ``whole``: until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    answer = b""
    try:
        async with asyncio.timeout(10):
            while more := await reader.read(65536):
                answer += more
                if not whole:
                    break
    except ConnectionResetError:
        pass  # it hung up with bytes of ours unread
    finally:
        writer.transport.abort()
    return answer


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def bodies(answer: bytes) -> int:
    """How many answers there are on one connection."""
    return answer.count(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "evil.example@127.0.0.1.nip.io",
        "127.0.0.1@evil.example",
        "0x7f.1",
        "2130706433",
        "[::1",
        "a b",
        "\xff",
        "",
    ],
)
@in_loop
async def test_a_name_that_was_rebound_to_this_machine_gets_nothing(
    tmp_path: Path, host: str
) -> None:
    async with dashboard(tmp_path) as bench:
        for path in ("/", "/api/health", "/api/runs"):
            answer = await raw(
                bench.dashboard.port, f"GET {path} HTTP/1.1", f"Host: {host}", BEARER,
                "Connection: close",
            )  # fmt: skip
            assert status_of(answer) in (400, 403), (path, answer)
            assert TOKEN.encode() not in answer


@in_loop
async def test_two_hosts_or_none_are_refused(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        port = bench.dashboard.port
        close = "Connection: close"
        for hosts in ((), ("Host: localhost", "Host: evil.example"),
                      ("Host: evil.example", "Host: localhost")):  # fmt: skip
            answer = await raw(port, "GET /api/runs HTTP/1.1", *hosts, BEARER, close)
            assert status_of(answer) in (400, 403), hosts
        # A target that names a host of its own, as to a proxy.
        answer = await raw(port, "GET http://evil.example/ HTTP/1.1", "Host: localhost", close)
        assert status_of(answer) == 404
        answer = await raw(port, "CONNECT evil.example:80 HTTP/1.1", "Host: localhost", close)
        assert status_of(answer) in (400, 404, 405)


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: 5", "Content-Length: 60"),
        ("Transfer-Encoding: chunked",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding : chunked",),
        ("Content-Length: +5",),
        ("Content-Length: -5",),
        ("Content-Length: 0x5",),
        ("Content-Length: 5, 60",),
        ("Content-Length: \xb2",),
        ("X: a\rContent-Length: 60",),
    ],
)
@in_loop
async def test_a_second_request_cannot_be_hidden_in_a_first(
    tmp_path: Path, fields: tuple[str, ...]
) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        inner = (
            f"POST /api/sessions/sess-1/commands HTTP/1.1\r\nHost: localhost\r\n{BEARER}\r\n"
            'Content-Length: 15\r\n\r\n{"cmd":"pause"}'
        )
        answer = await raw(
            bench.dashboard.port, "POST /api/sessions/sess-1/commands HTTP/1.1", "Host: localhost",
            *fields, body=f"0\r\n\r\n{inner}".encode(),
        )  # fmt: skip
        assert status_of(answer) in (400, 401, 411, 501)
        assert bodies(answer) == 1, answer
        assert trainer.asked("pause") == []


@in_loop
async def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        port, host = bench.dashboard.port, "Host: localhost"
        post = "POST /api/sessions/s/commands HTTP/1.1"
        answer = await raw(port, post, host, BEARER, "Content-Length: 99999999999", whole=False)
        assert status_of(answer) == 413
        answer = await raw(port, post, host, BEARER, f"Content-Length: {MAX_BODY_BYTES + 1}",
                           whole=False)  # fmt: skip
        assert status_of(answer) == 413
        answer = await raw(port, post, host, BEARER, f"Content-Length: {'9' * 5000}", whole=False)
        assert status_of(answer) in (400, 413)
        many = [f"X{n}: a" for n in range(20_000)]
        for target, fields in (
            ("/", [f"X: {'a' * 200_000}"]),
            ("/", many),
            (f"/{'a' * 200_000}", []),
        ):
            answer = await raw(port, f"GET {target} HTTP/1.1", host, *fields)
            assert answer == b"" or status_of(answer) in (400, 414, 431)
        deep = b"[" * 400_000
        answer = await raw(port, post, host, BEARER, f"Content-Length: {len(deep)}",
                           "Connection: close", body=deep)  # fmt: skip
        assert status_of(answer) == 400
        assert b"no JSON" in answer


@in_loop
async def test_paths_lead_nowhere_however_they_are_written(tmp_path: Path) -> None:
    web, secret = tmp_path / "dist", tmp_path / "secret.txt"
    (web / "assets").mkdir(parents=True)
    (web / "index.html").write_text("<!doctype html><p>page")
    (web / "assets" / "out").symlink_to(tmp_path)
    (web / "assets" / "secret").symlink_to(secret)
    secret.write_text("secret")
    trainer = TrainerDouble(token=TOKEN, run_dir=str(tmp_path / "demo" / "digits"))
    trainer.begin()
    async with dashboard(tmp_path, web=web) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        steps = ("..", "%2e%2e", "%2E%2e", "%252e%252e", "..%00", "%c0%ae%c0%ae", "..%5c", ".%2e",
                 "%uff0e%uff0e")  # fmt: skip
        slashes = ("/", "%2f", "%252f", "%5c", "\\", "//")
        for step in steps:
            for slash in slashes:
                up = f"{step}{slash}"
                for path in (f"/{up}secret.txt", f"/assets/{up}{up}secret.txt",
                             f"/api/checkpoints/sess-1/{up}{up}secret.txt/file",
                             f"/api/checkpoints/{up}/secret.txt/file"):  # fmt: skip
                    answer = await raw(bench.dashboard.port, f"GET {path} HTTP/1.1",
                                       "Host: localhost", BEARER, "Connection: close")  # fmt: skip
                    assert status_of(answer) in (400, 404), path
                    assert b"\r\n\r\nsecret" not in answer
        for path in ("assets/out/secret.txt", "assets/secret", "assets/out", "built-from.txt/.."):
            answer = await bench.http.get(path)
            assert answer.text != "secret", path
            assert answer.status_code in (200, 404)


HOSTILE = '<img src=x onerror="alert(1)">\r\nSet-Cookie: a=b\u2028\x00";</script>'


@in_loop
async def test_hostile_names_stay_text_in_every_answer(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo" / "digits"
    (run_dir / "checkpoints").mkdir(parents=True)
    name = '1<img src=x onerror="a">;\r\nX-Evil: 1.ckpt'
    (run_dir / "checkpoints" / name).write_bytes(b"weights")
    trainer = TrainerDouble(HOSTILE, run_id=HOSTILE, project=HOSTILE, token=TOKEN,
                            run_dir=str(tmp_path / "demo" / HOSTILE.replace("/", "_")))  # fmt: skip
    good = TrainerDouble("good", token=TOKEN, run_dir=str(run_dir))
    trainer.begin()
    trainer.emit("trainStep", step=1, loss=1.0, metrics={HOSTILE: 1.0})
    trainer.emit("checkpoint_saved", id=HOSTILE, path=HOSTILE, step=1)
    good.begin()
    good.emit("checkpoint_saved", id="c", path=str(run_dir / "checkpoints" / name), step=1)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), good.on(bench.port):
        await bench.until_has(HOSTILE, 4)
        await bench.until_has("good", 3)
        for path in ("api/sessions", "api/runs", "api/sessions/%3Cimg%3E", "api/runs/<script>",
                     "<script>alert(1)</script>", "api/<script>"):  # fmt: skip
            answer = await bench.http.get(path)
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"
            json.loads(answer.content)
            assert "\r" not in answer.text.split("\n")[0]
            assert "set-cookie" not in answer.headers
        shown = (await bench.get("api/sessions"))["sessions"]
        assert HOSTILE in [session["session_id"] for session in shown]
        file = await bench.http.get("api/checkpoints/good/c/file")
        assert (file.status_code, file.content) == (200, b"weights")
        assert "x-evil" not in file.headers
        assert file.headers["content-disposition"].startswith("attachment")
        assert file.headers["content-type"] == "application/octet-stream"
        async with bench.page() as page:
            welcome = await page.enter()
            assert HOSTILE in [session["run_name"] for session in welcome["sessions"]]


@in_loop
async def test_every_answer_carries_our_headers_also_a_refusal(tmp_path: Path) -> None:
    async with dashboard(tmp_path, web=tmp_path) as bench:
        ask = bench.http.request
        answers = {
            200: await ask("GET", "api/runs"),
            401: await ask("GET", "api/runs", headers={"Authorization": "Bearer x"}),
            403: await ask("GET", "", headers={"Origin": "http://evil.example"}),
            404: await ask("GET", "nothing"),
            405: await ask("DELETE", "api/runs"),
            400: await ask("POST", "api/sessions/s/commands", content=b"{"),
            413: await ask("POST", "api/sessions/s/commands", content=b" " * (MAX_BODY_BYTES + 1)),
            503: await ask("GET", ""),
        }
        for status, answer in answers.items():
            assert answer.status_code == status
            for key, value in HEADERS.items():
                assert answer.headers[key] == value, (status, key)
            assert "unsafe" not in CSP
            assert "server" not in answer.headers
            assert "set-cookie" not in answer.headers
        assert answers[405].headers["allow"] in ("GET, HEAD", "HEAD, GET")
        assert answers[401].headers["www-authenticate"] == "Bearer"


@in_loop
async def test_a_foreign_page_opens_no_socket_whatever_token_it_has(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        for origin in ("http://evil.example", "null", "http://localhost:1", "https://["):
            with pytest.raises(InvalidStatus) as refused:
                async with bench.page(additional_headers={"Origin": origin}):
                    pass
            assert refused.value.response.status_code == 403


@in_loop
async def test_no_token_stands_in_a_log_or_a_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        texts = []
        for token in (TOKEN, WATCH, f"{TOKEN}x"):
            for path in (f"api/runs/{token}x", f"nothing?token={token}", "api/sessions/s/commands"):
                headers = {"Authorization": f"Bearer {token}"}
                answer = await bench.http.request("POST", path, headers=headers, content=b"[")
                texts.append(answer.text.replace(f"{path}", ""))
            async with bench.page() as page:
                await page.say({"token": token, "client": "x"})
                await page.socket.send("\ud800".encode("utf-8", "surrogatepass"), text=True)
        assert (await bench.command("sess-1", "pause", id="p")).status_code == 200
        out, err = capfd.readouterr()
        everything = [*texts, *bench.said, out, err]
        # What the test's own client notes of what it sends is not ours.
        everything += [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn")]
        for text in everything:
            assert TOKEN not in text
            assert WATCH not in text


@in_loop
async def test_garbage_on_the_sockets_of_pages_costs_only_their_sender(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    upgrade = (
        "GET /api/live HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )  # fmt: skip
    mask = b"\x00\x00\x00\x00"
    frames: dict[str, bytes] = {
        "a giant text": b"\x81\xff" + (1 << 40).to_bytes(8, "big") + mask,
        "over our limit": b"\x81\xff" + (2 << 20).to_bytes(8, "big") + mask + b"x" * 65536,
        "not masked": b"\x81\x02{}",
        "reserved bits": b"\xf1\x80" + mask,
        "no such opcode": b"\x83\x80" + mask,
        "a long ping": b"\x89\xfe\x01\x00" + mask + b"x" * 256,
        "binary first": b"\x82\x82" + mask + b"{}",
        "bad utf-8": b"\x81\x82" + mask + b"\xff\xfe",
        "cut in the middle": b"\x81\x8f" + mask + b'{"tok',
        "half a header": b"\x81",
        "a part without a beginning": b"\x80\x82" + mask + b"{}",
        "no frame at all": b"GET / HTTP/1.1\r\n\r\n",
    }
    async with dashboard(tmp_path) as bench, trainer.on(bench.port), bench.page() as page:
        await bench.until_has("sess-1", 2)
        await page.enter()
        live = bench.dashboard.live
        for what, frame in frames.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", bench.dashboard.port)
            writer.write("\r\n".join([*upgrade, "", ""]).encode() + frame)
            assert b" 101 " in await reader.readline(), what
            writer.transport.abort()
        trainer.train(1)
        trainer.emit("note", note_id="n", text="x", step=1)
        await page.until(lambda m: any(e["type"] == "note" for e in m.get("events", ())))
        assert (await bench.command("sess-1", "pause")).status_code == 200
        assert len(live._pages) == 1


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    access = security.Access("right")
    access.enter("right", "a")
    access.enter("wrong", "a")
    assert len(compared) == 4  # with both tokens, whichever fits
