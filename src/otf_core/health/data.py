"""Training batches of a pass of its own; the pass that is under way does not notice.

Rule 1: a loader is never iterated itself: its copy is, over the same data set, samplers and
collate function, in this process and without workers.
Rule 2: what samplers and data set keep for themselves is put back, as far as it is small and plain;
also where they would say it by a state_dict, since to load one may count as another beginning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.loader_parts import (
    has_own_state,
    live_iterators,
    ordering_parts,
    parts,
    reading_parts,
)


def fresh(loader: Any) -> Any:
    """What gives the batches of a new pass by ``iter``.

    Raises:
        CommandError: ``unsupported``, it can be read once only, or keeps where it stands.
    """
    name = type(loader).__name__
    if held := live_iterators(list(parts_of(loader).values())):
        detail = f"Batches of a pass of its own were asked; {held[0]} can be read once only."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    if has_own_state(loader):
        detail = f"Batches of a pass of its own were asked; {name} keeps its own position."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    if isinstance(loader, DataLoader):
        return _alone(loader)
    if isinstance(loader, Iterator):
        detail = f"Batches of a pass of its own were asked; {name} can be read once only."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    return loader


def _alone(loader: DataLoader[Any]) -> Any:
    made = copy.copy(loader)
    # DataLoader forbids some of it by its __setattr__.
    vars(made).update(
        num_workers=0,
        prefetch_factor=None,
        persistent_workers=False,
        timeout=0,
        _iterator=None,
    )
    return made


def parts_of(loader: Any) -> dict[str, Any]:
    """The loader's samplers, its data set, and what hangs on them; or a loader of another kind."""
    if isinstance(loader, DataLoader):
        return {**ordering_parts(loader), **reading_parts(loader.dataset, loader.collate_fn)}
    return parts({"loader": loader})
