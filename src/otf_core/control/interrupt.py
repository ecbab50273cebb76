"""Ctrl-C that lets the batch finish, so that the run can be kept as it is; main thread.

Rule 1: the first one is noted and told; the second ends at once, as it always has.
Rule 2: a handler of somebody else's stays: nothing is installed then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interrupt:
    """Between ``on`` and ``off``; ``asked`` is looked at at the safe point.

    Args:
        tell: called in the signal's handler, on the main thread.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._on = False
        self.asked = False

    def on(self) -> None:
        """Install, where the main thread trains and nobody else handles it."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._on = True

    def off(self) -> None:
        """Put Python's own back, unless somebody has replaced ours; may be called twice."""
        on_main = threading.current_thread() is threading.main_thread()
        if self._on and on_main and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._on = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            self.off()
            raise KeyboardInterrupt
        self.asked = True
        self._tell()
