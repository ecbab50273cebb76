"""Stand-ins for tests, ours and a user's own: dashboards of both kinds, a log, a clock.

Nothing here sleeps or polls; what waits has a deadline of real seconds and then raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otf_core.testing.clock import HurriedClock, ManualClock
from otf_core.testing.dashboards import FakeDashboard, Listener, LoopbackListener, MemoryListener
from otf_core.testing.legacy import LegacyDashboard
from otf_core.testing.log import MemoryLog

__all__ = [
    "FakeAccelerator",
    "FakeDashboard",
    "HurriedClock",
    "LegacyDashboard",
    "Listener",
    "LoopbackListener",
    "ManualClock",
    "MemoryListener",
    "MemoryLog",
]

if TYPE_CHECKING:
    from otf_core.testing.accelerator import FakeAccelerator


def __getattr__(name: str) -> Any:
    if name == "FakeAccelerator":  # the only one that needs torch
        from otf_core.testing.accelerator import FakeAccelerator

        return FakeAccelerator
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
