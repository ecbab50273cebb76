"""What the script gives to modules, callbacks and data module; see ``otf_core.state.given``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import lightning as L

from otf_core.state.given import Given, Settled, given, settle, unchanged, with_text
from otf_core.state.plain_values import Encoder
from otf_lightning.exact_report import LIBRARIES
from otf_lightning.inside import MODULE_OWN
from otf_lightning.positions import data_attributes
from otf_lightning.snapshot import callbacks_with_state

CALLBACKS, MODULES, DATA = "callback attributes", "module attributes", "data module attributes"
PARTS: Final = (CALLBACKS, MODULES, DATA)


def given_by_script(trainer: L.Trainer) -> dict[str, Given]:
    """As of ``setup``, before anything of the fit has run; no library's module is asked."""
    enc = Encoder(lambda tensor: tensor, small=True, skip=MODULE_OWN)
    modules = {
        name: enc.attributes(module)
        for name, module in trainer.lightning_module.named_modules()
        if type(module).__module__.partition(".")[0] not in LIBRARIES
    }
    callbacks = {name: enc.attributes(c) for name, c in callbacks_with_state(trainer).items()}
    return {
        CALLBACKS: given(callbacks),
        MODULES: given(modules),
        DATA: given({"": data_attributes(trainer)}),
    }


def unchanged_in(exact: Mapping[str, Any], first: Mapping[str, Given]) -> dict[str, Given]:
    """What of it a snapshot has as the script gave it."""
    return {part: unchanged(first[part], _owners(part, exact[part])) for part in PARTS}


def settle_in(exact: dict[str, Any], here: Mapping[str, Given]) -> list[Settled]:
    """Put this script's text into a snapshot; says where the two differ."""
    found = []
    for part, saved in exact.get("given", {}).items():
        settled = settle(saved, here[part])
        owners = with_text(_owners(part, exact[part]), settled)
        exact[part] = owners[""] if part == DATA else owners
        found.append(settled)
    return found


def _owners(part: str, saved: dict[str, Any]) -> dict[str, Any]:
    return {"": saved} if part == DATA else saved
