"""Lightning's ``WeightAveraging`` (``EMAWeightAveraging`` is one), resting and at work again;
training thread, at the gate.

Rule 1: the average is the callback's own. While it rests it is not updated, validations are of the
weights that train, and so is the end; at work again it goes on from where it was.
Rule 2: nothing is put into the instance: its class is another one while it rests, of the same name,
so that its state is found again.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging

from otf_core.steering.averages import PATH, no_average
from otf_core.steering.knobs import Knob


class Averages:
    """Of one fit."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._own: dict[int, tuple[WeightAveraging, type]] = {}  # of those that rest, by id

    def knobs(self) -> dict[str, Knob]:
        """By path."""
        callbacks: list[Any] = self._trainer.callbacks
        if not any(isinstance(each, WeightAveraging) for each in callbacks):
            return no_average(
                "Trainer(callbacks=[EMAWeightAveraging()]), which can rest from the first step on"
            )
        return {PATH: Knob(self._at_work, self._set, kind="bool", owner="model", close=self._begin)}

    def _at_work(self) -> bool:
        return not self._own

    def _set(self, at_work: bool) -> None:  # noqa: FBT001 -- as a knob is written
        self._begin() if at_work else self._rest()

    def _rest(self) -> None:
        callbacks: list[Any] = self._trainer.callbacks
        for callback in callbacks:
            if isinstance(callback, WeightAveraging) and id(callback) not in self._own:
                own = type(callback)
                self._own[id(callback)] = callback, own
                callback.__class__ = _resting(own)

    def _begin(self) -> None:
        for callback, own in self._own.values():
            callback.__class__ = own
        self._own.clear()


def _resting(own: Any) -> type:
    """A subclass that passes for its base, and does nothing with the average."""

    def not_now(self: Any, *_: Any, **__: Any) -> bool:  # noqa: ARG001 -- becomes a method
        return False

    def nothing(self: Any, *_: Any, **__: Any) -> None:  # noqa: ARG001 -- becomes a method
        return None

    hooks = ("on_validation_epoch_start", "on_validation_epoch_end", "on_train_end")
    body = {
        **dict.fromkeys(hooks, nothing),
        "should_update": not_now,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    made: type = type(own)(own.__name__, (own,), body)
    return made
