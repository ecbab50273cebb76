"""The framework-free core: control bus, channel, telemetry, state, dashboard, command line.

Nothing is imported before it is asked for: ``import otf_core.dashboard`` runs this file, and an
eager re-export of the session would load torch into the dashboard.
"""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # what _LAZY has, for type checkers
    from otf_core.own_loop.attach import attach
    from otf_core.script.register import register, register_validation
    from otf_core.steering.declared import otf_param

__all__ = ["__version__", "attach", "otf_param", "register", "register_validation"]
__version__: Final = "0.2.0"

_LAZY: Final = {
    "attach": "otf_core.own_loop",
    "otf_param": "otf_core.steering.declared",
    "register": "otf_core.script.register",
    "register_validation": "otf_core.script.register",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # The script may have seeded it by now, and libraries draw from it when they are imported.
    state = random.getstate()
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    finally:
        random.setstate(state)
