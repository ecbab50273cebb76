"""The ledger of edits: for every edited value of a parameter group, what the script's own would be.

Many schedules compute the next learning rate from the one they find in the group, so a value that
is simply written is lost at the next step (closed forms) or bends the rest of the schedule
(chainable forms). Here the schedule never sees an edit:

Rule 1: before a schedule steps, the group gets the schedule's own value back (the *shadow*); then
the untouched step runs; then its result is the new shadow and the group gets the edited value.
The shadow is therefore, bit for bit, the value of the run that was never edited.
Rule 2: the edited value is a pure function of the shadow and the step: the held value (override),
or ``shadow * factor`` (scale; up to a ceiling), or exactly what was asked wherever the shadow is
what it was then; or a curve of its own (replace).
Rule 3: nothing is installed before the first edit, and nothing is ever put into the instance of a
scheduler, whose ``state_dict`` takes all that it finds there.
Rule 4: a value that somebody else has written is theirs: the edit is over and is reported.

All of it is for the training thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from otf_core.steering.options import OPTIONS, Option, found_in, place_of

Mode: TypeAlias = Literal["scale", "override", "replace"]
Shape: TypeAlias = Literal["linear", "cosine"]
Raw: TypeAlias = float | Tensor  # a tensor of one element where lr is one (capturable, fused)

# step_update is the second door of the schedulers of timm.
_DOORS: Final = ("step", "step_update")


class Slot(NamedTuple):
    """One value of one parameter group.

    By index, not by the group: ``Optimizer.load_state_dict`` puts new dicts in their place.
    """

    optimizer: Optimizer
    group: int
    key: str

    def exists(self) -> bool:
        """Whether the group has such a value, which can be set."""
        groups = self.optimizer.param_groups
        return self.group < len(groups) and found_in(self.optimizer, groups[self.group], self.key)

    def raw(self) -> Raw:
        """What the group holds; a tensor is the live one."""
        key, index = place_of(self.key)
        found: Any = self.optimizer.param_groups[self.group][key]
        raw: Raw = found if index is None else found[index]
        return raw

    def plain(self, value: Any) -> Any:
        """A number as the group has it: a switch is a bool."""
        return (OPTIONS.get(self.key) or Option(self.key)).plain(value)

    def write(self, value: Raw) -> None:
        """Put a value there; into the tensor where it is one, since graphs hold its address."""
        group = self.optimizer.param_groups[self.group]
        found = self.raw()
        if isinstance(found, Tensor):
            with torch.no_grad():
                found.copy_(value) if isinstance(value, Tensor) else found.fill_(value)
            return
        # An int that is equal stays the int that it was.
        if found == value:
            return
        key, index = place_of(self.key)
        if index is None:
            group[key] = self.plain(value)
            return
        several = list(group[key])
        several[index] = self.plain(value)
        group[key] = tuple(several)


def detached(raw: Raw) -> Raw:
    """A copy that later writes do not change."""
    return raw.detach().clone() if isinstance(raw, Tensor) else raw


def on_host(raw: Raw) -> float | None:
    """The value, or None where reading it would wait for a device."""
    if isinstance(raw, Tensor):
        return float(raw.item()) if raw.device.type == "cpu" else None
    return float(raw)


class Ramp(NamedTuple):
    """A curve from one value to another, which then stays.

    Attributes:
        start_step: steps done where it has ``start``.
        steps: how many later it has ``to``; 1 or more.
        shape: "cosine" is half a period, flat at both ends (Loshchilov and Hutter, 2017, SGDR).
    """

    start: float
    to: float
    start_step: int
    steps: int
    shape: Shape = "linear"

    def at(self, step: int) -> float:
        """The value with so many steps done."""
        done = min(max(step - self.start_step, 0), self.steps) / self.steps
        if done == 1:
            return self.to  # to the last bit
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.to - self.start) * done


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be made of one value; see ``Edit``."""

    mode: Mode
    value: float
    until: int | None = None
    ramp: Ramp | None = None


@dataclasses.dataclass(slots=True)
class Edit:
    """What was made of one value.

    Attributes:
        mode: "override" holds ``value``; "scale" multiplies what the schedule does; "replace"
            follows ``ramp``.
        value: what was asked.
        factor: ``value / anchor``.
        anchor: the shadow at the time of the edit. There the edited value is ``value`` itself,
            so that a flat schedule keeps what was asked to the last bit.
        shadow: what the script by itself would have in the group now.
        ceiling: what a scaled value is cut to, unless the schedule itself is above it.
        until: with so many steps done the script has the value again; None: for good.
    """

    mode: Mode
    value: float
    factor: float
    anchor: Raw
    shadow: Raw
    ceiling: float = math.inf
    until: int | None = None
    ramp: Ramp | None = None
    _left: Raw = 0.0
    _version: int = 0

    def wanted(self, step: int) -> Raw:
        """What the group is to hold now; for a tensor computed where it is, without reading it."""
        if self.ramp is not None:
            return self.ramp.at(step)
        if self.mode == "override":
            return self.value
        if isinstance(self.shadow, Tensor):
            at_anchor = self.shadow == self.anchor
            limit = self.shadow.clamp(min=self.ceiling)
            scaled = torch.minimum(self.shadow * self.factor, limit)
            return torch.where(at_anchor, self.value, scaled)
        if self.shadow == self.anchor:
            return self.value
        return min(self.shadow * self.factor, max(self.shadow, self.ceiling))

    def leave(self, raw: Raw) -> None:
        """Remember what the group was left with."""
        self._left, self._version = raw, _version(raw)

    def stands(self, raw: Raw) -> bool:
        """Whether the group still holds what it was left with.

        A tensor is told by its identity and its count of writes, so that no device is read.
        """
        if isinstance(raw, Tensor) or isinstance(self._left, Tensor):
            return raw is self._left and _version(raw) == self._version
        return raw == self._left

    def left_with(self, step: int) -> float | None:
        """The value that the group was left with, if that can be told without a device."""
        if isinstance(self._left, Tensor):
            return on_host(torch.as_tensor(self.wanted(step)))
        return float(self._left)


def _version(raw: Raw) -> int:
    return raw._version if isinstance(raw, Tensor) else 0  # noqa: SLF001 -- torch's count of writes, the only one


class Loss(NamedTuple):
    """An edit that somebody else's write has ended; None is a value on a device, not read."""

    slot: Slot
    left: float | None
    found: float | None


class Ledger:
    """All edits of a run's parameter groups, and the interception that makes them last.

    Args:
        ceilings: key -> what its scaled values are cut to.
    """

    # A change under a schedule scales what remains of it, unless somebody asks otherwise.
    default_mode: Mode = "scale"

    def __init__(self, ceilings: Mapping[str, float]) -> None:
        self._ceilings = ceilings
        self._edits: dict[Slot, Edit] = {}
        self._intercepted: dict[int, tuple[Any, type]] = {}  # id -> (scheduler, its own class)
        self._stepping: set[int] = set()  # ids of optimizers inside an intercepted step
        self._losses: list[Loss] = []
        self._step = 0  # steps done, as of the last ``advance``

    def __bool__(self) -> bool:
        """Whether there is any edit."""
        return bool(self._edits) or bool(self._losses)

    def __iter__(self) -> Iterator[Slot]:
        """The edited slots."""
        return iter(tuple(self._edits))

    def get(self, slot: Slot) -> Edit | None:
        """The edit of this slot that stands, else None."""
        edit = self._edits.get(slot)
        return edit if edit and slot.exists() and edit.stands(slot.raw()) else None

    def used(self, slot: Slot) -> Raw:
        """What the next step uses."""
        return slot.raw()

    def put(self, asked: Mapping[Slot, Asked]) -> None:
        """Edit these slots; a slot that was edited keeps its shadow.

        Raises:
            ZeroDivisionError: scale where the shadow is 0; nothing is written then.
        """
        self._sweep(asked)
        made: dict[Slot, Edit] = {}
        for slot, wish in asked.items():
            before = self._edits.get(slot)
            shadow = before.shadow if before else detached(slot.raw())
            factor = wish.value / float(shadow) if wish.mode == "scale" else 1.0
            made[slot] = Edit(
                wish.mode, wish.value, factor, shadow, shadow, self._ceiling(slot),
                until=wish.until, ramp=wish.ramp,
            )  # fmt: skip
        self._edits.update(made)
        self._write(made)

    def put_back(self, before: Mapping[Slot, Edit | None]) -> None:
        """These slots get the edit that they had, or none, on the schedule as it is now."""
        self._sweep(before)
        made: dict[Slot, Edit] = {}
        freed: list[tuple[Slot, Raw]] = []
        for slot, edit in before.items():
            now = self._edits.pop(slot, None)
            shadow = now.shadow if now is not None else detached(slot.raw())
            if edit is None:
                freed.append((slot, shadow))
            else:
                made[slot] = dataclasses.replace(edit, shadow=shadow)
        for slot, shadow in freed:
            slot.write(shadow)
        self._edits.update(made)
        self._write(made)
        self._report([slot for slot, _ in freed])

    def advance(self, step: int) -> dict[Slot, Edit]:
        """So many steps are done: curves go on; the edits that are over, which are taken back."""
        self._step = step
        self._sweep(self._edits)
        over = {s: e for s, e in self._edits.items() if e.until is not None and e.until <= step}
        if over:
            self.put_back(dict.fromkeys(over))
        moving = {s: e for s, e in self._edits.items() if e.ramp is not None}
        if moving:
            self._write(moving)
        return over

    def losses(self) -> list[Loss]:
        """The edits that were ended by somebody else since the last call; reads no device."""
        self._sweep(self._edits)
        lost, self._losses = self._losses, []
        return lost

    def state(self) -> dict[Slot, dict[str, Any]]:
        """Plain values for every edit; reads a device where lr lives on one."""
        return {
            slot: {
                "mode": edit.mode,
                "value": edit.value,
                "factor": edit.factor,
                "anchor": float(edit.anchor),
                "shadow": float(edit.shadow),
                "until": edit.until,
                "ramp": edit.ramp and [*edit.ramp],
            }
            for slot, edit in self._edits.items()
        }

    def load(self, state: Mapping[Slot, Mapping[str, Any]], step: int) -> None:
        """Take over what ``state`` gave, in place of all edits, and write it to the groups.

        Args:
            step: steps done when it was taken.
        """
        self._step = step
        self._losses.clear()
        self._edits = {
            slot: Edit(
                row["mode"],
                row["value"],
                row["factor"],
                anchor=_like(slot.raw(), row["anchor"]),
                shadow=_like(slot.raw(), row["shadow"]),
                ceiling=self._ceiling(slot),
                until=row.get("until"),  # checkpoints of 0.2.0 have neither
                ramp=Ramp(*row["ramp"]) if row.get("ramp") else None,
            )
            for slot, row in state.items()
        }
        self._write(self._edits)

    def intercepts(self, scheduler: Any) -> bool:
        """Whether the steps of this scheduler go through the ledger."""
        return id(scheduler) in self._intercepted

    def intercept(self, scheduler: Any, optimizer: Optimizer) -> None:
        """Lead the steps of a scheduler through the ledger, from its next one on.

        Raises:
            TypeError: it cannot be done for this object; it is left as it was.
        """
        if self.intercepts(scheduler):
            return
        if any(door in vars(scheduler) for door in _DOORS):
            msg = f"{type(scheduler).__name__} has its step replaced on the instance"
            raise TypeError(msg)
        own = type(scheduler)
        scheduler.__class__ = _with_open_doors(
            own, lambda: self._behind_the_scenes(scheduler, optimizer)
        )
        self._intercepted[id(scheduler)] = (scheduler, own)

    def close(self) -> None:
        """Give the schedulers their own class back; the values stay as they are."""
        for scheduler, own in self._intercepted.values():
            scheduler.__class__ = own
        self._intercepted.clear()
        self._edits.clear()

    @contextlib.contextmanager
    def _behind_the_scenes(self, scheduler: Any, optimizer: Optimizer) -> Iterator[None]:
        """Around a step of the schedule, which sees its own values only."""
        # A scheduler inside a SequentialLR or ChainedScheduler: the outer one does it.
        if id(optimizer) in self._stepping:
            yield
            return
        self._sweep(slot for slot in self._edits if slot.optimizer is optimizer)
        mine = {slot: edit for slot, edit in self._edits.items() if slot.optimizer is optimizer}
        for slot, edit in mine.items():
            slot.write(edit.shadow)
        self._stepping.add(id(optimizer))
        try:
            yield
        finally:
            self._stepping.discard(id(optimizer))
            # All are read before any is written: groups may share one tensor.
            for slot, edit in mine.items():
                edit.shadow = detached(slot.raw())
            self._write(mine, stepped=scheduler)

    def _ceiling(self, slot: Slot) -> float:
        return self._ceilings.get(slot.key, math.inf)

    def _write(self, edits: Mapping[Slot, Edit], stepped: Any = None) -> None:
        for slot, edit in edits.items():
            slot.write(edit.wanted(self._step))
        for slot, edit in edits.items():
            edit.leave(slot.raw())
        self._report(edits, stepped)

    def _report(self, slots: Iterable[Slot], stepped: Any = None) -> None:
        """Have ``get_last_lr`` say what the groups really hold."""
        written = [slot for slot in slots if slot.key == "lr"]
        for scheduler, _ in self._intercepted.values():
            said = getattr(scheduler, "_last_lr", None)
            if not isinstance(said, list) or stepped not in (None, scheduler):
                continue
            # A new list: SequentialLR shows the very list of its inner scheduler.
            shown = list(said)
            for slot in written:
                if slot.optimizer is scheduler.optimizer and slot.group < len(shown):
                    shown[slot.group] = detached(slot.raw())
            scheduler._last_lr = shown  # noqa: SLF001 -- what get_last_lr returns; torch has no setter

    def _sweep(self, slots: Iterable[Slot]) -> None:
        """End the edits whose value somebody else has written."""
        for slot in tuple(slots):
            edit = self._edits.get(slot)
            if edit is None or (slot.exists() and edit.stands(slot.raw())):
                continue
            found = on_host(slot.raw()) if slot.exists() else None
            self._losses.append(Loss(slot, edit.left_with(self._step), found))
            del self._edits[slot]


def _like(raw: Raw, value: float) -> Raw:
    return torch.full_like(raw, value) if isinstance(raw, Tensor) else value


def _with_open_doors(
    own: Any, around: Callable[[], contextlib.AbstractContextManager[None]]
) -> type:
    """A subclass that passes for its base, but for what is done around its steps."""

    def through(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
            with around():
                return method(self, *args, **kwargs)

        return stepped

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807 -- becomes the class's
        # A copy or a pickle is of the scheduler's own class: it belongs to no ledger. Protocol 1,
        # since pickle refuses to make another class by the __newobj__ of the later ones.
        reduced = own.__reduce_ex__(self, min(protocol, 1))
        if isinstance(reduced, str):
            return reduced
        function, arguments, *rest = reduced
        plain = tuple(own if argument is type(self) else argument for argument in arguments)
        return (function, plain, *rest)

    doors = {door: through(getattr(own, door)) for door in _DOORS if hasattr(own, door)}
    body = {
        **doors,
        "__slots__": (),  # the layout has to be the same
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        "__reduce_ex__": __reduce_ex__,
    }
    made: type = type(own)(own.__name__, (own,), body)
    return made
