"""A slice of the proof that the state is exact; the whole is ``make test-exact``.

The runs are forked by a process of their own: this one may have threads by now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exact import parts
from tests.exact.__main__ import SLICE
from tests.exact.table import CONFIGS
from tests.exact.ways import SIDES

ROOT = Path(__file__).parents[2]
IN_SLICE = [config.name for config in CONFIGS.values() if config.slice]
NOTICED = parts.wanted(only_parts=True)


class Verdicts:
    """What the process has found; it works while other tests ask."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._found = process, dict[str, dict[str, Any]]()

    def of(self, name: str) -> dict[str, Any]:
        """Way or part -> how and why; waits for it."""
        assert self._process.stdout is not None
        while name not in self._found:
            line = self._process.stdout.readline()
            assert line, f"the process has ended without {name}: {self._process.wait()}"
            found, verdicts = json.loads(line)
            self._found[found] = verdicts
        return self._found[name]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verdicts]:
    log = tmp_path_factory.mktemp("exact") / "log"
    command = [sys.executable, "-m", "tests.exact", "--slice", "--json"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        yield Verdicts(process)
        process.terminate()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", SLICE)
@pytest.mark.parametrize("config", IN_SLICE)
def test_what_follows_is_what_it_would_have_been(config: str, way: str, verdicts: Verdicts) -> None:
    found = verdicts.of(config)
    assert way in found, found
    how, why = found[way]
    assert how == "exact", why
    assert "processes left over" not in found


@pytest.mark.parametrize("side", SIDES)
def test_every_part_of_the_state_has_a_configuration_that_would_notice(side: str) -> None:
    of_side = {name: found for name, found in NOTICED.items() if CONFIGS[name].side == side}
    noticed = {part for found in of_side.values() for part in found}
    assert noticed == parts.names_of(SIDES[side].STATE) - set(parts.ONLY_CHECKED)
