"""A slice of the proof that a killed script goes on as if nothing had been: see ``exact``.

The runs are forked by a process of their own: this one may have threads by now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.script import exact
from tests.script.refusals import REFUSED

ROOT = Path(__file__).parents[2]
IN_SLICE = {shape: steps for shape, steps in exact.SHAPES.items() if steps}

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


class Found:
    """What the process has found; it works while other tests ask."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._found = process, dict[str, dict[str, str | None]]()

    def of(self, name: str) -> dict[str, str | None]:
        """Way -> what is wrong with it; waits for it."""
        assert self._process.stdout is not None
        while name not in self._found:
            line = self._process.stdout.readline()
            assert line, f"the process has ended without {name}: {self._process.wait()}"
            job, found = json.loads(line)
            self._found[job] = found
        return self._found[name]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    log = tmp_path_factory.mktemp("scripts") / "log"
    command = [sys.executable, "-m", "tests.script.exact", "--slice", "--json"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        yield Found(process)
        process.terminate()


@pytest.mark.parametrize("shape", IN_SLICE)
def test_a_killed_script_goes_on_as_if_nothing_had_been(shape: str, found: Found) -> None:
    ways = [f"killed at {step}" for step in IN_SLICE[shape]]
    back = [] if shape in exact.NOT_BACK else ["taken back"]
    assert found.of(shape) == dict.fromkeys([*ways, *back])


@pytest.mark.parametrize("part", exact.PARTS)
def test_the_loss_of_a_part_is_noticed(part: str, found: Found) -> None:
    job = next(n for n, parts in enumerate(exact.in_two(exact.PARTS)) if part in parts)
    assert found.of(f"parts {job}")[f"without {part}"] is None


def test_with_all_parts_it_is_exact(found: Found) -> None:
    assert found.of("parts 0")["without nothing"] is None


def test_the_loss_of_the_workers_seeds_is_noticed(found: Found) -> None:
    assert found.of("seeds") == {"without nothing": None, f"without {exact.SEEDS}": None}


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_is_trained_where_it_cannot_go_on(what: str, found: Found) -> None:
    assert found.of("refusals")[what] is None
