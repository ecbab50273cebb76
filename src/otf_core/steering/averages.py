"""Whether a moving average of the weights is kept and used: the path, and the refusal of a run that
has none."""

from __future__ import annotations

from typing import Final

from otf_core.steering.knobs import Knob, refused_knob

PATH: Final = "model.ema"
A_TRAINER: Final = "a fit of Lightning with EMAWeightAveraging among its callbacks"
ITS_OWN: Final = "one of the loop's own, which the loop keeps and uses"


def no_average(allowed: str) -> dict[str, Knob]:
    """Of a run that keeps none.

    Args:
        allowed: what would do, for a person.
    """
    return {PATH: refused_knob(f"this run keeps no average of its weights; allowed: {allowed}.")}
