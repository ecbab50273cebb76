"""A run as an object: every method is its verb."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from otf_core.client import AsyncRun, ChoiceError, Run, UsageError
from otf_core.client.choosing import choose
from otf_core.client.verbs import VERBS

SESSION = {
    "session_id": "s-1", "run_name": "digits", "run_id": "digits", "project": "p",
    "connected": True, "last_seq": 7,
}  # fmt: skip


class Dashboard:
    """What a Client is asked."""

    url = "http://127.0.0.1:1/"

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.who: str | None = None

    def send(
        self, session_id: str, cmd: str, payload: Any, _wait_s: Any, *, client: str | None
    ) -> Any:
        assert session_id == "s-1"
        self.sent.append((cmd, payload))
        self.who = client
        rows = {"list_params": {"params": [{"path": "lr", "value": 1}]},
                "list_checkpoints": {"checkpoints": [{"id": "4-auto"}]}}  # fmt: skip
        return rows.get(cmd, {"step": 3})

    def session(self, _session_id: str) -> dict[str, Any]:
        return SESSION

    def curves(self, run_id: str, names: Any, *, project: str, buckets: int) -> dict[str, Any]:
        assert (run_id, project) == ("digits", "p")
        series = {"step": [1], "value": [0.5], "seq": [2], "session": [0]}
        return {"series": dict.fromkeys(names, series)}

    def follow(self, _session_id: str, *, after: int, types: Any) -> Any:
        return iter([{"event_seq": after + 1, "types": types}])


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[str, dict[str, Any]]]] = [
    ("pause", (), {"reason": "look"}, ("pause", {"reason": "look"})),
    ("resume", (), {}, ("resume", {})),
    ("park", (), {}, ("park", {})),
    ("park", (), {"back": True}, ("park", {"back": True})),
    ("stop", (), {}, ("stop", {})),
    ("stop", (), {"save": False}, ("stop", {"save": False})),
    ("save", (), {}, ("save_ckpt", {})),
    ("validate", (), {"limit_batches": 2}, ("validate_now", {"limit_batches": 2})),
    ("test", (), {}, ("test_now", {})),
    ("set", ("lr", 1e-4), {"until": 9}, ("set_param", {"path": "lr", "value": 1e-4, "until": 9})),
    ("set", ("lr", 0.5), {"mul": True}, ("set_param", {"path": "lr", "mul": 0.5})),
    ("set", ("lr",), {"to": 0.1, "over": 5}, ("set_param", {"path": "lr", "to": 0.1, "over": 5})),
    ("set", ("ema", False), {}, ("set_param", {"path": "ema", "value": False})),
    ("set_all", ({"lr": 1, "momentum": 0.5},), {"at_step": 4},
     ("set_params", {"changes": [{"path": "lr", "value": 1}, {"path": "momentum", "value": 0.5}],
                     "at_step": 4})),
    ("preview", (), {}, ("preview_params", {"changes": []})),
    ("preview", ("lr", 0.1), {"steps": 9},
     ("preview_params", {"changes": [{"path": "lr", "value": 0.1}], "steps": 9})),
    ("undo", (), {}, ("undo", {})),
    ("undo", (), {"restore": True}, ("undo", {"restore": True})),
    ("rollback", (200,), {}, ("rollback", {"step": 200})),
    ("rollback", ("200-ring",), {}, ("rollback", {"checkpoint": "200-ring"})),
    ("note", ("odd",), {}, ("note", {"text": "odd"})),
    ("status", (), {}, ("status", {})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "given", "sent"), CALLS)
def test_a_method_sends_what_its_verb_sends(
    name: str, args: tuple[Any, ...], given: dict[str, Any], sent: tuple[str, dict[str, Any]]
) -> None:
    dashboard = Dashboard()
    run = Run(dashboard, SESSION, who="a notebook")  # type: ignore[arg-type]
    assert getattr(run, name)(*args, **given) == {"step": 3}
    assert (dashboard.sent, dashboard.who) == ([sent], "a notebook")
    again = Dashboard()
    awaited = getattr(AsyncRun(Run(again, SESSION)), name)(*args, **given)  # type: ignore[arg-type]
    assert inspect.iscoroutine(awaited)
    assert asyncio.run(awaited) == {"step": 3}
    assert again.sent == [sent]


def test_what_it_is_can_be_read() -> None:
    run = Run(Dashboard(), SESSION)  # type: ignore[arg-type]
    assert run.params()["lr"]["value"] == 1
    assert run.checkpoints() == [{"id": "4-auto"}]
    assert run.metrics("loss") == {"loss": {"step": [1], "value": [0.5]}}
    assert next(run.events(["note"])) == {"event_seq": 8, "types": ["note"]}
    assert "digits (s-1)" in repr(run)


def test_every_verb_can_be_done_by_name_and_what_it_does_not_take_is_said() -> None:
    run = Run(Dashboard(), SESSION)  # type: ignore[arg-type]
    assert {verb.word for verb in VERBS} >= {"merge", "scan", "compare"}
    assert run.do("cancel") == {"step": 3}
    with pytest.raises(UsageError, match="there are status, pause"):
        run.do("fly")
    with pytest.raises(UsageError, match="note was given txet; allowed: text, step"):
        run.do("note", txet="x")
    with pytest.raises(AttributeError, match="methods of Run, without events"):
        AsyncRun(run).events  # noqa: B018 -- the look is the test


def test_the_one_live_run_is_meant_and_else_it_is_said_which_there_are() -> None:
    other = {**SESSION, "session_id": "s-2", "run_name": "words", "run_id": "words"}
    over = {**other, "session_id": "s-3", "connected": False}
    assert choose([SESSION, over], None) is SESSION
    assert choose([SESSION, other], "words") is other
    with pytest.raises(ChoiceError, match=r"2 live runs .*digits \(s-1\), words \(s-2\)") as found:
        choose([SESSION, other], None)
    assert (found.value.several, found.value.allowed) == (True, ["s-1", "s-2"])
    with pytest.raises(ChoiceError, match="No live run 'x'; live: digits"):
        choose([SESSION, over], "x")
    with pytest.raises(ChoiceError, match="No run is connected"):
        choose([over], None)
