"""TIES: trim, elect sign, disjoint merge of what each source has changed since a common base.

Yadav, Tam, Choshen, Raffel, Bansal: "TIES-Merging: Resolving Interference When Merging Models",
NeurIPS 2023, algorithm 1. With tau_t = theta_t - theta_base of each source t:

    trim      keep the density share of tau_t with the largest magnitude, over all weights that
              are not the same in all sources; the rest is 0
    elect     gamma = sign(sum_t w_t tau_t)
    merge     tau = sum_{t in A} w_t tau_t / sum_{t in A} w_t,  A = {t: sign(tau_t) = gamma != 0}
    theta     = theta_base + scale * tau

The weights w_t are the same in the paper. Where the changes cancel out exactly nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from otf_core.runs.merging import Job, Recipe, pieces, wide
from otf_core.runs.weights import Weights

# A magnitude is compared as float32, whose bits are in the order of what they say.
_LOW_BITS: Final = 16
_BINS: Final = 2**_LOW_BITS


def ties(job: Job) -> Recipe:
    """Reads the sources twice more, for the magnitude from which on a change is kept."""
    base, density, scale = job.options.base, job.options.density, job.options.scale
    if base is None:
        job.refuse("what the sources have begun from was not given", field="base")
    if not 0 < density <= 1:
        job.refuse(f"density is {density}; allowed: above 0, at most 1", field="density")
    if not 0 < abs(scale) < float("inf"):
        job.refuse(f"scale is {scale}; allowed: a number that is not 0", field="scale")
    votes = [weight / max(job.weights) for weight in job.weights]  # 1 where they are the same
    least = [_least(job, source, base, density) for source in job.sources]

    def combine(values: list[torch.Tensor]) -> torch.Tensor:
        begun, changes = values[-1], [value - values[-1] for value in values[:-1]]
        kept = [
            torch.where(_magnitude(change) >= limit, change, 0.0)
            for change, limit in zip(changes, least, strict=True)
        ]
        return begun + scale * _disjoint_mean(kept, votes)

    job.told.append(
        f"ties keeps the largest {density:.0%} of each source's change since {base.label}"
    )
    return Recipe(
        lambda name: job.by_blocks(name, [(each, name) for each in job.all], combine), job.weights
    )


def _disjoint_mean(changes: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    weighted = [w * change for w, change in zip(weights, changes, strict=True)]
    elected = torch.stack(weighted).sum(0).sign()
    total, share = torch.zeros_like(elected), torch.zeros_like(elected)
    for w, change, part in zip(weights, changes, weighted, strict=True):
        agrees = change.sign() == elected
        total += torch.where(agrees, part, 0.0)
        share += w * agrees
    return torch.where(share > 0, total / share, 0.0)


def _least(job: Job, source: Weights, base: Weights, density: float) -> float:
    """The magnitude of the last change that is kept: exact, found in two passes over all."""
    number = sum(source.shapes[name].numel() for name in job.names)
    rank = max(1, int(density * number))
    if rank >= number:
        return 0.0
    high, rank = _bin(_counted(job, source, base, None), rank)
    low, _ = _bin(_counted(job, source, base, high), rank)
    bits = torch.tensor(high * _BINS + low, dtype=torch.int32)
    return bits.view(torch.float32).item()


def _bin(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin of the value of this rank, counted from the largest, and its rank within."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - before


def _counted(job: Job, source: Weights, base: Weights, high: int | None) -> torch.Tensor:
    """How many magnitudes have which upper bits; or, of those with these, which lower ones."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for done, name in enumerate(job.names, 1):
        for change in _changes(source, base, name):
            bits = _magnitude(change).view(torch.int32)
            if high is None:
                found = bits >> _LOW_BITS
            else:
                found = bits[bits >> _LOW_BITS == high] & (_BINS - 1)
            counts += torch.bincount(found, minlength=_BINS)
        job.on_tensor(done, len(job.names))
    return counts


def _changes(source: Weights, base: Weights, name: str) -> Iterator[torch.Tensor]:
    for begin, end in pieces(source.shapes[name].numel()):
        yield wide(source.block(name, begin, end)) - wide(base.block(name, begin, end))


def _magnitude(change: torch.Tensor) -> torch.Tensor:
    return change.abs().to(torch.float32)
