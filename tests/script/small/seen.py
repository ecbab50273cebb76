"""The end of the probe that is in the script's process; see tests/script/small_script.py."""

from __future__ import annotations

import builtins
from typing import Any

_eye: Any = vars(builtins)["__eye__"]
width, epochs, watch = _eye.width, _eye.epochs, _eye.watch
