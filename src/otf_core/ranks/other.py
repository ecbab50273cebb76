"""What ``Session`` and ``Keeper`` are on rank 0, on another rank.

Rule 1: what is due by counting is done by counting: every rank captures at the same safe point, so
that the parts can be gathered there.
Rule 2: what a person asks is told by rank 0, at a meeting; ``do`` has a row for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from otf_core.control.agreement import PeerLostError, StepAgreement
from otf_core.control.delegate import Applied, ControlDelegate, Evaluation, OnBatch
from otf_core.control.leaving import LeftError
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.ranks.beating import Beats
from otf_core.ranks.judging import Change
from otf_core.ranks.recipe import RecipeOfRank
from otf_core.ranks.shared import send_weights
from otf_core.ranks.signals import RankSignals
from otf_core.ranks.together import send
from otf_core.runs.budget import Budget
from otf_core.runs.data import DataChoice, TrainingData
from otf_core.runs.weights import weights_aside
from otf_core.state.exactness import refuse_elsewhere
from otf_core.state.keeper import Origin, Schedule, read_fitting, resume_command
from otf_core.state.park import Parking
from otf_core.state.parts import Modules
from otf_core.steering.params import Steering
from otf_core.steering.plain import of_plain
from otf_core.steering.recipe import Recipe

TORN: Final = "torn"  # in place of a signal: half of another state is there


class OtherRank:
    """Of one run; training thread.

    Args:
        saves: whether rank 0 keeps checkpoints at all.
        env: as the process has it; may allow what is refused.
        steering: of this rank, where values can be set.
        data: its training data, where it can be changed.
        modules: those that are trained, where other weights may be tried in them.
        signals: of this rank.
        recipe: as on rank 0; its steps are found by counting.
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
        data: TrainingData | None = None,
        modules: Callable[[], Modules] | None = None,
        signals: RankSignals | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self._signals, self._wished = signals, False
        self._left: str | None = None  # by which signal all ranks have left
        self._delegate, self._schedule, self._origin = delegate, schedule, origin
        self._steering, self._saves, self._env = steering, saves, env
        self._data, self._modules = data, modules
        self._budget = Budget()
        self._aside: contextlib.ExitStack | None = None  # holds this rank's own weights
        self.agreement: StepAgreement | None = None
        self.beats: Beats | None = None
        self.looks: dict[str, Callable[..., Any]] = {}  # rows of who looks, see ``do``
        self.parking: Parking | None = None
        self._began = self._stopped = False
        self._recipe = None
        if recipe is not None and steering is not None:
            self._recipe = RecipeOfRank(recipe, delegate, steering, modules)

    def tick(self) -> bool:
        """At the safe point; True when the run is to stop here."""
        if not self._began:
            self._began = True
            if self._signals is not None:
                self._signals.on()
            if self._origin is not None:
                self._go_on(self._origin)
            self._keep(due=self._schedule.begins(self._delegate.position().step, self._origin))
            if self._recipe is not None:
                self._recipe.begins()
        else:
            step = self._delegate.position().step
            if self._steering is not None:
                self._steering.watch(step)
            self._keep(due=self._schedule.due(step))
        if self._recipe is not None:
            self._recipe.at()
        here = bool(self._budget) and self._is_over()
        self.wishes()
        if self.agreement is not None:
            with self._there_again():
                self._stopped = self.agreement.boundary(here=here)
            if self._stopped:
                self._end()
        return self._stopped

    @contextlib.contextmanager
    def _there_again(self) -> Iterator[None]:
        """However a meeting has ended, what was parked in it is not when it is left."""
        try:
            yield
        finally:
            if self.parking is not None:
                with contextlib.suppress(CommandError):  # rank 0 has told why, and ends the run
                    self.parking.back()

    def wishes(self) -> bool:
        """Rank 0 is told, once, that this process is to end; it leads all out. False: it waits."""
        asked = self._signals.asked if self._signals is not None else None
        if asked is not None and not self._wished and self.agreement is not None:
            self._wished = True
            self.agreement.wish(asked)
        return False

    def _end(self) -> None:
        if self._left == TORN:
            msg = "rank 0 has left the run, which could not be put back to where it was"
            raise PeerLostError(msg)
        if self._left is not None and self._signals is not None:
            raise self._signals.ends_by(self._left)

    def _go_on(self, origin: Origin) -> None:
        state, _ = read_fitting(origin.path, self._delegate, self._allow)
        ours = state["otf"]
        if self._data is not None:
            self._data.choose(DataChoice.of_state(ours.get("data")))
        self._put(state)
        self._load(ours["steering"])
        budget = ours.get("budget", {})
        self._limit(budget.get("until_step"), budget.get("until_epoch"))

    def _is_over(self) -> bool:
        """As rank 0 finds, which has all stand here."""
        over = self._budget.counted(self._delegate.position()) is not None
        if over:
            self._budget = Budget()
        return over

    def of_rank(self) -> dict[str, Any]:
        """What this rank's part of a checkpoint has beyond the delegate's."""
        drawn = self._data.drawn if self._data is not None else None
        return {} if drawn is None else {"drawn": drawn.to_state()}

    def at_end(self) -> None:
        """A limit is reached."""
        if self._stopped:
            return
        self._keep(due=True)
        if self._recipe is not None:
            self._recipe.at()
        if self.agreement is not None:
            with self._there_again():
                self.agreement.meet_here()
            self._end()

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

    @property
    def ceased(self) -> bool:
        """Whether what is done for rank 0 is wanted no more."""
        return self.agreement is not None and self.agreement.ceased()

    def close(self, error: str | None = None) -> None:
        """The run is over here.

        Args:
            error: what it failed with, where that is news to the others.
        """
        if self.beats is not None:
            self.beats.close(error)
        if self.agreement is not None:
            self.agreement.close()
        if self._aside is not None:
            self._weights_back()
        if self._steering is not None:
            self._steering.close()
        if self._data is not None:
            self._data.off()
        if self._signals is not None:
            self._signals.off()

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
            "begins": self._begins,
            "leave": self._leave,
            "budget": self._limit,
            "check_data": self._check_data,
            "choose": self._choose,
            "begin_pass": self._begin_pass,
            "weights_aside": self._weights_aside,
            "take_weights": self._take_weights,
            "weights_back": self._weights_back,
            "park_check": self._check_park,
            "park": self._park,
            "unpark": self._unpark,
            "skip": self._skip,
            **self.looks,
        }
        return told[name](*args)

    def _check_park(self) -> None:
        if self.parking is None:
            raise CommandError(ErrorCode.UNSUPPORTED, "This rank cannot be parked.")
        self.parking.check()

    def _park(self) -> list[float]:
        assert self.parking is not None
        return list(self.parking.park())

    def _unpark(self) -> None:
        if self.parking is not None:
            self.parking.back()

    def _capture(self) -> None:
        self._delegate.capture()

    def _apply(self) -> list[list[str]]:
        return [list(each) for each in self._put(send(None))]

    def _put(self, state: dict[str, Any]) -> Applied:
        if self._recipe is not None:
            self._recipe.load(state["otf"].get("changes"))
        drawn = state["otf"].get("drawn")
        applied = self._delegate.apply(state)
        if drawn is not None and self._data is not None and self._data.drawn is not None:
            self._data.drawn.load(drawn)
        return applied

    def _validate(self, limit_batches: int | None) -> list[Any]:
        return self._evaluate(lambda each: self._delegate.run_validation(limit_batches, each))

    def _test(self) -> list[Any]:
        return self._evaluate(self._delegate.run_test)

    def _evaluate(self, run: Callable[[OnBatch], Evaluation]) -> list[Any]:
        assert self.agreement is not None
        leaving = self.agreement.leaving

        def behind(done: int, total: int | None, _loss: float | None) -> None:
            if leaving.behind(done, total):
                msg = f"left behind batch {done}"
                raise LeftError(msg)

        leaving.begin()
        try:
            found = run(behind)
        finally:
            leaving.begin()
        return [_plain(found.metrics), found.avg_loss]

    def _set_param(self, asked: dict[str, Any], step: int) -> None:
        assert self._steering is not None
        self._steering.apply(msgspec.convert(asked, SetParam), step)

    def _unset_param(self, plain: dict[str, Any], step: int) -> None:
        assert self._steering is not None
        self._steering.undo(of_plain(self._steering, plain), step)

    def _load(self, state: dict[str, Any]) -> None:
        if self._steering is not None:
            self._steering.load(state)

    def _skip(self, request_id: str) -> None:
        if self._recipe is not None:
            self._recipe.skip(request_id)

    def _leave(self, why: str) -> None:
        self._left = why

    def _begins(self, step: int) -> None:
        self._schedule.begins(step, None)

    def _limit(self, until_step: int | None, until_epoch: int | None) -> None:
        self._budget = Budget(until_step, until_epoch)

    # Rank 0 sends first, whatever this rank finds then.

    def _check_data(self) -> None:
        choice = DataChoice.of_state(send(None))
        assert self._data is not None
        self._data.check(choice)

    def _choose(self) -> None:
        choice = DataChoice.of_state(send(None))
        assert self._data is not None
        self._data.choose(choice)

    def _begin_pass(self) -> None:
        assert self._data is not None
        self._data.begin_pass()

    def _weights_aside(self) -> None:
        assert self._modules is not None
        self._aside = contextlib.ExitStack()
        self._aside.enter_context(weights_aside(self._modules()))

    def _take_weights(self) -> None:
        assert self._modules is not None
        send_weights(self._modules())

    def _weights_back(self) -> None:
        aside, self._aside = self._aside, None
        if aside is not None:
            aside.close()


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}
