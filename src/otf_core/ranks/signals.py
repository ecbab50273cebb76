"""SIGTERM and Ctrl-C of a run of several ranks: noted, and seen to where all ranks stand.

Rule 1: nothing is done in a handler but a note and what passes the signal on: no collective, no
lock. A training thread looks at the note between two batches, and wherever it stands.
Rule 2: whichever rank was told, all stand, the run is kept as it is, and all leave at one boundary.
Where no meeting can be had, a second Ctrl-C ends at once; a second SIGTERM is what launchers send
to all of a group, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_NUMBERS: Final = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_SAID: Final = b"\notf: Ctrl-C: finishing the batch, then saving; once more ends at once\n"


class RankSignals:
    """Of one rank, between ``on`` and ``off``; main thread.

    Args:
        pass_on: called in the handler of SIGTERM with the number, the frame and the handler that
            was there before: whoever else is to hear of it.
        ends_by: what is raised, by the name of the signal, once the run is left.
        speaks: whether this rank tells the person at the terminal.
    """

    def __init__(
        self,
        *,
        pass_on: Callable[[int, FrameType | None, Any], None],
        ends_by: Callable[[str], BaseException],
        speaks: bool,
    ) -> None:
        self._pass_on, self.ends_by, self._speaks = pass_on, ends_by, speaks
        self._before: dict[int, Any] = {}
        self.asked: str | None = None

    def on(self) -> None:
        """Install, where the main thread trains; not over a handler of Ctrl-C of the script's."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        for number in _NUMBERS:
            before = signal.getsignal(number)
            if number == signal.SIGINT and before is not signal.default_int_handler:
                continue
            self._before[number] = before
            signal.signal(number, self._handle)

    def off(self) -> None:
        """Put back what was there, unless somebody has replaced ours; may be called twice."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or _NUMBERS[signal.Signals(number)]
        if number == signal.SIGINT and again:
            self.off()
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._speaks:
            with contextlib.suppress(OSError):
                os.write(2, _SAID)  # a buffered stream may be in the middle of a line
        if number == signal.SIGTERM and not again:
            self._pass_on(number, frame, self._before.get(number))
