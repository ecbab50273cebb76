"""The safe point: after batch k is completely finished and before batch k+1 is fetched.

Everything that touches the run happens here, on the training thread.
"""

from __future__ import annotations

from collections.abc import Callable

from otf_core.control.agreement import StepAgreement


class SafePoint:
    """What the loop calls between two batches.

    Costs one attribute read when nobody asks for anything.

    Args:
        attend: what is done when somebody does; returns True when the run is to stop.
        agreement: of several ranks, all of which stand while something is done; this is rank 0.
    """

    def __init__(self, attend: Callable[[], bool], agreement: StepAgreement | None = None) -> None:
        self._attend, self._agreement = attend, agreement
        self.attention = False

    def wake(self) -> None:
        """The next safe point is to look; any thread."""
        self.attention = True
        if self._agreement is not None:
            self._agreement.ask()

    def tick(self, *, here: bool = False) -> bool:
        """Between two batches; training thread. True when the run is to stop here.

        Args:
            here: every rank has found by counting that all are to stand here.
        """
        if self._agreement is not None:
            return self._agreement.boundary(self.attend, here=here)
        return self.attend() if self.attention else False

    def attend(self) -> bool:
        """Do what is due, where the run stands; True when it is to stop."""
        # Lowered first: what is asked while attending raises it again.
        self.attention = False
        return self._attend()
