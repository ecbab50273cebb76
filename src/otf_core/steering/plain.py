"""What ``set_param`` did, as plain values: kept in checkpoints, told to other ranks.

Rule: floats are those of the edit, to the last bit; what is taken back by it, in this process or
in another one, is what would have been taken back at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from otf_core.errors import CommandError, ErrorCode
from otf_core.steering.knobs import Kept
from otf_core.steering.ledger import Edit, Ramp, Raw, Slot, detached
from otf_core.steering.params import AppliedParam, Steering


def to_plain(steering: Steering, applied: AppliedParam) -> dict[str, Any]:
    """Training thread; reads a device where a value lives on one."""
    undo = None
    if applied.undo is not None:
        names = {slot: path for path, slot in steering.slots().items()}
        undo = {names[slot]: edit and _row(edit) for slot, edit in applied.undo.items()}
    return {
        "path": applied.path,
        "old": applied.old,
        "new": applied.new,
        "step": applied.applied_step,
        "until": applied.until,
        "released": applied.released,
        "undo": undo,
        "kept": applied.kept and {path: [*kept] for path, kept in applied.kept.items()},
    }


def of_plain(steering: Steering, plain: Mapping[str, Any]) -> AppliedParam:
    """For ``Steering.undo``; training thread.

    Raises:
        CommandError: ``not_found``; this run has no such value.
    """
    undo = None
    if plain["undo"] is not None:
        slots = steering.slots()
        refuse_missing(plain["undo"].keys() - slots)
        undo = {slots[path]: row and _edit(slots[path], row) for path, row in plain["undo"].items()}
    kept = {path: Kept(*row) for path, row in (plain.get("kept") or {}).items()}
    refuse_missing({path for path in kept if not steering.is_knob(path)})
    return AppliedParam(
        plain["path"], plain["old"], plain["new"], plain["step"], None, None,
        until=plain["until"], undo=undo, kept=kept, released=plain["released"],
    )  # fmt: skip


def refuse_missing(paths: set[str]) -> None:
    """Raises CommandError where there are any."""
    if paths:
        detail = f"{', '.join(sorted(paths))} was asked to be put back; this run has it no more."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="path")


def _row(edit: Edit) -> dict[str, Any]:
    return {
        "mode": edit.mode,
        "value": edit.value,
        "factor": edit.factor,
        "anchor": _plain(edit.anchor),
        # JSON has no infinity.
        "ceiling": edit.ceiling if math.isfinite(edit.ceiling) else None,
        "until": edit.until,
        "ramp": edit.ramp and [*edit.ramp],
    }


def _edit(slot: Slot, row: Mapping[str, Any]) -> Edit:
    raw = slot.raw()
    return Edit(
        row["mode"],
        row["value"],
        row["factor"],
        anchor=torch.full_like(raw, row["anchor"]) if isinstance(raw, Tensor) else row["anchor"],
        shadow=detached(raw),  # whoever puts it back has the schedule's of then
        ceiling=math.inf if row["ceiling"] is None else row["ceiling"],
        until=row["until"],
        ramp=Ramp(*row["ramp"]) if row["ramp"] else None,
    )


def _plain(raw: Raw) -> Any:
    return raw.item() if isinstance(raw, Tensor) else raw
