"""What a legacy host is shown when it connects: it keeps nothing, and wipes what it has.

The published extension's host never removes doubles and draws at most 6,000 points, so the replay
is a digest: for each run, the current one last, its ``newRun``, one ``log``, its ``trainStep``
events thinned, its ``checkpoint_saved``; then ``paused`` if the run stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

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
        started: list[bytes] = []
        runs: dict[str, _Run] = {}
        current = _Run()
        for line in self._read(0, until):
            event = protocol.decode_message(line)
            kind = event.get("type")
            current = runs.setdefault(str(event.get("run_id")), _Run())
            if kind == "session_started":
                if not self._introduced:
                    started.append(line)
            else:
                current.take(str(kind), event, line)
        self._introduced = True
        before = [run for run in runs.values() if run is not current]
        told = [line for run in (*before, current) for line in run.lines()]
        return [*started, *told, *([current.paused] if current.paused is not None else [])]


@dataclasses.dataclass
class _Run:
    new: list[bytes] = dataclasses.field(default_factory=list)
    log: bytes | None = None
    steps: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)  # step, line
    checkpoints: list[bytes] = dataclasses.field(default_factory=list)
    paused: bytes | None = None

    def take(self, kind: str, event: Mapping[str, Any], line: bytes) -> None:
        if kind == "newRun":
            self.new.append(line)
        elif kind == "log":
            self.log = self.log or line
        elif kind == "trainStep":
            self.steps.append((event.get("step", 0), line))
        elif kind == "checkpoint_loaded":
            # What was rolled back is told no more: the host would keep both.
            self.steps = [known for known in self.steps if known[0] <= event["step"]]
        elif kind == "checkpoint_saved":
            self.checkpoints.append(line)
        elif kind == "paused":
            self.paused = line
        elif kind in ("resumed", "trainingFinished", "finalizeRun"):
            self.paused = None

    def lines(self) -> list[bytes]:
        told = thinned([line for _, line in self.steps])
        return [*self.new, *([self.log] if self.log else []), *told, *self.checkpoints]


def thinned(lines: list[bytes], most: int = MAX_POINTS) -> list[bytes]:
    """At most ``most`` of the lines, evenly, first and last among them."""
    if len(lines) <= most:
        return lines
    stride = (len(lines) - 1) / (most - 1)
    return [lines[round(n * stride)] for n in range(most)]
