"""REST and the page's files; event loop only.

Rule: a handler is a row of ``openapi.ENDPOINTS``; what is not in that table is not served.
"""

from __future__ import annotations

import asyncio
import gzip
import mimetypes
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otf_core.dashboard import columns, peaks, reading
from otf_core.dashboard.hub import Hub, NotConnectedError
from otf_core.dashboard.live import Live
from otf_core.dashboard.openapi import ENDPOINTS, Endpoint, document
from otf_core.dashboard.run import Run
from otf_core.dashboard.security import (
    CSP,
    HEADERS,
    MAX_BODY_BYTES,
    Access,
    HostCheck,
    Role,
    TooManyError,
    bearer,
    label,
)
from otf_core.dashboard.store import Change, Session
from otf_core.dashboard.tickets import LIFE_S, Tickets
from otf_core.errors import CommandError, ErrorCode

WEB: Final = Path(__file__).parent / "web" / "dist"
MAX_WAIT_S: Final = 600.0
MAX_POLL_S: Final = 60.0
DRAIN_S: Final = 2.0
GZIP_FROM_BYTES: Final = 16 * 1024
STATUS_OF: Final = {
    ErrorCode.BAD_PAYLOAD: 400,
    ErrorCode.UNKNOWN_COMMAND: 400,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.NOT_ALLOWED_NOW: 409,
    ErrorCode.UNSUPPORTED: 409,
    ErrorCode.UNAUTHORIZED: 409,  # between dashboard and trainer; 401 is about this API's token
    ErrorCode.BUSY: 503,
    ErrorCode.INTERNAL: 503,
}
NOT_BUILT: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>otf: the page is not built</title></head>
<body><h1>The page is not built</h1>
<p>This dashboard runs and takes trainers; only the files of its page are missing.
In a checkout, build them with:</p>
<pre>make page</pre>
<p>then load this address again. An installed wheel has them inside. Meanwhile
<code>otf status</code> and the other commands work, and so does the API.</p>
</body></html>
"""

_encode = msgspec.json.Encoder().encode


def make_app(
    hub: Hub,
    live: Live,
    check: HostCheck,
    access: Access,
    version: str,
    *,
    web: Path = WEB,
    root_path: str = "",
) -> ASGIApp:
    """The whole HTTP side.

    Args:
        root_path: the prefix that a proxy in front may leave on the paths; "" or "/some/where".
    """
    tickets = Tickets()
    api = Api(hub, access, version, tickets)
    routes: list[Any] = [
        Route(endpoint.path, api.handler(endpoint), methods=[endpoint.method])
        for endpoint in ENDPOINTS
    ]
    routes.append(WebSocketRoute("/api/live", live.serve))
    pages = Pages(web, tickets)
    routes.append(Route("/open/{ticket}", pages.open, methods=["GET"]))
    routes.append(Route("/{path:path}", pages.serve, methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _on_http_error})
    return Prefix(Guard(app, check, tickets), root_path)


class Prefix:
    """Outermost: takes a prefix off the path where it is there; some proxies take it off already.

    What a request says of a prefix in its headers is not believed.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root and scope["path"] == self._root and scope["type"] == "http":
            # The page's addresses are relative to a folder.
            where = f"{self._root.rpartition('/')[2]}/"
            await RedirectResponse(where, 307, headers=HEADERS)(scope, receive, send)
            return
        if self._root and scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"][len(self._root) :]}
        await self._app(scope, receive, send)


class Guard:
    """Host, Origin and body size of each request; our headers on each answer."""

    def __init__(self, app: ASGIApp, check: HostCheck, tickets: Tickets) -> None:
        self._app, self._check, self._tickets = app, check, tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        given = dict(HEADERS)
        if scope["path"] == "/":
            frame = parse_qs(scope["query_string"].decode("latin-1")).get("frame", [None])[0]
            given["Content-Security-Policy"] = self._tickets.policy(CSP, frame)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(k.lower().encode(), v.encode()) for k, v in given.items()]
                names = {name for name, _ in ours}
                rest = [pair for pair in message.get("headers", []) if pair[0] not in names]
                message = {**message, "headers": rest + ours}
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._check.problem(headers.get(b"host"), headers.get(b"origin"))
        if problem is not None:
            await _refusal(403, "unauthorized", problem)(scope, receive, send_guarded)
            return
        length = headers.get(b"content-length", "0")
        if b"transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
            answer = _refusal(400, "bad_payload", "A body needs a Content-Length here.")
            # What follows may be what a proxy in front took for the body: it is not looked at.
            answer.headers["Connection"] = "close"
            await _drain(receive)  # a client that still writes would not hear the answer
            await answer(scope, receive, send_guarded)
        elif len(length) > 18 or int(length) > MAX_BODY_BYTES:
            detail = f"A body of {length[:20]} bytes was sent; at most {MAX_BODY_BYTES:,} are read."
            await _refusal(413, "bad_payload", detail)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


async def _drain(receive: Receive) -> None:
    """Take what there is of a body, up to what one may have, and for ``DRAIN_S`` at most."""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while size <= MAX_BODY_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _refusal(status: int, code: str, detail: str, **more: Any) -> Response:
    body = {"ok": False, "error": code, "code": code, "detail": detail, **more}
    return Response(_encode(body), status, media_type="application/json")


def _refused(error: CommandError, status: int | None = None, **more: Any) -> Response:
    body = {"ok": False, **error.to_wire(), **more}
    status = status or STATUS_OF[error.code]
    return Response(_encode(body), status, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "bad_payload"
    path = request.scope["path"][:200]
    detail = f"{request.method} {path}: {error.detail}; see /api/openapi.json."
    answer = _refusal(error.status_code, code, detail)
    answer.headers.update(error.headers or {})  # which methods are allowed
    return answer


async def _json(request: Request, value: Any) -> Response:
    body = _encode(value)
    headers = {}
    if len(body) >= GZIP_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body = await asyncio.to_thread(gzip.compress, body, 5)
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(body, headers=headers, media_type="application/json")


def _bad(*, field: str, detail: str) -> CommandError:
    return CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field)


def _number(asked: str | None, kind: type[int] | type[float]) -> float | None:
    """A number as JSON writes it, which ``int`` and ``float`` are less strict about."""
    try:
        return msgspec.json.decode((asked or "").encode(), type=kind)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None


def _integer(request: Request, name: str, default: int, low: int, high: int) -> int:
    asked = request.query_params.get(name)
    if asked is None:
        return default
    value = _number(asked, int)
    if value is None or not low <= value <= high:
        raise _bad(
            field=name,
            detail=f"{name} was asked to be {asked[:40]!r}; allowed: {low:,} to {high:,}.",
        )
    return int(value)


def _seconds(asked: object, name: str, default: float, high: float) -> float:
    if asked is None:
        return default
    if not isinstance(asked, int | float) or isinstance(asked, bool) or not 0 <= asked <= high:
        raise _bad(
            field=name,
            detail=f"{name} was asked to be {str(asked)[:40]!r}; allowed: 0 to {high:g} s.",
        )
    return float(asked)


def _poll_s(request: Request) -> float:
    asked = request.query_params.get("wait_s")
    said = asked if asked is None else _number(asked, float)
    return _seconds(asked if said is None else said, "wait_s", 0.0, MAX_POLL_S)


def _names(request: Request, name: str) -> list[str] | None:
    asked = request.query_params.get(name)
    return list(dict.fromkeys(filter(None, asked.split(",")))) if asked is not None else None


class Api:
    """The handlers; each is a row of ``ENDPOINTS``."""

    def __init__(self, hub: Hub, access: Access, version: str, tickets: Tickets) -> None:
        self._hub, self._store, self._version = hub, hub.store, version
        self._access, self._tickets = access, tickets

    def handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The handler of a row, behind the token and with its refusals as answers."""
        handle: Callable[[Request], Awaitable[Response]] = getattr(self, endpoint.name)

        async def guarded(request: Request) -> Response:
            refusal = None if endpoint.public else self._refusal(request, endpoint)
            if refusal is not None:
                return refusal
            try:
                return await handle(request)
            except NotConnectedError as error:
                return _refused(error, 503, connected=False)
            except CommandError as error:
                return _refused(error)

        return guarded

    def _refusal(self, request: Request, endpoint: Endpoint) -> Response | None:
        asked = bearer(request.headers.get("authorization"))
        try:
            role = self._access.enter(asked, request.client.host if request.client else "")
        except TooManyError as error:
            answer = _refusal(429, "busy", str(error), retry_after_s=error.retry_s)
            answer.headers["Retry-After"] = f"{error.retry_s:.0f}"
            return answer
        if role is None:
            detail = "No token, or not this dashboard's; it stands behind #token= in its URL."
            answer = _refusal(401, "unauthorized", detail)
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        if endpoint.owner and role is not Role.OWNER:
            detail = f"{endpoint.summary}: not with a link that only watches; the owner's may."
            return _refusal(403, "unauthorized", detail)
        return None

    async def health(self, request: Request) -> Response:
        return await _json(
            request, {"ok": True, "version": self._version, "store": self._store.kept}
        )

    async def ticket(self, request: Request) -> Response:
        token = bearer(request.headers.get("authorization"))
        assert token is not None  # the endpoint is not public
        path = f"open/{self._tickets.issue(token)}"
        return await _json(request, {"path": path, "expires_s": LIFE_S})

    async def openapi(self, request: Request) -> Response:
        return await _json(request, document(self._version))

    async def sessions(self, request: Request) -> Response:
        found = [session.to_json() for session in self._store.sessions.values()]
        return await _json(request, {"sessions": found})

    async def session(self, request: Request) -> Response:
        return await _json(request, self._session(request).to_json())

    async def runs(self, request: Request) -> Response:
        return await _json(request, {"runs": [run.to_json() for run in self._store.runs.values()]})

    async def run(self, request: Request) -> Response:
        run = self._run(request)
        return await _json(request, run.to_json() | {"metrics": run.names()})

    async def metrics(self, request: Request) -> Response:
        run = self._run(request)
        names = _names(request, "names") or run.names()
        low = _integer(request, "from", 0, 0, 2**62)
        high = _integer(request, "to", 2**62, 0, 2**62)
        points = _integer(request, "points", 6000, 2, columns.MAX_ROWS)
        if "buckets" in request.query_params:
            return await self._curves(request, run, names)
        session_ids, views = await reading.views(self._store, run, names)
        picked = await asyncio.to_thread(
            columns.pick,
            views,
            names,
            low=low,
            high=None if high == 2**62 else high,
            points=points,
        )
        return await _json(
            request,
            {
                "run_id": run.run_id,
                "session_ids": session_ids,
                "columns": picked.columns,
                "total": picked.total,
                "thinned": picked.thinned or any(view.thinned for view in views),
            },
        )

    async def _curves(self, request: Request, run: Run, names: list[str]) -> Response:
        buckets = _integer(request, "buckets", 0, 1, peaks.MAX_BUCKETS)
        low, high = (
            _integer(request, bound, 0, 0, 2**62) if bound in request.query_params else None
            for bound in ("from", "to")
        )
        if low is None and high is None:
            outline = await reading.outline(self._store, run, names, buckets)
            if outline is not None:
                found = await asyncio.to_thread(outline.curves, buckets)
                return await self._answer_curves(request, run, run.session_ids, found)
        session_ids, views = await reading.views(self._store, run, names, dated=False)
        found = await asyncio.to_thread(
            peaks.curves, views, names, low=low, high=high, buckets=buckets
        )
        thinned = any(view.thinned for view in views)
        return await self._answer_curves(request, run, session_ids, found, thinned=thinned)

    @staticmethod
    async def _answer_curves(
        request: Request, run: Run, session_ids: list[str], found: peaks.Curves,
        *, thinned: bool = False,
    ) -> Response:  # fmt: skip
        return await _json(
            request,
            {
                "run_id": run.run_id,
                "session_ids": session_ids,
                "total": found.total,
                "from": found.first,
                "to": found.last,
                "bucket_steps": found.bucket_steps,
                "series": found.series,
                "thinned": thinned,
            },
        )

    async def run_events(self, request: Request) -> Response:
        run = self._run(request)
        sessions = [self._store.sessions[key] for key in run.session_ids]
        if _integer(request, "after", 0, 0, 2**62):
            sessions = sessions[-1:]
        return await self._events(request, sessions, run.run_id)

    async def session_events(self, request: Request) -> Response:
        return await self._events(request, [self._session(request)], None)

    async def _events(
        self, request: Request, sessions: list[Session], run_id: str | None
    ) -> Response:
        after = _integer(request, "after", 0, 0, 2**62)
        limit = _integer(request, "limit", 1000, 1, 10_000)
        asked = _names(request, "types")
        types = frozenset(asked) if asked is not None else None
        wait_s = _poll_s(request)
        found = await self._find_events(sessions, after, types, run_id, limit)
        if not found and wait_s:
            found = await self._await_events(sessions, after, types, run_id, limit, wait_s)
        return await _json(request, {"events": found})

    async def _find_events(
        self,
        sessions: list[Session],
        after: int,
        types: frozenset[str] | None,
        run_id: str | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for session in sessions:
            found += await reading.events(
                self._store, session, after=after, types=types, run_id=run_id,
                limit=limit - len(found),
            )  # fmt: skip
        return found

    async def _await_events(
        self,
        sessions: list[Session],
        after: int,
        types: frozenset[str] | None,
        run_id: str | None,
        limit: int,
        wait_s: float,
    ) -> list[dict[str, Any]]:
        """The next ones, as soon as there are any."""
        happened = asyncio.Event()

        def watch(session: Session, change: Change) -> None:  # noqa: ARG001 -- a watcher's shape
            if session in sessions:
                happened.set()

        self._store.watchers.add(watch)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    await happened.wait()
                    happened.clear()
                    found = await self._find_events(sessions, after, types, run_id, limit)
                    if found:
                        return found
        except TimeoutError:
            return []
        finally:
            self._store.watchers.discard(watch)

    async def command(self, request: Request) -> Response:
        body = await self._body(request)
        cmd, payload = body.get("cmd"), body.get("payload", {})
        request_id, by, client = body.get("id"), body.get("by", "rest"), body.get("client")
        wait_s = _seconds(body.get("wait_s"), "wait_s", 30.0, MAX_WAIT_S)
        if not isinstance(cmd, str):
            raise _bad(field="cmd", detail=f"cmd was {cmd!r}; allowed: the name of a command.")
        if payload is not None and not isinstance(payload, dict):
            raise _bad(
                field="payload", detail=f"payload was {type(payload).__name__}; allowed: an object."
            )
        if request_id is not None and not (
            isinstance(request_id, str) and 0 < len(request_id) <= 200
        ):
            raise _bad(
                field="id", detail="id was no string of 1 to 200 characters; a UUID is usual."
            )
        if client is not None and not isinstance(client, str):
            raise _bad(field="client", detail="client was no string; a name is usual.")
        if by not in ("rest", "cli"):
            raise _bad(field="by", detail=f"by was {by!r}; allowed: rest, cli.")
        session_id = request.path_params["session_id"]
        receipt = self._hub.send(
            session_id,
            cmd,
            payload or {},
            request_id=request_id,
            by=by,
            client=label(client),
        )
        await receipt.wait(wait_s)
        reply = receipt.reply
        if reply is None:
            return Response(
                _encode({"id": receipt.id, "pending": True}), 202, media_type="application/json"
            )
        if reply.get("ok") is True:
            return await _json(request, {"id": receipt.id, "ok": True, "data": reply.get("data")})
        try:
            status = STATUS_OF[ErrorCode(str(reply.get("code")))]
        except ValueError:
            status = 503
        said = {"error": "internal", "code": "internal", "detail": "The trainer gave no reason."}
        return Response(_encode(said | reply), status, media_type="application/json")

    async def answer(self, request: Request) -> Response:
        session = self._session(request)
        wait_s = _poll_s(request)
        request_id = request.path_params["request_id"]
        receipt = self._hub.book(session.session_id).find(request_id)
        state, reply = "unknown", None
        if receipt is not None:
            await receipt.wait(wait_s)
            reply = receipt.reply
            state = "answered" if reply is not None else "pending"
        return await _json(request, {"id": request_id, "state": state, "reply": reply})

    async def checkpoint_file(self, request: Request) -> Response:
        session = self._session(request)
        ckpt_id = request.path_params["ckpt_id"]
        path = await asyncio.to_thread(self._file_of, session, ckpt_id)
        if path is None:
            detail = f"No checkpoint {ckpt_id!r} of this session lies in its run folder."
            raise CommandError(ErrorCode.NOT_FOUND, detail)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    def _file_of(self, session: Session, ckpt_id: str) -> Path | None:
        """The file of a checkpoint that the trainer named, if it lies in the run's own folder."""
        # Two runs of one session may each have a 5-auto.
        runs = sorted(self._store.runs.values(), key=lambda run: run.run_id != session.run_id)
        for run in runs:
            named = run.checkpoints.get((session.session_id, ckpt_id))
            if named is None:
                continue
            said = Path(named["path"])
            own = session.run_dir and session.run_dir.parent / run.run_id
            folder = own or self._folder_of(said)
            if folder is None:
                return None
            # A journal may have been moved with its run folder since it was written.
            for path in (said, folder / "checkpoints" / said.name):
                try:
                    real, home = path.resolve(strict=True), folder.resolve(strict=True)
                    if real.is_relative_to(home) and stat.S_ISREG(real.stat().st_mode):
                        return real
                except (OSError, ValueError, RuntimeError):
                    continue
        return None

    def _folder_of(self, path: Path) -> Path | None:
        """The run folder of a session that named none: it must lie below ours."""
        folder = path.parent.parent
        runs_dir = self._store.runs_dir
        if path.parent.name != "checkpoints" or runs_dir is None:
            return None
        try:
            inside = folder.resolve(strict=True).relative_to(runs_dir.resolve(strict=True))
        except (OSError, ValueError, RuntimeError):
            return None
        return folder if len(inside.parts) >= 1 else None

    async def _body(self, request: Request) -> dict[str, Any]:
        try:
            body = msgspec.json.decode(await request.body())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            detail = f"The body is no JSON ({error})."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail) from error
        if not isinstance(body, dict):
            detail = f"The body is {type(body).__name__}; allowed: an object with a cmd."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
        return body

    def _session(self, request: Request) -> Session:
        session_id = request.path_params["session_id"]
        found = self._store.sessions.get(session_id)
        if found is None:
            detail = f"No session {session_id!r} is known here."
            known = sorted(self._store.sessions)[-20:]
            raise CommandError(ErrorCode.NOT_FOUND, detail, allowed=known)
        return found

    def _run(self, request: Request) -> Run:
        run_id, project = request.path_params["run"], request.query_params.get("project")
        found = self._store.find_run(run_id, project)
        if found is None:
            where = f" in {project!r}" if project is not None else ""
            known = sorted({run.run_id for run in self._store.runs.values()})[-20:]
            detail = f"No run {run_id!r}{where} is known here."
            raise CommandError(ErrorCode.NOT_FOUND, detail, allowed=known)
        return found


class Pages:
    """The page's built files; what is not below ``web`` does not exist."""

    def __init__(self, web: Path, tickets: Tickets) -> None:
        self._web, self._tickets = web, tickets

    async def open(self, request: Request) -> Response:
        """Give the page to who has a ticket, once."""
        where = None
        if request.method == "GET":  # who only asks whether it is there does not use it up
            run = request.query_params.get("run", "")
            where = self._tickets.use(request.path_params["ticket"], run)
        if where is None:
            raise HTTPException(404, "no such ticket")
        return Response(status_code=303, headers={"Location": f"../{where}"})

    async def serve(self, request: Request) -> Response:
        asked = request.path_params["path"] or "index.html"
        path = self._find(asked)
        if path is not None:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind = "text/javascript" if path.suffix in (".js", ".mjs") else kind
            return Response(path.read_bytes(), media_type=kind)
        if asked == "index.html":
            return Response(NOT_BUILT, 503, media_type="text/html")
        raise HTTPException(404, "no such file")

    def _find(self, asked: str) -> Path | None:
        try:
            path = (self._web / asked).resolve(strict=True)
            fits = path.is_relative_to(self._web.resolve()) and path.is_file()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if fits else None
