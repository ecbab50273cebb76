"""A script under ``otf-fit`` passes the suite that every delegate must pass."""

from __future__ import annotations

import pytest

from otf_core.testing.conformance import DelegateSuite
from tests.script.small_script import Script, forks  # noqa: F401 -- the fixture


@pytest.mark.long
class TestScript(DelegateSuite):
    framework = Script()
