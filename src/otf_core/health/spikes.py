"""Losses that stand out of those before them.

A loss is a spike where its robust z-score over the losses before it is above ``Z``:
0.6745 (x - median) / MAD, MAD being the median distance from the median (Iglewicz and Hoaglin,
How to Detect and Handle Outliers, 1993, who take 3.5 for samples of one distribution; a training's
losses move, hence more). Of a loss that hardly moves MAD is taken to be a hundredth of the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

WINDOW: Final = 50  # losses before it
LEAST: Final = 10  # fewer say nothing
Z: Final = 6.0
FLOOR: Final = 0.01
LOOKED_AT: Final = 2000  # the newest
RULE: Final = f"robust z-score (median, MAD) over the {WINDOW} losses before it, above {Z:g}"


def spikes(history: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Those among the newest, oldest first: step, loss, z; z is None where the loss is no number.

    Args:
        history: step and loss, oldest first; what is not finite is no part of a window.
    """
    found: list[dict[str, Any]] = []
    window: list[float] = []
    for step, loss in history[-LOOKED_AT:]:
        if not np.isfinite(loss):
            found.append({"step": step, "loss": None, "z": None})
            continue
        if len(window) >= LEAST:
            z = _z(loss, np.asarray(window[-WINDOW:]))
            if z > Z:
                found.append({"step": step, "loss": float(loss), "z": z})
        window.append(float(loss))
    return found


def _z(loss: float, before: Any) -> float:
    median = float(np.median(before))
    mad = float(np.median(np.abs(before - median)))
    scale = max(mad, FLOOR * abs(median), float(np.finfo(np.float64).tiny))
    with np.errstate(over="ignore"):
        return float(np.float64(0.6745) * (loss - median) / scale)
