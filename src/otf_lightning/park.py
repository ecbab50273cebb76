"""What a Lightning fit holds on its device; training thread."""

from __future__ import annotations

from typing import Any, Final

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from otf_core.state.on_device import Holdings
from otf_core.state.park import Parking

# Others hold weights in ways of their own.
PARKED: Final = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)


def parking_of(trainer: L.Trainer) -> Parking:
    """Of this rank."""
    return Parking(lambda: holdings_of(trainer), lambda: trainer.strategy.root_device)


def holdings_of(trainer: L.Trainer) -> Holdings:
    """Module, optimizers, scaler, and the callbacks with their averages."""
    strategy = trainer.strategy
    why_not = None
    if not isinstance(strategy, PARKED):
        why_not = (
            f"A run under {type(strategy).__name__} cannot be parked: it holds weights in ways of "
            "its own. Allowed: a single device, DDP, FSDP2 (ModelParallelStrategy)."
        )
    optimizers = {f"optimizer {i}": each for i, each in enumerate(trainer.optimizers)}
    callbacks = {
        f"callback {type(each).__qualname__}": each
        for each in trainer.callbacks
        if not hasattr(each, "is_otf")
    }
    roots: dict[str, Any] = {
        "model": trainer.lightning_module,
        "wrapped model": strategy.model,
        **optimizers,
        "precision": trainer.precision_plugin,
        **callbacks,
    }
    return Holdings(roots, fence=[trainer, strategy, *trainer.loggers], why_not=why_not)
