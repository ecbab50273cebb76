"""A recipe on another rank than 0: the same steps at the same places, found by counting.

Rule: nobody is told; what rank 0 does by its ledger, this rank does by what it has noted, and a
step that one refuses all refuse, since all have the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from otf_core.control.delegate import ControlDelegate
from otf_core.errors import CommandError
from otf_core.protocol import SetParam
from otf_core.state.parts import Modules
from otf_core.steering.params import AppliedParam, Steering
from otf_core.steering.plain import of_plain, to_plain
from otf_core.steering.recipe import REPLAYED, Recipe, Replay, Step, print_of


class RecipeOfRank:
    """Training thread."""

    def __init__(
        self,
        recipe: Recipe,
        delegate: ControlDelegate,
        steering: Steering,
        modules: Callable[[], Modules] | None,
    ) -> None:
        self._delegate, self._steering, self._modules = delegate, steering, modules
        self._replay = Replay(recipe, self._carry_out)
        self._backs: dict[str, list[dict[str, Any]]] = {}  # as ``Change.back``, by request
        self.skip = self._replay.skip

    def begins(self) -> None:
        """As on rank 0. RecipeError."""
        model = None if self._modules is None else print_of(self._modules())
        self._replay.begins(self._delegate.position(), self._steering, model, REPLAYED)

    def at(self) -> None:
        """At the safe point. RecipeError."""
        self._replay.at(self._delegate.position())

    def load(self, state: Mapping[str, Any] | None) -> None:
        """The ledger of a state that is put in place."""
        self._backs, done = {}, set()
        for row in state["rows"] if state is not None else ():
            done |= {row["request_id"], row["skips"]}
            if row["back"] is not None and row["undone_by"] is None:
                self._backs.setdefault(row["request_id"], []).append(row["back"])
        self._replay.load(done)

    def _carry_out(self, step: Step) -> None:
        try:
            self._do(step)
        except CommandError as error:
            raise step.refused(error.detail) from error

    def _do(self, step: Step) -> None:
        asked = step.payload
        match step.cmd:
            case "set_param":
                self._backs[step.id] = [self._set(asked)]
            case "set_params":
                self._backs[step.id] = [self._set(change) for change in asked.changes]
            case "extend":
                self._backs[step.id] = [self._extend(asked)]
            case "undo":
                for back in reversed(self._backs.pop(asked.request_id, [])):
                    self._take_back(back)

    def _set(self, asked: SetParam) -> dict[str, Any]:
        applied: AppliedParam = self._steering.apply(asked, self._delegate.position().step)
        return {"kind": "param", **to_plain(self._steering, applied)}

    def _extend(self, asked: Any) -> dict[str, Any]:
        now = self._delegate.position()
        name = "max_steps" if asked.max_steps is not None else "max_epochs"
        self._delegate.extend({name: getattr(asked, name)})
        return {"kind": "limit", "name": name, "value": getattr(now, name)}

    def _take_back(self, back: Mapping[str, Any]) -> None:
        if back["kind"] == "limit":
            limit = back["value"]
            self._delegate.extend({back["name"]: -1 if limit is None else limit})
        else:
            applied = of_plain(self._steering, back)
            self._steering.undo(applied, self._delegate.position().step)
