"""What became of each way, and whether the whole is as it was promised."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from tests.exact.table import CONFIGS

LEAST_EXACT: Final = 40
PARTS: Final = "parts of "


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one way.

    Attributes:
        how: "exact", "inexact" (it came to its end, but to another one), "raises" or "FAILED".
        why: what differs, or what went wrong.
        kills: processes that were killed on the way.
        said: what the run itself had said of its exactness by then.
    """

    how: str
    why: str = ""
    kills: int = 0
    said: dict[str, Any] | None = None

    @property
    def warned(self) -> bool:
        """Whether the run had said that it would not be exact."""
        return self.said is not None and not self.said["exact"]


def fault(config: str, way: str, verdict: Verdict) -> str | None:
    """Why this is not as it was promised; None: it is."""
    allowed = CONFIGS[config].inexact
    if allowed is None:
        if verdict.how != "exact":
            return verdict.why
        alarm = verdict.warned and CONFIGS[config].cautious is None
        return f"it is exact, and has said: {verdict.said}" if alarm else None
    if verdict.how == "FAILED":
        return verdict.why
    if way == "session" and not verdict.warned:
        return f"it has not said that it is inexact, though {allowed}"
    if verdict.how == "inexact" and way.startswith("kill") and not verdict.warned:
        return f"it had not said before the kill that it is inexact, though {allowed}"
    return None


class Report:
    """The tables, line by line, and the sum.

    Args:
        whole: everything ran, so that the numbers of the whole can be asked for.
    """

    def __init__(self, *, whole: bool) -> None:
        self.failures: list[str] = []
        self._whole = whole
        self._exact: list[str] = []
        self._kills = 0
        self._inexact_kills = 0
        self._parts: list[tuple[str, str]] = []

    def add(self, name: str, found: dict[str, Verdict]) -> str:
        """Take in a job's verdicts; returns its line of the table."""
        if name.startswith(PARTS):
            return self._add_parts(name.removeprefix(PARTS), found)
        cells = []
        faults = 0
        for way, verdict in found.items():
            wrong = fault(name, way, verdict)
            if wrong is not None:
                faults += 1
                self.failures.append(f"{name}, {way}: {wrong}")
            self._kills += verdict.kills
            cells.append(f"{way} {self._cell(verdict, wrong)}")
        if not faults and CONFIGS[name].inexact is None:
            self._exact.append(name)
        return f"{name:38} {' | '.join(cells)}"

    def _cell(self, verdict: Verdict, wrong: str | None) -> str:
        if wrong is not None:
            return "FAILED"
        told = verdict.how
        if told == "exact" and verdict.warned:
            told += ", though it was cautious"
        if told == "inexact":
            told += ", as it had said" if verdict.warned else ", allowed"
        return f"{told} ({verdict.kills} killed)" if verdict.kills else told

    def _add_parts(self, config: str, found: dict[str, Verdict]) -> str:
        lines = []
        for part, verdict in found.items():
            self._parts.append((part, config))
            if verdict.how == "FAILED":
                self.failures.append(f"part {part}: {verdict.why}")
            how = {"inexact": "noticed by", "raises": "raises in"}.get(verdict.how, "FAILED in")
            lines.append(f"without {part:44} {how} {config}")
        return "\n".join(lines)

    def end(self, seconds: float, seed: int) -> str:
        """What stands below the tables."""
        if self._whole and len(self._exact) < LEAST_EXACT:
            self.failures.append(f"{len(self._exact)} configurations are exact, not {LEAST_EXACT}")
        lines = [
            "",
            f"{len(self._exact)} configurations exact in every way; {self._kills} processes "
            f"killed; {len(self._parts)} parts of the state switched off; seed {seed}; "
            f"{seconds:.0f} s",
        ]
        lines += [f"FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)
