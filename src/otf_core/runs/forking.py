"""Fork, switch, and the way back: which run of a session trains; training thread, at the gate.

Rule 1: whoever is left is on the disk first, exactly as it stands, and stays there.
Rule 2: what can be refused is refused before anything is touched. A fork that fails half way is
taken back: the parent trains on from where it was.
Rule 3: a fork in which nothing is other is bit for bit its parent going on.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import torch

from otf_core.control.bus import Ticket
from otf_core.control.delegate import ControlDelegate, Position
from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import SetParam
from otf_core.runs.budget import Budget
from otf_core.runs.data import DataChoice, TrainingData
from otf_core.runs.tree import Here, RunTree
from otf_core.runs.wishes import Wishes
from otf_core.state import run_folder
from otf_core.state.checkpoint_file import read_checkpoint
from otf_core.state.store import Pending

IDS_TOLD: Final = 1_000  # in an answer of otf/1; those of a million samples are half a line
WAIT_S: Final = 60.0  # for the disk, before a run is left


class Run(Protocol):
    """What is needed of the session."""

    run_id: str
    session_id: str

    def position(self) -> Position:
        """Where the run stands."""

    def save(self, kind: str, *, pinned: bool = False, wait_s: float = 0.0) -> Pending:
        """Copy the state now, write it in the background."""

    def changed(self) -> None:
        """The run is no longer what the last checkpoint holds."""

    def is_kept(self, checkpoint_id: str) -> None:
        """The run is what this checkpoint of it holds."""

    def put(self, state: dict[str, Any], base: str | None) -> bool:
        """Put another state in place; whether it is there as it was."""

    def enter(self, here: Here) -> None:
        """From here on what is told and saved is this run's."""

    def emit(self, kind: str, /, **fields: Any) -> int:
        """Tell."""

    def tear(self, error: Exception) -> None:
        """Half of another state is there, and the run must not train on."""

    def made_run(self, ticket: Ticket, left: str) -> None:
        """Remember that a new run has been entered, before it is kept."""

    def set_value(self, asked: SetParam, ticket: Ticket) -> None:
        """Set a parameter of the fork, and tell of it."""


class Origin(NamedTuple):
    """A checkpoint that a run is put to.

    Attributes:
        own: its id, where it is one of that run's own.
    """

    state: dict[str, Any]
    name: str
    path: str
    own: str | None


class Plan(NamedTuple):
    """A new run that is to train.

    Attributes:
        made: of what it is made; as its ``run.json`` and ``newRun`` have it.
        origin: None: from where the run that trains stands.
        choice: of the training data; None: the origin's.
        arrived: raises where the origin is not what the run has now.
    """

    name: str
    kind: str
    parents: list[str]
    made: dict[str, Any]
    origin: Origin | None
    choice: DataChoice | None
    wishes: Wishes
    arrived: Callable[[], None] = lambda: None


class Forks:
    """The runs of one session.

    Args:
        data: None where the run's data cannot be changed.
        check_value: raises where a parameter cannot be set.
        chosen: the ids that a payload chooses; None: it chooses none.
        limited: told of each budget that a run is given.
    """

    def __init__(
        self,
        run: Run,
        tree: RunTree,
        *,
        delegate: ControlDelegate,
        data: TrainingData | None,
        check_value: Callable[[SetParam], None],
        chosen: Callable[[Ticket], torch.Tensor | None],
        limited: Callable[[Budget], None] = lambda _: None,
    ) -> None:
        self._run, self.tree, self._delegate, self._data = run, tree, delegate, data
        self._check_value, self._chosen, self._limited = check_value, chosen, limited
        self._budget = Budget()

    @property
    def budget(self) -> Budget:
        """How long the run that trains is to train."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        self._budget = budget
        self._limited(budget)

    @property
    def choice(self) -> DataChoice:
        """What the run that trains has chosen of its data."""
        return self._data.choice if self._data is not None else DataChoice()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of it; see ``use``."""
        found: dict[str, Any] = {}
        if self._data is not None and self._data.drawn is not None:
            found = {"data": self.choice.to_state(), "drawn": self._data.drawn.to_state()}
        return {**found, "budget": self.budget.to_state()} if self.budget else found

    def hear(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Of the other ranks' parts of a checkpoint: which samples they have drawn."""
        for part in parts:
            if self._data is not None and self._data.drawn is not None and "drawn" in part["otf"]:
                self._data.drawn.load(part["otf"]["drawn"])

    def off(self) -> None:
        """The loader as the script has made it."""
        if self._data is not None:
            self._data.off()

    def environment(self) -> dict[str, Any]:
        """See TrainingData.environment."""
        return self._data.environment() if self._data is not None else {}

    def use(self, saved: Mapping[str, Any]) -> list[str]:
        """Data and budget of a state that is about to be put in place.

        Returns:
            Sentences on what does not apply.
        """
        choice = DataChoice.of_state(saved.get("data"))
        self.budget = Budget(**saved.get("budget", {}))
        if self._data is None:
            if choice:
                detail = "It trained on chosen samples, which this run cannot choose."
                raise CommandError(ErrorCode.UNSUPPORTED, detail)
            return []
        told = self._data.choose(choice)
        if self._data.drawn is not None and "drawn" in saved:
            self._data.drawn.load(saved["drawn"])
        return told

    def data_status(self) -> dict[str, int] | None:
        """See TrainingData.status; None where the run trains on all, or cannot say."""
        return self._data.status() if self._data is not None else None

    def fork(self, ticket: Ticket, seed: int) -> dict[str, Any]:
        """A new run from this one, or from a checkpoint of any; it trains from here on."""
        asked = ticket.payload
        wishes = Wishes.of(asked, legacy=ticket.link.legacy)
        parent = self.tree.find(asked.parent_run_id or self._run.run_id, "parent_run_id")
        origin = self._origin(parent, asked)
        choice = self._other_data(ticket, wishes, origin)
        self._refuse(choice, wishes)
        name = asked.run_name or self.tree.automatic_name("fork", seed)
        back = self.keep()
        step = self._run.position().step if origin is None else origin.state["otf"]["step"]
        made = {
            "from": parent.run_id,
            "at_step": step,
            "init_from": origin.name if origin is not None else back.id,
            "subset_count": len(choice.ids) if choice and choice.ids is not None else None,
            "selection": _told(asked),
        }
        plan = Plan(name, "fork", [parent.run_id], made, origin, choice, wishes)
        self.make(ticket, plan, back)
        now = self._run.position().step
        ids = self.choice.ids
        told = [] if ids is None else (ids if ticket.link.legacy else ids[:IDS_TOLD]).tolist()
        chosen = {"subset_indices": told, "subset_count": None if ids is None else len(ids)}
        names = {"new_run": name, "child_id": name, "run_id": name, "parent": parent.run_id}
        return {**names, "at_step": now, **chosen, "applied_step": now}

    def make(self, ticket: Ticket, plan: Plan, back: Pending) -> None:
        """The new run trains from here on.

        Args:
            back: the run that trains, as it stands; see ``keep``.
        """
        child = self.tree.make(
            plan.name,
            kind=plan.kind,
            parents=plan.parents,
            made=plan.made,
            session_id=self._run.session_id,
        )
        left = self._run.run_id
        self._become(child, back, lambda: self._begin(ticket, child, plan, left))

    def switch(self, run_id: str, init_ckpt: str | None) -> dict[str, Any]:
        """Another run trains from where it was left; this one is left as it stands."""
        there = self.tree.find(run_id)
        origin = read_origin(*self.checkpoint_of(there, init_ckpt))
        self._delegate.check(origin.state)
        back = self.keep()

        def begin() -> None:
            if self._run.put(origin.state, origin.own) and origin.own is not None:
                self._run.is_kept(origin.own)

        self._become(there, back, begin)
        step = self._run.position().step
        self._run.emit("checkpoint_loaded", path=origin.path, step=step, id=origin.name)
        return {"ckpt_loaded": True, "run_id": run_id, "step": step}

    def keep(self, *, pinned: bool = True) -> Pending:
        """The run that trains, as it stands: on the disk before it is left."""
        kept = self._run.save("auto", pinned=pinned, wait_s=WAIT_S)
        if not kept.wait(WAIT_S):
            detail = f"{self._run.run_id} is still being written; nothing has changed."
            raise CommandError(ErrorCode.BUSY, detail, retry_after_s=5.0)
        if kept.error is not None:
            raise kept.error
        return kept

    def checkpoint_of(self, there: Here, asked: str | None) -> tuple[str, str | None]:
        """The file of a checkpoint, and its id where it is one of the run's.

        Args:
            asked: an id or a path; the newest of the run where a path is gone, or None is asked.

        Raises:
            CommandError: ``not_found``.
        """
        kept = run_folder.complete_checkpoints(there.folder)
        for manifest, path in kept:
            if asked in (manifest.id, path):
                return path, manifest.id
        if asked is not None and Path(asked).is_file():
            return asked, None
        newest = run_folder.goes_on_from(there.folder, there.record)
        if newest is not None and (asked is None or "/" in asked):
            return newest[1], newest[0].id
        names = [manifest.id for manifest, _ in reversed(kept)][:20]
        which = "no checkpoint" if asked is None else f"no checkpoint {asked[:120]!r}"
        detail = f"{there.run_id} has {which}; the newest that it has are in allowed."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="checkpoint", allowed=names)

    # Inside.

    def _other_data(
        self, ticket: Ticket, wishes: Wishes, origin: Origin | None
    ) -> DataChoice | None:
        """None: its parent's."""
        asked = ticket.payload
        now = self.choice
        if origin is not None:
            now = DataChoice.of_state(origin.state["otf"].get("data"))
        ids = self._chosen(ticket)
        if ids is not None or asked.weights is not None:
            weights = asked.weights
            tensor = torch.tensor(weights, dtype=torch.float64) if weights is not None else None
            # Weights alone are of the samples that its parent trains on.
            now = DataChoice(now.ids if ids is None else ids, tensor, now.batch_size)
        if wishes.batch_size is not None:
            return dataclasses.replace(now, batch_size=wishes.batch_size)
        return now if ids is not None or asked.weights is not None else None

    def _refuse(self, choice: DataChoice | None, wishes: Wishes) -> None:
        if choice is not None and self._data is None:
            detail = "Other data was asked for the fork; this run cannot change it."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        if choice is not None and self._data is not None:
            self._data.check(choice)
        for each in wishes.params:
            self._check_value(each)

    def _origin(self, parent: Here, asked: Any) -> Origin | None:
        """None: from where the run that trains stands now."""
        name = asked.checkpoint or asked.parent_ckpt_path
        if name is None and parent.run_id == self._run.run_id:
            return None
        origin = read_origin(*self.checkpoint_of(parent, name))
        self._delegate.check(origin.state)
        return origin

    def _become(self, there: Here, back: Pending, begin: Callable[[], None]) -> None:
        """The other run is the one that trains, or, where that fails, this one is as it was."""
        left = self.tree.find(self._run.run_id)
        budget, self.budget = self.budget, Budget()
        now = self._run.position()
        step, left.limits = now.step, _limits(now)
        self._tell_move(left.run_id, there.run_id, step)
        self._run.enter(there)
        try:
            begin()
            self._limit_again(there.limits)
        except Exception as error:  # border: the user's hooks of loading may raise anything
            self._take_back(there, left, back, error)
            self.budget = budget
            raise

    def _take_back(self, there: Here, left: Here, back: Pending, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        self._run.emit("log", level="error", phase="info", text=f"not entered:\n{text}"[-8000:])
        self._tell_move(there.run_id, left.run_id, self._run.position().step)
        self._run.enter(left)
        try:
            self._run.put(read_origin(back.path, back.id).state, back.id)
            self._limit_again(left.limits)
        except Exception as again:  # border: see above
            self._run.tear(again)
            raise
        if there.record.made and not run_folder.complete_checkpoints(there.folder):
            self.tree.drop(there)

    def _limit_again(self, limits: dict[str, int]) -> None:
        """How long a run is to train is its own, whatever the others were given."""
        now = _limits(self._run.position())
        other = {name: value for name, value in limits.items() if now[name] != value}
        if other:
            self._delegate.extend(other)

    def _tell_move(self, left: str, to: str, step: int) -> None:
        self._run.emit("runTransition", **{"from": left, "to": to, "prev_step": step})
        self._run.emit("finalizeRun", next_run=to, last_step=step)

    def _begin(self, ticket: Ticket, child: Here, plan: Plan, left: str) -> None:
        self._announce(child)
        if plan.origin is not None:
            self._run.put(plan.origin.state, None)
            plan.arrived()
        self._run.made_run(ticket, left)
        told = [*plan.wishes.told]
        if plan.choice is not None and self._data is not None:
            told += self._data.choose(plan.choice)
            self._data.begin_pass()
        for each in plan.wishes.params:
            self._run.set_value(each, ticket)
        for text in told:
            self._run.emit("log", level="info", phase="info", text=f"{child.run_id}: {text}")
        self._limit(plan.wishes)
        now = self._run.position()
        if plan.choice is not None and self._data is not None and now.max_epochs is not None:
            epochs, steps = plan.wishes.epochs or now.max_epochs - now.epochs_done, now.max_steps
            if plan.wishes.steps is not None:
                steps = now.global_step + plan.wishes.steps
            self._data.refuse_too_long(epochs, None if steps is None else steps - now.global_step)
        self._run.changed()
        self.keep()  # what was answered is there, also for whoever goes on after a kill

    def _announce(self, child: Here) -> None:
        record = child.record
        meta: Mapping[str, Any] = {
            "display_name": record.run_id,
            "kind": record.kind,
            "run_dir": str(child.folder),
            "run_gen": record.run_gen,
            **record.made,
        }
        names = {"project": record.project, "run_name": record.run_id}
        self._run.emit("newRun", parents=record.parents, **names, meta=meta)
        of = " and ".join(record.parents)
        text = f"{record.kind} of {of} at step {record.made['at_step']:,}"
        self._run.emit("log", level="info", phase="info", text=text)

    def _limit(self, wishes: Wishes) -> None:
        """Its budget; limits of the fit that are in the way are raised."""
        now = self._run.position()
        over = _at_its_end(now)
        epochs = wishes.epochs
        if over and wishes.steps is None and epochs is None:
            epochs = now.epochs_done or 1  # as long again
        budget = Budget(patience=wishes.patience)
        if wishes.steps is not None:
            budget.until_step = now.step + wishes.steps
        elif epochs is not None:
            budget.until_epoch = now.epochs_done + epochs
        raised: dict[str, int] = {}
        if now.max_steps is not None and wishes.steps is not None:
            # Of several optimizers each is counted.
            each = math.ceil(now.global_step / now.step) if now.step else 1
            needed = now.global_step + wishes.steps * each
            if needed > now.max_steps:
                raised["max_steps"] = needed + each  # see ``_epochs_for``
        if now.max_epochs is not None:
            if wishes.steps is not None:
                epochs = self._epochs_for(wishes.steps, now, now.max_epochs)
            if epochs is not None or over:
                raised["max_epochs"] = max(now.max_epochs, now.epochs_done + (epochs or 1))
        grown = {name: n for name, n in raised.items() if n != getattr(now, name)}
        if grown:
            self._delegate.extend(grown)
        self.budget = budget

    def _epochs_for(self, steps: int, now: Position, max_epochs: int) -> int | None:
        """In how many epochs they are done; where that is too many, one step more has room, so
        that it is the fork that is held, and not the end of the fit.
        """
        if self._data is None:
            return None
        found = self._data.epochs_of(steps, now.batch_idx)
        if found is not None and now.epochs_done + found > max_epochs:
            return self._data.epochs_of(steps + 1, now.batch_idx)
        return found


def _told(asked: Any) -> Any:
    """By which rule its samples were chosen; which they are, its checkpoints say."""
    if asked.selection is not None:
        return _without_ids(asked.selection)
    if asked.region is not None:
        return {"kind": "region", **msgspec.structs.asdict(asked.region)}
    return None


def _without_ids(selection: Any) -> Any:
    if isinstance(selection, list):
        return [_without_ids(each) for each in selection]
    if isinstance(selection, Mapping):
        return {name: _without_ids(v) for name, v in selection.items() if name != "ids"}
    return selection


def _limits(now: Position) -> dict[str, int]:
    found = {"max_steps": now.max_steps, "max_epochs": now.max_epochs}
    return {name: -1 if value is None else value for name, value in found.items()}


def _at_its_end(now: Position) -> bool:
    steps = now.max_steps is not None and now.global_step >= now.max_steps
    return steps or (now.max_epochs is not None and now.epochs_done >= now.max_epochs)


def read_origin(path: str, own: str | None) -> Origin:
    """The whole state of a checkpoint. Raises CommandError."""
    state, manifest = read_checkpoint(Path(path), field="checkpoint")
    name = manifest.id if manifest is not None else Path(path).name
    return Origin(state, name, path, own)
