"""What the next step would do to each layer, without taking it; training thread.

An optimizer of torch steps copies of a layer's parameters, with copies of their states, one layer
at a time. Of any other class nobody knows what else its step changes: there the update is taken to
be the learning rate times the gradient, and said to be an estimate. So it is for LBFGS, whose step
needs the losses of several forwards.
"""

from __future__ import annotations

import collections
import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

_NEED_CLOSURE = (torch.optim.LBFGS,)


def ratio_of(
    params: Iterable[torch.Tensor], optimizers: Iterable[Optimizer], scale: float = 1.0
) -> dict[str, Any]:
    """Norms of a layer, and how much a step would change it.

    Args:
        params: with their gradients, which are multiplied by ``scale``.

    Returns:
        ``weight_norm``, ``grad_norm``, ``update_norm``, ``ratio`` as floats, None where there is
        none, and ``estimate``.
    """
    params = [p for p in params if p.grad is not None]
    weight, grad = norm(params), norm([p.grad / scale for p in params if p.grad is not None])
    found: dict[str, Any] = {
        "weight_norm": weight,
        "grad_norm": grad,
        "update_norm": None,
        "ratio": None,
        "estimate": False,
    }
    changes: list[torch.Tensor] = []
    for optimizer in optimizers:
        of_torch = type(optimizer).__module__.startswith("torch.optim.")
        if of_torch and not isinstance(optimizer, _NEED_CLOSURE):
            changes += _stepped(optimizer, params, scale)
        else:
            estimated = _estimated(optimizer, params, scale)
            found["estimate"] = found["estimate"] or bool(estimated)
            changes += estimated
    if changes:
        found["update_norm"] = update = norm(changes)
        if weight and update is not None:
            found["ratio"] = update / weight
    return found


def _stepped(
    optimizer: Optimizer, params: Iterable[torch.Tensor], scale: float
) -> list[torch.Tensor]:
    """What a step of a twin over copies adds to each of these."""
    wanted = {id(p) for p in params}
    groups: list[dict[str, Any]] = []
    state: dict[Any, Any] = collections.defaultdict(dict)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for group in optimizer.param_groups:
        twins = []
        for p in group["params"]:
            if id(p) in wanted:
                twin = p.detach().clone().requires_grad_()
                twin.grad = p.grad / scale
                if p in optimizer.state:
                    state[twin] = {k: _copied(v) for k, v in optimizer.state[p].items()}
                twins.append(twin)
                pairs.append((p, twin))
        if twins:
            own = {k: _copied(v) for k, v in group.items() if k != "params"}
            groups.append({**own, "params": twins})
    if not pairs:
        return []
    own_step = inspect.unwrap(type(optimizer).step)  # past the hooks that everybody's step has
    alone: Any = object.__new__(type(optimizer))
    # A scheduler has put a step of its own into the instance.
    vars(alone).update({k: v for k, v in vars(optimizer).items() if k != "step"})
    vars(alone).update(param_groups=groups, state=state)
    with torch.no_grad():
        own_step(alone)
        return [twin.detach() - p.detach() for p, twin in pairs]


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _estimated(
    optimizer: Optimizer, params: Iterable[torch.Tensor], scale: float
) -> list[torch.Tensor]:
    wanted = {id(p) for p in params}
    return [
        p.grad * (float(group.get("lr", 0.0)) / scale)
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) in wanted
    ]


def norm(tensors: Iterable[torch.Tensor]) -> float | None:
    """L2 norm over all as one vector, at least in float32; waits for the device."""
    with torch.no_grad():
        squares = [
            torch.linalg.vector_norm(_wide(t.detach().to_dense() if t.is_sparse else t.detach()))
            .double()
            .square()
            for t in tensors
        ]
        if not squares:
            return None
        home = squares[0].device
        return float(torch.stack([s.to(home) for s in squares]).sum().sqrt())


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    known = (torch.float32, torch.float64, torch.complex64, torch.complex128)
    return tensor if tensor.dtype in known else tensor.to(torch.float32)


def not_finite(tensor: torch.Tensor) -> tuple[int, int]:
    """How many NaN and how many Inf; waits for the device."""
    values = tensor.detach()
    values = values.coalesce().values() if values.layout is torch.sparse_coo else values
    if not (values.is_floating_point() or values.is_complex()) or values.is_meta:
        return 0, 0
    if values.dtype.itemsize == 1:  # float8 has no such functions
        values = values.to(torch.float32)
    if bool(torch.isfinite(values).all()):
        return 0, 0
    return int(torch.isnan(values).sum()), int(torch.isinf(values).sum())


def states_of(optimizers: Mapping[str, Optimizer], names: Mapping[int, str]) -> Any:
    """Tensors of the optimizers' states: optimizer, parameter, key, tensor."""
    for which, optimizer in optimizers.items():
        for p, values in optimizer.state.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, torch.Tensor):
                    yield which, names.get(id(p), "?"), key, value
