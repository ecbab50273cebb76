"""The checks by the name of the command that asks for them; training thread.

A check is one row: how many batches it looks at, how long it may take, and what it is given of the
command's payload.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from otf_core.errors import CommandError, ErrorCode
from otf_core.health import activations, determinism, dist, numerics, throughput
from otf_core.health.budget import Budget
from otf_core.health.report import Health
from otf_core.health.subject import Subject


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        run: with a subject, a budget and those of ``options`` that the payload has.
        limit_s: below what a legacy host waits for the reply.
        options: keys of the payload, each with its least value.
    """

    run: Callable[..., Health]
    limit_s: float
    steps: int = 1
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)


CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "dist_health": Check(
            dist.check,
            20.0,
            options={"require_all_ranks": 0, "sample_weights": 0},
        ),
        "throughput_health": Check(throughput.check, 30.0, steps=2),
        "activations_health": Check(
            activations.check, 40.0, steps=2, options={"topk": 1, "eps": 0}
        ),
        "numerics_health": Check(numerics.check, 20.0, options={"sample_layers": 1}),
        "determinism_health": Check(determinism.check, 12.0),
    }
)


def run(
    name: str,
    subject: Subject,
    payload: Mapping[str, Any],
    *,
    cancelled: Callable[[], bool] = bool,
    clock: Callable[[], float] = time.monotonic,
    ranks: dist.Ranks | None = None,
) -> Health:
    """Carry out one of CHECKS.

    Args:
        payload: of the command; ``budget_steps`` are its batches, where it looks at several.
        cancelled: asked between two batches.
        ranks: the others, for the check that compares them.

    Raises:
        CommandError: ``bad_payload``, or what the check raises; CancelledError is one.
    """
    check = CHECKS[name]
    given = {
        key: _at_least(key, payload[key], least)
        for key, least in check.options.items()
        if key in payload
    }
    steps = payload.get("budget_steps", check.steps) if check.steps > 1 else check.steps
    budget = Budget(steps, check.limit_s, cancelled=cancelled, clock=clock)
    if check.run is dist.check:
        given["ranks"] = ranks
    return check.run(subject, budget, **given)


def _at_least(key: str, value: Any, least: float) -> Any:
    if value < least:
        detail = f"{key} was asked to be {value}; allowed: {least:g} or more."
        allowed = {"min": least}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=key, allowed=allowed)
    return value
