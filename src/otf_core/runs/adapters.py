"""Fusing adapters: what was trained beside a model that has stayed the same.

An adapter is recognised by its names, those of peft, loralib, AdapterHub and diffusers; whatever
else there is must be equal in all sources, and stays.

Low-rank pairs are merged as what they do, not as what they are. A layer with LoRA computes
(W + s B A) x (Hu et al., "LoRA", 2021), and the mean of B times the mean of A is not the mean of
B A: their cross terms come in, and two pairs that do the same may differ by any invertible R, as
(B R)(R^-1 A). So:

    where all sources have the same A, or the same B, the other is averaged, which is exact;
    else B A becomes the best approximation of sum_i w_i B_i A_i of the same rank, by its singular
    value decomposition (Eckart and Young, 1936), the square roots of the values in either factor.
    peft's ``combination_type="svd"`` does that of the full matrix; here it is computed from the
    factors, which is the same and needs no matrix of the layer's size.

How much of the mean is kept is told. Everything else is averaged by itself; what multiplies in
another way (LoHa, LoKr, AdaLoRA) is refused unless it is equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import torch

from otf_core.errors import ErrorCode
from otf_core.runs.merging import Job, Recipe, listed

# Parts of a dotted name; of what is asked, the beginnings of parts.
_BEGINNINGS: Final = (
    "lora", "adapter", "adaption_", "prefix", "prompt", "ia3_", "vera_lambda", "hada_", "lokr_",
    "oft_", "boft_", "fourierft_", "hra_", "ln_tuning", "modules_to_save", "trainable_tokens",
)  # fmt: skip
_RECOGNISED: Final = re.compile(rf"(?:^|[._])(?:{'|'.join(_BEGINNINGS)})", re.IGNORECASE)
_OTHER_PRODUCT: Final = re.compile(r"(?:^|[._])(?:hada_|lokr_|lora_E(?![a-z]))")
# The two factors of a product: the first is applied first.
_PAIRS: Final = (
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_down", "lora_up"),
    ("lora.down", "lora.up"),
)


def is_adapter(name: str) -> bool:
    """Whether this is the name of an adapter's tensor."""
    return _RECOGNISED.search(name) is not None


def adapters_of(job: Job) -> set[str]:
    """What is recognised. Raises CommandError ``unsupported`` where that is nothing."""
    found = {name for name in job.sources[0].shapes if is_adapter(name)}
    if not found:
        told = ", ".join(f"{beginning}*" for beginning in _BEGINNINGS)
        why = f"no tensor is recognised as an adapter by its name; recognised: {told}"
        job.refuse(why, field="strategy", code=ErrorCode.UNSUPPORTED)
    return found


def adapter(job: Job) -> Recipe:
    """A pair is merged when the first of its two is asked for; the other waits."""
    if found := [name for name in job.names if _OTHER_PRODUCT.search(name)]:
        why = f"{listed(found)} are factors of a product that cannot be averaged and kept as small"
        job.refuse(why, field="strategy", code=ErrorCode.UNSUPPORTED)
    pairs = _pairs(job)
    job.told.append(f"adapter merges {len(job.names)} tensors; the rest is equal in all and stays")
    if pairs:
        least = min((_merged(job, *pair)[2], pair[0]) for pair in pairs)
        job.told.append(
            f"of {len(pairs)} low-rank pairs the product is averaged and brought back to its rank; "
            f"kept is {least[0]:.1%} of its square norm, or more (least at {least[1]})"
        )
    pair_of = {name: pair for pair in pairs for name in pair}
    waiting: dict[str, torch.Tensor] = {}

    def combine(name: str) -> torch.Tensor:
        if name not in pair_of:
            return job.mean(name, job.weights)
        if name not in waiting:
            waiting.update(zip(pair_of[name], _merged(job, *pair_of[name])[:2], strict=True))
        return waiting.pop(name)

    return Recipe(combine, job.weights)


def _pairs(job: Job) -> list[tuple[str, str]]:
    """The first and the second factor, of the pairs that differ in both."""
    there = set(job.names)
    found = []
    for name in job.names:
        for first, second in _PAIRS:
            other = re.sub(rf"(^|[._]){re.escape(first)}(?=$|[._])", rf"\g<1>{second}", name)
            matrices = all(job.sources[0].shapes[n].dim() >= 2 for n in {name, other} & there)
            if other != name and other in there and matrices:
                found.append((name, other))
    return found


def _merged(job: Job, first: str, second: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Both factors, and which share of the mean's square norm they have."""
    like_a, like_b = (job.sources[0].shapes[name] for name in (first, second))
    factors = [
        tuple(source.read(name).to(torch.float64).flatten(1) for name in (first, second))
        for source in job.sources
    ]
    a, b = factors[0]
    groups = len(a) // b.shape[1] if b.shape[1] else 0  # loralib merges several layers in one
    if not groups or groups * b.shape[1] != len(a) or len(b) % groups:
        why = f"{first} {list(like_a.shape)} and {second} {list(like_b.shape)} are no low-rank pair"
        job.refuse(why, field="strategy", code=ErrorCode.UNSUPPORTED)
    parts = [
        _truncated([pair[0].chunk(groups)[group] for pair in factors],
                   [pair[1].chunk(groups)[group] for pair in factors], job.weights)
        for group in range(groups)
    ]  # fmt: skip
    merged_a = torch.cat([part[0] for part in parts]).reshape(like_a.shape).to(like_a.dtype)
    merged_b = torch.cat([part[1] for part in parts]).reshape(like_b.shape).to(like_b.dtype)
    kept, whole = (math.fsum(part[place] for part in parts) for place in (2, 3))
    return merged_a, merged_b, kept / whole if whole else 1.0


def _truncated(
    firsts: Sequence[torch.Tensor], seconds: Sequence[torch.Tensor], weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The mean of ``second @ first`` as two factors, the square norms of these and of the mean."""
    rank = len(firsts[0])
    q_b, r_b = torch.linalg.qr(torch.cat([w * b for w, b in zip(weights, seconds, strict=True)], 1))
    q_a, r_a = torch.linalg.qr(torch.cat(list(firsts)).T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = values[:rank].sqrt()
    b = torch.zeros(len(q_b), rank, dtype=torch.float64)
    a = torch.zeros(rank, len(q_a), dtype=torch.float64)
    b[:, : len(roots)] = q_b @ (left[:, :rank] * roots)
    a[: len(roots)] = (roots[:, None] * right[:rank]) @ q_a.T
    squares = values.square()
    return a, b, float(squares[:rank].sum()), float(squares.sum())
