"""The callback of ``OTF_AUTO=1`` (``otf_core.auto``), which gives way to one of the user's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import lightning as L

from otf_lightning.callback import OnTheFlyCallback


class AutoCallback(OnTheFlyCallback):
    """Added by Lightning itself; does nothing in a fit that has another OnTheFlyCallback."""

    gives_way = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """As OnTheFlyCallback's; only now is it known what the script and the module have added."""
        ours: list[Any] = [c for c in trainer.callbacks if isinstance(c, OnTheFlyCallback)]
        # An installation that is known twice has two of these.
        if not ours or min(ours, key=lambda c: c.gives_way) is self:
            super().setup(trainer, pl_module, stage)


def callback(env: Mapping[str, str]) -> AutoCallback:
    """With the options that ``OTF_OPTIONS`` has, as JSON.

    Raises:
        ValueError: it is no JSON object, or has what OnTheFlyCallback does not take.
    """
    given = env.get("OTF_OPTIONS") or "{}"
    allowed = [name for name in inspect.signature(OnTheFlyCallback).parameters if name != "self"]
    try:
        options = json.loads(given)
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        msg = (
            f"OTF_OPTIONS was asked to be {given!r}; allowed: a JSON object, as "
            '{"checkpoint_every": "10min"}'
        )
        raise ValueError(msg)  # noqa: TRY004 -- of the value of an environment variable
    if unknown := options.keys() - set(allowed):
        msg = f"OTF_OPTIONS has {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}"
        raise ValueError(msg)
    return AutoCallback(**options)
