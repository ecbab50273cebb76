"""Each rank says once in a while that it is there, and how it fares; thread ``otf-beat``.

Rule 1: no collective and nothing in a step: the beat of a rank is a key of the store, which it
overwrites. Rank 0 reads all with one question, the others read that of rank 0.
Rule 2: a process that has ended is known by its parent, who tells of it in his own beat.
Rule 3: the thread is ended before the interpreter is: one within a store's call then aborts the
process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import psutil

from otf_core.channel import Clock, SystemClock
from otf_core.ranks.judging import Change, Judge, period_s
from otf_core.ranks.pace import Pace

TURN_S: Final = 0.2  # between two looks at processes; costs a system call for each
JOIN_S: Final = 5.0
MIB: Final = 1024 * 1024
_FIGURES: Final = ("step", "step_ms", "step_ms_p95", "data_wait_ms", "wait_ms", "loss")


class BeatStore(Protocol):
    """Where beats lie; one thread's at a time."""

    def write(self, beat: bytes) -> None:
        """This rank's, in place of the one before.

        Raises:
            ConnectionError: there is no store any more.
        """

    def read(self, ranks: Sequence[int]) -> Mapping[int, bytes]:
        """The newest of each of these ranks that has beaten; as ``write``."""


class Beats:
    """One rank's, and what it knows of those that it judges.

    Args:
        stands: whether training stands at a boundary.
        exits: exit codes of those ranks that are processes of this one, once they have ended.
        more: what rank 0 says beside.
        device_mb: memory on the device; must not wait for it.
        host: this machine's name.
    """

    def __init__(
        self,
        store: BeatStore,
        rank: int,
        world_size: int,
        pace: Pace,
        *,
        stands: Callable[[], bool],
        exits: Callable[[], Mapping[int, int]] = dict,
        device_mb: Callable[[], float | None] = lambda: None,
        clock: Clock | None = None,
        host: str | None = None,
    ) -> None:
        self.rank, self.pace = rank, pace
        self._store, self._stands, self._exits, self._device_mb = store, stands, exits, device_mb
        self._clock = clock or SystemClock()
        self._host = host or os.uname().nodename
        self.judged = tuple(range(1, world_size)) if rank == 0 else (0,)
        now_s = self._clock.now()
        self.judge = Judge(self.judged, period_s(world_size), now_s)
        self.more: Callable[[], Mapping[str, Any]] = dict
        self.changed: Callable[[Change], None] = lambda _: None
        self.told: Callable[[list[dict[str, Any]]], None] = lambda _: None
        self._process = psutil.Process()
        self._number = 0
        self._mine: dict[str, Any] = {}
        self._beat_at_s = self._look_at_s = now_s
        self._store_lost = False
        self._over = False
        self._judged = threading.Condition(threading.Lock())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start otf-beat."""
        self._thread = threading.Thread(target=self._run, name="otf-beat", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def over(self) -> None:
        """Training is over: whoever is not heard from now on has ended as this one does."""
        self._over = True

    def close(self, error: str | None = None) -> None:
        """End the thread and say so to the others; may be called twice.

        Args:
            error: what training failed with here, where that is news to them.
        """
        self._over = True
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.close)
        thread.join(JOIN_S)
        if not self._store_lost and not thread.is_alive():
            with contextlib.suppress(ConnectionError):
                self._store.write(_line({**self._beat(), "ended": True, "error": error}))

    def found_failed(self, timeout_s: float) -> bool:
        """Whether some rank is known to have failed, by then; not for otf-beat."""

        def failed() -> bool:
            return "failed" in self.judge.state.values()

        with self._judged:
            return self._judged.wait_for(failed, timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.turn()
            self._clock.wait(self._stop, TURN_S)

    def turn(self) -> None:
        """What is due now; otf-beat."""
        now_s = self._clock.now()
        exits = self._exits()
        beats, looks = now_s >= self._beat_at_s, now_s >= self._look_at_s
        try:
            if beats and not self._store_lost:
                self._beat_at_s = now_s + self.judge.every_s
                self._mine = self._beat() | {"exits": {str(rank): c for rank, c in exits.items()}}
                self._store.write(_line(self._mine))
            if looks and not self._store_lost:
                self._look_at_s = now_s + self.judge.every_s / 2
                self._hear(now_s)
        except ConnectionError:  # otf-watch hears of it as well, and says so
            self._store_lost = True
        for rank, code in exits.items():
            self.judge.exited(rank, code)
        if self._over:
            return
        for change in self.judge.changes(now_s, hears=not self._store_lost):
            self.changed(change)
        with self._judged:
            self._judged.notify_all()
        if beats and not self._store_lost:
            self.told(self.rows(now_s))

    def _hear(self, now_s: float) -> None:
        for rank, line in self._store.read(self.judged).items():
            beat = json.loads(line)
            self.judge.hear(rank, beat, now_s)
            for child, code in beat.get("exits", {}).items():
                self.judge.exited(int(child), code)

    def _beat(self) -> dict[str, Any]:
        self._number += 1
        try:
            rss_mb = self._process.memory_info().rss / MIB
        except psutil.Error:
            rss_mb = None
        return {
            "n": self._number,
            "host": self._host,
            "standing": self._stands(),
            **self.pace.figures(),
            "rss_mb": rss_mb,
            "device_mem_mb": self._device_mb(),
            **self.more(),
        }

    def rows(self, now_s: float) -> list[dict[str, Any]]:
        """A row for each rank, as the event ``ranks`` has them; rank 0."""
        rows = [_row(self.rank, self._mine, "ok", 0.0)]
        for rank in self.judged:
            state = self.judge.state[rank]
            shown = state if state in ("silent", "failed") else "ok"
            seen_s = round(self.judge.seen_s(rank, now_s), 1)
            rows.append(_row(rank, self.judge.beats.get(rank, {}), shown, seen_s))
        return rows


def _row(rank: int, beat: Mapping[str, Any], state: str, seen_s: float) -> dict[str, Any]:
    return {
        "rank": rank,
        "host": beat.get("host"),
        "standing": bool(beat.get("standing")),
        "state": state,
        "seen_s": seen_s,
        **{name: beat.get(name) for name in _FIGURES},
        "rss_mb": beat.get("rss_mb"),
        "device_mem_mb": beat.get("device_mem_mb"),
    }


def _line(beat: Mapping[str, Any]) -> bytes:
    return json.dumps(beat, separators=(",", ":")).encode()
