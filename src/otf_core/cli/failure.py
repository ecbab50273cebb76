"""How a command of ``otf`` ends that has not done what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_NO_RUN: Final = 4


class Failure(click.ClickException):
    """Ends the command with a status, said on stderr or, with --json, on stdout."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("detail") or error.get("error")))
        self.status, self.error = status, dict(error)
