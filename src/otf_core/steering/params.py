"""The values that can be steered: the table, the paths, what is allowed, and how each is set.

Rule 1: ``OPTIONS`` is the table; a value of parameter groups is a row in it, any other value is a
``Knob`` that the delegate supplies.
Rule 2: nothing is written before all of a request is found good.
Rule 3: what is reported was read back from where the training reads it.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec
from torch import Tensor
from torch.optim import Optimizer

from otf_core.errors import CommandError, ErrorCode, LocalProtocolError
from otf_core.protocol import SetParam
from otf_core.steering.cadence import Cadence
from otf_core.steering.knobs import (
    HeldKnobs,
    Kept,
    Knob,
    Value,
    agreed,
    choice_of,
    number_of,
    plan,
    refuse_value,
    whole,
)
from otf_core.steering.ledger import Asked, Edit, Ledger, Loss, Mode, Ramp, Raw, Slot, on_host
from otf_core.steering.options import OPTIONS, fixed_in, names_in, option_of, refuse

# The bounds hold for what a scaled schedule comes to later as well, when nobody looks: a cycle's
# 0.8 set to 0.9 would take its 0.95 above 1, and a warm-up caught at 1e-8 can be scaled by 1e5.
CEILINGS: Final = {
    name: high for name in ("lr", "momentum", "beta1") if (high := OPTIONS[name].high) is not None
}
# What a run cannot have otherwise once it has begun.
NEVER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "precision": (
            "Weights, optimizer states and the gradient scaler are made in it when the run begins, "
            "and a step in another one would not be the same training; allowed: a new run with "
            "it, from a checkpoint of this one."
        )
    }
)

_ONE: Final = re.compile(r"optim\.(0|[1-9]\d{0,5})\.groups\.(0|[1-9]\d{0,5})\.(\w+)")


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
        undo, kept, released: for ``Steering.undo``; of groups, of knobs.
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
    kept: Mapping[str, Kept] | None = dataclasses.field(default=None, repr=False, compare=False)
    released: bool = dataclasses.field(default=False, repr=False, compare=False)

    def to_wire(self) -> dict[str, Any]:
        """The reply's data."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("undo", "kept", "released")
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
        self._knobs = HeldKnobs(self.tunable.trainer_knobs)
        self._step = 0  # steps done, as of the last ``watch`` or ``apply``

    def add_knob(self, path: str, knob: Knob) -> None:
        """A value that is no part of the training's state, so that no rollback changes it."""
        self._knobs.added[path] = knob

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
        waiting = pending or {}
        rows = []
        for path, slots in self._paths().items():
            option = option_of(slots[0].optimizer, slots[0].key)
            values = [
                self._read(slot, self._ledger.used(slot), may_wait=may_wait) for slot in slots
            ]
            rows.append(
                {
                    "path": path,
                    "kind": option.kind,
                    "value": agreed(values),
                    **self._scripts_own(slots, may_wait=may_wait),
                    "pending": waiting.get(path),
                    "min": option.low,
                    "max": option.high,
                    "owner": "scheduler" if any(map(self._is_scheduled, slots)) else "optimizer",
                    "takes_effect": "next step",
                }
            )
        knobs = self._knobs.all()
        for path, knob in knobs.items():
            if knob.refused is not None:
                continue
            optional = {"choices": knob.choices and [*knob.choices], "unit": knob.unit}
            rows.append(
                {
                    "path": path,
                    "kind": knob.kind,
                    "value": agreed([knobs[p].read() for p in self._knobs.paths(path, knob)]),
                    "pending": waiting.get(path),
                    "min": knob.low,
                    "max": knob.high,
                    **{key: value for key, value in optional.items() if value is not None},
                    "owner": knob.owner,
                    "takes_effect": knob.takes_effect,
                    **({"in_use": knob.in_use()} if knob.in_use is not None else {}),
                }
            )
        return rows

    @staticmethod
    def _read(slot: Slot, raw: Raw, *, may_wait: bool = True) -> Any:
        """As the group has it; None where it lives on a device, and is not to be waited for."""
        value = float(raw) if may_wait else on_host(raw)
        return None if value is None else slot.plain(value)

    def _scripts_own(self, slots: Sequence[Slot], *, may_wait: bool) -> dict[str, Any]:
        """What script and schedule by themselves would use, where an edit stands."""
        edits = [self._ledger.get(slot) for slot in slots]
        if not any(edits):
            return {}
        own = [
            self._read(slot, edit.shadow if edit else slot.raw(), may_wait=may_wait)
            for edit, slot in zip(edits, slots, strict=True)
        ]
        return {"script": agreed(own)}

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
        knob = self._knob(request.path)
        if request.release:
            self._plan_release(request, knob)
        elif knob is not None:
            self._plan_knob(request, knob)
        else:
            self._plan(request, on_host, begins)

    def apply(self, request: SetParam, step: int) -> AppliedParam:
        """Set it now, whatever ``at_step`` says; all of it, or nothing and a CommandError."""
        _check_span(request, step)
        knob = self._knob(request.path)
        if request.release:
            return self._release(request, knob, step)
        if knob is not None:
            kept = self._knobs.put(self._plan_knob(request, knob), request.until)
            return self._turned(request.path, knob, kept, step, request.until)
        asked = self._plan(request, float, step)
        self._step = step
        self._ledger.advance(step)  # a curve begins here
        self._intercept(asked)
        before = {
            slot: edit and dataclasses.replace(edit)
            for slot, edit in ((slot, self._ledger.get(slot)) for slot in asked)
        }
        old = [self._read(slot, self._ledger.used(slot)) for slot in asked]
        self._ledger.put(asked)
        modes = [wish.mode for wish in asked.values()]
        applied = self._applied(request.path, old, before, step, modes)
        return dataclasses.replace(applied, until=request.until)

    def earliest(self, request: SetParam, step: int) -> int:
        """The first step from now on at which it can be applied; what ``check`` has found good."""
        knob = self._knob(request.path)
        if knob is None or knob.steps_until is None:
            return step
        if request.release:
            if not self._knobs.held([request.path]):
                return step
            [value] = self._knobs.scripts([request.path])
        else:
            [value] = self._plan_knob(request, knob).values()
        return step + knob.steps_until(value)

    def refuse_undo(self, applied: AppliedParam, step: int) -> None:
        """Refuse what cannot be put back now.

        Raises:
            CommandError: ``not_allowed_now``; the script has written it since, it is the script's
                again, or it stands in the middle of what it counts.
        """
        if applied.undo is not None:
            lost = [self._path(s) for s in applied.undo if self._ledger.get(s) is None]
        else:
            kept = applied.kept or {}
            own = [path for path in kept if path not in self._knobs.added]
            held = self._knobs.held(own)
            lost = [path for path in own if path not in held]
            self._knobs.refuse_in_between(kept)
        ended = applied.until is not None and applied.until <= step
        if lost and (not applied.released or (ended and applied.undo is not None)):
            raise _gone(applied.path, lost[0], applied.until if ended else None)

    def undo(self, applied: AppliedParam, step: int) -> AppliedParam:
        """Put back what was before: the earlier edit, or the schedule as it is now.

        Raises:
            CommandError: as ``refuse_undo``; nothing is changed then.
        """
        self.refuse_undo(applied, step)
        if applied.undo is None:
            now = self._knobs.put_back(applied.kept or {})
            return self._turned(applied.path, self._knobs.all()[applied.path], now, step)
        old = [self._read(slot, self._ledger.used(slot)) for slot in applied.undo]
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
            slots, held = [], bool(self._knobs.held(self._knobs.paths(request.path, knob)))
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
            paths = self._knobs.held(self._knobs.paths(request.path, knob))
            kept = self._knobs.release(paths)
            turned = self._turned(request.path, knob, kept, step)
            return dataclasses.replace(turned, released=True)
        before = {s: dataclasses.replace(e) for s in slots if (e := self._ledger.get(s))}
        old = [self._read(slot, self._ledger.used(slot)) for slot in slots]
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
                left, found_there = edit.left_with(step), self._ledger.used(slot)
                old = None if left is None else slot.plain(left)
                new = self._read(slot, found_there, may_wait=False)
                found.append(Ended(self._path(slot), old, new, step))
            found += [
                Overwritten(self._path(loss.slot), loss.left, loss.found, step)
                for loss in self._ledger.losses()
            ]
        for become in self._knobs.watch(step):
            kind = Ended if become.ended else Overwritten
            found.append(kind(become.path, become.old, become.new, step))
        return found

    def state(self) -> dict[str, Any]:
        """The edits as plain values, to go into a checkpoint beside optimizers and schedulers."""
        edits = {self._path(slot): row for slot, row in self._ledger.state().items()}
        return {
            "edits": edits,
            **self._knobs.state(),
            "step": self._step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a ``state`` in place of all edits; after the optimizers have theirs.

        Raises:
            LocalProtocolError: it names what this run does not have; nothing is changed.
        """
        paths = {self._path(slot): slot for slots in self._paths().values() for slot in slots}
        strange = [*(state["edits"].keys() - paths), *self._knobs.strange(state)]
        if strange:
            msg = f"edits of {sorted(strange)} were to be loaded; this run has {sorted(paths)}"
            raise LocalProtocolError(msg)
        edits = {paths[path]: row for path, row in state["edits"].items()}
        self._intercept(edits)
        self._step = state.get("step", 0)
        self._ledger.load(edits, self._step)
        self._knobs.load(state)

    def is_apart(self, path: str) -> bool:
        """Whether it is no value of the training, see ``add_knob``."""
        return path in self._knobs.added

    def is_knob(self, path: str) -> bool:
        """Whether it is a single value, which no schedule writes."""
        return path in self._knobs.all()

    def slots(self) -> dict[str, Slot]:
        """Each single value of a parameter group, by its whole path."""
        return {_one(index, slot): slot for index, slot in self._slots()}

    def close(self) -> None:
        """Leave the schedulers as they were found; the values stay as they are."""
        self._ledger.close()
        self._knobs.close()

    def _applied(
        self,
        path: str,
        old: Sequence[Any],
        before: Mapping[Slot, Edit | None],
        step: int,
        modes: Sequence[Mode],
    ) -> AppliedParam:
        owners = ["scheduler" if self._is_scheduled(slot) else "optimizer" for slot in before]
        new = [self._read(slot, self._ledger.used(slot)) for slot in before]
        several = len(new) > 1
        return AppliedParam(
            path,
            [*old] if several else old[0],
            new if several else new[0],
            step,
            agreed(owners),
            agreed(modes),
            undo=before,
        )

    def _turned(
        self,
        path: str,
        knob: Knob,
        kept: Mapping[str, Kept],
        step: int,
        until: int | None = None,
    ) -> AppliedParam:
        knobs = self._knobs.all()
        old, new = [k.value for k in kept.values()], [knobs[p].read() for p in kept]
        return AppliedParam(
            path, agreed(old), agreed(new), step, knob.owner, "override", until, kept=kept
        )

    def _knob(self, path: str) -> Knob | None:
        """The knob of this path, if it is one. Raises CommandError: nobody can set it."""
        knob = self._knobs.all().get(path)
        if knob is not None and knob.refused is not None:
            detail = f"{path} was asked; {knob.refused}"
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="path")
        return knob

    # What is there.

    def _slots(self) -> Iterator[tuple[int, Slot]]:
        optimizers = self.tunable.optimizers()
        for name in names_in(iter(optimizers)):
            for index, optimizer in enumerate(optimizers):
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
        name = path.rpartition(".")[2]
        if (never := NEVER.get(name)) is not None:
            raise CommandError(ErrorCode.UNSUPPORTED, f"{path} was asked. {never}", field="path")
        for optimizer in self._named(path):
            if (why := fixed_in(optimizer, name)) is not None:
                detail = f"{path} was asked, {name} {why}."
                raise CommandError(ErrorCode.UNSUPPORTED, detail, field="path")
        knobs = self._knobs.all()
        known = [*paths, *(path for path, knob in knobs.items() if knob.refused is None)]
        near = difflib.get_close_matches(path, known, n=1)
        hint = f", nearest is {near[0]!r}" if near else ""
        detail = f"{path[:80]!r} was asked{hint}; allowed: {', '.join(known)}."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="path", allowed=known)

    def _named(self, path: str) -> Sequence[Optimizer]:
        """The optimizers of which a path speaks."""
        optimizers = self.tunable.optimizers()
        if (one := _ONE.fullmatch(path)) is not None:
            return optimizers[int(one[1]) :][:1]
        return optimizers if path.isidentifier() else ()

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
        planned: dict[Slot, Asked] = {}
        for slot in slots:
            option, old = option_of(slot.optimizer, slot.key), read(self._ledger.used(slot))
            # A value that is not read stands as 0, so that only the factor is checked.
            start = 0.0 if old is None else old
            if request.over is not None:
                ramp = self._ramp(request, slot, start, step)
                planned[slot] = Asked("replace", ramp.start, request.until, ramp)
                continue
            value: float
            if option.kind == "bool":
                value = bool(choice_of(request, (False, True)))
            else:
                value = number_of(request, start, option.low, option.high)
                value = whole(request, value) if option.kind == "int" else value
            self._check_optimizer(request, slot, value)
            edit = self._ledger.get(slot)
            shadow = read(edit.shadow) if edit else old
            mode = self._mode(request, slot, value, old, shadow)
            planned[slot] = Asked(mode, value, request.until)
        self._check_shared(request, slots)
        return planned

    def _ramp(self, request: SetParam, slot: Slot, now: float, step: int) -> Ramp:
        """The curve that is asked for, from what is asked or stands there."""
        assert request.to is not None
        assert request.over is not None
        option = option_of(slot.optimizer, slot.key)
        if option.kind != "float":
            detail = f"{request.path} was asked to follow a curve, it is no number between others."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="over")
        end = msgspec.structs.replace(request, value=request.to, mul=msgspec.UNSET)
        to = number_of(end, None, option.low, option.high)
        begins = request.value is not msgspec.UNSET or request.mul is not msgspec.UNSET
        start = number_of(request, now, option.low, option.high) if begins else now
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

    def _check_optimizer(self, request: SetParam, slot: Slot, value: Any) -> None:
        """What torch's optimizers cannot do once they are made."""
        if on_host(slot.raw()) == value:
            return
        group = slot.optimizer.param_groups[slot.group]
        found = refuse(slot.optimizer, group, slot.key, value)
        if found is None:
            return
        detail = f"{request.path} was asked to be {value}, {self._path(slot)} {found.why}."
        if found.allowed is not None:
            refuse_value(request, detail, found.allowed)
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

    def _plan_knob(self, request: SetParam, knob: Knob) -> dict[str, Value]:
        """What is to be made of it, or of each for which it stands."""
        if request.mode == "scale":
            detail = (
                f"{request.path} was asked to scale its schedule, no scheduler owns it; "
                "allowed: override."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="mode", allowed=["override"])
        if request.over is not None:
            allowed = [name for name, option in OPTIONS.items() if option.kind == "float"]
            detail = (
                f"{request.path} was asked to go to {request.to} over {request.over} steps; "
                f"allowed: of {', '.join(allowed)}."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="over", allowed=allowed)
        if request.until is not None and request.path in self._knobs.added:
            detail = f"{request.path} was asked until a step; it is no value of the training."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="until")
        knobs = self._knobs.all()
        return {path: plan(request, knobs[path]) for path in self._knobs.paths(request.path, knob)}

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


def _gone(path: str, part: str, until: int | None) -> CommandError:
    """Nothing is left to be put back."""
    if until is not None:
        why = f"it was set until step {until} and is the script's again."
    else:
        why = f"{part} has been written by the training script since; allowed: to set it anew."
    return CommandError(ErrorCode.NOT_ALLOWED_NOW, f"{path} was asked to be put back, {why}")


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
