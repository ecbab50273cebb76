"""The verbs as tools: their names, their schemas, and what calling one does; any thread.

Rule: a tool is a row of ``client.verbs``; what is added here is choice of the run, ``dry_run``, and
looks at numbers for which people have a page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from otf_core.agents.guard import Guard, GuardError, typed
from otf_core.client import Client
from otf_core.client.choosing import ChoiceError, choose, name_of
from otf_core.client.client import ClientError
from otf_core.client.verbs import VERBS, Arg, UsageError, Verb, request_of
from otf_core.protocol import COMMANDS

WAIT_S: Final = 120.0
POINTS: Final = 200
EVENTS: Final = 50
_KINDS: Final = {"int": "integer", "float": "number", "flag": "boolean", "text": "string"}
_RUN: Final = {
    "type": "string",
    "description": "Run name, session id or run id; needed if several are live.",
}
_DRY_RUN: Final = {
    "type": "boolean",
    "description": "Only say whether it would be allowed, and what it would do.",
}


@dataclasses.dataclass(frozen=True)
class Tool:
    """One that an agent can call.

    Attributes:
        call: arguments -> what is answered, a plain object with ``said``.
        changes: the run; such a tool is there only where a person has allowed it.
        loses: work, so that a person is needed each time.
    """

    name: str
    help: str
    schema: Mapping[str, Any]
    call: Callable[[Mapping[str, Any]], dict[str, Any]]
    changes: bool = False
    loses: bool = False


class Tools:
    """All of one server.

    Args:
        client: makes the connection to the dashboard, when one is needed.
        who: what the agent calls itself, as all who watch the run are shown it.
        only: the one run that may be seen and changed; None for all.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        guard: Guard,
        *,
        who: Callable[[], str] = lambda: "an agent",
        only: str | None = None,
    ) -> None:
        self._client, self._guard, self._who, self._only = client, guard, who, only
        tools = [self._of_verb(verb) for verb in VERBS]
        tools += [
            Tool("runs", "List the live runs.", _object({}), self._runs),
            Tool(
                "metrics",
                "The numbers of a run's metrics, thinned; without names, which there are.",
                _object(
                    {
                        "names": {"type": "array", "items": {"type": "string"}},
                        "points": {"type": "integer", "minimum": 1, "maximum": 2000},
                        "run": _RUN,
                    }
                ),
                self._metrics,
            ),
            Tool(
                "events",
                "The last events of a run: what was done, saved, found, and what went wrong.",
                _object(
                    {
                        "types": {"type": "array", "items": {"type": "string"}},
                        "count": {"type": "integer", "minimum": 1, "maximum": 500},
                        "run": _RUN,
                    }
                ),
                self._events,
            ),
        ]
        self.by_name = {tool.name: tool for tool in tools if guard.rules.write or not tool.changes}
        self._not_here = {tool.name for tool in tools} - self.by_name.keys()

    def call(self, name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """What a tool answers, and whether it has been refused; raises nothing of these."""
        try:
            if name in self._not_here:
                self._guard.check(name, "", {}, "")
            if name not in self.by_name:
                known = ", ".join(self.by_name)
                return _refused("unknown_tool", f"No tool {name!r}; there are {known}."), True
            tool = self.by_name[name]
            strange = given.keys() - tool.schema["properties"].keys()
            if strange:
                allowed = ", ".join(tool.schema["properties"])
                detail = f"{name} was given {', '.join(sorted(strange))}; allowed: {allowed}."
                return _refused("usage", detail), True
            missing = [key for key in tool.schema.get("required", ()) if key not in given]
            if missing:
                return _refused("usage", f"{name} needs {', '.join(missing)}."), True
            return tool.call(given), False
        except GuardError as error:
            return _refused(error.code, str(error), **error.more), True
        except UsageError as error:
            return _refused("usage", str(error)), True
        except ChoiceError as error:
            return _refused("no_run", str(error), allowed=error.allowed), True
        except ClientError as error:
            return {**error.error, "said": str(error), "applied": False}, True

    def _of_verb(self, verb: Verb) -> Tool:
        spec = COMMANDS[verb.cmd]
        fields = {arg.key: _field(arg) for arg in verb.args}
        needed = [arg.key for arg in verb.args if not arg.words and arg.required]
        fields["run"] = _RUN
        if spec.mutates:
            fields["dry_run"] = _DRY_RUN
        return Tool(
            verb.word,
            verb.help,
            _object(fields, needed),
            lambda given: self._call_verb(verb, given),
            changes=spec.mutates,
            loses=verb.word in ("stop", "rollback", "reset"),
        )

    def _call_verb(self, verb: Verb, given: Mapping[str, Any]) -> dict[str, Any]:
        asked = {key: value for key, value in given.items() if key not in ("run", "dry_run")}
        cmd, payload = request_of(verb, {k: _as_typed(verb, k, v) for k, v in asked.items()})
        client = self._client()
        session = self._session(client, given.get("run"))
        options = {arg.key: arg.words[0] for arg in verb.args if arg.words}
        line = typed(verb.word, asked, options, name_of(session))
        changes = COMMANDS[cmd].mutates
        if changes:
            self._guard.check(verb.word, cmd, payload, line)
        preview = self._look_ahead(client, session, cmd, payload) if changes else None
        if changes and given.get("dry_run"):
            return self._dry(session, verb, cmd, payload, line, preview)
        if changes:
            self._guard.count(verb.word)
        data = client.send(
            session["session_id"], cmd, payload, WAIT_S, by="rest", client=self._who()
        )
        found = data if isinstance(data, dict) else {}
        said = verb.say(name_of(session), found, session)
        return {"said": said, "run": name_of(session), "applied": changes, "data": data}

    def _look_ahead(
        self, client: Client, session: Mapping[str, Any], cmd: str, payload: Mapping[str, Any]
    ) -> Any:
        """What the coming steps would use, where values are set and the run can tell.

        Raises:
            GuardError: a value with bounds would leave them under its schedule.
            ClientError: the trainer would refuse it.
        """
        if cmd not in ("set_param", "set_params"):
            return None
        bounded = self._guard.bounded(payload)
        if "preview_params" not in (session.get("capabilities") or []):
            if any(change.get("mode") == "scale" for change in bounded):
                detail = "A schedule would be scaled, and this run cannot say where to; hold it."
                raise GuardError(detail, code="out_of_bounds", allowed=["override"])
            return None
        asked = {"changes": payload.get("changes") or [payload]}
        curves = client.send(
            session["session_id"], "preview_params", asked, WAIT_S, client=self._who()
        )
        self._guard.check_curves(curves if bounded else {})
        return curves

    def _dry(
        self,
        session: Mapping[str, Any],
        verb: Verb,
        cmd: str,
        payload: Mapping[str, Any],
        line: str,
        preview: Any,
    ) -> dict[str, Any]:
        """What would come of it, as far as can be told without doing it."""
        if cmd not in (session.get("capabilities") or []):
            detail = f"{name_of(session)} cannot {verb.word}: it does not list {cmd}."
            raise GuardError(detail, code="unsupported")
        found: dict[str, Any] = {"said": f"Would send: {line}. Nothing was changed."}
        if preview is not None:
            found["preview"] = preview
        return {
            **found, "run": name_of(session), "applied": False, "dry_run": True,
            "would": {"cmd": cmd, "payload": dict(payload), "line": line},
        }  # fmt: skip

    def _session(self, client: Client, asked: Any) -> Mapping[str, Any]:
        sessions = client.sessions()
        if self._only is not None:
            own = choose(sessions, self._only)
            if asked is not None and asked not in (own["session_id"], own["run_id"], name_of(own)):
                detail = f"{asked} was asked; this server is for {self._only} alone."
                raise GuardError(detail, code="read_only", allowed=[self._only])
            return own
        return choose(sessions, asked)

    def _runs(self, _given: Mapping[str, Any]) -> dict[str, Any]:
        live = [s for s in self._client().sessions() if s["connected"]]
        keys = (
            "run_name", "run_id", "session_id", "project", "state", "step", "epoch", "max_steps",
            "max_epochs", "exactness", "pending",
        )  # fmt: skip
        rows = [{key: session.get(key) for key in keys} for session in live]
        if self._only is not None:
            rows = [row for row in rows if self._only in row.values()]
        names = ", ".join(f"{r['run_name'] or r['run_id']} {r['state']}" for r in rows)
        return {"said": names or "no run is live", "runs": rows, "applied": False}

    def _metrics(self, given: Mapping[str, Any]) -> dict[str, Any]:
        client = self._client()
        run = self._session(client, given.get("run"))
        if not given.get("names"):
            known = client.run(run["run_id"], project=run["project"])["metrics"]
            return {"said": ", ".join(known), "names": known, "applied": False}
        found = client.curves(
            run["run_id"], given["names"], project=run["project"],
            buckets=max(1, int(given.get("points", POINTS)) // 2),
        )  # fmt: skip
        series = {
            name: {"step": each["step"], "value": each["value"]}
            for name, each in found["series"].items()
        }
        last = [f"{name} {each['value'][-1]:.6g} at step {each['step'][-1]}"
                for name, each in series.items() if each["value"]]  # fmt: skip
        said = "; ".join(last) or "no values"
        return {"said": said, "series": series, "applied": False}

    def _events(self, given: Mapping[str, Any]) -> dict[str, Any]:
        client = self._client()
        run = self._session(client, given.get("run"))
        types = given.get("types")
        after = max(0, run["last_seq"] - 5000)
        found = client.events(run["session_id"], after=after, types=types, limit=10_000)
        if not types:
            found = [event for event in found if event["type"] != "trainStep"]
        shown = found[-int(given.get("count", EVENTS)) :]
        return {"said": f"{len(shown)} events", "events": shown, "applied": False}


def _object(fields: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    found = {"type": "object", "properties": dict(fields), "additionalProperties": False}
    return {**found, "required": required} if required else found


def _field(arg: Arg) -> dict[str, Any]:
    said = {"description": arg.help}
    if arg.kind == "several":
        return {"type": "array", "items": {"type": "string"}, **said}
    if arg.kind == "value":
        return {"type": ["number", "boolean", "string"], **said}
    if arg.choices:
        return {"enum": [*arg.choices], **said}
    return {"type": _KINDS[arg.kind], **said}


def _as_typed(verb: Verb, key: str, value: Any) -> Any:
    """A value as the terminal gives it: text that ``request_of`` reads."""
    kind = next((arg.kind for arg in verb.args if arg.key == key), "text")
    if kind == "value":
        return str(value).lower() if isinstance(value, bool) else str(value)
    return str(value) if kind == "text" else value


def _refused(code: str, detail: str, **more: Any) -> dict[str, Any]:
    return {"error": code, "code": code, "detail": detail, "said": detail, "applied": False, **more}
