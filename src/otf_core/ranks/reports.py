"""What rank 0 tells of all ranks: how they fare, which is lost, where each stands in a stall.

Rule 1: that a rank has failed is on the disk before anything follows from it: a launcher may end
this process at any moment.
Rule 2: who has failed ends the run here; who is silent ends nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from otf_core.control.agreement import StepAgreement, ranks_in_words
from otf_core.ranks.beating import TURN_S, Beats
from otf_core.ranks.flight import record
from otf_core.ranks.judging import Change, slowest
from otf_core.ranks.mail import of_the_group
from otf_core.state.checkpoint_file import Manifest
from otf_core.state.keeper import resume_command
from otf_core.telemetry.stalls import Spot, spot_of

PLACES_S: Final = 2.0  # so long a stall waits for the others' stacks
BROKE_S: Final = 1.0  # so long an end waits for who does not answer

_T = TypeVar("_T")


class Run(Protocol):
    """What is needed of the session; any thread."""

    run_id: str

    def emit_at_once(self, kind: str, /, **fields: Any) -> None:
        """Tell, and have it on the disk."""

    def tell_connection(self, kind: str, /, **fields: Any) -> None:
        """Tell who is connected, and nobody else."""

    def newest_exact(self) -> tuple[Manifest, str] | None:
        """From where the run goes on exactly."""

    def steps_done(self) -> int:
        """As of the last safe point."""

    def has_failed(self) -> None:
        """Write that into the run's folder."""

    def folder_of(self, what: str) -> str | None:
        """One in the run's folder, for what belongs to the present step; it need not be there."""

    def say(self, line: str) -> None:
        """One line for the person at the terminal."""

    def wake(self) -> None:
        """Have whoever stands look."""


class RankReports:
    """Of one session of several ranks."""

    def __init__(self, run: Run, agreement: StepAgreement, beats: Beats) -> None:
        self._run, self._agreement, self._beats = run, agreement, beats
        self._rows: Sequence[Mapping[str, Any]] = ()
        beats.changed, beats.told, beats.more = self.changed, self.told, self._newest

    # otf-beat.

    def changed(self, change: Change) -> None:
        """Somebody is silent, back, or has failed."""
        states = self._beats.judge.state
        self._agreement.silent = frozenset(r for r, state in states.items() if state == "silent")
        self._tell(change, self._waits_for(change))

    def _tell(self, change: Change, waits: str) -> None:
        run, step = self._run, self._run.steps_done()
        found = None if change.state == "back" else run.newest_exact()
        path = found[1] if found is not None else None
        resume = resume_command(path) if path is not None else None
        run.emit_at_once(
            "rank_state",
            rank=change.rank,
            state=change.state,
            seconds=change.seconds,
            exit_code=change.exit_code,
            why=change.why + waits,
            step=step,
            checkpoint=path,
            resume=resume,
        )
        if change.state == "failed":
            run.has_failed()
        goes_on = ""
        if change.state == "failed" and found is not None:
            goes_on = f"; from step {found[0].step:,} the run goes on exactly: {resume}"
        run.say(f"{run.run_id}: {change.why}{waits}, at step {step:,}{goes_on}")
        if change.state == "failed":
            self._agreement.fail(change.why)
            run.wake()

    def _waits_for(self, change: Change) -> str:
        what, ranks = self._agreement.awaited()
        return f"; {what} waits for it" if change.state == "silent" and change.rank in ranks else ""

    def told(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """How each fares."""
        self._rows = rows
        step = max((row["step"] or 0 for row in rows), default=0)
        self._run.tell_connection(
            "ranks", step=step, world_size=len(rows), rows=list(rows), slowest=slowest(rows)
        )

    def in_short(self) -> dict[str, Any] | None:
        """For ``status``; None before the first look; any thread."""
        rows = self._rows
        if not rows:
            return None
        steps = [row["step"] for row in rows if row["step"] is not None]
        by_state = {
            state: [row["rank"] for row in rows if row["state"] == state]
            for state in ("silent", "failed")
        }
        span = {"min": min(steps, default=0), "max": max(steps, default=0)}
        return {**by_state, "slowest": slowest(rows), "steps": span}

    def _newest(self) -> dict[str, Any]:
        found = self._run.newest_exact()
        return {"newest": found[1] if found is not None else None}

    # Training thread, where the run fails.

    def broke(self, error: str) -> str:
        """What all ranks do together has broken: find out whose fault it was, and say so.

        Who neither has ended nor answers is lost: a group that broke knows no other reason.

        Args:
            error: as this rank has found it.

        Returns:
            What the run has failed with, for a person.
        """
        # A process that ended is known within a look or two.
        known = self._agreement.lost is not None or _whole(
            lambda: self._beats.found_failed(2 * TURN_S)
        )
        if not known:
            for rank in _whole(self._silent_now):
                why = f"what all ranks did together broke, and rank {rank} does not answer"
                self._tell(Change(rank, "failed", 0.0, None, why), "")
        lost = self._agreement.lost
        return error if lost is None or lost in error else f"{lost} ({error})"

    def _silent_now(self) -> list[int]:
        heard = self._agreement.places(None, BROKE_S)
        return [rank for rank in self._beats.judged if rank not in heard]

    # otf-stall.

    def stalled(self, own: Spot) -> tuple[dict[str, Any], str]:
        """Where every rank is, as fields of the event ``stall`` and in words."""
        folder = self._run.folder_of("stalls")
        heard = {0: place(own, folder, 0), **self._agreement.places(folder, PLACES_S)}
        unheard = [rank for rank in self._beats.judged if rank not in heard]
        flight = [each["flight"] for _, each in sorted(heard.items()) if each["flight"]]
        found = {"ranks": grouped(heard), "unheard": unheard, "flight": flight}
        return found, stall_in_words(found)


def _whole(ask: Callable[[], _T]) -> _T:
    """What ``ask`` finds, once more where a signal came.

    Lightning's handler of SIGTERM has a collective in it, which raises here where the group broke.
    """
    try:
        return ask()
    except RuntimeError as error:
        if not of_the_group(error):
            raise
    return ask()


def place(spot: Spot, folder: str | None, rank: int) -> dict[str, Any]:
    """What a rank answers when it is asked where it is; any thread."""
    return {
        "where": spot.where,
        "call": spot.call,
        "stack": spot.stack,
        "flight": record(folder, rank),
    }


def placed(rank: int, thread_id: int | None = None) -> Callable[[str | None], dict[str, Any]]:
    """``place`` of the thread that calls this, or of another, for StepAgreement."""
    thread_id = thread_id or threading.get_ident()
    return lambda folder: place(spot_of(thread_id), folder, rank)


def grouped(places: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for ranks that are at the same place; those that few are at first."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for rank, each in sorted(places.items()):
        same = groups.setdefault(
            tuple(each["stack"]),
            {"ranks": [], "where": each["where"], "call": each["call"], "stack": each["stack"]},
        )
        same["ranks"].append(rank)
    return sorted(groups.values(), key=lambda group: (group["call"] is not None, group["ranks"]))


def stall_in_words(fields: Mapping[str, Any]) -> str:
    """Which ranks sit where; for a line."""
    said = []
    for group in fields["ranks"]:
        waits, is_in = ("wait", "are") if len(group["ranks"]) > 1 else ("waits", "is")
        where = f"{waits} in {group['call']}" if group["call"] else f"{is_in} in {group['where']}"
        said.append(f"{ranks_in_words(group['ranks'])} {where}")
    if fields["unheard"]:
        said.append(f"{ranks_in_words(fields['unheard'])} did not answer")
    return "; ".join(said)
