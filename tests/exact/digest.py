"""All that a run is at its end, as one comparable value: equal only if equal bit for bit."""

from __future__ import annotations

import collections
import hashlib
import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from otf_lightning import OnTheFlyCallback

USERS = ("lightning.", "tests.")
CLOCKS = ("_start_time", "_last_time_checked", "_update_called")
# Names of files: one that is there already gets another name.
PATHS = (
    "dirpath",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "_last_checkpoint_saved",
    "best_k_models",
)
# Made when a checkpoint is, and empty.
HYPERPARAMETERS = ("_hparams", "_hparams_name", "_log_hyperparams")


def of(trainer: L.Trainer) -> dict[str, Any]:
    """Weights, optimizers, schedules, averages, RNG, metrics, attributes; compare by ==."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {
        **_of_modules({"": trainer.lightning_module}, trainer),
        "precision": exact(trainer.precision_plugin.state_dict()),
        "callbacks": [_callback(c) for c in callbacks if _is_users(c)],
        "steps": (
            trainer.global_step,
            trainer.current_epoch,
            trainer.fit_loop.epoch_loop._batches_that_stepped,
            trainer.fit_loop.epoch_loop.batch_progress.total.completed,
        ),
    }


def of_run(run: Any) -> dict[str, Any]:
    """The same of a fit of the Runner."""
    owner = run.module
    modules = {f"{place}": part for place, part in enumerate(run.parts)}
    return {
        **_of_modules(modules, run),
        "precision": exact(run.precision.state()),
        "callbacks": [_callback(c) for c in run.listening if _is_users(c)],
        "owner": None if isinstance(owner, torch.nn.Module) else _attributes(owner),
        "steps": exact(run.counters.state()),
    }


def _of_modules(modules: dict[str, torch.nn.Module], trainer: Any) -> dict[str, Any]:
    """What both sides have, in modules and under Lightning's names."""
    named = {f"{m}.{n}": p for m, part in modules.items() for n, p in part.named_parameters()}
    names = {p: n for n, p in named.items()}
    of_optimizers = [p for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
    loose = {p: f"loose {i}" for i, p in enumerate(of_optimizers) if p not in names}
    data = trainer.datamodule
    configs = getattr(trainer, "lr_scheduler_configs", None)
    schedulers = [c.scheduler for c in (trainer.schedulers if configs is None else configs)]
    return {
        "weights": {
            f"{m}.{n}": exact(t)
            for m, part in modules.items()
            for n, t in part.state_dict().items()
        },
        "loose": [exact(p) for p in loose],
        "buffers": {
            f"{m}.{n}": exact(t) for m, part in modules.items() for n, t in part.named_buffers()
        },
        "requires_grad": {n: p.requires_grad for n, p in named.items()},
        "optimizers": [_optimizer(o, {**names, **loose}) for o in trainer.optimizers],
        "schedules": [exact(s.state_dict()) for s in schedulers],
        "torch": exact(torch.get_rng_state()),
        "numpy": exact(np.random.get_state()),
        "random": exact(random.getstate()),
        "callback_metrics": {n: exact(v) for n, v in trainer.callback_metrics.items()},
        "module": {
            f"{m}.{n}": _attributes(mod)
            for m, part in modules.items()
            for n, mod in part.named_modules()
        },
        "data": _attributes(data) if data is not None else None,
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where the two are not equal, as paths; a few of them."""
    if one == other:
        return []
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys(), key=str)
        pairs = [(str(k), one.get(k, "none"), other.get(k, "none")) for k in keys]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(one, other, strict=False))]
    found = [
        place
        for key, a, b in pairs
        for place in differences(a, b, f"{path}.{key}" if path else key)
    ]
    if not found:
        found = [f"{path}: {str(one)[:60]} became {str(other)[:60]}"]
    return [*found[:5], f"{path} …"] if len(found) > 6 else found


def _is_users(callback: Any) -> bool:
    module = type(callback).__module__
    ours = hasattr(callback, "is_otf") or isinstance(callback, OnTheFlyCallback)
    return not ours and not isinstance(callback, Timer) and module.startswith(USERS)


def _optimizer(optimizer: torch.optim.Optimizer, names: dict[Any, str]) -> Any:
    groups = [
        {k: [names[p] for p in v] if k == "params" else exact(v) for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return groups, {names[p]: exact(state) for p, state in optimizer.state.items()}


def _callback(callback: Any) -> Any:
    found: dict[str, Any] = {"class": type(callback).__name__, **_attributes(callback)}
    if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
        average = callback._average_model
        found["average"] = exact(average.state_dict()) if average is not None else None
    if isinstance(callback, ModelCheckpoint):
        found["best_k_models"] = sorted(float(v).hex() for v in callback.best_k_models.values())
    return found


def _attributes(obj: Any) -> dict[str, Any]:
    skipped = (*CLOCKS, *PATHS, *HYPERPARAMETERS)
    own = {n: v for n, v in vars(obj).items() if n not in skipped}
    if isinstance(obj, torch.nn.Module):
        own = {n: v for n, v in own.items() if n not in _MODULE or n == "training"}
    return {n: exact(v) for n, v in own.items() if not isinstance(exact(v), _Unknown)}


_MODULE = vars(L.LightningModule()).keys() | {"_metric_attributes"}


class _Unknown:
    """Of a type whose value nobody can compare."""


def exact(value: Any) -> Any:
    """Any value as one that is equal only to the same; ``_Unknown`` where that cannot be told."""
    if isinstance(value, torch.Tensor):
        t = value.detach().contiguous()
        data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        return str(t.dtype), tuple(t.shape), value.requires_grad, _hash(data)
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, _hash(value.tobytes())
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, bool | int | str | bytes | type(None)):
        return value
    if isinstance(value, torch.Generator):
        return exact(value.get_state())
    if isinstance(value, random.Random):
        return exact(value.getstate())
    if isinstance(value, np.random.Generator):
        return exact(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return exact(value.get_state())
    return _container(value)


def _container(value: Any) -> Any:
    if isinstance(value, dict):
        items = {str(k): exact(v) for k, v in value.items()}
        return _Unknown() if any(isinstance(v, _Unknown) for v in items.values()) else items
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(repr, value))
    if isinstance(value, list | tuple | collections.deque):
        kind = "deque" if isinstance(value, collections.deque) else "sequence"
        values = [exact(v) for v in value]
        return _Unknown() if any(isinstance(v, _Unknown) for v in values) else (kind, values)
    return _Unknown()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
