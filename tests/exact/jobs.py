"""Jobs side by side, each in a fork of this process, in the order in which they are done."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.exact import forked, native, runs
from tests.exact.table import CONFIGS
from tests.exact.tape import Tape

AT_ONCE: Final = 2
JOB_S: Final = 900.0


class Job(NamedTuple):
    """A name that files may have, and what to do; the result is pickled."""

    name: str
    work: Callable[[], Any]


def warm_up(folder: Path) -> None:
    """What every fork would otherwise load and build for itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    tape = Tape(folder / "warm-up.jsonl")
    runs.fit(CONFIGS["shuffle"], folder, tape)
    native.fit(CONFIGS["runner_shuffle"], folder, tape)
    tape.close()


def side_by_side(jobs: Iterable[Job], folder: Path) -> Iterator[tuple[str, forked.Outcome]]:
    """Each job's name and how it ended."""
    waiting = list(jobs)[::-1]
    running: dict[int, tuple[str, forked.Fork]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            job = waiting.pop()
            fork = forked.Fork(job.work, folder, job.name)
            running[fork.fileno()] = job.name, fork
        over, _, _ = select.select(list(running), [], [], JOB_S)
        for fd in over or list(running):
            name, fork = running.pop(fd)
            yield name, fork.wait(JOB_S if over else 0.0)
