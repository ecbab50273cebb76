"""A loader goes on from where it stood, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from otf_core.state.data_tap import hear, set_around, tap
from tests.state.loader_kinds import KINDS, Kind, Place, Run, capture, resume, seed_all

pytestmark = pytest.mark.usefixtures("queues_have_ended")
many_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def bare(kind: Kind) -> tuple[list[Any], Any]:
    """The run without us."""
    seed_all(1)
    run = Run(kind, kind.make())
    run.go()
    return run.finish()


def captured_everywhere(kind: Kind) -> tuple[tuple[list[Any], Any], dict[Place, Any]]:
    """The run with the tap, and its state at every place."""
    seed_all(1)
    run = Run(kind, tap(kind.make()))
    states: dict[Place, Any] = {}

    def note(place: Place) -> bool:
        if place[1] >= 0 or place[0] < kind.epochs:
            states[place] = capture(run, place)
        return False

    run.go(note)
    return run.finish(), states


def resumed(kind: Kind, place: Place, state: Any, *, until: Place | None = None) -> Any:
    """A run in other objects, with other random numbers, that goes on from the state."""
    seed_all(77)
    loader = tap(kind.make())
    if place[1] < 0 and loader.num_workers == 0:  # somebody has looked at it before
        next(iter(loader))
    run = Run(kind, loader)
    resume(run, place, state, set_around)
    if until is None:
        run.go()
        return run.finish()
    assert run.go(lambda here: here == until)
    again = capture(run, until)
    run.finish()
    return again


def tail(tape: list[Any], place: Place) -> list[Any]:
    """What is read from a place on."""
    return [entry for entry in tape if entry[:2] >= place]


def chosen(kind: Kind, states: dict[Place, Any]) -> list[Place]:
    """Every place without workers; with them, which are processes, few."""
    places = sorted(states)
    if kind.make().num_workers == 0:
        return places
    between = [place for place in places if place == (1, -1)]
    last = max(place for place in places if place[0] == 1)
    exhausted = [place for place in places if place == (1, 7)]  # where one worker is, of three
    # Early in an iteration, when not every worker has been heard, and late.
    return [*between, (1, 1), *exhausted, last]


@many_workers
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_goes_on_as_if_nothing_had_been(kind: Kind) -> None:
    expected = bare(kind)
    seen, states = captured_everywhere(kind)
    assert seen == expected, "the tap, or a capture, changes the run"

    for place in chosen(kind, states):
        tape, rng = resumed(kind, place, states[place])
        assert tape == tail(expected[0], place), place
        assert rng == expected[1], place

    # The run that goes on is another one than the first, and is killed as well, twice.
    here, state = (0, 1), states[0, 1]
    for there in ((0, 2), (1, 1)):
        state = resumed(kind, here, state, until=there)
        here = there
    tape, rng = resumed(kind, here, state)
    assert tape == tail(expected[0], here)
    assert rng == expected[1]


@pytest.mark.parametrize("persistent", [False, True])
def test_whoever_listens_last_hears_the_next_pass_and_nobody_else(persistent: bool) -> None:
    data: Any = list(range(6))
    loader = tap(DataLoader(data, batch_size=3, num_workers=1, persistent_workers=persistent))
    heard: dict[str, list[Any]] = {"first": [], "second": []}
    for name in heard:
        hear(loader, heard[name].append)
        list(loader)
    hear(loader, None)
    list(loader)
    assert heard == {name: [[0, 1, 2], [3, 4, 5]] for name in heard}
    if persistent:
        loader._iterator._shutdown_workers()  # type: ignore[union-attr]
