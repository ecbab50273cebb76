"""An evaluation in the middle of a training, which goes on as if there had been none.

Training thread. Parked and put back: RNG and every generator object of the training's loaders,
module attributes and modes (metrics that training and test share are among them), and buffers.
The worker pools of the loaders take no part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from otf_core.state.parts import (
    Modules,
    give_attributes,
    named_buffers,
    named_modules,
    take_attributes,
)
from otf_core.state.plain_values import Decoder, Encoder
from otf_core.state.rng import (
    GENERATORS,
    generator_state,
    parked_rng,
    pools_aside,
    set_generator_state,
)


@contextlib.contextmanager
def parked(modules: Modules, loaders: Sequence[Any], *, skip: Iterable[str] = ()) -> Iterator[None]:
    """What happens inside leaves no trace.

    Args:
        loaders: those of the training, and of its own validation.
        skip: attributes of the modules that are not state.
    """
    own = frozenset(skip)
    attributes = take_attributes(named_modules(modules), Encoder(lambda t: t.clone(), skip=own))
    buffers = {name: b.clone() for name, b in named_buffers(modules).items()}
    generators = [(g, generator_state(g)) for g in _generators(loaders)]
    with parked_rng(), pools_aside(loaders):
        try:
            yield
        finally:
            give_attributes(named_modules(modules), Decoder(skip=own), attributes)
            with torch.no_grad():
                for name, b in named_buffers(modules).items():
                    if name in buffers and b.shape == buffers[name].shape:
                        b.copy_(buffers[name])
            for generator, state in generators:
                set_generator_state(generator, state)


@contextlib.contextmanager
def attributes_parked(
    owner: Any, *, skip: Iterable[str] = (), small: bool = False
) -> Iterator[None]:
    """The attributes of an object that is no module are as before at the end.

    Args:
        skip: those that are not state.
        small: leave alone what is large, since it is data.
    """
    own = frozenset(skip)
    saved = take_attributes({"": owner}, Encoder(lambda t: t.clone(), skip=own, small=small))
    try:
        yield
    finally:
        give_attributes({"": owner}, Decoder(skip=own, small=small), saved)


def _generators(loaders: Iterable[Any]) -> list[Any]:
    """Generator objects that decide the training's data: of loaders, samplers and data sets."""
    found: dict[int, Any] = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        owners = [
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        ]
        dataset = getattr(loader, "dataset", None)
        while dataset is not None and hasattr(dataset, "__dict__"):
            owners.append(dataset)
            dataset = vars(dataset).get("dataset")
        for owner in owners:
            for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
                if isinstance(value, GENERATORS):
                    found[id(value)] = value
    return list(found.values())
