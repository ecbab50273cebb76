"""What the core needs from whoever drives the batches.

Small on purpose: each method is here because a command cannot be carried out without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Position(NamedTuple):  # no dataclass: one is made at every step, and this is quicker
    """Where a run stands, as of a safe point.

    Attributes:
        step: batches after which an optimizer stepped; 0 before the first.
        global_step: optimizer steps over all optimizers, as Lightning counts.
        epoch: the epoch of the next batch, from 0.
        batch_idx: batches of this epoch that are done.
        epochs_done: epochs that are completely finished.
        max_steps: in the unit of ``global_step``; None when there is no such limit.
    """

    step: int = 0
    global_step: int = 0
    epoch: int = 0
    batch_idx: int = 0
    max_steps: int | None = None
    max_epochs: int | None = None
    epochs_done: int = 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a validation or a test found.

    Attributes:
        metrics: what the module logged, by the names it used.
        avg_loss: mean of the loss over the batches, None if there was none.
        seconds: wall-clock time of the pass.
    """

    metrics: Mapping[str, Any]
    avg_loss: float | None
    seconds: float


# Called after each batch of an evaluation: batches done, batches in all (None if unknown), loss.
OnBatch = Callable[[int, int | None, float | None], None]


class Applied(NamedTuple):
    """What is to be told of a snapshot that was put in place, in sentences.

    Attributes:
        lost: what could not be put back; what follows is not exact.
        left_out: text that the script gives, and gave otherwise to the run that was saved.
        saved: numbers that go on as they were saved, though the script has others by now.
    """

    lost: Sequence[str] = ()
    left_out: Sequence[str] = ()
    saved: Sequence[str] = ()


class ControlDelegate(Protocol):
    """Implemented by a framework's plugin; every method runs on the training thread."""

    def position(self) -> Position:
        """Where the run stands now."""

    def capture(self, pool: Any = None, *, in_batch: bool = False) -> dict[str, Any]:
        """A whole checkpoint as a host copy that training cannot change any more.

        Args:
            pool: a ``HostPool`` for its memory; the copy is good until that is rewound.
            in_batch: an exception has left the run in the middle of a batch, which counts as done.
        """

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """What a checkpoint will copy: bytes, and whether from a device; nothing is copied."""

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse what is not a snapshot of this model; nothing is touched.

        Raises:
            CommandError: ``bad_payload``, with what differs.
        """

    def apply(self, state: dict[str, Any]) -> Applied:
        """Put a snapshot back in place; it is used up by it. Raises as ``check`` does."""

    def environment(self) -> dict[str, Any]:
        """What decides the numbers beside the state, of the framework's; plain values."""

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """Why a resume will not be exact, and what is left out and may matter."""

    def extend(self, asked: Mapping[str, int]) -> None:
        """Set ``max_steps`` or ``max_epochs``, -1 for no limit.

        Raises:
            CommandError: ``unsupported``; a schedule has a fixed length.
        """

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:
        """Validate without leaving a trace in the training.

        Raises:
            CommandError: ``unsupported`` when there is nothing to validate with.
        """

    def run_test(self, on_batch: OnBatch) -> Evaluation:
        """Test without leaving a trace in the training; raises as run_validation does."""

    def leaving(self) -> bool:
        """Whether the process has been told to end (SIGTERM), so that no pause may hold it."""

    def request_stop(self) -> None:
        """Let the loop end after the step that is done; the framework's own ending runs."""


class FrameworkDelegate(ControlDelegate, Protocol):
    """What a framework that owns its loop supplies in addition."""

    def attach(self) -> None:
        """Take the run over, before its first batch."""

    def install_batch_boundary_hook(
        self, tick: Callable[[], bool], at_end: Callable[[], None] = lambda: None
    ) -> None:
        """Have ``tick`` called between two batches; it returns True when the run is to stop.

        ``at_end`` is called when a limit is reached, before the loop is left.
        """

    def detach(self) -> None:
        """Take everything off again."""
