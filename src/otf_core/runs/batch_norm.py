"""Running statistics of BatchNorm, gathered anew for weights that nobody has trained; training
thread.

As ``torch.optim.swa_utils.update_bn`` does it (Izmailov et al., "Averaging Weights Leads to Wider
Optima and Better Generalization", 2018): the module in training mode, each batch
forward once, the statistics a cumulative mean over the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from otf_core.errors import CommandError, ErrorCode


class Recalibrated(NamedTuple):
    """How many layers have new statistics, and over how many batches."""

    layers: int
    batches: int


def recalibrate(
    module: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    on_batch: Callable[[int], None] = lambda *_: None,
) -> Recalibrated:
    """Gather the running statistics of every BatchNorm layer anew, in place.

    Modes and momenta are put back. Where something raises the statistics are as they were; those
    of a layer that no forward comes by stay. Other state that a forward in training mode changes,
    and RNG, are the caller's to park.

    Args:
        batches: not asked for where there is no such layer.
        forward: of the module and a batch; what it returns is not used.
        on_batch: told how many batches are done; may raise, to cancel.

    Raises:
        CommandError: ``bad_payload``, there is no batch, or what was gathered is not finite.
    """
    layers = [m for m in module.modules() if _has_statistics(m)]
    if not layers:
        return Recalibrated(0, 0)
    modes = {m: m.training for m in module.modules()}
    momenta = [layer.momentum for layer in layers]
    before = [_statistics(layer) for layer in layers]
    done = 0
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch then keeps a cumulative mean
        module.train()
        with torch.no_grad():
            for done, batch in enumerate(batches, 1):
                forward(module, batch)
                on_batch(done)
        reached = [bool(layer.num_batches_tracked) for layer in layers]
        _refuse_unusable(layers, done)
    except BaseException:
        for layer, saved in zip(layers, before, strict=True):
            _put_back(layer, saved)
        raise
    finally:
        for m, mode in modes.items():
            m.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for layer, saved, was_reached in zip(layers, before, reached, strict=True):
        if not was_reached:
            _put_back(layer, saved)
    return Recalibrated(sum(reached), done)


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that ``recalibrate`` gathers, by their names, shared ones under each; live."""
    return {
        f"{name}.{own}" if name else own: buffer
        for name, layer in module.named_modules(remove_duplicate=False)
        if _has_statistics(layer)
        for own, buffer in layer.named_buffers(recurse=False)
    }


def _has_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _statistics(layer: _BatchNorm) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in layer.buffers(recurse=False)]


def _put_back(layer: _BatchNorm, saved: list[torch.Tensor]) -> None:
    for buffer, value in zip(layer.buffers(recurse=False), saved, strict=True):
        buffer.copy_(value)


def _refuse_unusable(layers: Iterable[_BatchNorm], batches: int) -> None:
    found = [b for layer in layers for b in layer.buffers(recurse=False)]
    if not batches or not all(bool(b.isfinite().all()) for b in found):
        why = "what they gather is not finite" if batches else "there is no batch"
        detail = f"BatchNorm statistics were to be gathered anew, but {why}; they are as they were."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
