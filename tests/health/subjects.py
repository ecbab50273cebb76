"""A training of plain torch things, as a check is given it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from otf_core.health.budget import Budget
from otf_core.health.data import fresh
from otf_core.state.parked import parked
from otf_core.state.rng import get_rng
from tests.exact.digest import exact

FEATURES, CLASSES = 6, 3


def loader(n: int = 32, batch_size: int = 8, **kwargs: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, FEATURES, generator=generator)
    y = torch.randint(CLASSES, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, **kwargs)


class Plain:
    """Cross entropy of one module; a Subject."""

    loss_scale = 1.0
    world_size, rank = 1, 0
    others: Mapping[str, Any] = {}
    not_state: frozenset[str] = frozenset()
    why_no_step: str | None = None

    def __init__(
        self,
        module: nn.Module,
        data: Any = None,
        *,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        history: Any = (),
    ) -> None:
        self.module = module
        self.modules = {"": module}
        self.optimizers = {} if optimizer is None else {"optimizer": optimizer}
        self.loaders = [loader() if data is None else data]
        self.device = torch.device("cpu")
        self.history = history
        self._loss = loss or cross_entropy

    def batches(self) -> Iterator[Any]:
        return iter(fresh(self.loaders[0]))

    def to_device(self, batch: Any) -> Any:
        return batch

    def loss_of(self, batch: Any) -> Any:
        return self._loss(self.module, batch)

    def parked(self) -> contextlib.AbstractContextManager[None]:
        return parked(self.modules, self.loaders)

    def digest(self) -> Any:
        """All that a check could change."""
        optimizers = [exact_of_optimizer(o) for o in self.optimizers.values()]
        return copy.deepcopy(
            {
                "state": {n: exact(t) for n, t in self.module.state_dict().items()},
                "gradients": {n: exact(p.grad) for n, p in self.module.named_parameters()},
                "trained": {n: p.requires_grad for n, p in self.module.named_parameters()},
                "modes": {n: m.training for n, m in self.module.named_modules()},
                "hooks": {n: len(m._forward_hooks) for n, m in self.module.named_modules()},
                "optimizers": optimizers,
                "rng": exact(get_rng()),
                "grad": torch.is_grad_enabled(),
            }
        )


def exact_of_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    state = optimizer.state_dict()
    return exact(state["param_groups"]), {str(k): exact(v) for k, v in state["state"].items()}


def cross_entropy(module: nn.Module, batch: Any) -> Any:
    x, y = batch
    return nn.functional.cross_entropy(module(x), y)


def net(*middle: nn.Module, width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, width), *middle, nn.Linear(width, CLASSES))


def budget(steps: int = 2, limit_s: float = 60.0, **kwargs: Any) -> Budget:
    return Budget(steps, limit_s, **kwargs)


def trained(subject: Plain, steps: int = 3) -> None:
    """A few steps, so that there are gradients and states of the optimizer."""
    [optimizer] = subject.optimizers.values()
    for batch, _ in zip(subject.batches(), range(steps), strict=False):
        optimizer.zero_grad()
        subject.loss_of(batch).backward()
        optimizer.step()
