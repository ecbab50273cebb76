"""Which ranks are heard, by their beats; pure: time and what was read are inputs.

Rule 1: a rank that is not heard is *silent*, never dead: it may be stopped, or in a C extension
that keeps the interpreter. It is *failed* only by an exit code, or by what it has said itself.
Rule 2: times are of the clock of who judges: a beat is as old as the moment at which it was first
seen here.
Rule 3: who was away himself, because his process was stopped, has heard nobody; time begins anew.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

BEAT_S: Final = 1.0
PER_BEAT_S: Final = 500  # ranks that may beat in a second
BEATS_MISSED: Final = 5  # then it is silent


def period_s(world_size: int) -> float:
    """Between two beats of a rank; longer for many, so that the store has time for others."""
    return max(BEAT_S, world_size / PER_BEAT_S)


@dataclasses.dataclass(frozen=True)
class Change:
    """What has become of a rank.

    Attributes:
        seconds: since it was last heard; of one that is back, how long it was silent.
        why: a sentence.
    """

    rank: int
    state: Literal["silent", "back", "failed"]
    seconds: float
    exit_code: int | None
    why: str


class Judge:
    """One thread's; asked every half a period."""

    def __init__(self, ranks: Iterable[int], every_s: float, now_s: float) -> None:
        self.every_s = every_s
        self.beats: dict[int, Mapping[str, Any]] = {}
        self.state: dict[int, str] = dict.fromkeys(ranks, "ok")
        self._seen_s = dict.fromkeys(self.state, now_s)
        self._exits: dict[int, int] = {}
        self._looked_s = now_s

    @property
    def limit_s(self) -> float:
        """So long after its last beat was seen a rank is silent."""
        return BEATS_MISSED * self.every_s

    def seen_s(self, rank: int, now_s: float) -> float:
        """How long ago its newest beat was first seen."""
        return max(0.0, now_s - self._seen_s[rank])

    def hear(self, rank: int, beat: Mapping[str, Any] | None, now_s: float) -> None:
        """Its newest beat, as often as it is read; None where there is none yet."""
        before = self.beats.get(rank)
        if beat is None or (before is not None and before.get("n") == beat.get("n")):
            return
        self.beats[rank] = beat
        if self.state[rank] == "ok":  # of one that was silent ``changes`` says for how long
            self._seen_s[rank] = now_s
        elif self.state[rank] == "silent":
            self.state[rank] = "heard"

    def exited(self, rank: int, code: int) -> None:
        """Its process has ended with this exit code."""
        if rank in self.state:
            self._exits[rank] = code

    def changes(self, now_s: float, *, hears: bool = True) -> list[Change]:
        """What has become of them since the last look.

        Args:
            hears: whether beats can be read at all; without, nobody is silent.
        """
        away = now_s - self._looked_s > 2 * self.every_s
        self._looked_s = now_s
        if away or not hears:
            self._seen_s.update({r: now_s for r, state in self.state.items() if state == "ok"})
        found = [self._changed(rank, now_s) for rank in self.state]
        return [change for change in found if change is not None]

    def _changed(self, rank: int, now_s: float) -> Change | None:
        state, beat, for_s = self.state[rank], self.beats.get(rank, {}), self.seen_s(rank, now_s)
        code, said, over = self._exits.get(rank), beat.get("error"), beat.get("ended")
        if state == "failed" or (over and not said and not code):
            return None  # an end as others
        if code is not None or said:
            self.state[rank] = "failed"
            how = [f"said {said}"] if said else []
            how += [f"ended with {exit_in_words(code)}"] if code is not None else []
            where = f" on {beat['host']}" if beat.get("host") else ""
            why = f"rank {rank}{where} {' and '.join(how)}"
            return Change(rank, "failed", round(for_s, 1), code, why)
        if state == "heard":
            self.state[rank], self._seen_s[rank] = "ok", now_s
            why = f"rank {rank} is heard again after {for_s:.0f} s"
            return Change(rank, "back", round(for_s, 1), None, why)
        if state == "ok" and for_s >= self.limit_s:
            self.state[rank] = "silent"
            return Change(rank, "silent", round(for_s, 1), None, self._silence(rank, for_s))
        return None

    def _silence(self, rank: int, for_s: float) -> str:
        beat = self.beats.get(rank)
        if beat is None:
            return f"rank {rank} has not been heard yet, for {for_s:.0f} s"
        return f"rank {rank} on {beat.get('host')} has not been heard for {for_s:.0f} s"


def exit_in_words(code: int) -> str:
    """``exit code 1``, ``exit code -9 (SIGKILL)``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"exit code {code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"exit code {code}"


def slowest(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """The rank that the others wait for; None where none stands out by a tenth of a step.

    Where ranks know how long they wait for each other, the one that waits least. Else, where steps
    take equally long because all wait in them, the one that waits longest for its data; a rank
    that computes longer is not found then. Else the one whose steps take longest.
    """
    known = [row for row in rows if row["state"] == "ok" and row["step_ms"]]
    if len(known) < 2:
        return None
    steps = [row["step_ms"] for row in known]
    margin = max(steps) / 10
    if all(row["wait_ms"] is not None for row in known):
        cost = {row["rank"]: row["step_ms"] - row["wait_ms"] for row in known}
    elif max(steps) - min(steps) < margin:
        cost = {row["rank"]: row["data_wait_ms"] or 0.0 for row in known}
    else:
        cost = {row["rank"]: row["step_ms"] for row in known}
    first, second = sorted(cost, key=lambda rank: -cost[rank])[:2]
    return first if cost[first] - cost[second] >= margin else None
