"""What ``Session`` and ``Keeper`` are on rank 0, on another rank: it has its part saved.

Rule: every rank captures at the same safe point, found by counting steps, so that the parts can be
gathered there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otf_core.control.delegate import ControlDelegate
from otf_core.state.exactness import refuse_elsewhere
from otf_core.state.keeper import Origin, Schedule, read_fitting


class OtherRank:
    """Of one run; training thread.

    Args:
        saves: whether rank 0 keeps checkpoints at all.
        env: as the process has it; may allow what is refused.
    """

    def __init__(
        self,
        delegate: ControlDelegate,
        schedule: Schedule,
        origin: Origin | None,
        *,
        saves: bool,
        env: Mapping[str, str],
    ) -> None:
        self._delegate, self._schedule, self._origin = delegate, schedule, origin
        self._saves, self._env = saves, env
        self._began = False

    def tick(self) -> bool:
        """At the safe point; False, since a run of several ranks is not stopped there."""
        if not self._began:
            self._began = True
            if self._origin is not None:
                state, _ = read_fitting(self._origin.path, self._delegate, self._allow)
                self._delegate.apply(state)
            self._keep(due=self._schedule.begins(self._delegate.position().step, self._origin))
        else:
            self._keep(due=self._schedule.due(self._delegate.position().step))
        return False

    def at_end(self) -> None:
        """A limit is reached."""
        self._keep(due=True)

    def _keep(self, *, due: bool) -> None:
        if due and self._saves:
            self._delegate.capture()

    def _allow(self, state: Mapping[str, Any]) -> None:
        refuse_elsewhere(state, self._delegate.environment(), self._env)
