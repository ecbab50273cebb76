"""A recipe: what was done to a run, as a file that does the same to a run that begins.

Rule 1: a step is carried out between the same two batches as in the run that it is of: with as
many steps done and, where the file says so, as many batches of the epoch.
Rule 2: what cannot be had again is refused by name: at the export, when the file is read, or
before the first batch. A step that is refused later ends the run, which is no replay from there on.
Rule 3: which steps are done says the ledger, so a run that goes on or is put back knows it.

What is replayed is in ``REPLAYED``. A rollback to a checkpoint of the run's own, exact, leaves a
ledger in which it is as if nothing of it had been; so it is no step. A merge, a fork and a state
from elsewhere bring what no recipe has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from torch import nn

from otf_core import protocol
from otf_core.control.delegate import Position
from otf_core.errors import CommandError, ErrorCode, OtfError
from otf_core.steering.changes import Change, Changes
from otf_core.steering.params import Steering

FORMAT: Final = 1
REPLAYED: Final = ("set_param", "set_params", "extend", "undo")
MAX_BYTES: Final = 16 * 1024 * 1024


class RecipeError(OtfError):
    """A recipe that cannot be replayed; says which step, and why."""


class Step(NamedTuple):
    """One step of a recipe.

    Attributes:
        number: 1 is the first.
        id: its request's, of its number and of all that it says, so that it is not taken for the
            step of another recipe.
        at_step: steps done when it is carried out.
        place: epoch and batches of it that are done then, at least; None: at once.
    """

    number: int
    at_step: int
    cmd: str
    payload: Any
    place: tuple[int, int] | None
    id: str = ""

    def refused(self, why: str) -> RecipeError:
        """The error that names it."""
        what = getattr(self.payload, "path", None)
        named = f"{self.cmd} {what}" if what else self.cmd
        return RecipeError(
            f"step {self.number} of the recipe ({named} at step {self.at_step}) cannot be "
            f"replayed: {why}"
        )


class Recipe(NamedTuple):
    """A file that was read.

    Attributes:
        of: the run that it is of.
        model: as ``print_of`` has it; None where that run could not say.
    """

    path: str
    of: str
    model: dict[str, Any] | None
    steps: tuple[Step, ...]


def read_recipe(path: str | Path) -> Recipe:
    """Any thread.

    Raises:
        RecipeError: no such file, no recipe, or a step in it that no recipe can have.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        msg = f"the recipe {name} cannot be read: {error.strerror}"
        raise RecipeError(msg) from error
    if len(raw) > MAX_BYTES:
        msg = f"the recipe {name} is larger than {MAX_BYTES:,} bytes"
        raise RecipeError(msg)
    try:
        found = msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{name} is no recipe: {error}"
        raise RecipeError(msg) from error
    if found.otf_recipe != FORMAT:
        msg = f"{name} is a recipe of format {found.otf_recipe}; allowed: {FORMAT}"
        raise RecipeError(msg)
    return Recipe(name, found.of, found.model, tuple(_steps(found.steps)))


class Replay:
    """The steps that are still to come; training thread.

    Args:
        carry_out: does one, where the run stands; raises RecipeError.
    """

    def __init__(self, recipe: Recipe, carry_out: Callable[[Step], None]) -> None:
        self.recipe, self._carry_out = recipe, carry_out
        self._left = [*recipe.steps]
        self._skipped: set[str] = set()

    @property
    def left(self) -> int:
        """How many."""
        return len(self._left)

    def load(self, done: Collection[str | None]) -> None:
        """Another state is in place, in which these requests are done."""
        gone = self._skipped.union(each for each in done if each is not None)
        self._left = [step for step in self.recipe.steps if step.id not in gone]

    def skip(self, request_id: str) -> None:
        """It was taken back as if it had never been, and is not to come again."""
        self._skipped.add(request_id)
        self._left = [step for step in self._left if step.id != request_id]

    def begins(
        self,
        position: Position,
        steering: Steering,
        model: Mapping[str, Any] | None,
        commands: Collection[str],
    ) -> None:
        """Refuse what cannot be replayed in this run; before its first batch.

        Args:
            model: as ``print_of`` has it; None where it is not known.
            commands: those that this run can carry out.

        Raises:
            RecipeError: it names the step.
        """
        _refuse_other_model(self.recipe, model)
        for step in self._left:
            if step.at_step < position.step:
                msg = f"{position.step} steps are done already"
                raise step.refused(msg)
            if step.cmd not in commands:
                msg = "this run cannot carry it out"
                raise step.refused(msg)
            for change in _changes_of(step):
                _refuse_strange(step, change, steering, position.step)

    def at(self, position: Position) -> None:
        """Carry out what is due here.

        Raises:
            RecipeError: it could not be, or its place was missed.
        """
        while self._left:
            step = self._left[0]
            if position.step < step.at_step:
                return
            if position.step > step.at_step:
                msg = f"the run stands at step {position.step}, and was not there"
                raise step.refused(msg)
            if step.place is not None and (position.epoch, position.batch_idx) < step.place:
                return
            self._carry_out(step)
            self._left.pop(0)


def print_of(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """By which a model is known again: names and shapes of its parameters."""
    rows = [
        f"{name}.{parameter} {tuple(tensor.shape)}"
        for name, module in sorted(modules.items())
        for parameter, tensor in module.named_parameters()
    ]
    count = sum(t.numel() for module in modules.values() for t in module.parameters())
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return {"parameters": count, "tensors": len(rows), "sha256": digest}


def recipe_of(
    changes: Changes, *, run_id: str, model: Mapping[str, Any] | None, apart: Callable[[str], bool]
) -> dict[str, Any]:
    """The file's content, of all that was done to a run.

    Args:
        apart: whether a path is no value of the training, so that it is left out.

    Raises:
        CommandError: ``not_allowed_now``; something of it cannot be had again.
    """
    if changes.lost is not None:
        msg = f"the ledger of {run_id} is not whole: {changes.lost}"
        raise _not_again(msg)
    steps: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}  # first row of those made as one -> number of the step
    undone: set[int] = set()
    groups = {row.id: row.group for row in changes}
    for row in changes:
        if row.unlike is not None:
            where = f"change {row.id}, at step {row.step}"
            msg = f"{row.unlike} ({where}) brought what no recipe has"
            raise _not_again(msg)
        payload: dict[str, Any] | None = None
        if row.asked is not None and row.cmd in REPLAYED:
            payload = _without(row.asked, apart)
            if payload is not None:
                numbers[row.group] = len(steps) + 1
        elif row.undoes is not None:
            group = groups.get(row.undoes, 0)
            if group in numbers and group not in undone:
                undone.add(group)
                payload = {"request_id": f"recipe-{numbers[group]}"}
        if payload is not None:
            steps.append(_step_of(row, payload))
    return {"otf_recipe": FORMAT, "of": run_id, "model": model, "steps": steps}


# Inside.


class _FileStep(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    at_step: int
    cmd: str
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    epoch: int | None = None
    batch_idx: int | None = None


class _File(msgspec.Struct, kw_only=True):
    otf_recipe: int
    of: str
    steps: list[_FileStep]
    model: dict[str, Any] | None = None


def _steps(found: Iterable[_FileStep]) -> Iterator[Step]:
    known: dict[str | None, Step] = {}  # by the name that an undo has for it
    least = 0
    for number, each in enumerate(found, 1):
        place = None
        if each.epoch is not None and each.batch_idx is not None:
            place = (each.epoch, each.batch_idx)
        step = Step(number, each.at_step, each.cmd, None, place)
        if each.cmd not in REPLAYED:
            msg = f"allowed are {', '.join(REPLAYED)}"
            raise step.refused(msg)
        if each.at_step < least:
            msg = f"it stands behind one of step {least}; allowed: in their order"
            raise step.refused(msg)
        step = step._replace(payload=_payload(step, each.payload))
        if step.cmd == "undo":
            asked = step.payload.request_id
            if asked not in known or known[asked].cmd == "undo":
                msg = f"it takes back {asked!r}; allowed: recipe-N of a step before it"
                raise step.refused(msg)
            payload = msgspec.structs.replace(step.payload, request_id=known[asked].id)
            step = step._replace(payload=payload)
        said = msgspec.json.encode([each.at_step, each.cmd, step.payload])
        name = f"recipe-{number}"
        step = step._replace(id=f"{name}-{hashlib.sha256(said).hexdigest()[:8]}")
        known[name], least = step, each.at_step
        yield step


def _payload(step: Step, given: dict[str, Any]) -> Any:
    spec = protocol.COMMANDS[step.cmd]
    try:
        payload = msgspec.convert(given, spec.payload)
    except msgspec.ValidationError as error:
        msg = f"its payload does not fit: {error}"
        raise step.refused(msg) from error
    fields = {field.name for field in msgspec.structs.fields(spec.payload)}
    if strange := given.keys() - fields | ({"at_step", "restore", "change"} & given.keys()):
        msg = f"its payload has {', '.join(sorted(strange))}"
        raise step.refused(msg)
    return payload


def _changes_of(step: Step) -> list[protocol.SetParam]:
    if step.cmd == "set_params":
        return list(step.payload.changes)
    return [step.payload] if step.cmd == "set_param" else []


def _refuse_strange(step: Step, change: protocol.SetParam, steering: Steering, done: int) -> None:
    """What can be told of a change before it is due: the path, and bounds that always hold."""
    if steering.is_apart(change.path):
        msg = f"{change.path} is no value of the training"
        raise step.refused(msg)
    try:
        steering.check(msgspec.structs.replace(change, at_step=step.at_step), done)
    except CommandError as error:
        # A factor and a mode depend on what stands there then, and so does a release.
        later = error.code == ErrorCode.NOT_ALLOWED_NOW or error.field in ("mode", "mul")
        if not later:
            raise step.refused(error.detail) from error


def _refuse_other_model(recipe: Recipe, model: Mapping[str, Any] | None) -> None:
    if recipe.model is None or model is None or recipe.model == model:
        return
    said = (
        f"{each.get('parameters'):,} parameters in {each.get('tensors'):,} tensors"
        for each in (recipe.model, model)
    )
    theirs, ours = said
    msg = (
        f"the recipe {recipe.path} is of another model: that of {recipe.of} has {theirs}, this one "
        f"{ours}, and their names or shapes differ"
    )
    raise RecipeError(msg)


def _without(asked: Mapping[str, Any], apart: Callable[[str], bool]) -> dict[str, Any] | None:
    """A payload without its step and what is no value of the training; None: nothing is left."""
    found = {name: value for name, value in asked.items() if name != "at_step"}
    if "changes" in found:
        found["changes"] = [each for each in found["changes"] if not apart(each["path"])]
        return found if found["changes"] else None
    return None if apart(found.get("path", "")) else found


def _step_of(row: Change, payload: dict[str, Any]) -> dict[str, Any]:
    place = {"epoch": row.epoch, "batch_idx": row.batch_idx}
    return {"at_step": row.step, **place, "cmd": row.cmd, "payload": payload}


def _not_again(why: str) -> CommandError:
    return CommandError(ErrorCode.NOT_ALLOWED_NOW, f"No recipe can be made: {why}.")
