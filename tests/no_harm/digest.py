"""All that decides how a run goes on, and all that it has logged, as one comparable value."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import lightning as L
import numpy as np
import torch

from tests.no_harm.configs import Tape


def of(trainer: L.Trainer) -> dict[str, Any]:
    """Weights, optimizers, schedules, RNG, metrics and every logged value; compare by ==."""
    module = trainer.lightning_module
    return {
        "weights": {n: _exact(t) for n, t in module.state_dict().items()},
        "optimizers": [_exact(o.state_dict()) for o in trainer.optimizers],
        "schedules": [_exact(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
        "torch": _exact(torch.get_rng_state()),
        "numpy": _exact(np.random.get_state()[1]),
        "random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "callback_metrics": {n: _exact(v) for n, v in trainer.callback_metrics.items()},
        "callbacks": {
            type(c).__name__: _exact({k: v for k, v in c.state_dict().items() if "path" not in k})
            for c in trainer.callbacks
            if c.state_dict() and type(c).__name__ not in ("ModelCheckpoint", "Timer")
        },
        "steps": (trainer.global_step, trainer.current_epoch),
        "logged": list(trainer.logger.lines) if isinstance(trainer.logger, Tape) else None,
    }


def _exact(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        t = value.detach().contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        return str(t.dtype), tuple(t.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(k): _exact(v) for k, v in value.items() if k != "best_k_models"}
    if isinstance(value, list | tuple):
        return [_exact(v) for v in value]
    if isinstance(value, float):
        return value.hex()
    return repr(value) if not isinstance(value, int | str | type(None)) else value
