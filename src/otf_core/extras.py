"""What is installed only where it was asked for, and the sentence that says so. Imports nothing.

``EXTRAS`` is what pyproject.toml has under optional-dependencies, by the names that are imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Final

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "dashboard": ("starlette", "uvicorn", "websockets"),
    "samples": ("pyarrow", "sklearn"),
    "tui": ("textual", "websockets"),
    "agents": ("mcp",),
    "demo": ("starlette", "uvicorn", "websockets", "sklearn"),
}
PACKAGES: Final[Mapping[str, str]] = {"sklearn": "scikit-learn"}  # named otherwise than imported


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed; any thread."""
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    return [PACKAGES.get(name, name) for name in absent]


def how_to(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'otf-lightning[{extra}]'"


def lacking(what: str, extra: str) -> str | None:
    """Why `what` cannot be had here and how it comes to be, in one line; None where it can."""
    absent = missing(extra)
    if not absent:
        return None
    *most, last = absent
    named = f"{', '.join(most)} and {last}" if most else last
    return f"{what} needs {named}: {how_to(extra)}"
