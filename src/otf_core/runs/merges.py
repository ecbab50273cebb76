"""Merge runs, and what each way to merge them would be worth; training thread, at the gate.

Rule 1: sources are checkpoints on the disk, also of the run that trains; they are not changed.
Rule 2: candidates are tried in the live model, whose own weights are put back whatever happens.
Rule 3: a merge is a new run that goes on from its first parent, with that one's place, schedule
and random numbers, and other weights; all parents stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from otf_core.control.bus import Ticket
from otf_core.control.delegate import ControlDelegate
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import Merge
from otf_core.runs import merge
from otf_core.runs.data import DataChoice
from otf_core.runs.forking import Forks, Plan, read_origin
from otf_core.runs.subject import Subject
from otf_core.runs.tree import Here
from otf_core.runs.trial import Fit, Source, Trial, tensors_of
from otf_core.runs.weights import (
    Alone,
    Beside,
    refuse_another_shape,
    refuse_other_values,
    weights_aside,
)
from otf_core.runs.wishes import Wishes, count
from otf_core.state.parts import Modules
from otf_core.state.store import Pending
from otf_core.state.weights_file import open_weights

NO_MERGE: Final = "Runs of this kind cannot be merged: its validation is the loop's own."
MAX_PARENTS: Final = 16
OPTIMIZERS: Final = ("parent", "fresh")


class Run(Protocol):
    """What is needed of the session."""

    run_id: str
    run_dir: Path | None

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""


class Exclusive(Protocol):
    """The paused window: the run stands inside, that is said, and ``cancel`` reaches it."""

    def __call__(
        self, state: str, ticket: Ticket
    ) -> contextlib.AbstractContextManager[Callable[[], bool]]:
        """Gives whether it was cancelled."""


class Merges:
    """The merges of one session.

    Args:
        modules: those whose weights are merged; None: there are none that could be tried.
        samples: a set of the run by its name; None: no set can be looked at.
        beside: the other ranks; None: there are none.
    """

    def __init__(
        self,
        run: Run,
        forks: Forks,
        *,
        delegate: ControlDelegate,
        modules: Callable[[], Modules] | None,
        samples: Callable[[str], Subject] | None,
        exclusive: Exclusive,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside
        self._run, self._forks, self._delegate = run, forks, delegate
        self._modules, self._samples, self._exclusive = modules, samples, exclusive

    def preview(self, ticket: Ticket) -> dict[str, Any]:
        """What each strategy would be worth on the validation set; nothing is committed."""
        asked = ticket.payload
        names = asked.strategies or [asked.strategy] * (asked.strategy is not None)
        names = names or list(merge.STRATEGIES)
        merge.refuse_unknown(names)
        with self._trial(ticket, len(asked.parents) + len(names)) as (trial, _):
            parents = [
                trial.worth(merge.as_it_is(source.weights), said=source.said)
                for source in trial.sources
            ]
            candidates = [trial.candidate(name) for name in names]
        scored = [each for each in [*candidates, *parents] if each["score"] is not None]
        better = min if asked.mode == "min" else max
        best = better(scored, key=lambda each: each["score"], default=None)
        names_of_best = ("strategy", "run_id", "checkpoint")
        return {
            "candidates": candidates,
            "parents": parents,
            "monitor": asked.monitor,
            "mode": asked.mode,
            "best": best and {name: best[name] for name in names_of_best if name in best},
        }

    def merge(self, ticket: Ticket, seed: int) -> dict[str, Any]:
        """A new run of the weights of several; it trains from here on."""
        asked = ticket.payload
        if asked.strategies is not None:
            detail = "merge was asked with several strategies; allowed: one, as strategy."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="strategies")
        strategy = asked.strategy or "linear"
        merge.refuse_unknown([strategy])
        if asked.optimizer not in OPTIMIZERS:
            detail = (
                f"The optimizer state {asked.optimizer[:40]!r} was asked; allowed: "
                f"{', '.join(OPTIMIZERS)}."
            )
            allowed = list(OPTIMIZERS)
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="optimizer", allowed=allowed)
        wishes = Wishes(steps=count("steps", asked.steps), epochs=count("epochs", asked.epochs))
        with self._trial(ticket, 1) as (trial, back):
            first = trial.sources[0]
            origin = read_origin(first.path, first.id)
            self._delegate.check(origin.state)
            told = trial.merge_into(origin.state, strategy)
            sources = [source.said for source in trial.sources]
            modules, merged = trial.modules, tensors_of(origin.state)
        for part in origin.state["otf"].get("ranks", ()):
            # Merged statistics of BatchNorm are those of all ranks, as they were tried.
            own = part["state_dict"]
            part["state_dict"] = {name: own[name] for name in own if name not in merged}
        if asked.optimizer == "fresh":
            for state in origin.state["optimizer_states"]:
                state["state"] = {}
            told.append("the optimizer begins anew; its learning rate is the first parent's")
        else:
            told.append(f"the optimizer goes on with the state of {first.run.run_id}")
        at_step = origin.state["otf"]["step"]
        made = {
            "from": first.run.run_id,
            "at_step": at_step,
            "init_from": first.id,
            "subset_count": None,
            "strategy": strategy,
            "optimizer": asked.optimizer,
            "sources": [f"{each['run_id']}/{each['checkpoint']}" for each in sources],
        }
        name = asked.new_name or self._forks.tree.automatic_name("merge", seed)
        parents = list(dict.fromkeys(each["run_id"] for each in sources))
        # A merge trains on all the data, whatever its parents had chosen.
        had_chosen = bool(DataChoice.of_state(origin.state["otf"].get("data")))
        choice = DataChoice() if had_chosen else None
        if had_chosen:
            told.append(
                f"it trains on all samples; the epochs that {first.run.run_id} had of its chosen "
                "ones count, and extend gives it more"
            )

        def arrived() -> None:
            refuse_other_values(modules, merged.items(), "merge was asked")

        plan = Plan(name, "merge", parents, made, origin, choice, wishes, arrived)
        self._forks.make(ticket, plan, back)
        for text in told:
            self._run.emit("log", level="info", phase="info", text=f"{name}: {text}")
        return {
            "new_run": name,
            "child_id": name,
            "run_id": name,
            "parents": parents,
            "strategy": strategy,
            "optimizer": asked.optimizer,
            "paths": [each["path"] for each in sources],
            "told": told,
            "at_step": at_step,
            "subset_indices": [],
            "applied_step": at_step,
        }

    @contextlib.contextmanager
    def _trial(self, ticket: Ticket, number: int) -> Iterator[tuple[Trial, Pending]]:
        """Sources open, and the live model to try them in; beside it the run as it stands."""
        files = self._files(ticket.payload)
        with contextlib.ExitStack() as stack:
            cancelled = stack.enter_context(self._exclusive("validating", ticket))
            fit, back = self._fit(), self._forks.keep()
            sources = []
            for here, named in files:
                path, own = back.path, str(back.id)
                if named is not None or here.run_id != self._run.run_id:
                    path, known = self._forks.checkpoint_of(here, named)
                    own = known or Path(path).name
                weights = stack.enter_context(open_weights(Path(path), field="paths"))
                sources.append(Source(here, path, own, weights))
            asked = ticket.request.cmd
            with open_weights(Path(back.path), field="paths") as kept:
                refuse_other_values(fit.modules, merge.as_it_is(kept), f"{asked} was asked")
            stack.enter_context(fit.beside.aside())
            aside = stack.enter_context(weights_aside(fit.modules))
            for source in sources:
                refuse_another_shape(asked, aside.weights, source.weights, field="parents")
            trial = Trial(fit, ticket, sources, cancelled=cancelled, number=number, stack=stack)
            yield trial, back

    def _fit(self) -> Fit:
        modules, samples = self._modules, self._samples
        if modules is None or samples is None:
            raise CommandError(ErrorCode.UNSUPPORTED, NO_MERGE)
        beside: Beside = self._beside or Alone()
        return Fit(
            modules=modules(),
            validate=self._delegate.run_validation,
            training_set=lambda: beside.alone(samples("train")),
            tree=self._forks.tree,
            checkpoint_of=self._forks.checkpoint_of,
            folder=self._run.run_dir,
            emit=self._run.emit,
            beside=beside,
        )

    def _files(self, asked: Merge) -> list[tuple[Here, str | None]]:
        count("limit_batches", asked.limit_batches)
        if not 2 <= len(asked.parents) <= MAX_PARENTS:
            detail = (
                f"A merge of {len(asked.parents)} runs was asked; allowed: 2 to {MAX_PARENTS}, and "
                "one run as often as it has checkpoints that are named."
            )
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="parents")
        named = asked.checkpoints or asked.paths or []
        if named and len(named) != len(asked.parents):
            detail = f"{len(named)} checkpoints were given for {len(asked.parents)} parents."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="checkpoints")
        runs = [self._forks.tree.look(name, "parents") for name in asked.parents]
        return list(zip(runs, named or [None] * len(runs), strict=True))
