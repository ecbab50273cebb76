"""Norms of weights and gradients; training thread only.

Rule 1: no random numbers, no graph, no wait for a device: the result is a 0-dim tensor that stays
where the parameters are.
Rule 2: never wrong and never fatal: what cannot be computed that way gives None, an out-of-memory
of ours included.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, UninitializedBuffer, UninitializedParameter

_PLAIN = (Tensor, Parameter)
_LAZY = (UninitializedParameter, UninitializedBuffer)
# torch._foreach_norm and vector_norm know these; the others are widened one by one.
_KNOWN = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
)
# Half precision ends at 65504 and has 11 bits: its norm is computed wider.
_HALF = frozenset({torch.float16, torch.bfloat16})


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which a rank holds a part; reading the whole is a collective.

    Known by its method: the class has no public name in torch 2.4, and is missing in builds
    without distributed.
    """
    return type(tensor) not in _PLAIN and hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """The part of a DTensor that lies on this rank; any other tensor itself."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    part: Tensor = sharded.to_local()
    return part


def weight_norm(params: Iterable[Tensor]) -> Tensor | None:
    """L2 norm over all parameters as one vector; training thread.

    Returns None where there is nothing with a value: no parameters, or only lazy, meta or integer
    ones. A parameter that occurs twice counts once. Of a sharded parameter (DTensor) the part on
    this rank counts, since the whole would need a collective.
    """
    return _norm({id(p): p for p in params}.values())


def grad_norm(params: Iterable[Tensor]) -> Tensor | None:
    """L2 norm over all gradients that are there, None if there are none; training thread.

    What lies in ``.grad`` is what is measured: before or after clipping, scaled by a GradScaler or
    not, is decided by when this is called. Sparse gradients with repeated rows are summed first; on
    a device that would be a wait, so the answer is None there.
    """
    return _norm([p.grad for p in {id(p): p for p in params}.values() if p.grad is not None])


def combine_norms(norms: Iterable[Tensor | None]) -> Tensor | None:
    """The norm over several optimizers' parts: the root of the sum of squares; training thread."""
    known = [norm for norm in norms if norm is not None]
    if not known:
        return None
    with torch.no_grad():
        return _total(known)


def _norm(tensors: Iterable[Tensor]) -> Tensor | None:
    try:
        with torch.no_grad():
            return _norm_of(tensors)
    except (RuntimeError, TypeError):
        # An unforeseen tensor subclass, or no memory left for a few scalars. The run must not end
        # for a number on a chart; an error of the run itself is raised by its own next call.
        return None


def _norm_of(tensors: Iterable[Tensor]) -> Tensor | None:
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    parts: list[Tensor] = []
    for tensor in tensors:
        if isinstance(tensor, _LAZY) or tensor.is_meta:
            continue
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        local = local_part(tensor)
        if local.layout is not torch.strided:
            dense = _values(local)
            if dense is None:
                return None
            local = dense
        if local.dtype in _KNOWN:
            groups.setdefault((local.device, local.dtype), []).append(local)
        else:  # float8 and its like
            parts.append(torch.linalg.vector_norm(local.to(torch.float32)))
    for (_, dtype), group in groups.items():
        wide = torch.float32 if dtype in _HALF else None
        parts.extend(torch._foreach_norm(group, 2.0, wide))  # noqa: SLF001 -- as get_total_norm, which has no dtype
    return _total(parts) if parts else None


def _values(sparse: Tensor) -> Tensor | None:
    """The stored values of a sparse tensor, each place once; None if that needs a wait."""
    if sparse.layout is not torch.sparse_coo:
        return sparse.values()  # compressed layouts hold each place once
    if sparse.is_coalesced():
        return sparse.values()
    return sparse.coalesce().values() if sparse.is_cpu else None


def _total(norms: list[Tensor]) -> Tensor:
    # A number of the device brought to the host would be a wait; the other way round is not.
    home = next((n.device for n in norms if not n.is_cpu), norms[0].device)
    dtype = torch.float64 if any(n.dtype is torch.float64 for n in norms) else torch.float32
    stacked = torch.stack([n.to(home, dtype, non_blocking=not n.is_cpu) for n in norms])
    total: Tensor = torch.linalg.vector_norm(stacked)
    return total
