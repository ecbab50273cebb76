"""What a legacy host is shown when it connects: it keeps nothing, and wipes what it has.

The published extension's host never removes doubles and draws at most 6,000 points, so the replay
is a digest: for the run its ``newRun``, one ``log``, its ``trainStep`` events thinned, its
``checkpoint_saved``; then ``paused`` if the run stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from otf_core import protocol

MAX_POINTS: Final = 6000  # what the extension's page can draw


class LegacyReplay:
    """Makes the digest of one session.

    Args:
        read: the journal's ``read(after, until)``.
    """

    def __init__(self, read: Callable[[int, int], Iterator[bytes]]) -> None:
        self._read = read
        self._introduced = False

    def lines(self, until: int) -> list[bytes]:
        """The digest up to event ``until``, each line as first sent.

        ``session_started`` is in the first one only: a second would have the host clean its disk
        again.
        """
        head: list[bytes] = []
        steps: list[tuple[int, bytes]] = []  # step, line
        checkpoints: list[bytes] = []
        log: bytes | None = None
        paused: bytes | None = None
        for line in self._read(0, until):
            event = protocol.decode_message(line)
            kind = event.get("type")
            if kind == "session_started":
                if not self._introduced:
                    head.insert(0, line)
            elif kind == "newRun":
                head.append(line)
            elif kind == "log":
                log = log or line
            elif kind == "trainStep":
                steps.append((event.get("step", 0), line))
            elif kind == "checkpoint_loaded":
                # What was rolled back is told no more: the host would keep both.
                steps = [known for known in steps if known[0] <= event["step"]]
            elif kind == "checkpoint_saved":
                checkpoints.append(line)
            elif kind == "paused":
                paused = line
            elif kind in ("resumed", "trainingFinished"):
                paused = None
        self._introduced = True
        told = [line for _, line in steps]
        tail = [line for line in (paused,) if line is not None]
        return [*head, *([log] if log else []), *thinned(told), *checkpoints, *tail]


def thinned(lines: list[bytes], most: int = MAX_POINTS) -> list[bytes]:
    """At most ``most`` of the lines, evenly, first and last among them."""
    if len(lines) <= most:
        return lines
    stride = (len(lines) - 1) / (most - 1)
    return [lines[round(n * stride)] for n in range(most)]
