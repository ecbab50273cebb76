"""Rules by themselves: what is asked of them, what they see, and when they fire."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from otf_core import protocol
from otf_core.control.bus import Ticket, Within
from otf_core.control.delegate import Position
from otf_core.control.router import CommandRouter
from otf_core.errors import CommandError, ErrorCode
from otf_core.opening import RunOptions
from otf_core.state.manifest import Manifest
from otf_core.steering.changes import Changes
from otf_core.steering.guard_rules import MAX_RULES, guard_rules
from otf_core.steering.guards import Guards

REFUSED = {
    "fire": "watch of a guard was asked to be 'fire'; allowed: nan, spike, plateau, overfit, limit",
    "nan:explode": (
        "action of a guard was asked to be 'explode'; allowed: notify, pause, rollback"
    ),
    "nan,z=3": (
        "guards was asked with 'z' for nan; "
        "allowed: rule, metric, action, lr, back, most, budget, then, cool_down"
    ),
    "spike,z": "guards was asked with 'z' in 'spike,z'; allowed: WATCH:ACTION,NAME=VALUE",
    "spike,z=0": "z of a guard was asked to be 0; allowed: a number from 0.1 to 1e+06",
    "spike,z=nan": "z of a guard was asked to be nan; allowed: a number from 0.1 to 1e+06",
    "spike,window=2.5": (
        "window of a guard was asked to be 2.5; allowed: a whole number from 10 to 1000"
    ),
    "spike,z=none": "guards was asked for spike without z; allowed: a number",
    "limit": "guards was asked for limit without above or below; allowed: a number",
    "plateau,mode=up": "mode of a guard was asked to be 'up'; allowed: min, max",
    "nan,lr=2": "lr of a guard was asked to be 2; allowed: a number from 1e-09 to 1",
    "nan,back=0": (
        "back of a guard was asked to be 0; allowed: a whole number from 1 to 1000000000"
    ),
    "nan,then=go": "then of a guard was asked to be 'go'; allowed: pause, notify",
    "nan,rule=a b": (
        "rule of a guard was asked to be 'a b'; allowed: 1 to 60 letters, digits and ._-"
    ),
    "nan;nan,rule=nan": "rule of a guard was asked to be 'nan'; allowed: each name once",
    "nan,metric=": "metric of a guard was asked to be ''; allowed: the name of a value",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_rule_that_cannot_be_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed") as error:
        guard_rules(text)
    assert str(error.value) == REFUSED[text]


@pytest.mark.parametrize("asked", [3, [3], {"watch": "nan", "enabled": "yes"}])
def test_what_is_no_rule_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match=r"allowed: (text, a mapping|true, false)"):
        guard_rules(asked)


def test_too_many_rules_are_refused() -> None:
    assert len(guard_rules(["nan"] * MAX_RULES)) == MAX_RULES
    with pytest.raises(ValueError, match="at most 20"):
        guard_rules(["nan"] * (MAX_RULES + 1))


def test_the_same_rule_in_text_and_as_a_mapping() -> None:
    text = guard_rules("spike:rollback, z=8, budget=none; nan ;nan:notify,metric=grad_norm")
    mapping = guard_rules(
        [
            {"watch": "spike", "action": "rollback", "params": {"z": 8}, "budget": None},
            "nan",
            {"watch": "nan", "action": "notify", "metric": "grad_norm"},
        ]
    )
    assert text == mapping
    assert [(rule.rule, rule.metric, rule.action) for rule in text] == [
        ("spike", "loss", "rollback"),
        ("nan", "loss", "pause"),
        ("nan-2", "grad_norm", "notify"),
    ]
    spike, nan, _ = text
    assert (spike.params, spike.budget, spike.cool_down) == ({"z": 8.0, "window": 50}, None, 25)
    assert (nan.budget, nan.cool_down, nan.lr, nan.back, nan.then) == (None, 0, 0.5, 2, "pause")
    [back] = guard_rules({"watch": "overfit", "action": "rollback"})
    assert (back.metric, back.budget) == ("val_loss", 3)
    assert guard_rules(None) == ()


def test_options_refuse_rules_that_could_never_act() -> None:
    RunOptions(guards="nan:rollback", checkpoint_every=5)
    with pytest.raises(ValueError, match="'nan' was asked to roll back, and checkpoint_every is"):
        RunOptions(guards="nan:rollback")
    with pytest.raises(ValueError, match="reads no values"):
        RunOptions(guards="nan", telemetry="off")
    with pytest.raises(ValueError, match="at_max_pause was asked to be 'go'"):
        RunOptions(at_max_pause="go")  # type: ignore[arg-type]


class Run:
    """As much of a session as rules need; ``tape`` has what was told and done."""

    run_id = "r"

    def __init__(self) -> None:
        self.tape: list[Any] = []
        self.events: list[dict[str, Any]] = []
        self.step, self.watched, self.asked = 0, None, 0
        self.refuses: CommandError | None = None

    def position(self) -> Position:
        return Position(step=self.step)

    def emit(self, kind: str, /, **fields: Any) -> int:
        self.events.append(fields)
        self.tape.append((fields["rule"], fields["step"], fields["did"]))
        return len(self.events)

    def say(self, line: str) -> None: ...

    def changed(self) -> None: ...

    def watch(self, seen: Any) -> None:
        self.watched = seen

    def hold_for_guard(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.tape.append("held")

    def attend(self) -> None:
        self.asked += 1


class Ledger:
    """As much of the history as rules need."""

    def __init__(self) -> None:
        self.ways: dict[str, Any] = {}
        self.changes = Changes()

    def add(self, ticket: Ticket, **given: Any) -> Any:
        given = {"by": ticket.by, "request_id": ticket.id, **given}
        return self.changes.add(step=0, epoch=0, **given)

    def taken_back(self, row: Any, ticket: Ticket) -> Any:
        row.undone_by = self.add(ticket, by="undo").id


class Store:
    """Checkpoints of a run."""

    def __init__(self, *kept: tuple[int, int]) -> None:
        self.kept = [
            Manifest(
                id=f"{step}-b{b}", run_id="r", step=step, epoch=0, ts=ts, kind="ring", branch=b
            )
            for ts, (step, b) in enumerate(kept)
        ]

    def settle(self) -> None: ...

    def list(self) -> list[tuple[Manifest, str]]:
        return [(each, "") for each in reversed(self.kept)]

    def get(self, name: str) -> tuple[Manifest, str] | None:
        return next(((each, "") for each in self.kept if each.id == name), None)


class Rig:
    """Rules of a run that exists on paper."""

    def __init__(self, rules: Any, *kept: tuple[int, int], branch: int = 0) -> None:
        self.run, self.ledger = Run(), Ledger()
        self.branch: tuple[int, str | None] = (branch, None)
        self.router = CommandRouter()
        self.done: list[tuple[str, dict[str, Any], str, str | None]] = []
        self.fails: dict[str, CommandError] = {}
        self.router.on("rollback")(self._rollback)
        self.router.on("set_param")(self._set_param)
        self.guards = Guards(
            self.run, guard_rules(rules), router=self.router, store=Store(*kept),  # type: ignore[arg-type]
            history=self.ledger, branch=lambda: self.branch,  # type: ignore[arg-type]
        )  # fmt: skip
        self.guards.register(self.router)

    def _note(self, ticket: Ticket) -> None:
        given = {
            name: value
            for name, value in msgspec.structs.asdict(ticket.payload).items()
            if name in ("checkpoint", "path", "mul", "mode") and value is not None
        }
        self.done.append((ticket.request.cmd, given, ticket.by, ticket.cause))
        if ticket.request.cmd in self.fails:
            raise self.fails[ticket.request.cmd]

    def _rollback(self, ticket: Ticket) -> dict[str, Any]:
        self._note(ticket)
        self.run.step = int(ticket.payload.checkpoint.partition("-")[0])
        self.guards.load(None)
        return {}

    def _set_param(self, ticket: Ticket) -> dict[str, Any]:
        self._note(ticket)
        return {}

    def see(self, *losses: float, name: str = "train_loss") -> None:
        """Steps, each with its loss; what is due is done."""
        for loss in losses:
            self.run.step += 1
            self.guards.seen(self.run.step, {name: loss, " loss": loss}, (name,), (name,))
            self.guards.act()

    def ask(self, cmd: str, **payload: Any) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        raw = msgspec.Raw(msgspec.json.encode(payload))
        request = protocol.Request(cmd=cmd, id="a", payload=raw)
        ticket = Ticket(request, Within(answers.append), on_answer=lambda _: None)
        ticket.payload = protocol.decode_payload(request)
        self.router.run(ticket)
        return answers[0]


def test_it_fires_when_it_becomes_wrong_and_not_while_it_stays_so() -> None:
    rig = Rig("nan:notify")
    rig.see(1.0, math.nan, math.nan, 1.0, math.inf)
    assert rig.run.tape == [("nan", 2, "notify"), ("nan", 5, "notify")]
    assert not rig.run.asked


def test_a_cool_down_is_counted_in_steps_and_what_is_wrong_behind_it_is_told() -> None:
    rig = Rig("nan:notify,cool_down=3")
    rig.see(math.nan, 1.0, math.nan, math.nan, math.nan)
    assert rig.run.tape == [("nan", 1, "notify"), ("nan", 4, "notify")]
    rig.see(1.0, 1.0, math.nan)
    assert rig.run.tape[2:] == [("nan", 8, "notify")]


def test_a_value_is_found_by_the_name_of_the_step_or_that_it_was_logged_by() -> None:
    rules = [
        {"watch": "limit", "above": 0, "action": "notify", "metric": name, "rule": name}
        for name in ("loss", "train_loss", "grad_norm", "val_loss", "nothing")
    ]
    rig = Rig(rules)
    values = {
        "train/loss": 1.0,
        "train_loss": 2.0,
        " loss": 3.0,
        " grad_norm": 4.0,
        "val_loss": 5.0,
    }
    logged = ("train/loss", "val_loss")
    rig.guards.seen(1, values, ("train/loss",), logged)
    found = {event["rule"]: event["value"] for event in rig.run.events}
    assert found == {"loss": 1.0, "grad_norm": 4.0}
    rig.guards.seen(2, values, ("val_loss",), logged)  # the loss was returned, not logged
    assert {e["rule"]: e["value"] for e in rig.run.events[2:]} == {"val_loss": 5.0}


def test_what_it_does_is_asked_as_a_person_would_with_the_rule_as_its_cause() -> None:
    rig = Rig("nan:rollback", (0, 0), (4, 0), (6, 0))
    rig.see(*[1.0] * 6, math.nan)
    assert rig.done == [
        ("rollback", {"checkpoint": "4-b0"}, "guard", "nan"),
        ("set_param", {"path": "lr", "mul": 0.5, "mode": "scale"}, "guard", "nan"),
    ]
    [event] = rig.run.events
    assert (event["at_step"], event["budget_left"], event["value"]) == (4, 2, None)
    assert event["request_id"] == event["requests"][0]
    assert len(event["requests"]) == 2


def test_without_a_schedule_the_rate_is_set_and_at_1_it_is_left_alone() -> None:
    rig = Rig("nan:rollback", (0, 0))
    rig.fails["set_param"] = CommandError(ErrorCode.BAD_PAYLOAD, "No.", field="mode")
    rig.see(1.0, math.nan)
    assert [given.get("mode") for _, given, _, _ in rig.done[1:]] == ["scale", None]
    rig = Rig("nan:rollback,lr=1", (0, 0))
    rig.see(1.0, math.nan)
    assert [cmd for cmd, *_ in rig.done] == ["rollback"]
    assert rig.run.events[0]["did"] == "rollback"


def test_a_refused_rate_and_a_refused_rollback_hold_the_run_and_say_why() -> None:
    rig = Rig("nan:rollback", (0, 0))
    rig.fails["set_param"] = CommandError(ErrorCode.NOT_ALLOWED_NOW, "Never.")
    rig.see(1.0, math.nan)
    assert rig.run.events[0]["did"] == "pause"
    assert (
        "the learning rate could not be scaled: Never.; the run is held"
        in rig.run.events[0]["text"]
    )
    rig = Rig("nan:rollback", (0, 0))
    rig.fails["rollback"] = CommandError(ErrorCode.UNSUPPORTED, "Not here.")
    rig.see(1.0, math.nan)
    assert rig.run.tape == ["held", ("nan", 2, "pause")]
    assert (
        rig.run.events[0]["text"] == "loss is nan; it could not go back: Not here.; the run is held"
    )
    assert rig.run.events[0]["budget_left"] == 3


@pytest.mark.parametrize(
    ("rule", "kept", "wrong", "text"),
    [
        ("nan:rollback", (), 3, "no checkpoint of step 0 to 1 is kept"),
        ("nan:rollback", ((2, 0),), 3, "no checkpoint of step 0 to 1 is kept"),
        ("nan:rollback,most=2", ((0, 0),), 3, "no checkpoint of step 1 to 1 is kept"),
        ("nan:rollback,back=9", ((0, 0),), 9, None),
        ("nan:rollback,back=9", ((0, 0),), 8, "no checkpoint of step 0 to -1 is kept"),
    ],
)
def test_it_goes_back_so_far_at_least_and_so_far_at_most(
    rule: str, kept: tuple[tuple[int, int], ...], wrong: int, text: str | None
) -> None:
    rig = Rig(rule, *kept)
    rig.see(*[1.0] * (wrong - 1), math.nan)
    [event] = rig.run.events
    assert event["did"] == ("pause" if text else "rollback")
    assert (
        text is None or event["text"] == f"loss is nan; it cannot go back: {text}; the run is held"
    )


@pytest.mark.parametrize(
    ("kept", "branch", "base", "expected"),
    [
        # Its own branch first, however early.
        ([(0, 0), (8, 0), (6, 1)], 1, "0-b0", "6-b1"),
        # Else where the branch began: 8 and 9 were given up for it.
        ([(0, 0), (4, 0), (8, 0), (9, 1)], 2, "4-b0", "4-b0"),
        # Where that is too late, what is before it.
        ([(0, 0), (4, 0), (20, 0)], 1, "20-b0", "4-b0"),
    ],
)
def test_what_was_given_up_is_not_gone_back_to(
    kept: list[tuple[int, int]], branch: int, base: str, expected: str
) -> None:
    rig = Rig("nan:rollback", *kept)
    rig.branch = (branch, base)
    rig.see(*[1.0] * 11, math.nan)
    assert rig.done[0][1] == {"checkpoint": expected}


def test_a_pause_that_cannot_be_is_told_and_one_of_a_used_up_budget_too() -> None:
    rig = Rig("nan:pause,budget=1")
    rig.see(math.nan, 1.0, math.nan)
    assert rig.run.tape == ["held", ("nan", 1, "pause"), ("nan", 3, "notify")]
    assert rig.run.events[1]["text"] == "loss is nan; its budget of 1 is used up, it goes on"
    rig = Rig("nan")
    rig.run.refuses = CommandError(ErrorCode.UNSUPPORTED, "Two ranks.")
    rig.see(math.nan)
    assert rig.run.events[0]["did"] == "notify"
    assert rig.run.events[0]["text"] == "loss is nan; it could not be held: Two ranks."


def test_what_was_due_when_the_run_was_over_is_told() -> None:
    rig = Rig("nan:rollback", (0, 0))
    rig.guards.seen(1, {"loss": math.nan}, ("loss",), ("loss",))
    assert rig.run.asked == 1
    rig.guards.over()
    rig.guards.act()
    assert rig.run.tape == [("nan", 1, "notify")]
    assert not rig.done


def test_a_rule_is_made_changed_and_removed_and_each_is_undone() -> None:
    rig = Rig(None)
    assert rig.run.watched is None
    assert rig.ask("list_guards")["data"] == {"guards": []}
    made = rig.ask("set_guard", rule="low", watch="limit", params={"below": 0.5})["data"]
    assert made["old"] is None
    assert made["new"] == {
        "rule": "low", "watch": "limit", "metric": "loss", "action": "pause",
        "params": {"above": None, "below": 0.5, "times": 1}, "enabled": True, "budget": None,
        "budget_left": None, "cool_down_steps": 0, "lr": 0.5, "back": 2, "most": 1000,
        "then": "pause", "last": None,
    }  # fmt: skip
    assert rig.run.watched is not None
    rig.see(0.1)
    changed = rig.ask("set_guard", rule="low", action="rollback", params={"times": 2})["data"]
    assert (changed["new"]["budget"], changed["new"]["params"]["below"]) == (3, 0.5)
    assert changed["old"]["last"] == {"step": 1, "value": 0.1}
    rig.ask("set_guard", rule="low", enabled=False)
    rig.see(0.1, 0.1)
    assert len(rig.run.events) == 1
    rig.ask("set_guard", rule="low", remove=True)
    assert rig.run.watched is None
    ticket = Ticket(protocol.Request(cmd="undo"), Within(), on_answer=lambda _: None)
    expected = [[{**changed["new"], "enabled": False}], [changed["new"]], [changed["old"]], []]
    for row, rows in zip(reversed(list(rig.ledger.changes)), expected, strict=True):
        assert row.back is not None
        rig.ledger.ways[row.back["kind"]](row, ticket)
        assert rig.guards.rows() == rows


@pytest.mark.parametrize(
    ("payload", "code", "detail"),
    [
        (
            {"rule": "x"},
            "not_found",
            "Guard 'x' is not there; there are nan; a new one needs watch.",
        ),
        (
            {"rule": "x", "remove": True},
            "not_found",
            "Guard 'x' was asked to be removed; there are",
        ),
        ({"rule": "nan", "remove": True, "lr": 1.0}, "bad_payload", "removed and changed"),
        ({"rule": "nan", "watch": "spike"}, "bad_payload", "it watches 'nan'; allowed: another"),
        ({"rule": "nan", "params": {"z": 3}}, "bad_payload", "with 'z' for nan"),
        ({"rule": "nan", "budget": -1}, "bad_payload", "budget of a guard was asked to be -1"),
        ({"rule": "a b", "watch": "nan"}, "bad_payload", "letters, digits"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_nothing_has_changed(
    payload: dict[str, Any], code: str, detail: str
) -> None:
    rig = Rig("nan")
    before = rig.guards.rows()
    reply = rig.ask("set_guard", **payload)
    assert (reply["ok"], reply["code"]) == (False, code)
    assert detail in reply["detail"]
    assert reply["detail"].endswith(".")
    assert rig.guards.rows() == before
    assert not len(rig.ledger.changes)


def test_a_budget_that_is_given_counts_anew() -> None:
    rig = Rig("nan:pause,budget=1")
    rig.see(math.nan)
    assert rig.guards.rows()[0]["budget_left"] == 0
    assert rig.ask("set_guard", rule="nan", lr=0.1)["data"]["new"]["budget_left"] == 0
    assert rig.ask("set_guard", rule="nan", budget=2)["data"]["new"]["budget_left"] == 2


def test_a_process_that_goes_on_has_live_rules_and_new_ones_of_the_script() -> None:
    rig = Rig("nan:notify;spike:notify;plateau:notify")
    rig.ask("set_guard", rule="nan", action="pause", budget=5)
    rig.ask("set_guard", rule="high", watch="limit", params={"above": 9.0})
    rig.see(1.0, 2.0, math.nan)
    state = rig.guards.state()
    assert state is not None
    again = Rig("nan:notify;spike:notify,window=10")
    again.guards.load(state)
    rows = {row["rule"]: row for row in again.guards.rows()}
    assert rows.keys() == {"nan", "spike", "high"}
    assert (rows["nan"]["action"], rows["nan"]["budget_left"]) == ("pause", 4)
    assert rows["spike"]["params"]["window"] == 10  # the script says otherwise by now
    # In the same process a state brings what was seen, not what was set or used.
    rig.ask("set_guard", rule="nan", budget=1)
    rig.see(1.0, math.nan)
    rig.guards.load(state)
    rows = {row["rule"]: row for row in rig.guards.rows()}
    assert (rows["nan"]["budget"], rows["nan"]["budget_left"]) == (1, 0)
    assert rig.guards.state() == {
        **state,
        "rules": {**state["rules"], "nan": (rig.guards.state() or {})["rules"]["nan"]},
    }


def test_what_is_due_when_a_checkpoint_is_made_is_found_anew_by_who_goes_on() -> None:
    rig = Rig("nan:rollback,cool_down=9", (0, 0))
    rig.guards.seen(3, {"loss": math.nan}, ("loss",), ("loss",))
    state = rig.guards.state()
    again = Rig("nan:rollback,cool_down=9", (0, 0))
    again.run.step = 3
    again.guards.load(state)
    again.see(math.nan)
    assert [cmd for cmd, *_ in again.done] == ["rollback", "set_param"]


def test_a_scaled_rate_that_is_taken_back_is_not_scaled_again() -> None:
    rig = Rig("nan:rollback", (0, 0))
    rig.see(1.0, math.nan)
    assert rig.guards.state()["factor"] == 0.5  # type: ignore[index]
    rig.guards.undone(rig.run.events[0]["requests"][1])
    rig.guards.undone("another")
    rig.guards.undone(None)
    assert rig.guards.state()["factor"] == 1.0  # type: ignore[index]
