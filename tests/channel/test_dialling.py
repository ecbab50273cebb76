"""Waits that grow, and the dialler that tries every target."""

from __future__ import annotations

import contextlib
import gc
import os
import random

from otf_core.dialling import Dialler, Waits
from otf_core.rendezvous import Target
from otf_core.testing import LoopbackListener, ManualClock


class Targets:
    """A finder with a fixed list."""

    def __init__(self, *targets: Target) -> None:
        self.targets = list(targets)
        self.good = True

    def next_targets(self) -> list[Target]:
        return self.targets

    def still_good(self, target: Target) -> bool:
        return self.good


def target(port: int, name: str = "there") -> Target:
    return Target("127.0.0.1", port, "t", legacy=False, name=name)


def test_waits_double_from_the_shortest_to_the_longest_and_start_again() -> None:
    class NoJitter(random.Random):
        def random(self) -> float:
            return 0.0

    waits = Waits(rng=NoJitter())
    assert [waits.next_s() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    waits.restart()
    assert waits.next_s() == 0.5


def test_jitter_lengthens_a_wait_by_a_quarter_at_most_and_never_past_the_longest() -> None:
    waits = Waits(rng=random.Random(3))
    drawn = [waits.next_s() for _ in range(40)]
    assert 0.5 <= drawn[0] <= 0.625
    assert drawn[0] != 0.5
    assert max(drawn) == 5.0
    assert Waits().next_s() >= 0.5


def test_the_first_target_in_reach_is_taken_with_what_it_must_know() -> None:
    with LoopbackListener() as gone:
        pass
    with LoopbackListener() as listener:
        dialler = Dialler(Targets(target(gone.port), target(listener.port)))
        transport = dialler()
        assert transport is not None
        assert transport.name == f"127.0.0.1:{listener.port}"
        assert (transport.token, transport.legacy_allowed) == ("t", False)
        transport.close()
    assert dialler() is None


def test_a_target_that_is_no_longer_good_when_connected_is_left() -> None:
    with LoopbackListener() as listener:
        targets = Targets(target(listener.port))
        targets.good = False
        assert Dialler(targets)() is None


def test_a_target_that_is_put_off_is_dialled_when_its_time_has_come() -> None:
    clock = ManualClock()
    with LoopbackListener() as listener:
        dialler = Dialler(Targets(target(listener.port)), clock=clock.now)
        dialler.put_off("there", 60)
        clock.advance(59)
        assert dialler() is None
        clock.advance(1)
        transport = dialler()
        assert transport is not None
        transport.close()


def _sockets() -> set[str]:
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {link for link in links if link.startswith("socket:")}


def test_a_forked_child_closes_what_was_being_dialled() -> None:
    with LoopbackListener() as listener:
        before = _sockets()  # others of this process may be among them
        dialler = Dialler(Targets(target(listener.port)))
        dialler.abandon_in_child()  # nothing yet
        transport = dialler()
        assert transport is not None
        child = os.fork()
        if child == 0:  # pragma: no cover -- another process
            os._exit(len(_sockets() - before))
        assert os.waitpid(child, 0)[1] == 0
        transport.close()
        del dialler
        gc.collect()
        child = os.fork()  # and one that is gone is not asked
        if child == 0:  # pragma: no cover -- another process
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
