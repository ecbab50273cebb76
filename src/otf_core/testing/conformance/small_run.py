"""A small run under test: what a framework supplies, and what the kit sees of it from within.

The probe is the kit's own eye: it counts optimizer steps by torch's hooks, and so knows the truth
that a delegate is to tell.
"""

from __future__ import annotations

import abc
import hashlib
import random
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer

from otf_core.opening import RunOptions

PATIENCE_S: Final = 30.0  # a wait that nothing ends is a failed test, not a hung one
WATCHED_S: Final = 0.1  # how long a run that says it stands is watched


# What a framework may lack beside commands: to be held before its first batch, to be held at its
# end, to tell what it logs.
ABILITIES: Final = ("pause_at_start", "after_fit", "metrics")


class Outcome(NamedTuple):
    """What a run has come to; the kit adds the random numbers' state.

    Attributes:
        weights: all parameters and buffers, by name; compared through ``exact``.
        rest: everything else that decides how it would go on: optimizers, schedules, counters.
        logged: what the run itself has logged in training, in order, at least a value each step.
        objects: what a plugin could have left something on: modules, optimizers, a trainer, loops.
    """

    weights: Mapping[str, Any]
    rest: Any
    logged: Sequence[Any]
    objects: Sequence[Any] = ()


class Rate(NamedTuple):
    """A learning rate that a script would have from a step on, until another.

    Attributes:
        after, until: steps done; None: to the end.
    """

    value: float
    after: int
    until: int | None = None

    def holds(self, steps: int) -> bool:
        """Whether the step after so many has it."""
        return self.after <= steps and (self.until is None or steps < self.until)


class Freeze(NamedTuple):
    """The first parameter takes no part from a step on, until another, as a script would have it.

    Attributes:
        after, until: steps done; None: to the end.
    """

    after: int
    until: int | None = None

    def holds(self, steps: int) -> bool:
        """Whether the step after so many goes without it."""
        return self.after <= steps and (self.until is None or steps < self.until)


class Probe:
    """Looks on from inside the training, holds it within a batch, and breaks it where asked.

    Args:
        hold: batches, counted from 0, in which the training waits until ``let_go``.
        fail: the batch in which ``error`` is raised.
        rate: what the optimizers step with, as a script would have it; a schedule goes on below.
        freeze: when the first parameter is not trained, as a script would have it.
        scale: a factor on what the optimizers step with, likewise, and the steps that are done by
            then.
        poison: the batch in which the first parameter becomes NaN, once.
    """

    def __init__(
        self,
        *,
        hold: Iterable[int] = (),
        fail: int | None = None,
        rate: Rate | None = None,
        freeze: Freeze | None = None,
        scale: tuple[float, int] | None = None,
        poison: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.scale, self.poison = scale, poison
        self._holds = {n: (threading.Event(), threading.Event()) for n in hold}
        self._fail, self.rate, self._patience_s = fail, rate, patience_s
        self.freeze = freeze
        self.error = RuntimeError("the training failed on purpose")
        self.batches = 0  # begun
        self.steps = 0  # batches in which an optimizer has stepped
        self.lrs: list[float] = []  # of the first parameter group, at each step of an optimizer
        self._steps_before = 0  # this batch
        self._asked_lr: list[Any] = []
        self._seen: list[Optimizer] = []
        self._hooks: list[Any] = []
        self._stands = False
        self._moved = threading.Event()

    def batch(self, *optimizers: Optimizer) -> None:
        """A batch is there and no optimizer has stepped with it; training thread, once a batch.

        Args:
            optimizers: torch's own, not a framework's wrappers.
        """
        self._watch(optimizers)
        batch, self._steps_before = self.batches, self.steps
        self.batches += 1
        if self._stands:
            self._moved.set()
        if batch == self._fail:
            raise self.error
        if batch == self.poison and self._seen:
            with torch.no_grad():
                self._first().fill_(torch.nan)
        if self.freeze is not None and optimizers:
            self._first().requires_grad_(not self.freeze.holds(self.steps))
        reached, go = self._holds.get(batch, (None, None))
        if reached is not None and go is not None:
            reached.set()
            if not go.wait(self._patience_s):
                msg = f"the test never let batch {batch} go"
                raise TimeoutError(msg)

    @property
    def does(self) -> tuple[Any, ...]:
        """Rate, freeze, scale and poison, for a probe in the training's own process."""
        return self.rate, self.freeze, self.scale, self.poison

    def wait_for(self, batch: int) -> None:
        """Until the training is within this batch; the test's thread."""
        assert self._holds[batch][0].wait(self._patience_s), f"batch {batch} was never reached"

    def let_go(self, batch: int) -> None:
        """Let this batch go on."""
        self._holds[batch][1].set()

    def open(self) -> None:
        """Let every batch go on."""
        for _, go in self._holds.values():
            go.set()

    def moves_while_it_says_it_stands(self) -> bool:
        """Whether another batch begins; call ``goes_on`` before it is let go."""
        self._stands = True
        return self._moved.wait(WATCHED_S)

    def goes_on(self) -> bool:
        """It will be let go now; whether it has moved before."""
        self._stands = False
        return self._moved.is_set()

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def watch(self, *optimizers: Optimizer) -> None:
        """Count the steps of these; ``batch`` does, where it is called before the first step."""
        self._watch(optimizers)

    def _watch(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            if not any(optimizer is seen for seen in self._seen):
                self._seen.append(optimizer)
                self._hooks += [
                    optimizer.register_step_pre_hook(self._before),
                    optimizer.register_step_post_hook(self._after),
                ]

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        self._asked_lr = [group["lr"] for group in groups]
        if self.rate is not None and self.rate.holds(self._steps_before):
            for group in groups:
                group["lr"] = self.rate.value
        if self.scale is not None and self._steps_before >= self.scale[1]:
            for group in groups:
                group["lr"] = group["lr"] * self.scale[0]
        if self.freeze is not None and self.freeze.holds(self._steps_before):
            self._first().grad = None
        self.lrs.append(float(groups[0]["lr"]))

    def _first(self) -> Any:
        return self._seen[0].param_groups[0]["params"][0]

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self.rate is not None or self.scale is not None:
            for group, asked in zip(optimizer.param_groups, self._asked_lr, strict=True):
                group["lr"] = asked
        self.steps = self._steps_before + 1


class Framework(abc.ABC):
    """A framework under test, with a run of a second at most.

    The run must be worth a test: two epochs of at least four batches of the same number, data in
    random order, something that draws in every step (dropout), an optimizer with state (Adam).

    Attributes:
        cannot: commands that its runs cannot carry out, each with words of the reason that a
            person is to be told; and of ``ABILITIES`` those that they have not. Everything else
            is expected to work.
        exactness: the exactness report of the small run.
        patience_s: real seconds after which something that should have come is a failure.
    """

    cannot: Mapping[str, str] = {}
    exactness: str = "exact"
    patience_s: float = PATIENCE_S

    @abc.abstractmethod
    def run(self, otf: RunOptions | None, probe: Probe, *, epochs: int = 2) -> Outcome:
        """Make the run anew, take it to its end, and say what it has come to.

        The kit has seeded torch, NumPy and random before. What the training raises is let through.

        Args:
            otf: how it is attached; None: without a trace of otf.
            probe: ``probe.batch(optimizer)`` is called within every training batch.
        """

    def another(self) -> Framework | None:
        """The same with another model, whose snapshots must be refused; None: there is none."""
        return None


def seed(number: int) -> None:
    """Every generator that a process has."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def random_numbers() -> dict[str, Any]:
    """Where the generators of this process stand, to be compared."""
    return {
        "torch": exact(torch.get_rng_state()),
        "numpy": exact(np.random.get_state()),
        "random": exact(random.getstate()),
    }


def exact(value: Any) -> Any:
    """Any value as one that is equal only to the same, bit for bit."""
    if isinstance(value, torch.Tensor):
        t = value.detach().cpu().contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        return str(t.dtype), tuple(t.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    if isinstance(value, float):
        return value.hex()
    return value if isinstance(value, int | str | bytes | type(None)) else repr(value)


def shape_of(obj: Any) -> dict[str, Any]:
    """What a plugin could have left on an object: its class, names, and how many hooks."""
    own = vars(obj) if hasattr(obj, "__dict__") else {}
    return {
        "class": type(obj).__qualname__,
        "names": sorted(own),
        "hooks": {name: len(v) for name, v in own.items() if "hooks" in name and _has_length(v)},
    }


def _has_length(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | set)
