"""A trainer made from docs/protocol.md: the other end of the hub, over TCP, with faults on order.

It keeps its events, as a journal does, so that a dashboard that comes back is served from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from otf_core.errors import CommandError
from otf_core.protocol import Request, decode_payload

Message = dict[str, Any]
ANSWERED_AT_ONCE = ("status", "ping", "list_params", "list_checkpoints")


def _misfit(cmd: str, payload: Message) -> CommandError | None:
    """Why a payload is none of its command's, as a trainer finds it."""
    raw = msgspec.Raw(json.dumps(payload).encode())
    try:
        decode_payload(Request(cmd=cmd, payload=raw))
    except CommandError as error:
        return error
    return None


class TrainerDouble:
    """Speaks otf/1; ``legacy`` speaks as the old package does."""

    def __init__(
        self,
        session_id: str = "sess-1",
        *,
        run_id: str = "digits",
        project: str = "demo",
        token: str | None = None,
        legacy: bool = False,
        run_dir: str | None = None,
    ) -> None:
        self.session_id, self.run_id, self.project = session_id, run_id, project
        self.token, self.legacy, self.run_dir = token, legacy, run_dir
        self.events: list[Message] = []
        self.first_seq = 1
        self.start_ts = 1767225600.0
        self.step, self.state, self.run_gen = 0, "running", 0
        self.checkpoints: list[Message] = []
        self.exactness = "exact"
        self.params: list[Message] = [
            {
                "path": "lr",
                "kind": "float",
                "value": 0.001,
                "pending": None,
                "min": 0.0,
                "max": 10.0,
                "owner": "optimizer",
            }
        ]
        self.answers: dict[str, Message] = {}
        self.requests: list[Message] = []
        self.holding = False  # accepts commands and does not answer them
        self.drop: set[int] = set()  # numbers that are not sent live: a slow reader's gap
        self.said_gap = True
        self.acked = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._live = False
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    # -- the connection ---------------------------------------------------------------------------

    async def dial(self, port: int) -> None:
        """Connect and start answering."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._live = self.legacy
        if not self.legacy:
            self.write(
                {
                    "type": "hello",
                    "protocol": "otf/1",
                    "version": "0.2.0",
                    "session_id": self.session_id,
                    "pid": 4242,
                    "token_required": self.token is not None,
                }
            )
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def hang_up(self) -> None:
        """Die: the connection goes, the events stay."""
        if self._writer is not None:
            self._writer.transport.abort()
        task, self._writer, self._task, self._live = self._task, None, None, False
        if task is not None:
            await task

    async def closed(self) -> None:
        """Wait until the dashboard has hung up."""
        assert self._task is not None
        await self._task

    @contextlib.asynccontextmanager
    async def on(self, port: int) -> AsyncIterator[TrainerDouble]:
        await self.dial(port)
        try:
            yield self
        finally:
            await self.hang_up()

    def write(self, message: Message) -> None:
        self.write_raw(json.dumps(message).encode() + b"\n")

    def write_raw(self, data: bytes) -> None:
        if self._writer is not None and not self._writer.transport.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        assert self._writer is not None
        await self._writer.drain()

    async def until(self, fits: Callable[[TrainerDouble], bool]) -> None:
        """Wait until a request has made this true."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: fits(self))

    def asked(self, cmd: str) -> list[Message]:
        return [request for request in self.requests if request["cmd"] == cmd]

    # -- events -----------------------------------------------------------------------------------

    def emit(self, type_: str, /, **fields: Any) -> Message:
        """Number an event, keep it, and send it if somebody listens."""
        seq = len(self.events) + 1
        stamps = {
            "run_id": self.run_id,
            "run_gen": self.run_gen,
            "ts": self.start_ts + seq / 4,
            "session_id": self.session_id,
            "event_seq": seq,
        }
        event = {"type": type_, **fields, **stamps}
        self.events.append(event)
        if self._live and seq not in self.drop:
            if self.said_gap and seq - 1 in self.drop:
                first = seq - 1
                while first - 1 in self.drop:
                    first -= 1
                span = {"from": first, "to": seq - 1, "count": seq - first}
                self.write({"type": "gap", **span, "reason": "slow_reader"})
            self.write(event)
        return event

    def begin(self) -> None:
        extra = {"run_dir": self.run_dir} if self.run_dir else {}
        self.emit("session_started", project=self.project, run_name=self.run_id, **extra)
        self.emit("newRun", parents=[], run_name=self.run_id, project=self.project, meta={})

    def train(self, steps: int, **more: Any) -> None:
        for _ in range(steps):
            self.step += 1
            self.emit(
                "trainStep",
                step=self.step,
                epoch=self.step // 100,
                loss=1.0 / self.step,
                val_loss=0.5 if self.step % 50 == 0 else None,
                lr=0.001,
                metrics={"train_loss": 1.0 / self.step},
                **more,
            )

    # -- requests ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        assert self._reader is not None
        try:
            while line := await self._reader.readline():
                request = json.loads(line)
                async with self._changed:
                    self.requests.append(request)
                    self._answer(request)
                    self._changed.notify_all()
        except ConnectionError:
            return

    def _reply(self, request: Message, data: Any) -> None:
        self._say(request, {"id": request["id"], "ok": True, "data": data})

    def refuse(self, request: Message, code: str, detail: str, **more: Any) -> None:
        error = {"error": code, "code": code, "detail": detail, **more}
        self._say(request, {"id": request["id"], "ok": False, **error})

    def _say(self, request: Message, reply: Message) -> None:
        if request["cmd"] not in ("hello", "status", "resume_from"):
            self.answers[request["id"]] = reply
        self.write(reply)

    def _answer(self, request: Message) -> None:
        cmd, payload = request["cmd"], request.get("payload", {})
        if self.legacy:
            self._answer_as_of_old(request)
        elif cmd == "ack":
            self.acked = payload["seq"]
        elif request["id"] in self.answers:
            self.write(self.answers[request["id"]])
        elif cmd == "hello":
            self._answer_hello(request, payload)
        elif cmd == "resume_from":
            self._resume_from(request, payload["seq"], payload.get("until"))
        elif cmd == "status":
            self._reply(request, self.status())
        elif cmd in ANSWERED_AT_ONCE:
            found = {
                "list_params": {"params": self.params},
                "list_checkpoints": {"checkpoints": self.checkpoints[::-1]},
            }
            self._reply(request, found.get(cmd, {"t": None, "ts": 1.0, "step": self.step}))
        elif (error := _misfit(cmd, payload)) is not None:
            self.write({"id": request["id"], "ok": False, **error.to_wire()})
        else:
            self.write(
                {
                    "type": "accepted",
                    "request_id": request["id"],
                    "cmd": cmd,
                    "step": self.step,
                    "waits_for": "safe_point",
                }
            )
            if not self.holding:
                self.carry_out(request)

    def carry_out(self, request: Message) -> None:
        """Apply a command now; tests call it later for one that was held."""
        cmd, payload = request["cmd"], request["payload"]
        done: Message = {"step": self.step, "applied_step": self.step}
        if cmd == "pause":
            path = f"{self.run_dir or 'otf_runs/demo/digits'}/checkpoints/{self.step}-pause.ckpt"
            self.emit(
                "checkpoint_saved", id=f"{self.step}-pause", path=path, step=self.step,
                kind="pause", bytes=91234, exact=True,
            )  # fmt: skip
            self.go("paused", "user")
            self.emit("paused", step=self.step, ckpt=path)
            self._reply(request, {"status": "paused", "ckpt": path, **done})
        elif cmd == "resume":
            self.go("running", None)
            self.emit("resumed", step=self.step)
            self._reply(request, {"status": "resumed", "changed": True, **done})
        elif cmd == "stop":
            self._reply(request, {"status": "stopping", "ckpt": None, **done})
            self.finish("stopped")
        elif cmd == "set_param" and payload.get("value") == -1:
            bounds = {"min": 0.0, "max": 10.0}
            detail = "lr -1 asked; it is 0.001 now and may be 0 to 10."
            self.refuse(request, "bad_payload", detail, field="value", allowed=bounds)
        elif cmd == "set_param":
            old, new = self.params[0]["value"], payload.get("value", 0.0)
            self.params = [{**self.params[0], "value": new}]
            self.emit(
                "param_changed", path="lr", old=old, new=new, applied_step=self.step, by="user"
            )
            said = {"path": "lr", "old": old, "new": new, "owner": "optimizer", "mode": "override"}
            self._reply(request, {**said, "until": None, **done})
        elif cmd == "note":
            self.emit("note", note_id="n1", text=payload.get("text"), step=self.step)
            self._reply(request, {"note_id": "n1", "ts": 1.0, **done})
        elif cmd == "save_ckpt":
            path = f"otf_runs/demo/digits/checkpoints/{self.step}-manual.ckpt"
            self._reply(request, {"id": f"{self.step}-manual", "path": path, **done})
        elif cmd == "validate_now":
            self._reply(request, {"metrics": {"val_loss": 0.41}, "seconds": 0.8, **done})
        elif cmd == "test_now":
            self._reply(request, {"status": "ok", "avg_loss": 0.4127, **done})
        elif cmd in ("rollback", "load_ckpt"):
            self._roll_back(request, payload)
        elif cmd == "export_subset":
            said = {"run_id": "digits", "rows": 19, "format": "csv", "export_all": False}
            path = payload.get("out_path") or "exports/digits-step120-train.csv"
            self._reply(request, {"ok": True, **said, "out_path": path, "applied_step": 120})
        elif cmd == "spill_all":
            found = {"ckpt_id": "digits-1", "owner": "digits", "path": "/1.ckpt", "step": 1}
            self._reply(request, [found])
        elif cmd == "undo":
            undone = {"request_id": payload.get("request_id", "last"), "cmd": "set_param"}
            self._reply(request, {"undone": undone, "now": {"lr": 0.001}, **done})
        elif cmd == "extend":
            limits = {"max_steps": None, "max_epochs": None}
            old = {"max_steps": None, "max_epochs": 20}
            self._reply(request, {**limits, **payload, "old": old, "applied_step": self.step})
        elif cmd == "reset_session":
            self.reset(f"{self.session_id}-again")
            names = {"run_id": self.run_id, "display_name": self.run_id, "project": self.project}
            self._reply(request, {"ok": True, "session_id": self.session_id, **names, **done})
        else:
            self.refuse(request, "unsupported", f"{cmd} is not built yet.")

    def saved(self, step: int, kind: str = "ring", **more: Any) -> Message:
        """A checkpoint is there."""
        folder = f"{self.run_dir or 'otf_runs/demo/digits'}/checkpoints"
        known = {"id": f"{step}-{kind}", "path": f"{folder}/{step}-{kind}.ckpt", "step": step,
                 "kind": kind, "bytes": 91234, "exact": True}  # fmt: skip
        self.checkpoints.append(
            {**known, "run_id": self.run_id, "epoch": step // 100, "ts": self.start_ts,
             "pinned": kind == "manual", **more}
        )  # fmt: skip
        return self.emit("checkpoint_saved", **known)

    def back_to(self, step: int, checkpoint: str | None = None) -> None:
        """The run is at an earlier step again: a new generation."""
        self.run_gen += 1
        came, self.step = self.step, step
        path = f"{checkpoint or f'{step}-ring'}.ckpt"
        self.emit("checkpoint_loaded", path=path, step=step, from_step=came)

    def _roll_back(self, request: Message, payload: Message) -> None:
        kept = {c["id"]: c for c in self.checkpoints}
        by_step = {c["step"]: c for c in self.checkpoints}
        found = kept.get(payload.get("checkpoint", "")) or by_step.get(payload.get("step", -1))
        if "path" in payload:
            found = next((c for c in self.checkpoints if c["path"] in payload["path"]), None)
        if found is None:
            near = sorted(by_step)
            detail = f"No checkpoint as asked for; the nearest are {', '.join(map(str, near))}."
            self.refuse(request, "not_found", detail, field="step", allowed=near)
            return
        came = self.step
        self.back_to(found["step"], found["id"])
        said = {"checkpoint": found["id"], "step": found["step"], "from_step": came}
        self._reply(request, {"run_id": self.run_id, **said, "applied_step": came})

    def reset(self, session_id: str) -> None:
        """A new session on the same connection, from step 0."""
        self.session_id, self.events, self.run_gen, self.step = session_id, [], 0, 0
        self.start_ts += 1000
        self.begin()

    def go(self, state: str, reason: str | None) -> None:
        before, self.state = self.state, state
        self.emit("state", state=state, previous=before, step=self.step, epoch=0, reason=reason)

    def finish(self, status: str, error: str | None = None) -> None:
        states = {"completed": "finished", "stopped": "interrupted", "failed": "failed"}
        self.go(states[status], None)
        more = {"error": error} if error else {}
        self.emit("trainingFinished", status=status, step=self.step, **more)

    def status(self) -> Message:
        return {
            "protocol": "otf/1", "version": "0.2.0", "session_id": self.session_id,
            "project": self.project, "run_id": self.run_id, "run_gen": 0, "state": self.state,
            "reason": None, "step": self.step, "epoch": 0, "batch_idx": 0, "max_steps": 1000,
            "max_epochs": None, "steps_per_s": 50.0, "pending": [], "last_checkpoint": None,
            "params": self.params,
            "device": {"name": "cpu", "kind": "cpu", "mem_mb": None, "mem_total_mb": None,
                       "util_pct": None, "temp_c": None},
            "pid": 4242, "host": "workstation", "world_size": 1, "last_seq": len(self.events),
            "acked_seq": self.acked, "dropped": 0, "queue_len": 0, "exactness": self.exactness,
            "snapshot_age_s": 0.0,
        }  # fmt: skip

    def _answer_hello(self, request: Message, payload: Message) -> None:
        if self.token is not None and payload.get("token") != self.token:
            self.refuse(request, "unauthorized", "The token does not match.", field="token")
            assert self._writer is not None
            self._writer.close()
            return
        identity = {
            "protocol": "otf/1", "version": "0.2.0", "session_id": self.session_id,
            "capabilities": ["pause", "resume", "journal"], "last_seq": len(self.events),
            "first_seq": self.first_seq, "pid": 4242, "host": "workstation", "device": "cpu",
            "state": self.state, "run_id": self.run_id, "project": self.project,
        }  # fmt: skip
        self._reply(request, identity)
        self._live = True
        if payload.get("session_id") == self.session_id and payload.get("last_seq") is not None:
            self._replay(payload["last_seq"], len(self.events))

    def _resume_from(self, request: Message, seq: int, until: int | None) -> None:
        last = len(self.events) if until is None else until
        first = max(seq + 1, self.first_seq)
        count = max(0, last - first + 1)
        self._reply(request, {"from": first, "to": last, "count": count, "complete": True})
        self._replay(seq, last, replay=until is not None)

    def _replay(self, seq: int, last: int, *, replay: bool = False) -> None:
        if seq + 1 < self.first_seq:
            gone = {"from": seq + 1, "to": self.first_seq - 1, "count": self.first_seq - seq - 1}
            self.write({"type": "gap", **gone, "reason": "trimmed"})
        for event in self.events[max(seq, self.first_seq - 1) : last]:
            self.write(event | {"replay": True} if replay else event)

    def _answer_as_of_old(self, request: Message) -> None:
        cmd = request["cmd"]
        if cmd == "server_info":
            self._reply(request, {"version": "0.1.4", "capabilities": [], "device": "cpu"})
        elif cmd == "pause":
            self.emit("paused", step=self.step, ckpt=None)
            self._reply(request, {"status": "paused", "step": self.step, "ckpt": None})
        elif cmd == "set_counter_seeds":
            self._reply(request, {"ok": True})
        else:
            self.write({"id": request["id"], "ok": False, "error": f"Unknown cmd: {cmd}"})
