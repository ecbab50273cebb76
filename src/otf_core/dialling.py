"""When and whom to dial: growing waits, and the one call that tries every target.

Rule: whoever is not there costs a dial every few seconds at most, and says nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from otf_core.rendezvous import Target
from otf_core.transport import TcpTransport, Transport, at_fork

SHORTEST_S: Final = 0.5  # sooner, a late close handler of the extension cuts the new connection
LONGEST_S: Final = 5.0
LONG_WAIT_S: Final = 60.0  # for a host that does not want our version
LONGEST_LONG_WAIT_S: Final = 3600.0
JITTER: Final = 0.25


class Waits:
    """How long until the next dial: doubles from the shortest to the longest; one thread.

    Args:
        shortest_s, longest_s: bounds; jitter is added below the longest only.
        rng: where the jitter comes from, so that many runs do not dial in step.
    """

    def __init__(
        self,
        shortest_s: float = SHORTEST_S,
        longest_s: float = LONGEST_S,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._rng = rng or random.Random()
        self._next_s = shortest_s

    def next_s(self) -> float:
        """The next wait, in seconds; the one after it is longer."""
        wait_s = self._next_s * (1 + JITTER * self._rng.random())
        self._next_s = min(2 * self._next_s, self._longest_s)
        return min(wait_s, self._longest_s)

    def restart(self) -> None:
        """From the shortest again, after a connection that was of use."""
        self._next_s = self._shortest_s


class TargetFinder(Protocol):
    """What the dialler asks; ``rendezvous.Finder`` in production."""

    def next_targets(self) -> list[Target]:
        """Where to dial now, the best first."""

    def still_good(self, target: Target) -> bool:
        """Whether what was found of the target still holds, now that it is connected."""


class Dialler:
    """Tries the targets in turn; what ``SocketChannel`` gets as ``dial``. otf-writer.

    Args:
        finder: says where.
        timeout_s: for each address.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        finder: TargetFinder,
        *,
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._finder, self._timeout_s, self._clock = finder, timeout_s, clock
        self._put_off: dict[str, float] = {}  # name -> not before, by the clock
        self._connecting: TcpTransport | None = None
        at_fork(self.abandon_in_child)

    def __call__(self) -> Transport | None:
        """A connection, or None when nobody is in reach."""
        for target in self._finder.next_targets():
            if self._put_off.get(target.name, self._clock()) > self._clock():
                continue
            transport = self._try(target)
            if transport is not None:
                return transport
        return None

    def put_off(self, name: str, wait_s: float) -> None:
        """Leave this target alone for so long."""
        self._put_off[name] = self._clock() + wait_s

    def abandon_in_child(self) -> None:
        """In a forked child: close what was being connected in the parent. Takes no lock."""
        connecting = self._connecting
        if connecting is not None:
            connecting.abandon()

    def _try(self, target: Target) -> TcpTransport | None:
        try:
            transport = TcpTransport.dial(
                target.host,
                target.port,
                self._timeout_s,
                token=target.token,
                legacy_allowed=target.legacy,
                opened=self._opened,
            )
        except OSError:
            return None  # nobody there; asked again after the next wait
        if self._finder.still_good(target):
            return transport
        transport.close()
        return None

    def _opened(self, transport: TcpTransport) -> None:
        # Kept until the next one: the channel has it by then, or it is closed. Abandoning twice
        # does nothing.
        self._connecting = transport
