"""How many batches make a step, changed while it trains.

A window of accumulation begins where the number of batches of the epoch that are done is a
multiple of its length, and there alone are the gradients cleared. A change anywhere else would
throw gradients away, or step with those of the step before: it is made where the old windows and
the new ones both begin, which is at the epoch's end at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from otf_core.steering.knobs import Knob, Value

PATH: Final = "trainer.accumulate_grad_batches"
MOST: Final = 10_000  # batches
BY_HAND: Final = "The module steps by itself (automatic_optimization = False)."


def accumulation_knob(
    read: Callable[[], Value],
    write: Callable[[Any], None],
    place: Callable[[], tuple[int, int | None]],
) -> Knob:
    """The knob for it.

    Args:
        place: batches of the epoch that are done, and batches of an epoch, where that is known.
    """

    def steps_until(value: int) -> int:
        now: Any = read()
        return steps_to_window(*place(), now, value)

    return Knob(
        read, write, 1, MOST, kind="int", unit="batches", in_state=True, steps_until=steps_until
    )


def steps_to_window(done: int, batches: int | None, now: int, then: int) -> int:
    """Steps until windows of both lengths begin.

    Args:
        done: batches of the epoch.
        batches: of an epoch; None where nobody can tell.
        now, then: batches of a step.
    """
    over = batches is not None and done >= batches
    if over or now == then or done % math.lcm(now, then) == 0:
        return 0
    both = math.lcm(now, then)
    begins = (done // both + 1) * both
    if batches is None or begins < batches:
        return begins // now - done // now
    return -(-batches // now) - done // now  # the last batch of an epoch has a step whatever
