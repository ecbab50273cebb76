"""What rank 0 does to a run of several ranks, done by all of them.

Rule 1: at a meeting rank 0 tells the others and then does the same itself, so that collectives
within meet. Between meetings ranks do what they find by counting, and nobody is told.
Rule 2: what a rank could not do is said with its number; nobody is left waiting.
Rule 3: a name told is a row of ``OtherRank.do``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch.distributed as dist

from otf_core.control.agreement import RankError, StepAgreement
from otf_core.control.delegate import Applied, ControlDelegate, Evaluation, OnBatch, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.ranks.mail import of_the_group
from otf_core.steering.params import AppliedParam, Steering, Tunable
from otf_core.steering.plain import to_plain


class _Leaving:
    """OnBatch of rank 0: where that raises, all ranks leave behind the same batch.

    Attributes:
        error: what it has raised last.
    """

    def __init__(self, agreement: StepAgreement, on_batch: OnBatch) -> None:
        self._agreement, self._on_batch = agreement, on_batch
        self._at: int | None = None
        self.error: CommandError | None = None

    def __call__(self, done: int, total: int | None, loss: float | None) -> None:
        try:
            self._on_batch(done, total, loss)
        except CommandError as error:
            self.error = error
            if self._at is None:
                self._at = self._agreement.leave_evaluation(done, total)
            if self._at is not None and done >= self._at:
                raise


class Others:
    """The other ranks, as rank 0 tells them; training thread."""

    def __init__(self, agreement: StepAgreement) -> None:
        self._agreement = agreement

    @property
    def stand(self) -> bool:
        """Whether all ranks stand at one boundary."""
        return self._agreement.meeting

    def leaving(self, on_batch: OnBatch) -> _Leaving:
        """What rank 0 is to call behind each batch of an evaluation that all ranks do."""
        return _Leaving(self._agreement, on_batch)

    @property
    def world_size(self) -> int:
        """With this one."""
        return self._agreement.world_size

    def cease(self) -> None:
        """What they do now is wanted no more; they answer as soon as they see it."""
        self._agreement.cease()

    @contextlib.contextmanager
    def do(self, name: str, *args: Any) -> Iterator[dict[int, Any]]:
        """What stands inside is done by the others as well; then the dict has their answers.

        Raises:
            CommandError: ``internal``; one of them could not.
        """
        heard: dict[int, Any] = {}
        if not self.stand:
            yield heard
            return
        number = self._agreement.tell(name, *args)
        try:
            yield heard
        except BaseException as error:
            with contextlib.suppress(RankError):  # its own failure is the one that is told
                self._agreement.answers(number, broken=of_the_group(error))
            raise
        try:
            heard.update(self._agreement.answers(number))
        except RankError as error:
            detail = f"Rank {error.rank} could not follow in {name}: {error.said}."
            raise CommandError(ErrorCode.INTERNAL, detail) from error


class AllRanks:
    """A ControlDelegate for rank 0: the run of all ranks."""

    def __init__(self, delegate: ControlDelegate, others: Others) -> None:
        self._delegate, self._others = delegate, others

    def position(self) -> Position:
        """The same on all ranks."""
        return self._delegate.position()

    def capture(self, pool: Any = None, *, in_batch: bool = False) -> dict[str, Any]:
        """With the parts of all."""
        with self._others.do("capture"):
            return self._delegate.capture(pool, in_batch=in_batch)

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """Of rank 0, whose memory it is copied to."""
        return self._delegate.sizes()

    def check(self, state: Mapping[str, Any]) -> None:
        """The model is the same on all ranks."""
        self._delegate.check(state)

    def apply(self, state: dict[str, Any]) -> Applied:
        """Each rank takes its part; the others are sent the state by the process group."""
        with self._others.do("apply") as heard:
            if self._others.stand:
                send(state)
            own = self._delegate.apply(state)
        lost, left_out, saved = (list(each) for each in own)
        for rank, (more_lost, more_left_out, more_saved) in heard.items():
            lost += [f"rank {rank}: {text}" for text in more_lost if text not in own.lost]
            left_out += [text for text in more_left_out if text not in left_out]
            saved += [text for text in more_saved if text not in saved]
        return Applied(lost, left_out, saved)

    def environment(self) -> dict[str, Any]:
        """The same on all ranks."""
        return self._delegate.environment()

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """What the last capture has brought from the others is in it."""
        return self._delegate.exactness()

    def extend(self, asked: Mapping[str, int]) -> None:
        """On all ranks."""
        with self._others.do("extend", dict(asked)):
            self._delegate.extend(asked)

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        """Each rank its share; numbers are the mean over the ranks."""
        run = functools.partial(self._delegate.run_validation, limit_batches)
        return self._evaluated("validate", [limit_batches], run, on_batch)

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        """As ``run_validation``."""
        return self._evaluated("test", [], self._delegate.run_test, on_batch)

    def _evaluated(
        self, name: str, args: list[Any], run: Callable[[OnBatch], Evaluation], on_batch: OnBatch
    ) -> Evaluation:
        watched = self._others.leaving(on_batch)
        with self._others.do(name, *args) as heard:
            own = run(watched)
        if watched.error is not None:  # it was to be left, and had to be run to its end
            raise watched.error
        return mean(own, heard)

    def leaving(self) -> bool:
        """Of this process."""
        return self._delegate.leaving()

    def request_stop(self) -> None:
        """All end here."""
        with self._others.do("request_stop"):
            self._delegate.request_stop()


class SharedSteering(Steering):
    """The values of all ranks, as rank 0 sets them."""

    def __init__(self, tunable: Tunable, others: Others) -> None:
        super().__init__(tunable)
        self._others = others

    def apply(self, request: SetParam, step: int) -> AppliedParam:
        """On all ranks; a value of this process alone, as ``after_fit``, here."""
        if request.path in self._knobs.added:
            return super().apply(request, step)
        self.check(request, step)  # what is refused here is told to nobody
        with self._others.do("set", msgspec.to_builtins(request), step):
            return super().apply(request, step)

    def undo(self, applied: AppliedParam, step: int) -> AppliedParam:
        """On all ranks."""
        if applied.path in self._knobs.added:
            return super().undo(applied, step)
        self.refuse_undo(applied, step)  # as in ``apply``
        with self._others.do("unset", to_plain(self, applied), step):
            return super().undo(applied, step)

    def load(self, state: Mapping[str, Any]) -> None:
        """On all ranks."""
        with self._others.do("load", dict(state)):
            super().load(state)


def mean(own: Evaluation, heard: Mapping[int, Any]) -> Evaluation:
    """Over all ranks, each of which had an equal share; of numbers that all ranks found."""
    found = [(dict(own.metrics), own.avg_loss), *((m, loss) for m, loss in heard.values())]
    metrics = dict(own.metrics)
    for name in metrics:
        values = [each.get(name) for each, _ in found]
        if all(isinstance(value, int | float) for value in values):
            metrics[name] = math.fsum(map(float, values)) / len(values)
    losses = [loss for _, loss in found]
    known = [loss for loss in losses if loss is not None]
    avg = math.fsum(known) / len(known) if len(known) == len(losses) else own.avg_loss
    return Evaluation(metrics, avg, own.seconds)


def send(given: Any) -> Any:
    """Rank 0's to all; collective."""
    box: list[Any] = [given]
    dist.broadcast_object_list(box, src=0)
    return box[0]
