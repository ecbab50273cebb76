"""What the core asks of a loop that the user owns; training thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from otf_core.control.delegate import Applied, Evaluation, OnBatch, Position
from otf_core.data_knobs import DataKnobs
from otf_core.errors import CommandError, ErrorCode
from otf_core.own_loop.arguments import takes_limit
from otf_core.own_loop.batches import Batches
from otf_core.state.data_tap import tapped
from otf_core.state.host_pool import HostPool
from otf_core.state.loader_parts import around, set_around
from otf_core.state.parked import parked
from otf_core.state.parts import refuse_fixed_length
from otf_core.state.training import Pieces, TrainingState
from otf_core.steering import averages, frozen
from otf_core.steering.attributes import Attributes, of_module
from otf_core.steering.declared import Declared
from otf_core.steering.knobs import Knob
from otf_core.telemetry.canonical import canonicalize_metrics

Evaluate = Callable[..., Any]


class Loop(Protocol):
    """What the delegate needs of the loop."""

    @property
    def ticked(self) -> bool:
        """Whether a batch was finished in this process."""

    def position(self) -> Position:
        """Where it stands."""

    def refuse_to_go(self, epoch: int) -> None:
        """Raise CommandError where the loop cannot be brought to this epoch."""

    def went(self) -> list[str]:
        """Another state was put in place; what a person should know."""

    def extend(self, max_epochs: int | None) -> None:
        """A new limit. Raises CommandError where the loop has none of ours."""


class OwnLoopDelegate:
    """One training in a loop of the user's; see ControlDelegate and Tunable.

    Args:
        left_out: what nobody can store, as the user has not named it.
        params: attributes that can be set.
    """

    def __init__(
        self,
        loop: Loop,
        pieces: Pieces,
        batches: Batches | None,
        *,
        validate: Evaluate | None,
        test: Evaluate | None,
        left_out: Sequence[str],
        params: Sequence[Declared] | None = None,
    ) -> None:
        self._loop, self._pieces, self._batches = loop, pieces, batches
        self._validate, self._test, self._more_left_out = validate, test, left_out
        self.training = TrainingState(pieces)
        self.attributes = Attributes(
            lambda: [*map(of_module, pieces.modules.values())], lambda: pieces.modules, params
        )
        self.frozen = frozen.Frozen(
            lambda: frozen.names_of(pieces.modules.items()), lambda: pieces.optimizers
        )

    # The state.

    def position(self) -> Position:
        """Where the loop stands."""
        return self._loop.position()

    def capture(self, pool: HostPool | None = None, *, in_batch: bool = False) -> dict[str, Any]:  # noqa: ARG002 -- the loader has handed the batch out: it counts as done
        """See TrainingState.capture."""
        if self._batches is not None:
            self._batches.note()
        return self.training.capture(pool)

    def sizes(self) -> Sequence[tuple[int, bool]]:
        """See TrainingState.sizes."""
        return self.training.sizes()

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse another model, and a place to which this loop cannot be brought."""
        self.training.check(state)
        self._loop.refuse_to_go(state["otf"]["exact"]["counters"]["epoch"])

    def apply(self, state: dict[str, Any]) -> Applied:
        """See TrainingState.apply."""
        self.training.check(state)
        making = self._batches.making() if self._batches is not None else contextlib.nullcontext()
        with making:
            applied = self.training.apply(state)
        return applied._replace(saved=[*applied.saved, *self._loop.went()])

    def environment(self) -> dict[str, Any]:
        """See TrainingState.environment."""
        return self.training.environment()

    def exactness(self) -> tuple[Sequence[str], Sequence[str]]:
        """See TrainingState.exactness."""
        why, left_out = self.training.exactness()
        batches = self._batches
        if batches is not None and self._loop.ticked and not batches.read:
            why.append(
                f"the loop reads its {type(batches.reading.loader).__name__} directly, and where "
                "it stands is not known (for batch in session.batches())"
            )
        return why, [*left_out, *self._more_left_out]

    def extend(self, asked: Mapping[str, int]) -> None:
        """A new number of epochs, where ``session.epochs`` counts them."""
        if "max_steps" in asked:
            detail = "extend was asked with max_steps; the loop has only a limit of epochs."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="max_steps")
        refuse_fixed_length(self._pieces.schedulers)
        limit = asked["max_epochs"]
        self._loop.extend(None if limit == -1 else limit)

    # Evaluations.

    def run_validation(self, limit_batches: int | None, on_batch: OnBatch) -> Evaluation:  # noqa: ARG002 -- the user's function knows its batches
        """Call the user's ``validate``; the training goes on as if it had not been."""
        limit = {} if limit_batches is None else {"limit_batches": limit_batches}
        return self._evaluate("validate", self._validate, limit)

    def run_test(self, on_batch: OnBatch) -> Evaluation:  # noqa: ARG002 -- as above
        """Call the user's ``test``; the training goes on as if it had not been."""
        return self._evaluate("test", self._test, {})

    def _evaluate(
        self, name: str, function: Evaluate | None, limit: Mapping[str, Any]
    ) -> Evaluation:
        if function is None:
            detail = f"{name} was asked, but the loop was attached without {name}=."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if limit and not takes_limit(function):
            detail = f"limit_batches was asked, but {name}= takes no argument limit_batches."
            raise CommandError(ErrorCode.UNSUPPORTED, detail, field="limit_batches")
        began = time.monotonic()
        with self._aside():
            found = function(**limit)
        return _evaluation(name, found, time.monotonic() - began)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        loaders = [loader for _, loader in self._pieces.all_loaders()]
        was = [(loader, around(loader)) for loader in loaders if tapped(loader)]
        current = self._batches.current if self._batches is not None else None
        with self.training.small_parts_aside(), parked(self._pieces.modules, loaders):
            try:
                yield
            finally:
                if self._batches is not None:
                    self._batches.current = current
                for loader, state in was:
                    set_around(loader, state, own=False)

    # The rest.

    def leaving(self) -> bool:
        """Whether the process has been told to end: SIGTERM is the script's own."""
        return False

    def request_stop(self) -> None:
        """The loop is told by what ``tick`` returns."""

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """As they were given."""
        return self._pieces.optimizers

    def schedulers(self) -> Sequence[tuple[Any, torch.optim.Optimizer]]:
        """Those that say which optimizer they write."""
        with_optimizer = ((s, getattr(s, "optimizer", None)) for s in self._pieces.schedulers)
        return [(s, o) for s, o in with_optimizer if isinstance(o, torch.optim.Optimizer)]

    def cadence(self) -> None:
        """The loop steps its schedules itself."""

    def trainer_knobs(self) -> Mapping[str, Knob]:
        """Of the models, and what is declared; what else the loop has is its own."""
        return {
            frozen.PATH: self.frozen.knob(),
            **DataKnobs().knobs(),
            **averages.no_average(averages.ITS_OWN),
            **self.attributes.knobs(),
        }


def _evaluation(name: str, found: Any, seconds: float) -> Evaluation:
    if found is None:
        return Evaluation({}, None, seconds)
    if isinstance(found, Mapping):
        metrics: dict[str, Any] = {}
        for key, value in found.items():
            metrics[str(key)] = _number(f"{name}= for {key!r}", value)
        known = canonicalize_metrics(metrics)
        avg_loss = known.get("test_loss", known.get("val_loss", known.get("loss")))
        return Evaluation(metrics, avg_loss, seconds)
    loss = _number(f"{name}=", found)
    return Evaluation({f"{'val' if name == 'validate' else 'test'}_loss": loss}, loss, seconds)


def _number(whose: str, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        detail = (
            f"{whose} returned {type(value).__name__}; allowed: a number, a tensor with one, or "
            "a dict of them."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail) from None
