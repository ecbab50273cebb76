"""A script under ``otf-fit`` passes the suite that every delegate must pass."""

from __future__ import annotations

from otf_core.testing.conformance import DelegateSuite
from tests.script.small_script import Script, forks  # noqa: F401 -- the fixture


class TestScript(DelegateSuite):
    framework = Script()
