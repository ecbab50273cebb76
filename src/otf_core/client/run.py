"""A live run as an object: the verbs as methods, for scripts, notebooks and agents.

```python
from otf_core.client import connect

run = connect("digits")
run.pause()                          # returns when the run is held
run.set("lr", 1e-4, until=5000)
run.resume()
```
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

from otf_core.client.choosing import choose, name_of
from otf_core.client.client import Client
from otf_core.client.verbs import EXPORTS, VERBS, UsageError, request_of


class Run:
    """One live run. What returns has been applied; what was refused raises ``RefusedError``.

    Any thread; each call opens a connection of its own.
    """

    def __init__(
        self, client: Client, session: Mapping[str, Any], *, who: str | None = None
    ) -> None:
        self._client, self._who = client, who
        self.session_id, self.name = str(session["session_id"]), name_of(session)
        self.run_id, self.project = str(session["run_id"]), str(session["project"])

    def __repr__(self) -> str:
        return f"<Run {self.name} ({self.session_id}) at {self._client.url}>"

    def do(self, verb: str, *, wait_s: float | None = None, **given: Any) -> Any:
        """Any verb of the command line, with its arguments by the names of its payload.

        Args:
            wait_s: how long to wait for the answer; None for as long as it takes.

        Raises:
            UsageError: there is no such verb, or its arguments do not go together.
            RefusedError, NoAnswerError, NotConnectedError, NoDashboardError: see ``Client.send``.
        """
        known = {each.word: each for each in (*VERBS, *EXPORTS)}
        if verb not in known:
            msg = f"verb {verb!r} was asked; there are {', '.join(known)}"
            raise UsageError(msg)
        fields = {arg.key: arg for arg in known[verb].args}
        strange = given.keys() - fields
        if strange:
            msg = f"{verb} was given {', '.join(sorted(strange))}; allowed: {', '.join(fields)}"
            raise UsageError(msg)
        texts = {
            key: _text(value) if fields[key].kind == "value" else value
            for key, value in given.items()
        }
        cmd, payload = request_of(known[verb], texts)
        return self.send(cmd, payload, wait_s=wait_s)

    def send(
        self, cmd: str, payload: Mapping[str, Any] | None = None, *, wait_s: float | None = None
    ) -> Any:
        """A command of the protocol as it is; the reply's data."""
        return self._client.send(self.session_id, cmd, payload, wait_s, client=self._who)

    # What it is.

    def session(self) -> dict[str, Any]:
        """What the dashboard knows of it."""
        return self._client.session(self.session_id)

    def status(self) -> dict[str, Any]:
        """The whole state as of the last safe point."""
        found: dict[str, Any] = self.do("status")
        return found

    def params(self) -> dict[str, dict[str, Any]]:
        """What can be set, by path, with value and bounds."""
        return {row["path"]: row for row in self.do("params")["params"]}

    def checkpoints(self) -> list[dict[str, Any]]:
        """Newest first."""
        found: list[dict[str, Any]] = self.do("checkpoints")["checkpoints"]
        return found

    def metrics(self, *names: str, buckets: int = 600) -> dict[str, dict[str, list[Any]]]:
        """By name ``{"step": [...], "value": [...]}``, thinned to least and greatest of buckets."""
        found = self._client.curves(self.run_id, names, project=self.project, buckets=buckets)
        return {
            name: {"step": each["step"], "value": each["value"]}
            for name, each in found["series"].items()
        }

    def events(self, types: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """Events as they come from now on, for ever."""
        return self._client.follow(self.session_id, after=self.session()["last_seq"], types=types)

    # What is done to it.

    def pause(self, **given: Any) -> dict[str, Any]:
        """Hold it after the batch; returns when it is held and its checkpoint is saved."""
        return self._done("pause", given)

    def resume(self) -> dict[str, Any]:
        """Let it go on."""
        return self._done("resume", {})

    def park(self, *, back: bool = False) -> dict[str, Any]:
        """Free the device of a held run, or with ``back`` bring it back; it stays held."""
        return self._done("park", {"back": True} if back else {})

    def stop(self, *, save: bool = True) -> dict[str, Any]:
        """End it, with a checkpoint."""
        return self._done("stop", {} if save else {"save": True})  # the verb's flag is --no-save

    def save(self) -> dict[str, Any]:
        """Save a checkpoint; returns when the file is complete."""
        return self._done("save", {})

    def validate(self, **given: Any) -> dict[str, Any]:
        """Run the validation loop now."""
        return self._done("validate", given)

    def test(self, **given: Any) -> dict[str, Any]:
        """Run the test loop now."""
        return self._done("test", given)

    def set(self, path: str, value: Any = None, **given: Any) -> dict[str, Any]:
        """Set a value; ``mul=True``, ``until=``, ``at_step=``, ``to=``, ``over=`` as the verb."""
        return self._done("set", {"path": path, **_value(value), **given})

    def set_all(self, changes: Mapping[str, Any], *, at_step: int | None = None) -> dict[str, Any]:
        """Several values at one step, or none of them."""
        rows = [{"path": path, "value": value} for path, value in changes.items()]
        later = {} if at_step is None else {"at_step": at_step}
        found: dict[str, Any] = self.send("set_params", {"changes": rows, **later})
        return found

    def preview(self, path: str = "lr", value: Any = None, **given: Any) -> dict[str, Any]:
        """What the coming steps will use, with the change and without; nothing is changed."""
        change = {**_value(value), **given}
        steps = {"steps": change.pop("steps")} if "steps" in change else {}
        return self._done("preview", {**({"path": path, **change} if change else {}), **steps})

    def undo(self, change: int | None = None, *, restore: bool = False) -> dict[str, Any]:
        """Take back the last command that changed the run, or one by its number in ``changes``."""
        which = {} if change is None else {"which": str(change)}
        return self._done("undo", {**which, **({"restore": True} if restore else {})})

    def changes(self) -> list[dict[str, Any]]:
        """The ledger: every change, by whom, when and why; the oldest first."""
        found: list[dict[str, Any]] = self._done("changes", {})["changes"]
        return found

    def rollback(self, to: int | str) -> dict[str, Any]:
        """Put it back to a step, a checkpoint's id or a file."""
        return self._done("rollback", {"to": to})

    def note(self, text: str) -> dict[str, Any]:
        """Write a note into its record."""
        return self._done("note", {"text": text})

    def _done(self, verb: str, given: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.do(verb, **given)
        return found


class AsyncRun:
    """The methods of ``Run`` to be awaited; each runs in a thread meanwhile.

    ``events`` is not among them: take ``otf_core.client.live`` for a feed.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self.run, name)
        if not callable(method) or name == "events":
            msg = f"{name} of AsyncRun was asked; allowed: the methods of Run, without events"
            raise AttributeError(msg)

        async def awaited(*args: Any, **given: Any) -> Any:
            import asyncio  # the command line has no use for it

            return await asyncio.to_thread(method, *args, **given)

        return awaited


def connect(run: str | None = None, *, url: str | None = None, who: str | None = None) -> Run:
    """A live run, by the dashboard of this machine or of ``url``.

    Args:
        run: its name, session id or run id; None if there is only one.
        url: as ``otf dashboard`` prints it.
        who: what all who watch are shown of who gave a command.

    Raises:
        NoDashboardError: none runs, or it does not answer.
        ChoiceError: no live run fits, or several do.
    """
    client = Client.from_rendezvous() if url is None else Client.from_url(url)
    return Run(client, choose(client.sessions(), run), who=who)


async def connect_async(
    run: str | None = None, *, url: str | None = None, who: str | None = None
) -> AsyncRun:
    """As ``connect``."""
    import asyncio

    return AsyncRun(await asyncio.to_thread(connect, run, url=url, who=who))


def _value(value: Any) -> dict[str, Any]:
    return {} if value is None else {"value": value}


def _text(value: Any) -> str:
    """As it is typed, which is what a verb reads."""
    return str(value).lower() if isinstance(value, bool) else str(value)
