"""A dashboard's server with scripted runs, for the tests of the page.

It speaks the REST and WebSocket contract of the page and nothing else, on a thread of its own.
The test says what the server knows and pushes messages; what the page sent is in `commands`.
"""

from __future__ import annotations

import asyncio
import math
import mimetypes
import queue
import threading
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

DIST = Path(__file__).parents[2] / "src/otf_core/dashboard/web/dist"
TOKEN = "t0p-secret_token"
NOW = 1_790_000_000.0
PREFIX = "/user/x/proxy/8000"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
WAIT_S = 10.0
QUESTIONS = {"select", "samples", "show_samples", "results"}  # asked by a drawer that is opened

Message = dict[str, Any]


def _receipt(command: Message, state: str, **more: Any) -> Message:
    receipt = {
        "id": command["id"],
        "cmd": command["cmd"],
        "payload": command["payload"],
        "by": "page",
        "sent_ts": NOW,
        "accepted_ts": None,
        "waits_for": None,
        "answered_ts": None,
        "reply": None,
        "state": state,
        **more,
    }
    return {"kind": "receipt", "session_id": command["session_id"], "receipt": receipt}


class FakeDashboard:
    """Any thread may call its methods; handlers run on the server's thread."""

    def __init__(self) -> None:
        self.sessions: dict[str, Message] = {}
        self.runs: dict[str, Message] = {}
        self.events: dict[str, list[Message]] = {}
        self.answers: dict[str, Message] = {}
        self.commands: queue.Queue[Message] = queue.Queue()
        self.requests: list[str] = []
        self.left: queue.Queue[str] = queue.Queue()  # sessions that were unsubscribed from
        self.refusing = False
        self.welcome: Message = {}
        self._sockets: set[WebSocket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        routes = [
            WebSocketRoute("/api/live", self._live),
            Route("/api/sessions/{session}/commands/{id}", self._answer),
            Route("/api/sessions/{session}/events", self._events_of),
            Route("/api/runs/{run}/metrics", self._curves),
            Route("/api/checkpoints/{session}/{id}/file", self._file),
            Route("/{path:path}", self._page),
        ]
        app = Starlette(routes=[Mount(PREFIX, routes=routes), Mount("/", routes=routes)])
        config = uvicorn.Config(
            self._recorded(app), host="127.0.0.1", port=0, log_level="error", ws_ping_interval=None
        )
        self._server = uvicorn.Server(config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="fake-dashboard")
        self._thread.start()
        assert self._ready.wait(WAIT_S), "the fake dashboard did not start"

    # ------------------------------------------------------------ what a test says

    def reset(self) -> None:
        """Forget everything and hang up on everybody; no connection is left open."""
        self._call(self._hang_up(everything=True))
        self.sessions.clear()
        self.runs.clear()
        self.events.clear()
        self.answers.clear()
        self.requests.clear()
        self.refusing = False
        self.welcome.clear()
        for waiting in (self.commands, self.left):
            while not waiting.empty():
                waiting.get_nowait()

    def add(self, session: Message, events: list[Message], run: Message | None = None) -> None:
        self.sessions[session["session_id"]] = session
        self.events[session["session_id"]] = events
        if run is not None:
            self.runs[run["run_id"]] = run

    def push(self, *messages: Message) -> None:
        """Send to every page that is connected."""
        self._call(self._push(messages))

    def update(self, key: str, **changes: Any) -> None:
        self.sessions[key].update(changes)
        self.push({"kind": "session", "session": self.sessions[key]})

    def emit(self, session_id: str, *events: Message) -> None:
        self.events[session_id].extend(events)
        self.push({"kind": "events", "session_id": session_id, "events": list(events)})

    def receipt(self, command: Message, state: str, **more: Any) -> None:
        self.push(_receipt(command, state, **more))

    def command(self) -> Message:
        """The next command that the page sends."""
        return self.commands.get(timeout=WAIT_S)

    def drop(self) -> None:
        """Hang up on every page; with `refusing` set none gets back in."""
        self._call(self._hang_up(everything=False))

    def url(self, prefix: str = "") -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}{prefix}/"

    def close(self) -> None:
        self.reset()
        self._server.should_exit = True
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    # ------------------------------------------------------------ the server's thread

    def _main(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        self._ready.set()
        await serving

    def _call(self, work: Any) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    async def _push(self, messages: tuple[Message, ...]) -> None:
        for socket in list(self._sockets):
            for message in messages:
                await socket.send_json(message)

    async def _hang_up(self, *, everything: bool) -> None:
        for socket in list(self._sockets):
            self._sockets.discard(socket)
            await socket.close(1001)
        if not everything:
            return
        connections = self._server.server_state.connections
        for connection in list(connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        while connections:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)  # the loop closes an aborted socket in its next turn

    def _recorded(self, app: Starlette) -> Any:
        async def recording(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] in ("http", "websocket"):
                query = scope["query_string"].decode()
                self.requests.append(scope["path"] + (f"?{query}" if query else ""))

            async def with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [
                        *message["headers"],
                        (b"content-security-policy", CSP.encode()),
                    ]
                await send(message)

            await app(scope, receive, with_policy)

        return recording

    async def _live(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            first = await socket.receive_json()
            if self.refusing or first.get("token") != TOKEN:
                await socket.close(4503 if self.refusing else 4401)
                return
            await socket.send_json(
                {
                    "kind": "welcome",
                    "server_ts": NOW,
                    "version": "0.2.0",
                    **self.welcome,
                    "sessions": list(self.sessions.values()),
                    "runs": list(self.runs.values()),
                }
            )
            self._sockets.add(socket)
            while True:
                await self._message(socket, await socket.receive_json())
        except (WebSocketDisconnect, RuntimeError):
            pass  # a page that went away, or that we hung up on
        finally:
            self._sockets.discard(socket)

    async def _message(self, socket: WebSocket, message: Message) -> None:
        if message["kind"] == "ping":
            await socket.send_json({"kind": "pong", "t": message["t"]})
        elif message["kind"] == "unsubscribe":
            self.left.put(message["session_id"])
        elif message["kind"] == "subscribe":
            known = self.events.get(message["session_id"], [])
            events = [one for one in known if one["event_seq"] > message["after_seq"]]
            await socket.send_json(
                {"kind": "events", "session_id": message["session_id"], "events": events}
            )
        elif message["kind"] == "command" and message["cmd"] in QUESTIONS:
            detail = "The samples of this run cannot be looked at: its data is the loop's own."
            reply = {"id": message["id"], "ok": False, "code": "unsupported", "detail": detail}
            receipt = _receipt(message, "refused", reply=reply)
            await socket.send_json(receipt)
        elif message["kind"] == "command":
            self.commands.put(message)

    async def _events_of(self, request: Request) -> Response:
        events = self.events.get(request.path_params["session"], [])
        after = int(request.query_params["after"])
        later = [e for e in events if e["type"] != "trainStep" and e["event_seq"] > after]
        return JSONResponse({"events": later})

    async def _curves(self, request: Request) -> Response:
        """Every step of a run: buckets of one."""
        run = request.path_params["run"]
        all_events = [event for events in self.events.values() for event in events]
        steps = [e for e in all_events if e["type"] == "trainStep" and e["run_id"] == run]
        numbers = [e["step"] for e in steps]
        series = {
            name: {
                "step": [e["step"] for e in steps if e[name] is not None],
                "value": [e[name] for e in steps if e[name] is not None],
                "seq": [e["event_seq"] for e in steps if e[name] is not None],
                "session": [0 for e in steps if e[name] is not None],
            }
            for name in ("loss", "val_loss", "accuracy", "epoch")
        }
        ends = {"from": min(numbers, default=None), "to": max(numbers, default=None)}
        about = {"run_id": run, "session_ids": [], "total": len(steps), "thinned": False}
        return JSONResponse({**about, **ends, "bucket_steps": 1, "series": series})

    async def _answer(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "unauthorized"}, status_code=401)
        key = request.path_params["id"]
        reply = self.answers.get(key)
        state = "unknown" if reply is None else "answered"
        return JSONResponse({"id": key, "state": state, "reply": reply})

    async def _page(self, request: Request) -> Response:
        # Not starlette's StaticFiles, which reads on threads that would outlive the test.
        path = DIST / (request.path_params["path"] or "index.html")
        if not path.is_file():
            return Response(status_code=404)
        return Response(path.read_bytes(), media_type=mimetypes.guess_type(path.name)[0])

    async def _file(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "unauthorized"}, status_code=401)
        return Response(b"weights", media_type="application/octet-stream")


# ---------------------------------------------------------------- frozen runs

PARAMS: list[Message] = [
    {
        "path": "lr",
        "kind": "float",
        "value": 0.1,
        "pending": None,
        "min": 0.0,
        "max": 10.0,
        "owner": "scheduler",
    },
    {
        "path": "weight_decay",
        "kind": "float",
        "value": 5e-4,
        "pending": None,
        "min": 0.0,
        "max": 1.0,
        "owner": "optimizer",
    },
    {
        "path": "momentum",
        "kind": "float",
        "value": 0.9,
        "pending": None,
        "min": 0.0,
        "max": 1.0,
        "owner": "optimizer",
    },
    {
        "path": "gradient_clip_val",
        "kind": "float",
        "value": 1.0,
        "pending": None,
        "min": 0.0,
        "max": 1000.0,
        "owner": "trainer",
    },
    {
        "path": "optim.0.groups.1.lr",
        "kind": "float",
        "value": 0.01,
        "pending": None,
        "min": 0.0,
        "max": 10.0,
        "owner": "scheduler",
    },
    {
        "path": "after_fit",
        "kind": "enum",
        "value": "auto",
        "pending": None,
        "min": None,
        "max": None,
        "choices": ["auto", "return", "test", "hold"],
        "owner": "user",
    },
]
CAPABILITIES = [
    "pause",
    "resume",
    "stop",
    "status",
    "ping",
    "save_ckpt",
    "validate_now",
    "test_now",
    "set_param",
    "list_params",
    "list_checkpoints",
    "rollback",
    "undo",
    "extend",
    "note",
    "journal",
    "token",
]


def session(steps: int, **changes: Any) -> Message:
    """A session that is training, `steps` steps in."""
    return {
        "session_id": "s1",
        "run_id": "resnet18-baseline",
        "project": "cifar",
        "run_name": None,
        "state": "running",
        "reason": None,
        "step": steps,
        "epoch": 3,
        "max_steps": 50_000,
        "max_epochs": None,
        "connected": True,
        "protocol": "otf/1",
        "pid": 4242,
        "host": "gpu-box",
        "device": "NVIDIA RTX A5000",
        "version": "0.2.0",
        "started_ts": NOW - 900,
        "last_ts": NOW,
        "last_seq": steps + 50,
        "capabilities": CAPABILITIES,
        "pending": [],
        "params": [dict(param) for param in PARAMS],
        "last_checkpoint": {"id": "300-manual", "step": 300},
        "exactness": "exact except Timer",
        "status": {"steps_per_s": 15.3, "snapshot_age_s": 0.05},
        "status_ts": NOW,
        "cadence": {
            "loss": {"every": 1, "unit": "step"},
            "grad_norm": {"every": 8, "unit": "step"},
            "weight_norm": {"every": 32, "unit": "step"},
            "gpu_util": {"every": 1.0, "unit": "s"},
        },
        "finished": None,
        "journal_complete": True,
        **changes,
    }


def run(**changes: Any) -> Message:
    return {
        "run_id": "resnet18-baseline",
        "project": "cifar",
        "run_name": None,
        "session_ids": ["s1"],
        "parents": [],
        "created_ts": NOW - 900,
        "summary": {
            "step": 400,
            "val_loss": 0.312,
            "best_val_loss": 0.287,
            "best_val_step": 380,
            "loss": 0.34,
        },
        "checkpoints": [
            {
                "id": "300-manual",
                "path": "/runs/cifar/resnet18-baseline/checkpoints/300-manual.ckpt",
                "step": 300,
                "kind": "manual",
                "bytes": 44_700_000,
                "ts": NOW - 60,
                "exact": False,
            },
        ],
        **changes,
    }


def train_step(seq: int, step: int, steps_per_epoch: int, **changes: Any) -> Message:
    """One trainStep whose numbers follow from its step alone."""
    noise = math.sin(step * 12.9898) * 43758.5453
    noise -= math.floor(noise)
    shape = step / (3 * steps_per_epoch)
    loss = 0.3 + 2.0 * math.exp(-3 * shape) + 0.16 * (noise - 0.5)
    evaluated = step // max(1, steps_per_epoch // 6)
    val = None if evaluated == 0 else 0.31 + 1.7 * math.exp(-3 * evaluated / 18)
    return {
        "type": "trainStep",
        "event_seq": seq,
        "ts": NOW - 900,
        "step": step,
        "epoch": (step - 1) // steps_per_epoch,
        "loss": loss,
        "val_loss": val,
        "accuracy": 0.92 - 0.5 * math.exp(-3 * shape) + 0.02 * noise,
        "lr": 0.1 * min(1.0, step / (0.1 * steps_per_epoch)) * (0.5 + 0.5 * math.cos(shape)),
        "lrs": [0.1, 0.01],
        "grad_norm": 0.5 + 2 * math.exp(-2 * shape) * noise if step % 8 == 0 else None,
        "weight_norm": 40 + 20 * shape if step % 32 == 0 else None,
        "activation_zero_frac": 0.42 + 0.1 * min(1.0, shape),
        "throughput": 3900 + 60 * noise,
        "batches_per_s": 15.3 + noise,
        "data_wait_frac": 0.04 + 0.02 * noise,
        "mem_vram": 14_123.5,
        "gpu_util": 94 + round(3 * noise),
        "ram_mb": 3120.25,
        "global_step": step,
        "metrics": {
            "train_loss": loss,
            "aux_loss": loss / 3,
            "val_f1": None if val is None else 1 - val / 3,
        },
        "run_id": "resnet18-baseline",
        "run_gen": 0,
        "session_id": "s1",
        **changes,
    }


def event(seq: int, type_: str, **fields: Any) -> Message:
    return {
        "type": type_,
        "event_seq": seq,
        "ts": NOW - 30,
        "run_id": "resnet18-baseline",
        "run_gen": 0,
        "session_id": "s1",
        **fields,
    }


PAUSE_S = 66.0


def history(steps: int) -> list[Message]:
    """The events of a run with a pause, two checkpoints, a note and a new learning rate."""
    per_epoch = max(6, steps // 3)
    other: dict[int, tuple[str, Message]] = {
        steps // 4: (
            "checkpoint_saved",
            {"id": "c1", "path": "/runs/c1.ckpt", "kind": "ring", "bytes": 44_700_000},
        ),
        steps // 3: ("note", {"note_id": "n1", "text": "warm-up is over"}),
        steps // 2: ("paused", {}),
        steps // 2 + 1: ("resumed", {}),
        2 * steps // 3: (
            "param_changed",
            {"path": "lr", "old": 0.2, "new": 0.1, "by": "user", "request_id": "r0"},
        ),
        3 * steps // 4: (
            "checkpoint_saved",
            {"id": "300-manual", "path": "/runs/c2.ckpt", "kind": "manual", "bytes": 44_700_000},
        ),
    }
    events = [event(1, "session_started", project="cifar", run_name="resnet18-baseline")]
    for step in range(1, steps + 1):
        held_s = PAUSE_S if step > steps // 2 else 0.0
        ts = NOW - 900 + 0.06 * step + held_s
        events.append(train_step(len(events) + 1, step, per_epoch, ts=ts))
        if step in other:
            kind, fields = other[step]
            if kind == "param_changed":
                fields = {**fields, "applied_step": step}
            extra = event(len(events) + 1, kind, step=step, **fields)
            extra["ts"] = ts
            events.append(extra)
    return events
