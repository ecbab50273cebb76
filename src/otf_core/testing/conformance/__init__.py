"""What every delegate must do, as tests: a pytest suite over a small run of a framework.

    from otf_core.testing.conformance import DelegateSuite, Framework

    class Mine(Framework):
        def run(self, otf, probe, *, epochs=2): ...

    class TestMine(DelegateSuite):
        framework = Mine()

The suite asks over the wire, as a dashboard does, and compares with what it has seen by itself from
within the run. docs/frameworks.md says how a framework comes to pass it.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(f"otf_core.testing.conformance.{name}" for name in (
        "running", "suite", "idle", "holding", "going_back", "changing", "guarded", "remembering",
        "wire",
    ))
)  # fmt: skip

from otf_core.testing.conformance.changing import Changing  # noqa: E402 -- rewritten first
from otf_core.testing.conformance.going_back import GoingBack  # noqa: E402
from otf_core.testing.conformance.guarded import Guarded  # noqa: E402
from otf_core.testing.conformance.holding import Holding  # noqa: E402
from otf_core.testing.conformance.idle import Idle  # noqa: E402
from otf_core.testing.conformance.remembering import Remembering  # noqa: E402
from otf_core.testing.conformance.small_run import Framework, Outcome, Probe  # noqa: E402
from otf_core.testing.conformance.wire import Wire  # noqa: E402

__all__ = [
    "Changing", "DelegateSuite", "Framework", "GoingBack", "Guarded", "Holding", "Idle", "Outcome",
    "Probe", "Remembering", "Wire",
]  # fmt: skip


class DelegateSuite(Idle, Holding, GoingBack, Changing, Guarded, Remembering, Wire):
    """All that a delegate must pass; a subclass named ``Test…`` sets ``framework``."""
