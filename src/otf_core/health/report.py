"""What a check has found: for a person, and for a machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

DIGITS: Final = 3
NONE: Final = "-"


@dataclasses.dataclass(frozen=True)
class Health:
    """The result of one check.

    Attributes:
        ok: nothing was found that ought to be looked at.
        text: short lines, shown as they are.
        fields: plain values; a number that is not finite is None.
    """

    ok: bool
    text: str
    fields: Mapping[str, Any]

    def to_wire(self) -> dict[str, Any]:
        """The reply's data."""
        return {**self.fields, "ok": self.ok, "text": self.text}


def health(fields: Mapping[str, Any], lines: Iterable[str], *, ok: bool) -> Health:
    """A result out of its lines."""
    return Health(ok, "\n".join(lines), dict(fields))


def aligned(rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def finite(value: float | None) -> float | None:
    """A number for a field: None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def short(value: float | None) -> str:
    """A number for a person: three digits."""
    if value is None:
        return NONE
    return f"{value:.{DIGITS}g}"


def percent(share: float | None) -> str:
    """A share for a person."""
    return NONE if share is None else f"{100 * share:.3g} %"


def some(names: Sequence[str], most: int = 5) -> str:
    """A few names, and how many there are beside them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
