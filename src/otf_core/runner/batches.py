"""Batches: from the loaders, to the device, and how large they are."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from otf_core.runner.counters import Counters
from otf_core.runner.refusals import RunnerError, refuse
from otf_core.state import loader_parts

UNKNOWN: Final = math.inf
_BLOCKING: Final = ("cpu", "mps")


def length_of(loader: Any) -> float:
    """Batches that it says it has; inf where it does not know."""
    length = loader_parts.length_of(loader)
    return UNKNOWN if length is None else length


def limited(length: float, limit: float, what: str) -> float:
    """How many batches a limit leaves: an int counts, a float is a share.

    Raises:
        RunnerError: a share of an unknown length, or one that leaves nothing.
    """
    if length == 0:
        return 0
    if isinstance(limit, int):
        return min(length, limit)
    if length != UNKNOWN:
        number = int(length * limit)
        if number == 0 and limit > 0:
            msg = f"{what}={limit} of {length} batches is none; allowed: at least {1 / length}"
            raise RunnerError(msg)
        return number
    if limit != 1.0:
        msg = f"{what}={limit} is a share, but the loader has no length; allowed: an int"
        raise RunnerError(msg)
    return length


class Batches:
    """The batches of one epoch, of one loader after the other.

    ``place`` keeps how far it is: where no length is known, one batch is fetched ahead, so that
    the last one is known to be it.

    Args:
        limits: at most so many of each loader.
    """

    def __init__(
        self, loaders: Sequence[Any], limits: Sequence[float], place: Counters | None = None
    ) -> None:
        self.loaders, self.limits = loaders, limits
        self.place = place if place is not None else Counters()
        total = sum(
            min(length_of(loader), limit) for loader, limit in zip(loaders, limits, strict=True)
        )
        self.length = None if total == UNKNOWN else int(total)
        self.iterator: Iterator[Any] | None = None
        self._loader = self._index = 0

    def begin(self) -> None:
        """Make the iterator anew; draws from the RNG, as torch's loaders do."""
        place = self.place
        self._loader = self._index = 0
        self._open()
        place.fetched, place.exhausted, place.ahead = 0, self.length == 0, []
        if self.length is None:
            self._fetch_ahead()

    def go_on(self, iterator: Iterator[Any] | None) -> None:
        """With the iterator of the one loader that stands where ``place`` does."""
        self.iterator, self._loader, self._index = iterator, 0, self.place.fetched

    def end(self) -> None:
        """Let go of the iterator."""
        self.iterator = None

    def __next__(self) -> tuple[Any, int, int]:
        """A batch, its number within its loader, and the loader's.

        Raises:
            StopIteration: there is none.
        """
        place = self.place
        if place.ahead:
            batch: tuple[Any, int, int] = place.ahead.pop(0)
            self._fetch_ahead()
            return batch
        if place.exhausted:
            raise StopIteration
        batch = self._fetch()
        place.exhausted = self.length is not None and place.fetched >= self.length
        return batch

    def _fetch_ahead(self) -> None:
        try:
            self.place.ahead.append(self._fetch())
        except StopIteration:
            self.place.exhausted = True

    def _fetch(self) -> tuple[Any, int, int]:
        while self._loader < len(self.loaders):
            if self._index < self.limits[self._loader] and self.iterator is not None:
                try:
                    batch = next(self.iterator)
                except StopIteration:
                    pass
                else:
                    self._index += 1
                    self.place.fetched += 1
                    return batch, self._index - 1, self._loader
            self._loader, self._index = self._loader + 1, 0
            self._open()
        self.place.exhausted = True
        raise StopIteration

    def _open(self) -> None:
        there = self._loader < len(self.loaders)
        self.iterator = iter(self.loaders[self._loader]) if there else None


def check_loader(loader: Any, where: str) -> None:
    """Refuse what cannot be iterated.

    Raises:
        RunnerError: with where it came from.
    """
    if isinstance(loader, DataLoader):
        return  # making an iterator would draw from the RNG
    try:
        iter(loader)
    except TypeError:
        msg = f"a loader was asked of {where}, found {loader!r}; allowed: an iterable of batches"
        raise RunnerError(msg) from None


def one_loader(found: Any) -> list[Any]:
    """The loader to train with."""
    if type(found).__name__ == "CombinedLoader" or isinstance(found, Mapping | list | tuple):
        refuse("several training loaders", f"found a {type(found).__name__}")
    return [found]


def several_loaders(found: Any) -> list[Any]:
    """The loaders to validate or test with, one after the other."""
    if type(found).__name__ == "CombinedLoader":
        refuse("CombinedLoader")
    if isinstance(found, Mapping):
        refuse("dict of loaders")
    return list(found) if isinstance(found, list | tuple) else [found]


def seed_workers(loader: Any) -> None:
    """Have workers seeded as ``seed_everything(workers=True)`` of Lightning asks for."""
    seeds = sys.modules.get("lightning.fabric.utilities.seed") or sys.modules.get(
        "lightning_fabric.utilities.seed"
    )
    asked = os.environ.get("PL_SEED_WORKERS", "0") not in ("0", "")
    if asked and seeds is not None and isinstance(loader, DataLoader):
        loader.worker_init_fn = loader.worker_init_fn or seeds.pl_worker_init_function


def close_workers(loader: Any) -> None:
    """End the workers that a loader keeps between two iterations; it may be iterated again."""
    pool = getattr(loader, "_iterator", None)
    if pool is not None and hasattr(pool, "_shutdown_workers"):
        pool._shutdown_workers()  # noqa: SLF001 -- torch has no other way
        loader._iterator = None  # noqa: SLF001 -- as above


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers that want to know."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)]
    for sampler in {id(s): s for s in samplers if s is not None}.values():
        tell = getattr(sampler, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with everything in it moved that has a ``to``; of the same type."""
    if isinstance(batch, torch.Tensor):
        if batch.device == device:
            return batch
        return batch.to(device, non_blocking=device.type not in _BLOCKING)
    kind = type(batch)
    if kind is list:
        return [to_device(item, device) for item in batch]
    if kind is tuple:
        return tuple([to_device(item, device) for item in batch])
    if kind is dict:
        return {key: to_device(item, device) for key, item in batch.items()}
    to = getattr(batch, "to", None)
    if callable(to):
        moved = to(device)
        return batch if moved is None else moved
    return _others(batch, lambda item: to_device(item, device))


def _others(batch: Any, move: Callable[[Any], Any]) -> Any:
    """Collections of the user's own types; what is no collection stays as it is."""
    kind: Any = type(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [f.name for f in dataclasses.fields(batch) if f.init]
        return dataclasses.replace(batch, **{n: move(getattr(batch, n)) for n in fields})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return kind(*(move(item) for item in batch))
    if isinstance(batch, Mapping):
        moved = {key: move(item) for key, item in batch.items()}
        factory = getattr(batch, "default_factory", None)
        return kind(factory, moved) if hasattr(batch, "default_factory") else kind(moved)
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return kind([move(item) for item in batch])
    return batch


def batch_size_of(batch: Any) -> int:
    """The length of the first tensor in it.

    Raises:
        RunnerError: there is none; ``log(…, batch_size=)`` says it.
    """
    for size in _sizes(batch):
        if size is not None:
            return size
    msg = "the batch size was asked for a mean, found no tensor; allowed: log(…, batch_size=)"
    raise RunnerError(msg)


def _sizes(batch: Any) -> Iterator[int | None]:
    if isinstance(batch, torch.Tensor):
        yield batch.size(0) if batch.ndim else 1
    elif isinstance(batch, Iterable) and not isinstance(batch, str):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _sizes(item)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _sizes(getattr(batch, field.name))
    else:
        yield None
