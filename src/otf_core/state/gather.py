"""The parts of all ranks on rank 0, through the default process group; training thread.

Rule: a rank that fails says so in the place of its part; nobody is left waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from otf_core.errors import CommandError, ErrorCode


class _Failed(str):
    """In the place of a part: why there is none."""

    __slots__ = ()


def gather(part: Callable[[], Any]) -> list[Any] | None:
    """What ``part`` returned on every rank, in their order; called on all ranks at once.

    The parts travel in one piece each and lie together in rank 0's memory: for tens of ranks.

    Returns:
        The parts on rank 0, None on the others.

    Raises:
        Exception: what rank 0's own ``part`` raised, after the others were heard.
        CommandError: ``internal``, on rank 0: another rank's raised. Rank 0 tells; no other does.
    """
    mine: Any
    own: Exception | None = None
    try:
        mine = part()
    except Exception as error:  # noqa: BLE001 -- border: save hooks may raise anything, on one rank
        mine, own = _Failed(f"{type(error).__name__}: {error}"[:500]), error
    first = dist.get_rank() == 0
    found: list[Any] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(None if first else mine, found)
    if found is None:
        return None
    if own is not None:
        raise own
    found[0] = mine
    for rank, each in enumerate(found):
        if isinstance(each, _Failed):
            detail = f"Rank {rank} could not be captured ({each}); training goes on."
            raise CommandError(ErrorCode.INTERNAL, detail)
    return found
