"""The command ``park``: what is on the disk first, what is refused, and what all ranks do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from otf_core.control.gate import State
from otf_core.control.router import CommandRouter
from otf_core.errors import CommandError, ErrorCode
from otf_core.parking import AS_IT_IS, Park
from otf_core.protocol import COMMANDS
from otf_core.state.park import Parked
from otf_core.testing import ManualClock


class World:
    """A held run, whose parts write down what is asked of them."""

    def __init__(self, *, others: bool = False) -> None:
        self.tape: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.raises: dict[str, CommandError] = {}  # where
        self.away: set[int] = set()  # ranks
        self.clock = ManualClock()
        self.actions: Any = SimpleNamespace(gate=SimpleNamespace(state=State.HELD), park=None)
        self.saved = SimpleNamespace(path="/c", error=None, wait=lambda _: self.tape.append("file"))
        here: Any = SimpleNamespace(
            never=lambda: None, check=self.check, park=self.parked_here, back=self.back
        )
        ranks: Any = self if others else None
        actions: Any = self.actions
        self.park = Park(
            self, here, actions=actions, step=lambda: 7, others=ranks, now_s=self.clock.now
        )
        self.router = CommandRouter()
        self.park.register(self.router)

    def ask(self, *, back: bool = False) -> Any:
        ticket: Any = SimpleNamespace(id="q", payload=SimpleNamespace(back=back))
        return self.park._park(ticket)

    def _done(self, what: str) -> None:
        self.tape.append(what)
        if what in self.raises:
            raise self.raises[what]

    # The session.

    def save(self, kind: str) -> Any:
        self._done(f"save {kind}")
        return self.saved

    def emit(self, kind: str, /, **fields: Any) -> None:
        self.events.append({"type": kind, **fields})

    # This process.

    def check(self) -> None:
        self._done("check")

    def parked_here(self) -> Parked:
        self._done("park")
        self.away.add(0)
        return Parked(100, 60, 90, 10, 0.5)

    def back(self) -> None:
        self._done("back")
        self.away.discard(0)

    # Rank 1.

    @contextlib.contextmanager
    def do(self, name: str) -> Iterator[dict[int, Any]]:
        heard: dict[int, Any] = {}
        yield heard
        self._done(f"1 {name}")
        if name == "park":
            self.away.add(1)
            heard[1] = [200, 0, 150, 20, 0.75]
        elif name == "unpark":
            self.away.discard(1)


def refusal(detail: str) -> CommandError:
    return CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)


def test_the_file_is_whole_before_anything_is_moved() -> None:
    run = World()
    said = run.ask()
    assert run.tape == ["check", "save pause", "file", "park"]
    assert said == {
        "parked": True, "changed": True, "step": 7, "applied_step": 7, "moved_bytes": 100,
        "pinned_bytes": 60, "freed_bytes": 90, "left_bytes": 10, "ranks": 1, "ckpt": "/c",
        "seconds": 0.5,
    }  # fmt: skip
    run.clock.advance(30.0)
    assert run.park.status() == {"since_s": 30.0, "freed_bytes": 90}
    assert run.ask() == {**said, "changed": False}
    assert run.ask(back=True) == {"parked": False, "changed": True, "step": 7, "applied_step": 7}
    assert run.park.status() is None
    assert not run.ask(back=True)["changed"]
    assert [(event["parked"], event["freed_bytes"]) for event in run.events] == [
        (True, 90),
        (False, 90),
    ]


@pytest.mark.parametrize("how", ["refused", "failed"])
def test_without_a_file_it_is_refused(how: str) -> None:
    run = World()
    if how == "refused":
        run.raises["save pause"] = refusal("no folder.")
    else:
        run.saved.error = refusal("no space left on device.")
    with pytest.raises(CommandError, match=r"no folder|no checkpoint of the pause: no space left"):
        run.ask()
    assert "park" not in run.tape
    assert not run.park.parked


def test_a_run_that_trains_is_refused() -> None:
    run = World()
    run.actions.gate.state = State.REQUESTED
    with pytest.raises(CommandError, match="found the run training; allowed: while it is paused"):
        run.ask()
    assert run.tape == []


def test_what_would_touch_it_is_refused_while_it_is_away() -> None:
    run = World()
    run.router.refuse("validate_now")
    run.ask()
    for cmd in COMMANDS.keys() - AS_IT_IS:
        with pytest.raises(CommandError, match=f"{cmd} was asked, found the run parked"):
            run.router.refuse(cmd)
    for cmd in AS_IT_IS:
        run.router.refuse(cmd)
    touches = {"save_ckpt", "set_param", "undo", "fork", "scan", "test_now", "export_weights"}
    assert not touches & AS_IT_IS
    run.ask(back=True)
    run.router.refuse("validate_now")


def test_all_ranks_park_and_come_back() -> None:
    run = World(others=True)
    said = run.ask()
    assert run.tape == ["check", "1 park_check", "save pause", "file", "park", "1 park"]
    assert (said["ranks"], said["moved_bytes"], said["freed_bytes"], said["left_bytes"]) == (
        2, 300, 240, 30,
    )  # fmt: skip
    assert said["seconds"] == 0.75
    run.ask(back=True)
    assert run.tape[-2:] == ["back", "1 unpark"]
    assert run.away == set()


def test_where_a_rank_cannot_none_has() -> None:
    run = World(others=True)
    run.raises["1 park_check"] = refusal("rank 1 has a graph.")
    with pytest.raises(CommandError, match="rank 1 has a graph"):
        run.ask()
    assert run.tape == ["check", "1 park_check"]
    run = World(others=True)
    run.raises["1 park"] = refusal("rank 1 has no memory.")
    with pytest.raises(CommandError, match="rank 1 has no memory"):
        run.ask()
    assert run.tape[-3:] == ["1 park", "back", "1 unpark"]
    assert not run.park.parked
    assert run.away == set()


def test_a_rank_without_room_keeps_the_run_parked_until_it_has() -> None:
    run = World(others=True)
    run.ask()
    assert run.away == {0, 1}
    run.raises["1 unpark"] = refusal("rank 1 has no room.")
    with pytest.raises(CommandError, match="rank 1 has no room"):
        run.park.back()
    assert run.park.parked
    assert run.away == {1}
    with pytest.raises(CommandError, match="found the run parked"):
        run.router.refuse("save_ckpt")
    del run.raises["1 unpark"]
    run.park.back()
    assert run.park.status() is None
    assert run.away == set()


def test_where_the_run_is_left_each_comes_back_alone() -> None:
    run = World(others=True)
    run.ask()
    run.park.back_here()
    assert run.tape[-1] == "back"
    assert not run.park.parked


def test_who_drives_a_run_may_not_know_what_it_holds() -> None:
    router = CommandRouter()
    actions: Any = SimpleNamespace(park=None)
    Park(World(), None, actions=actions, step=lambda: 0).register(router)
    ticket: Any = SimpleNamespace(request=SimpleNamespace(cmd="park"))
    with pytest.raises(CommandError, match="has not said what it holds"):
        router.check(ticket)
