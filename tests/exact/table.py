"""All configurations, of Lightning and of the Runner."""

from __future__ import annotations

from typing import Final

from tests.exact.configs import CONFIGS as LIGHTNING
from tests.exact.configs import Config
from tests.exact.native_configs import CONFIGS as RUNNER

CONFIGS: Final[dict[str, Config]] = {**LIGHTNING, **RUNNER}
