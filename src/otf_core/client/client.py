"""The REST API of a running dashboard, for scripts, the command line and agents; any thread.

Rule: what returns has been applied. A refusal, a missing dashboard, a run that does not answer and
an answer that has not come yet are four different errors.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from otf_core.errors import OtfError

POLL_S: Final = 20.0
SLACK_S: Final = 10.0  # over what the dashboard was asked to wait
MAX_ANSWER_BYTES: Final = 512 * 1024 * 1024


class ClientError(OtfError):
    """Base of what this client raises; ``error`` is the error object of the API."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.error = dict(error)
        super().__init__(str(error.get("detail") or error.get("error")))

    @property
    def code(self) -> str:
        """The wire's code, or the client's own: no_dashboard, no_answer."""
        return str(self.error.get("code", "internal"))


class NoDashboardError(ClientError):
    """No dashboard runs, or it does not answer."""

    def __init__(self, detail: str) -> None:
        super().__init__({"error": "no_dashboard", "code": "no_dashboard", "detail": detail})


class RefusedError(ClientError):
    """The trainer, or the dashboard, has refused; nothing was changed."""


class NotConnectedError(RefusedError):
    """The session is known, but its trainer is not there; nothing was sent."""


class NoAnswerError(ClientError):
    """Sent, but not answered in time; ask again with the same id to learn what became of it."""

    def __init__(self, request_id: str, cmd: str, waited_s: float) -> None:
        self.request_id = request_id
        detail = (
            f"{cmd} was sent and has not been answered within {waited_s:g} s; it may yet apply."
        )
        said = {"error": "no_answer", "code": "no_answer", "detail": detail, "id": request_id}
        super().__init__(said)


class Client:
    """One dashboard. Each call opens a connection of its own, so threads may share a client.

    Args:
        cert_sha256: fingerprint of the one certificate that is believed; None: as the system does.
    """

    def __init__(
        self, url: str, token: str, *, timeout_s: float = 10.0, cert_sha256: str | None = None
    ) -> None:
        parts = urlsplit(url)
        self._tls, self._cert_sha256 = parts.scheme == "https", cert_sha256
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._token, self._timeout_s = token, timeout_s
        self.url = url.partition("#")[0]

    @classmethod
    def from_rendezvous(cls, *, timeout_s: float = 10.0) -> Client:
        """The dashboard that runs on this machine for this user.

        Raises:
            NoDashboardError: none says that it runs.
        """
        from otf_core import rendezvous

        found = rendezvous.find()
        if found is None:
            detail = "No dashboard runs; start one with: otf dashboard"
            raise NoDashboardError(detail)
        return cls(found.url, found.token, timeout_s=timeout_s, cert_sha256=found.cert_sha256)

    @classmethod
    def from_url(cls, url: str, *, timeout_s: float = 10.0) -> Client:
        """The dashboard of a URL that ends in ``#token=…``, as ``otf dashboard`` prints it."""
        fragment = urlsplit(url).fragment
        return cls(url, fragment.removeprefix("token="), timeout_s=timeout_s)

    @property
    def token(self) -> str:
        """What opens the API; not to be written anywhere that others read."""
        return self._token

    @property
    def page_url(self) -> str:
        """The page's address, token included."""
        return f"{self.url}#token={self._token}"

    @property
    def watch_url(self) -> str:
        """The address of the page for those who may only watch."""
        from otf_core.rendezvous import read_only_token

        return f"{self.url}#token={read_only_token(self._token)}"

    def ticket(self) -> str:
        """A path from the page's folder that opens the page once, soon; for what is kept."""
        return str(self._call("POST", "api/tickets")["path"])

    def health(self) -> dict[str, Any]:
        """``{ok, version}``."""
        return self._get("api/health")

    def sessions(self) -> list[dict[str, Any]]:
        """All sessions, those read from journals too."""
        found: list[dict[str, Any]] = self._get("api/sessions")["sessions"]
        return found

    def live_sessions(self) -> list[dict[str, Any]]:
        """Those whose trainer is connected."""
        return [session for session in self.sessions() if session["connected"]]

    def session(self, session_id: str) -> dict[str, Any]:
        """One session."""
        return self._get(f"api/sessions/{_quoted(session_id)}")

    def runs(self) -> list[dict[str, Any]]:
        """All runs."""
        found: list[dict[str, Any]] = self._get("api/runs")["runs"]
        return found

    def run(self, run_id: str, *, project: str | None = None) -> dict[str, Any]:
        """One run and the names of its metrics."""
        return self._get(f"api/runs/{_quoted(run_id)}", {"project": project})

    def metrics(
        self,
        run_id: str,
        names: Iterable[str] | None = None,
        *,
        project: str | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        points: int = 6000,
    ) -> dict[str, Any]:
        """Columns of numbers; see the API's document."""
        query = {
            "project": project,
            "names": None if names is None else ",".join(names),
            "from": from_step,
            "to": to_step,
            "points": points,
        }
        return self._get(f"api/runs/{_quoted(run_id)}/metrics", query)

    def curves(
        self, run_id: str, names: Iterable[str], *, project: str | None = None, buckets: int = 600
    ) -> dict[str, Any]:
        """Curves as they are drawn: least and greatest value of each bucket, by metric."""
        query = {"project": project, "names": ",".join(names), "buckets": buckets}
        return self._get(f"api/runs/{_quoted(run_id)}/metrics", query)

    def send(
        self,
        session_id: str,
        cmd: str,
        payload: Mapping[str, Any] | None = None,
        wait_s: float | None = 30.0,
        *,
        request_id: str | None = None,
        by: str = "rest",
        client: str | None = None,
    ) -> Any:
        """Send a command; returns the reply's data when it has been applied.

        Args:
            wait_s: how long to wait for the answer; None for as long as it takes.
            client: who sends it, as all who watch are shown it.
            request_id: ask again with the id of a ``NoAnswerError`` to learn what became of it.

        Raises:
            RefusedError: it was refused; nothing has changed.
            NotConnectedError: the trainer is not there.
            NoAnswerError: no answer yet.
            NoDashboardError: no dashboard answers.
        """
        request_id = request_id or str(uuid.uuid4())
        path = f"api/sessions/{_quoted(session_id)}/commands"
        end_s = None if wait_s is None else time.monotonic() + wait_s
        while True:
            left_s = POLL_S if end_s is None else min(POLL_S, max(0.0, end_s - time.monotonic()))
            body = {
                "cmd": cmd,
                "payload": dict(payload or {}),
                "id": request_id,
                "wait_s": left_s,
                "by": by,
                **({} if client is None else {"client": client}),
            }
            answer = self._call("POST", path, body=body, wait_s=left_s)
            if answer.get("ok") is True:
                return answer.get("data")
            if end_s is not None and time.monotonic() >= end_s:
                raise NoAnswerError(request_id, cmd, wait_s or 0.0)

    def submit(
        self,
        session_id: str,
        cmd: str,
        payload: Mapping[str, Any] | None = None,
        *,
        request_id: str,
        by: str = "rest",
        client: str | None = None,
    ) -> None:
        """Send a command and do not wait: its receipt comes by the live feed, or by ``answer``.

        Raises:
            RefusedError: the dashboard has refused it at once; nothing has changed.
            NotConnectedError, NoDashboardError: it was not sent, or nobody can tell.
        """
        path = f"api/sessions/{_quoted(session_id)}/commands"
        given = {"cmd": cmd, "payload": dict(payload or {}), "id": request_id, "wait_s": 0}
        who = {"by": by} if client is None else {"by": by, "client": client}
        self._call("POST", path, body=given | who)

    def answer(self, session_id: str, request_id: str) -> dict[str, Any]:
        """What has become of a command: ``{id, state, reply}``."""
        path = f"api/sessions/{_quoted(session_id)}/commands/{_quoted(request_id)}"
        return self._get(path)

    def events(
        self,
        session_id: str,
        *,
        after: int = 0,
        types: Iterable[str] | None = None,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Events after a number, oldest first; waits for the first if there is none yet."""
        query = {
            "after": after,
            "types": None if types is None else ",".join(types),
            "limit": limit,
            "wait_s": wait_s,
        }
        path = f"api/sessions/{_quoted(session_id)}/events"
        found: list[dict[str, Any]] = self._call("GET", path, query=query, wait_s=wait_s)["events"]
        return found

    def follow(
        self, session_id: str, *, after: int = 0, types: Iterable[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Events as they come, for ever; ends with what ``events`` raises."""
        chosen = None if types is None else list(types)
        while True:
            for event in self.events(session_id, after=after, types=chosen, wait_s=POLL_S):
                after = event["event_seq"]
                yield event

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._call("GET", path, query=query)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        wait_s: float = 0.0,
    ) -> dict[str, Any]:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{self._prefix}/{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"Authorization": f"Bearer {self._token}"}
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        timeout_s = self._timeout_s + (wait_s + SLACK_S if wait_s else 0.0)
        connection = self._connection(timeout_s)
        try:
            connection.connect()
            self.believe(connection.sock)  # before anything is said: the token is for it alone
            connection.request(method, target, body=data, headers=headers)
            answer = connection.getresponse()
            status, content = answer.status, answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            detail = f"The dashboard at {self.url} does not answer ({error}); start: otf dashboard"
            raise NoDashboardError(detail) from error
        finally:
            connection.close()
        return _read_answer(status, content, self.url)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout_s, context=self.ssl_context()
        )

    def ssl_context(self) -> Any:
        """What a connection over TLS is made with; None where there is none."""
        if not self._tls:
            return None
        import ssl

        return ssl.create_default_context() if self._cert_sha256 is None else _unchecked()

    def believe(self, peer: Any) -> None:
        """Raise ConnectionError if what was reached has another certificate than the one known."""
        if not self._tls or self._cert_sha256 is None:
            return
        found = hashlib.sha256(peer.getpeercert(binary_form=True) or b"").hexdigest()
        if found != self._cert_sha256:
            msg = f"its certificate is another one: SHA-256 {found}"
            raise ConnectionError(msg)


def _unchecked() -> Any:
    """For a connection whose certificate is compared with a known one instead."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _read_answer(status: int, content: bytes, url: str) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError as error:
        detail = f"What answers at {url} is no dashboard (status {status}, no JSON)."
        raise NoDashboardError(detail) from error
    if not isinstance(answer, dict):
        detail = f"What answers at {url} is no dashboard (status {status}, no object)."
        raise NoDashboardError(detail)
    if status < 300:
        return answer
    if answer.get("connected") is False:
        raise NotConnectedError(answer)
    raise RefusedError(answer)
