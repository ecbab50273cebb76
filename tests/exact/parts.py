"""Every part of the state is needed: leaving it as it is in the new process makes a run inexact.

``PARTS_NOTICED`` says for each part, and for each single value in the smaller ones, which
configuration notices, and behind how many batches it has to be resumed for that. A run is resumed
there twice: with everything, which must be exact, and without the one part, which must not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

from otf_lightning import snapshot
from tests.exact import runs
from tests.exact.configs import CONFIGS
from tests.exact.runs import AtGate, Held
from tests.exact.verdict import Verdict
from tests.exact.ways import Bare, Story, WentWrong

SWITCHES: Final[tuple[tuple[str, str, int], ...]] = ()

# Asked for by ``check``, which a test of its own breaks; there is nothing to put back.
ONLY_CHECKED: Final = ("parameters",)


@contextlib.contextmanager
def without_part(name: str) -> Iterator[None]:
    """Nothing of this part is put back."""
    off = [
        dataclasses.replace(part, apply=lambda _giving, _saved: None) if part.name == name else part
        for part in snapshot.PARTS
    ]
    with mock.patch.object(snapshot, "PARTS", tuple(off)):
        yield


def without_value(state: dict[str, Any], fresh: dict[str, Any], path: str) -> None:
    """This value of the snapshot becomes that of the process which is to go on from it."""
    *way, last = path.split(".")
    one, other = state["otf"]["exact"], fresh["otf"]["exact"]
    for key in way:
        one, other = _below(one, key), _below(other, key)
    place = int(last) if isinstance(one, list | tuple) else last
    one[place] = copy.deepcopy(other[place])


def _below(container: Any, key: str) -> Any:
    place = int(key) if isinstance(container, list | tuple) else key
    if isinstance(container[place], tuple):
        container[place] = list(container[place])
    return container[place]


class Resumed:
    """One configuration, whose state is kept at every batch, to be resumed from any."""

    def __init__(self, config: str, folder: Path) -> None:
        self._config, self._folder = CONFIGS[config], folder
        self._states = folder / "states"
        self._n = 0
        story = Story(self._config, folder / "bare")
        ended = story.process(None)
        assert ended is not None
        self.bare = Bare(ended, story.told[0][0])
        self._states.mkdir()

        def keep(held: Held) -> None:
            (self._states / f"{held.batches}").write_bytes(held.save())

        first = Story(self._config, folder / "first")
        first.process(functools.partial(AtGate, keep))
        self._first = first.told[0]

    def at(self, batches: int, without: str | None) -> Verdict:
        """Go on behind so many batches; raising is not exact either."""
        self._n += 1
        story = Story(self._config, self._folder / f"{self._n}")
        story.told.append(self._first)
        state = runs.loaded((self._states / f"{batches}").read_bytes())

        def act(held: Held) -> None:
            if held.gates:
                return
            off: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if without is not None and without in {part.name for part in snapshot.PARTS}:
                off = without_part(without)
            elif without is not None:
                without_value(state, held.delegate.capture(), without)
            with off:
                held.delegate.apply(state)

        try:
            ended = story.process(functools.partial(AtGate, act), resumed_at=batches)
        except WentWrong as wrong:
            return Verdict("raises", str(wrong).strip().splitlines()[-1])
        assert ended is not None
        return story.verdict(self.bare, ended)


def judged(config: str, wanted: dict[str, int], folder: Path) -> Iterator[tuple[str, Verdict]]:
    """For each part whether this configuration notices, and how; "FAILED" where it does not."""
    resumed = Resumed(config, folder)
    for batches in sorted(set(wanted.values())):
        whole = resumed.at(batches, None)
        if whole.how != "exact":
            yield f"nothing, at {batches}", Verdict("FAILED", f"with everything {whole.why}")
    for part, batches in wanted.items():
        found = resumed.at(batches, part)
        if found.how == "exact":
            found = Verdict("FAILED", f"{config} is exact without it")
        yield part, found


def wanted(*, only_parts: bool = False, only: list[str] | None = None) -> dict[str, dict[str, int]]:
    """Configuration -> part or value -> batches.

    Args:
        only_parts: none of the single values.
        only: these configurations; all if empty.
    """
    found: dict[str, dict[str, int]] = {}
    for part, config, batches in SWITCHES:
        if (only_parts and "." in part) or (only and config not in only):
            continue
        found.setdefault(config, {})[part] = batches
    return found
