"""Values that are held: put in before an optimizer steps, taken out behind it.

The script and its schedulers never see one, so that whoever writes the value between two steps, a
scheduler or ``group["lr"] = …`` in the loop, goes on as if nothing had been; and what is released
stands where it would have stood.

All of it is for the training thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from otf_core.steering.ledger import Asked, Edit, Loss, Mode, Ramp, Raw, Slot, detached
from otf_core.steering.options import place_of
from otf_core.steering.params import CEILINGS


class Held:
    """What ``Steering`` takes in place of a ``Ledger``; put in and taken out at each step."""

    default_mode: Mode = "override"

    def __init__(self) -> None:
        self._edits: dict[Slot, Edit] = {}
        self._step = 0  # steps done, as of the last ``advance``
        self._parked: list[Sequence[_Parked]] = []  # one for each optimizer that is in its step

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._edits)

    def __iter__(self) -> Iterator[Slot]:
        """The slots that are held."""
        return iter(tuple(self._edits))

    # Around a step.

    def put_in(self, optimizer: Optimizer) -> None:
        """The optimizer is about to step: its groups get what is held."""
        if not self._edits:
            self._parked.append(_NOTHING)
            return
        # Nested optimizers may share their groups: what is in already is not scaled again.
        taken = {parked.place for level in self._parked for parked in level}
        level: dict[_Place, _Parked] = {}
        wanted: list[tuple[Slot, Raw]] = []
        for slot in self._edits:
            if slot.optimizer is not optimizer or not slot.exists():
                continue
            parked = _Parked(slot)
            if parked.place not in taken:
                level.setdefault(parked.place, parked)
                wanted.append((slot, self._at(slot).wanted(self._step)))
        for slot, value in wanted:
            slot.write(value)
        for parked in level.values():
            parked.left()
        self._parked.append([*level.values()])

    def take_out(self) -> None:
        """It has stepped: the script's own values are back, unless it has written them itself."""
        if self._parked and (level := self._parked.pop()):
            for parked in [parked for parked in level if parked.stands()]:
                parked.give_back()

    def take_all_out(self) -> None:
        """Nothing is held in a step any more, nor in the next."""
        while self._parked:
            self.take_out()
        self.close()

    # As Ledger; between two steps, where the groups have the script's own values.

    def get(self, slot: Slot) -> Edit | None:
        """What is held, with the script's value of now as its shadow."""
        return self._at(slot) if slot in self._edits and slot.exists() else None

    def used(self, slot: Slot) -> Raw:
        """What the next step uses."""
        edit = self.get(slot)
        return edit.wanted(self._step) if edit is not None else slot.raw()

    def put(self, asked: Mapping[Slot, Asked]) -> None:
        """Hold these. ZeroDivisionError: a scale of what is 0; nothing is changed then."""
        made: dict[Slot, Edit] = {}
        for slot, wish in asked.items():
            own = detached(slot.raw())
            factor = wish.value / float(own) if wish.mode == "scale" else 1.0
            made[slot] = Edit(
                wish.mode, wish.value, factor, own, own, CEILINGS.get(slot.key, math.inf),
                until=wish.until, ramp=wish.ramp,
            )  # fmt: skip
        self._edits.update(made)

    def put_back(self, before: Mapping[Slot, Edit | None]) -> None:
        """These are held as they were, or not any more."""
        for slot, edit in before.items():
            self._edits.pop(slot, None)
            if edit is not None:
                self._edits[slot] = edit

    def advance(self, step: int) -> dict[Slot, Edit]:
        """As a Ledger's."""
        self._step = step
        over = {s: e for s, e in self._edits.items() if e.until is not None and e.until <= step}
        self.put_back(dict.fromkeys(over))
        return over

    def losses(self) -> list[Loss]:
        """None: whatever the script writes, it stays held."""
        return []

    def state(self) -> dict[Slot, dict[str, Any]]:
        """As a Ledger's; reads a device where lr lives on one."""
        return {
            slot: {
                "mode": edit.mode,
                "value": edit.value,
                "factor": edit.factor,
                "anchor": float(edit.anchor),
                "shadow": float(slot.raw()),
                "until": edit.until,
                "ramp": edit.ramp and [*edit.ramp],
            }
            for slot, edit in self._edits.items()
            if slot.exists()
        }

    def load(self, state: Mapping[Slot, Mapping[str, Any]], step: int) -> None:
        """Hold what ``state`` held, and nothing else."""
        self._step = step
        self._edits = {
            slot: Edit(
                row["mode"],
                row["value"],
                row["factor"],
                row["anchor"],
                row["shadow"],
                CEILINGS.get(slot.key, math.inf),
                until=row.get("until"),
                ramp=Ramp(*row["ramp"]) if row.get("ramp") else None,
            )
            for slot, row in state.items()
        }

    def intercepts(self, _scheduler: Any) -> bool:
        """Nothing has to be put around a scheduler."""
        return True

    def intercept(self, _scheduler: Any, _optimizer: Optimizer) -> None:
        """Never asked for, see ``intercepts``."""

    def close(self) -> None:
        """Hold nothing any more."""
        self._edits.clear()

    def _at(self, slot: Slot) -> Edit:
        return dataclasses.replace(self._edits[slot], shadow=detached(slot.raw()))


_Place: TypeAlias = tuple[int, str]
_NOTHING: Final[tuple[_Parked, ...]] = ()


class _Parked:
    """The script's own value of one option, the very object, while another one is in its place."""

    def __init__(self, slot: Slot) -> None:
        self._group = slot.optimizer.param_groups[slot.group]
        self._key, _ = place_of(slot.key)
        self.place: _Place = (id(self._group), self._key)
        self._own: Any = detached(self._group[self._key])
        self._left: Any = None
        self._version = 0

    def left(self) -> None:
        """The step begins with what lies there now."""
        self._left = self._group[self._key]
        self._version = _writes(self._left)

    def stands(self) -> bool:
        """Whether that lies there still."""
        now = self._group.get(self._key)
        return now is self._left and _writes(now) == self._version

    def give_back(self) -> None:
        """Into the tensor where it is one, since graphs hold its address."""
        if isinstance(self._left, Tensor):
            self._left.detach().copy_(self._own)
        else:
            self._group[self._key] = self._own


def _writes(value: Any) -> int:
    return value._version if isinstance(value, Tensor) else 0  # noqa: SLF001 -- torch's count of writes, the only one
