"""What the values of parameter groups will be in the coming steps, by a copy of the schedules.

Rule 1: a copy has the values of the groups and the state of the schedules, and no weights; the
run's own are not touched, and no random number is drawn from them.
Rule 2: changes are made to the copy by ``Steering`` itself, so what is previewed is what happens.
Rule 3: what cannot be known is said: a schedule that waits for a metric stays where it is.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.state.rng import parked_rng
from otf_core.steering.cadence import Cadence
from otf_core.steering.knobs import Knob
from otf_core.steering.params import Steering, Tunable

NEEDS_CADENCE: Final = {
    "preview_params": "Whoever wrote this loop steps its schedules in it, and nobody knows when."
}
MAX_STEPS: Final = 20_000  # some 20 us each, and training waits


@dataclasses.dataclass
class Curves:
    """The coming values, at equal distances of steps.

    Attributes:
        step: numbers of coming steps; the first is the next one.
        now, then: by path, what each of those steps uses without and with the changes.
        ends: the schedule itself raises at this step, and what it says.
        assumes: what had to be assumed.
    """

    step: list[int]
    now: dict[str, list[float]]
    then: dict[str, list[float]]
    ends: dict[str, Any] | None = None
    assumes: list[str] = dataclasses.field(default_factory=list)


def preview(
    tunable: Tunable,
    steering: Mapping[str, Any],
    changes: Sequence[SetParam],
    *,
    steps: int,
    points: int = 600,
) -> Curves:
    """What the next ``steps`` steps will use; training thread, at a safe point.

    Args:
        steering: the run's ``Steering.state()``.
        changes: each from now on, or from its ``at_step``.
        points: at most so many values of a curve.

    Raises:
        CommandError: a change is refused, or nobody can tell how the schedules go on.
    """
    cadence = tunable.cadence()
    if cadence is None:
        raise CommandError(ErrorCode.UNSUPPORTED, NEEDS_CADENCE["preview_params"])
    steps = min(steps, MAX_STEPS)
    every = max(1, -(-steps // points))
    with parked_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a copy nobody has to hear
        now, _ = _walk(_Copied(tunable), cadence, steering, (), steps, every)
        then, ends = _walk(_Copied(tunable), cadence, steering, changes, steps, every)
    shown = [*range(cadence.step + 1, cadence.step + 1 + steps, every)]
    length = min((len(values) for values in (*now.values(), *then.values())), default=0)
    keys = {change.path.rpartition(".")[2] for change in changes} or {"lr"}
    paths = [path for path in then if path.rpartition(".")[2] in keys]
    return Curves(
        shown[:length],
        {path: now[path][:length] for path in paths},
        {path: then[path][:length] for path in paths},
        ends,
        [
            f"{each.waits_for} is not known beforehand; its schedule stays as it is"
            for each in cadence.schedules
            if each.waits_for is not None
        ],
    )


def _walk(
    copied: _Copied,
    cadence: Cadence,
    state: Mapping[str, Any],
    changes: Sequence[SetParam],
    steps: int,
    every: int,
) -> tuple[dict[str, list[float]], dict[str, Any] | None]:
    """By path the value of every so many steps; and where a schedule itself comes to its end."""
    steering = Steering(copied)
    steering.load({**state, "knobs": {}, "until": {}})
    for change in changes:
        if not change.release:  # it may be of what is set before it
            steering.check(change, cadence.step)
    # Stable: what is asked for one step is done in the order in which it was asked.
    waiting = sorted(changes, key=lambda change: change.at_step or cadence.step)
    slots = steering.slots()
    found: dict[str, list[float]] = {path: [] for path in slots}
    try:
        for step, due in zip(
            range(cadence.step, cadence.step + steps), cadence.due(), strict=False
        ):
            steering.watch(step)
            while waiting and (waiting[0].at_step or cadence.step) <= step:
                steering.apply(waiting.pop(0), step)
            if (step - cadence.step) % every == 0:
                for path, slot in slots.items():
                    found[path].append(float(slot.raw()))
            for index in due:
                try:
                    copied.steps[index]()
                except (ValueError, ArithmeticError, LookupError, TypeError) as error:
                    said = f"{type(error).__name__}: {error}"[:500]
                    return found, {"step": step + 1, "why": said}
        return found, None
    finally:
        steering.close()


class _Copied:
    """A Tunable without weights: groups with the same values, and copies of the schedules.

    Raises:
        CommandError: ``unsupported``; a schedule cannot be copied.
    """

    def __init__(self, tunable: Tunable) -> None:
        pairs = [(optimizer, _Groups(optimizer)) for optimizer in tunable.optimizers()]
        memo: dict[int, Any] = {id(optimizer): groups for optimizer, groups in pairs}
        self._optimizers = [groups for _, groups in pairs]
        self._schedulers: list[tuple[Any, Optimizer]] = []
        for scheduler, optimizer in tunable.schedulers():
            self._schedulers.append((_copy_of(scheduler, memo), memo[id(optimizer)]))

    @property
    def steps(self) -> list[Any]:
        """The step of each schedule, through whatever leads it."""
        return [scheduler.step for scheduler, _ in self._schedulers]

    def optimizers(self) -> Sequence[Optimizer]:
        """In the run's order."""
        return self._optimizers

    def schedulers(self) -> Sequence[tuple[Any, Optimizer]]:
        """In the run's order."""
        return self._schedulers

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """None: no schedule writes one."""
        return {}

    def cadence(self) -> None:
        """Not asked here."""


def _copy_of(scheduler: Any, memo: dict[int, Any]) -> Any:
    heavy = [name for name, value in vars(scheduler).items() if isinstance(value, nn.Module)]
    why = f"it holds a model as {heavy[0]}" if heavy else None
    try:
        if why is None:
            return copy.deepcopy(scheduler, memo)
    except (TypeError, ValueError, RuntimeError, AttributeError, copy.Error) as error:
        why = f"{type(error).__name__}: {error}"[:300]
    detail = f"A preview was asked; {type(scheduler).__name__} cannot be copied: {why}."
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


class _Groups(Optimizer):
    """The parameter groups of an optimizer, with nothing to optimize.

    ``isinstance`` takes it for what it is a copy of: which options can be set goes by that.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._kind

    def __init__(self, optimizer: Optimizer) -> None:
        self._kind = type(optimizer)
        groups = [
            {
                **{key: _plain(value) for key, value in group.items() if key not in _OF_WEIGHTS},
                "params": [torch.zeros(())],
            }
            for group in optimizer.param_groups
        ]
        super().__init__(groups, {})
        self.defaults = dict(optimizer.defaults)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


_OF_WEIGHTS: Final = ("params", "param_names")


def _plain(value: Any) -> Any:
    """A value that later writes to the group do not change; on the host."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value
