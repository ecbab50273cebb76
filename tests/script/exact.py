"""Scripts that are killed and go on: ``python -m tests.script.exact``, or ``make test-exact``.

Prints a line for each shape and each part of the state that is left out; fails unless all is as
it would have been without the kill, and unless the loss of every part is noticed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import torch

from otf_core.script.reentry import KINDS
from tests.exact import forked
from tests.exact.jobs import Job, side_by_side
from tests.script import kill, refusals

# Shape -> the steps of `make test`. The whole kills at every step.
SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "plain": (8,),
    "amp_scaler": (5,),
    "accumulation": (5,),
    "gan": (4,),
    "lbfgs": (5,),
    "no_loader": (7,),
    "by_hand": (5,),
    "two_loaders": (5,),
    "compiled": (),
    "nested": (5,),
    "sam": (),
    "workers": (3,),
    "tqdm_trainer": (7,),
    "while_next": (5,),
    "everything": (5,),
    "library_generators": (5,),
    "prefetched": (3, 5),
}
# One holds what cannot go back: it is asked forwards only. The other stands at another place then.
NOT_BACK: Final = frozenset({"everything", "library_generators"})
# Of KINDS, those whose loss changes nothing: what they know is checked, or is put in by others.
ONLY_CHECKED: Final = frozenset(
    {"text", "loader", "own batches", "method", "partial", "inside", "state"}
)
# The two moments at which an iteration draws: with workers it is made, else it is first asked.
SEEDS: Final = "rng_pool"
PARTS: Final = (
    *(kind.name for kind in KINDS if kind.name not in ONLY_CHECKED),
    "loops",
    "loaders",
    "rng",
    "rng_start",
)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.script.exact", description=__doc__)
    parser.add_argument("--slice", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    parser.add_argument("--only", nargs="*", metavar="SHAPE", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    forked.adopt_orphans()
    kill.warm_up()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="otf-scripts-") as tmp:
        for name, outcome in side_by_side(_jobs(options, Path(tmp)), Path(tmp)):
            found = outcome.result or {"process": outcome.told()}
            wrong = {way: why for way, why in found.items() if why is not None}
            failures += len(wrong)
            line = json.dumps([name, found]) if options.json else f"{name:24} {wrong or 'exact'}"
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return 1 if failures else 0


def _jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    for shape, steps in SHAPES.items():
        if shape in (options.only or SHAPES) and (steps or not options.slice):
            yield Job(shape, _killed(shape, folder, steps if options.slice else None))
    if not options.only or "parts" in options.only:
        for n, parts in enumerate(in_two(PARTS)):
            yield Job(f"parts {n}", _without("everything", 5, parts, folder / f"parts {n}"))
        yield Job("seeds", _without("workers", 1, [SEEDS], folder / "seeds"))
    if not options.only or "refusals" in options.only:
        yield Job("refusals", lambda: dict(refusals.faults(folder / "refusals")))


def in_two(parts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """For two jobs side by side."""
    return parts[::2], parts[1::2]


def _killed(
    shape: str, folder: Path, steps: tuple[int, ...] | None
) -> Callable[[], dict[str, str | None]]:
    def work() -> dict[str, str | None]:
        forked.adopt_orphans()
        script = kill.SHAPES / f"{shape}.py"
        plain = kill.plainly(script, folder / shape)
        attached = kill.with_otf(script, folder / shape, "attached")
        found: dict[str, str | None] = {}
        if (attached.out, attached.digest) != (plain.out, plain.digest):
            found["attached"] = f"another run: {attached.said}"
        if shape not in NOT_BACK:
            found["taken back"] = kill.taken_back(script, folder / shape, plain, attached.steps)
        for step in steps or range(1, attached.steps + 1):
            killed, on = kill.killed_and_gone_on(script, folder / shape, step)
            found[f"killed at {step}"] = kill.fault(plain, killed, on)
        return found

    return work


def _without(
    shape: str, step: int, parts: Iterable[str], folder: Path
) -> Callable[[], dict[str, str | None]]:
    """That the loss of each part is noticed; a resume that raises has noticed it as well."""

    def work() -> dict[str, str | None]:
        forked.adopt_orphans()
        script = kill.SHAPES / f"{shape}.py"
        plain = kill.plainly(script, folder)
        killed = kill.with_otf(script, folder, "killed", kill_at=step)
        found: dict[str, str | None] = {}
        for part in ("nothing", *parts):
            on = kill.with_otf(script, folder, f"{part}", origin=killed.saved, leave=[part])
            noticed = kill.fault(plain, killed, on)
            found[f"without {part}"] = None if noticed else "its loss is not noticed"
            if part == "nothing":
                found["without nothing"] = noticed
        return found

    return work


if __name__ == "__main__":
    sys.exit(main())
