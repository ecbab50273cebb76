"""Every command has one answer: applied, or refused with a sentence."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from otf_core import protocol
from otf_core.control.actions import NOT_IN_THIS_VERSION
from otf_core.protocol import COMMANDS
from otf_core.run_commands import NEEDS_HEALTH, NEEDS_MODULES, NEEDS_SAMPLES
from otf_core.steering.preview import NEEDS_CADENCE
from otf_core.testing.conformance.running import Running
from otf_core.testing.conformance.suite import LATE, WITHIN, Suite

CONNECTION: Final = protocol.ANSWERED_BY_CHANNEL
# They end the run or open another session; each has tests of its own.
LAST: Final = ("reset_session", "resume", "stop")
GARBAGE: Final = (
    b'{"id": "g1", "cmd": "set_param", "payload": [1]}',
    b'{"id": "g2", "cmd": "set_param", "payload": {"path": 5}}',
    b'{"id": "g3", "cmd": "set_param", "payload": {"path": "lr", "value": {"a": []}}}',
    b'{"id": "g4", "cmd": "pause", "payload": {"at_step": "soon"}}',
    b'{"id": "g5", "cmd": "rollback", "payload": {}}',
    b'{"id": "g6", "cmd": "rollback", "payload": {"checkpoint": "../../etc/passwd"}}',
    b'{"id": "g7", "cmd": "load_ckpt", "payload": {"path": "\\u0000"}}',
    b'{"id": "g8", "cmd": "extend", "payload": {"max_epochs": -3}}',
    b'{"id": "g9", "cmd": "note", "payload": {"text": ""}}',
    b'{"id": "g10", "cmd": "no such command", "payload": {}}',
    b'{"id": "g11", "cmd": "validate_now", "payload": {"limit_batches": 0}}',
)
NOISE: Final = (b"", b"words", b"[]", b'{"cmd": 5}', b"\xff\xfe", b'{"id": "n1"}')


class Wire(Suite):
    """What a dashboard may send, and what comes back."""

    def test_every_command_has_one_answer(self, tmp_path: Path) -> None:
        batch, late = self.batch(WITHIN), self.batch(LATE)
        with self.running(tmp_path, hold=(batch, late)) as run:
            run.pause_in(batch)
            able = self._able(run)
            asked, wrong = {}, {}
            for name, payload in self.payloads(run).items():
                asked[name] = run.dashboard.send(name, payload)
                reply = run.dashboard.reply_to(asked[name])
                if (found := self._wrong(name, reply, able)) is not None:
                    wrong[name] = found
            assert not wrong
            run.ask("resume")
            run.probe.wait_for(late)
            # Whoever says that leaves; the training goes on.
            asked["enforce_version"] = run.dashboard.send("enforce_version")
            assert run.dashboard.reply_to(asked["enforce_version"])["data"]["status"] == "fatal"
            run.probe.open()
            run.thread.found()
            ids = collections.Counter(m["id"] for m in run.dashboard.messages if "ok" in m)
        assert {name: ids[request_id] for name, request_id in asked.items()} == dict.fromkeys(
            asked, 1
        )

    def _able(self, run: Running) -> set[str]:
        return set(run.ask("hello", protocol="otf/1")["capabilities"])

    def _wrong(self, name: str, reply: Mapping[str, Any], able: set[str]) -> str | None:
        """What is wrong with an answer; None: nothing."""
        if reply["ok"]:
            return "applied, and not listed" if name not in able | CONNECTION else None
        if not reply["detail"].rstrip().endswith("."):
            return f"no sentence: {reply['detail']!r}"
        if reply["code"] != "unsupported":
            return f"refused with {reply['code']}: {reply['detail']}"
        declared = {
            **NOT_IN_THIS_VERSION,
            **NEEDS_SAMPLES,
            **NEEDS_HEALTH,
            **NEEDS_MODULES,
            **NEEDS_CADENCE,
            "park": "cannot be parked",  # on the CPU
            **self.framework.cannot,
        }
        if name not in declared:
            return f"unsupported, and that is not declared: {reply['detail']}"
        if declared[name] not in reply["detail"]:
            return f"another reason than declared: {reply['detail']}"
        return None

    def payloads(self, run: Running) -> dict[str, dict[str, Any]]:
        """A payload for every command that leaves the run standing; in an order that works."""
        kept = run.ask("list_checkpoints")["checkpoints"]
        newest = kept[0] if kept else {"id": "none", "path": "none"}
        epochs = run.ask("status")["max_epochs"]
        run_id = run.ask("status")["run_id"]
        twice = {"parents": [run_id, run_id]}
        longer = {"max_steps": 10**6} if epochs is None else {"max_epochs": epochs + 1}
        given: dict[str, dict[str, Any]] = {
            "hello": {"protocol": protocol.PROTOCOL},
            "resume_from": {"seq": 0, "until": 1},
            "ping": {"t": 1.0},
            "set_param": {"path": "lr", "mul": 1.0},
            "set_params": {"changes": [{"path": "lr", "mul": 1.0}]},
            "set_guard": {"rule": "nan", "watch": "nan", "enabled": False},
            "note": {"text": "here"},
            "attach_context": {"run_id": run_id},
            "switch_run": {"run_id": run_id},
            "merge_preview": {**twice, "strategies": ["linear"]},
            "merge": twice,
            "show_samples": {"ids": [0]},
            "load_ckpt": {"path": newest["path"]},
            "rollback": {"checkpoint": newest["id"]},
            "extend": longer,
        }
        answered = [name for name, spec in COMMANDS.items() if spec.answered and name not in LAST]
        return {name: given.get(name, {}) for name in answered if name != "enforce_version"}

    def test_what_is_no_payload_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            for line in GARBAGE:
                run.dashboard.send_bytes(line + b"\n")
                request_id = protocol.decode_request(line).id
                assert request_id is not None
                reply = run.dashboard.reply_to(request_id)
                assert not reply["ok"], line
                assert reply["code"] != "internal", reply
                assert reply["detail"].rstrip().endswith("."), reply
            for line in NOISE:
                run.dashboard.send_bytes(line + b"\n")
            run.resume()
            self.same(run.found())
            errors = [m for m in run.dashboard.messages if m.get("type") == "error"]
        assert len(errors) == len(NOISE) - 1  # a blank line is none

    def test_a_flood_is_answered_one_by_one_and_changes_nothing(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            names = ("ping", "list_params", "note", "status", "nonsense", "list_checkpoints") * 60
            asked = [run.dashboard.send(name, {"text": "here"}) for name in names]
            asked.append(run.dashboard.send("ping"))
            run.dashboard.reply_to(asked[-1])
            run.probe.let_go(batch)
            for request_id in asked:
                run.dashboard.reply_to(request_id)
            self.same(run.found())
            ids = collections.Counter(m["id"] for m in run.dashboard.messages if "ok" in m)
        assert [ids[request_id] for request_id in asked] == [1] * len(asked)

    def test_the_same_id_does_it_once(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            for _ in range(3):
                run.dashboard.send("note", {"text": "here"}, request_id="one")
            run.probe.let_go(batch)
            run.dashboard.reply_to("one")
            self.same(run.found())
            assert len(run.events("note")) == 1

    def test_what_it_cannot_do_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        cannot = {name: why for name, why in self.framework.cannot.items() if name in COMMANDS}
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.pause_in(batch)
            payloads = self.payloads(run)
            for name, why in cannot.items():
                reply = run.refused(name, **payloads.get(name, {}))
                assert reply["code"] == "unsupported", reply
                assert why in reply["detail"], reply
            run.resume()
            self.same(run.found())

    def test_when_it_is_over_every_command_is_refused_as_too_late(self, tmp_path: Path) -> None:
        batch = self.batch(WITHIN)
        with self.running(tmp_path, hold=(batch,)) as run:
            run.probe.wait_for(batch)
            asked = run.dashboard.send("pause", {"at_step": 10**6})
            run.dashboard.expect("accepted", request_id=asked)
            run.found()
            reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"]) == (False, "not_allowed_now")
