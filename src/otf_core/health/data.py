"""Training batches of a pass of its own; the pass that is under way does not notice.

Rule 1: a loader is never iterated itself: its copy is, over the same data set, samplers and
collate function, in this process and without workers.
Rule 2: what samplers and data set keep for themselves is put back, as far as it is small and plain.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.loader_parts import around, has_own_state, set_around


def fresh(loader: Any) -> Any:
    """What gives the batches of a new pass by ``iter``.

    Raises:
        CommandError: ``unsupported``, it can be read once only, or keeps where it stands.
    """
    name = type(loader).__name__
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


@contextlib.contextmanager
def parked_data(loaders: Iterable[Any]) -> Iterator[None]:
    """What samplers, data sets and loaders keep is afterwards as it was."""
    taken = [
        (loader, around(loader) if isinstance(loader, DataLoader) else _own(loader))
        for loader in loaders
    ]
    try:
        yield
    finally:
        for loader, state in taken:
            if isinstance(loader, DataLoader):
                set_around(loader, state, own=False)
            else:
                vars_of(loader).update(state)


def _own(loader: Any) -> dict[str, Any]:
    return dict(vars_of(loader))


def vars_of(obj: Any) -> dict[str, Any]:
    """The attributes of an object; empty where it has no room for any."""
    return vars(obj) if hasattr(obj, "__dict__") else {}
