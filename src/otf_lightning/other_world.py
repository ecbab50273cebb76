"""A snapshot of another number of ranks: what of it a rank takes; training thread, at the gate.

Rule 1: weights, optimizer states and gradients are those of the run, whoever holds which part.
Rule 2: what each rank had for itself cannot be dealt out anew: its random numbers, its place in
the data. Each takes those of one that was, and the place is as near as it can be; what is not
exact is said.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Final

import lightning as L
import numpy as np
import torch

from otf_core.state.data_tap import replayed, tapped, with_given
from otf_core.state.loader_parts import around
from otf_core.state.rng import get_rng, set_rng
from otf_lightning import inside
from otf_lightning.positions import share

SEED_BITS: Final = 32  # of NumPy's


def adapt(trainer: L.Trainer, state: dict[str, Any], saved: int) -> list[str]:
    """Change the snapshot that this rank takes so that it fits here; it belongs to the caller.

    Args:
        saved: how many ranks it is of.

    Returns:
        Sentences why what follows is not exact.
    """
    here, exact = trainer.world_size, state["otf"]["exact"]
    why = [
        f"it goes on with {_ranks(here)} from a checkpoint of {_ranks(saved)}: each has other "
        "random numbers and other samples in its batches"
    ]
    if trainer.global_rank >= saved:
        exact["rng"] = _another(exact["rng"], trainer.global_rank)
    exact["positions"] = dict(exact["positions"])
    done = exact["positions"]["idx"]
    why += _go_to(trainer, state, saved)
    batches, pending = trainer.accumulate_grad_batches, exact["gradients"]
    if pending and done % batches != exact["positions"]["idx"] % batches:
        why.append("the gradients that were being accumulated count for another number of batches")
    return why


def _ranks(n: int) -> str:
    return f"{n} rank{'s' * (n > 1)}"


def _another(rng: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Random numbers of a rank that was not there: of no other rank, the same every time."""
    before = get_rng()
    set_rng(dict(rng))
    drawn = torch.randint(2**SEED_BITS, ()).item()
    digest = hashlib.sha256(f"{drawn} {rank}".encode()).digest()
    seed = int.from_bytes(digest[: SEED_BITS // 8], "big")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    found = get_rng()
    set_rng(before)
    return found


def _go_to(trainer: L.Trainer, state: dict[str, Any], saved: int) -> list[str]:
    positions = state["otf"]["exact"]["positions"]
    loaders = inside.loaders_in_fit(trainer, validation=False)
    vals = inside.loaders_in_fit(trainer, validation=True)
    positions["val"] = [_between(loader) for loader in vals] or None
    if not all(tapped(loader) and not replayed(loader) for loader in loaders):
        return [
            "its loader deals out its samples itself: each rank goes on where one of those was "
            "that there were, and samples may come twice or not at all"
        ]
    shares = positions.get("shares") or [None]
    length = inside.fetcher(trainer).length
    k, sentence = _batches(trainer, shares, positions["idx"], length, saved)
    for loader, was in zip(loaders, shares, strict=False):
        if was is not None and share(loader) is not None:
            loader.sampler.seed, loader.sampler.shuffle = was["seed"], was["shuffle"]
            loader.sampler.set_epoch(was["epoch"])
    positions["train"] = [_at(loader, k) for loader in loaders]
    positions["idx"] = k
    over = length is not None and k >= length
    positions["fetcher"] = {"fetched": k, "done": over, "length": length, "batches": []}
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    progress["current"] = dict.fromkeys(progress["current"], k)
    progress["is_last_batch"] = over
    return [sentence]


def _batches(
    trainer: L.Trainer, shares: list[Any], done: int, length: int | None, saved: int
) -> tuple[int, str]:
    """Behind how many of its batches each rank goes on, and what becomes of the epoch."""
    loaders = inside.loaders_in_fit(trainer, validation=False)
    was, now = shares[0], share(loaders[0])
    if len(loaders) != 1 or was is None or now is None or was["samples"] != now["samples"]:
        k = done * saved // trainer.world_size
        k = k if length is None else min(k, length)
        return k, (
            f"which samples of this epoch were had is not known: {k} batches of another order are "
            "left out in their place"
        )
    if done >= was["batches"]:
        return now["batches"], "the epoch was over"
    had, each = done * was["batch_size"] * saved, now["batch_size"] * trainer.world_size
    k = min(had // each, now["batches"])
    return k, (
        f"of this epoch's order {had:,} samples were had, each rank goes on behind {k} batches: "
        f"{had - k * each:,} samples come twice"
    )


def _between(loader: Any) -> Any:
    return with_given(loader, loader.otf_state(iterating=False)) if tapped(loader) else None


def _at(loader: Any, k: int) -> dict[str, Any]:
    """The position of a tapped loader behind k batches of what it deals out from here on."""
    rng, live, workers = get_rng(), around(loader), loader.num_workers
    iterator = {"num_workers": workers, "rng": rng, "began": live, "n": k, "drawn": k}
    if workers:
        pool = {"rng_pool": rng, "began_pool": live, "workers_began": {}, "workers": {}}
        iterator |= {**pool, "ahead": [], "turn": k % workers}
    else:
        iterator |= {"rng_start": rng, "ended": False}
    return with_given(loader, {"around": live, "iterator": iterator})
