"""REST: the document, the answers, and who is let in. Real uvicorn, real sockets."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from starlette.routing import Route

from otf_core.dashboard.api import make_app
from otf_core.dashboard.openapi import ENDPOINTS, document
from otf_core.dashboard.security import CSP, MAX_BODY_BYTES
from tests.dashboard.bench import TOKEN, Bench, dashboard, in_loop
from tests.dashboard.trainer_double import TrainerDouble


def fits(answer: httpx.Response, path: str, method: str = "get") -> Any:
    """The answer's body, after it has been held against the document."""
    api = document("0")
    operation = api["paths"][path][method]
    described = operation["responses"][str(answer.status_code)]["content"]
    schema = described["application/json"].get("schema", {})
    body = answer.json()
    jsonschema.validate(body, schema | {"components": api["components"]})
    return body


@in_loop
async def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        d = bench.dashboard
        prefix: Any = make_app(d.hub, d.live, d.live.check, d.live.access, d.version)
        routes = [
            r for r in prefix._app._app.routes if isinstance(r, Route) and r.path[:5] == "/api/"
        ]
        served = {(m, r.path) for r in routes for m in r.methods or () if m != "HEAD"}
        api = await bench.get("api/openapi.json")
        said = {(m.upper(), path) for path, item in api["paths"].items() for m in item}
        assert served == said == {(e.method, e.path) for e in ENDPOINTS}
        jsonschema.Draft202012Validator.check_schema({"$defs": api["components"]["schemas"]})


@in_loop
async def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(60)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 62)
        get, post = bench.http.get, bench.command
        fits(await get("api/health"), "/api/health")
        assert fits(await get("api/sessions"), "/api/sessions")["sessions"][0]["step"] == 60
        fits(await get("api/sessions/sess-1"), "/api/sessions/{session_id}")
        fits(await get("api/sessions/nobody"), "/api/sessions/{session_id}")
        assert fits(await get("api/runs"), "/api/runs")["runs"][0]["run_id"] == "digits"
        run = fits(await get("api/runs/digits"), "/api/runs/{run}")
        assert run["metrics"] == ["loss", "lr", "train_loss", "val_loss"]
        fits(await get("api/runs/nobody"), "/api/runs/{run}")
        fits(await get("api/runs/digits?project=other"), "/api/runs/{run}")
        found = fits(await get("api/runs/digits/metrics?names=loss"), "/api/runs/{run}/metrics")
        assert found["total"] == 60
        assert set(found["columns"]) == {"event_seq", "step", "ts", "session", "loss"}
        fits(await get("api/runs/digits/metrics?points=x"), "/api/runs/{run}/metrics")
        found = fits(await get("api/runs/digits/events"), "/api/runs/{run}/events")
        assert [e["type"] for e in found["events"]] == ["session_started", "newRun"]
        events = "/api/sessions/{session_id}/events"
        found = fits(await get("api/sessions/sess-1/events?types=trainStep&after=60"), events)
        assert found["events"] == trainer.events[60:]
        commands = "/api/sessions/{session_id}/commands"
        fits(await post("sess-1", "pause", id="p1"), commands, "post")
        lookup = "/api/sessions/{session_id}/commands/{request_id}"
        said = fits(await get("api/sessions/sess-1/commands/p1"), lookup)
        assert (said["state"], said["reply"]["ok"]) == ("answered", True)
        said = fits(await get("api/sessions/sess-1/commands/other"), lookup)
        assert said == {"id": "other", "state": "unknown", "reply": None}
        refusals = [
            (await post("sess-1", "set_param", payload={"path": "lr", "value": -1}), 400),
            (await post("sess-1", "merge", payload={"parents": ["a", "b"]}), 409),
            (await post("nobody", "merge"), 404),
            (await post("sess-1", "nonsense"), 400),
            (await post("sess-1", "pause", wait_s=-1), 400),
            (await post("sess-1", "pause", payload=[1]), 400),
            (await post("sess-1", "pause", by="page"), 400),
        ]
        for answer, status in refusals:
            assert answer.status_code == status
            assert fits(answer, commands, "post")["ok"] is False
        trainer.holding = True
        pended = await post("sess-1", "resume", wait_s=0, id="r1")
        assert fits(pended, commands, "post") == {"id": "r1", "pending": True}


@in_loop
async def test_without_the_token_nothing_is_told_and_nothing_is_done(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_connected("sess-1")
        for endpoint in ENDPOINTS:
            path = endpoint.path.replace("{session_id}", "sess-1").replace("{run}", "digits")
            for header in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
                headers = {"Authorization": header} if header else {"Authorization": ""}
                answer = await bench.http.request(endpoint.method, path, headers=headers)
                if endpoint.public:
                    assert answer.status_code == 200
                else:
                    assert answer.status_code == 401, (path, header)
                    assert answer.json()["code"] == "unauthorized"
        assert trainer.asked("pause") == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "hub.example"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "hub.example", "Origin": "https://hub.example"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
@in_loop
async def test_a_foreign_host_or_origin_is_refused(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with dashboard(tmp_path, allow_hosts=("hub.example",)) as bench:
        for path in ("api/sessions", "api/health"):
            assert (await bench.http.get(path, headers=headers)).status_code == status


@in_loop
async def test_every_answer_carries_the_strict_policy(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        for path in ("", "api/health", "api/nothing", "nothing.js"):
            answer = await bench.http.get(path)
            assert answer.headers["content-security-policy"] == CSP
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "server" not in answer.headers


@in_loop
async def test_a_body_has_a_bound(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        url = "api/sessions/x/commands"
        big = await bench.http.post(url, content=b"x" * (MAX_BODY_BYTES + 1))
        assert big.status_code == 413
        fits(big, "/api/sessions/{session_id}/commands", "post")

        async def endless() -> Any:
            yield b"x"

        assert (await bench.http.post(url, content=endless())).status_code == 400
        for content in (b"", b"[]", b"\xff", b'{"cmd": 1}', b"null"):
            assert (await bench.http.post(url, content=content)).status_code == 400


@in_loop
async def test_an_event_that_is_waited_for_comes_at_once(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 2)
        assert (await bench.get("api/sessions/sess-1/events?after=2"))["events"] == []
        watchers = len(bench.store.watchers)
        import asyncio

        asked = asyncio.create_task(
            bench.get("api/sessions/sess-1/events?after=2&wait_s=30&types=note,log")
        )
        while len(bench.store.watchers) == watchers:
            await asyncio.sleep(0)
        trainer.train(1)
        trainer.emit("note", note_id="n", text="x", step=1)
        assert [e["type"] for e in (await asked)["events"]] == ["note"]
        assert len(bench.store.watchers) == watchers


async def _saved(bench: Bench, trainer: TrainerDouble, path: str, ckpt_id: str) -> int:
    event = trainer.emit("checkpoint_saved", id=ckpt_id, path=path, step=1)
    await bench.until_has("sess-1", event["event_seq"])
    answer = await bench.http.get(f"api/checkpoints/sess-1/{ckpt_id}/file")
    return answer.status_code


@in_loop
async def test_only_a_checkpoint_of_the_run_can_be_fetched(tmp_path: Path) -> None:
    runs, outside = tmp_path / "otf_runs", tmp_path / "secret.ckpt"
    folder = runs / "demo" / "digits"
    (folder / "checkpoints").mkdir(parents=True)
    outside.write_bytes(b"secret")
    good = folder / "checkpoints" / "1-manual.ckpt"
    good.write_bytes(b"weights" * 1000)
    (folder / "checkpoints" / "link.ckpt").symlink_to(outside)
    (runs / "demo" / "other" / "checkpoints").mkdir(parents=True)
    neighbour = runs / "demo" / "other" / "checkpoints" / "1.ckpt"
    neighbour.write_bytes(b"theirs")
    for run_dir in (str(folder), None):
        trainer = TrainerDouble(token=TOKEN, run_dir=run_dir)
        trainer.begin()
        async with dashboard(runs) as bench, trainer.on(bench.port):
            await bench.until_has("sess-1", 2)
            assert (await bench.http.get("api/checkpoints/sess-1/good/file")).status_code == 404
            assert await _saved(bench, trainer, str(good), "good") == 200
            answer = await bench.http.get("api/checkpoints/sess-1/good/file")
            assert answer.content == good.read_bytes()
            assert answer.headers["content-type"] == "application/octet-stream"
            checkpoints = folder / "checkpoints"
            bad = [
                str(outside),
                str(checkpoints / ".." / ".." / ".." / ".." / "secret.ckpt"),
                str(checkpoints / "link.ckpt"),
                str(checkpoints),
                str(checkpoints / "absent.ckpt"),
                "/etc/passwd",
                "/proc/self/environ",
                "\x00",
            ]
            if run_dir:
                bad.append(str(neighbour))
            for n, path in enumerate(bad):
                assert await _saved(bench, trainer, path, f"bad{n}") == 404, path
            for path in ("..%2f..%2fsecret.ckpt", "good%2f..%2f..", "%2e%2e", "good/../x"):
                answer = await bench.http.get(f"api/checkpoints/sess-1/{path}/file")
                assert answer.status_code == 404


@in_loop
async def test_the_page_is_served_from_its_folder_only(tmp_path: Path) -> None:
    web, secret = tmp_path / "dist", tmp_path / "secret.txt"
    (web / "assets").mkdir(parents=True)
    (web / "index.html").write_text("<!doctype html><p>page")
    (web / "assets" / "a.js").write_text("1")
    secret.write_text("secret")
    (web / "link.txt").symlink_to(secret)
    async with dashboard(tmp_path, web=web) as bench:
        page = await bench.http.get("")
        assert (page.status_code, page.text) == (200, "<!doctype html><p>page")
        script = await bench.http.get("assets/a.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for path in ("link.txt", "assets", "assets/", "nothing"):
            assert (await bench.http.get(path)).status_code == 404, path
        host = bench.http.base_url.host
        for raw in ("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//etc/passwd"):
            with socket.create_connection((host, bench.dashboard.port)) as plain:
                assert b" 404 " in await _raw(plain, raw), raw


async def _raw(plain: socket.socket, path: str) -> bytes:
    """One request whose path no client has tidied up."""
    import asyncio

    loop = asyncio.get_running_loop()
    plain.setblocking(False)
    await loop.sock_sendall(
        plain, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    return await loop.sock_recv(plain, 1000)


@in_loop
async def test_without_a_built_page_it_says_how_to_build_it(tmp_path: Path) -> None:
    async with dashboard(tmp_path, web=tmp_path / "none") as bench:
        answer = await bench.http.get("")
        assert answer.status_code == 503
        assert "make page" in answer.text


@in_loop
async def test_metrics_are_the_numbers_that_were_sent(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(200)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 202)
        found = await bench.get("api/runs/digits/metrics?names=loss,val_loss&from=10&to=20")
        sent = [e for e in trainer.events if e["type"] == "trainStep" and 10 <= e["step"] <= 20]
        for name in ("loss", "val_loss", "step", "event_seq", "ts"):
            assert found["columns"][name] == [e[name] for e in sent]
        assert (found["total"], found["thinned"]) == (11, False)
        found = await bench.get("api/runs/digits/metrics?names=loss&points=20")
        assert found["thinned"] is True
        assert len(found["columns"]["step"]) <= 24
        by_seq = {e["event_seq"]: e["loss"] for e in trainer.events if e["type"] == "trainStep"}
        columns = found["columns"]
        assert columns["loss"] == [by_seq[seq] for seq in columns["event_seq"]]
        assert max(by_seq.values()) in columns["loss"]
        assert min(by_seq.values()) in columns["loss"]


@in_loop
async def test_a_large_answer_is_packed_for_who_takes_it(tmp_path: Path) -> None:
    trainer = TrainerDouble(token=TOKEN)
    trainer.begin()
    trainer.train(3000)
    async with dashboard(tmp_path) as bench, trainer.on(bench.port):
        await bench.until_has("sess-1", 3002)
        answer = await bench.http.get(
            "api/runs/digits/metrics", headers={"Accept-Encoding": "gzip"}
        )
        assert answer.headers["content-encoding"] == "gzip"
        plain = await bench.http.get(
            "api/runs/digits/metrics", headers={"Accept-Encoding": "identity"}
        )
        assert "content-encoding" not in plain.headers
        assert json.loads(plain.content) == answer.json()
