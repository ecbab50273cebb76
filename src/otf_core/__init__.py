"""The framework-free core: control bus, channel, telemetry, state, dashboard, command line.

Empty on purpose: ``import otf_core.dashboard`` runs this file, and an eager re-export of the
session would load torch into the dashboard.
"""

from typing import Final

__version__: Final = "0.2.0"
