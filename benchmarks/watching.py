"""What rules that watch a run cost its step, on the training thread; they find nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.figures import Row, middle, percentile
from otf_core.control.router import CommandRouter
from otf_core.state.store import CheckpointStore
from otf_core.steering.guard_rules import guard_rules
from otf_core.steering.guards import Guards

IDLE_US: Final = 50.0  # all that a step may cost with nobody there
LOGGED: Final = 12  # values beside the losses, as a module logs them
RULES: Final[Mapping[str, str]] = {
    "nan": "nan:rollback",
    "all five": "nan:rollback;spike:rollback;plateau;overfit;limit,metric=grad_norm,above=5",
}


def guards(*, quick: bool, tmp: Path) -> list[Row]:
    """Each step told to the rules, by the training thread's CPU time; not told, for the noise."""
    steps = 2_000 if quick else 50_000
    store = CheckpointStore(tmp, keep=1, on_saved=lambda *_: None, on_removed=lambda *_: None)
    return [_row(name, rules, store, steps) for name, rules in RULES.items()]


class _Run:
    """As much of a session as rules that find nothing need."""

    run_id = "r"

    def watch(self, seen: Any) -> None:
        self.seen = seen


def _row(name: str, rules: str, store: CheckpointStore, steps: int) -> Row:
    run: Any = _Run()
    history: Any = None
    Guards(
        run, guard_rules(rules), router=CommandRouter(), store=store, history=history,
        branch=lambda: (0, None),
    )  # fmt: skip
    draw = random.Random(3)
    names = (*(f"metric_{n}" for n in range(LOGGED)), "train_loss", "val_loss")
    values = dict.fromkeys((*names, " loss", " grad_norm"), 1.0)
    spent: list[float] = []
    for step in range(steps):
        values["train_loss"] = 1.0 + 0.1 * draw.gauss(0.0, 1.0)
        values["val_loss"] = 1.0 - step / steps
        began = time.thread_time()
        run.seen(step, values, names, names)
        spent.append(1e6 * (time.thread_time() - began))
    clock = _empty(steps)
    return Row(
        bench="guards",
        what=f"added per step by rules that watch, {name}",
        unit="us",
        ours=max(middle(spent), float(np.mean(spent))),
        limit=IDLE_US,
        spread={
            "CPU median": middle(spent), "p5": percentile(spent, 5), "p95": percentile(spent, 95),
        },
        rivals={"nothing": middle(clock)},
    )  # fmt: skip


def _empty(steps: int) -> Sequence[float]:
    spent: list[float] = []
    for _ in range(steps):
        began = time.thread_time()
        spent.append(1e6 * (time.thread_time() - began))
    return spent
