"""Whether the ranks of a run have the same parameters; training thread.

With one rank there is nothing to compare, and all is well. With several the parameters are
compared by the digests of their bytes, where the others can be asked: that is a collective, which
all of them must call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from otf_core.health.budget import Budget
from otf_core.health.report import Health, aligned, health, some
from otf_core.health.subject import Subject
from otf_core.state.parts import named_parameters
from otf_core.telemetry.norms import local_part

# Called on every rank with its own part; what all have given, in the order of the ranks.
Gather = Callable[[Any], Sequence[Any]]


def check(
    subject: Subject,
    budget: Budget,
    *,
    gather: Gather | None = None,
    require_all_ranks: bool = False,
    sample_weights: int = 0,
) -> Health:
    """Compare the parameters over all ranks.

    Args:
        gather: None: the others cannot be asked; ``all_ranks`` is torch.distributed's.
        require_all_ranks: not to have asked the others is an issue.
        sample_weights: compare so many parameters, evenly spread; 0 for all.
    """
    world_size = subject.world_size
    device, found_backend = str(subject.device), backend()
    here = {
        "world_size": world_size,
        "rank": subject.rank,
        "backend": found_backend,
        "device": device,
    }
    lines = aligned(
        [
            ("Ranks", str(world_size)),
            ("Backend", found_backend or "none"),
            ("Device", device),
        ],
        indent="",
    )
    if world_size == 1:
        return health({**here, "differing": []}, [*lines, "One rank, nothing to compare."], ok=True)
    if gather is None:
        said = "Parameters were not compared: the other ranks were not asked."
        return health({**here, "differing": None}, [*lines, said], ok=not require_all_ranks)
    own = digests(subject, budget, sample_weights)
    found = gather({"device": device, "digests": own})
    differing = _differing([part["digests"] for part in found])
    fields = {
        **here,
        "compared": len(own),
        "devices": [part["device"] for part in found],
        "differing": [{"parameter": n, "ranks": ranks} for n, ranks in differing.items()],
    }
    lines += _told(differing, len(own), world_size)
    return health(fields, lines, ok=not differing)


def backend() -> str | None:
    """Of the default process group; None where there is none."""
    if dist.is_available() and dist.is_initialized():
        return str(dist.get_backend())
    return None


def all_ranks(part: Any) -> list[Any]:
    """A Gather over the default process group."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, part)
    return found


def digests(subject: Subject, budget: Budget, sample_weights: int = 0) -> dict[str, str]:
    """Of the parameters' bytes, by name; those on a device are copied to the host one by one."""
    params = list(named_parameters(subject.modules).items())
    if 0 < sample_weights < len(params):
        params = [params[i * len(params) // sample_weights] for i in range(sample_weights)]
    found = {}
    for name, p in params:
        budget.check()
        found[name] = digest_of(local_part(p))
    return found


def digest_of(tensor: torch.Tensor) -> str:
    """Equal only for tensors that are equal bit for bit, in shape and dtype as well."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)} "
    found = hashlib.blake2b(kind.encode(), digest_size=16)
    if tensor.numel():
        flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _differing(parts: Sequence[Mapping[str, str]]) -> dict[str, list[int]]:
    """Parameter -> the ranks that have another than rank 0, or have none."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {
        name: [i for i, part in enumerate(parts) if part.get(name) != parts[0].get(name)]
        for name in names
    }
    return {name: ranks for name, ranks in found.items() if ranks}


def _told(differing: Mapping[str, list[int]], compared: int, world_size: int) -> list[str]:
    if not differing:
        return [f"{compared} parameters are bit for bit the same on {world_size} ranks."]
    rows = [
        (f"{name}", f"rank {', '.join(map(str, ranks))} has another than rank 0")
        for name, ranks in list(differing.items())[:5]
    ]
    head = f"{len(differing)} of {compared} parameters differ: {some(list(differing), 3)}."
    return [head, *aligned(rows)]
