"""``otf-fit``: any PyTorch script, not one line changed. It comes with the native runner."""

from __future__ import annotations

import sys


def main() -> None:
    """Say that it is not here yet; exit 3."""
    sys.stderr.write(
        "otf-fit is not built yet: it comes with the native runner. Until then add "
        "OnTheFlyCallback() from otf_lightning to a Lightning Trainer.\n"
    )
    sys.exit(3)
