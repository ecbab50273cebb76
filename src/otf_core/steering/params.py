"""The values that can be steered: the table, the paths, what is allowed, and how each is set.

Rule 1: ``PARAMS`` is the table; a value of parameter groups is a row in it, a value of the trainer
is a ``Knob`` that the delegate supplies.
Rule 2: nothing is written before all of a request is found good.
Rule 3: what is reported was read back from where the training reads it.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias

import msgspec
from torch import Tensor
from torch.optim import Optimizer, RMSprop

from otf_core.errors import CommandError, ErrorCode, LocalProtocolError
from otf_core.protocol import SetParam
from otf_core.steering.cadence import Cadence
from otf_core.steering.ledger import Asked, Edit, Ledger, Loss, Mode, Ramp, Raw, Slot, on_host

Owner: TypeAlias = Literal["optimizer", "scheduler", "trainer", "data", "model", "user"]
Value: TypeAlias = float | int | bool | str | None


@dataclasses.dataclass(frozen=True)
class Param:
    """A value of parameter groups and its bounds, both included."""

    name: str
    low: float
    high: float


PARAMS: Final[Mapping[str, Param]] = MappingProxyType(
    {
        param.name: param
        for param in (
            # 10: the largest learning rates in use (LARS, unscaled Adadelta at 1) stay below it;
            # more is a slip of the decimal point.
            Param("lr", 0.0, 10.0),
            # 1: decoupled decay of lr * 1 shrinks weights by a whole step; more turns their sign
            # with lr near 1.
            Param("weight_decay", 0.0, 1.0),
            # Above 1 the buffer grows without end.
            Param("momentum", 0.0, 1.0),
            # torch asks for beta < 1: at 1 the bias correction divides by 0.
            Param("beta1", 0.0, 0.999999),
            Param("beta2", 0.0, 0.999999),
        )
    }
)
# The bounds hold for what a scaled schedule comes to later as well, when nobody looks: a cycle's
# 0.8 set to 0.9 would take its 0.95 above 1, and a warm-up caught at 1e-8 can be scaled by 1e5.
CEILINGS: Final = {name: PARAMS[name].high for name in ("lr", "momentum", "beta1")}
CLIP_MAX: Final = 1000.0  # 0 is no clipping; above a norm of 1,000 nothing is clipped in practice

_ONE: Final = re.compile(r"optim\.(0|[1-9]\d{0,5})\.groups\.(0|[1-9]\d{0,5})\.(\w+)")


@dataclasses.dataclass(frozen=True)
class Knob:
    """A single value that is not in a parameter group; read and written on the training thread.

    Attributes:
        read: the value in force; None where it is not set.
        write: takes what ``read`` may return.
        low, high: bounds, both included, for numbers.
        choices: what an enum may be.
        check: in place of the bounds: what is asked as ``write`` takes it; CommandError where it
            cannot be.
        close: the run is over, and it was set.
    """

    read: Callable[[], Value]
    write: Callable[[Any], None]
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "bool", "enum", "str"] = "float"
    choices: tuple[str, ...] | None = None
    unit: str | None = None
    owner: Owner = "trainer"
    check: Callable[[SetParam], Value] | None = None
    close: Callable[[], None] | None = None


def clip_knob(read: Callable[[], Value], write: Callable[[Any], None]) -> Knob:
    """The knob for a gradient clip: 0 to 1,000, where 0 is no clipping."""
    return Knob(read, write, low=0.0, high=CLIP_MAX)


class Tunable(Protocol):
    """What a framework supplies, so that its run can be steered; training thread only."""

    def optimizers(self) -> Sequence[Optimizer]:
        """torch's own objects, not a framework's wrappers, in a fixed order."""

    def schedulers(self) -> Sequence[tuple[Any, Optimizer]]:
        """Whatever is stepped, with the optimizer that it writes: the outermost ones."""

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """By path."""

    def cadence(self) -> Cadence | None:
        """When the schedules step; None where the script does that itself."""


@dataclasses.dataclass(frozen=True)
class AppliedParam:
    """What ``set_param`` did. Lists, in the order of the groups, where the path stands for several.

    Attributes:
        old, new: read back from where the training reads them.
        owner, mode: a list only where the groups differ.
        until: the step at which something is known to write it again; None: nothing is.
        undo, released: for ``Steering.undo``.
    """

    path: str
    old: Any
    new: Any
    applied_step: int
    owner: Any
    mode: Any
    until: int | None = None
    undo: Mapping[Slot, Edit | None] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    released: bool = dataclasses.field(default=False, repr=False, compare=False)

    def to_wire(self) -> dict[str, Any]:
        """The reply's data."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("undo", "released")
        }


@dataclasses.dataclass(frozen=True)
class Overwritten:
    """A value that was set by a person and has then been written by the script.

    ``set_to`` and ``found`` are None where they live on a device and were not read.
    """

    path: str
    set_to: Value
    found: Value
    step: int


@dataclasses.dataclass(frozen=True)
class Ended:
    """A value that was set until a step, and is the script's again."""

    path: str
    old: Value
    new: Value
    step: int


class Edits(Protocol):
    """How edits of parameter groups are made to last; ``Ledger`` is one."""

    default_mode: Mode

    def __bool__(self) -> bool: ...
    def __iter__(self) -> Iterator[Slot]: ...
    def get(self, slot: Slot) -> Edit | None: ...
    def used(self, slot: Slot) -> Raw: ...
    def put(self, asked: Mapping[Slot, Asked]) -> None: ...
    def advance(self, step: int) -> Mapping[Slot, Edit]: ...
    def put_back(self, before: Mapping[Slot, Edit | None]) -> None: ...
    def losses(self) -> builtins.list[Loss]: ...
    def state(self) -> dict[Slot, dict[str, Any]]: ...
    def load(self, state: Mapping[Slot, Mapping[str, Any]], step: int) -> None: ...
    def intercepts(self, scheduler: Any) -> bool: ...
    def intercept(self, scheduler: Any, optimizer: Optimizer) -> None: ...
    def close(self) -> None: ...


class Steering:
    """Lists and sets what can be steered in a run; training thread only, at a safe point.

    Args:
        edits: how they last; by default scheduler steps are led through a ``Ledger``.
    """

    def __init__(self, tunable: Tunable, edits: Edits | None = None) -> None:
        self.tunable = tunable
        self._ledger: Edits = Ledger(CEILINGS) if edits is None else edits
        self._held: dict[str, Value] = {}  # path of a knob -> what it was left with
        self._script: dict[str, Value] = {}  # path of a knob -> what the script has there
        self._until: dict[str, int] = {}  # path of a knob -> when it is the script's again
        self._added: dict[str, Knob] = {}
        self._step = 0  # steps done, as of the last ``watch`` or ``apply``

    def add_knob(self, path: str, knob: Knob) -> None:
        """A value that is no part of the training's state, so that no rollback changes it."""
        self._added[path] = knob

    def _knobs(self) -> dict[str, Knob]:
        return {**self.tunable.trainer_knobs(), **self._added}

    def list(
        self, pending: Mapping[str, Any] | None = None, *, may_wait: bool = True
    ) -> builtins.list[dict[str, Any]]:
        """The rows of ``list_params``.

        A path for several groups has one value where they agree, else the list of them.

        Args:
            pending: path -> {"value", "at_step"} of edits that wait for their step.
            may_wait: read what lives on a device, which waits for the device; else None stands
                for it.
        """
        read: Callable[[Any], float | None] = float if may_wait else on_host
        waiting = pending or {}
        rows = [
            {
                "path": path,
                "kind": "float",
                "value": _agreed([read(self._ledger.used(slot)) for slot in slots]),
                **self._scripts_own(slots, read),
                "pending": waiting.get(path),
                "min": PARAMS[slots[0].key].low,
                "max": PARAMS[slots[0].key].high,
                "owner": "scheduler" if any(map(self._is_scheduled, slots)) else "optimizer",
            }
            for path, slots in self._paths().items()
        ]
        for path, knob in self._knobs().items():
            optional = {"choices": knob.choices and [*knob.choices], "unit": knob.unit}
            rows.append(
                {
                    "path": path,
                    "kind": knob.kind,
                    "value": knob.read(),
                    "pending": waiting.get(path),
                    "min": knob.low,
                    "max": knob.high,
                    **{key: value for key, value in optional.items() if value is not None},
                    "owner": knob.owner,
                }
            )
        return rows

    def _scripts_own(
        self, slots: Sequence[Slot], read: Callable[[Any], float | None]
    ) -> dict[str, Any]:
        """What script and schedule by themselves would use, where an edit stands."""
        edits = [self._ledger.get(slot) for slot in slots]
        if not any(edits):
            return {}
        own = [e.shadow if e else slot.raw() for e, slot in zip(edits, slots, strict=True)]
        return {"script": _agreed([read(value) for value in own])}

    def check(self, request: SetParam, step: int) -> None:
        """Refuse what cannot be applied; changes nothing and waits for no device.

        Raises:
            CommandError: ``not_found``, ``bad_payload`` or ``unsupported``.
        """
        if request.at_step is not None and request.at_step < step:
            detail = (
                f"set_param {request.path} was asked for step {request.at_step}, {step} are done; "
                f"allowed: {step} or later."
            )
            raise CommandError(
                ErrorCode.BAD_PAYLOAD, detail, field="at_step", allowed={"min": step}
            )
        begins = step if request.at_step is None else request.at_step
        _check_span(request, begins)
        knob = self._knobs().get(request.path)
        if request.release:
            self._plan_release(request, knob)
        elif knob is not None:
            self._plan_knob(request, knob)
        else:
            self._plan(request, on_host, begins)

    def apply(self, request: SetParam, step: int) -> AppliedParam:
        """Set it now, whatever ``at_step`` says; all of it, or nothing and a CommandError."""
        _check_span(request, step)
        knob = self._knobs().get(request.path)
        if request.release:
            return self._release(request, knob, step)
        if knob is not None:
            value = self._plan_knob(request, knob)
            return self._set_knob(request.path, knob, value, step, request.until)
        asked = self._plan(request, float, step)
        self._step = step
        self._ledger.advance(step)  # a curve begins here
        self._intercept(asked)
        before = {
            slot: edit and dataclasses.replace(edit)
            for slot, edit in ((slot, self._ledger.get(slot)) for slot in asked)
        }
        old = [float(self._ledger.used(slot)) for slot in asked]
        self._ledger.put(asked)
        modes = [wish.mode for wish in asked.values()]
        applied = self._applied(request.path, old, before, step, modes)
        return dataclasses.replace(applied, until=request.until)

    def undo(self, applied: AppliedParam, step: int) -> AppliedParam:
        """Put back what was before: the earlier edit, or the schedule as it is now.

        Raises:
            CommandError: ``not_allowed_now``; the script has written it since.
        """
        if applied.undo is None:
            knob = self._knobs()[applied.path]
            return self._set_knob(applied.path, knob, applied.old, step)
        lost = [slot for slot in applied.undo if self._ledger.get(slot) is None]
        if lost and applied.until is not None and applied.until <= step:
            detail = (
                f"{applied.path} was asked to be put back, it was set until step {applied.until} "
                "and is the script's again."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        if lost and not applied.released:
            detail = (
                f"{applied.path} was asked to be put back, {self._path(lost[0])} has been written "
                "by the training script since; allowed: to set it anew."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        old = [float(self._ledger.used(slot)) for slot in applied.undo]
        self._ledger.put_back(applied.undo)
        modes = [edit.mode if edit else "override" for edit in applied.undo.values()]
        before = dict.fromkeys(applied.undo)
        return self._applied(applied.path, old, before, step, modes)

    def _plan_release(self, request: SetParam, knob: Knob | None) -> builtins.list[Slot]:
        """The slots that are to be the script's again; none for a knob.

        Raises:
            CommandError: nothing is held there, or more than the release was asked.
        """
        given = [
            name
            for name, value, unset in (
                ("value", request.value, msgspec.UNSET),
                ("mul", request.mul, msgspec.UNSET),
                ("mode", request.mode, None),
                ("until", request.until, None),
                ("to", request.to, None),
                ("over", request.over, None),
            )
            if value is not unset
        ]
        if given:
            detail = (
                f"{request.path} was asked to be released with {', '.join(given)}; allowed: none."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="release")
        if knob is not None:
            slots, held = [], request.path in self._held
        else:
            slots = [s for s in self._find(request.path) if self._ledger.get(s) is not None]
            held = bool(slots)
        if not held:
            detail = (
                f"{request.path} was asked to be released; nothing is set there, it is as the "
                "script has it."
            )
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
        return slots

    def _release(self, request: SetParam, knob: Knob | None, step: int) -> AppliedParam:
        """Give it back to the script, as the script and its schedule have it by now."""
        slots = self._plan_release(request, knob)
        if knob is not None:
            return self._free_knob(request.path, knob, step)
        before = {s: dataclasses.replace(e) for s in slots if (e := self._ledger.get(s))}
        old = [float(self._ledger.used(slot)) for slot in slots]
        self._ledger.put_back(dict.fromkeys(slots))
        applied = self._applied(request.path, old, before, step, [e.mode for e in before.values()])
        return dataclasses.replace(applied, released=True)

    def watch(self, step: int) -> builtins.list[Overwritten | Ended]:
        """What has become of the edits since the last call; cheap, and free without edits.

        An edit that the script has written over is ended: the script's value stands from then on.
        So is one whose last step is reached. Also takes in schedulers that came after an edit
        (weight averaging brings its own).
        """
        found: builtins.list[Overwritten | Ended] = []
        self._step = step
        if self._ledger:
            self._intercept(self._ledger, strict=False)
            for slot, edit in self._ledger.advance(step).items():
                old, new = edit.left_with(step), on_host(self._ledger.used(slot))
                found.append(Ended(self._path(slot), old, new, step))
            found += [
                Overwritten(self._path(loss.slot), loss.left, loss.found, step)
                for loss in self._ledger.losses()
            ]
        if self._held:
            knobs = self.tunable.trainer_knobs()
            for path, value in tuple(self._held.items()):
                now = knobs[path].read() if path in knobs else None
                if now != value:
                    found.append(Overwritten(path, value, now, step))
                    del self._held[path]
                    self._until.pop(path, None)
                elif step >= self._until.get(path, math.inf):
                    freed = self._free_knob(path, knobs[path], step)
                    found.append(Ended(path, freed.old, freed.new, step))
        return found

    def _free_knob(self, path: str, knob: Knob, step: int) -> AppliedParam:
        """It is the script's again."""
        applied = self._set_knob(path, knob, self._script.pop(path), step)
        del self._held[path]
        self._until.pop(path, None)
        return applied

    def state(self) -> dict[str, Any]:
        """The edits as plain values, to go into a checkpoint beside optimizers and schedulers."""
        edits = {self._path(slot): row for slot, row in self._ledger.state().items()}
        return {
            "edits": edits,
            "knobs": dict(self._held),
            "until": dict(self._until),
            "step": self._step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state`` in place of all edits; after the optimizers have theirs.

        Raises:
            LocalProtocolError: it names what this run does not have; nothing is changed.
        """
        paths = {self._path(slot): slot for slots in self._paths().values() for slot in slots}
        knobs = self.tunable.trainer_knobs()
        strange = [*(state["edits"].keys() - paths), *(state["knobs"].keys() - knobs)]
        if strange:
            msg = f"edits of {sorted(strange)} were to be loaded; this run has {sorted(paths)}"
            raise LocalProtocolError(msg)
        edits = {paths[path]: row for path, row in state["edits"].items()}
        self._intercept(edits)
        self._step = state.get("step", 0)
        self._ledger.load(edits, self._step)
        # Those that were set after that state was taken are the script's again.
        script = {p: v for p, v in self._script.items() if p in knobs and p not in state["knobs"]}
        for path, value in {**script, **state["knobs"]}.items():
            self._script.setdefault(path, knobs[path].read())  # of a process that begins
            knobs[path].write(value)
        self._held = dict(state["knobs"])
        self._until = dict(state.get("until", {}))  # checkpoints of 0.2.0 have none

    def is_knob(self, path: str) -> bool:
        """Whether it is a single value, which no schedule writes."""
        return path in self._knobs()

    def slots(self) -> dict[str, Slot]:
        """Each single value of a parameter group, by its whole path."""
        return {_one(index, slot): slot for index, slot in self._slots()}

    def close(self) -> None:
        """Leave the schedulers as they were found; the values stay as they are."""
        self._ledger.close()
        knobs = self.tunable.trainer_knobs() if self._held else {}
        for path in self._held:
            if path in knobs and (close := knobs[path].close) is not None:
                close()
        self._held.clear()

    def _applied(
        self,
        path: str,
        old: Sequence[float],
        before: Mapping[Slot, Edit | None],
        step: int,
        modes: Sequence[Mode],
    ) -> AppliedParam:
        owners = ["scheduler" if self._is_scheduled(slot) else "optimizer" for slot in before]
        new = [float(self._ledger.used(slot)) for slot in before]
        several = len(new) > 1
        return AppliedParam(
            path,
            [*old] if several else old[0],
            new if several else new[0],
            step,
            _agreed(owners),
            _agreed(modes),
            undo=before,
        )

    def _set_knob(
        self, path: str, knob: Knob, value: Value, step: int, until: int | None = None
    ) -> AppliedParam:
        old = knob.read()
        if old != value:
            knob.write(value)
        new = knob.read()
        if path not in self._added:
            self._script.setdefault(path, old)
            self._held[path] = new
            self._until.pop(path, None)
            if until is not None:
                self._until[path] = until
        return AppliedParam(path, old, new, step, knob.owner, "override", until)

    # What is there.

    def _slots(self) -> Iterator[tuple[int, Slot]]:
        for name in PARAMS:
            for index, optimizer in enumerate(self.tunable.optimizers()):
                for group in range(len(optimizer.param_groups)):
                    slot = Slot(optimizer, group, name)
                    if slot.exists():
                        yield index, slot

    def _paths(self) -> dict[str, builtins.list[Slot]]:
        """Path -> its slots: each name, then each single one where there are several."""
        together: dict[str, builtins.list[Slot]] = {}
        single: dict[str, builtins.list[Slot]] = {}
        for index, slot in self._slots():
            together.setdefault(slot.key, []).append(slot)
            single[_one(index, slot)] = [slot]
        several = any(len(slots) > 1 for slots in together.values())
        return {**together, **single} if several else together

    def _path(self, slot: Slot) -> str:
        indices = (i for i, o in enumerate(self.tunable.optimizers()) if o is slot.optimizer)
        return _one(next(indices, -1), slot)

    def _find(self, path: str) -> builtins.list[Slot]:
        paths = self._paths()
        slots = paths.get(path)
        if slots is None and _ONE.fullmatch(path):
            # The only group can be named as well, though it is not listed.
            slots = [slot for index, slot in self._slots() if _one(index, slot) == path]
        if slots:
            return slots
        known = [*paths, *self._knobs()]
        near = difflib.get_close_matches(path, known, n=1)
        hint = f", nearest is {near[0]!r}" if near else ""
        detail = f"{path[:80]!r} was asked{hint}; allowed: {', '.join(known)}."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="path", allowed=known)

    def _is_scheduled(self, slot: Slot) -> bool:
        return any(
            optimizer is slot.optimizer and slot.key in _written_by(scheduler)
            for scheduler, optimizer in self.tunable.schedulers()
        )

    # What is allowed.

    def _plan(
        self, request: SetParam, read: Callable[[float | Tensor], float | None], step: int
    ) -> dict[Slot, Asked]:
        """What is to be made of each slot; what ``read`` does not tell is left unchecked."""
        slots = self._find(request.path)
        param = PARAMS[slots[0].key]
        plan: dict[Slot, Asked] = {}
        for slot in slots:
            old = read(self._ledger.used(slot))
            # A value that is not read stands as 0, so that only the factor is checked.
            start = 0.0 if old is None else old
            if request.over is not None:
                ramp = self._ramp(request, slot, start, step)
                plan[slot] = Asked("replace", ramp.start, request.until, ramp)
                continue
            value = _number(request, start, param.low, param.high)
            self._check_optimizer(request, slot, value)
            edit = self._ledger.get(slot)
            shadow = read(edit.shadow) if edit else old
            mode = self._mode(request, slot, value, old, shadow)
            plan[slot] = Asked(mode, value, request.until)
        self._check_shared(request, slots)
        return plan

    def _ramp(self, request: SetParam, slot: Slot, now: float, step: int) -> Ramp:
        """The curve that is asked for, from what is asked or stands there."""
        assert request.to is not None
        assert request.over is not None
        param = PARAMS[slot.key]
        end = msgspec.structs.replace(request, value=request.to, mul=msgspec.UNSET)
        to = _number(end, None, param.low, param.high)
        begins = request.value is not msgspec.UNSET or request.mul is not msgspec.UNSET
        start = _number(request, now, param.low, param.high) if begins else now
        for value in (start, to):
            self._check_optimizer(request, slot, value)
        return Ramp(start, to, step, request.over, request.shape)

    def _mode(
        self, request: SetParam, slot: Slot, value: float, old: float | None, shadow: float | None
    ) -> Mode:
        # A factor of 1e308 or more is no factor: a warm-up that starts all but at 0.
        possible = shadow is None or (shadow != 0 and math.isfinite(value / shadow))
        holds = self._ledger.default_mode == "override"  # then whoever writes it can be scaled
        if not (holds or self._is_scheduled(slot)):
            found = f"no scheduler owns {self._path(slot)}"
        elif not possible:
            found = f"the schedule of {self._path(slot)} stands at {shadow}"
        else:
            return request.mode or ("override" if old == 0 else self._ledger.default_mode)
        if request.mode == "scale":
            detail = f"{request.path} was asked to scale its schedule, {found}; allowed: override."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mode", allowed=["override"])
        return "override"

    def _check_optimizer(self, request: SetParam, slot: Slot, value: float) -> None:
        """What torch's optimizers cannot do once they are made."""
        if slot.key != "momentum":
            return
        group = slot.optimizer.param_groups[slot.group]
        if value == 0 and group.get("nesterov"):
            detail = (
                f"{request.path} was asked to be 0, {self._path(slot)} is Nesterov momentum, which "
                "needs a momentum; allowed: above 0."
            )
            _refuse_value(request, detail, {"min": math.ulp(0.0), "max": PARAMS["momentum"].high})
        states = (slot.optimizer.state.get(parameter) for parameter in group["params"])
        if (
            value > 0
            and isinstance(slot.optimizer, RMSprop)
            and any(state and "momentum_buffer" not in state for state in states)
        ):
            detail = (
                f"{request.path} was asked to be {value}, {self._path(slot)} is of an RMSprop that "
                "has run without momentum and has no buffer for it; allowed: 0."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="path")

    def _check_shared(self, request: SetParam, slots: Sequence[Slot]) -> None:
        """Groups that share one tensor can only be set together."""
        tensors = {id(raw) for slot in slots if isinstance(raw := slot.raw(), Tensor)}
        if not tensors:
            return
        others = [
            self._path(slot)
            for _, slot in self._slots()
            if slot.key == slots[0].key and slot not in slots and id(slot.raw()) in tensors
        ]
        if others:
            detail = (
                f"{request.path} was asked, it is one tensor with {', '.join(others)}; "
                f"allowed: {slots[0].key} for all of them."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="path", allowed=[slots[0].key])

    def _plan_knob(self, request: SetParam, knob: Knob) -> Value:
        if request.mode == "scale":
            detail = (
                f"{request.path} was asked to scale its schedule, no scheduler owns it; "
                "allowed: override."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mode", allowed=["override"])
        if request.over is not None:
            detail = (
                f"{request.path} was asked to go to {request.to} over {request.over} steps; "
                f"allowed: of {', '.join(PARAMS)}."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="over", allowed=[*PARAMS])
        if request.until is not None and request.path in self._added:
            detail = f"{request.path} was asked until a step; it is no value of the training."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="until")
        if knob.check is not None:
            return knob.check(request)
        if knob.kind == "float":
            return _number(request, knob.read(), knob.low, knob.high)
        if knob.kind == "int":
            value = _number(request, knob.read(), knob.low, knob.high)
            if not value.is_integer():
                detail = f"{request.path} was asked to be {value}; allowed: a whole number."
                _refuse_value(request, detail)
            return int(value)
        return _choice(request, knob.choices or () if knob.kind == "enum" else (False, True))

    def _intercept(self, slots: Any, *, strict: bool = True) -> None:
        """Have the schedules of these slots step through the ledger.

        Raises:
            CommandError: ``unsupported``, if strict.
        """
        wanted = [(slot.optimizer, slot.key) for slot in slots]
        for scheduler, optimizer in self.tunable.schedulers():
            if self._ledger.intercepts(scheduler) or not any(
                mine is optimizer and key in _written_by(scheduler) for mine, key in wanted
            ):
                continue
            try:
                self._ledger.intercept(scheduler, optimizer)
            except TypeError as error:
                if strict:
                    detail = (
                        f"The schedule of {type(scheduler).__name__} was to be led through the "
                        f"edit, found: {error}; allowed: schedulers whose class does the step."
                    )
                    raise CommandError(ErrorCode.UNSUPPORTED, detail) from error


def _check_span(request: SetParam, begins: int) -> None:
    """How long a change lasts, and what belongs to a curve."""
    if request.until is not None and request.until <= begins:
        detail = (
            f"{request.path} was asked until step {request.until}, from step {begins} on; "
            f"allowed: {begins + 1} or later."
        )
        allowed = {"min": begins + 1}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="until", allowed=allowed)
    curve = (request.to is not None, request.over is not None)
    if curve == (False, False) and (request.mode == "replace" or request.shape != "linear"):
        detail = f"{request.path} was asked to follow a curve; it needs to and over."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="to")
    if any(curve) and not all(curve):
        missing = "over" if curve[0] else "to"
        detail = f"{request.path} was asked to follow a curve without {missing}; it needs both."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=missing)
    if request.over is not None and request.over < 1:
        detail = f"{request.path} was asked over {request.over} steps; allowed: 1 or more."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="over", allowed={"min": 1})
    if request.over is not None and request.mode not in (None, "replace"):
        detail = f"{request.path} was asked to {request.mode} and to follow a curve; it replaces."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mode", allowed=["replace"])


def _written_by(scheduler: Any) -> frozenset[str]:
    """The names that a scheduler writes: lr, and what it cycles against it."""
    written = {"lr"}
    if getattr(scheduler, "cycle_momentum", False):
        written.add("beta1" if getattr(scheduler, "use_beta1", False) else "momentum")
    # SequentialLR and ChainedScheduler.
    return frozenset(written).union(*map(_written_by, getattr(scheduler, "_schedulers", ())))


def _one(index: int, slot: Slot) -> str:
    return f"optim.{index}.groups.{slot.group}.{slot.key}"


def _agreed(values: Sequence[Any]) -> Any:
    """The one value where all are the same, else the list."""
    return values[0] if all(value == values[0] for value in values) else [*values]


def _number(request: SetParam, old: Value, low: float | None, high: float | None) -> float:
    """What is asked, as a number within the bounds."""
    allowed = {"min": low, "max": high}
    if (request.value is msgspec.UNSET) == (request.mul is msgspec.UNSET):
        detail = f"{request.path} needs one of value and mul; allowed: exactly one of them."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="value", allowed=allowed)
    asked: Any = request.mul if request.value is msgspec.UNSET else request.value
    if (
        isinstance(asked, bool)
        or not isinstance(asked, int | float)
        or not abs(asked) <= sys.float_info.max
    ):
        detail = f"{request.path} was asked as {asked!r}; allowed: a number from {low} to {high}."
        _refuse_value(request, detail, allowed)
    if request.value is msgspec.UNSET:
        if isinstance(old, str | bool) or old is None:
            detail = f"{request.path} was asked to be multiplied, it is {old!r}; allowed: value."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mul", allowed=allowed)
        asked *= old
    if (low is not None and asked < low) or (high is not None and asked > high):
        detail = f"{request.path} was asked to be {asked}, is {old}; allowed: {low} to {high}."
        _refuse_value(request, detail, allowed)
    return float(asked)


def _choice(request: SetParam, allowed: Sequence[Value]) -> Value:
    asked: Any = request.value
    # 1 == True: the type is a part of it.
    fits = any(type(value) is type(asked) and value == asked for value in allowed)
    if not fits or request.mul is not msgspec.UNSET:
        said = "multiplied" if asked is msgspec.UNSET else repr(asked)
        detail = f"{request.path} was asked to be {said}; allowed: {', '.join(map(str, allowed))}."
        _refuse_value(request, detail, [*allowed])
    return asked  # type: ignore[no-any-return]  # one of allowed


def _refuse_value(request: SetParam, detail: str, allowed: Any = None) -> NoReturn:
    field = "value" if request.mul is msgspec.UNSET else "mul"
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=field, allowed=allowed)
