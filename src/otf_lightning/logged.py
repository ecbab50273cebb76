"""What ``self.log`` has gathered half way through an epoch, to plain values and back.

``epoch_loop._results`` is built anew: a new process has none, and a later step has other keys. At
the gate that of the validation is empty.
"""

# ruff: noqa: SLF001 -- the state lies in private names; ``inside.PRIVATE`` lists them

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.trainer.connectors.logger_connector import result

from otf_core.state.plain_values import Decoder, Encoder

# The only ones that Lightning allows, by a name that can be stored.
REDUCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "torch.mean": torch.mean,
    "torch.max": torch.max,
    "torch.min": torch.min,
    "torch.sum": torch.sum,
    "max": max,
    "min": min,
    "sum": sum,
}


def capture_results(trainer: L.Trainer, enc: Encoder) -> dict[str, Any]:
    """Every value and metric with how it is reduced; training thread."""
    found: dict[str, Any] = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        own = vars(metric.meta)
        meta = {name: value for name, value in own.items() if name not in ("_sync", "reduce_fx")}
        meta["reduce_fx"] = _name_of(metric.meta.reduce_fx)
        sync = metric.meta.sync
        found[key] = {
            "meta": enc(meta),
            "sync": {"_should": sync.should, "rank_zero_only": sync.rank_zero_only},
            "is_tensor": metric.is_tensor,
            "state": enc.attributes(metric),
        }
    return found


def apply_results(trainer: L.Trainer, saved: Mapping[str, Any]) -> None:
    """Put back what capture_results returned; training thread."""
    live: Any = trainer.fit_loop.epoch_loop._results
    groups = {key: metric.meta.sync.group for key, metric in live.items()}
    dec = Decoder(skip={"meta", "value"})  # not deleted where the snapshot has none
    live.clear()
    for key, row in saved.items():
        reduction = REDUCTIONS[row["meta"]["reduce_fx"]]
        meta: Any = result._Metadata(**{**row["meta"], "reduce_fx": reduction})
        meta.sync = result._Sync(fn=trainer.strategy.reduce, _group=groups.get(key), **row["sync"])
        live[key] = metric = result._ResultMetric(meta, row["is_tensor"])
        dec.attributes(metric, row["state"])
        metric.meta = meta
        if not row["is_tensor"]:
            module = trainer.lightning_module
            metric.value = module.get_submodule(meta.metric_attribute)


def _name_of(reduction: Any) -> str:
    return next(name for name, known in REDUCTIONS.items() if known is reduction)
