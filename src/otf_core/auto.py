"""What ``OTF_AUTO=1`` does: every Trainer of the process gets the callback, with no line of code.

Lightning calls this for each Trainer that is made, in every program of an environment in which otf
is installed. Rule: without ``OTF_AUTO=1`` it does nothing at all, and nothing is imported.
"""

import os
from typing import Any


def callbacks() -> list[Any]:
    """Of the entry points ``lightning.pytorch.callbacks_factory``.

    Raises:
        ValueError: ``OTF_OPTIONS`` is not what it may be.
    """
    if os.environ.get("OTF_AUTO") != "1":
        return []
    import importlib
    import random

    # The script may have seeded it by now, and libraries draw from it when they are imported.
    state = random.getstate()
    try:
        auto = importlib.import_module("otf_lightning.auto")
    finally:
        random.setstate(state)
    return [auto.callback(os.environ)]


def callbacks_elsewhere() -> list[Any]:
    """Of ``pytorch_lightning.callbacks_factory``: another package, with classes of its own."""
    if os.environ.get("OTF_AUTO") == "1":
        import sys

        sys.stderr.write(
            "otf: OTF_AUTO=1, and a Trainer of pytorch_lightning: it is not under control; "
            "allowed: a Trainer of lightning (import lightning as L)\n"
        )
    return []
