"""What of a run rank 0 changes in parts, on all ranks: data, schedule, budget, weights that are
tried.

Rule: as in ``together``: rank 0 tells the others and does the same itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch.distributed as dist

from otf_core.ranks.shares import NoCollectives
from otf_core.ranks.together import Others, send
from otf_core.runs.budget import Budget
from otf_core.runs.data import DataChoice, FitData, TrainingData
from otf_core.runs.subject import Subject
from otf_core.runs.weights import live_weights
from otf_core.state.keeper import Every, Origin, Schedule
from otf_core.state.parts import Modules


class SharedData(TrainingData):
    """The training data of all ranks; the others are sent which samples are chosen."""

    def __init__(self, fit: FitData, others: Others) -> None:
        super().__init__(fit)
        self._others = others

    def check(self, choice: DataChoice) -> None:
        """Each rank with its own loader."""
        super().check(choice)
        if choice:
            with self._others.do("check_data"):
                self._send(choice)

    def choose(self, choice: DataChoice) -> list[str]:
        """On all ranks, each of which draws its share."""
        if not choice and not self.choice:
            return []
        with self._others.do("choose"):
            self._send(choice)
            return super().choose(choice)

    def begin_pass(self) -> None:
        """On all ranks."""
        with self._others.do("begin_pass"):
            super().begin_pass()

    def _send(self, choice: DataChoice) -> None:
        if self._others.stand:
            send(choice.to_state())


class SharedSchedule(Schedule):
    """What is due by counting, counted alike on all ranks."""

    def __init__(self, every: Every, others: Others) -> None:
        super().__init__(every)
        self._others = others

    def begins(self, step: int, origin: Origin | None) -> bool:
        """On all ranks."""
        with self._others.do("begins", step):
            return super().begins(step, origin)


def schedule_of(every: Every, others: Others | None) -> Schedule:
    """That of a run: of all its ranks, where there are others."""
    return Schedule(every) if others is None else SharedSchedule(every, others)


class SharedWeights:
    """The live model of all ranks; see Beside in otf_core.runs.weights.

    Args:
        others: at a meeting.
    """

    def __init__(self, others: Others) -> None:
        self._others = others

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Each rank has its own weights again behind it."""
        with self._others.do("weights_aside"):
            pass
        try:
            yield
        finally:
            with self._others.do("weights_back"):
                pass

    def follow(self, modules: Modules) -> None:
        """What rank 0's model has now, all have."""
        with self._others.do("take_weights"):
            if self._others.stand:
                send_weights(modules)

    def alone(self, subject: Subject) -> Subject:
        """A collective in the step is refused: the others would not come to it."""

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            with subject.context(), NoCollectives("The training step"):
                yield

        return dataclasses.replace(subject, context=context)


def tell_budget(others: Others, budget: Budget) -> None:
    """Up to where all count; the rest of it is rank 0's to judge."""
    with others.do("budget", budget.until_step, budget.until_epoch):
        pass


def send_weights(modules: Modules) -> None:
    """Rank 0's to all, tensor by tensor and in place; collective."""
    for tensor in live_weights(modules).values():
        dist.broadcast(tensor.detach(), src=0)
