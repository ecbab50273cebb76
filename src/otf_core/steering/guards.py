"""Guards: rules that watch the values of a run, and act where one goes wrong.

Rule 1: a rule sees what telemetry has read, when it has read it; nothing here waits for a device.
Rule 2: what a rule does is done by the commands that a person has, at the safe point, all ranks
standing: it is told, it is remembered with the rule as its cause, and it can be undone.
Rule 3: every time a rule fires there is one event, which says what was asked and what was done.
Rule 4: what detectors remember goes back with the run; what a rule has used of its budget does not,
else a run could go back for ever.

Training thread only.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from otf_core import protocol
from otf_core.control.bus import Ticket, Within
from otf_core.control.delegate import Position
from otf_core.control.router import CommandRouter
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import UNSET
from otf_core.state.manifest import Manifest
from otf_core.state.store import CheckpointStore
from otf_core.steering.changes import Change
from otf_core.steering.detectors import Detector
from otf_core.steering.guard_rules import MAX_RULES, GuardRule, changed, guard_rule
from otf_core.steering.history import History
from otf_core.telemetry.canonical import Canonical
from otf_core.telemetry.recorder import MEASURED, Seen

TRAINED: Final = "loss"  # what a detector compares a validation with


class Run(Protocol):
    """What guards need of the session."""

    run_id: str

    def position(self) -> Position:
        """Where the run stands."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""

    def say(self, line: str) -> None:
        """Tell the person at the terminal."""

    def changed(self) -> None:
        """The run is no longer what the last checkpoint holds."""

    def hold_for_guard(self) -> None:
        """Hold the run; CommandError where it cannot be held."""

    def watch(self, seen: Seen | None) -> None:
        """Have this told of every value; CommandError where none is read."""

    def attend(self) -> None:
        """Have ``act`` called at the next safe point."""


@dataclasses.dataclass
class _Fired:
    """A rule that wants something done."""

    live: _Live
    step: int
    value: float
    bound: float | None
    why: str


class _Live:
    """A rule and what it remembers."""

    def __init__(self, rule: GuardRule, given: GuardRule | None) -> None:
        self.rule, self.given = rule, given
        self.detector: Detector = rule.make()
        self.armed = True  # false from firing until a value is right again
        self.rest = 0  # steps in which it does nothing
        self.spent = 0
        self.last: dict[str, Any] | None = None

    @property
    def left(self) -> int | None:
        """How often it may still act."""
        budget = self.rule.budget
        return None if budget is None else max(0, budget - self.spent)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "rule": self.rule.to_plain(),
            "given": self.given.to_plain() if self.given is not None else None,
            "found": self.detector.state(),
            "armed": self.armed,
            "rest": self.rest,
            "spent": self.spent,
            "last": self.last,
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> _Live:
        """As it was then."""
        given = plain["given"]
        live = cls(GuardRule(**plain["rule"]), None if given is None else GuardRule(**given))
        live.detector.load(plain["found"])
        live.armed, live.rest, live.spent = plain["armed"], plain["rest"], plain["spent"]
        live.last = plain["last"]
        return live

    def row(self) -> dict[str, Any]:
        """Of ``list_guards``."""
        rule = self.rule
        return {
            "rule": rule.rule,
            "watch": rule.watch,
            "metric": rule.metric,
            "action": rule.action,
            "params": dict(rule.params),
            "enabled": rule.enabled,
            "budget": rule.budget,
            "budget_left": self.left,
            "cool_down_steps": rule.cool_down,
            "lr": rule.lr,
            "back": rule.back,
            "most": rule.most,
            "then": rule.then,
            "last": self.last,
        }


class Guards:
    """Of one session.

    Args:
        rules: as they were given.
        router: carries out what they do.
        branch: of the run, and the checkpoint that it began from.
    """

    def __init__(
        self,
        run: Run,
        rules: Sequence[GuardRule],
        *,
        router: CommandRouter,
        store: CheckpointStore,
        history: History,
        branch: Callable[[], tuple[int, str | None]],
    ) -> None:
        self._run, self._router, self._store = run, router, store
        self._history, self._branch = history, branch
        self._lives = {rule.rule: _Live(rule, rule) for rule in rules}
        self._fresh = True  # nothing was seen or changed in this process
        self._due: list[_Fired] = []
        self._canonical = Canonical()
        self._factor = 1.0  # of the learning rate, by all rollbacks of guards
        self._scaled: dict[str, float] = {}  # id of the command -> by how much
        self._watch()

    def _watch(self) -> None:
        self._run.watch(self.seen if self._lives else None)

    # What is seen.

    def seen(
        self, step: int, values: Mapping[str, Any], new: Iterable[str], logged: Sequence[str]
    ) -> None:
        """The values of a step have been read.

        Args:
            values: by logged name, and what was measured by the names of ``recorder.MEASURED``.
            new: names of those that were logged anew.
            logged: of all that was ever logged.
        """
        self._fresh = False
        told = self._told(values, new, logged)
        trained = told(TRAINED)
        for live in self._lives.values():
            if live.rest:
                live.rest -= 1
            if trained is not None:
                live.detector.beside(trained)
            value = told(live.rule.metric)
            if value is None:
                continue
            if not live.detector.see(value):
                live.armed = True
            elif live.armed and not live.rest and live.rule.enabled:
                self._fire(live, step, value)

    def _told(
        self, values: Mapping[str, Any], new: Iterable[str], logged: Sequence[str]
    ) -> Callable[[str], float | None]:
        """A value by the name that ``trainStep`` tells it under, or by the name it was logged."""
        known = dict(self._canonical.pairs(logged))
        anew = frozenset(new)

        def told(name: str) -> float | None:
            of = known.get(name, name)
            if of in anew and values[of] is not None:
                return values[of]  # type: ignore[no-any-return]  # as it was read
            measured = MEASURED.get(name)
            return values.get(measured) if measured is not None else None

        return told

    def _fire(self, live: _Live, step: int, value: float) -> None:
        live.armed, live.rest = False, live.rule.cool_down
        live.last = {"step": step, "value": value if math.isfinite(value) else None}
        why = live.detector.why(live.rule.metric, value)
        fired = _Fired(live, step, value, live.detector.bound, why)
        live.detector.fired()
        if live.rule.action == "notify":
            self._tell(fired, "notify", why)
        else:
            self._due.append(fired)
            self._run.attend()

    # What is done.

    def act(self) -> None:
        """All ranks stand: do what has become due."""
        due, self._due = self._due, []
        done: str | None = None
        for fired in due:
            if fired.live.rule.action == "rollback":
                done = self._roll_back(fired) if done is None else self._after(fired, done)
        for fired in due:
            if fired.live.rule.action == "pause":
                self._pause(fired)

    def over(self) -> None:
        """The run is over; what was due is told."""
        due, self._due = self._due, []
        for fired in due:
            self._tell(fired, "notify", f"{fired.why}; the run was over")

    def _pause(self, fired: _Fired) -> None:
        live = fired.live
        if live.left == 0:
            self._tell(fired, "notify", f"{fired.why}; {_spent(live.rule)}, it goes on")
            return
        live.spent += 1
        self._hold(fired, fired.why)

    def _hold(self, fired: _Fired, why: str, *, requests: Sequence[str] = ()) -> None:
        try:
            self._run.hold_for_guard()
        except CommandError as error:
            why = f"{why}; it could not be held: {error.detail}"
            self._tell(fired, "rollback" if requests else "notify", why, requests=requests)
        else:
            self._tell(fired, "pause", f"{why}; the run is held", requests=requests)

    def _after(self, fired: _Fired, done: str) -> str:
        self._tell(fired, "notify", f"{fired.why}; {done} has gone back already")
        return done

    def _roll_back(self, fired: _Fired) -> str | None:
        """Go back and scale the rate; the rule's name where it has gone back."""
        live, rule = fired.live, fired.live.rule
        if live.left == 0:
            why = f"{fired.why}; {_spent(rule)}"
            if rule.then == "pause":
                self._hold(fired, why)
            else:
                self._tell(fired, "notify", f"{why}, it goes on")
            return None
        at, factor = self._run.position().step, self._factor * rule.lr
        found = self._before(fired.step - rule.back)
        if found is None or at - found.step > rule.most:
            kept = f"no checkpoint of step {max(0, at - rule.most):,} to {fired.step - rule.back:,}"
            self._hold(fired, f"{fired.why}; it cannot go back: {kept} is kept")
            return None
        gone, went = self._do("rollback", {"checkpoint": found.id}, rule.rule)
        if not went["ok"]:
            self._hold(fired, f"{fired.why}; it could not go back: {went['detail']}")
            return None
        live.spent += 1
        why = f"{fired.why}; back from step {at:,} to {found.step:,} ({found.id})"
        mul = factor / self._factor  # what of earlier ones went back with the run is done anew
        if mul == 1.0:
            self._tell(fired, "rollback", why, requests=[gone])
            return rule.rule
        change = {"path": "lr", "mul": mul}
        scaled, said = self._do("set_param", {**change, "mode": "scale"}, rule.rule)
        if not said["ok"] and said.get("field") == "mode":  # nothing schedules it
            scaled, said = self._do("set_param", change, rule.rule)
        if not said["ok"]:
            why = f"{why}; the learning rate could not be scaled: {said['detail']}"
            self._hold(fired, why, requests=[gone])
            return rule.rule
        self._factor, self._scaled[scaled] = factor, mul
        why = f"{why}, the learning rate times {mul:g}"
        self._tell(fired, "rollback", why, requests=[gone, scaled])
        return rule.rule

    def _before(self, step: int) -> Manifest | None:
        """The newest checkpoint of the run's own past of this step or before."""
        self._store.settle()  # what is being written counts
        branch, base = self._branch()
        kept = [each for each, _ in self._store.list() if each.step <= step and not each.left_by]
        here = [each for each in kept if each.branch == branch]
        begun = [each for each in kept if each.id == base]
        # Before the branch's beginning: what was made since on others is not in that past.
        root = self._store.get(base) if base is not None else None
        older = [each for each in kept if root is None or each.branch <= root[0].branch]
        return max(here or begun or older, key=lambda each: (each.step, each.ts), default=None)

    def ask(self, cmd: str, payload: Mapping[str, Any], cause: str) -> str | None:
        """Have a command carried out, where the run stands; why it was refused, or None."""
        if cmd not in protocol.COMMANDS:
            return f"this version has no {cmd}"
        _, said = self._do(cmd, payload, cause)
        return None if said["ok"] else str(said["detail"])

    def _do(self, cmd: str, payload: Mapping[str, Any], cause: str) -> tuple[str, dict[str, Any]]:
        """Carry a command out as if somebody had asked; its id and the reply."""
        answers: list[dict[str, Any]] = []
        name, raw = f"guard-{secrets.token_hex(6)}", msgspec.Raw(msgspec.json.encode(payload))
        request = protocol.Request(cmd=cmd, id=name, payload=raw)
        link = Within(answers.append)
        ticket = Ticket(request, link, on_answer=lambda _: None, by="guard", cause=cause)
        try:
            ticket.payload = protocol.decode_payload(request)
            self._router.check(ticket)
        except CommandError as error:
            ticket.fail(error)
        else:
            self._router.run(ticket)
        return name, answers[0]

    def _tell(self, fired: _Fired, did: str, text: str, *, requests: Sequence[str] = ()) -> None:
        live, rule = fired.live, fired.live.rule
        if did == rule.action and live.left is not None:
            text = f"{text}; {live.left} of {rule.budget} left"
        self._run.emit(
            "guard",
            rule=rule.rule,
            step=fired.step,
            metric=rule.metric,
            value=fired.value if math.isfinite(fired.value) else None,
            bound=fired.bound,
            action=rule.action,
            did=did,
            request_id=requests[0] if requests else None,
            requests=[*requests],
            at_step=self._run.position().step,
            budget_left=live.left,
            text=text,
        )
        self._run.say(f"{self._run.run_id}: guard {rule.rule}: {text}")

    # What goes with the run.

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None where there is no rule."""
        if not self._lives:
            return None
        rules = {name: live.to_plain() for name, live in self._lives.items()}
        for fired in self._due:  # what is not done yet is to be found anew
            rules[fired.live.rule.rule] |= {"armed": True, "rest": 0}
        return {"rules": rules, "factor": self._factor, "scaled": dict(self._scaled)}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """A state was put in place; in a process that goes on, with all that rules have used."""
        saved: Mapping[str, Any] = {} if state is None else state["rules"]
        self._factor = 1.0 if state is None else state["factor"]
        self._scaled = {} if state is None else dict(state["scaled"])
        if self._fresh:
            self._go_on(saved)
            self._watch()
        self._due.clear()
        for name, live in self._lives.items():
            live.detector = live.rule.make()
            live.armed = True
            old = saved.get(name)
            if old is not None and _alike(old["rule"], live.rule):
                live.detector.load(old["found"])
                live.armed = old["armed"]

    def _go_on(self, saved: Mapping[str, Any]) -> None:
        """Rules as they were in the process before, where the script has given the same."""
        for name, old in saved.items():
            live, then = self._lives.get(name), _Live.of_plain(old)
            given = live.given if live is not None else None
            if then.given == given:
                self._lives[name] = then

    def undone(self, request_id: str | None) -> None:
        """A command was taken back; of a scaled rate it is no more."""
        self._factor /= self._scaled.pop(request_id or "", 1.0)

    # Commands.

    def register(self, router: CommandRouter) -> None:
        """Give the router its handlers."""
        router.on("list_guards")(lambda _: {"guards": self.rows()})
        router.on("set_guard")(self._set)
        self._history.ways["guard"] = self._back

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``list_guards``."""
        return [live.row() for live in self._lives.values()]

    def _set(self, ticket: Ticket) -> dict[str, Any]:
        asked = ticket.payload
        before = self._lives.get(asked.rule)
        given = {
            name: value
            for name, value in msgspec.structs.asdict(asked).items()
            if name not in ("rule", "remove") and value is not UNSET
        }
        now: _Live | None = None
        if asked.remove:
            self._check_removed(asked.rule, before, given)
        else:
            now = self._asked(asked.rule, before, given)
            self._run.watch(self.seen)
        back = {"kind": "guard", "rule": asked.rule, "live": before and before.to_plain()}
        said = {"old": before and before.row(), "new": now and now.row()}
        self._put(asked.rule, now)
        self._history.add(ticket, **said, back=back)
        return {"rule": asked.rule, **said, "applied_step": self._run.position().step}

    def _back(self, change: Change, ticket: Ticket) -> dict[str, Any]:
        """Undo of a rule that was set, in this process or in one before."""
        assert change.back is not None
        name, plain = change.back["rule"], change.back["live"]
        self._put(name, None if plain is None else _Live.of_plain(plain))
        self._history.taken_back(change, ticket)
        return {name: change.old}

    def _check_removed(self, name: str, before: _Live | None, given: Mapping[str, Any]) -> None:
        if before is None or given:
            known = ", ".join(self._lives) or "none"
            detail = (
                f"Guard {name[:60]!r} was asked to be removed"
                f"{' and changed' if given else ''}; there are {known}."
            )
            code = ErrorCode.NOT_FOUND if before is None else ErrorCode.BAD_PAYLOAD
            raise CommandError(code, detail, field="rule", allowed=[*self._lives])

    def _asked(self, name: str, before: _Live | None, given: dict[str, Any]) -> _Live:
        try:
            if before is not None:
                rule = changed(before.rule, given)
                renewed = "budget" in given or rule.budget != before.rule.budget
                return self._another(before, rule, renewed=renewed)
            if "watch" not in given:
                there = [*self._lives]
                detail = (
                    f"Guard {name[:60]!r} is not there; there are {', '.join(there) or 'none'}; "
                    "a new one needs watch."
                )
                raise CommandError(ErrorCode.NOT_FOUND, detail, field="rule", allowed=there)
            if len(self._lives) >= MAX_RULES:
                detail = f"{len(self._lives)} guards are there; allowed: at most {MAX_RULES}."
                raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
            return _Live(guard_rule({"rule": name, **given}, frozenset(self._lives)), None)
        except ValueError as error:
            raise CommandError(ErrorCode.BAD_PAYLOAD, f"{error}.", field="rule") from error

    def _another(self, before: _Live, rule: GuardRule, *, renewed: bool) -> _Live:
        """The rule with other settings; what it has seen stays, unless it looks otherwise."""
        now = _Live(rule, before.given)
        if _alike(before.rule.to_plain(), rule):
            now.detector, now.armed = before.detector, before.armed
        now.rest, now.last = min(before.rest, rule.cool_down), before.last
        now.spent = 0 if renewed else before.spent
        return now

    def _put(self, name: str, live: _Live | None) -> None:
        self._fresh = False
        self._run.changed()
        self._due = [fired for fired in self._due if fired.live.rule.rule != name]
        if live is None:
            self._lives.pop(name, None)
        else:
            self._lives[name] = live
        self._watch()


def _spent(rule: GuardRule) -> str:
    return f"its budget of {rule.budget} is used up"


def _alike(saved: Mapping[str, Any], rule: GuardRule) -> bool:
    """Whether what one remembers means the same to the other."""
    names = ("watch", "metric", "params")
    now = rule.to_plain()
    return all(saved[name] == now[name] for name in names)
