"""A double of the published VS Code extension's host (0.1.7), as docs/protocol.md part 1 has it.

What a person does in the page is a method here, which sends the requests that the extension sends,
in its order, and waits for each reply.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from otf_core import protocol
from otf_core.testing.dashboards import Listener
from otf_core.transport import Transport

PATIENCE_S: Final = 10.0
Reply = dict[str, Any]


class HostError(Exception):
    """A reply that says no; the extension shows its text to the user."""


class LegacyDashboard:
    """Accepts one trainer, treats it as the extension does, records everything.

    Attributes:
        tape: all lines as (direction, message), direction "in" or "out", in order.
        replies, events, page: what came, sorted as the host does; ``page`` holds what it hands on
            untouched and ignores.
        page_log: lines that are no JSON; shown as text.
        shown_errors: what the user was shown.
        runs, checkpoints, points, logs: what is stored, by run.
        state: "running", "paused" or None; current_run, session_id.
        wipes: how often a connection found something to wipe; warnings: second trainers refused.
        notice: the text that covers the page when the version was refused.

    Args:
        listener: where it can be dialled; closed by ``close``.
        required: the user's ``onthefly.minPythonPackage``.
        selected_run: what is selected in the page.
    """

    def __init__(
        self, listener: Listener, *, required: str = "0.1.4", selected_run: str | None = None
    ) -> None:
        self._listener, self._required = listener, required
        self.selected_run = selected_run
        self.tape: list[tuple[str, Any]] = []
        self.replies: dict[str, Reply] = {}
        self.events: list[dict[str, Any]] = []
        self.page: list[Any] = []
        self.page_log: list[str] = []
        self.shown_errors: list[str] = []
        self.wipes = self.warnings = self.connections = 0
        self.notice: str | None = None
        self.runs: dict[str, dict[str, Any]] = {}
        self.checkpoints: dict[str, list[tuple[str | None, int | None]]] = {}
        self.points: dict[str, list[dict[str, Any]]] = {}
        self.logs: list[dict[str, Any]] = []
        self.state: str | None = None
        self.current_run: str | None = None
        self.session_id: str | None = None
        self._needs_clean_disk = True
        self._asked: dict[str, tuple[str, Callable[[Reply], None]]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._transport: Transport | None = None
        self._readers: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="legacy-host", daemon=True)
        self._acceptor.start()

    # --- what a person does (section 4) ---

    def press_pause(self) -> Reply | None:
        """Pause; the reply of ``save_ckpt``. Nothing if already shown as paused."""
        if self.state == "paused":
            return None
        self.state = "paused"  # shown as soon as it has asked
        self.ask("pause")
        return self.ask("save_ckpt", timeout_s=120)

    def press_resume(self, run_id: str | None = None) -> None:
        """Resume: without an id, so nothing answers it."""
        self._on(run_id)
        self.wait_for(lambda: self.current_run is not None)
        self.tell("resume")
        self.state = "running"

    def press_test(self, run_id: str | None = None) -> Reply:
        """Test now; the reply."""
        self._on(run_id)
        self._quietly("pause")
        return self.ask("test_now", {"label": "final"}, timeout_s=600)

    def press_report(self, run_id: str | None = None) -> Reply:
        """Generate report; the reply."""
        self._on(run_id)
        self.ask("pause")
        payload = {"owner_run_id": run_id or self.current_run, "subset_on": "train", "reqId": 1}
        return self.ask("generate_report", payload, timeout_s=600)

    def press_fork(self, parent: str, **payload: Any) -> Reply:
        """Fork of a region; the reply. ``hparams`` are the form's filling unless given."""
        self._on(parent)
        self._quietly("pause")
        if not self.checkpoints.get(parent):
            self._quietly("save_ckpt")
        form = {"lr": 0.001, "batch_size": 32, "patience": 5}
        asked = {"parent_run_id": parent, "owner_run_id": parent, "hparams": form, **payload}
        reply = self.ask("fork", asked, timeout_s=120)
        self.tell("resume")
        return reply

    def press_merge(self, first: str, second: str, strategy: str = "swa") -> Reply:
        """Merge of two; the reply. Refused by the host if it knows no checkpoint of one."""
        self._on(first)
        self._quietly("pause")
        for parent in (first, second):
            if not self.checkpoints.get(parent):
                msg = f"no checkpoint of {parent} is known"
                raise HostError(msg)
        reply = self.ask("merge", {"parents": [first, second], "strategy": strategy}, timeout_s=120)
        self.tell("resume")
        return reply

    def press_health(self, cmd: str = "dist_health", run_id: str | None = None) -> Reply:
        """A health button; only when paused."""
        self._on(run_id)
        self._quietly("pause")
        payload = {"require_all_ranks": False, "sample_weights": 0} if cmd == "dist_health" else {}
        return self.ask(cmd, payload)

    def press_export_subset(self, run_id: str, out_path: str, form: str = "csv") -> Reply:
        """Export subset, without ``switch_run`` or ``pause``."""
        payload = {"run_id": run_id, "format": form, "out_path": out_path, "_trace": "no-trace"}
        return self.ask("export_subset", payload, timeout_s=600)

    def press_export_session(self, folder: str) -> Reply:
        """Export session; the reply of ``prepare_export``, or of ``spill_all`` where that fails."""
        payload = {"dir": folder, "latest_only": True}
        try:
            owners = sorted(self.runs)
            return self.ask("prepare_export", {**payload, "owners": owners}, timeout_s=600)
        except HostError:
            return self.ask("spill_all", payload, timeout_s=600)

    def press_refresh(self) -> None:
        """Refresh: reset, clean the disk, hang up. The trainer dials again."""
        reply = self.ask("reset_session", {"reason": "manual"}, timeout_s=60)
        self.runs[reply["run_id"]] = {"parents": [], "name": reply.get("display_name")}
        self.current_run, self.session_id = reply["run_id"], reply.get("session_id")
        self.ask("clean_disk", {"scope": "all"}, timeout_s=60)
        self.hang_up()

    # --- the wire ---

    def ask(
        self, cmd: str, payload: Mapping[str, Any] | None = None, *, timeout_s: float = PATIENCE_S
    ) -> Reply:
        """Send a request and wait; the reply's data. Raises HostError, TimeoutError."""
        request_id = self.send(cmd, payload)
        limit_s = min(timeout_s, PATIENCE_S)
        self.wait_for(lambda: request_id in self.replies, limit_s)
        reply = self.replies[request_id]
        if not reply["ok"]:
            self.shown_errors.append(str(reply.get("error")))
            raise HostError(str(reply.get("error")))
        data = reply.get("data")
        return data if isinstance(data, dict) else {"array": data}

    def send(self, cmd: str, payload: Mapping[str, Any] | None = None) -> str:
        """Send a request; its id."""
        request_id = str(uuid.uuid4())
        self._write({"id": request_id, "cmd": cmd, "payload": dict(payload or {})})
        return request_id

    def tell(self, cmd: str) -> None:
        """Send a request without id and payload, as the extension does ``resume``."""
        self._write({"cmd": cmd})

    def wait_for(self, claim: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
        """Until it holds; looked at after each line. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(claim, timeout_s):
                msg = f"not within {timeout_s} s; the last on the tape: {self.tape[-5:]}"
                raise TimeoutError(msg)

    def wait_for_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of this type with these fields, when it has come."""

        def find() -> list[dict[str, Any]]:
            return [e for e in self.events if e.get("type") == kind and fields.items() <= e.items()]

        self.wait_for(find)
        return find()[0]

    @property
    def requests(self) -> list[str]:
        """The names of all that was sent, in order."""
        return [message["cmd"] for direction, message in self.tape if direction == "out"]

    def hang_up(self) -> None:
        """End the connection, listen on."""
        with self._changed:
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def close(self) -> None:
        """The window closes."""
        self._listener.close()
        self._acceptor.join(PATIENCE_S)
        self.hang_up()
        for reader in self._readers:
            reader.join(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.close()

    # --- within ---

    def _on(self, run_id: str | None) -> None:
        if run_id is not None and run_id != self.current_run:
            self.ask("switch_run", self._context(run_id), timeout_s=30)
            self.current_run = run_id

    def _quietly(self, cmd: str) -> None:
        try:
            self.ask(cmd)
        except HostError:
            self.shown_errors.pop()

    def _context(self, run_id: str) -> dict[str, Any]:
        known = self.checkpoints.get(run_id)
        newest = {"init_ckpt": known[-1][0], "init_step": known[-1][1]} if known else {}
        return {"run_id": run_id, "fork_counter_init": 0, "merge_counter_init": 0, **newest}

    def _forget(self) -> None:
        self.runs, self.checkpoints, self.points, self.logs = {}, {}, {}, []
        self.state = self.current_run = self.session_id = None

    def _accept(self) -> None:
        while (transport := self._listener.accept(None)) is not None:
            with self._changed:
                busy = self._transport is not None
                if busy:
                    self.warnings += 1
                else:
                    self._transport = transport
                    self.connections += 1
                self._changed.notify_all()
            if busy:
                transport.close()
            else:
                self._connected(transport)

    def _connected(self, transport: Transport) -> None:
        """Section 3, steps 1 to 3."""
        with self._changed:
            if self.runs or self.session_id or self.selected_run or self.current_run:
                self._forget()
                self.selected_run = None
                self.wipes += 1
                self._needs_clean_disk = True
        reader = threading.Thread(
            target=self._read, args=(transport,), name="legacy-host-reader", daemon=True
        )
        self._readers.append(reader)
        reader.start()
        self._ask_later("server_info", {}, self._check_version)

    def _check_version(self, reply: Reply) -> None:
        """Steps 4 and 5."""
        data = reply.get("data")
        version = data.get("version") if isinstance(data, dict) else None
        if not reply["ok"] or _numbers(version) < _numbers(self._required):
            self.notice = f"the package must be {self._required}, found {version}"
            said = {"message": self.notice, "required": self._required, "reported": version}
            self._ask_later("enforce_version", said, lambda _: self.hang_up())
            return
        target = self.selected_run or self.current_run
        if target is None:
            return
        if target == self.current_run:
            seeds = {"fork_counter_init": 0, "merge_counter_init": 0}
            self._ask_later("set_counter_seeds", seeds, lambda _: None)
        else:
            self._ask_later("attach_context", self._context(target), lambda _: None)

    def _ask_later(
        self, cmd: str, payload: Mapping[str, Any], then: Callable[[Reply], None]
    ) -> None:
        request_id = str(uuid.uuid4())
        self._asked[request_id] = (cmd, then)
        self._write({"id": request_id, "cmd": cmd, "payload": dict(payload)})

    def _write(self, message: dict[str, Any]) -> None:
        with self._changed:
            self.tape.append(("out", message))
            transport = self._transport
            self._changed.notify_all()
        if transport is None:
            msg = f"{message['cmd']} was to be sent, but no trainer is connected"
            raise ConnectionError(msg)
        # The host writes non-ASCII raw, not escaped.
        transport.send(json.dumps(message, ensure_ascii=False).encode() + b"\n")

    def _read(self, transport: Transport) -> None:
        splitter = protocol.LineSplitter()
        try:
            while data := transport.recv():
                for line in splitter.feed(data):
                    if isinstance(line, bytes):
                        self._take(line)
        except OSError:
            pass
        transport.close()
        with self._changed:
            if self._transport is transport:
                self._transport = None
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        """Section 2: how the host sorts a line."""
        then: Callable[[Reply], None] | None = None
        with self._changed:
            try:
                message = json.loads(line, parse_constant=_no_constant)
            except ValueError:
                self.page_log.append(line.decode("utf-8", "replace"))
                return
            self.tape.append(("in", message))
            if not isinstance(message, dict):
                self.page.append(message)
                return
            if "event" in message and "type" not in message:
                message["type"] = message["event"]
            if message.get("id") and isinstance(message.get("ok"), bool):
                self.replies[message["id"]] = message
                _, then = self._asked.pop(message["id"], ("", None))
            else:
                self.events.append(message)
                self._react(message)
            self._changed.notify_all()
        if then is not None:
            then(message)
        elif message.get("type") == "session_started" and self._needs_clean_disk:
            self._needs_clean_disk = False
            self._ask_later("clean_disk", {"scope": "all"}, lambda _: None)

    def _react(self, event: dict[str, Any]) -> None:
        """Section 6."""
        run = event.get("run_id") or self.current_run or "live"
        match event.get("type"):
            case "session_started":
                self.current_run, self.session_id = run, event.get("session_id")
            case "newRun":
                if event.get("run_id"):
                    parents = event.get("parents") or []
                    name = event.get("run_name") or run
                    self.runs.setdefault(run, {"parents": parents, "name": name})
                    self.current_run = run
            case "trainStep":
                self.points.setdefault(run, []).append(event)
                self.current_run, self.state = run, "running"
            case "log":
                self.logs.append(event)
            case "paused":
                self.state = "paused"
            case "resumed":
                self.state, self.current_run = "running", run
            case "trainingFinished":
                self.state = None
            case "checkpoint_saved":
                self.checkpoints.setdefault(run, []).append((event.get("path"), event.get("step")))
            case "auto_test_complete":
                ckpt = (event.get("ckpt_path"), event.get("step"))
                self.checkpoints.setdefault(run, []).append(ckpt)
            case "epoch_end" | "error" | "testStep" | "test_complete":
                return
            case _:
                self.page.append(event)


def _numbers(version: Any) -> tuple[int, ...]:
    found = re.search(r"\d+(?:\.\d+)*", str(version))
    if found is None or isinstance(version, bool) or version is None:
        return (-1,)
    return tuple([*(int(n) for n in found.group().split(".")), 0, 0, 0][:3])


def _no_constant(name: str) -> None:
    msg = f"{name} is no JSON"
    raise ValueError(msg)
