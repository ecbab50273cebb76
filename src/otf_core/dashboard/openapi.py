"""The API as a table, and the OpenAPI document made from it; no server needed to read it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import msgspec

from otf_core.protocol import COMMANDS, RELAYED, CommandSpec

Schema = dict[str, Any]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _closed(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


STRING: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
ANY_OBJECT: Final[Schema] = {"type": "object"}

_CHECKPOINT = {
    "type": "object",
    "properties": {
        "id": STRING,
        "path": STRING,
        "step": _maybe("integer"),
        "kind": _maybe("string"),
        "bytes": _maybe("integer"),
        "ts": _maybe("number"),
        "exact": _maybe("boolean"),
        "session_id": STRING,
        "run_id": STRING,
    },
    "required": ["id", "path", "step"],
}
_RUN = {
    "run_id": STRING,
    "project": STRING,
    "run_name": STRING,
    "session_ids": _list(STRING),
    "parents": _list(STRING),
    "made": {"type": "object"},
    "created_ts": _maybe("number"),
    "summary": _closed(
        {
            "step": _maybe("integer"),
            "val_loss": _maybe("number"),
            "best_val_loss": _maybe("number"),
            "best_val_step": _maybe("integer"),
            "loss": _maybe("number"),
        }
    ),
    "checkpoints": _list(_ref("Checkpoint")),
}


def _payloads() -> dict[str, Schema]:
    """A schema of each command's payload, from the structs that a trainer decodes it into."""
    structs = list(dict.fromkeys(COMMANDS[name].payload for name in sorted(RELAYED)))
    _, found = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/Payload.{name}"
    )
    for schema in found.values():
        for field in schema["properties"].values():
            if isinstance(field.get("default"), float) and not math.isfinite(field["default"]):
                del field["default"]  # JSON has no infinity
    return {f"Payload.{name}": schema for name, schema in found.items()}


_PAYLOADS: Final = _payloads()


def _command(spec: CommandSpec) -> Schema:
    payload = f"Payload.{spec.payload.__name__}"
    needs_one = bool(_PAYLOADS[payload]["required"])
    return {
        "type": "object",
        "properties": {
            "cmd": {"const": spec.name},
            "payload": _ref(payload) if needs_one else {"anyOf": [_ref(payload), {"type": "null"}]},
            "id": {"type": ["string", "null"], "minLength": 1, "maxLength": 200},
            "wait_s": {"type": ["number", "null"], "minimum": 0, "maximum": 600},
            "by": {"enum": ["rest", "cli"]},
            "client": {
                "type": ["string", "null"],
                "description": "Who sends it, as all are shown it: one line, cut to 80 characters.",
            },
        },
        "required": ["cmd", "payload"] if needs_one else ["cmd"],
    }


SCHEMAS: Final[dict[str, Schema]] = _PAYLOADS | {
    "Session": _closed(
        {
            "session_id": STRING,
            "run_id": STRING,
            "project": STRING,
            "run_name": STRING,
            "state": STRING,
            "reason": _maybe("string"),
            "step": INTEGER,
            "epoch": _maybe("integer"),
            "max_steps": _maybe("integer"),
            "max_epochs": _maybe("integer"),
            "connected": BOOLEAN,
            "protocol": {"enum": ["otf/1", "legacy"]},
            "pid": _maybe("integer"),
            "host": _maybe("string"),
            "device": _maybe("string"),
            "version": _maybe("string"),
            "started_ts": NUMBER,
            "last_ts": _maybe("number"),
            "last_seq": INTEGER,
            "capabilities": _list(STRING),
            "pending": _list(_ref("Pending")),
            "params": _list(ANY_OBJECT),
            "last_checkpoint": {"anyOf": [ANY_OBJECT, {"type": "null"}]},
            "exactness": _maybe("string"),
            "status": {"anyOf": [ANY_OBJECT, {"type": "null"}]},
            "status_ts": _maybe("number"),
            "cadence": ANY_OBJECT,
            "finished": {"anyOf": [ANY_OBJECT, {"type": "null"}]},
            "journal_complete": BOOLEAN,
        }
    ),
    "Pending": _closed(
        {"request_id": STRING, "cmd": STRING, "since_ts": NUMBER, "waits_for": _maybe("string")}
    ),
    "Checkpoint": _CHECKPOINT,
    "Run": _closed(_RUN),
    "RunWithMetrics": _closed(_RUN | {"metrics": _list(STRING)}),
    "Metrics": _closed(
        {
            "run_id": STRING,
            "session_ids": _list(STRING),
            "columns": {
                "type": "object",
                "description": "Parallel arrays, one entry a row. event_seq, step, ts and session "
                "(an index into session_ids) are always there; a metric is null where it had no "
                "value.",
                "required": ["event_seq", "step", "ts", "session"],
                "additionalProperties": _list({"type": ["number", "null"]}),
            },
            "total": INTEGER,
            "thinned": BOOLEAN,
        }
    ),
    "Curves": _closed(
        {
            "run_id": STRING,
            "session_ids": _list(STRING),
            "total": INTEGER,
            "from": _maybe("integer"),
            "to": _maybe("integer"),
            "bucket_steps": INTEGER,
            "series": {
                "type": "object",
                "description": "By metric, parallel lists: points of the journal, of each bucket "
                "the one with the least and the one with the greatest value, in order, and the "
                "first and the last of the range. session is an index into session_ids.",
                "additionalProperties": _closed(
                    {
                        "step": _list(INTEGER),
                        "value": _list(NUMBER),
                        "seq": _list(INTEGER),
                        "session": _list(INTEGER),
                    }
                ),
            },
            "thinned": BOOLEAN,
        }
    ),
    "MetricsOrCurves": {"anyOf": [_ref("Metrics"), _ref("Curves")]},
    "Events": _closed({"events": _list(ANY_OBJECT)}),
    "Command": {"oneOf": [_command(COMMANDS[name]) for name in sorted(RELAYED)]},
    "Applied": _closed({"id": STRING, "ok": {"const": True}, "data": {}}),
    "Pended": _closed({"id": STRING, "pending": {"const": True}}),
    "Error": {
        "type": "object",
        "properties": {
            "ok": {"const": False},
            "id": _maybe("string"),
            "error": STRING,
            "code": STRING,
            "detail": STRING,
            "connected": BOOLEAN,
        },
        "required": ["ok", "error", "code", "detail"],
    },
    "Answer": _closed(
        {
            "id": STRING,
            "state": {"enum": ["pending", "answered", "unknown"]},
            "reply": {"anyOf": [ANY_OBJECT, {"type": "null"}]},
        }
    ),
    "Sessions": _closed({"sessions": _list(_ref("Session"))}),
    "Runs": _closed({"runs": _list(_ref("Run"))}),
    "Ticket": _closed({"path": STRING, "expires_s": NUMBER}),
    "Health": _closed({"ok": {"const": True}, "version": STRING}),
}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A row of ``ENDPOINTS``.

    Attributes:
        name: the handler in ``api.Api``.
        answers: status -> schema; None is a file.
        query: parameter -> (schema, what it means).
        public: needs no token.
        owner: the token of a watcher is not enough.
    """

    method: str
    path: str
    name: str
    summary: str
    answers: dict[int, str | None]
    query: dict[str, tuple[Schema, str]] = dataclasses.field(default_factory=dict)
    body: str | None = None
    public: bool = False
    owner: bool = False


def _between(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


MAX_NUMBER: Final = 2**62
_POLL: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 60}
_COUNT: Final = _between(0, MAX_NUMBER)
_PROJECT: Final = {"project": (STRING, "Which project's, where two have a run of that id.")}
_EVENTS_QUERY: Final = {
    "after": (_COUNT, "Only events with a higher event_seq."),
    "types": (STRING, "Comma-separated event types; trainStep only if it is named."),
    "limit": (_between(1, 10_000), "At most so many; 1,000 if not given."),
    "wait_s": (_POLL, "With none to give, wait so long for the next, at most 60 s."),
}

ENDPOINTS: Final = (
    Endpoint(
        "GET", "/api/health", "health", "Whether a dashboard answers", {200: "Health"},
        public=True,
    ),
    Endpoint("GET", "/api/openapi.json", "openapi", "This document", {200: None}, public=True),
    Endpoint(
        "GET", "/api/sessions", "sessions", "All sessions, live and from journals",
        {200: "Sessions"},
    ),
    Endpoint(
        "GET", "/api/sessions/{session_id}", "session", "One session",
        {200: "Session", 404: "Error"},
    ),
    Endpoint(
        "GET", "/api/sessions/{session_id}/events", "session_events",
        "Kept events of a session, oldest first", {200: "Events", 400: "Error", 404: "Error"},
        query=_EVENTS_QUERY,
    ),
    Endpoint(
        "POST", "/api/sessions/{session_id}/commands", "command",
        "Send a command and wait for its answer; 200 means applied",
        {200: "Applied", 202: "Pended", 400: "Error", 404: "Error", 409: "Error", 413: "Error",
         503: "Error"},
        body="Command", owner=True,
    ),
    Endpoint(
        "GET", "/api/sessions/{session_id}/commands/{request_id}", "answer",
        "What has become of a command", {200: "Answer", 400: "Error", 404: "Error"},
        query={"wait_s": (_POLL, "While it is pending, wait so long, at most 60 s.")},
    ),
    Endpoint("GET", "/api/runs", "runs", "All runs", {200: "Runs"}),
    Endpoint(
        "GET", "/api/runs/{run}", "run", "One run and the names of its metrics",
        {200: "RunWithMetrics", 404: "Error"}, query=_PROJECT,
    ),
    Endpoint(
        "GET", "/api/runs/{run}/metrics", "metrics",
        "Metrics as columns, over all sessions; a step that was done again is there once, as it "
        "was done last; too many rows are thinned by least and greatest value per bucket",
        {200: "MetricsOrCurves", 400: "Error", 404: "Error"},
        query=_PROJECT | {
            "names": (STRING, "Comma-separated metrics; all if not given."),
            "from": (_COUNT, "The first step."),
            "to": (_COUNT, "The last step."),
            "points": (_between(2, 1_000_000), "About so many rows at most; 6,000 if not given."),
            "buckets": (_between(1, 2000), "Answer with Curves: at most so many buckets."),
        },
    ),
    Endpoint(
        "GET", "/api/runs/{run}/events", "run_events",
        "Kept events of a run; after counts in its newest session, earlier ones come with after=0",
        {200: "Events", 400: "Error", 404: "Error"}, query=_PROJECT | _EVENTS_QUERY,
    ),
    Endpoint(
        "POST", "/api/tickets", "ticket",
        "A path from the page's folder that opens the page once, with the token of who has asked",
        {200: "Ticket"},
    ),
    Endpoint(
        "GET", "/api/checkpoints/{session_id}/{ckpt_id}/file", "checkpoint_file",
        "A checkpoint's file", {200: None, 404: "Error"}, owner=True,
    ),
)  # fmt: skip


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "otf dashboard",
            "version": version,
            "description": "Runs, their metrics and events, and the commands that steer them. "
            "The same verbs as on the wire, the page and the command line; an answer of 200 to a "
            "command means that it has been applied. The live feed is a WebSocket at /api/live.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    in_path = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": STRING} for name in in_path
    ] + [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": meaning}
        for name, (schema, meaning) in endpoint.query.items()
    ]
    answers: dict[str, Any] = {
        str(status): {
            "description": "As asked" if status < 300 else "Why not",
            "content": {"application/json": {"schema": _ref(schema)}}
            if schema
            else {"application/octet-stream": {}},
        }
        for status, schema in endpoint.answers.items()
    }
    refusals = {"403": "Host or Origin are not this dashboard's"}
    if not endpoint.public:
        refusals["401"] = "No token, or not this dashboard's"
        refusals["429"] = "Too many wrong tokens from this address"
    if endpoint.owner:
        refusals["403"] += ", or the token only watches"
    for status, why in refusals.items():
        answers[status] = {
            "description": why,
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": answers,
        "security": [] if endpoint.public else [{"token": []}],
    }
    if endpoint.body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(endpoint.body)}},
        }
    return operation
