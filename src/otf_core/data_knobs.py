"""The values of the training data, as knobs that can be set; training thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from otf_core.runs.data_values import MAX_FACTOR, WHENS, DataValues
from otf_core.steering.knobs import Effect, Knob, refused_knob

BATCH_SIZE: Final = "data.batch_size"
WEIGHTS: Final = "data.sampler.weights"
WHEN: Final = "data.takes_effect"


ITS_OWN: Final = "Which data a loop reads, and in which batches, is the loop's own."


class DataKnobs:
    """Of one run.

    Attributes:
        values: None where the loop's data is its own.
    """

    def __init__(self) -> None:
        self.values: DataValues | None = None
        self._made: dict[str, Knob] = {BATCH_SIZE: refused_knob(ITS_OWN)}
        self._of: Any = None

    def knobs(self) -> dict[str, Knob]:
        """By path. Made once for a loader: they are asked for at each step."""
        values = self.values
        if values is not None:
            of = (values.why_not(), values.classes(), values.when)
            if of != self._of:
                self._made, self._of = _made(values), of
        return self._made


def _made(values: DataValues) -> dict[str, Knob]:
    effect: Effect = "next batch" if values.when == "now" else "next epoch"
    found: dict[str, Knob] = {}
    if (why := values.why_not()) is not None:
        found[BATCH_SIZE] = refused_knob(why)
    else:
        found[BATCH_SIZE] = Knob(
            values.batch_size, values.set_batch_size, low=1, kind="int", unit="samples",
            owner="data", takes_effect=effect, in_use=values.batch_size_in_use,
            check=functools.partial(_checked, values.check_batch_size),
        )  # fmt: skip
    for label in values.classes():
        found[f"{WEIGHTS}.{label}"] = Knob(
            functools.partial(values.factor, label),
            functools.partial(values.set_factor, label),
            low=0.0,
            high=MAX_FACTOR,
            unit="times",
            owner="data",
            takes_effect=effect,
            in_use=functools.partial(values.factor_in_use, label),
            check=functools.partial(_checked, functools.partial(values.check_factor, label)),
        )
    if why is None or values.classes():
        found[WHEN] = Knob(
            lambda: values.when, values.set_when, kind="enum", choices=WHENS, owner="data",
            takes_effect="next batch",
        )  # fmt: skip
    return found


def _checked(check: Callable[[Any], None], value: Any) -> Any:
    check(value)
    return value
