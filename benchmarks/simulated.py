"""How long ranks take to agree, simulated event by event: letters between one caller and many
watch threads, through one store.

The caller writes to each rank in turn; the store serves one request after another; a watch thread
takes the letter, promises, and asks for the next; rank 0's reads the promises one at a time, each a
request of its own; then the caller writes to each rank where all meet.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable

Then = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds, as measured.

    Attributes:
        push_s: to write a letter, for who writes.
        serve_s: of the store, for one request.
        read_s: of rank 0, for a promise that is there, without the store's part.
        wake_s: from a letter's arrival until a thread that waits has taken and answered it.
        latency_s: one way between two machines; a rank on the store's own has none.
        cores: that all watch threads share; 0: each has one.
    """

    push_s: float
    serve_s: float
    read_s: float
    wake_s: float
    latency_s: float = 0.0
    cores: int = 0


class _Line:
    """So many servers; who comes is served in turn."""

    def __init__(self, servers: int) -> None:
        self._free = [0.0] * servers

    def through(self, at: float, takes_s: float) -> float:
        """When one that comes then is served; to be asked in the order of coming."""
        ends = max(at, heapq.heappop(self._free)) + takes_s
        heapq.heappush(self._free, ends)
        return ends


class Simulation:
    """One agreement of so many ranks."""

    def __init__(self, size: int, costs: Costs) -> None:
        self._others, self._costs = size - 1, costs
        self._store = _Line(1)
        self._cores = _Line(costs.cores or size)
        self._events: list[tuple[float, int, Then]] = []
        self._numbered = self._promises = self._unread = 0
        self._reading = False
        self.operations = 0
        self.heard: list[float] = []  # when each rank knows where to stand

    def seconds(self) -> float:
        """From the first letter until the last rank knows where to stand."""
        self._write(0.0, self._proposed)
        while self._events:
            at, _, then = heapq.heappop(self._events)
            then(at)
        return max(self.heard)

    def _at(self, at: float, then: Then) -> None:
        self._numbered += 1
        heapq.heappush(self._events, (at, self._numbered, then))

    def _served(self, at: float, then: Then) -> None:
        """A request that comes to the store then."""

        def now(when: float) -> None:
            self.operations += 1
            self._at(self._store.through(when, self._costs.serve_s), then)

        self._at(at, now)

    def _write(self, at: float, arrived: Then) -> None:
        """The caller, to each in turn."""
        for n in range(self._others):
            sent = at + (n + 1) * self._costs.push_s
            self._served(sent, lambda when: self._at(when + self._costs.latency_s, arrived))

    def _proposed(self, at: float) -> None:
        """A rank has the letter: it promises, and asks for the next."""

        def take(when: float) -> None:
            answered = self._cores.through(when, self._costs.wake_s) + self._costs.latency_s
            self._served(answered, self._promised)
            self._served(answered, lambda _: None)  # the next letter is asked for, and waited for

        self._at(at, take)

    def _promised(self, at: float) -> None:
        self._unread += 1
        if not self._reading:
            self._read(at + self._costs.wake_s)

    def _read(self, at: float) -> None:
        """Rank 0's watch thread, one letter at a time."""
        self._reading, self._unread = True, self._unread - 1

        def have(when: float) -> None:
            self._promises += 1
            if self._promises == self._others:
                self._write(when, self._committed)
            elif self._unread:
                self._read(when)
            else:
                self._reading = False

        self._served(at, lambda when: self._at(when + self._costs.read_s, have))

    def _committed(self, at: float) -> None:
        def take(when: float) -> None:
            taken = self._cores.through(when, self._costs.wake_s)
            self.heard.append(taken)
            self._served(taken + self._costs.latency_s, lambda _: None)

        self._at(at, take)


def estimate_s(size: int, costs: Costs) -> float:
    """Without a simulation: two round trips, and the work that stands in a line."""
    n = size - 1
    line = max(2 * costs.push_s, 2 * costs.serve_s) + costs.serve_s + costs.read_s
    return 4 * costs.latency_s + 3 * costs.wake_s + n * line
