"""The framework of examples/own_framework.py passes the suite."""

from __future__ import annotations

from otf_core.testing.conformance import DelegateSuite
from tests.testing.own import Own


class TestOwn(DelegateSuite):
    framework = Own()
