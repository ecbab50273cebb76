"""The safe point: after batch k is completely finished and before batch k+1 is fetched.

Everything that touches the run happens here, on the training thread.
"""

from __future__ import annotations

from collections.abc import Callable


class SafePoint:
    """What the loop calls between two batches.

    Costs one attribute read when nobody asks for anything.

    Args:
        attend: what is done when somebody does; returns True when the run is to stop.
    """

    def __init__(self, attend: Callable[[], bool]) -> None:
        self._attend = attend
        self.attention = False

    def wake(self) -> None:
        """The next safe point is to look; any thread."""
        self.attention = True

    def tick(self) -> bool:
        """Between two batches; training thread. True when the run is to stop here."""
        if self.attention:
            # Lowered first: what is asked while attending raises it again.
            self.attention = False
            return self._attend()
        return False
