"""The whole proof that the state is exact: ``python -m tests.exact``, or ``make test-exact``.

Prints a table of configuration and way, one of the parts of the state, and what is wrong with
them; fails unless nothing is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from tests.exact import forked, parts, ways
from tests.exact.configs import Config
from tests.exact.jobs import Job, side_by_side, warm_up
from tests.exact.table import CONFIGS
from tests.exact.verdict import Report, Verdict

SLICE = ("fork", "kill twice")  # in place, and in new processes


def main() -> int:
    """Returns the exit code."""
    options = _options()
    torch.set_num_threads(1)
    forked.adopt_orphans()
    began_s = time.monotonic()
    report = Report(whole=not (options.only or options.slice or options.parts))
    with tempfile.TemporaryDirectory(prefix="otf-exact-") as tmp:
        folder = Path(options.keep or tmp)
        warm_up(folder)
        for name, outcome in side_by_side(_jobs(options, folder), folder):
            found = outcome.result or {"process": Verdict("FAILED", outcome.told())}
            line = report.add(name, found)
            sys.stdout.write((json.dumps([name, _plain(found)]) if options.json else line) + "\n")
            sys.stdout.flush()
    if not options.json:
        sys.stdout.write(report.end(time.monotonic() - began_s, options.seed) + "\n")
    return 1 if report.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.exact", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="CONFIGURATION", default=[])
    parser.add_argument("--ways", nargs="*", metavar="WAY", choices=ways.WAYS)
    parser.add_argument("--parts", action="store_true", help="only the table of the parts")
    parser.add_argument("--slice", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--kills", type=int, default=0, help="random SIGKILLs more, over all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line for each configuration")
    parser.add_argument("--keep", metavar="FOLDER", help="where the files of the runs stay")
    return parser.parse_args()


def _jobs(options: argparse.Namespace, folder: Path) -> Iterator[Job]:
    wanted = [CONFIGS[name] for name in options.only or CONFIGS if not options.parts]
    if options.slice:
        wanted = [config for config in wanted if config.slice]
    chosen = options.ways or (SLICE if options.slice else tuple(ways.WAYS))
    promised = [config for config in wanted if config.inexact is None]
    for config in wanted:
        share = 0
        if config in promised:  # those at the end of the list get the rest
            left = len(promised) - promised.index(config)
            share = options.kills // left
            options.kills -= share
        work = _with_config(config, folder / config.name, chosen, share, options.seed)
        yield Job(config.name, work)
    if not options.slice:
        yield from _part_jobs(parts.wanted(only=options.only), folder)


def _with_config(
    config: Config, folder: Path, chosen: Iterable[str], kills: int, seed: int
) -> Callable[[], dict[str, Verdict]]:
    def work() -> dict[str, Verdict]:
        forked.adopt_orphans()
        return dict(ways.all_of(config, folder, chosen, kills, seed))

    return work


def _part_jobs(wanted: dict[str, dict[str, int]], folder: Path) -> Iterator[Job]:
    for config, switches in wanted.items():

        def work(config: str = config, switches: dict[str, int] = switches) -> dict[str, Verdict]:
            forked.adopt_orphans()
            return dict(parts.judged(config, switches, folder / f"parts-{config}"))

        yield Job(f"parts of {config}", work)


def _plain(found: dict[str, Verdict]) -> dict[str, list[str]]:
    return {way: [v.how, v.why] for way, v in found.items()}


if __name__ == "__main__":
    sys.exit(main())
