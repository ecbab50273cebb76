"""What ``Session`` and ``Keeper`` are on rank 0, on another rank.

Rule 1: what is due by counting is done by counting: every rank captures at the same safe point, so
that the parts can be gathered there.
Rule 2: what a person asks is told by rank 0, at a meeting; ``do`` has a row for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from otf_core.control.agreement import StepAgreement
from otf_core.control.delegate import ControlDelegate
from otf_core.protocol import SetParam
from otf_core.ranks.beating import Beats
from otf_core.ranks.judging import Change
from otf_core.ranks.together import send
from otf_core.state.exactness import refuse_elsewhere
from otf_core.state.keeper import Origin, Schedule, read_fitting, resume_command
from otf_core.steering.params import AppliedParam, Steering


class OtherRank:
    """Of one run; training thread.

    Args:
        saves: whether rank 0 keeps checkpoints at all.
        env: as the process has it; may allow what is refused.
        steering: of this rank, where values can be set.
    """

    def __init__(
        self,
        delegate: ControlDelegate,
        schedule: Schedule,
        origin: Origin | None,
        *,
        saves: bool,
        env: Mapping[str, str],
        steering: Steering | None = None,
    ) -> None:
        self._delegate, self._schedule, self._origin = delegate, schedule, origin
        self._steering, self._saves, self._env = steering, saves, env
        self.agreement: StepAgreement | None = None
        self.beats: Beats | None = None
        self._set: list[AppliedParam] = []
        self._began = self._stopped = False

    def tick(self) -> bool:
        """At the safe point; True when the run is to stop here."""
        if not self._began:
            self._began = True
            if self._origin is not None:
                state, _ = read_fitting(self._origin.path, self._delegate, self._allow)
                self._delegate.apply(state)
                self._load(state["otf"]["steering"])
            self._keep(due=self._schedule.begins(self._delegate.position().step, self._origin))
        else:
            step = self._delegate.position().step
            if self._steering is not None:
                self._steering.watch(step)
            self._keep(due=self._schedule.due(step))
        if self.agreement is not None and self.agreement.boundary():
            self._stopped = True
        return self._stopped

    def at_end(self) -> None:
        """A limit is reached."""
        if self._stopped:
            return
        self._keep(due=True)
        if self.agreement is not None:
            self.agreement.meet_here()

    def watch(self, beats: Beats, say: Callable[[str], None]) -> None:
        """Beat, and hear rank 0."""

        def changed(change: Change) -> None:
            say(change.why)
            if change.state == "failed" and self.agreement is not None:
                self.agreement.fail(change.why)

        self.beats, beats.changed = beats, changed
        beats.start()

    def last_word(self) -> str | None:
        """What rank 0 can no longer say itself; None where it can."""
        beats, agreement = self.beats, self.agreement
        if beats is None or agreement is None or not agreement.deaf:
            return None
        newest = beats.judge.beats.get(0, {}).get("newest")
        goes_on = f"; the run goes on exactly: {resume_command(newest)}" if newest else ""
        return f"rank {beats.rank}: {agreement.lost}{goes_on}"

    def over(self) -> None:
        """Training is over here."""
        if self.beats is not None:
            self.beats.over()

    def close(self, error: str | None = None) -> None:
        """The run is over here.

        Args:
            error: what it failed with, where that is news to the others.
        """
        if self.beats is not None:
            self.beats.close(error)
        if self.agreement is not None:
            self.agreement.close()
        if self._steering is not None:
            self._steering.close()

    def _keep(self, *, due: bool) -> None:
        if due and self._saves:
            self._delegate.capture()

    def _allow(self, state: Mapping[str, Any]) -> None:
        refuse_elsewhere(state, self._delegate.environment(), self._env)

    # What rank 0 tells.

    def do(self, name: str, args: list[Any]) -> Any:
        """Carry it out; what it returns is rank 0's to know."""
        told: dict[str, Callable[..., Any]] = {
            "capture": self._capture,
            "apply": self._apply,
            "extend": self._delegate.extend,
            "validate": self._validate,
            "test": self._test,
            "request_stop": self._delegate.request_stop,
            "set": self._set_param,
            "unset": self._unset_param,
            "load": self._load,
        }
        return told[name](*args)

    def _capture(self) -> None:
        self._delegate.capture()

    def _apply(self) -> list[list[str]]:
        return [list(each) for each in self._delegate.apply(send(None))]

    def _validate(self, limit_batches: int | None) -> list[Any]:
        found = self._delegate.run_validation(limit_batches, lambda *_: None)
        return [_plain(found.metrics), found.avg_loss]

    def _test(self) -> list[Any]:
        found = self._delegate.run_test(lambda *_: None)
        return [_plain(found.metrics), found.avg_loss]

    def _set_param(self, asked: dict[str, Any], step: int) -> None:
        assert self._steering is not None
        self._set.append(self._steering.apply(msgspec.convert(asked, SetParam), step))

    def _unset_param(self, number: int, step: int) -> None:
        assert self._steering is not None
        self._set.append(self._steering.undo(self._set[number], step))

    def _load(self, state: dict[str, Any]) -> None:
        if self._steering is not None:
            self._steering.load(state)


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}
